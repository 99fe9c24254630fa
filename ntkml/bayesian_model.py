"""A network as a probabilistic model: p(y | x, w) p(w), its hyperparameters, and the loss that its weights are trained on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ntkml.arguments import (
    check_generator,
    check_made_outside,
    check_members,
    check_network,
    check_size,
    check_tensors,
)
from ntkml.augmentations import Augmentation
from ntkml.layers.uses import average_views
from ntkml.likelihoods import LearnedNoise, Likelihood, as_likelihood, positive_noise
from ntkml.machine.full_precision import full_precision
from ntkml.machine.processes import ALONE, Processes
from ntkml.parameters import (
    Hyperparameter,
    called_with,
    held_fixed,
    hyperparameters,
    parameter_shapes,
    trainable_parameters,
)
from ntkml.priors import PriorPrecision, Shapes, as_prior, as_values
from ntkml.registry import unknown_name
from ntkml.rows.model_contract import check_modes
from ntkml.specs import PRIOR_KINDS

#: Network inputs per forward pass of plain outputs on a CPU: activations of a few hundred images stay in its caches.
FORWARD_INPUTS = 500


class BayesianModel(nn.Module):
    """A network with its likelihood, prior and augmentation. ``parameters()`` are the hyperparameters.

    The network's weights are not among them: ``state_dict()`` and ``zero_grad()`` leave them alone. See
    :class:`ntkml.MarginalLikelihood` for the arguments.
    """

    augmentation: Augmentation | None

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood,
        prior: str,
        prior_precision: float | Tensor,
        augmentation: Augmentation | None,
    ):
        super().__init__()
        if prior not in PRIOR_KINDS:
            raise ValueError(unknown_name("prior", prior, list(PRIOR_KINDS)))
        check_network(model)
        self._model = (model,)  # in a tuple, so that the weights do not become parameters of the objective
        self._shapes = parameter_shapes(model)
        device = next(iter(trainable_parameters(model).values())).device
        initial = _initial_precisions(prior_precision, prior, self._shapes).to(device)
        self.prior_kind = prior
        self.log_prior_precision = nn.Parameter(initial.log())
        self._likelihood = as_likelihood(likelihood)
        _check_held(self._likelihood, model)
        self.log_observation_noise: nn.Parameter | None = None
        if isinstance(self._likelihood, LearnedNoise):
            noise = positive_noise(self._likelihood.observation_noise).to(device)
            self.log_observation_noise = nn.Parameter(noise.log())
        _check_variance(self._likelihood_fixed)
        if augmentation is not None:
            members = ("num_views", "draw", "forward")
            check_members(
                augmentation, "an augmentation is an nn.Module and", members, "ntkml.AffineInvariance", nn.Module
            )
            assert isinstance(augmentation, nn.Module)
            check_made_outside(augmentation)
            _check_no_weights(augmentation, model)
            augmentation.to(device)
        self.augmentation = augmentation
        self.in_network = nn.ParameterList(hyperparameters(model).values())

    @property
    def model(self) -> nn.Module:
        return self._model[0]

    @property
    def prior(self) -> PriorPrecision:
        """The current prior precision, differentiable in ``log_prior_precision``."""
        return PriorPrecision(self.log_prior_precision.exp(), self.prior_kind)

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood with its current observation noise."""
        return self._likelihood_at(self.log_observation_noise)

    def outputs(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """f(x), averaged over freshly drawn views; differentiable in the weights only. Shape (n, C)."""
        return self._outputs(x, self._draw(len(x), generator))

    def weight_loss(
        self,
        x: Tensor,
        y: Tensor,
        num_data: int,
        generator: torch.Generator | None = None,
        processes: Processes = ALONE,
    ) -> Tensor:
        """The weights' loss on a batch, -mean log p(y|x, w) + 1/2 w^T P0 w / N, hyperparameters fixed. Scalar.

        The network is called as it is: with dropout, or batch normalisation in training mode, where its owner left them so.
        Of several ``processes``, which all draw the same views, each gets its own part: the parts add up to the loss.
        """
        check_size(num_data, len(x))
        self._check_parameters()
        energy = self.prior.energy(trainable_parameters(self.model))
        loss = energy / num_data / processes.count
        noise, part = self._draw(len(x), generator), processes.part
        if not len(x[part]):  # fewer inputs than processes
            return loss
        outputs = self._outputs(x[part], None if noise is None else noise[part])
        outputs = outputs.to(energy)  # where autocast made them bfloat16
        with held_fixed(self.in_network):  # a likelihood may read them
            log_prob = self._likelihood_fixed.log_prob(outputs, y[part])
        return loss - log_prob.sum() / len(x)

    def _outputs(self, x: Tensor, noise: Tensor | None) -> Tensor:
        with torch.no_grad(), full_precision():  # of the views: the weights' autocast is not for transformations
            views = self._views(x, noise)
        parts = views.split(FORWARD_INPUTS) if views.device.type == "cpu" and not _couples(self.model) else (views,)
        # Views are ours; without them a network that works on its input in place must not reach the caller's data.
        own = parts if self.augmentation is not None else [part.clone() for part in parts]
        # Other leaves stand in for what is learned in the network, or its gradients would be left there. They require a gradient
        # too: checkpointing computes a forward pass again, with the network's own, and holds it against the first one.
        learned = {name: p for name, p in hyperparameters(self.model).items() if p.requires_grad}
        fixed = {name: Hyperparameter(p.detach()) for name, p in learned.items()}
        return average_views(torch.cat([called_with(self.model, fixed, part) for part in own]), self._num_views)

    def _check_exponentials(self) -> None:
        """A step that is too long leaves a precision or a noise of 0 or infinity, of which not every structure says a word."""
        for name, logarithm, power in (
            ("log_prior_precision", self.log_prior_precision, 1),
            ("log_observation_noise", self.log_observation_noise, 2),
        ):
            if logarithm is None:
                continue
            exponential = (power * logarithm.detach()).exp()
            bad = logarithm.detach()[~(torch.isfinite(exponential) & (exponential > 0))]
            if len(bad):
                raise ValueError(
                    f"{name} holds {float(bad[0]):g}, whose exponential is no positive finite number: set it back, and lower its "
                    "learning rate"
                )

    def _check_unchanged(self, x: Tensor, y: Tensor) -> None:
        """Between two estimates a network goes through its owner's loop."""
        check_modes(self.model)
        if self.augmentation is not None:
            views: Any = self.augmentation  # a module, as the constructor has seen
            check_modes(views, "augmentation")
        check_tensors(x, y)
        self._check_parameters()

    def _check_parameters(self) -> None:
        """The objective's prior and hyperparameters are about the network's parameters as they were when it was made."""
        learned, ours = hyperparameters(self.model), list(self.in_network)
        if len(learned) != len(ours) or any(
            now is not before for now, before in zip(learned.values(), ours, strict=True)
        ):
            raise ValueError(
                "a Hyperparameter of the network was added, removed or replaced since the objective was made: make a new objective "
                "and a new optimiser, or their steps would miss it"
            )
        now, held = parameter_shapes(self.model), {name for name, _ in self.model.named_parameters()}
        for name in {**self._shapes, **now}:
            if name not in now or name not in self._shapes:
                change = "was frozen or unfrozen" if name in held else "was removed"
            elif now[name] != self._shapes[name]:
                change = f"became one of shape {tuple(now[name])}"
            else:
                continue
            raise ValueError(
                f"parameter {name!r} {change} since the objective was made: make a new one, whose prior is about the weights as they "
                "are"
            )

    @property
    def _scaled_prior(self) -> PriorPrecision:
        """Lambda = L L^T / sigma^2 enters K only as a product with P0^-1, so the noise scales the prior precision."""
        return self.prior.scaled(self.likelihood.noise_variance)

    @property
    def _forward_hyperparameters(self) -> list[nn.Parameter]:
        """What enters the forward pass, each once, whoever holds it: the second pass is for these."""
        augmentation = [] if self.augmentation is None else list(self.augmentation.parameters())
        entering = {id(parameter): parameter for parameter in (*augmentation, *self.in_network)}
        return [parameter for parameter in entering.values() if parameter.requires_grad]

    @property
    def _likelihood_fixed(self) -> Likelihood:
        """The likelihood with its noise as a number: its own gradient is taken with the value."""
        noise = self.log_observation_noise
        return self._likelihood_at(None if noise is None else noise.detach())

    def _likelihood_at(self, log_noise: Tensor | None) -> Likelihood:
        if log_noise is None:
            return self._likelihood
        assert isinstance(self._likelihood, LearnedNoise)
        return self._likelihood.with_noise(log_noise.exp())

    @property
    def _num_views(self) -> int:
        return 1 if self.augmentation is None else self.augmentation.num_views

    def _draw(self, num_inputs: int, generator: torch.Generator | None) -> Tensor | None:
        check_generator(generator)
        return None if self.augmentation is None else self.augmentation.draw(num_inputs, generator)

    def _views(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """Of a copy: an augmentation may work on its input in place."""
        return x if self.augmentation is None or noise is None else self.augmentation(x.clone(), noise)


def _check_held(likelihood: Likelihood, model: nn.Module) -> None:
    """Raise ValueError where a likelihood holds something to learn that is neither its noise nor a Hyperparameter of the network."""
    held = list(getattr(likelihood, "__dict__", {}).values())
    modules = [value for value in (likelihood, *held) if isinstance(value, nn.Module) and value is not model]
    tensors = [value for value in held if isinstance(value, Tensor)]
    known = {id(hyperparameter) for hyperparameter in hyperparameters(model).values()}
    known |= {id(likelihood.observation_noise)} if isinstance(likelihood, LearnedNoise) else set()
    # A module of the network, held for a Hyperparameter, brings its weights along.
    weights = {id(weight) for weight in trainable_parameters(model).values()}
    in_modules = [p for module in modules for p in module.parameters() if id(p) not in weights]
    for tensor in (*tensors, *in_modules):
        if tensor.requires_grad and id(tensor) not in known:
            raise ValueError(
                f"{type(likelihood).__name__} holds a tensor of shape {tuple(tensor.shape)} that requires a gradient: only the "
                "observation noise and what is an ntkml.Hyperparameter of the network are learned, so make it one, or detach it"
            )


def _check_variance(likelihood: Likelihood) -> None:
    """Raise ValueError where the variance depends on a Hyperparameter: its gradient comes from the rows, which hold no variance."""
    variance = likelihood.noise_variance
    if isinstance(variance, Tensor) and variance.requires_grad:
        raise ValueError(
            f"noise_variance of {type(likelihood).__name__} depends on a Hyperparameter: let it be 1, and factor and log_prob depend on "
            "it"
        )


def _check_no_weights(augmentation: nn.Module, model: nn.Module) -> None:
    """Raise ValueError where both hold a weight: the rows would lack the way through the views."""
    names = {id(weight): name for name, weight in trainable_parameters(model).items()}
    for parameter in augmentation.parameters():
        if id(parameter) in names:
            raise ValueError(
                f"the augmentation holds parameter {names[id(parameter)]!r}, a weight of the network: give it a copy, or freeze it or "
                "make it a Hyperparameter of the network"
            )


def _initial_precisions(given: float | Tensor, kind: str, shapes: Shapes) -> Tensor:
    """As many as the kind of prior has, float64; one is given for all of them, or all are.

    Raises:
        ValueError: another number of them, or one that is not finite and positive.
    """
    sizes = (1, len(shapes), sum(shape.numel() for shape in shapes.values()))
    initial = as_values(given).detach().double().reshape(-1)
    if initial.numel() == 1:
        initial = initial.expand(sizes[PRIOR_KINDS.index(kind)])
    return as_prior(PriorPrecision(initial, kind), shapes).values


def _couples(model: nn.Module) -> bool:
    """Whether outputs depend on the whole batch: batch normalisation in training mode, or without running statistics."""
    return any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None)
        for module in model.modules()
    )
