"""How far the gradients and Hessians of a head are apart on each pair of domains, and through which statistics.

Shapes: E domains, M = E (E - 1) / 2 pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Generator, Tensor, nn

from hesse.curvature.alignment._precision import without_autocast
from hesse.curvature.alignment.domains import (
    Domain,
    HeadCurvature,
    Loss,
    dense_hessian,
    head_curvatures,
    is_linear,
    require_several,
)
from hesse.curvature.alignment.linear_head import LinearHead
from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.linalg.basic import Dense
from hesse.linalg.eigen.eigsh import eigsh
from hesse.linalg.operator import LinearOperator

__all__ = ["AlignmentReport", "alignment_report", "head_inputs"]

_MEANING = {
    "error_weighted_means": "E[(p - y) φ], features weighted by the errors",
    "errors": "E[p - y], classes predicted too often or too rarely",
    "second_moments": "E[S ⊗ φ φᵀ], second moments of the features, as CORAL, weighted by confidence",
    "curvature_weighted_means": "E[S ⊗ φ], means of the features, weighted by confidence",
    "confidence": "E[S], S = diag(p) - p pᵀ for softmax",
    "loss": "L_e, as V-REx",
    "scale_derivative": "dL_e(w z)/dw, as IRM",
    "gradient_variance": "variance of per-example gradients, as Fishr",
}


@dataclass(frozen=True, slots=True)
class AlignmentReport:
    """Distances between domains, one a pair; every one is non-negative, and zero means aligned."""

    pairs: tuple[tuple[int, int], ...]  # M pairs (e, f)
    spectral: Tensor  # (M,), ‖H_e - H_f‖₂: bounds how much worse a head good on e can be on f
    frobenius: Tensor  # (M,), ‖H_e - H_f‖_F
    diagonal: Tensor  # (M,), ‖diag H_e - diag H_f‖
    gradient: Tensor  # (M,), ‖g_e - g_f‖
    gradient_product: Tensor  # (M,), ‖H_e g_e - H_f g_f‖
    losses: Tensor  # (E,), L_e in nats for the entropies
    attributes: Mapping[str, Tensor]  # (M,) each, the statistics that differ; see `explain`
    converged: bool  # whether the spectral norms reached the tolerance of `hesse.linalg.eigsh`

    def explain(self) -> str:
        """Say which statistics of the domains differ.

        Returns
        -------
        str
            One block a pair: distances of gradient and Hessian, then what they are made of. For a linear head the
            squares of error-weighted means and errors add up to that of the gradient's distance; those of second
            moments, curvature-weighted means (twice) and confidence to that of the Hessian's, in the Frobenius norm.
        """
        lines: list[str] = []
        for i, (e, f) in enumerate(self.pairs):
            lines.append(f"domains {e} and {f}: losses {float(self.losses[e]):.4g} and {float(self.losses[f]):.4g}")
            for name in ("gradient", "gradient_product", "diagonal", "frobenius", "spectral"):
                lines.append(f"  {name:<28}{float(getattr(self, name)[i]):.4g}")
            lines.extend(
                f"    {name:<26}{float(gap[i]):<12.4g}{_MEANING[name]}" for name, gap in self.attributes.items()
            )
        return "\n".join(lines)


def head_inputs(module: nn.Module, head: nn.Module, inputs: Any) -> Tensor:
    """Run a network and return what its head was applied to.

    Parameters
    ----------
    module : nn.Module
        The network.
    head : nn.Module
        The submodule that ends it: whatever follows its output would be ignored.
    inputs : object
        What the network is called with.

    Returns
    -------
    Tensor, shape (N, ...)
        Features, with their graph.

    Raises
    ------
    ArgumentError
        If the head is not called exactly once, or its output is not the network's.
    ArgumentTypeError
        If one of the two is no module.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> head_inputs(net, net[2], torch.ones(5, 4)).shape
    torch.Size([5, 3])
    """
    for name, value in (("module", module), ("head", head)):
        if not isinstance(value, nn.Module):
            raise ArgumentTypeError(f"head_inputs: {name} must be a module, got {type(value).__name__}")
    seen: list[tuple[Tensor, Any]] = []

    def remember(_module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        seen.append((given[0], output))

    handle = head.register_forward_hook(remember)
    try:
        outputs = module(inputs)
    finally:
        handle.remove()
    if len(seen) != 1 or seen[0][1] is not outputs:
        raise ArgumentError(
            f"head_inputs: the head must be called once and last in the network, so that its output is the logits; it "
            f"was called {len(seen)} times"
        )
    return seen[0][0]


def alignment_report(
    module: nn.Module,
    head: nn.Module,
    domains: Sequence[tuple[Any, Tensor]],
    *,
    loss: Loss = "cross_entropy",
    tol: float | None = None,
    generator: Generator | None = None,
) -> AlignmentReport:
    """Measure how far gradient and Hessian of a head are apart, for each pair of domains.

    Parameters
    ----------
    module : nn.Module
        The network, run in the mode it is in; call ``eval()`` first if it has dropout.
    head : nn.Module
        Its last submodule; see `head_inputs`.
    domains : sequence of (inputs, targets)
        What the network is called with. All of a domain at once: H_e is of the mean over it.
    loss : str or callable, default "cross_entropy"
        As in `hgp_penalty`.
    tol : float, optional
        Of the Lanczos iteration for the spectral norm; see `hesse.linalg.eigsh` for the default.
    generator : torch.Generator, optional
        Source of its starting vector. Default: torch's global generator.

    Returns
    -------
    AlignmentReport
        Without graph, in the dtype of features and head, but computed in float64 for a linear head. Exact to rounding
        but for the spectral norms, which Lanczos approaches from below.

    Raises
    ------
    ArgumentError
        If there is one domain, one is empty, a target is out of range, or the head does not end the network.
    ArgumentTypeError
        If module or head is no module, or targets are no tensor.
    ShapeError
        If features, targets and head do not fit together.
    MemoryLimitError
        If the head is not linear and has more than 4096 parameters.

    Notes
    -----
    For a linear head of D parameters the Frobenius norm takes min(D, N_e + N_f)² memory, the spectral norm some tens of
    products with the Hessian. Another head's Hessian is formed.

    References
    ----------
    S. Hemati, G. Zhang, A. Estiri, X. Chen (2023), ICCV, arXiv 2308.11778.
    """
    require_several("alignment_report", domains, False)
    with torch.no_grad():
        featured: list[Domain] = [(head_inputs(module, head, inputs), targets) for inputs, targets in domains]
        return _measure(featured, head, loss, tol, generator)


@without_autocast
def _measure(
    domains: Sequence[Domain], head: nn.Module, loss: Loss, tol: float | None, generator: Generator | None
) -> AlignmentReport:
    dtype = torch.promote_types(domains[0][0].dtype, torch.float32)
    if is_linear(head) and not callable(
        loss
    ):  # differences of nearly equal matrices need the digits, and cost little more
        domains = [(features.double(), targets) for features, targets in domains]
    curvatures = head_curvatures("alignment_report", domains, head, loss)
    pairs = tuple(combinations(range(len(curvatures)), 2))
    linear = [c for c in curvatures if isinstance(c, LinearHead)]
    measured = _linear_distances(linear, pairs) if linear else _dense_distances(curvatures, pairs)
    gradients = [c.gradient() for c in curvatures]
    losses = [c.value() for c in curvatures]
    tops = [eigsh(gap, 1, which="LM", tol=tol, generator=generator) for gap in measured.gaps]
    statistics = {
        "loss": losses,
        "scale_derivative": [c.scale_derivative() for c in curvatures],
        "gradient_variance": [c.gradient_variance() for c in curvatures],
    }
    attributes = measured.attributes | {name: _distances(rows, pairs) for name, rows in statistics.items()}
    return AlignmentReport(
        pairs=pairs,
        spectral=torch.stack([top.eigenvalues[0].abs() for top in tops]).to(dtype),
        frobenius=measured.frobenius.to(dtype),
        diagonal=measured.diagonal.to(dtype),
        gradient=_distances(gradients, pairs).to(dtype),
        gradient_product=_distances([c.product(g) for c, g in zip(curvatures, gradients, strict=True)], pairs).to(
            dtype
        ),
        losses=torch.stack(losses).to(dtype),
        attributes={name: gap.to(dtype) for name, gap in attributes.items()},
        converged=all(top.converged for top in tops),
    )


@dataclass(frozen=True, slots=True)
class _HessianDistances:
    gaps: list[LinearOperator]  # H_e - H_f, one a pair
    frobenius: Tensor  # (M,)
    diagonal: Tensor  # (M,)
    attributes: dict[str, Tensor]  # (M,) each


class _Gap(LinearOperator):
    """H_e - H_f, symmetric by construction: rounding that shows where the two nearly agree is no fault of theirs."""

    _fields = ("one", "other")

    def __init__(self, one: LinearOperator, other: LinearOperator) -> None:
        super().__init__(one.shape, one.dtype, one.device, is_symmetric=True)
        self.one, self.other = one, other

    def _matmat(self, x: Tensor) -> Tensor:
        return self.one.matmat(x) - self.other.matmat(x)

    def validate_symmetry(self) -> None:
        """Trust the construction."""


def _distances(rows: Sequence[Tensor], pairs: Sequence[tuple[int, int]]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(rows[e] - rows[f]) for e, f in pairs])


def _dense_distances(curvatures: Sequence[HeadCurvature], pairs: Sequence[tuple[int, int]]) -> _HessianDistances:
    dense = [dense_hessian(c) for c in curvatures]
    dense = [(matrix + matrix.mT) / 2 for matrix in dense]  # symmetric to rounding only
    gaps: list[LinearOperator] = [Dense(dense[e] - dense[f], is_symmetric=True) for e, f in pairs]
    return _HessianDistances(
        gaps, _distances(dense, pairs), _distances([matrix.diagonal() for matrix in dense], pairs), {}
    )


def _linear_distances(heads: Sequence[LinearHead], pairs: Sequence[tuple[int, int]]) -> _HessianDistances:
    # with a_i = (φ_i, 1): (a_i · a_j)² = (φ_i · φ_j)² + 2 φ_i · φ_j + 1, the blocks of the Hessian one by one
    bias, width = heads[0].bias, heads[0].features.shape[1]
    gradients = [head.gradient() for head in heads]
    attributes = {"error_weighted_means": _distances([g[:, :width] for g in gradients], pairs)}
    blocks = torch.stack([_blocks(heads[e], heads[f]) for e, f in pairs])  # (M, 3), squares
    if bias:
        attributes["errors"] = _distances([g[:, width:] for g in gradients], pairs)
    attributes["second_moments"] = blocks[:, 0].sqrt()
    if bias:
        attributes["curvature_weighted_means"] = blocks[:, 1].sqrt()
        attributes["confidence"] = blocks[:, 2].sqrt()
    counts = blocks.new_tensor([1, 2, 1] if bias else [1, 0, 0])
    hessians = [head.hessian() for head in heads]
    return _HessianDistances(
        [_Gap(hessians[e], hessians[f]) for e, f in pairs],
        (blocks @ counts).sqrt(),
        _distances([head.diagonal() for head in heads], pairs),
        attributes,
    )


def _blocks(one: LinearHead, other: LinearHead) -> Tensor:
    # squared norms of the weight-weight, weight-bias and bias-bias blocks of H_e - H_f, in whichever space is smaller
    order = one.shape[0] * one.shape[1]
    formed = order <= len(one.features) + len(other.features)
    return (_formed_blocks if formed else _kernel_blocks)(one, other)


def _formed_blocks(one: LinearHead, other: LinearHead) -> Tensor:
    gap = one.hessian().to_dense() - other.hessian().to_dense()
    p = one.features.shape[1]
    blocks = gap.unflatten(0, one.shape).unflatten(-1, one.shape)  # (K, Q, K, Q)
    parts = blocks[:, :p, :, :p], blocks[:, :p, :, p:], blocks[:, p:, :, p:]
    return torch.stack([part.square().sum() for part in parts])


def _kernel_blocks(one: LinearHead, other: LinearHead) -> Tensor:
    # a difference of sums, hence not below zero only to rounding
    features = torch.cat([one.features, other.features])
    kernel = one.loss.curve_gram(torch.cat([one.logits, other.logits]))
    sizes = len(one.features), len(other.features)
    weights = torch.cat([features.new_full((sizes[0],), 1 / sizes[0]), features.new_full((sizes[1],), -1 / sizes[1])])
    dots = features @ features.mT
    squares = [weights @ (kernel * power) @ weights for power in (dots.square(), dots, torch.ones_like(dots))]
    return torch.stack(squares).clamp_min(0)
