"""Forward passes without the shortcuts that rows cannot go through, and modules that are left as they were before one."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ntkml.machine.shared_settings import SharedSetting


@contextmanager
def _no_fast_path() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _no_cudnn() -> Iterator[None]:
    before = torch.backends.cudnn.enabled
    if before:
        torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        if before:
            torch.backends.cudnn.enabled = True


_NO_FAST_PATH = SharedSetting(_no_fast_path)
_UNFUSED = SharedSetting(lambda: sdpa_kernel(SDPBackend.MATH))
_NO_CUDNN = SharedSetting(_no_cudnn)
_NOT_COMPILED = SharedSetting(lambda: torch.compiler.set_stance("force_eager"))


def attention_by_layers() -> AbstractContextManager[None]:
    """Attention that calls its layers, instead of the one operation that torch takes for all of them in evaluation mode.

    torch takes it for frozen encoder layers too, and hands their nested tensors on to learned layers, which refuse those.
    """
    return _NO_FAST_PATH.changed()


#: 1/6 as the gradient of torch's hard sigmoid has it, in float64 too, unlike its value.
_SIXTH = torch.tensor(1.0 / 6.0, dtype=torch.float32, device="cpu").item()


class _PlainOperations(TorchFunctionMode):
    """Weight normalisation and bilinear maps by operations that vmap knows; a hard sigmoid, as in MobileNetV3, by those with a second derivative.

    vmap takes an operation that it does not know input by input, each out of the copies for all of them, whose gradient is then filled
    with zeros once for every input: rows of 128 inputs of a weight-normalised layer of 768 x 200 took 7.1 s, and take 0.9.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._weight_norm and len(args) == 3 and not kwargs:  # as torch's own modules call it
            direction, length, kept = args
            others = [d for d in range(direction.ndim) if d != kept]  # all for kept = -1, the norm of the whole
            if others and kept >= -1:
                return direction * (length / torch.linalg.vector_norm(direction, dim=others, keepdim=kept >= 0))
        if func is F.bilinear:
            return _bilinear(*args, **(kwargs or {}))
        if func is F.hardsigmoid:
            return _hardsigmoid(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result = torch.einsum("...i,oij,...j->...o", input1, weight, input2)
    return result if bias is None else result + bias


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    slope = F.relu6(input + 3.0) * _SIXTH
    result = F.hardsigmoid(input.detach()) + (slope - slope.detach())
    return input.copy_(result) if inplace else result


@contextmanager
def plain_operations() -> Iterator[None]:
    """Operations that vmap and second derivatives know, instead of fused ones: attention, which needs more memory so, and some others."""
    with attention_by_layers(), _UNFUSED.changed(), _PlainOperations():
        yield


@contextmanager
def missing_derivatives_explained() -> Iterator[None]:
    """What torch raises where an operation has no second derivative, as a ValueError that says what to do."""
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"derivative for '?(?:aten::)?(\w+?)(?:_backward)?'? is not implemented", str(error))
        if found is None:
            raise
        raise ValueError(
            f"torch has no second derivative of {found[1].strip('_')!r}, which gradients in an augmentation or a Hyperparameter take: "
            "write it in forward by other operations, or learn prior and noise alone, which take none"
        ) from error


def plain_recurrence(model: nn.Module) -> AbstractContextManager[None]:
    """Recurrent layers by torch's own cells: those of cuDNN have no derivative in evaluation mode, and no second one.

    cuDNN is a setting of the process, off for the convolutions of such a network too. The weights' own loss is left alone.
    """
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    return _NO_CUDNN.changed() if recurrent else nullcontext()


def not_compiled() -> AbstractContextManager[None]:
    """A compiled network as it was before: hooks break it anyway, and its gradients may be taken only once.

    It would be compiled again for every size of a batch. Its owner's own passes, the weights' loss among them, are left alone.
    """
    # What is compiled has imported this, which takes a second.
    return _NOT_COMPILED.changed() if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def plain_pass(model: nn.Module) -> Iterator[None]:
    """A forward pass by the operations of the network's own modules: not compiled, without cuDNN's recurrent layers."""
    with plain_recurrence(model), not_compiled():
        yield


def outputs_of_one(model: nn.Module, inputs: Tensor) -> Tensor:
    """The outputs of the first input alone, without a graph. Shape (1, C)."""
    with torch.no_grad(), not_compiled():
        outputs: Tensor = model(inputs[:1].clone())  # some networks work on their input in place
    return outputs


@contextmanager
def stored_as_before(model: nn.Module) -> Iterator[None]:
    """Put back what a forward pass stores on modules (attributes and buffers, lists and dictionaries among them).

    Tensors of a pass under vmap are of no use outside it, for reading, copying or saving.
    """
    stores: list[Any] = []
    for module in model.modules():
        own = vars(module)
        stores += [own, *(value for value in own.values() if isinstance(value, (dict, list)))]
    before: list[Any] = [list(store) if isinstance(store, list) else dict(store) for store in stores]
    try:
        yield
    finally:
        for store, contents in zip(stores, before, strict=True):
            if isinstance(store, list):
                store[:] = contents
            else:
                for key in store.keys() - contents.keys():
                    del store[key]
                store.update(contents)
