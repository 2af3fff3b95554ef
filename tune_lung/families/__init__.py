"""What kinds of models there are, as data: nothing here builds or trains one, or knows torch."""
