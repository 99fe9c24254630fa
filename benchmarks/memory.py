"""Peak memory of a fresh process: what one step adds to the process that holds packages, network and data."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace

import torch

from benchmarks.cases import Case, problem
from benchmarks.systems import system_for
from ntkml.runs.peak_memory import peak_bytes


def peak_mib(system: str, case: Case) -> float | None:
    """Of the first step of ``system`` in a process of its own, in MiB; None where that process failed.

    The inputs are random pixels: reading a data set would set a peak of its own, which could hide that of the step.
    """
    given = json.dumps({"system": system, "case": asdict(replace(case, data="random"))})
    run = subprocess.run([sys.executable, "-m", "benchmarks.memory", given], capture_output=True, text=True)
    return float(run.stdout.split()[-1]) if run.returncode == 0 else None


def _measure(system: str, case: Case) -> float:
    given = problem(case)
    step = system_for(system, case.work, case.network, case.num_inputs).prepare(given)
    cpu = torch.device("cpu")
    before = peak_bytes(cpu)
    step()
    return (peak_bytes(cpu) - before) / 2**20


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    print(_measure(arguments["system"], Case(**arguments["case"])))
