"""Names of files inside a run: what is allowed, and that nothing leads out."""

import pytest

from hesse.errors import ArgumentError, ArtifactError
from hesse.io import file_path
from hesse.io.names import check_names

GOOD = ["a", "shards/0.safetensors", "A-b_c.d/e", "...", "a..b", ".hidden", "-", "sub/manifest.json", "x" * 255]
BAD = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../x",
    "a/../../x",
    "a/..",
    "./a",
    "a/.",
    "a//b",
    "a/",
    "a\\b",
    "..\\x",
    "C:x",
    "a b",
    "a\n",
    "a\0b",
    "~/x",
    "ü",
    "%2e%2e/x",
    "x" * 256,
    "manifest.json",
    ".hesse-lock",
    "a/.hesse-lock",
    ".hesse-tmp-1-0123456789abcdef",
    "a/.hesse-tmp-1-0123456789abcdef",
]


@pytest.mark.parametrize("name", GOOD)
def test_good_names(name, tmp_path):
    """Oracle: a list by hand."""
    check_names([name])
    assert file_path(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("name", BAD)
def test_bad_names(name, tmp_path):
    """Oracle: a list by hand of ways out of a folder and of hesse's own names."""
    with pytest.raises(ArgumentError, match="file name"):
        check_names(["good", name])
    with pytest.raises(ArtifactError, match="file name"):
        file_path(tmp_path, name)


def test_links_inside_a_run_are_not_followed(tmp_path):
    """Oracle: the documented error, for a linked file, a linked folder and a link that leads nowhere."""
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"x")
    (run / "file").symlink_to(tmp_path / "outside" / "file")
    (run / "folder").symlink_to(tmp_path / "outside")
    (run / "nowhere").symlink_to(tmp_path / "none")
    (run / "inside").symlink_to(run)
    for name in ["file", "folder/file", "nowhere", "inside/file", "folder"]:
        with pytest.raises(ArtifactError, match="symbolic link"):
            file_path(run, name)


def test_the_run_itself_may_be_reached_by_a_link(tmp_path):
    """Oracle: identity; where a user keeps runs is the user's business."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").write_bytes(b"x")
    (tmp_path / "latest").symlink_to(tmp_path / "run")
    assert file_path(tmp_path / "latest", "file").read_bytes() == b"x"
