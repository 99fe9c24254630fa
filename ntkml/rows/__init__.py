"""Rows R = L^T J of one block, from hooks in one forward and backward pass or by torch.func, a chunk at a time."""
