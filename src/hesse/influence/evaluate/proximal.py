"""The proximal Bregman objective of a trained model, evaluated for many responses at once.

    PBO(θ, s) = (1/N) Σ_n [D_n(θ) + s_n L(z_n, θ)] + ½ Σ_ℓ λ_ℓ ‖θ_ℓ - θs_ℓ‖²

D_n is the Bregman divergence of the outputs from those at the trained weights θs; s_n copies of sequence n are added.
Shapes: P tracked weights, K responses, N sequences.
"""

import copy
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.influence.engine import Influence
from hesse.influence.evaluate.functional import Weights, batches_of
from hesse.influence.examples import Examples
from hesse.influence.factors import Factors
from hesse.influence.objective import LossOutput
from hesse.influence.solvers import damped_ggn
from hesse.influence.swapping import call_with
from hesse.linalg.cholesky import safe_cholesky
from hesse.linalg.solvers import cg

__all__ = ["ProximalObjective"]

_DENSE = 2048  # tracked weights up to which G + λ is factored once: 32 MiB, and P products, spared by a few responses

_COLUMNS = 64  # of the identity at a time, of so small a model


@dataclass(frozen=True)
class _Wide:
    """A data set whose floating tensors come in float64, for a model in float64."""

    examples: Examples

    def __getattr__(self, name: str) -> Any:
        return getattr(self.examples, name)

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, indices: Items[int]) -> dict[str, Tensor]:
        found = self.examples.batch(indices)
        return {key: value.double() if value.is_floating_point() else value for key, value in found.items()}

    def fingerprint(self) -> str:
        return self.examples.fingerprint()


def widened(examples: Examples) -> Examples:
    """Let every batch come in float64.

    Parameters
    ----------
    examples : Examples
        Of any dtype; token ids stay whole numbers.

    Returns
    -------
    data : Examples
        The same sequences.
    """
    return cast("Examples", _Wide(examples))


class ProximalObjective:
    """PBO of one model in float64, with its gradient, and solves with the damped Gauss-Newton matrix at θs.

    Parameters
    ----------
    influence : Influence
        Model, loss and tracked layers; the other weights are held fixed. A copy of the model in float64 is used.
    factors : Factors
        Fitted on it: they give λ_ℓ and the preconditioner.
    examples : Examples
        The training set.
    batch_tokens : int, default 4096
        Padded tokens a batch; all batches, and the outputs at θs, are kept.
    at_once : int, default 32
        Responses evaluated by one vectorised call.

    Raises
    ------
    ArgumentError
        If the factors have no damping, or are another model's.
    """

    def __init__(
        self, influence: Influence, factors: Factors, examples: Examples, *, batch_tokens: int = 4096, at_once: int = 32
    ) -> None:
        if at_once < 1:
            raise ArgumentError(f"at_once: expected >= 1, got {at_once}")
        self.model = copy.deepcopy(influence.model).double()
        self.loss, self.total, self.at_once = influence.loss, len(examples), at_once
        wide = widened(examples)
        self.system = damped_ggn(self.model, wide, factors, loss=self.loss, batch_tokens=batch_tokens)
        self.layout, self.center = self.system.layout, self.system.tensors
        self.damping = self.system.damping
        if not bool((self.damping > 0).all()):
            raise ArgumentError("factors: a damping of zero leaves the response undefined; fit with a positive one")
        self._batches = [self._at_start(*pair) for pair in batches_of(wide, self.model, batch_tokens)]
        self.model.requires_grad_(False)  # displacements are differentiated, not the weights they are added to

    def _at_start(self, indices: list[int], batch: dict[str, Tensor]) -> dict[str, Any]:
        # D_n = L(θ) - L(θs) - <∂L/∂outputs at θs, change of outputs>: the Bregman divergence of any convex loss
        with torch.enable_grad():
            output: LossOutput = call_with(self.model, self.loss, {}, batch)
            (slope,) = torch.autograd.grad(output.per_token.sum(), output.logits)
        return {
            "indices": indices,
            "batch": batch,
            "slope": slope,
            "logits": output.logits.detach(),
            "losses": output.per_token.detach().sum(1),
        }

    def moved(self, columns: Tensor) -> Weights:
        """θs + Δ for every column Δ.

        Parameters
        ----------
        columns : Tensor, shape (P, K)
            Displacements.

        Returns
        -------
        dict of str to Tensor
            Tracked weights, K in front.
        """
        return {name: self.center[name] + part for name, part in self.layout.unflatten(columns.T).items()}

    def value_and_gradient(self, columns: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
        """PBO, less its value at θs, and its gradient.

        Parameters
        ----------
        columns : Tensor, shape (P, K)
            Displacements from θs.
        copies : Tensor, shape (K, N)
            s_n of every response.

        Returns
        -------
        values : Tensor, shape (K,)
            In nats a sequence; 0 at no displacement.
        gradients : Tensor, shape (P, K)
            By the displacement.
        """
        pairs = zip(columns.split(self.at_once, 1), copies.split(self.at_once), strict=True)
        values, gradients = zip(*(self._chunk(part.T, shares) for part, shares in pairs), strict=True)
        return torch.cat(values), torch.cat(gradients).T

    def _chunk(self, shift: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
        # rows of displacements (K, P)
        value = (self.damping * shift.square()).sum(1) / 2
        gradient = self.damping * shift
        for fixed in self._batches:

            def objective(delta: Tensor, shares: Tensor, fixed: dict[str, Any] = fixed) -> Tensor:
                weights = {name: self.center[name] + part for name, part in self.layout.unflatten(delta).items()}
                output: LossOutput = call_with(self.model, self.loss, weights, fixed["batch"])
                rise = output.per_token.sum(1) - fixed["losses"]
                linear = (fixed["slope"] * (output.logits - fixed["logits"])).flatten(1).sum(1)
                return (rise - linear + shares * rise).sum() / self.total

            part, found = torch.vmap(torch.func.grad_and_value(objective))(shift, copies[:, fixed["indices"]])
            value, gradient = value + found, gradient + part
        return value, gradient

    def solver(self, rtol: float, max_steps: int) -> Callable[[Tensor], Tensor]:
        """Prepare solves with G + λ at θs.

        Parameters
        ----------
        rtol : float
            Of the residual, where the solve iterates.
        max_steps : int
            Of an iteration.

        Returns
        -------
        callable
            (P, K) -> (P, K). By a Cholesky factor up to 2048 tracked weights, beyond that by conjugate gradients that
            the factors precondition.
        """
        if self.layout.size <= _DENSE:
            dense = self.system.operator(columns=max(self.at_once, _COLUMNS)).to_dense().detach()
            lower = safe_cholesky((dense + dense.T) / 2).L
            return lambda columns: torch.cholesky_solve(columns, lower)
        operator = self.system.operator(columns=self.at_once)

        def iterate(columns: Tensor) -> Tensor:
            return cg(
                operator,
                columns,
                preconditioner=self.system.precondition,
                rtol=rtol,
                max_steps=max_steps,
                validate=False,
            ).x

        return iterate
