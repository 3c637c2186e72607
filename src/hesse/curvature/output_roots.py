"""Square roots of output Hessians, a column at a time: backpropagating them gives factors without sampled labels.

    Σ_c u_c u_cᵀ = ∂²(-log p(y | z))/∂z²,   one u_c for every output c, for every row z

Shapes: outputs z (..., V).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from hesse.curvature.fisher import Likelihood
from hesse.errors import ArgumentError

__all__ = ["output_hessian_columns"]


def output_hessian_columns(outputs: Tensor, likelihood: Likelihood = "categorical") -> Iterator[Tensor]:
    """Yield V cotangents whose outer products sum to the output Hessian of every row.

    Parameters
    ----------
    outputs : Tensor, shape (..., V)
        z, the natural parameters of the likelihood.
    likelihood : {"categorical", "bernoulli", "gaussian"}, default "categorical"
        √p_c (e_c - p) for softmax, √(p_c (1 - p_c)) e_c for a sigmoid of each output, e_c for unit variance.

    Yields
    ------
    Tensor, shape (..., V)
        In the dtype of the outputs, without a graph. Exact up to rounding; in half precision the roots of small
        probabilities are coarse.

    Raises
    ------
    ArgumentError
        If the likelihood is unknown.

    Notes
    -----
    The expectation over labels is exact if the rows are examples. Backpropagated through a model whose rows are
    positions of one sequence, a column adds up over positions before it is squared, which only labels drawn
    independently undo on average.

    Examples
    --------
    >>> columns = torch.stack(list(output_hessian_columns(torch.zeros(2))), 1)
    >>> columns @ columns.T
    tensor([[ 0.2500, -0.2500],
            [-0.2500,  0.2500]])
    """
    z = outputs.detach()
    if likelihood == "categorical":
        p = z.softmax(-1)
        for c in range(z.shape[-1]):
            root = p[..., c].sqrt()
            column = -p * root.unsqueeze(-1)
            column[..., c] += root
            yield column
        return
    if likelihood == "bernoulli":
        p = z.sigmoid()
        roots = (p * (1 - p)).sqrt()
    elif likelihood == "gaussian":
        roots = torch.ones_like(z)
    else:
        raise ArgumentError(
            f"output_hessian_columns: likelihood must be categorical, bernoulli or gaussian; got {likelihood!r}"
        )
    for c in range(z.shape[-1]):
        column = torch.zeros_like(z)
        column[..., c] = roots[..., c]
        yield column
