"""Recovery and projection against the definitions and against scipy."""

import pytest
import torch
from scipy.optimize import minimize

from hesse.errors import ShapeError
from hesse.nn.convex_relu import (
    constraint_violation,
    convex_objective,
    network_objective,
    project_cones,
    recover_network,
)
from tests.nn.convex_relu.cases import F64, problem, seeded


def test_recovered_network_has_the_convex_objective():
    """Oracle: the theorem. On the cones both objectives are one."""
    X, y, D = problem()
    V = project_cones(torch.randn(2, 12, 4, generator=seeded(1), dtype=F64), X, D)
    assert float(constraint_violation(V, X, D)) < 1e-12
    for loss, targets in (("squared", y), ("hinge", y.sign()), ("bce", y.sign())):
        network = network_objective(X, targets, *recover_network(V), 0.1, loss)
        torch.testing.assert_close(network, convex_objective(V, X, targets, D, 0.1, loss), rtol=1e-12, atol=0)


def test_projection_is_nearest():
    """Oracle: SLSQP on one block; blocks inside, and zero ones, stay."""
    X, _, D = problem(n=8, d=3, num_patterns=3)
    V = torch.randn(2, 3, 3, generator=seeded(2), dtype=F64)
    V[1, 2] = 0
    found = project_cones(V, X, D)
    signed = ((2 * D[:, 0].double() - 1).unsqueeze(1) * X).numpy()
    start = V[0, 0].numpy()
    wanted = minimize(
        lambda v: ((v - start) ** 2).sum(), start * 0, constraints={"type": "ineq", "fun": lambda v: signed @ v}
    ).x
    torch.testing.assert_close(found[0, 0], torch.as_tensor(wanted), atol=1e-5, rtol=0)
    torch.testing.assert_close(project_cones(found, X, D), found)
    assert not found[1, 2].any()


def test_equal_patterns_are_merged():
    """Oracle: one neuron for two equal columns, the same outputs, and no higher an objective."""
    X, y, D = problem(num_patterns=1)
    twice = torch.cat([D, D], 1)
    V = project_cones(torch.randn(2, 2, 4, generator=seeded(3), dtype=F64), X, twice)
    merged, apart = recover_network(V, twice), recover_network(V)
    assert len(merged[1]) <= 2 < len(apart[1]) + 1
    assert float(network_objective(X, y, *merged, 0.1)) <= float(network_objective(X, y, *apart, 0.1)) + 1e-12


def test_nothing_recovers_to_nothing():
    """Oracle: the definition; and a wrong shape is refused."""
    hidden, output = recover_network(torch.zeros(2, 3, 4))
    assert hidden.shape == (0, 4)
    assert output.shape == (0,)
    with pytest.raises(ShapeError):
        recover_network(torch.zeros(3, 4))
