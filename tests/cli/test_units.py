"""Sizes and durations as people write and read them; oracle: by hand."""

import pytest
import typer

from hesse.cli._units import parse_duration, parse_size, show_duration, show_size


@pytest.mark.parametrize(
    ("text", "size"), [("40MB", 40_000_000), ("1.5 GiB", 3 << 29), (" .5kb", 500), ("2TiB", 2 << 40)]
)
def test_sizes_are_read(text, size):
    """Oracle: units of 1000 and of 1024."""
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1.5 h", 5400), ("30MIN", 1800), ("7d", 604_800)])
def test_durations_are_read(text, seconds):
    """Oracle: by hand."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "40", "-1GB", "0MB", "MB", "1e3MB", "5 s"])
def test_what_is_no_size_is_refused(text):
    """Oracle: the form that the message shows."""
    with pytest.raises(typer.BadParameter, match="expected a size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "5", "0s", "5MB", "-1h"])
def test_what_is_no_duration_is_refused(text):
    """Oracle: the form that the message shows."""
    with pytest.raises(typer.BadParameter, match="expected a duration"):
        parse_duration(text)


def test_shown():
    """Oracle: by hand."""
    assert [show_duration(s) for s in (0.5, 119, 150, 8000, 200_000, 1e9)] == [
        "0.5 s", "119 s", "2.5 min", "2.22 h", "2.31 d", "11,574 d",
    ]  # fmt: skip
    assert [show_size(b) for b in (0, 1000, 1536, 5 << 30, 3 << 40, 5000 << 40)] == [
        "0 B", "1000 B", "1.5 KiB", "5 GiB", "3 TiB", "5,000 TiB",
    ]  # fmt: skip
