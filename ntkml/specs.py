"""Names of estimators: ``<structure>-<inputs>-<outputs>[+grouping][+iid]``.

>>> spec = parse_estimator("ntk-500-1+kmeans")
>>> spec.structure, spec.inputs, spec.outputs, spec.grouping
('ntk', 500, '1', 'kmeans')
>>> str(spec)
'ntk-500-1+kmeans'

This module is stdlib-only: the command line parses and completes names without importing torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ntkml.registry import STRUCTURES, unknown_name

#: How inputs may be grouped into blocks; without a name the grouping is random.
GROUPINGS = ("class", "kmeans", "greedy")

#: How many precisions a prior has: one in all, one per parameter tensor, or one per parameter.
PRIOR_KINDS = ("scalar", "layerwise", "diagonal")

#: The name of training without a marginal likelihood (plain MAP).
NO_ESTIMATOR = "none"

#: The exact log marginal likelihood of the linearised Laplace approximation, computed in the dual; "full" in the paper's figures.
EXACT = "ntk-N-C"

_NUMBER = "[1-9][0-9]{0,17}"  # 64 bits hold it

_GRAMMAR = "<structure>-<inputs>-<outputs>[+class|+kmeans|+greedy][+iid], for example ntk-500-1"


@dataclass(frozen=True)
class EstimatorSpec:
    """One estimator of the family: a structure, the size of its blocks and how pairs are grouped into them.

    ``inputs`` is the number of inputs per block, or None for all of them (written ``N``). ``outputs`` is ``"1"`` (one
    output, the paper's), ``"C"`` (all), ``"tree"`` (one row of a nested dichotomy, a proven bound) or the digits of a
    group size k.
    """

    structure: str
    inputs: int | None
    outputs: str
    grouping: str = ""
    iid: bool = False

    def __str__(self) -> str:
        inputs = "N" if self.inputs is None else str(self.inputs)
        grouping = f"+{self.grouping}" if self.grouping else ""
        return f"{self.structure}-{inputs}-{self.outputs}{grouping}{'+iid' if self.iid else ''}"

    @property
    def group_size(self) -> int | None:
        """k where ``outputs`` is a group size k > 1, else None."""
        return int(self.outputs) if self.outputs.isdigit() and self.outputs != "1" else None


def parse_estimator(text: str) -> EstimatorSpec:
    """The estimator called ``text``; ``str(parse_estimator(text)) == text`` for every accepted name.

    Raises:
        ValueError: one line that names the faulty part and what to write instead.
    """
    body, *modifiers = text.split("+")
    parts = body.split("-")
    if parts[0] not in STRUCTURES:
        raise ValueError(f"{unknown_name('structure', parts[0], list(STRUCTURES))} (in {text!r}; write {_GRAMMAR})")
    if len(parts) != 3:
        raise ValueError(f"{text!r} is not an estimator: write {_GRAMMAR}")
    spec = EstimatorSpec(parts[0], _parse_inputs(parts[1], text), _parse_outputs(parts[2], text))
    return _with_modifiers(spec, modifiers, text)


def _parse_inputs(part: str, text: str) -> int | None:
    if part == "N":
        return None
    if not re.fullmatch(_NUMBER, part):
        raise ValueError(f"inputs per block {part!r} in {text!r}: write a positive integer, or N for all inputs")
    return int(part)


def _parse_outputs(part: str, text: str) -> str:
    if part in ("1", "C", "tree") or re.fullmatch(_NUMBER, part):
        return part
    raise ValueError(f"outputs {part!r} in {text!r}: write 1, C (all), tree, or a group size such as 5")


def _with_modifiers(spec: EstimatorSpec, modifiers: list[str], text: str) -> EstimatorSpec:
    for modifier in modifiers:
        if modifier not in (*GROUPINGS, "iid"):
            known = [f"+{name}" for name in (*GROUPINGS, "iid")]
            raise ValueError(f"{unknown_name('modifier', '+' + modifier, known)} (in {text!r})")
    groupings = [modifier for modifier in modifiers if modifier in GROUPINGS]
    if len(groupings) > 1:
        raise ValueError(f"{text!r} groups the inputs twice: keep one of {', '.join('+' + g for g in groupings)}")
    spec = replace(spec, grouping=groupings[0] if groupings else "", iid="iid" in modifiers)
    if spec.grouping and spec.inputs is None:
        raise ValueError(f"{text!r} groups inputs that all stand in one block: leave out +{spec.grouping}")
    if spec.iid and spec.outputs not in ("1", "tree"):
        raise ValueError(f"+iid in {text!r} draws one row per input: use it with outputs 1 or tree")
    if str(spec) != text:
        raise ValueError(f"{text!r} is written {str(spec)!r}")
    return spec


def resolve_estimator(spec: EstimatorSpec, num_inputs: int, num_outputs: int, softmax: bool = True) -> EstimatorSpec:
    """``spec`` on data of ``num_inputs`` inputs and ``num_outputs`` outputs, in its one spelling.

    A block of all inputs becomes ``N``. ``softmax`` says whether the likelihood couples the outputs (categorical).

    Raises:
        ValueError: the block is larger than the data, the outputs do not exist, or a modifier has no meaning there.
    """
    if spec.inputs is not None and spec.inputs > num_inputs:
        raise ValueError(
            f"{spec} needs {spec.inputs} inputs but there are {num_inputs}: name an estimator with {num_inputs} or N in its place"
        )
    size = spec.group_size
    if size is not None and size >= num_outputs:
        smaller = f"1, C or a size below {num_outputs}" if num_outputs > 2 else "1 or C"
        hint = "write C for all outputs" if size == num_outputs else f"write {smaller}"
        raise ValueError(f"{spec} asks for {size} outputs of {num_outputs}: {hint}")
    if spec.outputs == "tree" and not softmax:
        raise ValueError(
            f"{spec}: tree rows mend the coupling of a softmax; here the outputs are independent and 1 is certified: write 1"
        )
    if spec.outputs == "tree" and num_outputs < 2:
        raise ValueError(f"{spec}: a tree needs two classes or more, the network has {num_outputs} output")
    if spec.grouping == "class" and not softmax:
        raise ValueError(f"{spec}: +class needs class labels; use +kmeans, +greedy or no grouping")
    if softmax and num_outputs < 2:
        raise ValueError(
            f"{spec}: a categorical likelihood needs two outputs or more, the network has {num_outputs}: use bernoulli"
        )
    return in_one_spelling(spec, num_inputs)


def in_one_spelling(spec: EstimatorSpec, num_inputs: int) -> EstimatorSpec:
    """``spec`` on ``num_inputs`` inputs: a block of so many holds all of them, is called N and groups nothing."""
    return replace(spec, inputs=None, grouping="") if spec.inputs == num_inputs else spec


def within_batch(spec: EstimatorSpec, num_inputs: int) -> EstimatorSpec:
    """``spec`` on a batch of ``num_inputs``: one that is smaller than a block is a block."""
    return spec if spec.inputs is None else replace(spec, inputs=min(spec.inputs, num_inputs))


def index_pairs(spec: EstimatorSpec, num_inputs: int, num_outputs: int) -> int:
    """Index pairs of a full block, as the paper counts them: all outputs are C pairs of an input, a tree node is one."""
    per_input = {"C": num_outputs, "tree": 1}.get(spec.outputs) or int(spec.outputs)
    return (num_inputs if spec.inputs is None else spec.inputs) * per_input


def is_certified(spec: EstimatorSpec, softmax: bool = True) -> bool:
    """Whether the estimate's mean is a proven lower bound of the linearised-Laplace log marginal likelihood.

    KFAC approximates the blocks of Theorem 1 and proves nothing. Splitting the outputs of a softmax breaks the Fischer
    step of Theorem 2, because Lambda couples them; ``tree`` rows restore it, and a diagonal Lambda never had the problem.
    """
    if spec.structure == "kfac":
        return False
    return not softmax or spec.outputs in ("C", "tree")
