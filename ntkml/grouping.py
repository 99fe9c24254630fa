"""Which inputs of a data set share a block: partitions, trees over the classes, and what a network says about its inputs.

Features and kernels are computed in chunks of the automatic size: resampling needs no more memory than a step.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ntkml.dichotomies import NestedDichotomy, average_linkage
from ntkml.layers.layer_rows import LayerRows
from ntkml.likelihoods import Likelihood, factor_columns, groups_of, num_columns
from ntkml.machine.full_precision import full_precision
from ntkml.parameters import parameter_shapes
from ntkml.partitions import (
    Partition,
    class_batches,
    greedy_batches,
    kmeans_batches,
    make_partition,
    random_batches,
)
from ntkml.rows.capture import capture
from ntkml.rows.chunked import ChunkedRows, Chunks
from ntkml.rows.chunking import automatic_chunk, row_groups
from ntkml.rows.exact import RowPlan
from ntkml.rows.plain_passes import outputs_of_one
from ntkml.rows.pulled import rows_by_layer
from ntkml.specs import EstimatorSpec


@full_precision()
def partition_for(
    spec: EstimatorSpec,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    likelihood: Likelihood,
    generator: torch.Generator | None,
    plan: RowPlan,
) -> Partition:
    """The partition an estimator's name asks for, features and kernels computed from the model where it needs them."""
    with torch.no_grad():
        groups = groups_of(likelihood, spec.outputs, outputs_of_one(model, x))
    batches = _input_batches(spec, model, x, y, likelihood, generator, plan)
    return make_partition(batches, groups, spec.iid, generator)


def _input_batches(
    spec: EstimatorSpec,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    likelihood: Likelihood,
    generator: torch.Generator | None,
    plan: RowPlan,
) -> list[Tensor]:
    """The batches of inputs: one of all, or random, by class, by k-means on features, or greedy on the kernel."""
    if spec.inputs is None:
        return [torch.arange(len(x), device="cpu")]
    if spec.grouping == "class":
        if y.ndim != 1 or y.is_floating_point():
            raise ValueError(
                f"{spec}: +class needs class labels, one integer per input; got {y.dtype} of shape {tuple(y.shape)}"
            )
        return class_batches(y.cpu(), spec.inputs, generator)
    if spec.grouping == "kmeans":
        return kmeans_batches(last_layer_features(model, x, plan).cpu(), spec.inputs, generator)
    if spec.grouping == "greedy":
        return greedy_batches(input_kernel(model, x, likelihood, plan).cpu(), spec.inputs, generator)
    return random_batches(len(x), spec.inputs, generator)


def last_layer_features(model: nn.Module, x: Tensor, plan: RowPlan) -> Tensor:
    """What enters the last captured linear or convolutional layer, flattened, or the outputs without one. Shape (N, d)."""
    features = []
    for part in x.split(automatic_chunk(model, plan, x[:1], 1)):
        captured = capture(model, part, plan=plan)
        inputs = [one.inputs for use in captured.layers for one in use.maps]
        features.append((inputs[-1].flatten(1) if inputs else captured.outputs).detach())
        del captured, inputs  # or they would be alive beside the next chunk
    return torch.cat(features)


def input_kernel(model: nn.Module, x: Tensor, likelihood: Likelihood, plan: RowPlan) -> Tensor:
    """An N x N summary of the kernel for +greedy: correlations of k(x_n, x_m) = sum over columns r of <R_nr, R_mr>.

    Correlations, scaled back to the mean of the diagonal, measured tighter than k itself, whose few confident inputs with
    large gradients would be grouped by size rather than by likeness. Columns and parameter tensors take turns.
    """
    shapes = parameter_shapes(model)
    groups = row_groups(shapes, len(x), next(model.parameters()).element_size())
    parts = x.split(automatic_chunk(model, plan, x[:1], 1))
    example = outputs_of_one(model, x)
    tree = tree_for(model, example.shape[1])

    def rows_of(column: Tensor) -> Chunks:
        def chunks() -> Iterator[list[dict[str, LayerRows]]]:
            for part in parts:
                captured = capture(model, part, plan=plan)
                factor = factor_columns(likelihood, captured.outputs.detach(), "C", tree, column)
                rows = rows_by_layer(captured, factor, keep_graph=False)
                del captured
                yield [rows]
                del rows  # or it would be alive beside the next chunk

        return chunks

    kernel = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    for column in torch.arange(num_columns(likelihood, "C", example), device=x.device).split(1):
        kernel += ChunkedRows(rows_of(column), shapes, "rows", groups, len(x)).total_gram()
    root = kernel.diagonal().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    return kernel.diagonal().mean() * kernel / torch.outer(root, root)


def tree_for(model: nn.Module, num_outputs: int) -> NestedDichotomy | None:
    """The tree over the classes that average linkage finds on the last linear layer's weight.

    None where there is no such layer, or it has another number of outputs than the network, whose head it cannot be.
    """
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    if not last or last[0].out_features != num_outputs or num_outputs < 2:
        return None
    return average_linkage(last[0].weight)
