"""Arrays on disk: numpy's own reader and writer as oracles, blocks in any order, and refusals."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hesse.errors import ArgumentError, ArtifactError, ShapeError
from hesse.io import ArrayWriter, FileEntry, check_file, open_array, save_array, write_array_rows

RNG = np.random.default_rng(0)
ARRAYS = {
    "float32": RNG.standard_normal((5, 7)).astype(np.float32),
    "float64": RNG.standard_normal((2, 3, 4)),
    "float16": np.array([1, np.nan, np.inf], np.float16),
    "int64": np.arange(10),
    "uint8": np.arange(10, dtype=np.uint8),
    "bool": np.array([True, False]),
    "complex64": np.array([[1 + 2j]], np.complex64),
    "scalar": np.array(1.5),
    "no rows": np.zeros((0, 7), np.float32),
    "no columns": np.zeros((7, 0), np.float32),
    "strided": np.arange(24.0).reshape(4, 6)[::2, 1::2],
    "column major": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big endian": np.arange(5, dtype=">i4"),
    "read-only": np.broadcast_to(np.float32(3), (2, 2)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_round_trip(name, tmp_path):
    """Oracle: the array itself, and np.load."""
    array = ARRAYS[name]
    entry = save_array(tmp_path / "x.npy", array)
    found = open_array(tmp_path / "x.npy", entry)
    theirs = np.load(tmp_path / "x.npy", allow_pickle=False)
    for one in (found, theirs):
        assert one.shape == array.shape
        assert one.dtype == array.dtype
        assert one.tobytes() == array.tobytes()
    assert isinstance(found, np.memmap)
    assert not found.flags.writeable
    check_file(tmp_path / "x.npy", entry)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_numpys_files_are_read(name, version, tmp_path):
    """Oracle: np.lib.format.write_array, column-major arrays included."""
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, ARRAYS[name], version=version, allow_pickle=False)
    found = open_array(tmp_path / "x.npy")
    np.testing.assert_array_equal(found, ARRAYS[name])
    assert found.dtype == ARRAYS[name].dtype


def test_a_map_survives_replacement(tmp_path):
    """Oracle: the old values; a reader during a write sees the last complete state."""
    save_array(tmp_path / "x.npy", np.zeros(1000))
    found = open_array(tmp_path / "x.npy")
    save_array(tmp_path / "x.npy", np.ones(1000))
    assert not found.any()
    assert open_array(tmp_path / "x.npy").all()


@given(st.data())
def test_blocks_in_any_tiling_and_order(data):
    """Oracle: np.save of the whole array, whatever the tiling."""
    import tempfile
    from pathlib import Path

    rows, columns = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    array = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    row_cuts = sorted({0, rows, *data.draw(st.sets(st.integers(0, rows), max_size=3))})
    column_cuts = sorted({0, columns, *data.draw(st.sets(st.integers(0, columns), max_size=3))})
    tiles = [
        (slice(a, b), slice(c, d)) for a, b in itertools.pairwise(row_cuts) for c, d in itertools.pairwise(column_cuts)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.npy")
        with ArrayWriter(path, array.shape) as writer:
            for tile in data.draw(st.permutations(tiles)):
                writer.write(array[tile].astype(np.float64), rows=tile[0], columns=tile[1])
        assert writer.entry == save_array(Path(folder, "y.npy"), array)
        np.testing.assert_array_equal(open_array(path, writer.entry), array)


def test_rows(tmp_path):
    """Oracle: np.concatenate of the blocks."""
    blocks = [RNG.standard_normal((n, 4)) for n in (2, 0, 3, 1)]
    entry = write_array_rows(tmp_path / "x.npy", iter(blocks), (6, 4), dtype=np.float64)
    np.testing.assert_array_equal(open_array(tmp_path / "x.npy", entry), np.concatenate(blocks))


def test_memory_is_one_block(tmp_path):
    """Oracle: tracemalloc; 64 MiB in blocks of 1 MiB take less than 8 MiB."""
    import tracemalloc

    block = np.ones((16, 1 << 14), np.float32)
    tracemalloc.start()
    write_array_rows(tmp_path / "x.npy", (block for _ in range(64)), (1024, 1 << 14))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20
    assert open_array(tmp_path / "x.npy")[-1, -1] == 1


@pytest.mark.parametrize(
    ("blocks", "error", "word"),
    [
        ([((2, 4), {})], ShapeError, "expected shape"),
        ([((3,), {})], ShapeError, "expected shape"),
        ([((3, 2), {"columns": slice(0, 2)})], ArgumentError, "6 of 12"),
        ([((3, 4), {}), ((1, 4), {"rows": slice(1, 2)})], ArgumentError, "overlap"),
        ([((2, 4), {"rows": slice(0, 3, 2)})], ArgumentError, "step 1"),
        ([((1, 4), {"rows": slice(3, 4)})], ShapeError, "expected shape"),
        ([], ArgumentError, "0 of 12"),
    ],
)
def test_bad_blocks_leave_nothing(blocks, error, word, tmp_path):
    """Oracle: the documented error, and an empty folder."""

    def write():
        with ArrayWriter(tmp_path / "x.npy", (3, 4)) as writer:
            for shape, where in blocks:
                writer.write(np.zeros(shape), **where)

    with pytest.raises(error, match=word):
        write()
    assert list(tmp_path.iterdir()) == []


def test_bad_use(tmp_path):
    """Oracle: the documented errors."""
    with pytest.raises(ShapeError, match="shape"):
        ArrayWriter(tmp_path / "x", (3,))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ShapeError, match="shape"):
        ArrayWriter(tmp_path / "x", (3, -1))
    with pytest.raises(ArgumentError, match="dtype"):
        ArrayWriter(tmp_path / "x", (3, 1), object)
    writer = ArrayWriter(tmp_path / "x", (1, 1))
    with pytest.raises(ArgumentError, match="with block"):
        writer.write(np.zeros((1, 1)))
    with pytest.raises(ArgumentError, match="with block"):
        _ = writer.entry
    with writer:
        writer.write(np.zeros((1, 1)))
        with pytest.raises(ArgumentError, match="after the block"):
            _ = writer.entry
    for rows in ([3], [1, 2]):
        with pytest.raises(ShapeError, match="blocks"):
            write_array_rows(tmp_path / "y", [np.zeros((n, 2)) for n in rows], (2, 2) if rows == [3] else (4, 2))
    for bad in (np.array([None]), np.array(["a"]), np.zeros(1, "i4,f4"), np.array([1], "M8[s]")):
        with pytest.raises(ArgumentError, match="array"):
            save_array(tmp_path / "z", bad)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_wrong_entry(tmp_path):
    """Oracle: the documented error."""
    entry = save_array(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(ArtifactError, match="xxh3"):
        open_array(tmp_path / "x.npy", FileEntry(entry.size, "0" * 32))
