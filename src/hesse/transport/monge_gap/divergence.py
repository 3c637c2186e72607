"""A smooth distance of two clouds of points that is zero only where they agree.   Shapes: N points x, M points y."""

from torch import Tensor

from hesse.transport.costs import Cost, CostLike, as_cost
from hesse.transport.monge_gap._checks import two_clouds, weights_of
from hesse.transport.monge_gap._entropic import check_scale, entropic_plan, self_plan

__all__ = ["half_divergence", "sinkhorn_divergence"]


def sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    eps: float | None = None,
    cost: CostLike = "sqeuclidean",
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    relative_eps: float = 0.05,
    tol: float = 1e-3,
    max_steps: int = 2000,
) -> Tensor:
    """S = W(α, β) - W(α, α)/2 - W(β, β)/2, each W = min <P, C> + eps KL(P | product of its marginals).

    At least zero up to ``tol`` for costs of negative type (the squared and the plain distance), and zero if and only if
    the measures agree: the bias of the entropy cancels.

    Parameters
    ----------
    x : Tensor, shape (N, D)
        Points of α.
    y : Tensor, shape (M, D)
        Points of β.
    eps : float, optional
        Strength of the entropy, in units of the cost. Default: ``relative_eps`` times the mean of c(y_i, y_j).
    cost : str, Cost or callable, default "sqeuclidean"
        A symmetric ground cost; see `hesse.transport.as_cost`.
    a, b : Tensor, shapes (N,) and (M,), optional
        Positive weights; they are divided by their sums. Default: uniform.
    relative_eps : float, default 0.05
        The larger, the fewer sweeps, and the less does S see of detail.
    tol : float, default 1e-3
        Bound on the L1 error of marginals.
    max_steps : int, default 2000
        Sweeps at most, for each of the three problems.

    Returns
    -------
    Tensor, shape ()
        In units of the cost, differentiable in x, y, a and b by the envelope theorem, with plans held fixed.

    Raises
    ------
    ShapeError
        If x and y are no matrices with as many columns, of one dtype and device, or weights do not fit.
    ArgumentTypeError
        If they are no floating-point tensors.
    ArgumentError
        If weights are not positive, or eps is not, or is below the resolution of the dtype.
    NumericalError
        If a cost is NaN or infinite.

    Notes
    -----
    O(N² + NM + M²) memory, and as much work a sweep. Half precision is refused.

    References
    ----------
    J. Feydy, T. Séjourné, F.-X. Vialard, S. Amari, A. Trouvé, G. Peyré (2019), AISTATS, arXiv 1810.08278.
    """
    call = "sinkhorn_divergence"
    two_clouds(call, x=x, y=y)
    ground = as_cost(cost)
    weights_x, weights_y = weights_of(call, "a", a, x), weights_of(call, "b", b, y)
    own = ground.pairwise(y, y)
    if eps is None:
        eps = relative_eps * float(own.detach().mean())
    half = half_divergence(x, y, eps, ground, weights_x, weights_y, tol=tol, max_steps=max_steps)
    return half - _self_cost(own, eps, weights_y, tol, max_steps) / 2


def half_divergence(
    x: Tensor, y: Tensor, eps: float, cost: Cost, a: Tensor, b: Tensor, *, tol: float, max_steps: int
) -> Tensor:
    """W(α, β) - W(α, α)/2: the divergence but for the term of β, which has no gradient in x.

    Parameters
    ----------
    x, y : Tensor, shapes (N, D) and (M, D)
        Points.
    eps : float
        Strength of the entropy, in units of the cost.
    cost : Cost
        Ground cost.
    a, b : Tensor, shapes (N,) and (M,)
        Weights, of sum one.
    tol, max_steps
        As in `sinkhorn_divergence`.

    Returns
    -------
    Tensor, shape ()
        May be negative.
    """
    between = cost.pairwise(x, y)
    check_scale("sinkhorn_divergence", between.detach(), eps)
    found = entropic_plan(between.detach(), eps, a.detach(), b.detach(), tol=tol, max_steps=max_steps)
    across = _with_gradient(found.f @ a + found.g @ b, found.plan, between)
    return across - _self_cost(cost.pairwise(x, x), eps, a, tol, max_steps) / 2


def _self_cost(matrix: Tensor, eps: float, weights: Tensor, tol: float, max_steps: int) -> Tensor:
    check_scale("sinkhorn_divergence", matrix.detach(), eps)
    found = self_plan(matrix.detach(), eps, weights.detach(), tol=tol, max_steps=max_steps)
    return _with_gradient(2 * (found.f @ weights), found.plan, matrix)


def _with_gradient(value: Tensor, plan: Tensor, matrix: Tensor) -> Tensor:
    # the value, with the plan as its gradient in the costs
    if not matrix.requires_grad:
        return value
    moved = (plan * matrix).sum()
    return value + (moved - moved.detach())
