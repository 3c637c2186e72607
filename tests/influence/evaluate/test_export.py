"""Files for other libraries' metrics."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hesse.errors import ArgumentError, ShapeError
from hesse.influence.evaluate import draw_masks, export_scores, metric_tensors


def test_layouts_carry_the_numbers(tmp_path):
    """Oracle: what went in, entry by entry, read back by safetensors itself."""
    rng = np.random.default_rng(0)
    scores, masks, outcomes = rng.normal(size=(3, 10)), draw_masks(4, 10), rng.normal(size=(2, 4, 3))
    for layout in ("quanda", "dattri"):
        path = export_scores(tmp_path / f"{layout}.safetensors", scores, layout=layout, masks=masks, outcomes=outcomes)
        found = load_file(path)
        quanda = layout == "quanda"
        table = found["explanations"] if quanda else found["score"].T
        np.testing.assert_array_equal(table.numpy(), scores)
        target = found["subset_logits"][..., 0] if quanda else found["target"]
        np.testing.assert_array_equal(target.numpy(), outcomes.mean(0))
        for row, mask in zip(found["subset_ids" if quanda else "indices"], masks, strict=True):
            assert row.tolist() == np.flatnonzero(mask).tolist()
    assert list(metric_tensors(scores, layout="quanda")) == ["explanations"]
    assert metric_tensors(scores, layout="dattri")["score"].shape == (10, 3)


def test_bad_input_is_named():
    """Oracle: the argument that each message names."""
    scores, masks, outcomes = np.ones((3, 10)), draw_masks(4, 10), np.ones((4, 3))
    ragged = masks.copy()
    ragged[0] = True
    for options, error, message in [
        ({"layout": "csv"}, ArgumentError, "layout"),
        ({"layout": "dattri", "masks": masks}, ShapeError, "masks, outcomes"),
        ({"layout": "dattri", "masks": masks, "outcomes": outcomes.T}, ShapeError, "masks"),
        ({"layout": "dattri", "masks": ragged, "outcomes": outcomes}, ShapeError, "one size"),
    ]:
        with pytest.raises(error, match=message):
            metric_tensors(scores, **options)
    assert torch.is_tensor(metric_tensors(scores, layout="dattri")["score"])
