"""What a trained network's answers are worth: predictions, metrics, statistics."""
