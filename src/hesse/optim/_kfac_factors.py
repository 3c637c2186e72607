"""Running Kronecker factors of one layer, their eigenbases, and the damped inverse that they give.

    G ≈ S ⊗ A,   A = E_t[ã ãᵀ],   S = (1/N) Σ_t δ_t δ_tᵀ        averages over steps decay with ρ
    kfac:   U = (S + √λ/π I)⁻¹ V (A + π√λ I)⁻¹,   π² = (tr A / m) / (tr S / p)
    ekfac:  U = Q_S [(Q_Sᵀ V Q_A) ⊘ (Λ + λ)] Q_Aᵀ,   Λ = (1/N) Σ_n (Q_Sᵀ D_n Q_A)^{∘2}

Shapes: m columns (with bias), p outputs.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hesse.curvature import (
    Captured,
    InputFactor,
    OutputFactor,
    Scratch,
    eigendecompose,
    mirror_,
    rotate,
    rotate_back,
    second_moment,
)

__all__ = ["Collector", "StepSums", "average_in", "eigenvalues", "new_basis", "precondition"]

State = dict[str, Any]
"""Of one layer, as `torch.optim.Optimizer` keeps it: A, S, left, right, values_left, values_right, table, counts."""


@dataclass(slots=True)
class StepSums:
    """Sums over the passes of one step; ``squares`` only once there is a basis."""

    inputs: InputFactor
    outputs: OutputFactor
    squares: Tensor | None


@dataclass(slots=True)
class Collector:
    """Sums what layers see until the next step; ``states`` holds those layers that have a basis to measure in."""

    states: dict[str, State] = field(default_factory=dict)
    sums: dict[str, StepSums] = field(default_factory=dict)
    scratch: Scratch = field(default_factory=Scratch)

    @torch.no_grad()
    def __call__(self, rows: Captured, new: bool) -> None:
        """Add one pass of one cotangent.

        Parameters
        ----------
        rows : Captured
            What the layer saw, in float32 or float64.
        new : bool
            False for a further cotangent on the same inputs.
        """
        layer, name, state = rows.layer, rows.layer.name, self.states.get(rows.layer.name)
        if name not in self.sums:
            place = {"dtype": rows.grads.dtype, "device": rows.grads.device}
            self.sums[name] = StepSums(
                InputFactor.zeros(layer.columns, **place),
                OutputFactor.zeros(layer.out_features, **place),
                None if state is None else torch.zeros(layer.out_features, layer.columns, **place),
            )
        sums = self.sums[name]
        if new:
            sums.inputs.add_(rows)
        sums.outputs.add_(rows, count=new)
        if state is None or sums.squares is None:
            return
        second_moment(rows, state["left"], state["right"], sums.squares, self.scratch)


def average_in(state: State, sums: StepSums, scale: float, decay: float) -> None:
    """Take the sums of a step into the running averages; the first step counts fully, the k-th by 1/k at least.

    Parameters
    ----------
    state : dict
        Changed in place.
    sums : StepSums
        Of the step.
    scale : float
        Turns sums over δ² into the units of the loss's curvature.
    decay : float
        ρ.
    """
    fresh = {"A": mirror_(sums.inputs.total) / sums.inputs.count, "S": mirror_(sums.outputs.total) * scale}
    state["num_updates"] = state.get("num_updates", 0) + 1
    weight = max(1 / state["num_updates"], 1 - decay)
    for name, value in fresh.items():
        state[name] = value if name not in state else state[name].lerp_(value, weight)
    if sums.squares is not None:
        state["num_measured"] += 1
        state["table"].lerp_(sums.squares * scale, max(1 / state["num_measured"], 1 - decay))


def new_basis(state: State, name: str) -> None:
    """Diagonalise both factors; Λ starts again from their product, which then counts as one measurement.

    Parameters
    ----------
    state : dict
        Changed in place.
    name : str
        Of the layer, for messages.
    """
    left, right = (eigendecompose(state[key], 1, name=f"{name}.{key}") for key in ("S", "A"))
    dtype = state["A"].dtype
    state["left"], state["right"] = left.vectors.to(dtype), right.vectors.to(dtype)
    state["values_left"], state["values_right"] = left.values.to(dtype), right.values.to(dtype)
    state["table"] = torch.outer(state["values_left"], state["values_right"])
    state["num_measured"] = 1


def eigenvalues(state: State, damping: float, *, corrected: bool) -> Tensor:
    """Damped eigenvalues of the block.

    Parameters
    ----------
    state : dict
        Of the layer.
    damping : float
        λ > 0.
    corrected : bool
        True for ekfac, Λ + λ; False for kfac, where each factor is damped by itself.

    Returns
    -------
    Tensor, shape (p, m)
        Positive.
    """
    if corrected:
        return state["table"] + damping
    s, a = state["values_left"], state["values_right"]
    pi = float((a.mean() / s.mean()).sqrt()) if bool((a.mean() > 0) & (s.mean() > 0)) else 1.0
    return torch.outer(s + damping**0.5 / pi, a + damping**0.5 * pi)


def precondition(matrix: Tensor, state: State, table: Tensor) -> Tensor:
    """Multiply by the inverse of the damped block.

    Parameters
    ----------
    matrix : Tensor, shape (p, m)
        V, the gradient; bias in the last column.
    state : dict
        Of the layer; has the basis.
    table : Tensor, shape (p, m)
        From `eigenvalues`.

    Returns
    -------
    Tensor, shape (p, m)
        U, in the dtype of the factors.
    """
    left, right = state["left"], state["right"]
    return rotate_back(rotate(matrix.to(left.dtype), left, right) / table, left, right)
