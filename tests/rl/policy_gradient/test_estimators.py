"""Gradients and Hessian products of trajectories against exact ones, loops and dense matrices."""

from dataclasses import replace

import pytest
import torch

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.rl import (
    CategoricalPolicy,
    collect,
    policy_gradient,
    policy_hessian,
    policy_hvp,
    step_log_probs,
    trajectory_log_probs,
)
from tests.rl.policy_gradient.cases import DISCOUNT, HORIZON, decision_process, draw, seeded


def phi(batch, policy, theta, i):
    one = batch.mask.nonzero()[:, 0] == i
    return (batch.weights[batch.mask] * step_log_probs(batch, policy, theta))[one].sum()


def test_product_is_a_mean_over_trajectories():
    """Oracle: a loop over trajectories with dense Hessians of Phi and explicit score products, float64."""
    world, policy, theta = decision_process()
    batch, u = draw(world, policy, 4), torch.randn(18, dtype=torch.float64, generator=seeded(1))
    total = torch.zeros_like(u)
    for i in range(4):
        g = torch.autograd.functional.jacobian(lambda v, i=i: phi(batch, policy, v, i), theta)
        score = torch.autograd.functional.jacobian(lambda v, i=i: trajectory_log_probs(batch, policy, v)[i], theta)
        second = torch.autograd.functional.hessian(lambda v, i=i: phi(batch, policy, v, i), theta)
        total += (score @ u) * g + second @ u
    torch.testing.assert_close(policy_hvp(batch, policy, u), total / 4, rtol=1e-10, atol=1e-12)


def test_operator_is_the_symmetric_part():
    """Oracle: the dense unsymmetric estimate, and its adjoint products."""
    world, policy, _ = decision_process()
    batch = draw(world, policy, 5)
    plain = policy_hessian(batch, policy, symmetric=False)
    dense = plain.to_dense()
    torch.testing.assert_close(policy_hessian(batch, policy).to_dense(), (dense + dense.mT) / 2)
    torch.testing.assert_close(plain.H.to_dense(), dense.mT)


def test_unbiased_against_exact_derivatives():
    """Oracle: backward induction. Means of 200 batches lie within four of their standard errors."""
    world, policy, theta = decision_process()
    u = torch.randn(18, dtype=torch.float64, generator=seeded(2))
    generator = seeded(3)
    gradients, products = [], []
    for _ in range(200):
        batch = draw(world, policy, 50, generator)
        gradients.append(policy_gradient(batch, policy))
        products.append(policy_hvp(batch, policy, u))
    exact = world.gradient(policy, theta, HORIZON, DISCOUNT), world.hessian(policy, theta, HORIZON, DISCOUNT) @ u
    for samples, wanted in zip((gradients, products), exact, strict=True):
        stack = torch.stack(samples)
        assert ((stack.mean(0) - wanted).abs() <= 4 * stack.std(0) / 200**0.5).all()


def test_exact_hessian_is_that_of_the_objective():
    """Oracle: central differences of the exact gradient."""
    world, policy, theta = decision_process()
    u = torch.randn(18, dtype=torch.float64, generator=seeded(4))
    ends = [world.gradient(policy, theta + sign * 1e-5 * u, HORIZON, DISCOUNT) for sign in (1, -1)]
    found = world.hessian(policy, theta, HORIZON, DISCOUNT) @ u
    torch.testing.assert_close(found, (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-8)


def test_trajectory_weights_scale_terms():
    """Oracle: linearity: weights 1 and 0 pick trajectories out."""
    world, policy, theta = decision_process()
    batch = draw(world, policy, 3)
    picked = policy_gradient(batch, policy, trajectory_weights=torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    wanted = torch.autograd.functional.jacobian(lambda v: phi(batch, policy, v, 1), theta) / 3
    torch.testing.assert_close(picked, wanted)


def test_refusals():
    """Oracle: the documented errors: wrong weights, a policy that draws random numbers, weights that are not finite."""
    world, policy, _ = decision_process()
    batch = draw(world, policy, 3)
    with pytest.raises(ShapeError, match="trajectory_weights"):
        policy_gradient(batch, policy, trajectory_weights=torch.ones(2))
    with pytest.raises(NumericalError, match="not finite"):
        policy_gradient(replace(batch, weights=batch.weights * torch.nan), policy)
    with pytest.raises(ArgumentError, match="discount"):
        collect(world, policy, 3, horizon=2, discount=1.5)
    dropping = CategoricalPolicy(6, 3)
    dropping.logits.insert(1, torch.nn.Dropout(0.5))
    with pytest.raises(ArgumentError, match="dropout"):
        policy_gradient(batch, dropping)
