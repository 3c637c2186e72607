"""Derivatives of the expected return from sampled trajectories: REINFORCE's gradient and its Hessian-vector product.

    Phi(τ, θ) = Σ_t weights_t log π_θ(a_t | s_t)
    g(τ, θ) = ∇Phi,   score(τ, θ) = Σ_t ∇ log π_θ(a_t | s_t)
    B(τ, θ) = g scoreᵀ + ∇²Phi,   E B = ∇²J   for trajectories drawn at θ

Shapes: N trajectories, M steps in all, P parameters.
"""

import torch
from torch import Tensor
from torch.func import functional_call

from hesse.curvature import hessian, jacobian
from hesse.curvature._binding import choose_parameters
from hesse.errors import NumericalError, ShapeError
from hesse.linalg import FunctionOperator, LinearOperator, ParameterLayout
from hesse.rl.policy_gradient.policies import Policy
from hesse.rl.policy_gradient.rollout import TrajectoryBatch

__all__ = ["policy_gradient", "policy_hessian", "policy_hvp", "step_log_probs", "trajectory_log_probs"]


def step_log_probs(batch: TrajectoryBatch, policy: Policy, parameters: Tensor) -> Tensor:
    """Return log π_θ(a_t | s_t) of every step that happened, differentiable in ``parameters``.

    Parameters
    ----------
    batch : TrajectoryBatch
        The steps.
    policy : Policy
        Only its form is used, not its present parameters.
    parameters : Tensor, shape (P,)
        θ.

    Returns
    -------
    Tensor, shape (M,)
        In nats, trajectory after trajectory.
    """
    layout = ParameterLayout.of({name: p for name, p in policy.named_parameters() if p.requires_grad})
    named = layout.unflatten(parameters)
    return functional_call(policy, named, (batch.observations[batch.mask], batch.actions[batch.mask]))


def trajectory_log_probs(batch: TrajectoryBatch, policy: Policy, parameters: Tensor | None = None) -> Tensor:
    """Return Σ_t log π_θ(a_t | s_t) of every trajectory, differentiable in ``parameters``.

    Parameters
    ----------
    batch : TrajectoryBatch
        The steps.
    policy : Policy
        What is trained.
    parameters : Tensor, shape (P,), optional
        θ. Default: where the batch was drawn.

    Returns
    -------
    Tensor, shape (N,)
        In nats, without the log-probabilities of the environment, which do not depend on θ.
    """
    steps = step_log_probs(batch, policy, batch.parameters if parameters is None else parameters)
    return steps.new_zeros(batch.num_trajectories).index_add(0, _trajectory_of_step(batch), steps)


def policy_gradient(
    batch: TrajectoryBatch,
    policy: Policy,
    parameters: Tensor | None = None,
    *,
    trajectory_weights: Tensor | None = None,
) -> Tensor:
    """Return mean_i w_i g(τ_i, θ), an estimate of ∇J; ascend along it.

    Parameters
    ----------
    batch : TrajectoryBatch
        Trajectories, and the weights of their steps.
    policy : Policy
        Only its form is used, not its present parameters.
    parameters : Tensor, shape (P,), optional
        θ. Default: where the batch was drawn, the only place where the estimate is unbiased without
        ``trajectory_weights``.
    trajectory_weights : Tensor, shape (N,), optional
        w, such as importance weights. Default: ones.

    Returns
    -------
    Tensor, shape (P,)
        Units of return per unit of the parameter; detached. One forward and one backward pass.

    Raises
    ------
    ArgumentError
        If a layer of the policy is in training mode that draws random numbers or changes its buffers.
    ShapeError
        If ``trajectory_weights`` is not (N,), or ``parameters`` not (P,).
    NumericalError
        If the gradient is not finite.

    References
    ----------
    R. J. Williams (1992), Machine Learning 8.
    """
    choose_parameters("policy_gradient", policy, None)
    weights = batch.weights[batch.mask]
    if trajectory_weights is not None:
        if trajectory_weights.shape != (batch.num_trajectories,):
            raise ShapeError(
                f"policy_gradient: expected trajectory_weights of shape ({batch.num_trajectories},), got "
                f"{tuple(trajectory_weights.shape)}"
            )
        weights = weights * trajectory_weights[_trajectory_of_step(batch)]
    theta = (batch.parameters if parameters is None else parameters).detach().requires_grad_()
    with torch.enable_grad():
        phi = weights @ step_log_probs(batch, policy, theta) / batch.num_trajectories
        (gradient,) = torch.autograd.grad(phi, theta)
    return _finite("policy_gradient", gradient)


def policy_hvp(batch: TrajectoryBatch, policy: Policy, vector: Tensor, parameters: Tensor | None = None) -> Tensor:
    """Return mean_i B(τ_i, θ) u, an unbiased estimate of ∇²J(θ) u for trajectories drawn at θ.

    Parameters
    ----------
    batch : TrajectoryBatch
        Trajectories, and the weights of their steps.
    policy : Policy
        Only its form is used.
    vector : Tensor, shape (P,)
        u.
    parameters : Tensor, shape (P,), optional
        θ. Default: where the batch was drawn.

    Returns
    -------
    Tensor, shape (P,)
        The score product is taken trajectory by trajectory, mean_i ⟨score_i, u⟩ g_i: the product of the batch's means
        would be another number. About five passes over the batch, no matrix.

    Raises
    ------
    ArgumentError
        If a layer of the policy is in training mode that draws random numbers or changes its buffers.
    ShapeError
        If ``vector`` or ``parameters`` is not (P,).
    NumericalError
        If the product is not finite.

    References
    ----------
    I. Fatkhullin, A. Barakat, A. Kireeva, N. He (2023), ICML, arXiv 2302.01734.
    """
    return _finite("policy_hvp", policy_hessian(batch, policy, parameters, symmetric=False) @ vector)


def policy_hessian(
    batch: TrajectoryBatch, policy: Policy, parameters: Tensor | None = None, *, symmetric: bool = True
) -> LinearOperator:
    """Return the estimate of ∇²J as an operator, for Lanczos, CG or Newton steps. It is indefinite in general.

    Parameters
    ----------
    batch : TrajectoryBatch
        Trajectories, and the weights of their steps.
    policy : Policy
        Only its form is used.
    parameters : Tensor, shape (P,), optional
        θ. Default: where the batch was drawn.
    symmetric : bool, default True
        Return (B + Bᵀ)/2. E B is symmetric, the mean of a batch is not: g scoreᵀ is a product of two vectors.

    Returns
    -------
    LinearOperator, shape (P, P)
        mean_i [g_i score_iᵀ + ∇²Phi_i], by products with the Jacobian of the log-probabilities; O(M + P) memory beyond
        the graphs.

    Raises
    ------
    ArgumentError
        If a layer of the policy is in training mode that draws random numbers or changes its buffers.
    ShapeError
        If ``parameters`` is not (P,).
    """
    choose_parameters("policy_hessian", policy, None)
    theta = {"parameters": (batch.parameters if parameters is None else parameters).detach()}
    weights, members, count = batch.weights[batch.mask], _trajectory_of_step(batch), batch.num_trajectories

    def log_probs(named: dict[str, Tensor], steps: TrajectoryBatch) -> Tensor:
        return step_log_probs(steps, policy, named["parameters"])

    def phi(named: dict[str, Tensor], steps: TrajectoryBatch) -> Tensor:
        return weights @ log_probs(named, steps) / count

    def gather(steps: Tensor) -> Tensor:  # sums over each trajectory, handed back to all of its steps
        return steps.new_zeros(count, steps.shape[-1]).index_add(0, members, steps)[members]

    slopes = jacobian(log_probs, theta, batch, block_size=1)
    curvature = hessian(phi, theta, [batch])

    def outer(x: Tensor) -> Tensor:  # columns x -> Σ_i g_i score_iᵀ x, both factors from one Jacobian product
        along = slopes.matmat(x)
        steps = weights.unsqueeze(1) * gather(along)
        if symmetric:
            steps = (steps + gather(weights.unsqueeze(1) * along)) / 2
        return slopes.rmatmat(steps) / count

    def transposed(x: Tensor) -> Tensor:
        return slopes.rmatmat(gather(weights.unsqueeze(1) * slopes.matmat(x))) / count

    size, dtype, device = curvature.shape[0], curvature.dtype, curvature.device
    rank = FunctionOperator(
        outer,
        (size, size),
        dtype=dtype,
        device=device,
        rmatmat_fn=None if symmetric else transposed,
        is_symmetric=symmetric,
    )
    return rank + curvature


def _trajectory_of_step(batch: TrajectoryBatch) -> Tensor:
    return batch.mask.nonzero()[:, 0]


def _finite(call: str, vector: Tensor) -> Tensor:
    if not bool(vector.isfinite().all()):
        raise NumericalError(
            f"{call}: the result is not finite: log-probabilities overflow where a policy is nearly deterministic; "
            "take smaller steps, or a larger min_std"
        )
    return vector
