"""On what and with what a run was made: versions, hardware and the state of the source."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import ntkml
from ntkml.machine.messages import as_utf8

PACKAGES = ("ntkml", "torch", "torchvision", "numpy", "scipy", "pandas", "matplotlib", "click", "pillow")


def environment() -> dict[str, Any]:
    """Command line, versions, hardware, git state and the time (UTC) of the call; imports none of the packages it names.

    Of the command only the program's name is kept, not where it is installed: a manifest is meant to be published.
    """
    return {
        "argv": [as_utf8(word) for word in (Path(sys.argv[0]).name, *sys.argv[1:])],
        "started_at": now(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_bytes": _memory_bytes(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "git": _git_state(Path(__file__).resolve().parents[2]),
    }


def now() -> str:
    """The time in UTC to the second, as ISO 8601: texts of it sort as times do."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def cores() -> int | None:
    """Processor cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ntkml.__version__ if package == ntkml.__name__ else None  # run from a checkout that is not installed


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not POSIX
        return None


def _git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that holds the package and whether it has changes; None where it is installed."""
    # Ask only where the package lies in its own checkout: an environment inside some other repository is not ours.
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):  # no git, or no commit yet
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()
