"""The path norm of a feed-forward network: what a small trace of the Hessian controls, and generalisation follows.

Shapes: layer l has a weight W_l (out, in).
"""

import torch
from torch import Tensor, nn

from hesse.errors import ArgumentError

__all__ = ["path_norm"]

_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Flatten, nn.Dropout)


def path_norm(module: nn.Sequential | nn.Linear) -> Tensor:
    """Sum over all paths from a first-layer neuron to an output: ``Σ_paths Π_{l>1} |w_l| · ‖w_1‖₂``.

    For two layers that is ``Σ_k |a_k| ‖w_k‖₂``; with squared loss and inputs of unit covariance in D dimensions the
    trace of the Hessian at a minimum is about ½ Σ_k (‖w_k‖² + D a_k²), which is at least √D times the path norm.

    Parameters
    ----------
    module : nn.Sequential or nn.Linear
        Linear layers with ReLU or another activation that scales with its input and has slope at most one between them.
        A bias counts as the weight of an input that is always one.

    Returns
    -------
    Tensor, shape ()
        Differentiable where no weight is zero; in the dtype of the weights.

    Raises
    ------
    ArgumentError
        If there is no linear layer, or one of another kind.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    >>> _ = [nn.init.constant_(p, 2.0) for p in net.parameters()]
    >>> round(path_norm(net).item(), 4)  # 2 · √8
    5.6569

    References
    ----------
    B. Neyshabur, R. Tomioka, N. Srebro (2015), COLT, arXiv 1503.00036.
    """
    reach: Tensor | None = None
    for name, layer in [("", module)] if isinstance(module, nn.Linear) else list(module.named_children()):
        if isinstance(layer, nn.Linear):
            bias = torch.zeros_like(layer.weight[:, 0]) if layer.bias is None else layer.bias
            if reach is None:
                reach = torch.linalg.vector_norm(torch.cat([layer.weight, bias.unsqueeze(1)], dim=1), dim=1)
            else:
                reach = layer.weight.abs() @ reach + bias.abs()
        elif not isinstance(layer, _HOMOGENEOUS) or (isinstance(layer, nn.LeakyReLU) and abs(layer.negative_slope) > 1):
            raise ArgumentError(
                f"path_norm: layer {name or 'module'} is a {type(layer).__name__}; paths through it have no norm"
            )
    if reach is None:
        raise ArgumentError("path_norm: there is no linear layer")
    return reach.sum()
