"""A second device on machines that have none: to torch its tensors lie elsewhere, their numbers are the CPU's.

What a GPU shows is then seen everywhere: tensors of two devices in one operation raise (single numbers of the CPU are let through, as
CUDA does), so does a generator of the CPU for numbers of the device, code takes the branches of a device that is not the CPU, and
what the host reads of the device, for which it would wait, is counted. What it cannot show are a GPU's own kernels, their rounding
and their speed, and waits of another kind: copies to the device, and what a kernel does within.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

NAME = "simulated"
#: The version this was written for; earlier ones may lack what a device made in Python needs.
FIRST_TORCH = "2.13"
aten = torch.ops.aten
#: Operations whose result, or whose check of it, the host reads.
READS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.bincount.default,
    aten._unique2.default,
    aten._linalg_check_errors.default,
    aten._linalg_eigh.default,
}
#: Operations whose indices, the second argument, may lie on the host; a mask there is read.
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
#: Operations that take no number of the CPU among tensors of the device.
JOINS = {aten.cat.default, aten.stack.default}

_reads: list[str] = []
_kernels = torch.library.Library("aten", "IMPL")


class Elsewhere(Tensor):
    """A tensor of the simulated device; ``held`` has its numbers."""

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        tensor = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _on_the_cpu(operation, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.held})"


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value


def _on_the_cpu(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    ours = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, Elsewhere)]
    stays = True
    if kwargs.get("device") is not None:
        stays = torch.device(kwargs["device"]).type == NAME
        kwargs = kwargs | {"device": "cpu"}
    elif operation is aten.copy_.default:
        stays = isinstance(args[0], Elsewhere)
    else:
        _refuse_mixtures(operation, args, kwargs)
    masked = operation in INDEXED and any(index.dtype == torch.bool for index in _tensors(args[1]))
    if not stays or masked or operation in READS:
        _reads.append(str(operation))
    result = operation(*_mapped(_held, args), **_mapped(_held, kwargs))
    if torch.Tag.inplace_view in operation.tags:
        with torch._C._DisableTorchDispatch():  # the same change of shape and strides for what torch sees
            operation(*args, **kwargs)
    for tensor in ours:
        assert tensor.shape == tensor.held.shape, f"{operation} left a size that is not that of its numbers"
    if not stays:
        return result
    known = {id(tensor.held): tensor for tensor in ours}  # changed in place, it is still the same tensor

    def away(leaf: Any) -> Any:
        return (known[id(leaf)] if id(leaf) in known else Elsewhere(leaf)) if isinstance(leaf, Tensor) else leaf

    return _mapped(away, result)


def _leaves(values: Any) -> Iterator[Any]:
    """What the arguments of an operation hold, which are nested in nothing else: many times faster than torch's pytrees."""
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, (tuple, list, dict)):
            yield from _leaves(value)
        else:
            yield value


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(function, each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(function, each) for each in value)
    return function(value)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in _leaves(values) if isinstance(leaf, Tensor)]


def _refuse_mixtures(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    data = _tensors((args[0], args[2:], kwargs) if operation in INDEXED else (args, kwargs))
    away = [tensor for tensor in data if not isinstance(tensor, Elsewhere)]
    changed = [args[0]] if operation._schema.is_mutable and args and isinstance(args[0], Tensor) else []
    strict = operation in JOINS or (operation in INDEXED and not isinstance(args[0], Elsewhere))
    if any(tensor.ndim or strict or any(tensor is one for one in changed) for tensor in away):
        raise RuntimeError(f"{operation}: tensors on two devices: {[(str(t.device), tuple(t.shape)) for t in data]}")
    generators = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, torch.Generator)]
    if any(generator.device.type != NAME for generator in generators):
        raise RuntimeError(f"{operation}: numbers of the device from a generator of the CPU")


def _empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return Elsewhere(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
    return Elsewhere(torch.empty_strided(size, stride, dtype=dtype))


def _zeros(size, *, dtype=None, layout=None, device=None, pin_memory=None):
    return Elsewhere(torch.zeros(size, dtype=dtype))


def _arange(start, end, step=1, *, dtype=None, layout=None, device=None, pin_memory=None):
    return Elsewhere(torch.arange(start, end, step, dtype=dtype))


def _eye(n, m=None, *, dtype=None, layout=None, device=None, pin_memory=None):
    return Elsewhere(torch.eye(n, n if m is None else m, dtype=dtype))


def _copy_from(source, target, non_blocking=False):
    if not isinstance(target, Elsewhere):
        _reads.append("copy")
    _held(target).copy_(_held(source))
    return target


def _made() -> torch.device | None:
    if torch.cuda.is_available() or torch.__version__ < TorchVersion(FIRST_TORCH):
        return None
    # Where a later torch has moved these, which are not part of its public interface, the tests are to fail, not to be left out.
    from torch.utils.backend_registration import _DummyBackendModule as Module
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as set_up

    module = Module()
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    module.get_rng_state = lambda device=None: torch.empty(0, dtype=torch.uint8)  # no random numbers of its own
    module.set_rng_state = lambda state, device=None: None
    set_up(NAME, module)
    _kernels.impl("empty.memory_format", _empty, "PrivateUse1")
    _kernels.impl("empty_strided", _empty_strided, "PrivateUse1")
    for overload in ("arange.start", "arange.start_step"):
        _kernels.impl(overload, _arange, "PrivateUse1")
    _kernels.impl("arange", lambda end, **options: _arange(0, end, **options), "PrivateUse1")
    for overload in ("eye", "eye.m"):
        _kernels.impl(overload, _eye, "PrivateUse1")
    _kernels.impl("_efficientzerotensor", _zeros, "PrivateUse1")
    _kernels.impl("_copy_from", _copy_from, "PrivateUse1")
    return torch.device(NAME, 0)


#: None where a GPU takes its place (torch has one kind of accelerator at a time) or torch is older. Made when a test that wants it is collected: autograd serves the devices
#: that there are at the first backward pass of the process.
DEVICE = _made()


@contextmanager
def counted_reads() -> Iterator[list[str]]:
    """The operations through which the host reads numbers of the device, inside the block."""
    _reads.clear()
    seen: list[str] = []
    yield seen
    seen += _reads
