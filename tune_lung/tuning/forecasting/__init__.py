"""What a search will try, take and need, said before any of it is spent."""
