"""Peak memory of a fresh process: what one step adds to the process that holds packages, network and data."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, replace

import torch

from benchmarks.cases import Case, problem
from benchmarks.systems import system_for
from ntkml.machine.peak_memory import peak_bytes


def peak_mib(system: str, case: Case) -> float | None:
    """Of the first step of ``system`` in a process of its own, in MiB; None where that process failed."""
    try:
        return measure(system, case)["peak_mib"]
    except subprocess.CalledProcessError:
        return None


def measure(system: str, case: Case) -> dict[str, float]:
    """``peak_mib`` and ``cpu_seconds`` of the first step of ``system`` in a process of its own.

    The inputs are random pixels: reading a data set would set a peak of its own, which could hide that of the step.

    Raises:
        subprocess.CalledProcessError: that process failed.
    """
    given = json.dumps({"system": system, "case": asdict(replace(case, data="random"))})
    run = subprocess.run([sys.executable, "-m", "benchmarks.memory", given], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def _measure(system: str, case: Case) -> dict[str, float]:
    given = problem(case)
    step = system_for(system, case.work, case.network, case.num_inputs).prepare(given)
    cpu = torch.device("cpu")
    before, started = peak_bytes(cpu), time.process_time()
    step()
    return {"peak_mib": (peak_bytes(cpu) - before) / 2**20, "cpu_seconds": time.process_time() - started}


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    print(json.dumps(_measure(arguments["system"], Case(**arguments["case"]))))
