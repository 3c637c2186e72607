"""What dropping weights costs, and how the others make up for it, in the quadratic model ½ δᵀFδ of the loss.

    single unit B:  ρ = ½ w_Bᵀ [F⁻¹]_BB⁻¹ w_B,    δ = F⁻¹t  with  t_B = -[F⁻¹]_BB⁻¹ w_B
    a set Q:        δ_Q = -w_Q,    δ_K = F_KK⁻¹ F_KQ w_Q  for the weights K that stay

Shapes: D weights, m gradients, U units of S weights, given as numbers of weights with -1 where one is gone already.
"""

import torch
from torch import Tensor

from hesse.curvature import MFACInverse
from hesse.errors import SingularError

__all__ = ["joint_update", "predicted_increase", "saliencies", "summed_update", "unit_curvature"]


@torch.no_grad()
def unit_curvature(inverse: MFACInverse, units_US: Tensor) -> Tensor:
    """[F⁻¹]_BB of every unit B.

    Parameters
    ----------
    inverse : MFACInverse, shape (D, D)
        F⁻¹.
    units_US : Tensor of int, shape (U, S)
        Numbers of weights, -1 for none.

    Returns
    -------
    Tensor, shape (U, S, S)
        Rows and columns of the identity at -1. For S = 1 the diagonal, O(D m²) time and O(D) memory; otherwise in
        float64 with O(D m) of it.

    Notes
    -----
    λF⁻¹ = I - F⁻¹GᵀG/m, with F⁻¹Gᵀ free of cancellation; the subtraction costs ‖g‖²/(mλ) roundings of float64.
    """
    if units_US.shape[1] == 1:
        return inverse.diagonal()[units_US].unsqueeze(-1)
    grads = inverse.grads.double()
    m = len(grads)
    wide = MFACInverse(grads, inverse.damping, inverse.block_size)
    W_Dm = wide.inverse_of_combination(torch.eye(m, dtype=grads.dtype, device=grads.device))
    U, S = units_US.shape
    found = torch.eye(S, dtype=grads.dtype, device=grads.device).repeat(U, 1, 1)
    there = units_US >= 0
    for i in range(S):
        for j in range(i + 1):
            both = (there[:, i] & there[:, j]).nonzero().squeeze(1)
            a, b = units_US[both, i], units_US[both, j]
            entry = ((a == b).to(grads.dtype) - (W_Dm[a] * grads[:, b].mT).sum(1) / m) / inverse.damping
            entry = torch.where(a // inverse.block_size == b // inverse.block_size, entry, 0)
            found[both, i, j] = found[both, j, i] = entry
    return found


@torch.no_grad()
def saliencies(weights: Tensor, units_US: Tensor, curvature_USS: Tensor) -> tuple[Tensor, Tensor]:
    """ρ of every unit, and its t.

    Parameters
    ----------
    weights : Tensor, shape (D,)
        w.
    units_US : Tensor of int, shape (U, S)
        Numbers of weights, -1 for none.
    curvature_USS : Tensor, shape (U, S, S)
        From `unit_curvature`.

    Returns
    -------
    tuple of Tensor, shapes (U,) and (U, S)
        ρ >= 0 in the units of the loss: what it rises by if the unit is dropped and the others make up for it; and t.

    Raises
    ------
    SingularError
        If [F⁻¹]_BB has come out without positive definiteness.
    """
    w = torch.where(units_US >= 0, weights[units_US.clamp(min=0)], 0).to(curvature_USS.dtype)
    if units_US.shape[1] == 1:
        lost = ~(curvature_USS > 0)
        t = -w / curvature_USS[..., 0]
    else:
        factor, lost = torch.linalg.cholesky_ex(curvature_USS)
        t = -torch.cholesky_solve(w.unsqueeze(-1), factor).squeeze(-1)
    if bool(lost.any()):
        raise SingularError(
            "OBSPruner: [F⁻¹]_BB of a unit has lost positive definiteness to rounding; use a larger damping"
        )
    return -(w * t).sum(1) / 2, t


@torch.no_grad()
def summed_update(inverse: MFACInverse, units_US: Tensor, t_US: Tensor) -> Tensor:
    """F⁻¹t: the updates of single units added up, as if none of the others were dropped.

    Parameters
    ----------
    inverse : MFACInverse, shape (D, D)
        F⁻¹.
    units_US : Tensor of int, shape (U, S)
        The units that go.
    t_US : Tensor, shape (U, S)
        Theirs, from `saliencies`.

    Returns
    -------
    Tensor, shape (D,)
        δ; exact for a single unit. For several, dropped weights do not come out at zero and must be set so: the
        model's optimum for all of them is `joint_update`. O(D m).
    """
    t = torch.zeros(inverse.shape[0], dtype=inverse.dtype, device=inverse.device)
    there = units_US >= 0
    t[units_US[there]] = t_US[there].to(t.dtype)
    return inverse @ t


@torch.no_grad()
def joint_update(grads: Tensor, weights: Tensor, dropped: Tensor, damping: float, block_size: int | None) -> Tensor:
    """Move the weights that stay to the minimum of ½ δᵀFδ under δ_Q = -w_Q.

    Parameters
    ----------
    grads : Tensor, shape (m, D)
        G.
    weights : Tensor, shape (D,)
        w.
    dropped : Tensor of bool, shape (D,)
        Q.
    damping : float
        λ.
    block_size : int, optional
        Of F, as of `MFACInverse`. Default: one block.

    Returns
    -------
    Tensor, shape (D,)
        δ, exact for this F and free of cancellation: F_KQ w_Q = G_Kᵀ(G_Q w_Q)/m is a combination of gradients, so that
        Woodbury's identity on the weights that stay, O(D m²), takes the place of a solve with [F⁻¹]_QQ.
    """
    m, d = grads.shape
    size = min(block_size or d, d)
    delta = torch.where(dropped, -weights, 0).to(torch.promote_types(grads.dtype, torch.float32))
    step = max(1, _CHUNK // (m * size)) * size  # whole blocks, a few at a time
    for start in range(0, d, step):
        chunk = slice(start, start + step)
        rows, gone, w = grads[:, chunk], dropped[chunk], weights[chunk]
        if bool(gone.all()):
            continue
        kept = torch.where(gone, 0, rows)  # a column of zeros has no part in K, and no update
        c_BM1 = _by_block(torch.where(gone, rows, 0), w, size) / m
        made_up = MFACInverse(kept, damping, size).inverse_of_combination(c_BM1.unsqueeze(-1)).squeeze(-1)
        delta[chunk] = torch.where(gone, delta[chunk], made_up.to(delta.dtype))
    return delta


_CHUNK = 2**24  # entries of G that are worked on at a time, unless a block has more


def _by_block(rows: Tensor, w: Tensor, size: int) -> Tensor:
    # (B, m): products of every block of columns with its piece of w, in float64
    short = -rows.shape[1] % size
    wide_MBS = torch.nn.functional.pad(rows, (0, short)).double().unflatten(1, (-1, size))
    return torch.einsum(
        "mbs,bs->bm", wide_MBS, torch.nn.functional.pad(w, (0, short)).double().unflatten(0, (-1, size))
    )


@torch.no_grad()
def predicted_increase(grads: Tensor, delta: Tensor, damping: float, block_size: int | None) -> float:
    """½ δᵀFδ, what the model says a change of the weights costs.

    Parameters
    ----------
    grads : Tensor, shape (m, D)
        G.
    delta : Tensor, shape (D,)
        δ.
    damping : float
        λ.
    block_size : int, optional
        Of F. Default: one block.

    Returns
    -------
    float
        In the units of the loss. O(D m).
    """
    total = damping * delta.double().square().sum()
    size = block_size or len(delta)
    for rows, piece in zip(grads.split(size, 1), delta.split(size), strict=True):
        total = total + (rows.to(delta.dtype) @ piece).double().square().sum() / len(grads)
    return float(total) / 2
