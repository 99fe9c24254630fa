"""Peak memory of a fresh process: what one step adds to the process that holds packages, network and data."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import asdict

from benchmarks.cases import Case, problem
from benchmarks.systems import system_for

#: ru_maxrss counts KiB on Linux and bytes on macOS.
_UNIT = 1 if sys.platform == "darwin" else 1024


def peak_mib(system: str, case: Case, data_root: str | None) -> float | None:
    """Of the first step of ``system`` in a process of its own, in MiB; None where that process failed."""
    given = json.dumps({"system": system, "case": asdict(case), "data_root": data_root})
    run = subprocess.run([sys.executable, "-m", "benchmarks.memory", given], capture_output=True, text=True)
    return float(run.stdout.split()[-1]) if run.returncode == 0 else None


def _measure(system: str, case: Case, data_root: str | None) -> float:
    given = problem(case, data_root)
    step = system_for(system, case.work, case.network, case.num_inputs).prepare(given)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * _UNIT / 2**20


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    print(_measure(arguments["system"], Case(**arguments["case"]), arguments["data_root"]))
