"""Weights of a run: read from a file and checked, loaded into a network, saved."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ntkml.machine import files


@dataclass(frozen=True)
class SavedWeights:
    """A state dict and the sha256 of the file it came from."""

    state: Mapping[str, Tensor]
    checksum: str


def read_weights(path: Path) -> SavedWeights:
    """Read a ``weights.pt``; nothing in the file is executed.

    Raises:
        OSError: the file cannot be read.
        ValueError: no such file, or not a file of finite weights.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file of weights; give the weights.pt of a run")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # a damaged file raises whatever its bytes lead to: the cause is kept, the line is ours
        raise ValueError(f"{path} is not a file of weights: give the weights.pt of a run") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no weights (a dictionary of tensors): give the weights.pt of a run")
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise ValueError(f"{path} holds weights that are NaN or infinite")
    return SavedWeights(state, hashlib.sha256(path.read_bytes()).hexdigest())


def save_weights(path: Path, model: nn.Module) -> None:
    """Write the model's state dict, atomically."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    files.write_atomically(path, buffer.getvalue())


def load_weights(model: nn.Module, weights: SavedWeights, described: str) -> None:
    """Load weights into ``model``; ``described`` names the network in the error.

    Raises:
        ValueError: another network's weights.
    """
    expected = model.state_dict()
    reason = next(_differences(expected, weights.state), None)
    if reason:
        raise ValueError(
            f"the weights do not fit {described}: {reason}; choose the --model and --dataset that they were trained with"
        )
    model.load_state_dict(weights.state)


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Iterator[str]:
    """What tells the weights of two networks apart, one sentence each."""
    yield from (f"{name!r} is missing" for name in expected if name not in found)
    yield from (f"{name!r} is unknown" for name in found if name not in expected)
    for name, ours in expected.items():
        if ours.shape != found[name].shape:
            yield f"{name!r} has shape {tuple(found[name].shape)}, expected {tuple(ours.shape)}"
