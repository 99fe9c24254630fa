"""Names that a user may type, and where the code behind each one lives.

Every table maps a name to ``"module:attribute"``; nothing is imported until :func:`resolve` is called, so that listing
names (``ntkml --help``, shell completion) stays free of torch. Adding a structure, dataset, model, figure or command is
one new file and one new line here; docs/extending.md says what some need beside it.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

STRUCTURES = {
    "ntk": "ntkml.structures.ntk:NTK",
    "ggn": "ntkml.structures.ggn:GGN",
    "blockdiag": "ntkml.structures.blockdiag:BlockDiagonal",
    "kfac": "ntkml.structures.kfac:KFAC",
    "diag": "ntkml.structures.diag:Diagonal",
}

LIKELIHOODS = {
    "categorical": "ntkml.likelihoods:Categorical",
    "bernoulli": "ntkml.likelihoods:Bernoulli",
    "gaussian": "ntkml.likelihoods:Gaussian",
}

DATASETS = {
    "digits": "ntkml.datasets.digits:load",
    "mnist": "ntkml.datasets.mnist:load_mnist",
    "fashion-mnist": "ntkml.datasets.mnist:load_fashion_mnist",
    "cifar10": "ntkml.datasets.cifar:load_cifar10",
    "cifar100": "ntkml.datasets.cifar:load_cifar100",
    "tinyimagenet": "ntkml.datasets.tiny_imagenet:load",
}

MODELS = {
    "mininet": "ntkml.models.mininet:mininet",
    "mlp": "ntkml.models.small:mlp",
    "lenet": "ntkml.models.small:lenet",
    "wrn16-4": "ntkml.models.fixup_resnets:wrn16_4",
    "resnet8-16": "ntkml.models.fixup_resnets:resnet8_16",
    "resnet18-16": "ntkml.models.fixup_resnets:resnet18_16",
    "resnet50": "ntkml.models.fixup_resnets:resnet50",
    "resnet50-bottleneck": "ntkml.models.fixup_resnets:resnet50_bottleneck",
}

FIGURES = {
    "figure-1": "ntkml.figures.pareto:draw",
    "figure-2": "ntkml.figures.schematic:draw",
    "figure-3": "ntkml.figures.bounds:draw",
    "figure-4": "ntkml.figures.bounds:draw",
    "figure-5": "ntkml.figures.bounds:draw",
    "figure-6": "ntkml.figures.bounds:draw",
    "figure-7": "ntkml.figures.subsets:draw",
    "figure-8": "ntkml.figures.trajectories:draw",
    "figure-9": "ntkml.figures.trajectories:draw",
    "figure-10": "ntkml.figures.trajectories:draw",
    "figure-11": "ntkml.figures.trajectories:draw",
    "figure-12": "ntkml.figures.bounds:draw",
    "figure-13": "ntkml.figures.pareto:draw",
    "figure-14": "ntkml.figures.subsets:draw",
    "figure-15": "ntkml.figures.subsets:draw",
    "figure-16": "ntkml.figures.subsets:draw",
    "bound-grid": "ntkml.figures.bounds:draw_run",
    "pareto": "ntkml.figures.pareto:draw",
    "comparison": "ntkml.figures.comparison:draw",
}

#: Ways of learning hyperparameters beside the bounds on the marginal likelihood; ntkml.system_specs says what they learn.
SYSTEMS = {
    "none": "ntkml.systems.contract:System",
    "fixed-augmentation": "ntkml.systems.contract:FixedAugmentation",
    "hoag": "ntkml.systems.hoag_networks:NetworkHoag",
    "hoag-quadratic": "ntkml.systems.hoag_networks:NetworkHoag",
    "hoag-cubic": "ntkml.systems.hoag_networks:NetworkHoag",
    "hoag-exact": "ntkml.systems.hoag_networks:NetworkHoag",
    "sampled": "ntkml.systems.sampled_networks:SampledLaplace",
    "augerino": "ntkml.systems.augerino:Augerino",
    "augerino-lila": "ntkml.systems.augerino:LilaAugerino",
    "partitioned": "ntkml.systems.partitioned:PartitionedNetwork",
}

COMMANDS = {
    "bound-grid": "ntkml.commands.bound_grid:bound_grid",
    "train": "ntkml.commands.train:train",
    "pareto": "ntkml.commands.pareto:pareto",
    "compare": "ntkml.commands.compare:compare",
    "sweep": "ntkml.commands.sweep:sweep",
    "table": "ntkml.commands.table:table",
    "plot": "ntkml.commands.plot:plot",
    "report": "ntkml.commands.report:report",
}


def resolve(table: dict[str, str], name: str, kind: str) -> Any:
    """Import what ``name`` stands for in ``table``; ``kind`` ("dataset", "model", ...) words the error.

    Raises:
        ValueError: ``name`` is not in the table; the message lists what is, nearest first.
    """
    if name not in table:
        raise ValueError(unknown_name(kind, name, list(table)))
    module, attribute = table[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def unknown_name(kind: str, name: str, known: list[str]) -> str:
    """One line that says which names are known and, where one is close, which was probably meant."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {kind} {name!r}; {hint}known: {', '.join(known)}"
