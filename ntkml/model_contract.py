"""What a network must be for its rows to be exact, checked on the network itself and not only on its types."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ntkml.capture import Capture, capture, is_weight, trainable_parameters
from ntkml.layers import LAYER_TYPES, layer_for


def check_model(model: nn.Module, inputs: Tensor) -> None:
    """Refuse a model whose rows would be wrong, by name and with what to do.

    Beside the types, two identities are checked on a few inputs: the captured rows add up to autograd's own gradient of
    the parameters (a weight used outside its layer breaks this), and the outputs of an input do not depend on the rest
    of its batch.

    Raises:
        ValueError: BatchNorm or Dropout in training mode, an unsupported layer type, a parameter shared by two layers,
            a reused layer, a parameter used outside its layer, or outputs that depend on the batch.
    """
    _check_types(model)
    for name, parameter in trainable_parameters(model).items():
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(f"parameter {name!r} holds NaN or infinite values: train or load the network again")
    dtype = next(iter(trainable_parameters(model).values())).dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the network is {dtype}: estimates need float32 or float64 rows; convert it with .float()")
    if inputs.is_floating_point() and inputs.dtype != dtype:
        raise ValueError(f"the inputs are {inputs.dtype} but the network is {dtype}: convert one of them")
    differing = (inputs != inputs[:1]).flatten(1).any(1).nonzero()
    few = inputs[[0, int(differing[0])] if len(differing) else [0]].detach()
    captured = capture(model, few)
    _check_gradient(model, captured)
    with torch.no_grad():
        alone = model(few[:1].clone())
    together = captured.outputs[:1].detach()
    scale = together.abs().max().clamp_min(1.0)
    if not bool(((alone - together).abs() <= 1e-3 * scale).all()) and bool(torch.isfinite(alone).all()):
        raise ValueError(
            "the outputs of an input depend on the other inputs of its batch (or are random): call model.eval() or remove such layers"
        )


def _check_types(model: nn.Module) -> None:
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"{kind} {name!r} is in training mode, so an output depends on the whole batch: call model.eval(), or "
                "use a network without normalisation (Fixup)"
            )
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise ValueError(f"{kind} {name!r} is in training mode, so outputs are random: call model.eval()")
        own = {key: p for key, p in module.named_parameters(recurse=False) if is_weight(p)}
        if own and not isinstance(module, LAYER_TYPES):
            known = ", ".join(layer.__name__ for layer in LAYER_TYPES)
            raise ValueError(
                f"{kind} {name!r} has trainable parameters ({', '.join(own)}) and is not supported (supported: {known}): "
                "freeze it with requires_grad_(False) or replace it"
            )
        if own:
            layer_for(module).check(name, module)
        for key, parameter in module._parameters.items():
            if parameter is None or not is_weight(parameter):
                continue
            if id(parameter) in owners:
                raise ValueError(
                    f"parameter {name}.{key} is shared with {owners[id(parameter)]}: give each layer its own"
                )
            owners[id(parameter)] = f"{name}.{key}"


def _check_gradient(model: nn.Module, captured: Capture) -> None:
    """The captured rows of every input must be autograd's gradient of that input's outputs."""
    parameters = trainable_parameters(model)
    for index in range(len(captured.outputs)):
        probe = torch.zeros_like(captured.outputs).detach()
        probe[index] = torch.linspace(1.0, 2.0, captured.outputs.shape[1])
        _check_rows_of(index, parameters, captured, probe)


def _check_rows_of(index: int, parameters: dict[str, nn.Parameter], captured: Capture, probe: Tensor) -> None:
    truth = torch.autograd.grad(
        captured.outputs, list(parameters.values()), probe, retain_graph=True, allow_unused=True
    )
    rows: dict[str, Tensor] = {}
    for layer, gradient in zip(captured.layers, captured.pull_back(probe), strict=True):
        for key, row in layer.positions(gradient.unsqueeze(1)).rows().items():
            rows[f"{layer.name}.{key}" if layer.name else key] = row[index, 0]
    for name, gradient in zip(parameters, truth, strict=True):
        if gradient is None:
            raise ValueError(f"the outputs do not depend on parameter {name!r}: freeze it with requires_grad_(False)")
        if name not in rows:
            raise ValueError(
                f"the layer of parameter {name!r} is bypassed: its weight is used without calling the layer"
            )
        error = (rows[name] - gradient.reshape(-1)).abs().max()
        if bool(error > 1e-3 * gradient.abs().max() + 1e-6 * probe.abs().max()) and bool(
            torch.isfinite(gradient).all()
        ):
            raise ValueError(
                f"parameter {name!r} is also used outside its layer: its captured rows miss part of the gradient"
            )
