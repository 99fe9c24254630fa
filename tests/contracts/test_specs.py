"""The grammar of estimator names: one spelling each, and errors that say what to write."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntkml.registry import STRUCTURES
from ntkml.specs import GROUPINGS, EstimatorSpec, is_certified, parse_estimator, resolve_estimator
from tests.factories import few_examples

sizes = st.integers(1, 10**6)


@st.composite
def specs(draw):
    inputs = draw(st.none() | sizes)
    outputs = draw(st.sampled_from(["1", "C", "tree"]) | st.integers(2, 10**6).map(str))
    grouping = "" if inputs is None else draw(st.sampled_from(["", *GROUPINGS]))
    iid = draw(st.booleans()) if outputs in ("1", "tree") else False
    return EstimatorSpec(draw(st.sampled_from(list(STRUCTURES))), inputs, outputs, grouping, iid)


@few_examples
@given(specs())
def test_every_estimator_has_one_spelling(spec):
    assert parse_estimator(str(spec)) == spec
    assert spec.group_size == (int(spec.outputs) if spec.outputs not in ("1", "C", "tree") else None)


@pytest.mark.parametrize(
    ("text", "structure", "inputs", "outputs", "grouping", "iid"),
    [
        ("ntk-500-1", "ntk", 500, "1", "", False),
        ("kfac-N-C", "kfac", None, "C", "", False),
        ("ntk-100-tree+kmeans", "ntk", 100, "tree", "kmeans", False),
        ("ggn-70-1+iid", "ggn", 70, "1", "", True),
        ("blockdiag-20-tree+greedy+iid", "blockdiag", 20, "tree", "greedy", True),
        ("diag-10-5+class", "diag", 10, "5", "class", False),
    ],
)
def test_names_mean_what_the_house_plan_says(text, structure, inputs, outputs, grouping, iid):
    assert parse_estimator(text) == EstimatorSpec(structure, inputs, outputs, grouping, iid)


@few_examples
@given(st.from_regex(r"(ntk|diag)-(N|0?[0-9]{1,2})-(1|C|tree|0?[0-9])(\+(class|iid|kmeans)){0,3}", fullmatch=True))
def test_whatever_is_accepted_is_spelled_as_it_was_given(text):
    """No second spelling slips through, and whatever else is typed gets one line."""
    try:
        spelled = str(parse_estimator(text))
    except ValueError as error:
        spelled = str(error)
    assert spelled == text or (text in spelled and "\n" not in spelled)


GRAMMAR = "write <structure>-<inputs>-<outputs>[+class|+kmeans|+greedy][+iid], for example ntk-500-1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kfca-N-C", "unknown structure 'kfca'; did you mean 'kfac'? known: ntk, ggn, blockdiag, kfac, diag"),
        ("", "unknown structure ''"),
        ("NTK-10-1", f"(in 'NTK-10-1'; {GRAMMAR})"),
        ("ntk", f"'ntk' is not an estimator: {GRAMMAR}"),
        ("ntk-10", "'ntk-10' is not an estimator"),
        ("ntk-10-1-1", "'ntk-10-1-1' is not an estimator"),
        ("ntk-0-1", "inputs per block '0' in 'ntk-0-1': write a positive integer, or N for all inputs"),
        ("ntk-n-1", "inputs per block 'n'"),
        ("ntk-010-1", "inputs per block '010'"),
        ("ntk-1e3-1", "inputs per block '1e3'"),
        ("ntk-10-c", "outputs 'c' in 'ntk-10-c': write 1, C (all), tree, or a group size such as 5"),
        ("ntk-10-0", "outputs '0'"),
        ("ntk-10-05", "outputs '05'"),
        ("ntk-10-1+kmean", "unknown modifier '+kmean'; did you mean '+kmeans'? known: +class, +kmeans, +greedy, +iid"),
        ("ntk-10-1+", "unknown modifier '+'"),
        ("ntk-10-1+class+greedy", "groups the inputs twice: keep one of +class, +greedy"),
        ("ntk-10-1+iid+iid", "'ntk-10-1+iid+iid' is written 'ntk-10-1+iid'"),
        ("ntk-10-1+iid+class", "'ntk-10-1+iid+class' is written 'ntk-10-1+class+iid'"),
        ("ntk-10-C+iid", "+iid in 'ntk-10-C+iid' draws one row per input: use it with outputs 1 or tree"),
        ("ntk-10-5+iid", "use it with outputs 1 or tree"),
        ("ntk-N-C+kmeans", "groups inputs that all stand in one block: leave out +kmeans"),
    ],
)
def test_every_mistake_is_named_with_what_to_write(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_estimator(text)


@pytest.mark.parametrize(
    ("text", "resolved"),
    [
        ("ntk-50-C", "ntk-50-C"),
        ("ntk-100-C", "ntk-N-C"),
        ("ntk-100-1+iid", "ntk-N-1+iid"),
        ("ntk-100-C+kmeans", "ntk-N-C"),
        ("kfac-99-9+class", "kfac-99-9+class"),
        ("diag-N-tree", "diag-N-tree"),
    ],
)
def test_all_inputs_are_spelled_n(text, resolved):
    assert str(resolve_estimator(parse_estimator(text), num_inputs=100, num_outputs=10)) == resolved


@pytest.mark.parametrize(
    ("text", "num_outputs", "softmax", "message"),
    [
        (
            "ntk-101-C",
            10,
            True,
            "ntk-101-C needs 101 inputs but there are 100: name an estimator with 100 or N in its place",
        ),
        ("ntk-50-10", 10, True, "ntk-50-10 asks for 10 outputs of 10: write C for all outputs"),
        ("ntk-50-11", 10, True, "ntk-50-11 asks for 11 outputs of 10: write 1, C or a size below 10"),
        ("ntk-50-3", 2, True, "ntk-50-3 asks for 3 outputs of 2: write 1 or C"),
        ("ntk-50-3", 1, False, "ntk-50-3 asks for 3 outputs of 1: write 1 or C"),
        (
            "ntk-50-tree",
            3,
            False,
            "tree rows mend the coupling of a softmax; here the outputs are independent and 1 is",
        ),
        ("ntk-50-tree", 1, True, "a tree needs two classes or more, the network has 1 output"),
        ("ntk-50-C+class", 3, False, "+class needs class labels; use +kmeans, +greedy or no grouping"),
        ("ntk-50-C", 1, True, "needs two outputs or more, the network has 1: use bernoulli"),
    ],
)
def test_what_the_data_do_not_allow_is_refused_with_what_to_write(text, num_outputs, softmax, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve_estimator(parse_estimator(text), 100, num_outputs, softmax)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(
    ("outputs", "softmax", "proven"),
    [
        ("C", True, True),
        ("tree", True, True),
        ("1", True, False),
        ("5", True, False),
        ("1", False, True),
        ("5", False, True),
        ("C", False, True),
    ],
)
def test_the_certified_flag(structure, outputs, softmax, proven):
    """Proven: all outputs, tree rows, or independent outputs; never kfac, never a split softmax."""
    for inputs, grouping, iid in ((None, "", False), (20, "kmeans", False), (20, "", outputs in ("1", "tree"))):
        spec = EstimatorSpec(structure, inputs, outputs, grouping, iid)
        assert is_certified(spec, softmax) == (proven and structure != "kfac")


def test_names_are_parsed_without_torch():
    code = "import sys, ntkml.specs; ntkml.specs.parse_estimator('ntk-5-1'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
