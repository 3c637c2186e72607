"""A claim's verdict, and what of it reaches JSON."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks._claims import Claim, Scale, to_json
from hesse.errors import ArgumentError


@pytest.mark.parametrize(
    ("measured", "bar", "better", "holds"),
    [
        (3.0, 3.0, "higher", True),
        (2.9, 3.0, "higher", False),
        (3.0, 3.0, "lower", True),
        (3.1, 3.0, "lower", False),
        (0.5, (0.5, 1.0), "inside", True),
        (1.01, (0.5, 1.0), "inside", False),
        (math.nan, 3.0, "higher", False),
        (math.nan, 3.0, "lower", False),
        (math.nan, (0.0, 1.0), "inside", False),
        (None, 3.0, "lower", False),
        (math.inf, 3.0, "higher", True),
    ],
)
def test_verdict(measured, bar, better, holds):
    """Oracle: the definition, case by case; a bar met exactly is met, NaN and nothing never hold."""
    assert Claim("c", measured, bar, better).holds is holds


def test_full_only_is_not_judged_at_smoke_size():
    """Oracle: the definition. The same claim is judged at full size."""
    claim = Claim("c", 1.0, 2.0, "higher", full_only=True, scale="smoke")
    assert claim.holds is None
    assert replace(claim, scale="full").holds is False


@pytest.mark.parametrize(("bar", "better"), [(1.0, "inside"), ((0.0, 1.0), "higher"), (1.0, "bigger")])
def test_bar_and_direction_must_agree(bar, better):
    """Oracle: the documented rule that a pair goes with "inside" and with nothing else."""
    with pytest.raises(ArgumentError, match="'c'"):
        Claim("c", 1.0, bar, better)


def test_scale_picks_the_setting():
    """Oracle: the definition."""
    assert Scale("smoke")(smoke=200, full=4000) == 200
    assert Scale("full", seed=7)(smoke=200, full=4000) == 4000


def test_rows_become_strict_json():
    """Oracle: a parser that refuses NaN and Infinity reads back the same numbers."""
    rows = {
        "tensor": torch.tensor([1.0, 2.0]),
        "scalar": torch.tensor(3),
        "numpy": np.float32(0.5),
        "path": Path("a/b"),
        "nested": {1: (math.inf, math.nan, None, True)},
    }
    text = json.dumps(to_json(rows), allow_nan=False)
    assert json.loads(text) == {
        "tensor": [1.0, 2.0],
        "scalar": 3,
        "numpy": 0.5,
        "path": "a/b",
        "nested": {"1": ["inf", "nan", None, True]},
    }
    assert Claim("c", math.nan, 1.0, "lower").as_dict()["measured"] is None
