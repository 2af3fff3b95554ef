"""Search spaces, one file a question; `tune_lung.space_files.load_space` loads them by path."""
