"""What a cloud of features says about its classes: their subspaces, how far they spread, how far subspaces overlap.

Shapes: N rows, D features, C classes, K dimensions of a subspace.
"""

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError

__all__ = ["class_subspaces", "intra_class_variability", "overlap_penalty"]


def class_subspaces(
    features: Tensor,
    labels: Tensor,
    subspace_dim: int = 8,
    *,
    energy: float | None = None,
    num_classes: int | None = None,
) -> list[Tensor]:
    """Find the subspace nearest the unit features of each class: leading right singular vectors, not centred.

    It maximises the mean of ‖Sᵀ f/‖f‖‖² over the class, the square of the logit of `GrassmannLinear`, so that a network
    trained with another head can go on from `GrassmannLinear.from_subspaces`.

    Parameters
    ----------
    features : Tensor, shape (N, D)
        Their lengths do not matter; at least K rows a class.
    labels : Tensor of int64, shape (N,)
        In [0, C).
    subspace_dim : int, default 8
        K of every class, 1 <= K < D; the most, if ``energy`` is given.
    energy : float, optional
        In (0, 1]: give each class the fewest dimensions that keep this share of its mean squared length.
    num_classes : int, optional
        C. Default: the largest label and one.

    Returns
    -------
    list of C Tensor, shape (D, K_c)
        Orthonormal columns, leading direction first. O(N D min(N, D)) time.

    Raises
    ------
    ArgumentError
        If ``subspace_dim`` or ``energy`` is out of range, a class has fewer rows than dimensions, or a row is zero.
    ShapeError
        If features and labels do not belong together.
    """
    unit = _unit("class_subspaces", features, labels)
    if not 1 <= subspace_dim < features.shape[1]:
        raise ArgumentError(f"class_subspaces: expected 1 <= subspace_dim < {features.shape[1]}, got {subspace_dim}")
    if energy is not None and not 0 < energy <= 1:
        raise ArgumentError(f"class_subspaces: expected energy in (0, 1], got {energy}")
    count = int(labels.max()) + 1 if num_classes is None else num_classes
    rows = torch.bincount(labels, minlength=count)
    if len(rows) > count or int(rows.min()) < subspace_dim:
        raise ArgumentError(
            f"class_subspaces: expected labels below {count} and {subspace_dim} rows a class, got {rows.tolist()} rows"
        )
    bases = []
    for c in range(count):
        _, lengths, directions = torch.linalg.svd(unit[labels == c], full_matrices=False)
        k = subspace_dim
        if energy is not None:
            share = lengths.square().cumsum(0) / lengths.square().sum()
            k = min(k, int((share < energy * (1 - torch.finfo(share.dtype).eps * 8)).sum()) + 1)
        bases.append(directions[:k].mT.contiguous())
    return bases


def intra_class_variability(features: Tensor, labels: Tensor) -> Tensor:
    """Average the angle between two features of one class, over all pairs, then over the classes.

    Parameters
    ----------
    features : Tensor, shape (N, D)
        Their lengths do not matter.
    labels : Tensor of int64, shape (N,)
        Classes with fewer than two rows have no pairs, and do not count.

    Returns
    -------
    Tensor, shape ()
        In [0, π] rad; differentiable. O(n² D) time and O(n²) memory for the largest class of n rows.

    Raises
    ------
    ArgumentError
        If no class has two rows, or a row is zero.
    ShapeError
        If features and labels do not belong together.
    """
    unit = _unit("intra_class_variability", features, labels)
    means = []
    for label in labels.unique():
        members = unit[labels == label]
        if len(members) > 1:
            first, second = torch.triu_indices(len(members), len(members), 1, device=members.device)
            cosines = (members @ members.mT)[first, second]
            # atan2 of half the chord: arccos has no derivative, and no precision, where two features agree
            halves = ((1 - cosines).clamp_min(0) / 2).clamp_min(torch.finfo(cosines.dtype).tiny).sqrt()
            others = ((1 + cosines).clamp_min(0) / 2).clamp_min(torch.finfo(cosines.dtype).tiny).sqrt()
            means.append((2 * torch.atan2(halves, others)).mean())
    if not means:
        raise ArgumentError("intra_class_variability: no class has two rows")
    return torch.stack(means).mean()


def overlap_penalty(weight: Tensor) -> Tensor:
    """Average ‖S_aᵀ S_b‖² over pairs of classes: zero if and only if all subspaces are orthogonal to each other.

    Parameters
    ----------
    weight : Tensor, shape (C, D, K)
        Orthonormal columns, or columns of zeros; C >= 2.

    Returns
    -------
    Tensor, shape ()
        Sum of the squared cosines of all principal angles of a pair, in [0, K]; add it to a loss with a factor of one's
        own. O(C D K min(D, C K)) time: the pairs are never formed where C K > D.

    Raises
    ------
    ShapeError
        If there are not at least two classes of matrices.
    """
    if weight.ndim != 3 or len(weight) < 2:
        raise ShapeError(f"overlap_penalty: expected weight (C, d, k) with C >= 2, got shape {tuple(weight.shape)}")
    count, dim, k = weight.shape
    columns = weight.permute(1, 0, 2).reshape(dim, count * k)
    gram = columns @ columns.mT if dim < count * k else columns.mT @ columns
    own = (weight.mT @ weight).square().sum()
    return (gram.square().sum() - own) / (count * (count - 1))


def _unit(call: str, features: Tensor, labels: Tensor) -> Tensor:
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(features):
        raise ShapeError(
            f"{call}: expected features (N, d) and labels (N,), got {tuple(features.shape)} and {tuple(labels.shape)}"
        )
    if labels.dtype != torch.int64 or int(labels.min()) < 0:
        raise ArgumentError(f"{call}: expected labels >= 0 of int64, got {labels.dtype} from {labels.min().item()}")
    lengths = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    if not bool(((lengths > 0) & torch.isfinite(lengths)).all()):
        raise ArgumentError(f"{call}: a feature vector is zero or not finite, and has no direction")
    return features / lengths
