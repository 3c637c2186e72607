"""Files that earlier versions wrote stay readable: a small one of every kind and version is kept beside this test."""

import shutil
from pathlib import Path

import pytest
import torch

import hesse
from hesse.errors import ArtifactError
from hesse.io import MANIFEST_NAME, read_manifest, verify_run
from tests.formats.kinds import KINDS, written_numbers

HERE = Path(__file__).resolve().parent
VERSIONS = sorted(path.name for path in HERE.iterdir() if (path / "bit-plan").is_dir())
KEPT = [(version, kind) for version in VERSIONS for kind in KINDS if (HERE / version / kind).exists()]


@pytest.mark.parametrize(("version", "kind"), KEPT)
def test_old_files_are_read(version, kind, tmp_path):
    """Oracle: the numbers that the version which wrote the files read from them."""
    wanted = written_numbers(HERE / version, kind)
    found = KINDS[kind].read(shutil.copytree(HERE / version / kind, tmp_path / kind))
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert values, name
        torch.testing.assert_close(
            torch.tensor(found[name], dtype=torch.float64),
            torch.tensor(values, dtype=torch.float64),
            rtol=2e-4,
            atol=1e-6 * max(map(abs, values)) + 1e-12,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize(("version", "kind"), KEPT)
def test_what_is_kept_is_small_and_whole(version, kind):
    """Oracle: sizes and checksums; at most 200 kB a kind."""
    folder = HERE / version / kind
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 200_000
    for manifest in folder.rglob(MANIFEST_NAME):
        assert verify_run(manifest.parent) == []
        assert read_manifest(manifest.parent).created_by["hesse"] == version


def test_every_kind_of_this_version_is_kept():
    """Oracle: the list of kinds; a release that forgets one could not be checked later."""
    assert {kind for version, kind in KEPT if version == hesse.__version__} == set(KINDS)


@pytest.mark.parametrize("kind", ["influence-run", "training-record", "token-index"])
def test_of_a_later_version_the_error_names_it(kind, tmp_path):
    """Oracle: the same files with another number of the layout: the error says which hesse wrote them."""
    from hesse.io import hash_bytes
    from hesse.io.json_files import encode_json, read_json

    folder = shutil.copytree(HERE / hesse.__version__ / kind, tmp_path / kind)
    fields = read_json(folder / MANIFEST_NAME)
    del fields["checksum"]
    fields |= {"schema": 99, "created_by": {"hesse": "7.5.0"}}
    text = encode_json(fields, "manifest")
    (folder / MANIFEST_NAME).write_bytes(b'{\n "checksum": "%s",' % hash_bytes(text).encode() + text[1:])
    with pytest.raises(ArtifactError, match=r"99.*|7\.5\.0") as caught:
        KINDS[kind].read(folder)
    assert "7.5.0" in str(caught.value)
    assert caught.value.exit_code == 3
