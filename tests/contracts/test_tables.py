"""Tables 1 and 2: what is published, what our runs say, and that the two, and settings, are never mixed."""

from __future__ import annotations

import csv
import math
import shutil
from dataclasses import replace

import pytest

from ntkml.protocols.run_settings import RunSettings, settings_of, versions_of
from ntkml.tables import render
from ntkml.tables.entries import Entry, Value, bold, published, published_datasets
from ntkml.tables.panels import panels
from tests.protocol_runs import write_protocol_run

ROW = ("prior", "kfac-500-1")


def entry(mean, error, hparam="prior"):
    return Entry(hparam, "ntk-5-1", "", "paper", {"accuracy": Value(mean, error)})


def test_the_published_numbers_are_those_of_the_paper():
    assert published_datasets("table-1") == ["cifar10", "cifar100"]
    assert published_datasets("table-2") == ["tinyimagenet"]
    by_row = {(one.hparam, one.estimator): one for one in published("table-1", "cifar10")}
    assert len(by_row) == 10
    kfac = by_row["prior", "kfac-500-C"]
    assert kfac.values == {
        "log_q": Value(-1.31, 0.01), "test_log_likelihood": Value(-0.38, 0.0), "accuracy": Value(88.6, 0.1),
    }  # fmt: skip
    assert (kfac.relative_time, kfac.label) == (81.0, "KFAC-500-10")
    assert "log_q" not in by_row["prior", "none"].values
    hundred = {(one.hparam, one.estimator): one for one in published("table-1", "cifar100")}
    assert not hundred["invariance", "kfac-N-C"].values
    assert "out of memory" in hundred["invariance", "kfac-N-C"].note
    tiny = published("table-2", "tinyimagenet")
    assert [one.label for one in tiny if one.source == "literature"] == ["AUGERINO", "PARTITIONED"]
    assert tiny[-1].values == {"test_log_likelihood": Value(-2.02, 0.1), "accuracy": Value(58.4, 0.3)}


def test_bold_are_those_whose_interval_meets_that_of_the_best():
    best, meets, apart, unknown = entry(90.0, 0.2), entry(89.6, 0.2), entry(89.5, 0.2), entry(95.0, None)
    for one, expected in ((best, True), (meets, True), (apart, False)):
        assert bold(one, "accuracy", [best, meets, apart]) == expected
        assert not bold(one, "log_q", [best, meets, apart])
    # The best is one whose error is not known: the rule cannot be applied.
    assert not any(bold(one, "accuracy", [best, unknown]) for one in (best, unknown))


def test_ours_are_means_over_seeds_with_their_number_and_times_relative_to_the_full_batch(tmp_path):
    for seed, accuracy in enumerate((0.80, 0.82, 0.87)):
        last = (-1.0 - seed, -0.5, accuracy)
        write_protocol_run(tmp_path, "table-1", *ROW, seed, last=last, seconds=3.0, finished_at="2026-01-02")
    write_protocol_run(tmp_path, "table-1", "prior", "kfac-N-C", seconds=12.0)
    write_protocol_run(tmp_path, "table-1", "prior", "none")
    ten, hundred = panels("table-1", tmp_path)
    assert (ten.whole, ten.dataset, hundred.dataset, hundred.ours) == (True, "cifar10", "cifar100", {})
    found = ten.ours[ROW]
    assert found.seeds == (0, 1, 2)
    assert found.values["accuracy"].mean == pytest.approx(83.0)
    assert found.values["accuracy"].error == pytest.approx(math.sqrt((9 + 1 + 16) / 2 / 3))
    assert found.values["log_q"].mean == pytest.approx(-2.0)
    assert found.relative_time == pytest.approx(25.0)
    assert ten.ours["prior", "kfac-N-C"].values["accuracy"] == Value(pytest.approx(80.0), None)
    assert "log_q" not in ten.ours["prior", "none"].values
    text = render.markdown([ten, hundred])
    line = next(line for line in text.splitlines() if "`kfac-500-1` KFAC-500-1*" in line)
    assert "-1.41 ± 0.02" in line
    assert line.endswith("| -2.00 ± 0.58 | **-0.50 ± 0.00** | **83.0 ± 2.1** | 25% | 3 |")
    [bare] = [cells for cells in render.plain(ten)[1] if cells[1] == "kfac-500-1 KFAC-500-1*"]
    assert bare[-5:] == ["-2.00 ± 0.58", "-0.50 ± 0.00", "83.0 ± 2.1", "25%", "3"]
    assert r"$\mathbf{83.0 \pm 2.1}$ & $25$\% & 3 \\" in render.latex([ten])
    blank = next(line for line in text.splitlines() if "`ntk-500-tree`" in line)
    assert set(blank.split("`ntk-500-tree`")[1]) <= set("| ")


def test_devices_are_not_compared_in_time(tmp_path):
    write_protocol_run(tmp_path, "table-1", *ROW)
    write_protocol_run(tmp_path, "table-1", "prior", "kfac-N-C", device="cuda")
    assert panels("table-1", tmp_path)[0].ours[ROW].relative_time is None


def test_times_and_bold_are_among_rows_that_learn_the_same(tmp_path):
    for hparam, accuracy, seconds in (("prior", 0.8, 10.0), ("invariance", 0.9, 40.0)):
        for seed in (0, 1):
            last = (-1.0, -0.5, accuracy + 0.01 * seed)
            write_protocol_run(tmp_path, "table-1", hparam, "kfac-500-1", seed, last=last, seconds=seconds / 4)
        write_protocol_run(tmp_path, "table-1", hparam, "kfac-N-C", seconds=seconds)
    [panel, _] = panels("table-1", tmp_path)
    lines = [line for line in render.markdown([panel]).splitlines() if "`kfac-500-1`" in line]
    for line, accuracy in zip(lines, ("80.5", "90.5"), strict=True):
        assert line.endswith(f" | **{accuracy} ± 0.5** | 25% | 2 |")


def test_what_our_rows_say_of_a_bound_counts_more_than_its_name(tmp_path):
    write_protocol_run(tmp_path, "table-1", *ROW)
    [panel, _] = panels("table-1", tmp_path)
    for certified in (False, True):
        ours = {ROW: replace(panel.ours[ROW], certified=certified)}
        assert ("KFAC-500-1*" in render.markdown([replace(panel, ours=ours)])) is not certified


def test_only_estimators_of_the_marginal_likelihood_are_doubted(tmp_path):
    write_protocol_run(tmp_path, "table-1", "prior", "none")
    [panel, _] = panels("table-1", tmp_path)
    assert panel.ours["prior", "none"].certified is None
    assert not any("*" in cells[1] for cells in render.plain(panel)[1] if cells[1].startswith("none"))


def test_what_is_learned_heads_the_first_of_its_rows(tmp_path):
    [panel] = panels("table-2", tmp_path)
    heads = {place: cells[0] for place, cells in enumerate(render.plain(panel)[1]) if cells[0]}
    learned = [hparam for hparam, _ in panel.rows]
    assert heads == {learned.index("prior"): "prior precision", learned.index("invariance"): "invariance"}


def test_the_sources_of_the_literature_are_said_once(tmp_path):
    [panel] = panels("table-2", tmp_path)
    [augerino] = [one for one in panel.theirs.values() if one.label == "AUGERINO"]
    assert len([note for note in render.notes_of(panel) if augerino.note in note]) == 1


def test_reduced_protocols_other_data_and_changed_settings_stand_apart_and_say_so(tmp_path):
    write_protocol_run(tmp_path, "table-1", *ROW)
    write_protocol_run(tmp_path, "table-1", *ROW, epochs=30)
    write_protocol_run(tmp_path, "table-1", *ROW, dataset="cifar10-jpeg")
    write_protocol_run(tmp_path, "table-1-reduced", *ROW, dataset="cifar10-jpeg")
    write_protocol_run(tmp_path, "table-1-reduced", "invariance", "kfac-N-C", dataset="cifar10-jpeg")
    write_protocol_run(tmp_path, "train-mnist", "prior", "ntk-100-1")
    found = panels("table-1", tmp_path)
    assert [panel.title for panel in found] == [
        "CIFAR-10",
        "CIFAR-100",
        "CIFAR-10, protocol table-1, changed settings",
        "cifar10-jpeg, protocol table-1",
        "cifar10-jpeg, protocol table-1-reduced",
    ]
    assert [len(panel.ours) for panel in found] == [1, 0, 1, 1, 2]
    assert [panel.whole for panel in found] == [True, True, False, False, False]
    notes = render.notes_of(found[-1])
    assert "Published: the paper's numbers on CIFAR-10, whole protocol; ours beside it have other settings." in notes
    prior = next(note for note in notes if note.startswith("prior (kfac-500-1): Against protocol table-1: "))
    assert "num data 2000 instead of 50000" in prior
    assert {row["source"] for row in csv.DictReader(render.tidy(found[2:]).splitlines())} == {"ours"}
    invariance = next(note for note in notes if note.startswith("invariance (kfac-N-C): Against protocol table-1: "))
    assert "samples 4 instead of 20" in invariance


def test_of_two_runs_of_one_seed_the_newest_counts(tmp_path):
    newer = write_protocol_run(tmp_path / "a", "table-1", *ROW, last=(-1.0, -0.5, 0.7), finished_at="2026-01-03")
    older = write_protocol_run(tmp_path / "b", "table-1", *ROW, last=(-1.0, -0.5, 0.9), finished_at="2026-01-02")
    assert newer != older
    found = panels("table-1", tmp_path)[0].ours[ROW]
    assert found.seeds == (0,)
    assert found.values["accuracy"].mean == pytest.approx(70.0)


def test_all_formats_hold_the_same_numbers(tmp_path):
    for seed in (0, 1):
        write_protocol_run(tmp_path, "table-2", "invariance", "kfac-60-1+iid", seed, last=(-3.0, -2.0 - seed, 0.5))
    found = panels("table-2", tmp_path)
    rows = list(csv.DictReader(render.tidy(found).splitlines()))
    ours = [row for row in rows if row["source"] == "ours"]
    assert [(row["estimator"], row["seeds"], row["certified"]) for row in ours] == [("kfac-60-1+iid", "0 1", "false")]
    assert float(ours[0]["test_log_likelihood"]) == pytest.approx(-2.5)
    assert {row["source"] for row in rows} == {"paper", "literature", "ours"}
    assert "**-2.50 ± 0.50**" in render.markdown(found)
    text = render.latex(found)
    assert r"$\mathbf{-2.50 \pm 0.50}$" in text
    assert r"accuracy \%" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == len(found) == 1
    for line in text.splitlines():
        if line.endswith(r"\\"):
            assert line.count("&") == (6 if "multicolumn" not in line else 4)


def test_numbers_of_the_csv_file_end_where_those_of_rows_do(tmp_path):
    write_protocol_run(tmp_path, "table-1", *ROW, last=(-1.0, -0.5, 0.8263), seconds=0.1)
    write_protocol_run(tmp_path, "table-1", "prior", "kfac-N-C", seconds=0.3)
    rows = {row["label"]: row for row in csv.DictReader(render.tidy(panels("table-1", tmp_path)[:1]).splitlines())}
    ours = rows["kfac-500-1"]
    assert (ours["accuracy"], ours["accuracy_error"], ours["relative_time"]) == (
        "82.63",
        "",
        "33.33333333",
    )  # not 82.63000000000001
    assert (rows["NTK-500-1"]["relative_time"], rows["NTK-500-1"]["seconds"]) == ("60", "")


def test_the_small_type_of_the_notes_ends_with_them(tmp_path):
    lines = render.latex(panels("table-2", tmp_path)).splitlines()
    small = [line for line in lines if r"\footnotesize" in line]
    assert len(small) == 2  # of one panel, and how all are to be read
    assert all(line.startswith(r"{\footnotesize ") and line.endswith(r"\par}") for line in small)
    assert "booktabs" in lines[0]
    assert lines[0].startswith("%")


def test_names_of_data_are_escaped_for_latex(tmp_path):
    write_protocol_run(tmp_path, "table-2", "invariance", "kfac-60-1+iid", dataset=r"a_$x^{~\z")
    text = render.latex(panels("table-2", tmp_path))
    assert r"a\_\$x\textasciicircum{}\{\textasciitilde{}\textbackslash{}z" in text


def test_what_a_run_changed_is_known_from_its_manifest():
    settings = {
        "dataset": "digits", "hparam": "prior", "estimator": "ntk-100-tree", "seed": 3, "epochs": 7, "dtype": "float32",
    }  # fmt: skip
    manifest = {"protocol": {"name": "train-digits", "variant": "paper"}, "settings": settings}
    found = settings_of(manifest)
    assert ("epochs", 7) in found.changes
    assert "epochs" not in dict(found.without("epochs").changes)
    assert "flip" not in dict(found.changes)
    bf16 = settings_of(manifest | {"settings": settings | {"precision": "bf16"}})
    assert bf16.changes == (*found.changes, ("precision", "bf16"))
    assert settings_of({"settings": settings}) is None
    assert settings_of({"protocol": {"name": "gone", "variant": "paper"}, "settings": settings}) is None
    figure = {"protocol": {"name": "figure-7", "variant": "paper"}, "settings": settings}
    assert settings_of(figure) is None  # it does not learn the prior alone
    assert versions_of("table-1") == ["table-1", "table-1-reduced"]
    assert RunSettings("a", "paper", ()).without("epochs") == RunSettings("a", "paper", ())


def test_rows_of_another_run_are_refused(tmp_path):
    path = write_protocol_run(tmp_path, "table-1", *ROW)
    other = write_protocol_run(tmp_path, "table-1", "prior", "kfac-500-C")
    shutil.copy(other, path)
    with pytest.raises(
        ValueError,
        match=rf"rows.csv: holds rows of run {other.parent.name[-10:]}, not of this one alone; remove {path.parent} ",
    ):
        panels("table-1", tmp_path)
