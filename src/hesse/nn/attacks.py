"""Worst inputs near given ones, by projected gradient ascent, and the worst of several such attacks.

Every attack is a lower bound of the worst case: what survives it is not thereby certified.   Shapes: B inputs (B, ...),
n classes, R restarts.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from hesse.errors import ArgumentError, ShapeError

__all__ = [
    "AttackLoss",
    "EnsembleResult",
    "Model",
    "Norm",
    "PGDAttack",
    "attack_loss",
    "ensemble_attack",
    "evaluating",
    "pgd",
]

Norm = Literal["linf", "l2"]
AttackLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, n), labels (B,)) -> (B,), what an attack raises."""
Model = Callable[[Tensor], Tensor]
"""Inputs (B, ...) -> logits (B, n)."""


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return -logits.log_softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1)


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    label = logits.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    return logits.scatter(-1, y.unsqueeze(-1), -math.inf).amax(-1) - label


def _dlr(logits: Tensor, y: Tensor) -> Tensor:
    top = logits.topk(3, -1).values
    return _margin(logits, y) / (top[..., 0] - top[..., 2]).clamp(min=1e-12)


_LOSSES: dict[str, AttackLoss] = {"ce": _cross_entropy, "dlr": _dlr, "margin": _margin}


def attack_loss(name: str) -> AttackLoss:
    """Look up what an attack raises.

    Parameters
    ----------
    name : {"ce", "dlr", "margin"}
        Cross-entropy; the best wrong score minus the label's; or that margin divided by the distance of the first
        score from the third, which does not change with the scale of the scores and needs three classes.

    Returns
    -------
    callable
        (logits (B, n), labels (B,)) -> (B,). Positive margins are mistakes.

    Raises
    ------
    ArgumentError
        If there is none of that name.

    References
    ----------
    F. Croce, M. Hein (2020), Reliable evaluation of adversarial robustness, ICML, arXiv 2003.01690.
    """
    if name not in _LOSSES:
        raise ArgumentError(f"attack_loss: expected one of {', '.join(_LOSSES)}, got {name!r}")
    return _LOSSES[name]


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Hold a model in evaluation mode while the block runs, then give every submodule its own mode back.

    Parameters
    ----------
    model : callable
        An ``nn.Module``; any other callable is left alone.

    Yields
    ------
    None
        Nothing.
    """
    modes = [(module, module.training) for module in model.modules()] if isinstance(model, nn.Module) else []
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True, slots=True)
class PGDAttack:
    """The settings of `pgd`, held together: ``attack(model, x, y, loss_fn)`` runs it.

    ``start`` and the other fields are the arguments of `pgd`; the defaults are those of training, where one restart and
    the last iterate will do.
    """

    eps: float | Tensor
    norm: Norm = "linf"
    num_steps: int = 10
    step_size: float | None = None
    num_restarts: int = 1
    bounds: tuple[float, float] | None = (0.0, 1.0)
    start: Literal["uniform", "gaussian"] = "uniform"
    keep_best: bool = False
    generator: Generator | None = None

    def __post_init__(self) -> None:
        _check_settings(self.eps, self.norm, self.num_steps, self.step_size, self.num_restarts, self.start)

    def __call__(self, model: Model, x: Tensor, y: Tensor, loss_fn: AttackLoss | str = "ce") -> Tensor:
        """Return the moved inputs; see `pgd`.

        Parameters
        ----------
        model, x, y, loss_fn
            As of `pgd`.

        Returns
        -------
        Tensor, shape (B, ...)
            Without a graph.
        """
        return pgd(
            model,
            x,
            y,
            loss_fn,
            eps=self.eps,
            norm=self.norm,
            num_steps=self.num_steps,
            step_size=self.step_size,
            num_restarts=self.num_restarts,
            bounds=self.bounds,
            start=self.start,
            keep_best=self.keep_best,
            generator=self.generator,
        )


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    loss_fn: AttackLoss | str = "ce",
    *,
    eps: float | Tensor,
    norm: Norm = "linf",
    num_steps: int = 20,
    step_size: float | None = None,
    num_restarts: int = 1,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    start: Literal["uniform", "gaussian"] = "uniform",
    keep_best: bool = True,
    generator: Generator | None = None,
) -> Tensor:
    """Raise a loss over ‖x' - x‖ <= ε by steps along sign(∇) or ∇/‖∇‖₂, each followed by the projection.

    Parameters
    ----------
    model : callable
        x (B, ...) -> logits (B, n). A module is attacked in evaluation mode and left as it was; gradients of its
        parameters are not touched.
    x : Tensor, shape (B, ...)
        Inputs, floating.
    y : Tensor of integers, shape (B,)
        Labels.
    loss_fn : callable or {"ce", "dlr", "margin"}, default "ce"
        (logits (B, n), labels (B,)) -> (B,): what to raise. It is called once a restart.
    eps : float or Tensor of shape (B,)
        ε >= 0, in units of x, for all inputs or each.
    norm : {"linf", "l2"}, default "linf"
        Of the ball.
    num_steps : int, default 20
        K gradients of R B inputs.
    step_size : float, optional
        As a fraction of ε. Default: 2.5 / K, which crosses the ball and has steps left.
    num_restarts : int, default 1
        R starts, run as one batch.
    bounds : (float, float) or None, default (0.0, 1.0)
        Range of the data, which x' keeps. For inputs outside it pass their own range, or None for no range.
    start : {"uniform", "gaussian"}, default "uniform"
        A point of the ball, or x + 10⁻³ N(0, 1) projected; never x itself, where symmetric losses have no slope.
    keep_best : bool, default True
        Return the iterate of the largest loss, over steps and restarts, at one more pass forward; otherwise the last
        iterate (of the first restart).
    generator : torch.Generator, optional
        Source of the starts, on the device of x. Default: torch's global generator.

    Returns
    -------
    Tensor, shape (B, ...)
        x', without a graph; within ε and the bounds up to rounding.

    Raises
    ------
    ArgumentError
        If a setting is out of range, or an input lies outside ``bounds``.
    ShapeError
        If x, y, ε and the logits do not fit.

    References
    ----------
    A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu (2018), ICLR, arXiv 1706.06083.
    """
    _check_settings(eps, norm, num_steps, step_size, num_restarts, start)
    radius = _radius(x, y, eps, bounds)
    raised = attack_loss(loss_fn) if isinstance(loss_fn, str) else loss_fn
    restarts = num_restarts if keep_best else 1
    centre = x.detach().repeat(restarts, *[1] * (x.ndim - 1))
    radius = radius.repeat(restarts, *[1] * (x.ndim - 1))
    stride = (2.5 / num_steps if step_size is None else step_size) * radius
    moved = _project(centre + _offset(centre, radius, norm, start, generator), centre, radius, norm, bounds)
    best, best_loss = moved, torch.full((len(moved),), -math.inf, dtype=x.dtype, device=x.device)
    with evaluating(model), torch.enable_grad():
        for step in range(num_steps + int(keep_best)):
            moved = moved.detach().requires_grad_()
            logits = model(moved)
            if step == 0:
                _check_labels("pgd", logits, y)
            losses = torch.cat([raised(part, y) for part in logits.chunk(restarts)])
            if keep_best:
                better = losses.detach() > best_loss
                best_loss = torch.where(better, losses.detach().to(best_loss), best_loss)
                best = torch.where(_like(better, x), moved.detach(), best)
            if step < num_steps:
                (gradient,) = torch.autograd.grad(losses.sum(), moved)
                moved = _project(moved.detach() + stride * _direction(gradient, norm), centre, radius, norm, bounds)
    if not keep_best:
        return moved.detach()
    pick = best_loss.view(restarts, -1).argmax(0)
    return best.view(restarts, *x.shape)[pick, torch.arange(len(x), device=x.device)]


def _check_labels(name: str, logits: Tensor, y: Tensor) -> None:
    if logits.ndim != 2:
        raise ShapeError(f"{name}: model: expected logits of shape (B, n), got {tuple(logits.shape)}")
    if bool(((y < 0) | (y >= logits.shape[-1])).any()):
        raise ArgumentError(
            f"{name}: y: expected labels 0 to {logits.shape[-1] - 1}, got {int(y.min())} to {int(y.max())}"
        )


def _check_settings(
    eps: float | Tensor, norm: str, num_steps: int, step_size: float | None, num_restarts: int, start: str
) -> None:
    radii = torch.as_tensor(eps)
    if not bool(((radii >= 0) & torch.isfinite(radii)).all()):
        raise ArgumentError(f"pgd: eps: expected finite numbers >= 0, got {eps}")
    if norm not in ("linf", "l2"):
        raise ArgumentError(f"pgd: norm: expected linf or l2, got {norm!r}")
    if num_steps < 1 or num_restarts < 1:
        raise ArgumentError(f"pgd: expected num_steps >= 1 and num_restarts >= 1, got {num_steps} and {num_restarts}")
    if step_size is not None and not 0 < step_size < math.inf:
        raise ArgumentError(f"pgd: step_size: expected a finite number > 0, got {step_size}")
    if start not in ("uniform", "gaussian"):
        raise ArgumentError(f"pgd: start: expected uniform or gaussian, got {start!r}")


def _radius(x: Tensor, y: Tensor, eps: float | Tensor, bounds: tuple[float, float] | None) -> Tensor:
    if not x.is_floating_point() or x.ndim < 2:
        raise ShapeError(f"pgd: x: expected a floating tensor of shape (B, ...), got {tuple(x.shape)} {x.dtype}")
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise ShapeError(f"pgd: y: expected integer labels of shape ({len(x)},), got {tuple(y.shape)} {y.dtype}")
    if bounds is not None:
        low, high = bounds
        if not low < high:
            raise ArgumentError(f"pgd: bounds: expected low < high, got {bounds}")
        if bool(((x < low) | (x > high)).any()):
            raise ArgumentError(
                f"pgd: bounds: inputs from {float(x.min()):.4g} to {float(x.max()):.4g} lie outside {bounds}; "
                "pass the range of the data, or bounds=None"
            )
    radius = torch.as_tensor(eps, dtype=x.dtype, device=x.device)
    if radius.ndim and radius.shape != x.shape[:1]:
        raise ShapeError(f"pgd: eps: expected a number or shape ({len(x)},), got {tuple(radius.shape)}")
    return _like(radius.expand(len(x)), x)


def _like(rows: Tensor, x: Tensor) -> Tensor:
    return rows.view(-1, *[1] * (x.ndim - 1))


def _norms(v: Tensor) -> Tensor:
    return _like(v.flatten(1).norm(dim=1), v)


def _direction(gradient: Tensor, norm: Norm) -> Tensor:
    if norm == "linf":
        return gradient.sign()
    return gradient / _norms(gradient).clamp(min=torch.finfo(gradient.dtype).tiny)


def _offset(x: Tensor, radius: Tensor, norm: Norm, start: str, generator: Generator | None) -> Tensor:
    def draw(sampler: Callable[..., Tensor], *shape: int) -> Tensor:
        return sampler(*shape, generator=generator, dtype=x.dtype, device=x.device)

    if start == "gaussian":
        return 1e-3 * draw(torch.randn, *x.shape)
    if norm == "linf":
        return radius * (2 * draw(torch.rand, *x.shape) - 1)
    normal = draw(torch.randn, *x.shape)
    share = _like(draw(torch.rand, len(x)), x).pow(1 / x[0].numel())  # uniform in volume
    return radius * share * _direction(normal, "l2")


def _project(moved: Tensor, x: Tensor, radius: Tensor, norm: Norm, bounds: tuple[float, float] | None) -> Tensor:
    if norm == "linf":
        moved = torch.minimum(torch.maximum(moved, x - radius), x + radius)
    else:
        offset = moved - x
        size = _norms(offset)
        moved = torch.where(size > radius, x + offset * (radius / size.clamp(min=torch.finfo(x.dtype).tiny)), moved)
    # x is within the range, so clipping moves every coordinate towards it and leaves no ball
    return moved if bounds is None else moved.clamp(*bounds)


@dataclass(frozen=True, slots=True)
class EnsembleResult:
    """What several attacks together did to B inputs."""

    correct: Tensor  # (B,) bool: right before any attack
    robust: Tensor  # (B,) bool: right after all of them
    adversarial: Tensor  # (B, ...): an input that is misclassified, or x itself where none was found
    num_broken: dict[str, int]  # attack -> inputs that it broke and the attacks before it had not

    @property
    def clean_accuracy(self) -> float:
        """Share of inputs classified rightly before any attack."""
        return float(self.correct.double().mean())

    @property
    def robust_accuracy(self) -> float:
        """Share of inputs that no attack broke: an upper bound of the true one."""
        return float(self.robust.double().mean())


def ensemble_attack(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    norm: Norm = "linf",
    attacks: Sequence[str] | None = None,
    num_steps: int = 40,
    step_size: float | None = None,
    num_restarts: int = 1,
    num_targets: int = 3,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    generator: Generator | None = None,
) -> EnsembleResult:
    """Run several attacks, each on what the ones before left unbroken: the worst case over all of them per input.

    Parameters
    ----------
    model, x, y, eps, norm, step_size, bounds, generator
        As of `pgd`.
    attacks : sequence of {"ce", "dlr", "margin", "targeted"}, optional
        In this order. ``targeted`` raises h_t - h_y for each of the ``num_targets`` likeliest wrong classes t in turn.
        Default: all, without ``dlr`` for two classes.
    num_steps : int, default 40
        Steps an attack.
    num_restarts : int, default 1
        Starts an attack.
    num_targets : int, default 3
        Targets of ``targeted``, n - 1 at most.

    Returns
    -------
    EnsembleResult
        Accuracies, and an adversarial input for each that was broken.

    Raises
    ------
    ArgumentError
        If an attack is unknown or does not suit the number of classes, or a setting is out of range.
    ShapeError
        If x, y, ε and the logits do not fit.

    References
    ----------
    F. Croce, M. Hein (2020), ICML, arXiv 2003.01690.
    """
    _check_settings(eps, norm, num_steps, step_size, num_restarts, "uniform")
    radii = _radius(x, y, eps, bounds).view(-1)
    with evaluating(model), torch.no_grad():
        clean = model(x)
    _check_labels("ensemble_attack", clean, y)
    num_classes = clean.shape[-1]
    chosen = (
        (("ce", "dlr", "margin", "targeted") if num_classes > 2 else ("ce", "margin")) if attacks is None else attacks
    )
    if unknown := [name for name in chosen if name not in (*_LOSSES, "targeted")]:
        raise ArgumentError(f"ensemble_attack: attacks: expected ce, dlr, margin, targeted, got {unknown}")
    if num_classes < 3 and "dlr" in chosen:
        raise ArgumentError(f"ensemble_attack: attacks: dlr needs at least 3 classes, the model has {num_classes}")
    if num_targets < 1:
        raise ArgumentError(f"ensemble_attack: num_targets: expected at least 1, got {num_targets}")

    correct = clean.argmax(-1) == y
    robust, adversarial = correct.clone(), x.detach().clone()
    rivals = clean.scatter(-1, y.unsqueeze(-1), -math.inf).argsort(-1, descending=True)
    broken: dict[str, int] = {}
    for name in chosen:
        for rank in range(min(num_targets, num_classes - 1) if name == "targeted" else 1):
            left = robust.nonzero().squeeze(-1)
            if not len(left):
                break
            loss_fn = _towards(rivals[left, rank]) if name == "targeted" else _LOSSES[name]
            moved = pgd(
                model,
                x[left],
                y[left],
                loss_fn,
                eps=radii[left],
                norm=norm,
                num_steps=num_steps,
                step_size=step_size,
                num_restarts=num_restarts,
                bounds=bounds,
                generator=generator,
            )
            with evaluating(model), torch.no_grad():
                fooled = model(moved).argmax(-1) != y[left]
            adversarial[left[fooled]] = moved[fooled]
            robust[left[fooled]] = False
            broken[name] = broken.get(name, 0) + int(fooled.sum())
    return EnsembleResult(correct, robust, adversarial, broken)


def _towards(targets: Tensor) -> AttackLoss:
    def loss_fn(logits: Tensor, y: Tensor) -> Tensor:
        wanted, label = (logits.gather(-1, index.unsqueeze(-1)).squeeze(-1) for index in (targets, y))
        return wanted - label

    return loss_fn
