"""Sentences about several runs: said once of all, else with the names."""

from __future__ import annotations

from ntkml.records.notes import first_few, merged, taken_apart


def test_what_all_share_is_said_once_and_the_rest_with_names():
    found = merged(
        [
            ("a", ["Code's settings.", "Against protocol p: epochs 2 instead of 3, lr 1 instead of 2."]),
            ("b", ["Code's settings.", "Against protocol p: epochs 2 instead of 3.", "On its own."]),
            ("b", ["Code's settings.", "Against protocol p: epochs 2 instead of 3, seed 4 instead of 5."]),
        ]
    )
    assert found == [
        "Code's settings.",
        "Against protocol p: epochs 2 instead of 3.",
        "Against protocol p (a): lr 1 instead of 2.",
        "some of b: On its own.",
        "Against protocol p (some of b): seed 4 instead of 5.",
    ]


def test_what_holds_of_all_but_one_names_that_one():
    notes = [(name, ["Shared."]) for name in "abc"] + [("d", [])]
    assert merged(notes) == ["all but d: Shared."]
    assert merged(notes[1:]) == ["b, c: Shared."]


def test_one_run_says_what_it_says():
    sentences = ["One.", "Against protocol p: x 1 instead of 2, y 3 instead of 4.", "Two: with a colon."]
    assert merged([("a", sentences)]) == sentences
    assert merged([]) == []


def test_commas_in_the_name_of_a_data_set_part_no_changes():
    ours = "dataset a, b instead of mnist, epochs 2 instead of 3"
    assert taken_apart(f"Against protocol p: {ours}.") == (
        "Against protocol p",
        ["dataset a, b instead of mnist", "epochs 2 instead of 3"],
    )
    found = merged([("x", [f"Against protocol p: {ours}."]), ("y", [f"Against protocol p: {ours}, b instead of 5."])])
    assert found == [f"Against protocol p: {ours}.", "Against protocol p (y): b instead of 5."]
    assert taken_apart("Images of a, b: two folders.") == ("Images of a, b: two folders.", [])


def test_names_of_another_kind_stand_beside_the_names_that_are_there():
    notes = [("here", merged([("a", ["Against protocol p: x 1 instead of 2."]), ("b", [])])), ("there", [])]
    assert merged(notes) == ["Against protocol p (a; here): x 1 instead of 2."]


def test_of_many_values_the_first_five_are_named_and_all_counted():
    assert first_few([1, 2, 3, 4, 5]) == "1, 2, 3, 4, 5"
    assert first_few(range(1, 2001)) == "1, 2, 3, 4, 5, ...: 2000 in all"
    assert first_few([]) == ""


def test_what_holds_of_one_of_two_runs_of_a_name_is_not_said_of_both():
    found = merged(
        [("a", ["Against protocol p: x 1 instead of 2."]), ("a", []), ("b", ["Against protocol p: x 1 instead of 2."])]
    )
    assert found == ["Against protocol p (some of a, b): x 1 instead of 2."]
