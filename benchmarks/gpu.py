"""On a GPU: one estimate with its gradient beside plain training and the peers, in seconds, memory and share of matrix products.

``python -m benchmarks.gpu`` writes ``gpu.csv``, one row for a system and case, ``gpu-kernels.csv``, the kernels that took
most of the time, and ``gpu-waits.csv``, the lines at which the host waited for the device. Cases come in order of size; no
new one begins after ``--minutes``. ``gpu.json`` says of which code and machine they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import pandas
import torch
from torch import Tensor
from torch.nn import functional as F

import ntkml
from benchmarks.cases import Case, Problem, problem
from benchmarks.gpu_timing import Measured, measure, multiplies
from benchmarks.run import TOLERANCE, difference
from benchmarks.systems import OURS, PLAIN, SYSTEMS, System
from benchmarks.systems.ours import WIDTHS, objective
from benchmarks.table import write_manifest
from ntkml.machine.full_precision import full_precision
from ntkml.machine.memory import is_out_of_memory
from ntkml.parameters import trainable_parameters

#: Network inputs of plain training that are held at a time, views included; their gradients are summed.
PLAIN_INPUTS = 1000


@dataclass(frozen=True)
class GpuRow:
    """One system on one case. ``seconds``: of wall time between waits for the device; ``ratio``: to plain training.

    ``peak_mib``: of the allocator in the first step, above network and data. ``product_share``: of the time of all kernels.
    ``waits``: of the host for the device within one step. ``difference``: of a peer's value and gradient from ntkml's, relative.
    ``version``: of the peer's package.
    """

    case: str
    network: str
    num_params: int
    num_inputs: int
    views: int
    estimator: str
    system: str
    seconds: float
    ratio: float
    peak_mib: float
    chunk: int | None
    product_share: float
    waits: int
    repeats: int
    device: str
    torch: str
    version: str = ""
    difference: float | None = None


def cases() -> list[Case]:
    """Prior alone, then S = 20 views and the gradient in eta: small ones first, of both networks in turn."""
    found = []
    for num_inputs, views in ((64, 0), (500, 0), (50, 20), (150, 20), (500, 20)):
        for network in ("wrn16-4", "resnet50"):
            found += [Case(network, num_inputs, f"{structure}-N-1", views) for structure in ("ntk", "kfac")]
            if (num_inputs, views) == (64, 0):  # all outputs of ResNet-50 are two hundred
                found.append(Case(network, num_inputs, "diag-N-1" if network == "resnet50" else "diag-N-C"))
    found.insert(3, Case("wrn16-4", 64, "kfac-N-C"))  # what a peer has Kronecker factors for
    return found


def peers(case: Case) -> list[System]:
    """The other systems that can do this work and whose packages are here; cached steps are no other system."""
    return [
        system
        for system in SYSTEMS
        if not system.name.startswith(OURS.name)
        and system.name != PLAIN.name
        and system.version is not None
        and system.can(case.work, case.network, case.num_inputs)
    ]


def on_device(case: Case, device: torch.device) -> Problem:
    """The problem of a case as training holds it there."""
    given = problem(case)
    given.model.to(device)
    return replace(given, x=given.x.to(device), y=given.y.to(device))


def estimate(given: Problem) -> tuple[Callable[[], Tensor], ntkml.MarginalLikelihood]:
    """Value and gradient of one block in the prior and, with views, in eta."""
    own = objective(given).to(given.x.device)

    def step() -> Tensor:
        own.zero_grad()
        return own.backward(given.x, given.y, 1, torch.Generator().manual_seed(1)).total

    return step, own


def plain(given: Problem) -> Callable[[], object]:
    """Cross-entropy and its gradient in the weights, in float32 without TF32 as the estimate; the views are made once."""
    views = max(1, given.case.views)
    x = given.x
    if given.case.views:
        augmentation = ntkml.AffineInvariance(views, torch.tensor(WIDTHS)).to(x.device)
        with torch.no_grad():
            x = augmentation(x, augmentation.draw(len(x), torch.Generator().manual_seed(1)))
    weights = list(trainable_parameters(given.model).values())
    size = max(1, PLAIN_INPUTS // views)

    @full_precision()
    def step() -> list[Tensor]:
        total = [torch.zeros_like(w) for w in weights]
        for part, y in zip(x.split(size * views), given.y.split(size), strict=True):
            outputs = given.model(part).unflatten(0, (-1, views)).mean(1)
            loss = F.cross_entropy(outputs, y, reduction="sum") / len(given.y)
            torch._foreach_add_(total, list(torch.autograd.grad(loss, weights)))
        return total

    return step


@click.command()
@click.option("--only", default="", help="Only cases whose name contains this, for example 'wrn16-4-500'.")
@click.option("--minutes", default=10.0, show_default=True, help="No new case begins after so many.")
@click.option("--out", default="results/bench", show_default=True, type=click.Path(path_type=Path))
def main(only: str, minutes: float, out: Path) -> None:
    """Time an estimate with its gradient and plain training on a GPU, up to 500 inputs with 20 views."""
    if not torch.cuda.is_available():
        raise click.ClickException("no CUDA device: these cases are for a GPU; python -m benchmarks quick is for CPUs")
    device, started = torch.device("cuda"), time.monotonic()
    rows: list[GpuRow] = []
    kernels: list[dict[str, object]] = []
    waits: list[dict[str, object]] = []
    out.mkdir(parents=True, exist_ok=True)
    write_manifest(out / "gpu.json", only=only, gpu=torch.cuda.get_device_name(device))
    for case in (case for case in cases() if only in case.name):
        if time.monotonic() - started > 60 * minutes:
            print(f"{case.name}: left out, {minutes:g} minutes are over")
            continue
        try:
            found = _rows_of(case, device)
        except (RuntimeError, ValueError) as error:
            if not is_out_of_memory(error):
                raise
            print(f"{case.name}: left out, {str(error).splitlines()[0]}")
            continue
        for row, seen in found:
            rows.append(row)
            where = {"case": row.case, "system": row.system}
            top = sorted(seen.kernels.items(), key=lambda item: -item[1])[:12]
            kernels += [
                {**where, "kernel": k[:120], "milliseconds": ms, "product": multiplies(k)} for k, ms in top if ms > 0
            ]
            waits += [{**where, "line": line, "waits": count} for line, count in seen.waits.most_common()]
            print(
                f"{row.case:28}{row.system:27}{1e3 * row.seconds:9.1f} ms{row.ratio:7.2f} x{row.peak_mib:8.0f} MiB"
                f"{row.product_share:6.0%} products{row.waits:5} waits",
                flush=True,
            )
        for name, table in (("gpu", [asdict(row) for row in rows]), ("gpu-kernels", kernels), ("gpu-waits", waits)):
            pandas.DataFrame(table).to_csv(out / f"{name}.csv", index=False, float_format="%.6g")


def _rows_of(case: Case, device: torch.device) -> list[tuple[GpuRow, Measured]]:
    given = on_device(case, device)
    step, own = estimate(given)
    seen = {PLAIN.name: measure(plain(given), device), OURS.name: measure(step, device)}
    differences, versions = dict.fromkeys(seen), dict.fromkeys(seen, "")
    for peer in peers(case):
        try:
            seen[peer.name], differences[peer.name] = _beside((step, own), peer, case, device)
        except Exception as error:  # whatever another package raises must not end the run
            print(f"  {peer.name}: left out, {type(error).__name__}: {str(error).splitlines()[:1]}")
            continue
        versions[peer.name] = peer.version or ""
    chunks = {PLAIN.name: PLAIN_INPUTS // max(1, case.views), OURS.name: own.chunk}
    return [
        (
            GpuRow(
                case=case.name,
                network=case.network,
                num_params=sum(w.numel() for w in trainable_parameters(given.model).values()),
                num_inputs=case.num_inputs,
                views=case.views,
                estimator=case.estimator,
                system=name,
                seconds=found.seconds,
                ratio=found.seconds / seen[PLAIN.name].seconds,
                peak_mib=found.peak_mib,
                chunk=chunks.get(name),
                product_share=found.product_share,
                waits=sum(found.waits.values()),
                repeats=found.repeats,
                device=torch.cuda.get_device_name(device),
                torch=torch.__version__,
                version=versions[name],
                difference=differences[name],
            ),
            found,
        )
        for name, found in seen.items()
    ]


def _beside(
    ours: tuple[Callable[[], Tensor], ntkml.MarginalLikelihood], peer: System, case: Case, device: torch.device
) -> tuple[Measured, float]:
    """A peer on a network and data of its own, in float32 without TF32 as the others, and how far it is from ``ours``.

    Raises:
        ValueError: its value or gradient is another.
    """
    step, own = ours
    theirs = full_precision()(peer.prepare(on_device(case, device)))
    seen = measure(theirs, device)  # first, as ours: the peak is that of the first step
    value = float(step())
    gradient = own.log_prior_precision.grad
    assert gradient is not None
    found = difference((value, gradient), theirs())
    if found > TOLERANCE:
        raise ValueError(f"its value or gradient differs by {found:.1e} from {OURS.name}'s")
    return seen, found


if __name__ == "__main__":
    main()
