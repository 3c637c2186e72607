"""DataInf: the inverse of a mean replaced by the mean of the inverses, each in closed form.

    (F_ℓ + λI)⁻¹ v ≈ (1/N) Σ_i (g_i g_iᵀ + λI)⁻¹ v = (1/λ) [ v - (1/N) Σ_i g_i ⟨g_i, v⟩ / (λ + ‖g_i‖²) ]

with g_i the gradient of sequence i in layer ℓ. Shapes: Q queries, N training sequences.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hesse.curvature.ekfac import Damping, Relative
from hesse.curvature.layers import Picker
from hesse.errors import ArgumentError
from hesse.influence.examples import as_examples
from hesse.influence.gradients import gradient_pass, stacked_gradients, stream_gradients
from hesse.influence.objective import Loss

__all__ = ["datainf"]


def datainf(
    model: nn.Module,
    queries: Any,
    dataset: Any,
    *,
    damping: Damping | float = Relative(0.1),
    modules: Picker = "mlp",
    loss: Loss | None = None,
    batch_tokens: int = 4096,
) -> Tensor:
    """(1/N) Σ_ℓ ⟨P_ℓ(∇L(q)), ∇L(z_n)⟩ with P the closed form above, in the empirical Fisher matrix of each layer.

    The order of mean and inverse is exchanged, an error that grows with the number of weights of a layer: made for
    low-rank adapters, and coarse elsewhere.

    Parameters
    ----------
    model, queries, dataset, modules, loss, batch_tokens : see `gradient_dot`
        As there.
    damping : Relative, Absolute or float, default Relative(0.1)
        λ of each layer; relative to the mean eigenvalue of its empirical Fisher matrix, mean ‖g‖² / (p·m).

    Returns
    -------
    Tensor, shape (Q, N)
        Nats of the query's log-probability for one more copy of the sequence. Positive raises it.

    Raises
    ------
    ArgumentError
        If the damping is zero, or that of a layer that no gradient reaches.
    MemoryLimitError
        If the queries' gradients would not fit.

    Notes
    -----
    Three passes over the data, 2Q products of gradients a sequence, and 2Q whole gradients held.

    References
    ----------
    Y. Kwon, E. Wu, K. Wu, J. Zou (2024), ICLR, arXiv 2310.00902.
    """
    rule = Relative(float(damping)) if isinstance(damping, int | float) else damping
    asked, examples = as_examples(queries, argument="queries"), as_examples(dataset)
    run_pass, total = gradient_pass(model, modules, loss), len(examples)
    v = {name: stack.flatten(1) for name, stack in stacked_gradients(run_pass, asked).items()}
    some = next(iter(v.values()))
    squares = {name: torch.zeros(total, dtype=some.dtype, device=some.device) for name in v}
    dots = {name: torch.zeros(len(asked), total, dtype=some.dtype, device=some.device) for name in v}

    def measure(name: str, places: list[int], gradients: Tensor) -> None:
        block = gradients.flatten(1)
        squares[name][places] = block.square().sum(1)
        dots[name][:, places] = v[name] @ block.T

    stream_gradients(run_pass, examples, measure, batch_tokens=batch_tokens)
    inverse: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for name, stack in v.items():
        value = float(rule.of(squares[name].mean().reshape(1) / stack.shape[1]))
        if value <= 0:
            raise ArgumentError(f"damping: that of layer {name!r} is zero, and DataInf divides by it")
        weights[name] = dots[name] / (value + squares[name]) / (total * value)
        inverse[name] = stack / value

    def subtract(name: str, places: list[int], gradients: Tensor) -> None:
        inverse[name].addmm_(weights[name][:, places], gradients.flatten(1), alpha=-1)

    stream_gradients(run_pass, examples, subtract, batch_tokens=batch_tokens)
    scores = torch.zeros_like(next(iter(dots.values())))

    def multiply(name: str, places: list[int], gradients: Tensor) -> None:
        scores[:, places] += inverse[name] @ gradients.flatten(1).T

    stream_gradients(run_pass, examples, multiply, batch_tokens=batch_tokens)
    return scores / total
