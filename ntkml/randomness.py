"""One random stream per purpose, so that changing one consumer (an estimator, say) never changes another (the data)."""

from __future__ import annotations

import hashlib

import torch


def generator_for(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator that depends on the seed and the purpose ("data", "init", "partition", "augmentation") only."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
