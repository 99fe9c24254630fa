"""Networks of every kind on a GPU and on a simulated device: estimates and gradients are those of the CPU."""

from __future__ import annotations

import pytest
import torch

import ntkml
from tests import networks
from tests.devices import DEVICES, ON_A_GPU, device_called, replaced_parameters
from tests.factories import assert_same, targets
from tests.objectives import everything
from tests.simulated_device import NAME

__all__ = ["replaced_parameters"]  # a fixture
pytestmark = pytest.mark.usefixtures("replaced_parameters")

#: Every kind of rows; on the simulated device no ties (moved parameters lose them, below), sparse tensors and recurrent layers.
ANY_NETWORK = [
    *(pytest.param("cuda", name, marks=ON_A_GPU) for name in networks.NETWORKS),
    *(
        (NAME, name)
        for name in networks.NETWORKS
        if not any(w in name for w in ("tied", "sparse", "recurrent", "pairs"))
    ),
]


@pytest.mark.parametrize(("device", "name"), ANY_NETWORK)
def test_estimates_of_any_network_are_those_of_the_cpu(device, name):
    check_estimate(device, name, "ntk-3-C")


@pytest.mark.parametrize("name", ["embedding", "transformer", "raw parameters", "one-dimensional convolution"])
@pytest.mark.parametrize("device", DEVICES)
def test_factors_of_any_network_are_those_of_the_cpu(device, name):
    check_estimate(device, name, "kfac-3-C")


def check_estimate(device, name, estimator):
    kind = networks.NETWORKS[name]
    x, y = kind.inputs(5), targets("categorical", 5, networks.CLASSES)
    found = []
    for place in (torch.device("cpu"), device_called(device)):
        objective = ntkml.MarginalLikelihood(kind.build().to(place), estimator, chunk=2).to(place)
        numbers = everything(objective, x.to(place), y.to(place), blocks=1)
        found.append({name: number.cpu() for name, number in numbers.items()})
    theirs, ours = found
    assert set(ours) == set(theirs)
    # Some kernels of torch on CUDA hold constants or norms in float32, whatever the dtype: weights of weight_norm were 2e-8
    # apart on an H100; hard sigmoid and swish, whose 1/6 is in float32, gave values 1.4e-8 apart.
    tolerance = 1e-7 if device == "cuda" and name in ("weight norm", "squeeze and excitation") else 1e-10
    for part, expected in theirs.items():
        assert_same(ours[part], expected, tolerance)
