"""The table of bad inputs: every method x every way in which its tensor can be wrong, hard or merely unusual.

Influence has a table of its own, ``tests/influence/test_bad_input.py``: its inputs are models, texts and folders. The
viewer has another, ``tests/web``: its inputs are requests.
"""

import warnings

import pytest

from hesse._catalogue import METHODS
from tests.conformance.bad_values import VARIANTS, is_finite, numbers, verdict
from tests.conformance.methods import METHODS_UNDER_TEST

TABLES_OF_THEIR_OWN = {method.slug for method in METHODS if method.slug.startswith("influence_")}
META = "a tensor on another device is refused by torch in its words, not by hesse"
DEEP = "refused, but by a solver further down, in the solver's words"
GAPS = {
    **{
        (slug, "meta device"): META
        for slug in (
            "adasketch_newton",
            "cbo",
            "comp_sum_losses",
            "convex_relu",
            "dds",
            "funbat",
            "gauge_freedom",
            "gp_hm",
            "hierarchical_polynomials",
            "mfac",
            "monge_gap",
            "neural_pde",
            "policy_gradient",
            "rvgp",
            "singular_likelihood",
            "subgm",
            "vr_halpern",
        )
    },
    **{
        (slug, variant): DEEP
        for slug in ("bilevel_core", "gauge_freedom", "lv_hba", "rmt_learning_rates")
        for variant in ("NaN", "Inf", "-Inf", "all NaN")
    },
    ("convex_relu", "bfloat16"): "numpy has no bfloat16, and says so itself",
    ("gauge_freedom", "float16"): "torch has no Cholesky solve in half precision, and says so itself",
    ("gauge_freedom", "bfloat16"): "torch has no Cholesky solve in half precision, and says so itself",
    ("lv_hba", "0-d"): "the projection joins x and y as vectors; torch refuses other shapes",
    ("lv_hba", "an axis too many"): "the projection joins x and y as vectors; torch refuses other shapes",
    ("policy_gradient", "integers"): "rewards are not checked for their dtype; torch refuses later",
    ("policy_gradient", "float16"): "rewards are not checked for their dtype; torch refuses later",
    ("policy_gradient", "bfloat16"): "rewards are not checked for their dtype; torch refuses later",
}
ROWS = [(slug, name) for slug, call in METHODS_UNDER_TEST.items() for name in VARIANTS if name not in call.meant]


@pytest.mark.parametrize("slug", METHODS_UNDER_TEST)
def test_the_call_itself_is_sound(slug):
    """Oracle: finite numbers out of the plain tensor; else the table would show nothing."""
    call = METHODS_UNDER_TEST[slug]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the calls are as small as can be, and some methods say so
        found = numbers(call.run(call.x.clone()))
    assert found
    assert is_finite(found)
    assert sum(value.numel() for value in found) > 0


@pytest.mark.parametrize(
    ("slug", "name"),
    [
        pytest.param(*row, marks=[pytest.mark.xfail(reason=GAPS[row], strict=True)] if row in GAPS else [])
        for row in ROWS
    ],
)
def test_bad_input(slug, name):
    """Oracle: the rule of ``bad_values``: an error that names the argument, or NaN; or nothing changes."""
    call = METHODS_UNDER_TEST[slug]
    assert verdict(name, call.run, call.x, call.argument, user_code=call.user_code) is None


def test_every_method_has_its_rows():
    """Oracle: the catalogue; at least 8 rows a method, at least 300 in all, each excuse for a row that is there."""
    assert set(METHODS_UNDER_TEST) | TABLES_OF_THEIR_OWN >= {method.slug for method in METHODS}
    counts = [sum(slug == row[0] for row in ROWS) for slug in METHODS_UNDER_TEST]
    assert min(counts) >= 8
    assert sum(counts) >= 300
    assert set(GAPS) <= set(ROWS)
    assert all(set(call.meant) <= set(VARIANTS) for call in METHODS_UNDER_TEST.values())
