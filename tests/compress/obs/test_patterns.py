"""Units and limits of the patterns against loops over the weights."""

import pytest
import torch

from hesse.compress import Blocks, NOfM, Unstructured
from hesse.errors import ArgumentError, ShapeError


@pytest.mark.parametrize("pattern", [Unstructured(), NOfM(), Blocks(2, 3), Blocks(1, 4)])
@pytest.mark.parametrize("shape", [(4, 12), (6, 4, 3, 2)])
def test_every_weight_is_in_one_unit(pattern, shape):
    """Oracle: the definition of a partition."""
    units = pattern.units("w", shape)
    assert units.shape[1] == pattern.unit_size
    assert units.flatten().sort().values.tolist() == list(range(torch.Size(shape).numel()))


def test_blocks_are_rectangles():
    """Oracle: slices of the matrix, by a loop."""
    places = torch.arange(48).reshape(4, 12)
    wanted = [places[i : i + 2, j : j + 3].flatten().tolist() for i in (0, 2) for j in range(0, 12, 3)]
    assert Blocks(2, 3).units("w", (4, 12)).tolist() == wanted


def test_groups_run_along_the_inputs():
    """Oracle: a loop over outputs and taps of a convolution."""
    places = torch.arange(3 * 8 * 4).reshape(3, 8, 2, 2)
    wanted = {
        tuple(places[o, i : i + 4, a, b].tolist()) for o in range(3) for i in (0, 4) for a in range(2) for b in range(2)
    }
    groups, limit = NOfM(1, 4).groups("w", (3, 8, 2, 2))
    assert {tuple(group) for group in groups.tolist()} == wanted
    assert limit == 3
    assert NOfM(1, 4).max_sparsity == 0.75


@pytest.mark.parametrize("wrong", [lambda: NOfM(4, 4), lambda: NOfM(0, 4), lambda: Blocks(0, 4), lambda: Blocks(4, -1)])
def test_impossible_patterns_are_refused(wrong):
    """Oracle: the ranges promised."""
    with pytest.raises(ArgumentError):
        wrong()


@pytest.mark.parametrize("shape", [(4, 10), (10,), ()])
def test_parameters_that_do_not_fit_are_named(shape):
    """Oracle: the message."""
    with pytest.raises(ShapeError, match=r"fc\.weight"):
        NOfM().groups("fc.weight", shape)
    with pytest.raises(ShapeError, match=r"fc\.weight"):
        Blocks(3, 4).units("fc.weight", shape)
