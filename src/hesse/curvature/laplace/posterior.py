"""A Gaussian posterior over weights: evidence, predictions of the linearised model, draws, and its file.

    log p(D) ≈ log p(D | θ*) - ½ δ ‖θ*‖² + ½ log det(δI) - ½ log det P,   P = τH + δI,   τ = 1/σ² or 1

Shapes: B examples, C outputs, P weights in all, L layers.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Generator, Tensor, nn

from hesse.curvature.batches import to_device
from hesse.curvature.capture import Captured, LayerStream, dgrad_only
from hesse.curvature.fisher import Likelihood
from hesse.curvature.laplace._common import (
    OutputsFn,
    Structure,
    call_model,
    matrix_outputs,
    parameter_names,
    positive,
)
from hesse.curvature.laplace.precision import Precision, read_precision
from hesse.curvature.layers import TrackedLayer, select_layers
from hesse.curvature.output_roots import output_hessian_columns
from hesse.errors import ArgumentError, ArtifactError, ConvergenceError, ShapeError
from hesse.io import FileEntry, hash_tensors, load_tensors, save_tensors, tensor_metadata
from hesse.linalg._random import gaussian_columns
from hesse.linalg.layout import ParameterLayout

__all__ = ["Laplace", "Predictive", "load_laplace"]


@dataclass(frozen=True, slots=True)
class Predictive:
    """The linearised model's outputs at B inputs, as Gaussians.

    ``covariance`` is that of the outputs over the posterior, without observation noise.
    """

    mean: Tensor  # (B, C), the outputs at θ*
    covariance: Tensor  # (B, C, C)
    noise_variance: Tensor | None = None  # (), σ² of a regression
    probabilities: Tensor | None = None  # (B, C), for classification

    @property
    def variance(self) -> Tensor:
        """(B, C): variance of every output, with the observation noise of a regression."""
        variance = self.covariance.diagonal(dim1=1, dim2=2)
        return variance if self.noise_variance is None else variance + self.noise_variance


@dataclass(frozen=True, slots=True)
class Laplace:
    """A Gaussian posterior over the weights of some layers; `laplace` fits it, `load_laplace` reads it back.

    The model is the one that was fitted, not a copy: it must keep its weights. Hyper-parameters may be exchanged by
    `dataclasses.replace`, since H depends on neither.
    """

    model: nn.Module
    layers: Mapping[str, TrackedLayer]
    layout: ParameterLayout  # of the weights and biases, by the model's names
    likelihood: Likelihood
    structure: Structure
    precision: Precision  # H
    log_likelihood: Tensor  # (), float64: log p(D | θ*) in nats, or -½ Σ ‖y - z‖² for "gaussian"
    num_observations: int  # N C numbers (for "gaussian")
    squared_norms: Tensor  # (L,), float64: ‖θ*‖² of every layer
    prior_precision: Tensor  # () or (L,), float64: δ
    sigma_noise: Tensor  # (), float64: σ
    outputs_fn: OutputsFn = field(repr=False)

    def log_marginal_likelihood(
        self, prior_precision: Tensor | float | None = None, sigma_noise: Tensor | float | None = None
    ) -> Tensor:
        """Laplace's approximation of log p(D | δ, σ); exact for a model that is linear in the weights and Gaussian.

        Parameters
        ----------
        prior_precision : Tensor or float, shape () or (L,), optional
            δ > 0, one for all or one a layer. Default: the posterior's.
        sigma_noise : Tensor or float, shape (), optional
            σ > 0 of a Gaussian likelihood. Default: the posterior's.

        Returns
        -------
        Tensor, shape ()
            In nats, float64, differentiable in both. θ* is held fixed: the weights are not trained anew for another δ,
            so that the Gaussian integral is about the optimum of the δ that was trained with.

        Raises
        ------
        ArgumentError
            If a value is not positive and finite, or σ is given for a classification.
        ShapeError
            If δ is neither () nor (L,).
        SingularError
            For ``structure="full"``, if P is not positive definite in float64.
        """
        priors = self._priors(self.prior_precision if prior_precision is None else prior_precision)
        if sigma_noise is not None and self.likelihood != "gaussian":
            raise ArgumentError(f"log_marginal_likelihood: sigma_noise has no meaning for {self.likelihood!r}")
        sigma = positive("sigma_noise", self.sigma_noise if sigma_noise is None else sigma_noise, self.squared_norms)
        tau = sigma**-2
        fit = self.log_likelihood
        if self.likelihood == "gaussian":
            fit = fit * tau - self.num_observations * (sigma.log() + 0.5 * math.log(2 * math.pi))
        sizes = torch.tensor([layer.out_features * layer.columns for layer in self.layers.values()]).to(priors)
        prior = (sizes * priors.log()).sum() - (priors * self.squared_norms).sum()
        return fit + (prior - self.precision.log_determinant(tau, priors)) / 2

    def optimize_prior_precision(
        self, *, per_layer: bool = False, noise: bool = False, max_steps: int = 200
    ) -> "Laplace":
        """Choose δ, and σ if asked, by the marginal likelihood (type-II maximum likelihood).

        Parameters
        ----------
        per_layer : bool, default False
            One δ a layer instead of one for all.
        noise : bool, default False
            Also σ, of a Gaussian likelihood.
        max_steps : int, default 200
            Of L-BFGS on the logarithms, which are kept within ±23: without evidence for the weights δ grows
            towards that bound.

        Returns
        -------
        Laplace
            The same posterior with other hyper-parameters.

        Raises
        ------
        ArgumentError
            If ``noise`` is asked for in a classification, or ``max_steps < 1``.
        ConvergenceError
            If the optimum was not reached.
        """
        if noise and self.likelihood != "gaussian":
            raise ArgumentError(f"optimize_prior_precision: noise=True has no meaning for {self.likelihood!r}")
        if max_steps < 1:
            raise ArgumentError(f"optimize_prior_precision: expected max_steps >= 1, got {max_steps}")
        start = self._priors(self.prior_precision)
        start = start.log() if per_layer else start.log().mean().unsqueeze(0)
        start = torch.cat([start, self.sigma_noise.log().unsqueeze(0)]) if noise else start

        def split(logs: Tensor) -> tuple[Tensor, Tensor]:
            values = logs.exp()
            priors = values[:-1] if noise else values
            return (priors if per_layer else priors[0]), (values[-1] if noise else self.sigma_noise)

        def objective(logs: np.ndarray) -> tuple[float, np.ndarray]:
            at = torch.tensor(logs, dtype=torch.float64, device=start.device, requires_grad=True)
            priors, sigma = split(at)
            value = -self.log_marginal_likelihood(priors, sigma if noise else None)
            (gradient,) = torch.autograd.grad(value, at)
            return float(value.detach()), gradient.cpu().numpy()

        found = minimize(
            objective,
            start.cpu().numpy(),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-23.0, 23.0)] * len(start),
            options={"maxiter": max_steps, "ftol": 1e-14, "gtol": 1e-7 * max(1.0, self.layout.size**0.5)},
        )
        if not found.success:
            raise ConvergenceError(
                f"optimize_prior_precision: not at the optimum after {found.nit} steps ({found.message}); raise "
                "max_steps, or start from other values (dataclasses.replace)"
            )
        priors, sigma = split(torch.tensor(found.x, dtype=torch.float64, device=start.device))
        return replace(self, prior_precision=priors, sigma_noise=sigma)

    def predictive(
        self,
        inputs: Any,
        *,
        link: Literal["probit", "sampled"] = "probit",
        num_samples: int = 1000,
        generator: Generator | None = None,
    ) -> Predictive:
        """Predict with the model linearised at θ*: z(θ) = z* + J (θ - θ*), a Gaussian.

        Parameters
        ----------
        inputs : object
            One batch, as the loader gave them.
        link : {"probit", "sampled"}, default "probit"
            How a classification averages over outputs. "probit": softmax(z / √(1 + π v / 8)), v the variances, which
            leaves correlations between outputs out. "sampled": the mean of the softmax of Gaussian draws. A Bernoulli
            likelihood likewise, with the sigmoid.
        num_samples : int, default 1000
            Draws, for "sampled"; their standard error is at most 0.5 / √num_samples.
        generator : torch.Generator, optional
            Source of the draws. Default: torch's global generator.

        Returns
        -------
        Predictive
            In the dtype of the outputs, without a graph.

        Raises
        ------
        ArgumentError
            If the link is unknown or ``num_samples < 1``.
        ShapeError
            If the outputs are not (B, C).

        Notes
        -----
        C backward passes through activations. Memory B C p for layers of p outputs that see one position an example,
        B C P in all others and for ``structure="full"``, which also factors its matrix anew.
        """
        if link not in ("probit", "sampled"):
            raise ArgumentError(f"predictive: link must be probit or sampled; got {link!r}")
        if num_samples < 1:
            raise ArgumentError(f"predictive: expected num_samples >= 1, got {num_samples}")
        rows: dict[str, list[Captured]] = {name: [] for name in self.layers}
        stream = LayerStream(self.layers, lambda found: rows[found.layer.name].append(found))
        with dgrad_only(self.model), stream, stream.batch():
            outputs = matrix_outputs(self.outputs_fn(self.model, to_device(inputs, self.squared_norms.device)))
            for column in output_hessian_columns(outputs, "gaussian"):
                stream.backward(outputs, column, keep=True)
        mean = outputs.detach()
        priors, tau = self._priors(self.prior_precision), self.sigma_noise**-2
        covariance = self.precision.covariance(rows, tau, priors).to(mean.dtype)
        if self.likelihood == "gaussian":
            return Predictive(mean, covariance, noise_variance=(self.sigma_noise**2).to(mean.dtype))
        activation = torch.sigmoid if self.likelihood == "bernoulli" else lambda z: z.softmax(-1)
        if link == "probit":
            shrunk = mean / (1 + math.pi / 8 * covariance.diagonal(dim1=1, dim2=2)).sqrt()
            return Predictive(mean, covariance, probabilities=activation(shrunk))
        values, vectors = torch.linalg.eigh(covariance.double())
        root = vectors * values.clamp(min=0).sqrt().unsqueeze(1)
        noise = gaussian_columns(
            num_samples, mean.numel(), dtype=torch.float64, device=mean.device, generator=generator
        ).reshape(num_samples, *mean.shape, 1)
        draws = mean + (root @ noise).squeeze(-1)
        return Predictive(mean, covariance, probabilities=activation(draws).mean(0).to(mean.dtype))

    def samples(self, num_samples: int, *, generator: Generator | None = None) -> Tensor:
        """Draw weights from the posterior.

        Parameters
        ----------
        num_samples : int
            S >= 1.
        generator : torch.Generator, optional
            Source of the draws. Default: torch's global generator.

        Returns
        -------
        Tensor, shape (S, P)
            In the order of ``layout`` and the dtype of the parameters; ``layout.unflatten`` names them, for
            `torch.func.functional_call`.

        Raises
        ------
        ArgumentError
            If ``num_samples < 1``.
        """
        if num_samples < 1:
            raise ArgumentError(f"samples: expected num_samples >= 1, got {num_samples}")
        device = self.squared_norms.device
        noise = gaussian_columns(
            self.layout.size, num_samples, dtype=torch.float64, device=device, generator=generator
        ).T
        draws = self.precision.unwhiten(noise, self.sigma_noise**-2, self._priors(self.prior_precision))
        named = {}
        for name, layer in self.layers.items():
            pieces = [layer.grads_from_matrix(matrix) for matrix in draws[name]]
            named |= {key: torch.stack([piece[key] for piece in pieces]) for key in pieces[0]}
        here = {name: self.model.get_parameter(name).detach() for name in self.layout.names}
        return self.layout.flatten({name: (named[name] + here[name]).to(here[name].dtype) for name in here})

    def save(self, path: str | os.PathLike[str]) -> FileEntry:
        """Write H, the hyper-parameters and the data term to one safetensors file; the model's weights are not in it.

        Parameters
        ----------
        path : str or PathLike
            Replaced in one step if it exists.

        Returns
        -------
        FileEntry
            Size and checksum.

        Raises
        ------
        WriteError
            If the operating system refuses.
        """
        tensors = self.precision.tensors() | {
            "log_likelihood": self.log_likelihood,
            "squared_norms": self.squared_norms,
            "prior_precision": self.prior_precision.detach(),
            "sigma_noise": self.sigma_noise.detach(),
        }
        metadata = {
            "kind": "hesse.laplace",
            "likelihood": self.likelihood,
            "structure": self.structure,
            "layers": json.dumps({name: layer.has_bias for name, layer in self.layers.items()}),
            "num_observations": str(self.num_observations),
            "model": hash_tensors(self.model.state_dict()),
        }
        return save_tensors(path, tensors, metadata)

    def _priors(self, value: Tensor | float) -> Tensor:
        priors = positive("prior_precision", value, self.squared_norms)
        count = len(self.layers)
        if priors.shape not in ((), (count,)):
            raise ShapeError(f"prior_precision: expected shape () or ({count},), got {tuple(priors.shape)}")
        return priors.expand(count)


def load_laplace(path: str | os.PathLike[str], model: nn.Module, *, outputs_fn: OutputsFn | None = None) -> Laplace:
    """Read a posterior that `Laplace.save` wrote.

    Parameters
    ----------
    path : str or PathLike
        The file.
    model : nn.Module
        With the weights that the posterior was fitted at; its state is compared by checksum.
    outputs_fn : callable, optional
        As of `laplace`.

    Returns
    -------
    Laplace
        On the device of the model.

    Raises
    ------
    ArtifactError
        If the file is damaged, not one of these, or of another model.
    """
    metadata = tensor_metadata(path)
    if metadata.get("kind") != "hesse.laplace":
        raise ArtifactError(f"{path}: not a Laplace posterior; write one with Laplace.save")
    if metadata["model"] != hash_tensors(model.state_dict()):
        raise ArtifactError(f"{path}: fitted at other weights than those of this model; load them, or fit anew")
    try:
        biased: dict[str, bool] = json.loads(metadata["layers"])
        found = select_layers(model, lambda name, _module: name in biased, allow_head=True)
        layers = {name: replace(found[name], has_bias=has_bias) for name, has_bias in biased.items()}
        names = {name for layer in layers.values() for name in parameter_names(layer)}
        parameters = {name: p for name, p in model.named_parameters() if name in names}
        tensors = load_tensors(path, device=next(iter(parameters.values())).device)
        precision = read_precision(tensors, layers, metadata["structure"])
        numbers = {key: tensors[key] for key in ("log_likelihood", "squared_norms", "prior_precision", "sigma_noise")}
        observations = int(metadata["num_observations"])
    except (KeyError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path}: damaged, or of another version: {error!r}. Fit anew.") from error
    structure: Any = metadata["structure"]
    likelihood: Any = metadata["likelihood"]
    return Laplace(
        model=model,
        layers=layers,
        layout=ParameterLayout.of(parameters),
        likelihood=likelihood,
        structure=structure,
        precision=precision,
        num_observations=observations,
        outputs_fn=outputs_fn or call_model,
        **numbers,
    )
