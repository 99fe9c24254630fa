"""What the public functions are given, looked at before anything is computed from it: one line says what it should be.

What needs the outputs or the rows of a network is checked where these are made (:mod:`ntkml.rows.model_contract`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral

import torch
from torch import Tensor, nn

from ntkml.machine.memory import is_out_of_memory


def check_members(value: object, what: str, members: tuple[str, ...], example: str, kind: type = object) -> None:
    """Raise ValueError where ``value``, which is to be ``what``, lacks a member, is of another kind or a class itself."""
    missing = [name for name in members if not hasattr(type(value), name) and not hasattr(value, name)]
    if missing or not isinstance(value, kind) or isinstance(value, type):
        raise ValueError(f"{what} has {', '.join(members)}, as {example}; got {_described(value)}")


def check_network(model: object) -> None:
    """Raise ValueError for what is no network of weights that hold numbers."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model is an nn.Module, whose parameters are the weights; got {_described(model)}")
    check_inference_mode()
    check_made_outside(model)
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ValueError(f"parameter {name!r} lies on the meta device, without numbers: use to_empty and load them")
        if parameter.requires_grad and not parameter.numel():
            raise ValueError(f"parameter {name!r} of shape {tuple(parameter.shape)} is empty: give its layer outputs")


def check_inference_mode() -> None:
    """Raise ValueError under torch.inference_mode(): what is made there, a parameter too, never has a gradient, without a word."""
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "estimates take derivatives: leave torch.inference_mode(), or go on under torch.inference_mode(False)"
        )


def check_made_outside(module: nn.Module) -> None:
    """Raise ValueError where a parameter was made under torch.inference_mode()."""
    for name, parameter in module.named_parameters():
        if parameter.is_inference():
            raise ValueError(
                f"parameter {name!r} was made under torch.inference_mode() and has no derivatives: make, load and move its module outside"
            )


def check_tensors(x: Tensor, y: Tensor) -> None:
    """Raise ValueError where inputs and targets are no dense tensors of the same number of data, at least one."""
    check_inference_mode()
    for name, data in (("x", x), ("y", y)):
        if not isinstance(data, Tensor):
            raise ValueError(
                f"{name} is a tensor, first dimension the data; got {type(data).__name__}: {_as_one_tensor(data)}"
            )
        if data.is_nested:
            raise ValueError(f"{name} is a dense tensor; got a nested one: use to_padded_tensor(0)")
        if data.layout != torch.strided:
            raise ValueError(f"{name} is a dense tensor; got {data.layout}: use to_dense()")
        if data.ndim == 0 or data.is_complex() or data.is_meta:
            raise ValueError(
                f"{name} holds real numbers, first dimension the data; got {data.dtype} of shape {tuple(data.shape)} on {data.device}"
            )
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(
            f"x and y hold the same number of data, at least one; got {len(x)} inputs and {len(y)} targets"
        )


def _as_one_tensor(data: object) -> str:
    """How what is given for a tensor becomes one."""
    if isinstance(data, list) and data and isinstance(data[0], Tensor):
        return "use torch.stack"
    if isinstance(data, (Mapping, tuple)):
        return "put the parts of an input side by side in one, and let a module around the network take it apart"
    return "use torch.as_tensor"


def check_size(num_data: object, num_given: int) -> None:
    """Raise ValueError where ``num_data``, the number of all training data, is no number or less than those of a batch."""
    if isinstance(num_data, bool) or not isinstance(num_data, Integral) or not num_given <= int(num_data) < 2**63:
        raise ValueError(
            f"num_data is the number of all training data, at least the {num_given} of this batch; got {num_data!r}"
        )


def as_numbers(given: object, what: str) -> Tensor:
    """Real numbers as a tensor: float64, or a tensor as it is. Raises ValueError for what is none, which is to be ``what``."""
    try:
        numbers = given if isinstance(given, Tensor) else torch.as_tensor(given, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{what}; got {given!r}") from None
    if numbers.is_complex():
        raise ValueError(f"{what}; got complex ones")
    return numbers


def check_generator(generator: object) -> None:
    """Raise ValueError for a seed in the place of a generator."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(
            f"generator is None or a torch.Generator; got {_described(generator)}: use torch.Generator().manual_seed(0)"
        )


@contextmanager
def whole_numbers_explained(model: nn.Module, x: Tensor) -> Iterator[None]:
    """What torch raises where a network does not take whole numbers, as a ValueError that says what to do."""
    takes_them = any(isinstance(module, (nn.Embedding, nn.EmbeddingBag)) for module in model.modules())
    try:
        yield
    except RuntimeError as error:
        if takes_them or x.is_floating_point() or is_out_of_memory(error):
            raise
        raise ValueError(
            f"the network does not take inputs of type {x.dtype} ({str(error).splitlines()[0]}): convert them with .float()"
        ) from error


def _described(value: object) -> str:
    return f"the class {value.__name__}: call it" if isinstance(value, type) else type(value).__name__
