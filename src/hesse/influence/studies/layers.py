"""In which layers does the influence on a query sit? Average shares of layers over its strongest proponents.

Shapes: Q queries, L weight matrices, B blocks.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hesse.errors import ArgumentError
from hesse.influence.plots import axes_or_new, draw_cells
from hesse.influence.scores import Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LayerStudy", "study_layers"]

_BLOCK = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class LayerStudy:
    """Shares of layers: parts of a sum under block-diagonal curvature, not what happens if a layer is cut out."""

    query_ids: list[str]
    layer_names: list[str]
    shares: np.ndarray  # (Q, L): mean of term / Σ|terms|, between -1 and 1; NaN where a query has no proponent
    num_rows: np.ndarray  # (Q,) proponents averaged over
    tags: list[str] | None

    def blocks(self) -> tuple[list[str], np.ndarray]:
        """Add up the matrices of each block, found by the first number in their names.

        Returns
        -------
        names : list of str
            B of them, in order; a matrix without a number is a block of its own.
        shares : ndarray, shape (Q, B)
            Sums.
        """
        labels = [match[1] if (match := _BLOCK.search(name)) else name for name in self.layer_names]
        names = list(dict.fromkeys(labels))
        member = np.array([[label == name for name in names] for label in labels], dtype=np.float64)
        return names, self.shares @ member

    def centre(self) -> np.ndarray:
        """Σ_b depth_b |share_b| / Σ_b |share_b|, the mean depth of the influence.

        Returns
        -------
        ndarray, shape (Q,)
            0 is the first block, 1 the last; ½ if all blocks count alike. NaN without a proponent.
        """
        sizes = np.abs(self.blocks()[1])
        total = sizes.sum(1)
        depth = np.linspace(0, 1, sizes.shape[1])
        return np.divide(sizes @ depth, total, out=np.full(len(sizes), np.nan), where=total > 0)

    def by_tag(self) -> dict[str, np.ndarray]:
        """Average the shares of the blocks over queries of the same tag.

        Returns
        -------
        dict of str to ndarray, shape (B,)
            In order of first appearance; one entry, "all", if there are no tags.
        """
        tags = self.tags or ["all"] * len(self.query_ids)
        shares, known = self.blocks()[1], self.num_rows > 0
        places = {tag: [i for i, own in enumerate(tags) if own == tag and known[i]] for tag in dict.fromkeys(tags)}
        return {tag: shares[rows].mean(0) for tag, rows in places.items() if rows}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python, None for NaN.

        Returns
        -------
        dict
            JSON values.
        """
        names, shares = self.blocks()
        centre = self.centre()
        listed = []
        for i, query in enumerate(self.query_ids):
            known = bool(self.num_rows[i])
            listed.append(
                {
                    "id": query,
                    "tag": None if self.tags is None else self.tags[i],
                    "rows": int(self.num_rows[i]),
                    "shares": self.shares[i].tolist() if known else None,
                    "block_shares": shares[i].tolist() if known else None,
                    "centre": float(centre[i]) if known else None,
                }
            )
        tags = {tag: mean.tolist() for tag, mean in self.by_tag().items()}
        return {"study": "layers", "layers": self.layer_names, "blocks": names, "queries": listed, "by_tag": tags}

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the shares of the blocks, zero white: a line of cells a query, or a tag if there are tags.

        Parameters
        ----------
        ax : Axes, optional
            Default: new ones.

        Returns
        -------
        Axes
            First block left.
        """
        axes = axes_or_new(ax)
        names, shares = self.blocks()
        lines = dict(zip(self.query_ids, np.nan_to_num(shares), strict=True)) if self.tags is None else self.by_tag()
        draw_cells(axes, np.stack(list(lines.values())), label="mean share of the influence")
        axes.set(xlabel="block", xticks=range(len(names)), xticklabels=names)
        axes.set(yticks=range(len(lines)), yticklabels=list(lines))
        return axes


def study_layers(scores: Scores, *, k: int = 50, sign: int = 1, tags: Mapping[str, str] | None = None) -> LayerStudy:
    """Average, over the k strongest proponents of each query, term_l / Σ_l' |term_l'| of every layer l.

    Each row counts alike, however strong: it is the pattern that is averaged.

    Parameters
    ----------
    scores : Scores
        Scored with ``per_layer=True``.
    k : int, default 50
        Rows a query; fewer if it has fewer of that sign.
    sign : {1, -1}, default 1
        Proponents, or opponents, whose shares are then mostly negative.
    tags : mapping of str to str, optional
        A kind of each query, such as "abstract" or "memorised", to compare kinds.

    Returns
    -------
    LayerStudy
        Q queries, L layers.

    Raises
    ------
    ArgumentError
        If the terms of layers were not kept, ``k < 1``, the sign is neither, or a query has no tag.

    References
    ----------
    R. Grosse, J. Bae, C. Anil et al. (2023), arXiv 2308.03296.
    """
    if not scores.state["per_layer"]:
        raise ArgumentError("study_layers: these scores keep no terms of layers; score with per_layer=True")
    names = scores.query_ids
    if tags is not None and (strangers := [name for name in names if name not in tags]):
        raise ArgumentError(f"tags: query {strangers[0]!r} has none")
    shares = np.full((len(names), len(scores.layer_names)), np.nan)
    counts = np.zeros(len(names), dtype=np.int64)
    for i, query in enumerate(names):
        ranked = scores.topk(query, k, sign)
        terms = [part for item in ranked if (part := scores.layer_terms(query, item.id)) is not None]
        if terms:
            stacked = np.stack(terms).astype(np.float64)
            sizes = np.abs(stacked).sum(1, keepdims=True)
            shares[i] = (stacked / np.where(sizes > 0, sizes, 1.0)).mean(0)
            counts[i] = len(terms)
    return LayerStudy(names, scores.layer_names, shares, counts, None if tags is None else [tags[n] for n in names])
