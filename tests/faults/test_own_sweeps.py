"""A sweep file of the user's own that no run can be made of: one line each, with the file, the table and what to write."""

from dataclasses import fields

import pytest

from ntkml.protocols.ranges import RANGES
from ntkml.protocols.sweep import load_sweep, swept_names
from ntkml.protocols.train import WORDS, TrainProtocol
from ntkml.system_specs import TRAIN_HPARAMS

WHOLE = "write a whole number from"


def load(tmp_path, cells, top="", encoding="utf-8"):
    path = tmp_path / "my.toml"
    head = {"base": '"train-digits"', "hparam": '"prior"'}
    head.pop(top.partition(" ")[0], None)
    lines = [*(f"{key} = {value}" for key, value in head.items()), top, cells]
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return load_sweep(str(path))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epochs = -3", f"epochs = -3: {WHOLE} 1 to 1000000000"),
        ("epochs = 20.5", f"epochs = 20.5: {WHOLE} 1"),
        ('epochs = "ten"', f'epochs = "ten": {WHOLE} 1'),
        ("seeds = [0, -1]", f"seeds = -1: {WHOLE} 0 to 9223372036854775807"),
        ("seeds = [true]", f"seeds = true: {WHOLE} 0"),
        ('seeds = ["a"]', f'seeds = "a": {WHOLE} 0'),
        ("seeds = []", r"seeds = \[\]: write one value or more"),
        ("update_every = 0", f"update_every = 0: {WHOLE} 1"),
        ("batch_size = 0", f"batch_size = 0: {WHOLE} 1"),
        ("num_data = 0", f"num_data = 0: {WHOLE} 1"),
        ("samples = [{a = 1}]", f"samples = {{'a': 1}}: {WHOLE} 1 to 10000"),
        ('lr = "x"', 'lr = "x": write a number from 1e-30 to 1e[+]30'),
        ("lr = nan", "lr = nan: write a number from 1e-30"),
        ("lr = 1e300", "lr = 1e[+]300: write a number from 1e-30"),
        ("lr_min = -1", "lr_min = -1: write a number from 0 to 1e[+]30"),
        ("flip = 1", "flip = 1: write true or false"),
        ("estimators = [3]", "estimators = 3: write the name of an estimator or another system in quotes"),
        ('estimators = ["lila"]', 'estimators = "lila": write "kfac-N-C"'),
        ("dataset = 3", 'dataset = 3: write the name of a data set in quotes, such as "digits"'),
        ('model = "mlq"', "unknown model 'mlq'; did you mean 'mlp'"),
        ('optimizer = "adan"', "unknown optimizer 'adan'; did you mean 'adam'"),
        ('prior_kind = "scala"', "unknown prior 'scala'; did you mean 'scalar'"),
        ("row = 5", "row = 5: write text in quotes"),
        ("seed = 5", "unknown setting 'seed'; did you mean 'seeds'"),
        ("estimator = 'none'", "unknown setting 'estimator'; did you mean 'estimators'"),
    ],
)
def test_a_value_that_no_run_can_have(tmp_path, setting, message):
    with pytest.raises(ValueError, match=rf"my\.toml, \[\[cells\]\] table 2: .*{message}"):
        load(tmp_path, f"[[cells]]\n[[cells]]\n{setting}")


@pytest.mark.parametrize(
    ("top", "message"),
    [
        ("base = 3", "base = 3: write text in quotes"),
        ("hparam = 3", "hparam = 3: write text in quotes"),
        ("variant = 3", "variant = 3: write text in quotes"),
        ("settings = 3", r"settings = 3: write a table \[settings\]"),
        ("prior = 3", r"prior = 3: write a table \[prior\]"),
        ("title = 3", "title = 3: write it in quotes"),
    ],
)
def test_a_key_of_the_whole_file_that_holds_something_else(tmp_path, top, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, "[[cells]]", top)


@pytest.mark.parametrize(
    ("top", "message"),
    [
        ("hparams = 'prior'", "unknown key 'hparams'; did you mean 'hparam'. known: kind, title, base, variant, "),
        ("[setings]\nepochs = 20", "unknown key 'setings'; did you mean 'settings'"),
        ("[invarience]\n", "unknown key 'invarience'; did you mean 'invariance'"),
        ("extends = 'sweep-digits'", "unknown key 'extends'"),
        ("epochs = 20", r"epochs is a setting of runs: write it below \[settings\] or \[\[cells\]\]"),
        ("[prior.setting]\nepochs = 20", r"\[prior\]: unknown key 'setting'; did you mean 'settings'"),
        ("[invariance]\nepochs = 20", r"\[invariance\]: epochs is a setting of runs"),
        ("kind = 'train'", "kind = 'train': a file of your own is a sweep, leave the line out"),
    ],
)
def test_a_key_that_nobody_would_read(tmp_path, top, message):
    with pytest.raises(ValueError, match=rf"my\.toml.*: {message}|my\.toml, {message}"):
        load(tmp_path, "[[cells]]", top)


def test_what_a_file_may_say_is_read(tmp_path):
    top = "kind = 'sweep'\ntitle = 'Mine'\nvariant = 'code'\n[settings]\nepochs = 20\n[prior.settings]\nnum_data = 50\n"
    protocol = load(tmp_path, "[[cells]]", top + "[invariance]\nbase = 'train-mnist'\n")
    [cell] = protocol.cells
    assert (protocol.title, cell.asked.variant, cell.protocol.epochs, cell.protocol.num_data) == (
        "Mine",
        "code",
        20,
        50,
    )


def test_cells_that_are_no_tables(tmp_path):
    with pytest.raises(ValueError, match=r"my\.toml: cells hold 'x': write every one as a \[\[cells\]\] table"):
        load(tmp_path, 'cells = ["x"]')


def test_a_file_without_cells(tmp_path):
    with pytest.raises(ValueError, match=r"my\.toml: a sweep has base = .* and \[\[cells\]\] tables"):
        load(tmp_path, "cells = []")


def test_a_byte_order_mark_is_read_over(tmp_path):
    assert load(tmp_path, "[[cells]]\nepochs = 20", encoding="utf-8-sig").cells[0].protocol.epochs == 20


def test_every_setting_has_a_range_and_every_protocol_keeps_to_it():
    assert set(RANGES) == {field.name for field in fields(TrainProtocol)} - {*WORDS, "hparam"}
    for name in swept_names():
        hparams = TRAIN_HPARAMS if name == "pareto-digits" or name.startswith("train-") else (None,)
        for cell in (cell for hparam in hparams for cell in load_sweep(name, hparam).cells):
            for setting, known in RANGES.items():
                known.check(getattr(cell.protocol, setting))
