"""From cone variables to a network and back: objectives of both programmes, recovery, projection onto the cones.

Shapes: X (N, D); patterns (N, P); cone variables V (..., 2, P, D), v_i in V[..., 0, i, :] and w_i in V[..., 1, i, :].
"""

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from hesse.errors import ShapeError
from hesse.nn.convex_relu.losses import LossName, loss_value

__all__ = [
    "cone_outputs",
    "constraint_violation",
    "convex_objective",
    "network_objective",
    "network_outputs",
    "project_cones",
    "recover_network",
]


def cone_outputs(V: Tensor, X: Tensor, D: Tensor) -> Tensor:
    """Compute the outputs Σ_i D_i X (v_i - w_i) of the convex model.

    Parameters
    ----------
    V : Tensor, shape (..., 2, P, D)
        Cone variables.
    X : Tensor, shape (N, D)
        Rows.
    D : Tensor, shape (N, P)
        Patterns.

    Returns
    -------
    Tensor, shape (..., N)
        Differentiable.
    """
    return ((V[..., 0, :, :] - V[..., 1, :, :]) @ X.mT * D.mT.to(X.dtype)).sum(-2)


def convex_objective(V: Tensor, X: Tensor, y: Tensor, D: Tensor, beta: float, loss: LossName = "squared") -> Tensor:
    """l(Σ_i D_i X (v_i - w_i), y) + β Σ_i (‖v_i‖ + ‖w_i‖).

    Parameters
    ----------
    V : Tensor, shape (..., 2, P, D)
        Cone variables.
    X : Tensor, shape (N, D)
        Rows.
    y : Tensor, shape (..., N)
        Targets.
    D : Tensor, shape (N, P)
        Patterns.
    beta : float
        Weight decay.
    loss : {"squared", "hinge", "bce"}, default "squared"
        A sum of halved squares, or a mean.

    Returns
    -------
    Tensor, shape (...)
        Differentiable where no block is zero.
    """
    return loss_value(loss, cone_outputs(V, X, D), y) + beta * torch.linalg.vector_norm(V, dim=-1).sum((-1, -2))


def constraint_violation(V: Tensor, X: Tensor, D: Tensor) -> Tensor:
    """How far V leaves the cones: max over rows and blocks of -(2 d_ik - 1) x_k·v_i, and 0 inside.

    Parameters
    ----------
    V : Tensor, shape (..., 2, P, D)
        Cone variables.
    X : Tensor, shape (N, D)
        Rows.
    D : Tensor, shape (N, P)
        Patterns.

    Returns
    -------
    Tensor, shape (...)
        In the units of the outputs.
    """
    signs = 2 * D.mT.to(X.dtype) - 1
    return (-(signs * (V @ X.mT))).amax((-1, -2, -3)).clamp_min(0)


def project_cones(V: Tensor, X: Tensor, D: Tensor) -> Tensor:
    """Nearest point of V in which each block keeps to its pattern; zero blocks stay zero.

    Parameters
    ----------
    V : Tensor, shape (2, P, D)
        Cone variables.
    X : Tensor, shape (N, D)
        Rows.
    D : Tensor, shape (N, P)
        Patterns.

    Returns
    -------
    Tensor, shape (2, P, D)
        Without a graph. One non-negative least-squares problem for each block that is outside, on the CPU in float64.
    """
    signed = (2 * D.mT.double() - 1).cpu().unsqueeze(-1) * X.detach().double().cpu()  # (P, N, D)
    result = V.detach().double().cpu().clone()
    outside = (signed @ result.unsqueeze(-1)).squeeze(-1).amin(-1) < 0
    for sign, block in outside.nonzero().tolist():
        normals = signed[block].numpy().T
        weights, _ = nnls(normals, -result[sign, block].numpy())
        result[sign, block] += torch.as_tensor(normals @ np.asarray(weights))
    return result.to(V)


def recover_network(V: Tensor, D: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Hidden and output weights: u = v/√‖v‖, a = √‖v‖ for each v_i that is not zero, and a = -√‖w‖ for each w_i.

    Parameters
    ----------
    V : Tensor, shape (2, P, D)
        Cone variables.
    D : Tensor, shape (N, P), optional
        Patterns, only needed if some are equal: their blocks are then added, which never raises the objective.

    Returns
    -------
    hidden : Tensor, shape (M, D)
        u_j as rows.
    output : Tensor, shape (M,)
        a_j.

    Raises
    ------
    ShapeError
        If V does not have the shape above.
    """
    if V.ndim != 3 or len(V) != 2:
        raise ShapeError(f"recover_network: expected V of shape (2, P, D), got {tuple(V.shape)}")
    if D is not None:
        _, home = torch.unique(D, dim=1, return_inverse=True)
        merged = V.new_zeros(2, int(home.max()) + 1, V.shape[2])
        V = merged.index_add(1, home, V)
    sizes = torch.linalg.vector_norm(V, dim=-1)
    signs = torch.tensor([[1.0], [-1.0]], dtype=V.dtype, device=V.device).expand_as(sizes)
    kept = sizes > 0
    roots = sizes[kept].sqrt()
    return V[kept] / roots.unsqueeze(-1), signs[kept] * roots


def network_outputs(X: Tensor, hidden: Tensor, output: Tensor) -> Tensor:
    """Σ_j (X u_j)₊ a_j.

    Parameters
    ----------
    X : Tensor, shape (N, D)
        Rows.
    hidden : Tensor, shape (M, D)
        u_j.
    output : Tensor, shape (M,) or (M, T)
        a_j, for T outputs at once.

    Returns
    -------
    Tensor, shape (N,) or (N, T)
        Differentiable.
    """
    return (X @ hidden.mT).clamp_min(0) @ output


def network_objective(
    X: Tensor, y: Tensor, hidden: Tensor, output: Tensor, beta: float, loss: LossName = "squared"
) -> Tensor:
    """Evaluate what one trains by gradients: l(Σ_j (X u_j)₊ a_j, y) + (β/2) Σ_j (‖u_j‖² + a_j²).

    Parameters
    ----------
    X : Tensor, shape (N, D)
        Rows.
    y : Tensor, shape (N,)
        Targets.
    hidden : Tensor, shape (M, D)
        u_j.
    output : Tensor, shape (M,)
        a_j.
    beta : float
        Weight decay.
    loss : {"squared", "hinge", "bce"}, default "squared"
        A sum of halved squares, or a mean.

    Returns
    -------
    Tensor, shape ()
        Differentiable.
    """
    decay = beta / 2 * (hidden.square().sum() + output.square().sum())
    return loss_value(loss, network_outputs(X, hidden, output), y) + decay
