"""Search spaces, one file a question; `tune_lung.space.load_space` loads them by path."""
