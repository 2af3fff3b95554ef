"""Training one trial, epoch by epoch; knows torch and nothing of Ray."""
