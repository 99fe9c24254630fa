"""Checkpoints that were cut short, damaged or forged: the one before it is used, and nothing in a file is executed."""

import hashlib
import io
import os
import pickle
import random

import pytest
import torch

from ntkml.learning import checkpoints
from ntkml.learning.checkpoints import previous, read_checkpoint, write_checkpoint


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pt"


@pytest.fixture
def warnings():
    return []


def sealed(payload):
    return b"ntkml-checkpoint " + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


def test_a_checkpoint_comes_back_as_it_was(path, warnings):
    state = {
        "tensor": torch.randn(3, 2),
        "rows": [{"epoch": 1, "loss": 0.1, "none": None, "flag": True}],
        "text": "a\nb",
    }
    write_checkpoint(path, state)
    read = read_checkpoint(path, warnings.append)
    assert torch.equal(read.pop("tensor"), state.pop("tensor"))
    assert read == state
    assert warnings == []
    assert os.listdir(path.parent) == ["checkpoint.pt"]


def test_without_a_checkpoint_there_is_nothing_to_read(path, warnings):
    assert read_checkpoint(path, warnings.append) is None
    assert warnings == []


def test_the_predecessor_is_kept(path, warnings):
    for epoch in (1, 2, 3):
        write_checkpoint(path, {"epoch": epoch})
    assert read_checkpoint(path, warnings.append) == {"epoch": 3}
    assert read_checkpoint(previous(path), warnings.append) == {"epoch": 2}


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "junk", "forged", "not a state"])
def test_a_damaged_checkpoint_gives_way_to_its_predecessor_with_one_line(path, warnings, damage):
    write_checkpoint(path, {"epoch": 1})
    write_checkpoint(path, {"epoch": 2})
    data = path.read_bytes()
    other = io.BytesIO()
    torch.save([1, 2], other)
    path.write_bytes(
        {
            "cut": data[:-7],
            "flipped": data[:200] + bytes([data[200] ^ 1]) + data[201:],
            "emptied": b"",
            "junk": b"not a checkpoint",
            "forged": sealed(b"no zip file"),
            "not a state": sealed(other.getvalue()),
        }[damage]
    )
    assert read_checkpoint(path, warnings.append) == {"epoch": 1}
    assert len(warnings) == 1
    assert warnings[0].startswith(f"Warning: {path} ")
    assert warnings[0].endswith("; continuing from checkpoint.previous.pt")
    assert "\n" not in warnings[0]
    # The damaged file must not take the place of the good one when the run goes on.
    write_checkpoint(path, {"epoch": 3})
    assert read_checkpoint(previous(path), warnings.append) == {"epoch": 1}


def test_two_damaged_checkpoints_are_an_error(path, warnings):
    write_checkpoint(path, {"epoch": 1})
    path.write_bytes(b"junk")
    with pytest.raises(
        ValueError, match=r"is not a checkpoint; there is no earlier checkpoint: remove .* and start again"
    ):
        read_checkpoint(path, warnings.append)
    previous(path).write_bytes(b"junk too")
    with pytest.raises(ValueError, match=r"and .*previous\.pt is not a checkpoint: remove .* and start again"):
        read_checkpoint(path, warnings.append)
    assert warnings == []


def test_a_kill_between_the_renames_leaves_the_predecessor(path, warnings, monkeypatch):
    write_checkpoint(path, {"epoch": 1})
    replace, calls = os.replace, []

    def killed(*names):
        calls.append(names)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(*names)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(path, {"epoch": 2})
    monkeypatch.undo()
    assert os.listdir(path.parent) == ["checkpoint.previous.pt"]
    assert read_checkpoint(path, warnings.append) == {"epoch": 1}
    assert warnings == [f"Warning: {path} is missing; continuing from checkpoint.previous.pt"]


def flipped(data, bit):
    return data[: bit // 8] + bytes([data[bit // 8] ^ (1 << bit % 8)]) + data[bit // 8 + 1 :]


@pytest.mark.parametrize(("kind", "count"), [("flips", 300), ("cuts", 200)])
def test_no_damage_of_one_bit_and_no_truncation_goes_unseen(path, kind, count):
    """In the line with the checksum, which every third position falls into, as in what it guards."""
    write_checkpoint(path, {"epoch": 1})
    write_checkpoint(path, {"epoch": 2, "weights": torch.arange(500.0), "rows": [{"epoch": 1}]})
    whole, head, draw = path.read_bytes(), 82, random.Random(0)
    assert whole.index(b"\n") == head - 1
    limits = [head if number % 3 == 0 else len(whole) for number in range(count)]
    places = [draw.randrange(limit * 8) if kind == "flips" else draw.randrange(limit) for limit in limits]
    for place in places:
        path.write_bytes(flipped(whole, place) if kind == "flips" else whole[:place])
        warnings = []
        assert read_checkpoint(path, warnings.append) == {"epoch": 1}, place
        assert len(warnings) == 1, place
        assert not path.exists()
    path.write_bytes(whole)
    assert read_checkpoint(path, pytest.fail)["epoch"] == 2


class Trap:
    def __reduce__(self):
        return (os.mkdir, ("sprung",))


def test_nothing_in_a_checkpoint_is_executed(path, warnings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save({"trap": Trap()}, buffer)
    for payload in (buffer.getvalue(), pickle.dumps(Trap(), protocol=2)):
        path.write_bytes(sealed(payload))
        with pytest.raises(ValueError, match="cannot be loaded"):
            read_checkpoint(path, warnings.append)
    assert not (tmp_path / "sprung").exists()
    assert checkpoints.previous(path).name == "checkpoint.previous.pt"
