"""Writes the pages that are made from the code: one per command, and the reference of the Python functions.

Run ``python docs/generate.py`` after a change of an option or a docstring; a test compares the pages with the code.
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from pathlib import Path

import click

import ntkml
from ntkml.commands import SUMMARIES
from ntkml.registry import COMMANDS, resolve

DOCS = Path(__file__).resolve().parent

#: Modules of the reference beside the names of ``ntkml`` itself: what a user passes in, or writes an own one of.
MODULES = (
    "ntkml.likelihoods",
    "ntkml.priors",
    "ntkml.specs",
    "ntkml.partitions",
    "ntkml.dichotomies",
    "ntkml.records.bound_grid",
    "ntkml.records.train",
    "ntkml.records.pareto",
    "ntkml.records.compare",
    "ntkml.records.tables",
    "ntkml.records.manifests",
)
_MADE = "<!-- Made by docs/generate.py; change the code instead. -->\n"


def pages() -> dict[str, str]:
    """Every generated page: path below ``docs`` -> text."""
    return {
        "commands/README.md": _command_index(),
        **{f"commands/{name}.md": command_page(name) for name in COMMANDS},
        "reference.md": reference_page(),
    }


def command_page(name: str) -> str:
    """Usage, description, options and examples of one command, as its ``--help`` says them."""
    command: click.Command = resolve(COMMANDS, name, "command")
    context = click.Context(command, info_name=f"ntkml {name}", **command.context_settings)
    usage = " ".join(["ntkml", name, *command.collect_usage_pieces(context)])
    # Arguments have no help of their own, which is told by the description; not every version of click has a record of them.
    options = [param for param in command.params if isinstance(param, click.Option)]
    rows = [record for option in options if (record := option.get_help_record(context))]
    table = "\n".join(f"| `{_cell(option)}` | {_cell(text)} |" for option, text in rows)
    parts = [
        f"# ntkml {name}\n",
        _MADE,
        f"    {usage}\n",
        f"{_paragraphs(command.help or '')}\n",
        f"| option | meaning |\n|---|---|\n{table}\n",
        _epilog(command.epilog or ""),
    ]
    return "\n".join(part for part in parts if part)


def reference_page() -> str:
    """Signatures and docstrings of everything public, in the words of the code."""
    parts = ["# Python reference\n", _MADE, "Everything `import ntkml` gives, then the modules a user meets.\n"]
    for name in sorted(ntkml.__all__, key=str.lower):
        thing = getattr(ntkml, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            parts.append(_entry(f"ntkml.{name}", thing, level=2))
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        parts.append(f"## {module_name}\n\n{_docstring(module)}\n")
        for name, thing in vars(module).items():
            here = (
                getattr(thing, "__module__", None) == module_name
                and not name.startswith("_")
                and name not in ntkml.__all__
            )
            if here and (inspect.isclass(thing) or inspect.isfunction(thing)):
                parts.append(_entry(name, thing, level=3))
    return "\n".join(parts)


def _command_index() -> str:
    lines = [f"- [{name}]({name}.md): {SUMMARIES[name]}" for name in COMMANDS]
    return f"# Commands\n\n{_MADE}\n" + "\n".join(lines) + "\n"


def _entry(name: str, thing: type | object, level: int) -> str:
    """Heading, signature and docstring of a class or function, then the public methods and properties of a class."""
    parts = [f"{'#' * level} {name}\n", f"```python\n{_signature(name, thing)}\n```\n", f"{_docstring(thing)}\n"]
    if inspect.isclass(thing):
        for key, member in vars(thing).items():
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if key.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
                continue
            call = key if isinstance(member, property) else f"{key}{_arguments(function)}"
            parts.append(f"**`{call}`**\n\n{_docstring(function)}\n")
    return "\n".join(parts)


def _signature(name: str, thing: type | object) -> str:
    return f"{name.rpartition('.')[2]}{_arguments(thing)}"


def _arguments(thing: type | object) -> str:
    try:
        # Annotations are strings; defaults keep their quotes.
        return re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(thing)))  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a class without a signature of its own
        return "(...)"


def _docstring(thing: object) -> str:
    """A docstring as Markdown: double backquotes become single ones, roles their name, sections bold."""
    text = inspect.cleandoc(inspect.getdoc(thing) or "")
    text = re.sub(r":\w+:`(~?)([^`]+)`", lambda role: f"`{_named(*role.groups())}`", text).replace("``", "`")
    return re.sub(r"^(Raises|Args|Returns|Shape|Reference|References):$", r"**\1:**\n", text, flags=re.MULTILINE)


def _named(short: str, path: str) -> str:
    """What a role is shown as: its path, or as Sphinx has it the last name alone where a ``~`` stands before it."""
    return path.rpartition(".")[2] if short else path


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n"))


def _epilog(text: str) -> str:
    """Examples as a block of shell commands; other blocks of a help text stay as they are."""
    blocks = []
    for block in (part for part in inspect.cleandoc(text).split("\b\n") if part.strip()):
        heading, _, body = block.strip("\n").partition("\n")
        language = "sh" if heading == "Examples:" else "text"
        blocks.append(f"## {heading.rstrip(':')}\n\n```{language}\n{textwrap.dedent(body).strip()}\n```\n")
    return "\n".join(blocks)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def write(folder: Path = DOCS) -> None:
    """Write all pages."""
    for name, text in pages().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
