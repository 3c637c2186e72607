"""Data sets as the engine sees them: batches, units, padding, packing."""

import numpy as np
import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, HesseError, ShapeError
from hesse.influence.examples import ArrayExamples, TokenExamples, as_examples, plan_batches, plan_units
from hesse.influence.sequences import Sequence


def sequence(name, tokens, labels=None, row=None):
    ids = np.array(tokens)
    return Sequence(name, row or name, ids, ids.copy() if labels is None else np.array(labels))


def three():
    return [sequence("a", [1, 2, 3]), sequence("b", [4, 5]), sequence("c", [6, 7, 8, 9])]


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding(side):
    """Oracle: by hand. A first token is predicted by nothing, on the left neither by padding."""
    batch = TokenExamples(three(), 0, side).batch([1, 0])
    if side == "right":
        assert batch["input_ids"].tolist() == [[4, 5, 0], [1, 2, 3]]
        assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
        assert batch["labels"][:, 1:].tolist() == [[5, -100], [2, 3]]
    else:
        assert batch["input_ids"].tolist() == [[0, 4, 5], [1, 2, 3]]
        assert batch["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
        assert batch["labels"][:, 1:].tolist() == [[-100, 5], [2, 3]]
        assert batch["position_ids"].tolist() == [[0, 0, 1], [0, 1, 2]]


def test_packing():
    """Oracle: by hand: one row, every document by itself."""
    batch = TokenExamples(three(), pack=True).batch([1, 0])
    assert batch["input_ids"].tolist() == [[4, 5, 1, 2, 3]]
    assert batch["labels"].tolist() == [[-100, 5, -100, 2, 3]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
    assert batch["segment_ids"].tolist() == [[0, 0, 1, 1, 1]]
    allowed = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert batch["attention_mask"].int().tolist() == [[allowed]]


def test_rows_and_lengths():
    """Oracle: by hand; chunks keep the id of their row."""
    data = [sequence("a.0", [1, 2, 3], row="a"), sequence("a.1", [4], row="a")]
    examples = TokenExamples(data)
    assert (examples.ids, examples.rows, examples.lengths) == (["a.0", "a.1"], ["a", "a"], [3, 1])
    arrays = ArrayExamples(torch.ones(2, 3), torch.zeros(2), ["x", "y"])
    assert (arrays.ids, arrays.rows, arrays.lengths, len(arrays)) == (["x", "y"], ["x", "y"], [1, 1], 2)
    assert arrays.batch([1])["inputs"].shape == (1, 3)


def test_what_users_have_is_wrapped():
    """Oracle: the Sequence objects it stands for."""
    assert as_examples(three()).ids == ["a", "b", "c"]
    rows = [
        {"id": 7, "input_ids": [1, 2, 3, 0], "attention_mask": [1, 1, 1, 0], "source": "web"},
        {"input_ids": torch.tensor([4, 5]), "labels": [-100, 5], "text": "x y"},
    ]
    examples = as_examples(rows)
    assert (examples.ids, examples.lengths) == (["7", "1"], [3, 2])
    assert examples.sequences[0].input_ids.tolist() == [1, 2, 3]
    assert examples.sequences[1].labels.tolist() == [-100, 5]
    assert as_examples(examples) is examples
    arrays = as_examples((torch.ones(3, 2), torch.arange(3)))
    assert arrays.ids == ["0", "1", "2"]


class MapStyle:
    """A data set of torch's map style: no iteration, no IndexError."""

    def __len__(self):
        return 2

    def __getitem__(self, number):
        return {"input_ids": [[1, 2, 3], [4, 5]][number]}


def test_token_ids_come_in_many_forms(tmp_path):
    """Oracle: the same two sequences, written by hand; an array of rows of one length likewise."""
    rows = [{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5]}]
    (tmp_path / "rows.jsonl").write_text('{"id": 0, "input_ids": [1, 2, 3]}\n{"id": 1, "input_ids": [4, 5]}\n')
    wanted = as_examples(rows).fingerprint()
    arrays = [np.array([1, 2, 3], np.uint16), torch.tensor([4, 5])]
    for data in (
        iter(rows),
        MapStyle(),
        arrays,
        [(1, 2, 3), [4, 5]],
        tmp_path / "rows.jsonl",
        str(tmp_path / "rows.jsonl"),
    ):
        assert as_examples(data).fingerprint() == wanted
    table = np.arange(6, dtype=np.int32).reshape(2, 3)
    np.save(tmp_path / "rows.npy", table)
    wanted = as_examples([{"input_ids": row.tolist()} for row in table]).fingerprint()
    for data in (table, torch.from_numpy(table), tmp_path / "rows.npy", np.load(tmp_path / "rows.npy", mmap_mode="r")):
        assert as_examples(data).fingerprint() == wanted
    datasets = pytest.importorskip("datasets")
    assert as_examples(datasets.Dataset.from_list(rows)).fingerprint() == as_examples(rows).fingerprint()


@pytest.mark.parametrize("argument", ["dataset", "queries"])
def test_an_error_names_the_argument(argument, tmp_path):
    """Oracle: the first word of the message, which is what the caller called the data."""
    (tmp_path / "text.jsonl").write_text('{"id": "a", "text": "x"}\n')
    for data, message in [
        ([], "it holds no sequence"),
        ((torch.ones(0, 1), torch.ones(0)), "it holds no sequence"),
        ([{"id": "a", "input_ids": [1]}] * 2, "'a' occurs twice"),
        ([{"input_ids": []}], "'0' is empty"),
        ([{"input_ids": [1, 2], "labels": [1]}], "2 tokens but 1 labels"),
        ([{"input_ids": [1, 2], "labels": [1], "attention_mask": [1, 0]}], "2 tokens but 1 labels"),
        ([{"input_ids": [1, 2], "attention_mask": [1]}], r"attention_mask of shape \(1,\)"),
        ([{"input_ids": [1.5]}], "flat list of integers"),
        ([{"input_ids": [[1, 2]]}], "flat list of integers"),
        ([{"input_ids": [[1], [1, 2]]}], "flat list of integers"),
        ([{"input_ids": "ab"}], "flat list of integers"),
        ((torch.ones(3, 1), torch.ones(2)), "do not match"),
        ([{"text": "x"}], "items of type dict"),
        (3, "got int"),
        ({"input_ids": [1]}, "got dict"),
        (tmp_path / "text.jsonl", "row 'a' of .* has no input_ids"),
    ]:
        with pytest.raises(HesseError, match=f"^{argument}: .*{message}"):
            as_examples(data, argument=argument)


def test_fingerprints_tell_data_apart():
    """Oracle: equal for equal data, different for another order, label or id."""

    def prints(make):
        return {make().fingerprint() for _ in range(2)}

    same = prints(lambda: TokenExamples(three()))
    assert len(same) == 1
    changed = [three()[::-1], [*three()[:2], sequence("d", [6, 7, 8, 9])]]
    changed.append([*three()[:2], sequence("c", [6, 7, 8, 9], [-100, 7, 8, -100])])
    for data in changed:
        assert prints(lambda data=data: TokenExamples(data)).isdisjoint(same)
    x, y = torch.randn(3, 2), torch.arange(3)
    names = ["a", "b", "c"]
    same = prints(lambda: ArrayExamples(x, y, names))
    assert len(same) == 1
    for inputs, labels, ids in [(x + 1, y, names), (x, y + 1, names), (x, y, ["a", "b", "d"]), (x.double(), y, names)]:
        assert ArrayExamples(inputs, labels, ids).fingerprint() not in same
    assert ArrayExamples(x.bfloat16(), y, names).fingerprint() not in same


def test_units_partition_the_data():
    """Oracle: every number once, in order."""
    for total, size, start in [(10, 3, 0), (10, 3, 6), (4, 10, 0), (0, 2, 0)]:
        units = plan_units(total, size, start)
        assert [i for unit in units for i in unit] == list(range(start, total))
        assert all(len(unit) <= size for unit in units)
    with pytest.raises(ArgumentError, match="unit_size"):
        plan_units(3, 0)


@pytest.mark.parametrize("budget", [1, 7, 12, 1000])
def test_batches_keep_to_the_token_budget(budget):
    """Oracle: every sequence of the unit once; padded tokens within the budget unless one sequence exceeds it alone."""
    lengths = [int(n) for n in np.random.default_rng(0).integers(1, 9, 30)]
    batches = list(plan_batches(lengths, range(5, 30), budget))
    assert sorted(i for batch in batches for i in batch) == list(range(5, 30))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
        assert [lengths[i] for i in batch] == sorted((lengths[i] for i in batch), reverse=True)


def test_batches_of_a_fixed_size():
    """Oracle: all of that size but the last."""
    batches = list(plan_batches([3] * 10, range(10), 1, 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(i for batch in batches for i in batch) == list(range(10))


def test_bad_data_is_refused():
    """Oracle: the error, with the id."""
    with pytest.raises(ArgumentError, match="'a' occurs twice"):
        TokenExamples([sequence("a", [1]), sequence("a", [2])])
    with pytest.raises(ArgumentError, match="'a' is empty"):
        TokenExamples([sequence("a", [])])
    with pytest.raises(ShapeError, match="'a' has 2 tokens but 1 labels"):
        TokenExamples([sequence("a", [1, 2], [1])])
    with pytest.raises(ArgumentError, match="side"):
        TokenExamples(three(), side="middle")
    with pytest.raises(ShapeError, match="do not match"):
        ArrayExamples(torch.ones(2, 1), torch.ones(3), ["a", "b"])
    with pytest.raises(ArgumentError, match="occurs twice"):
        ArrayExamples(torch.ones(2, 1), torch.ones(2), ["a", "a"])
    for empty in ([], (torch.ones(0, 2), torch.ones(0))):
        with pytest.raises(ArgumentError, match="holds no sequence"):
            as_examples(empty)
    with pytest.raises(ArgumentTypeError, match="type int"):
        as_examples([1, 2])
