import math

import pytest

from hesse.errors import ArgumentError
from hesse.linalg.line_search import armijo


def test_first_power_that_satisfies_the_condition():
    """Oracle: closed form: f(x) = x² from 1 along -2x·k; steps 1, 1/2, … until (1 - 2kt)² <= 1 - c 4k t."""
    found = armijo(lambda t: (1 - 16 * t) ** 2, 1.0, -32.0, decrease=1e-4)
    expected = next(2.0**-j for j in range(50) if (1 - 16 * 2.0**-j) ** 2 <= 1 - 1e-4 * 32 * 2.0**-j)
    assert found.step == expected
    assert found.converged
    assert found.value == (1 - 16 * expected) ** 2
    assert found.num_steps == 1 + int(-math.log2(expected))


def test_newton_step_passes_at_once():
    """Oracle: closed form; the full step minimises a quadratic and falls by half the slope."""
    found = armijo(lambda t: 0.5 * (1 - t) ** 2, 0.5, -1.0, decrease=0.4)
    assert (found.step, found.num_steps) == (1.0, 1)


def test_infinite_and_nan_values_shorten_the_step():
    """Oracle: the domain; log x is NaN or infinite beyond it."""
    found = armijo(lambda t: -math.log(1 - t) - 3 * t if t < 1 else math.nan, 0.0, -2.0, initial_step=8.0)
    assert 0 < found.step < 1
    assert armijo(lambda t: math.inf if t > 0.1 else -t, 0.0, -1.0).step < 0.1


def test_no_step_is_reported_and_slack_forgives_rounding():
    """Oracle: an increasing function, and one that rises by less than the slack."""
    failed = armijo(lambda t: t, 0.0, -1.0, max_steps=5)
    assert (failed.step, failed.converged, failed.num_steps) == (0.0, False, 5)
    assert armijo(lambda t: 1.0 + 1e-16, 1.0, -1e-18, slack=1e-15).step == 1.0


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"slope": 0.0}, "slope"),
        ({"slope": math.nan}, "slope"),
        ({"value": math.nan}, "finite"),
        ({"initial_step": 0.0}, "initial_step"),
        ({"shrink": 1.0}, "shrink"),
        ({"decrease": 0.0}, "decrease"),
        ({"max_steps": 0}, "max_steps"),
    ],
)
def test_bad_arguments_are_named(kwargs, word):
    """Oracle: the error taxonomy."""
    with pytest.raises(ArgumentError, match=word):
        armijo(lambda t: t, **({"value": 0.0, "slope": -1.0} | kwargs))
