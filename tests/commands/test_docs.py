"""The documentation is current, its links lead somewhere, and every command and Python block in it runs."""

import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from ntkml import commands
from ntkml.records import bound_grid, compare, pareto, train
from ntkml.registry import COMMANDS, resolve
from tests.idx_files import write_idx_files
from tests.image_files import sound_files, write_files

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

#: What makes a documented command small enough for a test: the same command and options, less data and fewer steps.
SMALLER = {
    "bound-grid": "--grid-points 3 --num-data 120",
    "train": "--num-data 120 --epochs 2 --burn-in 1",
    "pareto": "--num-data 120 --epochs 10 --estimators ntk-10-1 --seeds 0",
    "compare": "--num-data 120 --epochs 10 --systems map,ntk-10-1 --seeds 0",
    "sweep": "--num-data 120 --epochs 10 --estimators ntk-10-1 --seeds 0",
    "plot": "--format png",
}

#: Commands for machines and data that a test does not have: a GPU, a cluster, CIFAR.
OUT_OF_REACH = re.compile(r"--device cuda|--cluster|cifar|table-1|figure-7")


def generator():
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", generator().pages())
def test_generated_pages_are_current(name):
    stands = (DOCS / name).read_text(encoding="utf-8")
    assert stands == generator().pages()[name], "run: python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_meaning(name):
    rows = [
        line.strip("| ").split(" | ") for line in generator().command_page(name).splitlines() if line.startswith("| `")
    ]
    assert all(option.startswith("`--") and meaning.strip() for option, meaning in rows), rows
    assert rows


def test_every_column_of_the_csv_files_is_explained():
    explained = {}
    for section in (DOCS / "columns.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        names = re.findall(r"^\| `(\w+)` \| \S", section, flags=re.MULTILINE)
        assert len(names) == len(set(names)) > 0
        explained[section.partition("\n")[0]] = set(names)
    shared = explained.pop("Of several commands")
    held = {
        f"ntkml {name}": set(module.COLUMNS)
        for name, module in {"bound-grid": bound_grid, "train": train, "pareto": pareto, "compare": compare}.items()
    }
    assert {name: columns - shared for name, columns in held.items()} == explained
    assert all(sum(name in columns for columns in held.values()) > 1 for name in shared)


@pytest.mark.slow
def test_the_python_blocks_of_the_tutorial_run(monkeypatch, tmp_path, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "tutorial.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").symlink_to(ROOT / "results/reference")
    torch.manual_seed(0)
    for block in blocks:
        exec(compile(block, "tutorial.md", "exec"), {})
        assert capsys.readouterr().out.strip()


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """A folder as a reader has it: small MNIST files at DIR, photos, and the reference results where the page says."""
    monkeypatch.chdir(tmp_path)
    write_idx_files(tmp_path / "DIR/MNIST/raw", num_train=150, num_test=20)
    monkeypatch.setenv("NTKML_DATA", str(tmp_path / "DIR"))
    write_files(tmp_path / "photos", sound_files(60))
    monkeypatch.setenv("NTKML_CACHE", str(tmp_path / "cache"))
    (tmp_path / "results").mkdir()
    for name in ("bound-grid", "train", "pareto"):
        (tmp_path / "results" / name).mkdir()
    shutil.copytree(ROOT / "results/reference", tmp_path / "results/reference")
    for name, folder in (("prior", "prior-mnist"), ("rotation", "rotation-mnist_r180")):
        (tmp_path / name).symlink_to(ROOT / "results/reference/bound-grid" / folder)
    return tmp_path


def commands_of(page):
    """The lines of a page that start with ``ntkml``, without the remarks behind them."""
    lines = [line.strip().partition("  #")[0].strip() for line in page.read_text(encoding="utf-8").splitlines()]
    lines = [re.sub(r"^`?torchrun .* -m (ntkml .*?)`?$", r"\1", line.rpartition("&& ")[2]) for line in lines]
    return [
        line for line in lines if re.match(r"ntkml [a-z]", line) and "[OPTIONS]" not in line and "COMMAND" not in line
    ]


def documented():
    """Every command of the documentation once, under the page that shows it first; the tutorial, a story, has all of its own."""
    seen = set()
    for page in PAGES:
        story = page.name == "tutorial.md"
        lines = [line for line in commands_of(page) if story or line not in seen]
        seen |= set(lines)
        if lines:
            yield pytest.param(lines, id=str(page.relative_to(ROOT)))


@pytest.mark.slow
@pytest.mark.parametrize("lines", list(documented()))
def test_every_command_runs(lines, newcomer, capsys):
    for line in lines:
        words = shlex.split(smaller(placed(line, newcomer)))
        if OUT_OF_REACH.search(line):  # its options are read all the same
            resolve(COMMANDS, words[1], "command").make_context(words[1], words[2:])
            continue
        with pytest.raises(SystemExit) as leaving:
            commands.main(words[1:])
        captured = capsys.readouterr()
        assert not leaving.value.code, f"{line}\n{captured.out}\n{captured.err}"


def smaller(line):
    """The command with less to do; options behind others win."""
    takes_views = line.split()[1] in ("bound-grid", "train", "pareto", "compare") and not OUT_OF_REACH.search(line)
    views = "--samples 2" if takes_views and re.search(r"--hparam (rotation|invariance)", line) else ""
    few = "--estimators ntk-N-C,ntk-100-C" if "bound-grid" in line and "--protocol" in line else ""
    return f"{line} {few} {SMALLER.get(line.split()[1], '')} {views}"


def placed(line, folder):
    """The command with a file of this folder in the place of what stands for one."""
    line = line.replace("~/data", "DIR")
    reference = folder / "results/reference"
    joined = "prior-mnist" if re.search("figure-1[01]", line) else "invariance-mnist_r180"
    rows = {
        "plot bound-grid": reference / "bound-grid/prior-mnist/rows.csv",
        "plot pareto": reference / "pareto/prior-mnist/rows.csv",
        "plot figure-3": reference / "bound-grid/prior-mnist/rows.csv",
    }
    there = next(
        (path for words, path in rows.items() if words in line), reference / "pareto" / joined / "training.csv.gz"
    )
    line = re.sub(r"(\S*<run>|RUN)/(rows\.csv|training\.csv\.gz)", str(there), line)
    if "RUN/weights.pt" in line:
        runs = sorted((folder / "results/train").glob("*digits-*/weights.pt"), key=lambda path: path.stat().st_mtime)
        line = line.replace("RUN/weights.pt", str(runs[-1]))
    return line


def test_the_sweep_of_the_documentation_is_one(in_empty_folder):
    [block] = re.findall(r"```toml\n(.*?)```", (DOCS / "extending.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    Path("my-sweep.toml").write_text(block, encoding="utf-8")
    code, out, _ = in_empty_folder("sweep", "my-sweep.toml", "--list")
    assert code == 0
    assert out.endswith("27 cells, 0 done\n")
