import json
import math

import pytest

from hesse.compress.hawq import BitPlan, uniform_plan
from hesse.errors import ArgumentError, ArgumentTypeError, ArtifactError

PLAN = BitPlan({"a.weight": 4, "b.weight": 8}, {"a": 6}, {"a.weight": 30, "b.weight": 10, "a": 5}, 0.25)


def test_sizes_are_sums():
    """Oracle: by hand."""
    assert PLAN.size_bits == 200
    assert PLAN.average_bits == 5.0
    assert PLAN.average_activation_bits == 6.0
    assert math.isnan(BitPlan({}).average_bits)


def test_plan_survives_a_file(tmp_path):
    """Oracle: the plan itself; NaN, which JSON lacks, too."""
    PLAN.save(tmp_path / "plan.json")
    assert BitPlan.load(tmp_path / "plan.json") == PLAN
    assert json.loads((tmp_path / "plan.json").read_text("utf-8"))["format"] == "hesse-bit-plan"
    even = uniform_plan({"a.weight": 3}, 4)
    assert math.isnan(BitPlan.from_dict(even.to_dict()).omega)


def test_comparison_with_one_width():
    """Oracle: by hand."""
    found = PLAN.compare(uniform=8)
    assert (found.size_bits, found.uniform_size_bits, found.size_ratio) == (200, 320, 0.625)
    assert found.fewer == ("a.weight",)
    assert found.more == ()


def test_plans_merge():
    """Oracle: union, sums of Ω."""
    inputs = BitPlan({}, {"b": 4}, {"b": 7}, 0.5)
    joined = BitPlan({"a.weight": 4}, {}, {"a.weight": 30}, 0.25).merge(inputs)
    assert joined == BitPlan({"a.weight": 4}, {"b": 4}, {"a.weight": 30, "b": 7}, 0.75)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 2},
        {"weights": {"a.weight": "4"}},
        {"weights": {"a.weight": True}},
        {"weights": {"a.weight": 99}},
        {"weights": {"unknown": 4}},
        {"numel": [1]},
        {"omega": "small"},
    ],
)
def test_damaged_plans_are_refused(change):
    """Oracle: the documented error."""
    with pytest.raises(ArtifactError):
        BitPlan.from_dict(PLAN.to_dict() | change)


def test_bad_plans_are_refused():
    """Oracle: the documented errors."""
    with pytest.raises(ArtifactError):
        BitPlan.from_dict([1])
    with pytest.raises(ArgumentError, match="numel"):
        BitPlan({"a.weight": 4})
    with pytest.raises(ArgumentTypeError, match="whole number"):
        BitPlan({"a.weight": 4.0}, numel={"a.weight": 1})
    with pytest.raises(ArgumentError, match="no weights"):
        BitPlan({}).compare()
