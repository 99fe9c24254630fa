"""The command line before any work: quick, free of torch, and one line for every mistake."""

import subprocess
import sys

import click
import pytest
from click.shell_completion import ShellComplete

import ntkml
from ntkml import commands
from ntkml.registry import COMMANDS

# What the command promises; torch alone takes longer.
HELP_CPU_SECONDS = 0.5


def in_a_new_process(*arguments, tail=""):
    """Run the command line in a fresh interpreter; ``tail`` is what it does before it leaves."""
    code = (
        "import sys, time\nfrom ntkml.commands import main\n"
        f"try:\n    main({list(arguments)!r})\nexcept SystemExit as leaving:\n    status = leaving.code or 0\nelse:\n    status = 0\n"
        f"{tail}\nsys.exit(status)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--help",),
        ("-h",),
        ("--version",),
        ("plot", "--help"),
        ("bound-grid", "--help"),
        ("train", "--help"),
        ("pareto", "--help"),
        ("sweep", "--help"),
        ("table", "--help"),
        ("plot", "figure-99"),
    ],
)
def test_no_torch_before_work_begins(arguments):
    tail = "assert not {'torch', 'pandas', 'matplotlib'} & set(sys.modules), sorted(sys.modules)"
    done = in_a_new_process(*arguments, tail=tail)
    assert "AssertionError" not in done.stderr
    assert done.returncode == (2 if "figure-99" in arguments else 0), done.stderr


def test_help_is_quick():
    # CPU time of the whole process, so that other work on the machine does not count.
    done = in_a_new_process("--help", tail="print(time.process_time(), file=sys.stderr)")
    assert float(done.stderr.split()[-1]) < HELP_CPU_SECONDS


def test_help_lists_every_command_with_examples(capsys):
    with pytest.raises(SystemExit) as leaving:
        commands.main(["--help"])
    assert leaving.value.code in (0, None)
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert f"  {name} " in text
        assert commands.SUMMARIES[name] in text
    assert "ntkml bound-grid --hparam rotation" in text


def test_every_command_has_a_summary():
    assert set(commands.SUMMARIES) == set(COMMANDS)


def test_without_arguments_it_is_the_help(command_line):
    assert command_line() == command_line("--help")


def test_version(command_line):
    assert command_line("--version") == (0, f"ntkml, version {ntkml.__version__}\n", "")


def test_an_unknown_command_names_the_nearest(command_line):
    assert command_line("plt") == (
        2,
        "",
        f"Error: unknown command 'plt'; did you mean 'plot'? known: {', '.join(COMMANDS)} (see ntkml --help)\n",
    )


def test_an_unknown_option_names_the_nearest(command_line):
    code, _, error = command_line("plot", "--resluts", "x", "figure-2")
    assert code == 2
    assert error.count("\n") == 1
    assert "No such option" in error
    assert "--results" in error
    assert error.endswith("(see ntkml plot --help)\n")


FULL = "; free some space and give the same command again"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("the first line\n  and the second"), 1, "Error: the first line and the second\n"),
        (ValueError(), 1, "Error: ValueError\n"),
        (OSError(28, "No space left on device", "rows.csv"), 1, f"Error: No space left on device: rows.csv{FULL}\n"),
        (OSError(28, "No space left on device"), 1, f"Error: No space left on device{FULL}\n"),
        (OSError(5, "Input/output error", "rows.csv"), 1, "Error: Input/output error: rows.csv\n"),
        (OSError("connection refused"), 1, "Error: connection refused\n"),
        (click.UsageError("not so"), 2, "Error: not so\n"),
        (KeyboardInterrupt(), 130, "\nInterrupted.\n"),
    ],
)
def test_what_goes_wrong_is_one_line_and_an_exit_code(command_line, monkeypatch, error, code, line):
    @click.command()
    def failing():
        raise error

    monkeypatch.setattr(commands, "resolve", lambda *_: failing)
    assert command_line("plot") == (code, "", line.replace("so\n", "so (see ntkml plot --help)\n"))


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    @click.command()
    def failing():
        raise ZeroDivisionError

    monkeypatch.setattr(commands, "resolve", lambda *_: failing)
    with pytest.raises(ZeroDivisionError):
        commands.main(["plot"])


def completions(*words, incomplete=""):
    complete = ShellComplete(commands.cli, {}, "ntkml", "_NTKML_COMPLETE")
    return [item.value for item in complete.get_completions(list(words), incomplete)]


def test_commands_and_figures_complete():
    assert completions(incomplete="b") == ["bound-grid"]
    assert completions() == list(COMMANDS)
    assert completions("plot", incomplete="figure-1") == [
        "figure-1",
        "figure-10",
        "figure-11",
        "figure-12",
        "figure-13",
        "figure-14",
        "figure-15",
        "figure-16",
    ]
    assert "--results" in completions("plot", incomplete="--re")
