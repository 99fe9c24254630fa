"""Differentiable hyperparameters beside the prior: what enters the network's input or forward pass."""
