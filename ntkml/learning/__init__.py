"""Weights and hyperparameters learned together: the loop, its state and checkpoints, its trouble by name, scores."""
