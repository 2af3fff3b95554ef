"""The search over trials: the only rooms that know Ray, and the sampler bridge that knows Optuna."""
