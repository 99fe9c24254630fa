"""The report as one HTML file: style, script and pictures lie inside it, so that it opens from disk and travels by mail."""

from __future__ import annotations

from importlib import resources

import jinja2

import ntkml
from ntkml.records.provenance import now
from ntkml.report.contents import Contents


def render_page(contents: Contents) -> str:
    """HTML of the whole page. Whatever comes from files is escaped: a cell of a CSV cannot become markup."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_text("page.html.j2"))
    return template.render(
        contents=contents,
        style=_text("page.css"),
        script=_text("page.js"),
        version=ntkml.__version__,
        written_at=now(),
    )


def _text(name: str) -> str:
    return (resources.files("ntkml.report") / name).read_text(encoding="utf-8")
