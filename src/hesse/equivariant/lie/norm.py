"""A norm that keeps zero at zero, and its statistics after training.   Shapes: B images, C channels."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hesse.equivariant._arguments import check_count
from hesse.errors import ArgumentError, NumericalError, ShapeError

__all__ = ["RMSNormG", "recalibrate"]


class RMSNormG(nn.Module):
    """Divide every channel by the root of its running mean square: γ x / √(mean x²).

    The mean is over images, elements and pixels. Nothing is subtracted and nothing added: the background of an image
    stays zero, and zero padding stays the infinite plane. Batch normalisation instead lifts the background, and the
    frame of padding becomes visible.

    Parameters
    ----------
    num_channels : int
        C.
    momentum : float or None, default 0.1
        Share of the newest batch in the running mean; None for the plain mean of all batches, as `recalibrate` sets.
    eps : float, default 1e-5
        Added to the mean square.

    Raises
    ------
    ArgumentTypeError
        If C is not an integer.
    ArgumentError
        If C < 1, the momentum is not in (0, 1], or eps is not positive.
    """

    mean_square: Tensor
    num_batches: Tensor

    def __init__(self, num_channels: int, *, momentum: float | None = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        check_count("RMSNormG", "num_channels", num_channels, 1)
        if momentum is not None and not 0 < momentum <= 1:
            raise ArgumentError(f"RMSNormG: expected 0 < momentum <= 1 or None, got {momentum}")
        if not 0 < eps < float("inf"):
            raise ArgumentError(f"RMSNormG: expected eps > 0, got {eps}")
        self.momentum, self.eps = momentum, eps
        self.gamma = nn.Parameter(torch.ones(num_channels))
        self.register_buffer("mean_square", torch.ones(num_channels))
        self.register_buffer("num_batches", torch.tensor(0))

    def reset_statistics(self) -> None:
        """Forget the running mean."""
        self.mean_square.fill_(1.0)
        self.num_batches.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, by the batch in training and by the running mean afterwards.

        Parameters
        ----------
        x : Tensor, shape (B, C, ...)
            Features.

        Returns
        -------
        Tensor, shape (B, C, ...)
            Of mean square γ² in training.

        Raises
        ------
        ShapeError
            If C is another.
        NumericalError
            In training, if the batch is empty.
        """
        if x.ndim < 2 or x.shape[1] != len(self.gamma):
            raise ShapeError(f"RMSNormG: expected x of shape (B, {len(self.gamma)}, ...), got {tuple(x.shape)}")
        mean_square = self.mean_square
        if self.training:
            if x.numel() == 0:
                raise NumericalError("RMSNormG: an empty batch has no mean square; use eval()")
            others = [axis for axis in range(x.ndim) if axis != 1]
            wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            mean_square = wide.square().mean(others)
            with torch.no_grad():
                self.num_batches += 1
                share = 1 / float(self.num_batches) if self.momentum is None else self.momentum
                self.mean_square.lerp_(mean_square.to(self.mean_square.dtype), share)
        factor = (self.gamma * (mean_square + self.eps).rsqrt()).to(x.dtype)
        return x * factor.view(-1, *(1,) * (x.ndim - 2))


@torch.no_grad()
def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Compute the running mean squares of all `RMSNormG` of a network anew, as plain means over batches.

    In training they lag behind the weights, and each is that of a few random draws. Some twenty batches of training
    images, each with a fresh draw, are enough.

    Parameters
    ----------
    network : Module
        Changed in place: its statistics, nothing else; its mode is put back.
    batches : iterable of Tensor
        Inputs of the network.

    Raises
    ------
    ArgumentError
        If there is no batch.
    """
    modes = {module: module.training for module in network.modules()}
    norms = [module for module in network.modules() if isinstance(module, RMSNormG)]
    before = [norm.momentum for norm in norms]
    network.train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    batches = list(batches)
    if not batches:
        raise ArgumentError("recalibrate: batches: expected at least one")
    try:
        for norm in norms:
            norm.reset_statistics()
            norm.momentum = None
        for batch in batches:
            network(batch)
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
