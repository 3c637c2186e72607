"""The convolutional network behind `hesse.pde.dcdm`: a residual in, a search direction out, on a grid of any size.

Shapes: B residuals on cells (h, w) or (d, h, w).
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from hesse.errors import ArgumentError, ShapeError

__all__ = ["DCDMNet", "direction_on_grid"]


def _convolution(dim: int, inputs: int, outputs: int, width: int, generator: Generator | None) -> nn.Module:
    # built without torch's own initialisation, which would draw from the global generator
    kind = nn.Conv2d if dim == 2 else nn.Conv3d
    layer = nn.utils.skip_init(kind, inputs, outputs, width, padding=width // 2)
    bound = 1 / math.sqrt(inputs * width**dim)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer


class _Pair(nn.Module):
    """h + relu(conv(relu(conv(h))))."""

    def __init__(self, dim: int, channels: int, generator: Generator | None) -> None:
        super().__init__()
        self.first = _convolution(dim, channels, channels, 3, generator)
        self.second = _convolution(dim, channels, channels, 3, generator)

    def forward(self, h: Tensor) -> Tensor:
        return h + functional.relu(self.second(functional.relu(self.first(h))))


class DCDMNet(nn.Module):
    """d = f(r), trained so that d points along A⁻¹ r; its length is of no account, a line search follows.

    Two convolutions, residual pairs and one more convolution on the fine grid; average pooling; residual pairs on the
    coarse grid; nearest-neighbour upsampling, plus what stood before pooling; residual pairs; one linear map a cell.
    All of width 3 with ReLU and zero padding, no normalisation. Nothing depends on the size of the grid, so a network
    trained on one grid runs on another.

    Parameters
    ----------
    dim : {2, 3}, default 2
        Dimensions of the grid.
    channels : int, default 16
        Feature maps of every layer (the paper's).
    levels : int, default 1
        Poolings. More than one couples distant cells in a single call, but may stall on residuals unlike
        those they were trained on.
    num_pairs : tuple of int, default (1, 3, 2)
        Residual pairs before pooling, on the coarsest grid, and after upsampling: the paper's for 64 cells a side;
        (2, 5, 3) is its choice for 128.
    mask_channel : bool, default False
        Whether the network also sees which cells are fluid; then train it on random obstacles.
    generator : torch.Generator, optional
        Source of the initial weights, on the CPU. Default: torch's global generator.

    Raises
    ------
    ArgumentError
        If a size is out of range.

    Notes
    -----
    The input is scaled to a root mean square of one over the fluid cells, where the paper scales to norm one: the
    same on one grid, but independent of the number of cells when the network moves to another. Half precision runs
    where torch has the convolutions, and gives directions good to a few percent, which the line search tolerates.

    Cost: 15 convolutions by default, nine of them on the fine grid: 22 thousand multiplications a cell in 2-D with
    16 channels. Memory: three times ``channels`` numbers a cell without gradients.

    References
    ----------
    A. Kaneda, O. Akar, J. Chen, V. Kala, D. Hyde, J. Teran (2023), ICML, arXiv 2205.10763.
    """

    def __init__(
        self,
        dim: int = 2,
        channels: int = 16,
        levels: int = 1,
        *,
        num_pairs: tuple[int, int, int] = (1, 3, 2),
        mask_channel: bool = False,
        generator: Generator | None = None,
    ) -> None:
        if dim not in (2, 3):
            raise ArgumentError(f"DCDMNet: expected dim 2 or 3, got {dim}")
        if channels < 1 or levels < 1 or len(num_pairs) != 3 or min(num_pairs) < 0:
            raise ArgumentError(
                "DCDMNet: expected channels >= 1, levels >= 1 and three counts of pairs >= 0, "
                f"got {channels}, {levels}, {num_pairs}"
            )
        super().__init__()
        self.dim, self.channels, self.levels = dim, channels, levels
        self.num_pairs, self.mask_channel = num_pairs, mask_channel
        before, coarse, after = num_pairs

        def conv(inputs: int = channels) -> nn.Module:
            return _convolution(dim, inputs, channels, 3, generator)

        def pairs(count: int) -> nn.Sequential:
            return nn.Sequential(*[_Pair(dim, channels, generator) for _ in range(count)])

        self.entry = conv(2 if mask_channel else 1)
        self.opening = nn.ModuleList([conv() for _ in range(levels)])
        self.before = nn.ModuleList([pairs(before) for _ in range(levels)])
        self.closing = nn.ModuleList([conv() for _ in range(levels)])
        self.coarse = pairs(coarse)
        self.after = nn.ModuleList([pairs(after) for _ in range(levels)])
        self.exit = _convolution(dim, channels, 1, 1, generator)

    def fresh(self, generator: Generator | None = None) -> "DCDMNet":
        """Build the same architecture with new weights.

        Parameters
        ----------
        generator : torch.Generator, optional
            Source of the weights, on the CPU. Default: torch's global generator.

        Returns
        -------
        DCDMNet
            On the CPU, in torch's default dtype.
        """
        return DCDMNet(
            self.dim,
            self.channels,
            self.levels,
            num_pairs=self.num_pairs,
            mask_channel=self.mask_channel,
            generator=generator,
        )

    def forward(self, residual: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map residuals to directions.

        Parameters
        ----------
        residual : Tensor, shape (B, h, w) or (B, d, h, w)
            Of the dtype of the weights; any scale (see Notes of the class), zero outside the fluid.
        mask : Tensor of bool, shape (h, w) or (d, h, w), or with a leading B, optional
            The fluid cells. Default: every cell.

        Returns
        -------
        Tensor, shape of ``residual``
            Zero outside the mask; differentiable.

        Raises
        ------
        ShapeError
            If the grid has the wrong number of dimensions, or the mask does not fit it.
        """
        if residual.ndim != self.dim + 1:
            raise ShapeError(
                f"DCDMNet: expected residuals of shape (B, {'h, w' if self.dim == 2 else 'd, h, w'}), "
                f"got {tuple(residual.shape)}"
            )
        grid = residual.shape[1:]
        if mask is not None and mask.shape not in (grid, residual.shape):
            raise ShapeError(f"DCDMNet: mask has shape {tuple(mask.shape)}, the grid {tuple(grid)}")
        axes = tuple(range(1, self.dim + 1))
        square = residual.square()
        if mask is None:
            mean = square.mean(axes, keepdim=True)
        else:
            inside = mask.expand(residual.shape).to(residual.dtype)
            mean = square.sum(axes, keepdim=True) / inside.sum(axes, keepdim=True).clamp_min(1)
        smallest = torch.finfo(residual.dtype).tiny  # a residual of zero stays zero instead of NaN
        h = (residual / mean.clamp_min(smallest).sqrt()).unsqueeze(1)
        if self.mask_channel:
            seen = torch.ones_like(residual) if mask is None else mask.expand(residual.shape).to(residual.dtype)
            h = torch.cat([h, seen.unsqueeze(1)], dim=1)
        out = self._through(_padded(h, 2**self.levels))
        for axis, length in enumerate(grid):
            out = out.narrow(axis + 2, 0, length)
        out = out.squeeze(1)
        return out if mask is None else torch.where(mask, out, 0)

    def _through(self, h: Tensor) -> Tensor:
        pool = functional.avg_pool2d if self.dim == 2 else functional.avg_pool3d
        h = self.entry(h)
        skips: list[Tensor] = []
        for opening, before, closing in zip(self.opening, self.before, self.closing, strict=True):
            h = before(functional.relu(opening(h)))
            h = functional.relu(closing(h))
            skips.append(h)
            h = pool(h, 2)
        h = self.coarse(h)
        for skip, after in zip(reversed(skips), reversed(self.after), strict=True):
            h = after(functional.interpolate(h, scale_factor=2, mode="nearest") + skip)
        return self.exit(h)


def _padded(h: Tensor, multiple: int) -> Tensor:
    # zeros behind the last cell of each axis, so that pooling divides evenly
    extra: list[int] = []
    for length in reversed(h.shape[2:]):
        extra += [0, -length % multiple]
    return functional.pad(h, extra) if any(extra) else h


def direction_on_grid(
    network: nn.Module, grid: tuple[int, ...], mask: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """Let a network on grids act on columns.

    Parameters
    ----------
    network : nn.Module
        From (B, *grid) and a mask to (B, *grid), as `DCDMNet`.
    grid : tuple of int
        Shape of the grid, of N cells in row-major order.
    mask : Tensor of bool, shape ``grid``, optional
        The fluid cells. Default: every cell.

    Returns
    -------
    callable
        From (..., N, K) to the same shape and dtype, by one call of the network in the network's own dtype, on its
        own device; differentiable.
    """
    weights = next(network.parameters())
    seen = None if mask is None else mask.to(weights.device)

    def direction(columns: Tensor) -> Tensor:
        rows = columns.movedim(-1, -2)
        out = network(rows.reshape(-1, *grid).to(weights), seen)
        return out.reshape(rows.shape).movedim(-2, -1).to(columns)

    return direction
