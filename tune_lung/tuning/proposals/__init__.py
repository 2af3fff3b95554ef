"""What is tried next, and what the sampler learns from it: Optuna without Ray."""
