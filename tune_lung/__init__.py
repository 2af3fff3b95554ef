"""Ray Tune hyperparameter search for lung-disease classification from chest X-rays. Not for clinical use."""

__version__ = "0.1.0"
