"""Fisher matrices of a likelihood on top of a model's outputs: exact, or sampled with labels drawn from the model.

    F = Σ_n J_nᵀ E[u uᵀ] J_n,   u = ∂(-log p(y | z_n))/∂z_n,   y ~ p(y | z_n)

The *empirical* Fisher matrix, with the data's own labels, is `hesse.curvature.ggn.fisher`.
Shapes: outputs z (..., V), S samples.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from hesse.curvature._binding import Function, Target
from hesse.curvature.ggn import GgnOperator, OutputHessian, cross_entropy_hessian, ggn, squared_error_hessian
from hesse.curvature.hessian import CurvatureOperator, Reduction
from hesse.errors import ArgumentError, ShapeError

__all__ = ["Likelihood", "bernoulli_hessian", "exact_fisher", "sampled_fisher", "sampled_score"]

Likelihood = Literal["categorical", "bernoulli", "gaussian"]
"""Softmax over the last axis; a sigmoid of each output; unit variance around each output."""


def bernoulli_hessian(outputs: Tensor, tangent: Tensor, _batch: Any = None) -> Tensor:
    """Multiply by p (1 - p), p = σ(z): the output Hessian of summed binary cross-entropy, for any labels.

    Parameters
    ----------
    outputs : Tensor
        Logits z, one a yes-no question.
    tangent : Tensor
        t, of the same shape.

    Returns
    -------
    Tensor
        p (1 - p) t.
    """
    p = outputs.sigmoid()
    return p * (1 - p) * tangent


_HESSIANS: dict[str, OutputHessian] = {
    "categorical": cross_entropy_hessian,
    "bernoulli": bernoulli_hessian,
    "gaussian": squared_error_hessian,
}


def exact_fisher(
    outputs_fn: Function,
    target: Target,
    batches: Any,
    likelihood: Likelihood = "categorical",
    *,
    names: Iterable[str] | None = None,
    reduction: Reduction = "sum",
    block_size: int = 16,
    keep_graph: bool = False,
) -> CurvatureOperator:
    """F with the expectation over labels taken exactly: for these likelihoods, the Gauss-Newton matrix.

    Parameters
    ----------
    outputs_fn : callable
        (model, batch) -> outputs z (..., V), the natural parameters of the likelihood; or (parameters, batch) -> z.
    target : nn.Module or mapping of str to Tensor
        The model (its parameters that require a gradient), or named tensors.
    batches : object, list, DataLoader or BatchStream
        One batch, a list of them, or a loader that is streamed; see `CurvatureOperator`.
    likelihood : {"categorical", "bernoulli", "gaussian"}, default "categorical"
        What the outputs parametrise.
    names : iterable of str, optional
        Only these parameters: a diagonal block of the matrix. Default: all.
    reduction : {"sum", "mean", "weighted_mean"}, default "sum"
        Over the batches; within a batch it is always the sum.
    block_size : int, default 16
        Columns a vectorised pass; see `CurvatureOperator`.
    keep_graph : bool, default False
        Keep the graph of the outputs between products; see `CurvatureOperator`.

    Returns
    -------
    CurvatureOperator, shape (P, P)
        Positive semi-definite; in nats per squared unit of the parameters.

    Raises
    ------
    ArgumentError
        If the likelihood is unknown, a name is, there are no batches, or an option is out of range.
    ArgumentTypeError
        If ``target`` is of another kind.
    ShapeError
        If the parameters differ in dtype or device.

    References
    ----------
    J. Martens (2020), JMLR 21(146), arXiv 1412.1193.
    """
    _check_likelihood("exact_fisher", likelihood)
    return ggn(
        outputs_fn,
        target,
        batches,
        _HESSIANS[likelihood],
        names=names,
        reduction=reduction,
        block_size=block_size,
        keep_graph=keep_graph,
    )


class SampledFisher(GgnOperator):
    """F with labels drawn from the model; see `sampled_fisher`, which makes it.

    Parameters
    ----------
    likelihood : str
        What the outputs parametrise.
    num_samples, seed : int
        Labels an output, and where they come from.
    function, target, batches, **options
        As of `CurvatureOperator`.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        num_samples: int,
        seed: int,
        function: Function,
        target: Target,
        batches: Any,
        **options: Any,
    ) -> None:
        super().__init__(_HESSIANS[likelihood], function, target, batches, **options)
        self.likelihood: Likelihood = likelihood
        self.num_samples = num_samples
        self.seed = seed

    def _curve(self, outputs: Tensor, batch: Any, index: int) -> Callable[[Tensor], Tensor]:
        if outputs.ndim == 0:
            raise ShapeError("sampled_fisher: outputs_fn must return one row an example, (..., V), got a scalar")
        # one generator a batch, on the CPU: the labels depend on neither the device nor the batches before
        generator = Generator().manual_seed((self.seed + index * 0x9E3779B97F4A7C15) % 2**63)
        scores = torch.stack([sampled_score(outputs, self.likelihood, generator) for _ in range(self.num_samples)])
        return lambda tangent: (scores * (scores * tangent).sum(-1, keepdim=True)).mean(0)


def sampled_fisher(
    outputs_fn: Function,
    target: Target,
    batches: Any,
    likelihood: Likelihood = "categorical",
    *,
    num_samples: int = 1,
    seed: int = 0,
    names: Iterable[str] | None = None,
    reduction: Reduction = "sum",
    block_size: int = 16,
    keep_graph: bool = False,
) -> CurvatureOperator:
    """F with the expectation replaced by a mean over S labels drawn from the model: unbiased for `exact_fisher`.

    Every row z_n of the outputs gets labels of its own; rows count as independent given θ, positions of a sequence
    among them. The labels are drawn anew in every product from a generator that ``seed`` and the number of the batch
    decide: one matrix as long as the parameters stay, and no labels to store.

    Parameters
    ----------
    outputs_fn : callable
        (model, batch) -> outputs z (..., V), the natural parameters of the likelihood; or (parameters, batch) -> z.
    target : nn.Module or mapping of str to Tensor
        The model (its parameters that require a gradient), or named tensors.
    batches : object, list, DataLoader or BatchStream
        One batch, a list of them, or a loader that is streamed; see `CurvatureOperator`.
    likelihood : {"categorical", "bernoulli", "gaussian"}, default "categorical"
        What the outputs parametrise.
    num_samples : int, default 1
        S labels a row; the spread of the matrix falls as 1/√S, and the rank is at most S times the rows.
    seed : int, default 0
        Of the labels.
    names : iterable of str, optional
        Only these parameters: a diagonal block of the matrix. Default: all.
    reduction : {"sum", "mean", "weighted_mean"}, default "sum"
        Over the batches; within a batch it is always the sum.
    block_size : int, default 16
        Columns a vectorised pass; see `CurvatureOperator`.
    keep_graph : bool, default False
        Keep the graph of the outputs, and the labels, between products; see `CurvatureOperator`.

    Returns
    -------
    CurvatureOperator, shape (P, P)
        Positive semi-definite. Its expectation over seeds is `exact_fisher`. Derivatives with respect to the parameters
        treat the labels as constants.

    Raises
    ------
    ArgumentError
        If the likelihood is unknown, ``num_samples < 1``, a name is unknown, there are no batches, or an option is out
        of range.
    ArgumentTypeError
        If ``target`` is of another kind.
    ShapeError
        If the parameters differ in dtype or device.

    References
    ----------
    F. Kunstner, L. Balles, P. Hennig (2019), NeurIPS, arXiv 1905.12558.
    """
    _check_likelihood("sampled_fisher", likelihood)
    if num_samples < 1:
        raise ArgumentError(f"sampled_fisher: expected num_samples >= 1, got {num_samples}")
    return SampledFisher(
        likelihood,
        num_samples,
        seed,
        outputs_fn,
        target,
        batches,
        names=names,
        reduction=reduction,
        block_size=block_size,
        keep_graph=keep_graph,
        is_psd=True,
    )


def _check_likelihood(call: str, likelihood: str) -> None:
    if likelihood not in _HESSIANS:
        raise ArgumentError(f"{call}: likelihood must be one of {', '.join(_HESSIANS)}; got {likelihood!r}")


def sampled_score(outputs: Tensor, likelihood: Likelihood, generator: Generator) -> Tensor:
    """∂(-log p(y | z))/∂z for one draw of y ~ p(y | z).

    Parameters
    ----------
    outputs : Tensor, shape (..., V)
        z; for "categorical" the last axis is the classes.
    likelihood : {"categorical", "bernoulli", "gaussian"}
        See `Likelihood`.
    generator : torch.Generator
        On the CPU: the same labels on every device.

    Returns
    -------
    Tensor, shape (..., V)
        Differentiable in the outputs, the draw held fixed.
    """

    def on_device(drawn: Tensor) -> Tensor:
        return drawn.to(outputs.device)

    wide = torch.float64 if outputs.dtype == torch.float64 else torch.float32
    if likelihood == "gaussian":
        return on_device(torch.randn(outputs.shape, generator=generator, dtype=wide)).to(outputs.dtype)
    if likelihood == "bernoulli":
        p, uniform = outputs.sigmoid(), on_device(torch.rand(outputs.shape, generator=generator, dtype=wide))
        return p - (uniform < p.detach()).to(outputs.dtype)
    p, uniform = outputs.softmax(-1), on_device(torch.rand(*outputs.shape[:-1], 1, generator=generator, dtype=wide))
    cumulative = p.detach().to(wide).cumsum(-1)
    labels = (uniform * cumulative[..., -1:] >= cumulative).sum(-1).clamp(max=p.shape[-1] - 1)  # by inversion
    return p - torch.nn.functional.one_hot(labels, p.shape[-1]).to(p.dtype)
