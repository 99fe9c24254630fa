"""The package as a user gets it: what is installed, what is importable, and that the light commands stay light."""

from __future__ import annotations

import ast
import configparser
import re
import resource
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import ntkml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def options():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def modules_after(code: str) -> set[str]:
    """Names of the top-level modules a fresh interpreter has loaded after running ``code``."""
    report = "import sys; print('loaded', *{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def imported_by(source: str) -> set[str]:
    """Names of the top-level modules that a file imports, by a statement or by ``import_module`` of a text."""
    names = set(re.findall(r"import_module\(\"([a-z_0-9]+)", source))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def test_every_package_in_the_tree_is_installed_by_name(options):
    listed = set(options["options"]["packages"].split())
    in_tree = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "ntkml").rglob("__init__.py")}
    assert listed == in_tree | {"ntkml.experiments"}


def test_what_is_imported_is_declared(options):
    declared = {re.split(r"[<>=]", line)[0] for line in options["options"]["install_requires"].split()}
    extras = options["options.extras_require"]
    extra = {re.split(r"[<>=]", line)[0] for name in ("search", "slurm") for line in extras[name].split()}
    sources = [path.read_text() for path in (ROOT / "ntkml").rglob("*.py")]
    imported = {name for source in sources for name in imported_by(source)}
    imported = {{"PIL": "pillow"}.get(name, name) for name in imported}
    assert imported - set(sys.stdlib_module_names) - {"ntkml"} == declared | extra


def test_importing_the_package_offers_its_names_without_torch():
    assert not hasattr(ntkml, "no.module")
    loaded = modules_after("import ntkml; assert {'log_marginal_likelihood', 'PriorPrecision'} <= set(dir(ntkml))")
    assert "torch" not in loaded


def test_public_names_arrive_on_first_use():
    assert callable(ntkml.log_marginal_likelihood)
    assert isinstance(ntkml.PriorPrecision, type)
    assert set(ntkml.__all__) <= set(dir(ntkml))


def test_an_unknown_public_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match="no attribute 'evidences'; it offers .*PriorPrecision, .*log_marginal"):
        _ = ntkml.evidences


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["plot", "--help"], ["bound-grid", "--help"], ["train", "--help"]]
)
def test_light_commands_do_not_import_torch(arguments):
    code = f"from ntkml.commands import main\ntry: main({arguments!r})\nexcept SystemExit as end: assert not end.code"
    assert "torch" not in modules_after(code)


def test_help_takes_less_than_half_a_second_of_cpu():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "cli.py", "--help"], cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize("launcher", [["cli.py"], ["-m", "ntkml"]])
def test_the_checkout_runs_without_an_install(launcher):
    done = subprocess.run([sys.executable, *launcher, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bound-grid" in done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the source archive and the wheel, built the way they are released."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_wheel_makes_only_ntkml_importable(built):
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
    assert {name.split("/")[0] for name in names} == {"ntkml", f"ntkml-{ntkml.__version__}.dist-info"}


@pytest.mark.slow
def test_the_wheel_holds_protocols_data_and_licences(built):
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
    protocols = {f"ntkml/experiments/{file.name}" for file in (ROOT / "experiments").glob("*.toml")}
    assert protocols
    assert protocols | {"ntkml/experiments/__init__.py", "ntkml/py.typed"} <= names
    assert {"ntkml/datasets/digits.npz", "ntkml/datasets/NOTICE"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "ntkml").rglob("*.py")}
    assert modules <= names


@pytest.mark.slow
def test_the_source_archive_holds_what_the_tests_read(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tests = {str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("*.py")}
    assert tests | {"setup.cfg", "pyproject.toml", "cli.py", "README.md", "constraints.txt", ".ci/run"} <= names
    assert not any("__pycache__" in name for name in names)
