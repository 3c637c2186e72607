"""Score files in the layouts that other libraries' metrics read.   Shapes: Q queries, N sequences, M subsets."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from hesse.errors import ShapeError
from hesse.influence.checks import one_of
from hesse.influence.evaluate.lds import score_table
from hesse.influence.scores import Scores
from hesse.io import save_tensors

__all__ = ["export_scores", "metric_tensors"]

Layout = Literal["quanda", "dattri"]


def metric_tensors(
    scores: Scores | ArrayLike,
    *,
    layout: Layout,
    masks: ArrayLike | None = None,
    outcomes: ArrayLike | None = None,
) -> dict[str, Tensor]:
    """Lay scores, and the truth beside them, out as another library's metrics take them.

    Parameters
    ----------
    scores : Scores or array_like, shape (Q, N)
        Positive raises the query's log-probability.
    layout : {"quanda", "dattri"}
        "quanda": ``explanations`` (Q, N), for ``metric.update``; ``subset_ids`` (M, N/2) and ``subset_logits``
        (M, Q, 1), one entry a subset. "dattri": ``score`` (N, Q); ``target`` (M, Q) and ``indices`` (M, N/2), which
        together are the ``ground_truth`` of ``dattri.metric.lds``.
    masks : array_like of bool, shape (M, N), optional
        Subsets, all of one size, as `draw_masks` makes them.
    outcomes : array_like, shape (R, M, Q) or (M, Q), optional
        f after training on them; averaged over runs.

    Returns
    -------
    dict of str to Tensor
        float64 and int64, on the CPU.

    Raises
    ------
    ArgumentError
        If the layout is unknown.
    ShapeError
        If masks and outcomes do not fit the scores, one comes without the other, or subsets differ in size.
    """
    one_of("layout", layout, ("quanda", "dattri"))
    values = torch.from_numpy(score_table(scores))
    named = {"explanations": values} if layout == "quanda" else {"score": values.T.contiguous()}
    if masks is None and outcomes is None:
        return named
    if masks is None or outcomes is None:
        raise ShapeError("masks, outcomes: give both or neither")
    kept, found = np.asarray(masks, dtype=bool), np.asarray(outcomes, dtype=np.float64)
    found = found.mean(0) if found.ndim == 3 else found
    if kept.ndim != 2 or kept.shape[1] != values.shape[1] or found.shape != (len(kept), len(values)):
        raise ShapeError(
            f"masks (M, N) = {kept.shape} and outcomes (M, Q) = {found.shape} do not fit scores {tuple(values.shape)}"
        )
    sizes = kept.sum(1)
    if (sizes != sizes[0]).any():
        raise ShapeError(f"masks: expected subsets of one size, got {int(sizes.min())} to {int(sizes.max())}")
    indices = torch.from_numpy(np.nonzero(kept)[1].reshape(len(kept), -1))
    target = torch.from_numpy(found)
    if layout == "quanda":
        return named | {"subset_ids": indices, "subset_logits": target[..., None].contiguous()}
    return named | {"target": target, "indices": indices}


def export_scores(
    path: Path | str,
    scores: Scores | ArrayLike,
    *,
    layout: Layout,
    masks: ArrayLike | None = None,
    outcomes: ArrayLike | None = None,
) -> Path:
    """Write `metric_tensors` to one safetensors file, which torch users read with ``safetensors.torch.load_file``.

    Parameters
    ----------
    path : path
        Of the file; replaced as a whole.
    scores, layout, masks, outcomes : see `metric_tensors`
        As there.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    WriteError
        If it cannot be written.
    """
    target = Path(path)
    save_tensors(target, metric_tensors(scores, layout=layout, masks=masks, outcomes=outcomes))
    return target
