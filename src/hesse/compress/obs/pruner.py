"""Optimal Brain Surgeon on the inverse empirical Fisher matrix of a whole network, without forming it.

Dropping weight i costs ρ_i = w_i² / (2 [F⁻¹]_ii) once the others have moved by -F⁻¹e_i w_i / [F⁻¹]_ii.
Shapes: D weights alive, m gradients, U units of S weights that go together.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from hesse._progress import progress
from hesse.compress.obs._weights import PrunableWeights, Scope
from hesse.compress.obs.masks import (
    Include,
    apply_masks,
    attach_masks,
    attached_masks,
    plain_parameters,
    remove_masks,
)
from hesse.compress.obs.patterns import Pattern, Unstructured
from hesse.compress.obs.updates import (
    joint_update,
    predicted_increase,
    saliencies,
    summed_update,
    unit_curvature,
)
from hesse.curvature import MFACInverse, gradient_rows
from hesse.curvature.mfac.gradients import Fisher, Loss
from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.linalg._arguments import at_least

__all__ = ["OBSPruner", "PruneRound"]


@dataclass(frozen=True, slots=True)
class PruneRound:
    """What one round of pruning did."""

    sparsity: float  # share of the weights that are zero now
    num_dropped: int  # weights dropped in this round
    predicted_increase: float  # ½ δᵀFδ, in the units of the loss


@dataclass(frozen=True, slots=True)
class _Assessment:
    """What every unit would cost."""

    inverse: MFACInverse
    weights_D: Tensor
    numbered_US: Tensor
    scores_U: Tensor
    t_US: Tensor


class OBSPruner:
    """Drops the weights whose loss costs least by the empirical Fisher matrix, and moves the others to make up for it.

    Parameters
    ----------
    module : nn.Module
        Pruned in place. Gradients are taken in evaluation mode.
    loss_fn : callable
        (model, batch) -> scalar, as in training.
    num_grads : int, default 256
        m, gradients behind F. More is better, up to a few for every hundred weights.
    batch_size : int, default 32
        Examples to a gradient; with ``per_sample`` to a vectorised pass.
    per_sample : bool, default False
        One gradient an example: F is then the Fisher matrix that the Hessian is compared with, and m examples are seen.
    fisher : {"empirical", "mc"}, default "empirical"
        "mc" draws labels from the model; see `gradient_rows`.
    damping : float, default 1e-5
        λ > 0, in the units of a squared gradient. Large values lead to pruning by magnitude without an update.
    block_size : int, optional
        Ignore correlations beyond consecutive blocks of this many weights alive, so that a block reaches further as the
        network shrinks. 1 is the diagonal of F. Default: none ignored, over the whole network.
    recompute : int, default 16
        R, rounds to a call of `prune`, with new gradients each: densities fall geometrically. The quadratic model holds
        near the present weights only, and one round to 90 % is no better than pruning by magnitude.
    joint : bool, default False
        Move the others to the model's optimum for all dropped weights together, which is exact for F, instead of adding
        up what would be right for each alone. Costs a second factorisation.
    pattern : Pattern, optional
        `Unstructured`, `NOfM` or `Blocks`. Default: unstructured.
    scope : {"global", "layer"}, default "global"
        Rank the weights of all parameters together, or drop the same share of each.
    min_keep : int, default 0
        Weights that every parameter keeps, whatever they cost. 0 may cut a network in two, with a warning.
    include : callable, optional
        (name, parameter) -> whether to prune it. Default: parameters with at least two axes.
    masks : mapping of str to bool Tensor, optional
        True for weights not yet dropped, to go on from. Default: the masks attached to the module, else all.
    generator : torch.Generator, optional
        Source of the order of examples, on the CPU. Default: torch's global generator.

    Raises
    ------
    ArgumentError
        If a number is out of range, nothing is to be pruned, or ``min_keep`` meets a pattern that decides it already.
    ArgumentTypeError
        If ``module`` is not a module, or a mask is not a bool tensor.
    ShapeError
        If a pattern or a mask does not fit a parameter.

    Attributes
    ----------
    masks : dict of str to bool Tensor
        True where a weight is kept.
    rounds : list of PruneRound
        All so far.

    Notes
    -----
    A round costs m gradients, O(D m²) time and 4 m bytes a weight alive in float32; `Blocks` take 16 m more, `joint`
    the gradients twice. A weight without a gradient costs λw²/2, by damping alone: the smaller λ, the sooner it goes.
    After an error the module is as the last whole round left it.

    References
    ----------
    E. Frantar, E. Kurtic, D. Alistarh (2021), NeurIPS, arXiv 2107.03356.
    B. Hassibi, D. G. Stork (1993), NeurIPS 5.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 1.0]]))
    >>> x = torch.tensor([[1.0, 1.0], [2.0, 2.0]])  # only the sum of the weights matters
    >>> pruner = OBSPruner(
    ...     model, lambda f, b: f(b).square().sum(), num_grads=2, per_sample=True, damping=1e-3, recompute=1
    ... )
    >>> pruner.prune(0.5, x)
    {'weight': tensor([[ True, False]])}
    >>> [round(w, 3) for w in model.weight[0].tolist()]
    [4.0, 0.0]
    """

    def __init__(
        self,
        module: nn.Module,
        loss_fn: Loss,
        *,
        num_grads: int = 256,
        batch_size: int = 32,
        per_sample: bool = False,
        fisher: Fisher = "empirical",
        damping: float = 1e-5,
        block_size: int | None = None,
        recompute: int = 16,
        joint: bool = False,
        pattern: Pattern | None = None,
        scope: Scope = "global",
        min_keep: int = 0,
        include: Include | None = None,
        masks: Mapping[str, Tensor] | None = None,
        generator: Generator | None = None,
    ) -> None:
        call = "OBSPruner"
        if not isinstance(module, nn.Module):
            raise ArgumentTypeError(f"{call}: expected a module, got {type(module).__name__}")
        for name, value, low in (
            ("num_grads", num_grads, 1),
            ("batch_size", batch_size, 1),
            ("recompute", recompute, 1),
            ("min_keep", min_keep, 0),
            ("block_size", 1 if block_size is None else block_size, 1),
        ):
            at_least(call, name, value, low)
        if not 0 < damping < float("inf"):
            raise ArgumentError(f"{call}: expected a finite damping > 0, got {damping}")
        if scope not in ("global", "layer"):
            raise ArgumentError(f"{call}: scope must be 'global' or 'layer', got {scope!r}")
        if fisher not in ("empirical", "mc"):
            raise ArgumentError(f"{call}: fisher must be 'empirical' or 'mc', got {fisher!r}")
        self.module = module
        self.loss_fn = loss_fn
        self.num_grads = num_grads
        self.batch_size = batch_size
        self.per_sample = per_sample
        self.fisher: Fisher = fisher
        self.damping = damping
        self.block_size = block_size
        self.recompute = recompute
        self.joint = joint
        self.pattern: Pattern = Unstructured() if pattern is None else pattern
        self.scope: Scope = scope
        self.min_keep = min_keep
        self.generator = generator
        self.rounds: list[PruneRound] = []
        targets = {
            name: p
            for name, p in plain_parameters(module).items()
            if p.requires_grad and (p.ndim > 1 if include is None else include(name, p))
        }
        if not targets:
            raise ArgumentError(f"{call}: no parameter that requires a gradient is included")
        self.masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in targets.items()}
        if self._weights().groups and min_keep:  # laying out comes first: it finds what the pattern does not fit
            raise ArgumentError(f"{call}: min_keep is for patterns without a limit of their own, not {self.pattern}")
        given = attached_masks(module) if masks is None else masks
        if masks is not None and (unknown := sorted(set(masks) - set(targets))):
            raise ArgumentError(f"{call}: masks for parameters that are not pruned: {', '.join(unknown)}")
        self.masks |= {name: given[name].to(p.device) for name, p in targets.items() if name in given}
        apply_masks(module, self.masks)

    @property
    def sparsity(self) -> float:
        """Share of the weights that are dropped."""
        kept = sum(int(mask.sum()) for mask in self.masks.values())
        return 1 - kept / sum(mask.numel() for mask in self.masks.values())

    def prune(self, sparsity: float, data: Any) -> dict[str, Tensor]:
        """Drop weights until a share of them is zero; attached masks follow.

        Parameters
        ----------
        sparsity : float
            Of all weights included, in [0, 1), at least the present one and at most what the pattern allows. Rounded to
            whole units.
        data : tensor, or tuples, lists and dictionaries of tensors
            Batches as ``loss_fn`` takes them; every tensor has the leading axis of examples.

        Returns
        -------
        dict of str to bool Tensor
            The masks, True where a weight is kept. The dropped weights are exactly zero.

        Raises
        ------
        ArgumentError
            If the sparsity is out of range or cannot be reached.
        NumericalError
            If a gradient has NaN or Inf, or λ is below the rounding of the Fisher matrix (SingularError).

        Warns
        -----
        UserWarning
            If a parameter has no gradient anywhere, or loses its last weight.
        """
        self._check_sparsity(sparsity)
        start, unheard = self._weights(), set[str]()
        fill_up = bool(start.groups) and sparsity == self.pattern.max_sparsity
        present = start.targets(sparsity, 0, self.scope)
        with progress("pruning", self.recompute, unit="rounds") as advance:
            for number in range(1, self.recompute + 1):
                left: list[int | None] = [*start.targets(sparsity, number / self.recompute, self.scope)]
                if fill_up and number == self.recompute:
                    left = [None] * len(left)
                if left != present:
                    unheard |= self._round(left, data)
                    present = left
                advance(1)
        if unheard:
            names = ", ".join(sorted(unheard))
            _warn(f"no gradient reached {names}: damping alone decides there; leave it out by include=")
        emptied = [name for name, mask in self.masks.items() if not bool(mask.any())]
        if emptied:
            _warn(f"{', '.join(emptied)} lost all weights; min_keep or scope='layer' prevents that")
        return dict(self.masks)

    def scores(self, data: Any) -> dict[str, Tensor]:
        """Say what dropping each weight, with its unit, would cost now.

        Parameters
        ----------
        data : tensor, or tuples, lists and dictionaries of tensors
            As of `prune`.

        Returns
        -------
        dict of str to Tensor
            ρ >= 0 in the units of the loss, of the shapes of the parameters; 0 where dropped. Small means redundant.
        """
        weights = self._weights()
        found = self._assess(weights, data)
        flat = torch.zeros(weights.layout.size, dtype=found.scores_U.dtype, device=weights.alive.device)
        flat[weights.units_US] = found.scores_U.unsqueeze(1)
        return weights.layout.unflatten(torch.where(weights.alive, flat, 0))

    def apply_masks(self) -> None:
        """Set dropped weights to zero once more, for training loops that do without attached masks."""
        apply_masks(self.module, self.masks)

    def attach_masks(self) -> None:
        """Hold dropped weights at zero through training; see `hesse.compress.attach_masks`."""
        attach_masks(self.module, self.masks)

    def remove_masks(self) -> None:
        """Take attached masks off and leave plain weights with zeros."""
        remove_masks(self.module)

    def _check_sparsity(self, sparsity: float) -> None:
        most = self.pattern.max_sparsity
        if not 0 <= sparsity < 1 or sparsity > most:
            raise ArgumentError(
                f"OBSPruner.prune: expected 0 <= sparsity {'<' if most == 1 else '<='} {most:g}, got {sparsity}"
            )
        if sparsity < self.sparsity - 0.5 * self.pattern.unit_size / sum(m.numel() for m in self.masks.values()):
            raise ArgumentError(
                f"OBSPruner.prune: sparsity {sparsity:g} is below the present {self.sparsity:g}; dropped weights do "
                "not come back"
            )

    def _weights(self) -> PrunableWeights:
        return PrunableWeights.of(self.module, self.masks, self.pattern)

    def _assess(self, weights: PrunableWeights, data: Any) -> _Assessment:
        alive = weights.layout.unflatten(weights.alive)
        columns = torch.cat(
            [
                alive[name].flatten() if name in alive else torch.zeros(p.numel(), dtype=torch.bool, device=p.device)
                for name, p in plain_parameters(self.module).items()
                if p.requires_grad
            ]
        )
        rows = gradient_rows(
            self.module,
            self.loss_fn,
            data,
            self.num_grads,
            self.batch_size,
            per_sample=self.per_sample,
            mask=columns,
            fisher=self.fisher,
            generator=self.generator,
        )
        inverse = MFACInverse(rows, self.damping, self.block_size)
        values = weights.layout.flatten({name: p.detach() for name, p in weights.parameters.items()})
        values = values[weights.alive].to(inverse.dtype)
        numbered = weights.numbered_US
        scores, t = saliencies(values, numbered, unit_curvature(inverse, numbered))
        return _Assessment(inverse, values, numbered, scores, t)

    @torch.no_grad()
    def _round(self, left: list[int | None], data: Any) -> set[str]:
        # drops units and moves the others; returns the names of parameters without a gradient
        weights = self._weights()
        found = self._assess(weights, data)
        chosen = weights.choose(found.scores_U, left, self.scope, self.min_keep)
        units = found.numbered_US[chosen]
        dropped = torch.zeros_like(found.weights_D, dtype=torch.bool)
        dropped[units[units >= 0]] = True
        grads = found.inverse.grads
        if self.joint:
            delta = joint_update(grads, found.weights_D, dropped, self.damping, self.block_size)
        else:
            delta = summed_update(found.inverse, units, found.t_US[chosen])
        delta = torch.where(dropped, -found.weights_D, delta)
        increase = predicted_increase(grads, delta, self.damping, self.block_size)
        for name, value in weights.cut(torch.where(dropped, 0, found.weights_D + delta)).items():
            weights.parameters[name].copy_(value)
        self.masks = weights.cut(~dropped, fill=False)
        held = attached_masks(self.module)
        attach_masks(self.module, {name: mask for name, mask in self.masks.items() if name in held})
        self.rounds.append(PruneRound(self.sparsity, int(dropped.sum()), increase))
        heard = weights.cut((grads != 0).any(0), fill=False)
        alive = weights.layout.unflatten(weights.alive)
        return {name for name, piece in heard.items() if not bool(piece.any()) and bool(alive[name].any())}


def _warn(message: str) -> None:
    warnings.warn(f"OBSPruner.prune: {message}", UserWarning, stacklevel=3)
