"""Steps on stacks of subspaces, and the watch over them that the optimisers share.

Shapes: stacks (..., D, K) of orthonormal bases. A column of zeros pads a subspace of fewer dimensions, and stays zero.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.linalg import GrassmannParameter, orthonormalize

__all__ = ["Retraction", "check_options", "geodesic_step", "retract", "split_parameters", "tangent_", "watch"]

Retraction = Literal["exp", "qr"]
_MOST_SKIPPED = 3  # steps in a row that a subspace may sit out for a gradient with NaN or Inf


@torch.no_grad()
def geodesic_step(S: Tensor, H: Tensor, t: float) -> Tensor:
    """Follow the geodesic from S for time t, S cos(t√M) + t H sinc(t√M) with the small matrix M = HᵀH.

    The same point as `hesse.linalg.grassmann_exp` gives, which is the one to differentiate. Both functions are entire
    in M, so an eigendecomposition of the K x K matrices M serves as well as a singular value decomposition of H, at a
    fraction of the cost.

    Parameters
    ----------
    S : Tensor, shape (..., D, K)
        Orthonormal columns; columns of zeros are left as they are if those of H are zero too.
    H : Tensor, shape (..., D, K)
        Tangent vectors, SᵀH = 0.
    t : float
        Time; t ‖H‖ is the length of the path in radians.

    Returns
    -------
    Tensor, shape (..., D, K)
        Orthonormal to rounding, with the strides of S. O(D K²) a subspace.

    Raises
    ------
    ShapeError
        If S and H are not matrices of one shape.
    """
    if S.ndim < 2 or S.shape != H.shape:
        raise ShapeError(f"geodesic_step: expected S and H (..., d, k) of one shape, got {S.shape} and {H.shape}")
    flat = _flat(H)
    squares, V = torch.linalg.eigh(flat.mT @ flat)
    angles = t * squares.clamp_min(0).sqrt()
    along = V * torch.cos(angles).unsqueeze(-2) @ V.mT
    across = V * (t * torch.sinc(angles / math.pi)).unsqueeze(-2) @ V.mT
    moved = torch.empty_like(S)
    torch.bmm(_flat(S), along, out=_flat(moved)).baddbmm_(flat, across)
    return moved


def tangent_(S: Tensor, B: Tensor) -> Tensor:
    """Replace B by (I - SSᵀ) B.

    Parameters
    ----------
    S, B : Tensor, shape (..., D, K)
        Point and direction; B is overwritten, since QR leaves S with long columns and a new product would have long
        rows, twice as slow to combine.

    Returns
    -------
    Tensor, shape (..., D, K)
        B itself.
    """
    S_flat, B_flat = _flat(S), _flat(B)
    B_flat.baddbmm_(S_flat, S_flat.mT @ B_flat, alpha=-1)
    return B


def _flat(S: Tensor) -> Tensor:
    return S.view(-1, *S.shape[-2:]) if S.ndim <= 3 else S.flatten(0, -3)


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[GrassmannParameter]]:
    """Tell ordinary parameters from subspaces, to give each their own optimiser.

    Parameters
    ----------
    model : Module
        Any.

    Returns
    -------
    euclidean : list of Parameter
        For AdamW, LAMB or whatever suits the backbone.
    grassmann : list of GrassmannParameter
        For `RiemannianSGD`. Shared ones are listed once.

    Examples
    --------
    >>> from torch import nn
    >>> split_parameters(nn.Linear(2, 3, bias=False))[1]
    []
    """
    everything = list(model.parameters())
    grassmann = [p for p in everything if isinstance(p, GrassmannParameter)]
    return [p for p in everything if not isinstance(p, GrassmannParameter)], grassmann


def retract(S: Tensor, H: Tensor, t: float, retraction: Retraction, *, tidy: bool, live: Tensor | None) -> None:
    """Move S in place, along the geodesic or by QR of S + tH; ``tidy`` makes it orthonormal anew."""
    moved = geodesic_step(S, H, t) if retraction == "exp" else S + t * H
    if tidy or retraction == "qr":
        moved = orthonormalize(moved)
    S.copy_(moved if live is None else moved * live)


def watch(call: str, p: Tensor, G: Tensor, state: dict[str, Any], reorthonormalize: int) -> tuple[Tensor | None, bool]:
    """Before a step on p: is it still orthonormal, and which of its subspaces have a gradient to go by?

    Parameters
    ----------
    call : str
        Name of the optimiser, for messages.
    p, G : Tensor, shape (..., D, K)
        Point and gradient.
    state : dict
        The optimiser's for p: the step is counted there, and those that a subspace has sat out in a row.
    reorthonormalize : int
        Steps between checks and QR factorisations; with 0 only the first step is checked.

    Returns
    -------
    usable : Tensor of bool, shape (..., 1, 1), or None
        Where the gradient is finite; None if everywhere.
    tidy : bool
        Whether the step is to end with a QR factorisation.

    Raises
    ------
    ArgumentError
        If p is off the manifold.
    ShapeError
        If p is in half precision.
    NumericalError
        If a subspace has sat out too many steps in a row.
    """
    due = reorthonormalize > 0 and state.get("step", 0) % reorthonormalize == 0
    if not state:
        state["step"] = 0
        state["skipped"] = p.new_zeros(p.shape[:-2])
        live = torch.linalg.vector_norm(p, dim=-2, keepdim=True) > 0
        state["live"] = None if bool(live.all()) else live.to(p.dtype)
        due = True
    if due:
        _require_orthonormal(call, p, state["live"])
    state["step"] += 1
    usable = torch.isfinite(G.sum((-2, -1)))
    tidy = reorthonormalize > 0 and state["step"] % reorthonormalize == 0
    if bool(usable.all()):
        state["skipped"].zero_()
        return None, tidy
    state["skipped"] = torch.where(usable, 0.0, state["skipped"] + 1)
    if int(state["skipped"].max()) >= _MOST_SKIPPED:
        stuck = (state["skipped"] >= _MOST_SKIPPED).nonzero().flatten().tolist()
        raise NumericalError(
            f"{call}: subspaces {stuck[:10]} had gradients with NaN or Inf in {_MOST_SKIPPED} steps in a row; "
            "lower lr, or look at the features they are given"
        )
    return usable[..., None, None], tidy


def _require_orthonormal(call: str, S: Tensor, live: Tensor | None) -> None:
    if S.dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"{call}: subspaces must be kept in float32 or float64, got {S.dtype}")
    wanted = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)
    if live is not None:
        wanted = wanted * live
    gap = float((S.mT @ S - wanted).abs().max())
    if not gap < torch.finfo(S.dtype).eps ** 0.5:
        raise ArgumentError(
            f"{call}: a subspace of a parameter of shape {tuple(S.shape)} is off the manifold, SᵀS - I = {gap:.2g}; "
            "does another optimiser move it too?"
        )


def check_options(call: str, options: dict[str, Any], fractions: Sequence[str]) -> None:
    """Refuse hyper-parameters out of range.

    Parameters
    ----------
    call : str
        Name of the optimiser, for messages.
    options : dict
        By name.
    fractions : sequence of str
        Names of those that must lie in [0, 1).

    Raises
    ------
    ArgumentError
        Naming the first that is out of range.
    """
    for name in ("lr", "weight_decay", "lr_factor"):
        if not (math.isfinite(options[name]) and options[name] >= 0):
            raise ArgumentError(f"{call}: expected a finite {name} >= 0, got {options[name]}")
    for name in fractions:
        if not 0 <= options[name] < 1:
            raise ArgumentError(f"{call}: expected {name} in [0, 1), got {options[name]}")
    if options["retraction"] not in get_args(Retraction):
        raise ArgumentError(f"{call}: retraction must be one of {get_args(Retraction)}, got {options['retraction']!r}")
    period = options["reorthonormalize"]
    if not isinstance(period, int) or period < 0:
        raise ArgumentError(f"{call}: expected an integer reorthonormalize >= 0, got {period}")
