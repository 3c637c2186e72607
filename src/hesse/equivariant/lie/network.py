"""A residual network over the plane and a group, and the ordinary convolutions it becomes once elements are fixed.

Shapes: B images, C channels, N elements, H x W pixels, D draws of elements.
"""

import copy
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn

from hesse.equivariant._arguments import check_count
from hesse.equivariant.lie.groups import GroupSamples, MatrixGroup
from hesse.equivariant.lie.kernels import KernelName
from hesse.equivariant.lie.layers import LieConv2d, LieLift2d, LieProject, Pooling
from hesse.equivariant.lie.norm import RMSNormG
from hesse.equivariant.lie.sampling import SampleContext
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg._arguments import wide_dtype

__all__ = ["FrozenLieResNet", "LieResNet"]

Samples = tuple[GroupSamples, ...]
Kernels = tuple[Any, ...]
NUM_SETS = 2  # of elements in a pass: one for lifting and blocks, one for the last convolution


class LieResNet(nn.Module):
    """Classify images the same whichever way they are rotated, stretched or sheared.

    Lifting at half resolution; residual blocks of two separable group convolutions, all on one set of elements; a last
    group convolution, onto another set if they are drawn independently; invariants; a hidden layer. Everything up to
    the invariants maps zero to zero, so images must have background 0, not -1.

    In training every pass draws its elements from torch's global generator. In evaluation a pass is deterministic: the
    mean of the class probabilities over ``num_draws`` fixed sets, as logarithms. Single draws of one network differ
    by several points of accuracy. After training, call `recalibrate`.

    Parameters
    ----------
    group : MatrixGroup
        With n = 2: ``GLPlus(2)``, ``SL(2)`` or ``SO(2)``.
    num_classes : int
        Classes.
    in_channels : int, default 1
        Of the images.
    channels : int, default 24
        C.
    num_blocks : int, default 1
        Residual blocks.
    lift_size, kernel_size : int, default 9 and 7
        Windows in pixels, of the lifting layer at full and of the others at half resolution. A kernel fills 85 % of
        its window, so that it can be stretched.
    lift_padding : int, optional
        Rows of zeros around the images. Default: ``lift_size // 2 + 4``; with less, features that reach over the border
        are cut off, and a wider background changes the answer.
    hidden : int, default 128
        Width of the hidden layer.
    dropout : float, default 0.0
        Before the last layer.
    context : SampleContext, optional
        How elements are drawn; may be replaced after training. Default: a lattice of eight.
    num_draws : int, default 12
        D, in evaluation; likewise.
    seed : int, default 0
        Of the elements in evaluation; likewise.
    kernel : {"basis", "siren"}, default "basis"
        A basis fits far faster.
    separable : bool, default True
        As in `LieConv2d`.
    pooling : {"both", "max", "mean"}, default "both"
        As in `LieProject`.
    kernel_options : dict, optional
        Further arguments of the kernels.
    generator : torch.Generator, optional
        Source of the weights. Default: torch's global generator.

    Raises
    ------
    ArgumentTypeError
        If a number is not an integer.
    ArgumentError
        If a number is out of range, or the context's group is another.

    Notes
    -----
    In half precision kernels are sampled in float32 and convolved in that of the images.

    Images should have equal, even sides: quarter turns are then exact. In others the pixels that half resolution keeps
    lie half a pixel or a whole one off after a turn.

    With the default context and 20 x 20 pixels some 28 million multiplications an image and draw. Where deformations
    are known beforehand, a plain network trained on deformed images is cheaper and more accurate; this one needs none.

    References
    ----------
    M. Mironenco, P. Forré (2024), ICLR, arXiv 2310.11366. The lattice, the norm and the basis are not theirs.
    """

    def __init__(
        self,
        group: MatrixGroup,
        num_classes: int,
        *,
        in_channels: int = 1,
        channels: int = 24,
        num_blocks: int = 1,
        lift_size: int = 9,
        kernel_size: int = 7,
        lift_padding: int | None = None,
        hidden: int = 128,
        dropout: float = 0.0,
        context: SampleContext | None = None,
        num_draws: int = 12,
        seed: int = 0,
        kernel: KernelName = "basis",
        separable: bool = True,
        pooling: Pooling = "both",
        kernel_options: dict[str, Any] | None = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        for name, count in (("num_classes", num_classes), ("num_blocks", num_blocks), ("hidden", hidden)):
            check_count("LieResNet", name, count, 1)
        check_count("LieResNet", "num_draws", num_draws, 1)
        if not 0 <= dropout < 1:
            raise ArgumentError(f"LieResNet: expected 0 <= dropout < 1, got {dropout}")
        self.context = SampleContext(group) if context is None else context
        if self.context.group != group:
            raise ArgumentError(f"LieResNet: context draws from {self.context.group}, group is {group}")
        self.num_draws, self.seed = num_draws, seed
        options: dict[str, Any] = {"kernel": kernel, "kernel_options": kernel_options, "generator": generator}
        padding = lift_size // 2 + 4 if lift_padding is None else lift_padding
        self.lift = LieLift2d(group, in_channels, channels, lift_size, stride=2, padding=padding, **options)
        options |= {"separable": separable, "spread": self.context.spread}
        self.convolutions = nn.ModuleList(
            LieConv2d(group, channels, channels, kernel_size, **options) for _ in range(2 * num_blocks + 1)
        )
        self.norms = nn.ModuleList(RMSNormG(channels) for _ in range(2 * num_blocks + 2))
        self.project = LieProject(pooling)
        width = channels * (2 if pooling == "both" else 1)
        self.head = nn.Sequential(
            RMSNormG(width), _linear(width, hidden, generator), nn.GELU(), nn.Dropout(dropout),
            _linear(hidden, num_classes, generator),
        )  # fmt: skip

    def draw_samples(self, *, generator: Generator | None = None) -> Samples:
        """Draw the elements of one pass.

        Parameters
        ----------
        generator : torch.Generator, optional
            Source of the numbers. Default: torch's global generator on the CPU.

        Returns
        -------
        tuple of GroupSamples
            Of the blocks, and of the last convolution.
        """
        return self.context.draw(NUM_SETS, generator=generator, **self._where())

    def fixed_samples(self, num_draws: int | None = None, *, seed: int | None = None) -> tuple[Samples, ...]:
        """Draw the elements of evaluation, the same ones every time.

        Parameters
        ----------
        num_draws : int, optional
            Default: the network's.
        seed : int, optional
            Default: the network's.

        Returns
        -------
        tuple of tuple of GroupSamples
            One pass each.
        """
        draws = self.num_draws if num_draws is None else num_draws
        seed = self.seed if seed is None else seed
        return self.context.fixed_samples(draws, NUM_SETS, seed=seed, **self._where())

    def kernels(self, samples: Samples) -> Kernels:
        """Sample all kernels: with them the network is a stack of ordinary convolutions.

        Parameters
        ----------
        samples : tuple of GroupSamples
            As `draw_samples` makes them.

        Returns
        -------
        tuple
            For `features`.
        """
        first, last = samples
        *inner, final = self._convolutions()
        return (self.lift.weights(first), *(conv.weights(first) for conv in inner), final.weights(first, last))

    def features(self, x: Tensor, kernels: Kernels) -> Tensor:
        """Compute the invariants that the head classifies.

        Parameters
        ----------
        x : Tensor, shape (B, C_in, H, W)
            Images.
        kernels : tuple
            As `kernels` makes them.

        Returns
        -------
        Tensor, shape (B, 2C) or (B, C)
            Maxima, means of maxima.

        Raises
        ------
        ShapeError
            If the images' shape is wrong.
        ArgumentTypeError
            If they are not real floating point.
        """
        self._check(x)
        lifted, *inner, last = kernels
        norms, convolutions = list(self.norms), self._convolutions()
        gelu = nn.functional.gelu
        x = gelu(norms[0](self.lift.apply_weights(x, lifted)))
        for i in range(0, len(inner), 2):
            y = gelu(norms[i + 1](convolutions[i].apply_weights(x, inner[i])))
            x = gelu(x + norms[i + 2](convolutions[i + 1].apply_weights(y, inner[i + 1])))
        return self.project(gelu(norms[-1](convolutions[-1].apply_weights(x, last))))

    def forward(self, x: Tensor, samples: Samples | None = None) -> Tensor:
        """Classify.

        Parameters
        ----------
        x : Tensor, shape (B, C_in, H, W)
            Images of background zero.
        samples : tuple of GroupSamples, optional
            Elements of this pass. Default: fresh ones in training, the mean over fixed ones in evaluation.

        Returns
        -------
        Tensor, shape (B, num_classes)
            Logits.
        """
        if samples is None and not self.training:
            logits = [self.head(self.features(x, self.kernels(draw))) for draw in self.fixed_samples()]
            return _log_mean_probability(logits)
        return self.head(self.features(x, self.kernels(self.draw_samples() if samples is None else samples)))

    def freeze(self) -> "FrozenLieResNet":
        """Fix the elements of evaluation and sample all kernels once.

        Returns
        -------
        FrozenLieResNet
            Ordinary convolutions, without the kernels' functions.
        """
        return FrozenLieResNet(self)

    def _where(self) -> dict[str, Any]:
        gamma = next(self.norms.parameters())
        return {"dtype": wide_dtype(gamma.dtype), "device": gamma.device}

    def _convolutions(self) -> list[LieConv2d]:
        return cast(list[LieConv2d], list(self.convolutions))

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            found = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise ArgumentTypeError(f"LieResNet: expected x to be a real floating-point tensor, got {found}")
        if x.ndim != 4 or x.shape[1] != self.lift.in_channels:
            raise ShapeError(f"LieResNet: expected x of shape (B, {self.lift.in_channels}, H, W), got {tuple(x.shape)}")


class FrozenLieResNet(nn.Module):
    """A `LieResNet` in evaluation with its kernels sampled: D stacks of ordinary convolutions, nothing to train.

    Parameters
    ----------
    network : LieResNet
        Copied; later changes to it have no effect here.
    """

    def __init__(self, network: LieResNet) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        draws = network.fixed_samples()
        self.num_draws, self.layers = network.num_draws, 0
        with torch.no_grad():
            for d, draw in enumerate(draws):
                kernels = self.network.kernels(draw)
                self.layers = len(kernels)
                for i, weights in enumerate(kernels):
                    both = weights if isinstance(weights, tuple) else (weights,)
                    for j, weight in enumerate(both):
                        self.register_buffer(f"kernel_{d}_{i}_{j}", weight)
        self.network.lift.kernel = nn.Identity()
        for conv in self.network._convolutions():
            conv.mixing, conv.depthwise = nn.Identity(), None

    def forward(self, x: Tensor) -> Tensor:
        """Classify, as the network does in evaluation.

        Parameters
        ----------
        x : Tensor, shape (B, C_in, H, W)
            Images.

        Returns
        -------
        Tensor, shape (B, num_classes)
            Logarithms of mean probabilities.
        """
        network = self.network
        return _log_mean_probability(
            [network.head(network.features(x, self._kernels(d))) for d in range(self.num_draws)]
        )

    def train(self, mode: bool = True) -> "FrozenLieResNet":
        """Set the mode of the module itself; the network inside stays in evaluation.

        Parameters
        ----------
        mode : bool, default True
            The mode.

        Returns
        -------
        FrozenLieResNet
            Itself.
        """
        super().train(mode)
        self.network.eval()
        return self

    def _kernels(self, d: int) -> Kernels:
        lifted = getattr(self, f"kernel_{d}_0_0")
        return (
            lifted,
            *((getattr(self, f"kernel_{d}_{i}_0"), getattr(self, f"kernel_{d}_{i}_1")) for i in range(1, self.layers)),
        )


def _log_mean_probability(logits: list[Tensor]) -> Tensor:
    stacked = torch.stack([single.log_softmax(-1) for single in logits])
    return stacked.logsumexp(0) - torch.tensor(float(len(logits)), dtype=stacked.dtype, device=stacked.device).log()


def _linear(inputs: int, outputs: int, generator: Generator | None) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, inputs, generator=generator) / inputs**0.5)
        layer.bias.zero_()
    return layer
