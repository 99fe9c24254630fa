"""Every Python block of the README runs, in the order of the page, in a checkout with its reference results."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
README, MEMORY = (path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "docs" / "memory.md"))
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
NAMES = sorted(set(re.findall(r"\bntkml(?:\.[A-Za-z_]\w*)+", README + MEMORY)))

#: Every name in turn with no module of ntkml loaded by an earlier one.
REACHED = """
import functools, sys
for name in sys.argv[1:]:
    for module in [module for module in sys.modules if module.partition(".")[0] == "ntkml"]:
        del sys.modules[module]
    import ntkml
    functools.reduce(getattr, name.split(".")[1:], ntkml)
"""


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_a_block_runs(index, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    torch.manual_seed(0)
    exec(compile(BLOCKS[index], f"README.md block {index}", "exec"), {})
    assert capsys.readouterr().out.strip(), "a block of the README shows what it computed"


def test_there_are_blocks_and_names():
    assert len(BLOCKS) >= 3
    assert {"ntkml.Gaussian", "ntkml.layers.fixup", "ntkml.keep_freed_memory"} <= set(NAMES)


def test_names_are_reached_by_importing_the_package_alone():
    modules = ["ntkml.likelihoods.Gaussian", "ntkml.objective.MarginalLikelihood", "ntkml.machine"]
    done = subprocess.run(
        [sys.executable, "-c", REACHED, *NAMES, *modules], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
