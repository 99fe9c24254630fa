"""Machines and files: memory, processes, exact float32, whole files, the door to torchvision; nothing of the mathematics."""
