"""The system that influence asks for: the true Gauss-Newton matrix of the tracked weights, damped matrix by matrix.

    A = (1/N) Σ_n J_nᵀ H_n J_n + diag(λ_ℓ),     J_n = ∂ logits of sequence n / ∂ tracked weights

Cross terms of layers, and of tokens within a sequence, are in it. Shapes: P tracked weights in all, Q queries.
"""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from hesse.curvature.ggn import cross_entropy_hessian, ggn
from hesse.curvature.layers import TrackedLayer, select_layers
from hesse.errors import ArgumentError, ShapeError
from hesse.influence.examples import Examples, as_examples, plan_batches
from hesse.influence.factors import Factors
from hesse.influence.gradients import collated
from hesse.influence.objective import CausalLMLoss, ClassificationLoss, Loss, RegressionLoss, SoftmaxTokens
from hesse.influence.passes import check_model
from hesse.linalg.basic import Diagonal
from hesse.linalg.layout import ParameterLayout
from hesse.linalg.operator import LinearOperator

__all__ = ["DampedGaussNewton", "damped_ggn"]

Matrices = Mapping[str, Tensor]


class _Outputs(nn.Module):
    """The logits that a batch is judged by, zero where nothing is supervised, as a module whose weights can be swapped.

    A position at which nothing is supervised then has no derivative, and the output Hessian needs no mask.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        output = self.loss(self.model, batch)
        return output.logits * output.valid.unsqueeze(-1).to(output.logits.dtype)


@dataclass(frozen=True)
class DampedGaussNewton:
    """A = G + diag(λ) on stacked per-layer gradients, with the factors that approximate it.

    Attributes
    ----------
    model, loss, examples : nn.Module, Loss, Examples
        Whose Gauss-Newton matrix it is.
    numbers : tuple of int
        The sequences that it is the mean over: those the factors were fitted on.
    factors : Factors
        Give λ and the preconditioner.
    layers : mapping of str to TrackedLayer
        Those whose λ is finite; an expert that no sequence reached takes no part, and its solution is zero.
    batch_tokens : int
        Padded tokens a batch.
    """

    model: nn.Module
    loss: Loss
    examples: Examples
    numbers: tuple[int, ...]
    factors: Factors
    layers: Mapping[str, TrackedLayer]
    batch_tokens: int
    layout: ParameterLayout
    tensors: Mapping[str, Tensor]

    def operator(self, *, columns: int = 16, numbers: Items[int] | None = None) -> LinearOperator:
        """Make A an operator of order P, over all sequences or a minibatch of them.

        Parameters
        ----------
        columns : int, default 16
            Columns that share one vectorised product.
        numbers : sequence of int, optional
            The mean is over these, numbers in ``examples``. Default: all that the factors were fitted on.

        Returns
        -------
        LinearOperator, shape (P, P)
            Symmetric positive semi-definite, definite where every λ is positive. A product costs about a forward and a
            gradient a column and sequence; nothing is kept between products.
        """
        chosen = self.numbers if numbers is None else tuple(numbers)
        order = [self._lengths[n] for n in chosen]
        batches = [
            tuple(chosen[place] for place in places)
            for places in plan_batches(order, range(len(chosen)), self.batch_tokens)
        ]
        outputs = _Outputs(self.model, self.loss)

        def outputs_fn(weights: Matrices, indices: tuple[int, ...]) -> Tensor:
            batch = collated(self.examples, indices, next(iter(weights.values())).device)
            swapped = {f"model.{name}": weight for name, weight in weights.items()}
            return torch.func.functional_call(outputs, swapped, (batch,))

        # batches are numbers of sequences, collated anew in every product, so that no more than one is held
        summed = ggn(outputs_fn, self.tensors, batches, output_hessian(self.loss), block_size=columns)
        return summed * (1 / len(chosen)) + Diagonal(self.damping)

    @cached_property
    def _lengths(self) -> Items[int]:
        # known once, as a stream is read to tell them, and a minibatch is an operator of its own
        return self.examples.lengths

    @property
    def damping(self) -> Tensor:
        """λ of every weight, shape (P,)."""
        named: dict[str, Tensor] = {}
        first = next(iter(self.tensors.values()))
        for name, layer in self.layers.items():
            shape = (layer.out_features, layer.columns)
            full = torch.full(shape, self.factors[name].damping, dtype=first.dtype, device=first.device)
            named |= layer.grads_from_matrix(full)
        return self.layout.flatten(named)

    def flatten(self, matrices: Matrices) -> Tensor:
        """Lay stacked gradients out as columns.

        Parameters
        ----------
        matrices : mapping of str to Tensor, shapes (Q, p, m)
            One a layer, the bias in the last column.

        Returns
        -------
        Tensor, shape (P, Q)
            In the dtype of the matrices.

        Raises
        ------
        ArgumentError
            If a layer is missing.
        ShapeError
            If a stack does not fit its layer, or they differ in length.
        """
        named: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            if name not in matrices:
                raise ArgumentError(f"gradients: no layer {name!r}, which the factors have")
            stack, wanted = matrices[name], (layer.out_features, layer.columns)
            if stack.ndim != 3 or stack.shape[1:] != wanted:
                raise ShapeError(f"gradients: layer {name!r} is {tuple(stack.shape)}, expected (Q, *{wanted})")
            named |= torch.vmap(layer.grads_from_matrix)(stack)
        return self.layout.flatten(named).T

    def unflatten(self, columns: Tensor) -> dict[str, Tensor]:
        """Cut columns into stacked matrices; the inverse of `flatten`.

        Parameters
        ----------
        columns : Tensor, shape (P, Q)
            As `flatten` gives.

        Returns
        -------
        dict of str to Tensor, shapes (Q, p, m)
            One a layer.
        """
        named = self.layout.unflatten(columns.T)
        return {name: torch.vmap(layer.matrix_from_grads)(named) for name, layer in self.layers.items()}

    def precondition(self, columns: Tensor) -> Tensor:
        """Apply the factors' inverse, layer by layer.

        Parameters
        ----------
        columns : Tensor, shape (P, Q)
            As `flatten` gives.

        Returns
        -------
        Tensor, shape (P, Q)
            In the dtype of the columns.
        """
        matrices = {name: self.factors.precondition(name, stack) for name, stack in self.unflatten(columns).items()}
        return self.flatten(matrices).to(columns.dtype)


def damped_ggn(
    model: nn.Module,
    dataset: Any,
    factors: Factors,
    *,
    loss: Loss | None = None,
    numbers: Items[int] | None = None,
    batch_tokens: int = 4096,
) -> DampedGaussNewton:
    """Set up the damped Gauss-Newton matrix that fitted factors approximate.

    Parameters
    ----------
    model : nn.Module
        The one that the factors were fitted on, in eval mode, in float32 or float64.
    dataset : Examples, or anything `as_examples` takes
        The training set.
    factors : Factors
        Fitted with strategy "ekfac", "kfac", "shampoo" or "diagonal"; their layers are the tracked ones.
    loss : Loss, default CausalLMLoss()
        The training objective. Its output Hessian is that of a softmax or of a squared error where its ``cotangents``
        are those of this package's losses; otherwise it is summed from ``cotangents``, one term a column.
    numbers : sequence of int, optional
        The sequences that the factors were fitted on. Default: all.
    batch_tokens : int, default 4096
        Padded tokens a batch.

    Returns
    -------
    DampedGaussNewton
        To hand to `solve`. Nothing has been computed yet.

    Raises
    ------
    ArgumentError
        If the model is in training mode or half precision, or the factors have no damping.
    """
    check_model(model)
    examples = as_examples(dataset)
    layers = select_layers(model, lambda name, _module: name in factors.layers, allow_head=True)
    if len(layers) != len(factors.layers):
        missing = sorted(set(factors.layers) - set(layers))
        raise ArgumentError(f"factors: the model has no layer {missing[0]!r}; they belong to another model")
    if any(factor.table is None for factor in factors.layers.values()):
        raise ArgumentError("factors: those of strategy 'identity' have no damping; fit with strategy='ekfac'")
    reached = {name: layer for name, layer in layers.items() if factors[name].damping != float("inf")}
    parameters = dict(model.named_parameters())
    wanted = {n for layer in reached.values() for n in layer.grads_from_matrix(_empty(layer))}
    tensors = {name: parameter.detach() for name, parameter in parameters.items() if name in wanted}
    dtype = next(iter(tensors.values())).dtype
    if dtype not in (torch.float32, torch.float64):
        raise ArgumentError(f"model: expected float32 or float64 for products with its curvature, got {dtype}")
    chosen = tuple(range(len(examples))) if numbers is None else tuple(numbers)
    objective: Loss = CausalLMLoss() if loss is None else loss
    layout = ParameterLayout.of(tensors)
    return DampedGaussNewton(model, objective, examples, chosen, factors, reached, batch_tokens, layout, tensors)


def _empty(layer: TrackedLayer) -> Tensor:
    return torch.empty(layer.out_features, layer.columns, device="meta")


def output_hessian(loss: Loss) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """Find the product with the Hessian of the loss in its logits, by what ``cotangents`` the loss has.

    Parameters
    ----------
    loss : Loss
        The training objective.

    Returns
    -------
    callable
        (logits, tangent, batch) -> H tangent.
    """
    found = getattr(type(loss), "cotangents", None)
    if found in (SoftmaxTokens.cotangents, ClassificationLoss.cotangents):
        return cross_entropy_hessian
    if found is RegressionLoss.cotangents:
        return lambda _logits, tangent, _batch: tangent

    def from_columns(logits: Tensor, tangent: Tensor, _batch: Any) -> Tensor:
        total = torch.zeros_like(tangent)
        everywhere = torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
        inner = tuple(range(1, logits.ndim))
        for column in loss.cotangents(logits, everywhere):  # one term of H for every sequence of the batch
            total = total + column * (column * tangent).sum(inner, keepdim=True)
        return total

    return from_columns
