"""The benchmark harness on a case of six images: numbers that agree, rows, a picture, and what is left out by name."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pandas
import pytest
import torch
from click.testing import CliRunner

from benchmarks import gpu, gpu_timing, systems
from benchmarks.__main__ import main
from benchmarks.cases import FULL, QUICK, TINY, Case, problem
from benchmarks.growth import exponents
from benchmarks.networks import build
from benchmarks.run import measure
from benchmarks.timing import interleaved

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_suite_writes_rows_a_manifest_and_a_picture(tmp_path):
    run = CliRunner().invoke(
        main, ["tiny", "--only", "ntk-N-C", "--repeats", "1", "--no-memory", "--out", str(tmp_path)]
    )
    assert run.exit_code == 0, run.output
    rows = pandas.read_csv(tmp_path / "tiny-ntk-N-C.csv").set_index("system")
    assert {"plain", "ntkml", "ntkml cached", "torch.func whole Jacobian"} <= set(rows.index)
    assert rows.ratio["plain"] == 1.0
    assert (rows.cpu_seconds > 0).all()
    assert rows.difference["torch.func whole Jacobian"] < 1e-4
    assert (tmp_path / "tiny-ntk-N-C.png").stat().st_size > 1000
    assert "argv" not in (tmp_path / "tiny-ntk-N-C.json").read_text()


def test_recipes_agree_with_ntkml_and_the_one_graph_too():
    said = []
    rows = list(measure([TINY[0], TINY[-1]], 1, None, memory=False, say=said.append))
    agree = {row.system: row.difference for row in rows if row.system in ("torch.func per-tensor Gram", "one graph")}
    assert len(agree) == 2
    assert max(agree.values()) < 1e-4
    assert not [line for line in said if "left out" in line]


def test_a_missing_package_is_skipped_with_a_line_and_a_wrong_number_is_not_timed(monkeypatch):
    absent = systems.System("elsewhere", systems.OURS.prepare, ("ntk-1",), "no-such-package-anywhere")
    wrong = dataclasses.replace(
        systems.OURS, name="wrong", prepare=lambda given: lambda: (1.0, torch.zeros(8, dtype=torch.float64))
    )
    failing = dataclasses.replace(systems.OURS, name="failing", prepare=lambda given: lambda: 1 / 0)
    nan = torch.full((8,), torch.nan, dtype=torch.float64)
    broken = dataclasses.replace(
        systems.OURS, name="broken", prepare=lambda given: lambda: (*systems.OURS.prepare(given)()[:1], nan)
    )
    monkeypatch.setattr("benchmarks.run.SYSTEMS", [systems.PLAIN, systems.OURS, absent, wrong, failing, broken])
    said = []
    rows = list(measure(TINY[:1], 1, None, memory=False, say=said.append))
    assert [row.system for row in rows] == ["plain", "ntkml"]
    text = "\n".join(said)
    assert "elsewhere: skipped, no-such-package-anywhere is not installed" in text
    assert "wrong: left out, its value or gradient differs by" in text
    assert "broken: left out, its value or gradient differs by inf" in text
    assert "failing: left out, it failed with ZeroDivisionError" in text


def test_an_unknown_case_is_refused_with_the_known_ones():
    run = CliRunner().invoke(main, ["tiny", "--only", "nothing"])
    assert run.exit_code == 2
    assert "mininet-8-6-ntk-N-1" in run.output


def test_ratios_are_those_of_the_same_round():
    found = interleaved({"a": lambda: sum(range(20000)), "b": lambda: sum(range(80000))}, repeats=3, least_seconds=0.01)
    assert found["a"].ratio == 1.0
    assert 2.0 < found["b"].ratio < 8.0


@pytest.mark.slow
def test_the_peak_of_a_fresh_process_is_measured():
    from benchmarks.memory import peak_mib

    assert peak_mib("ntkml", TINY[0]) > 0
    assert peak_mib("no such system", TINY[0]) is None


def test_exponents_are_those_of_a_power_law_and_need_three_sizes():
    rows = [
        {
            "system": "a",
            "network": "n" if p == 1 else f"n-x{p}",
            "num_params": p,
            "estimator": "ntk-N-1",
            "num_inputs": m,
            "views": 0,
            "cpu_seconds": 3e-6 * m**2 * p**0.5,
        }
        for m, p in ((10, 1), (100, 1), (1000, 1), (10, 2), (10, 4))
    ]
    rows += [{**rows[0], "system": "b"}, {**rows[1], "system": "b"}]
    found = exponents(pandas.DataFrame(rows))
    assert list(found.system) == ["a", "a"]
    assert list(found["in"]) == ["M", "P"]
    assert list(found.exponent) == pytest.approx([2.0, 0.5])


def test_a_wider_mininet_is_mininet_with_more_channels():
    plain, wide = (build(name, torch.Generator().manual_seed(0))[0] for name in ("mininet", "mininet-x1"))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), wide.parameters(), strict=True))
    model, shape, num_classes = build("mininet-x2", torch.Generator().manual_seed(0))
    assert model(torch.zeros(3, *shape)).shape == (3, num_classes)
    assert model[0].out_channels == 16


def test_every_case_has_a_name_of_its_own():
    for suite in (TINY, QUICK, FULL):
        assert len({case.name for case in suite}) == len(suite)
    assert Case("mininet", 4, "ntk-N-1", views=2).name == "mininet-4-2views-ntk-N-1"


def test_what_is_for_a_gpu_says_so_without_one(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = CliRunner().invoke(gpu.main, ["--out", str(tmp_path)])
    assert run.exit_code == 1
    assert "no CUDA device" in run.output
    assert not list(tmp_path.iterdir())


def test_rows_for_a_gpu_are_of_plain_training_ntkml_and_the_peers_that_agree(monkeypatch, tmp_path):
    """All but the clock, on the CPU: what is measured, that it agrees, and what is written."""

    def measure(step, device):
        step()
        return gpu_timing.Measured(0.5, 1, 2.0, {"sgemm": 3.0, "copy": 1.0}, Counter({"a.py:1": 2}))

    def on_the_cpu(case, device):
        return problem(case)

    failing = dataclasses.replace(systems.SYSTEMS[3], name="failing", prepare=lambda given: lambda: 1 / 0)
    wrong = dataclasses.replace(
        systems.SYSTEMS[3], name="wrong", prepare=lambda given: lambda: (1.0, torch.ones(8, dtype=torch.float64))
    )
    monkeypatch.setattr(gpu, "SYSTEMS", [*systems.SYSTEMS, failing, wrong])
    monkeypatch.setattr(gpu, "measure", measure)
    monkeypatch.setattr(gpu, "on_device", on_the_cpu)
    monkeypatch.setattr(gpu, "cases", lambda: TINY[:1])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "no GPU")
    run = CliRunner().invoke(gpu.main, ["--out", str(tmp_path)])
    assert run.exit_code == 0, run.output
    rows = pandas.read_csv(tmp_path / "gpu.csv").set_index("system")
    assert list(rows.index) == ["plain", "ntkml", "torch.func per-tensor Gram"]
    assert rows.difference["torch.func per-tensor Gram"] < 1e-4
    assert (rows.product_share == 0.75).all()
    assert list(pandas.read_csv(tmp_path / "gpu-waits.csv").waits) == [2, 2, 2]
    assert "failing: left out, ZeroDivisionError" in run.output
    assert "wrong: left out, ValueError" in run.output


def test_plain_training_in_parts_is_the_gradient_of_the_whole_batch(monkeypatch):
    """What an estimate on a GPU is compared with."""
    given = problem(Case("mininet-8", 6, "ntk-N-1", 2))
    whole = gpu.plain(given)()
    monkeypatch.setattr(gpu, "PLAIN_INPUTS", 4)
    for part, everything in zip(gpu.plain(given)(), whole, strict=True):
        assert torch.allclose(part, everything, atol=1e-6)
        assert bool(everything.any())


@pytest.mark.parametrize(
    ("kernel", "multiplies"),
    [
        ("sm80_xmma_fprop_implicit_gemm_f32f32_f32f32_f32_nchwkcrs_nchw_tilesize128x32x8", True),
        ("void cudnn::detail::dgrad_engine<float, 512, 6, 5, 3, 3, 3, false>(int, int)", True),
        ("void cutlass::Kernel2<cutlass_80_simt_sgemm_128x128_8x4_tt_align1>", True),
        ("void cudnn::engines_precompiled::nhwcToNchwKernel<float, float, float>", False),
        ("void at::native::im2col_kernel<float>(long, float const*)", False),
        ("void sytrd4_gpu<sytrd_params<double, 32, 8, 2048, 32, 16, 1, 2> >", False),
    ],
)
def test_kernels_that_multiply_are_told_from_those_that_move(kernel, multiplies):
    assert gpu_timing.multiplies(kernel) is multiplies
