"""Float32 that is float32: no TF32 and no autocast inside a ``with`` block or a decorated function.

A GPU may round the factors of float32 products to ten bits (TF32), which torch allows for convolutions unless told
otherwise, and a caller may have autocast on. Rows, Grams and gradients of an estimate take neither. What was set before is
set again afterwards; nothing is touched that is off already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from ntkml.machine.shared_settings import SharedSetting


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute in the full precision of every tensor's type; serves as a decorator too."""
    with ExitStack() as stack:
        stack.enter_context(_NO_TF32.changed())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def _no_tf32() -> Iterator[None]:
    with ExitStack() as stack:
        before = [(kind, kind.fp32_precision) for kind in _kinds()]
        stack.callback(_set_again, before)  # called last
        stack.callback(_older_switches_off())
        for kind, _ in before:
            if kind.fp32_precision not in ("none", "ieee"):
                kind.fp32_precision = "ieee"
        yield


_NO_TF32 = SharedSetting(_no_tf32)


def _kinds() -> list[Any]:
    """The kinds of operations that have a precision of their own, from torch 2.9 on."""
    mkldnn = getattr(torch.backends, "mkldnn", None)
    kinds: list[Any] = [torch.backends.cuda.matmul]
    kinds += [getattr(place, "conv", None) for place in (torch.backends.cudnn, mkldnn)] + [
        getattr(mkldnn, "matmul", None)
    ]
    return [kind for kind in kinds if hasattr(kind, "fp32_precision")]


def _older_switches_off() -> Callable[[], None]:
    """Turn TF32 off by the switches that every torch has; returns what sets them as they were.

    Where the newer ones were used, torch refuses to read the older; the caller then turns those off alone.
    """
    undo: list[Callable[[], None]] = []
    try:
        products = torch.get_float32_matmul_precision()
        if products != "highest":
            torch.set_float32_matmul_precision("highest")
            undo.append(partial(torch.set_float32_matmul_precision, products))
    except RuntimeError:
        pass
    try:
        if torch.backends.cudnn.allow_tf32:
            torch.backends.cudnn.allow_tf32 = False
            undo.append(partial(setattr, torch.backends.cudnn, "allow_tf32", True))
    except RuntimeError:
        pass

    def again() -> None:
        for step in undo:
            step()

    return again


def _set_again(before: list[tuple[Any, str]]) -> None:
    for kind, precision in before:
        if kind.fp32_precision != precision:
            kind.fp32_precision = precision
