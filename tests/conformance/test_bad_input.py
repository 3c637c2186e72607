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
    ROWS,
)
def test_bad_input(slug, name):
    """Oracle: the rule of ``bad_values``: an error that names the argument, or NaN; or nothing changes."""
    call = METHODS_UNDER_TEST[slug]
    assert verdict(name, call.run, call.x, call.argument, user_code=call.user_code) is None


def test_every_method_has_its_rows():
    """Oracle: the catalogue; at least 8 rows a method, at least 300 in all."""
    assert set(METHODS_UNDER_TEST) | TABLES_OF_THEIR_OWN >= {method.slug for method in METHODS}
    counts = [sum(slug == row[0] for row in ROWS) for slug in METHODS_UNDER_TEST]
    assert min(counts) >= 8
    assert sum(counts) >= 300
    assert all(set(call.meant) <= set(VARIANTS) for call in METHODS_UNDER_TEST.values())
