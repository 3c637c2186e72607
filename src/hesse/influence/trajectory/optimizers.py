"""One step of SGD or Adam on a flat vector of weights, as a function that can be differentiated.   Shapes: P weights.

The same arithmetic as torch.optim, without a call in place: a step can be replayed, and its derivative taken with
respect to everything that enters it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from typing import Any

import torch
from torch import Tensor, nn

from hesse.errors import ArgumentError
from hesse.linalg.layout import ParameterLayout

__all__ = [
    "SGD",
    "AdamW",
    "Optimizer",
    "clip_gradient",
    "decay_mask",
    "optimizer_from_dict",
    "optimizer_of",
    "optimizer_to_dict",
]

_CLIP_EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_


@dataclass(frozen=True, slots=True)
class SGD:
    """θ ← θ - η (g + λθ), with heavy-ball or Nesterov momentum: b ← βb + g + λθ.

    Attributes
    ----------
    momentum : float, default 0
        β, 0 to 1.
    weight_decay : float, default 0
        λ, added to the gradient.
    nesterov : bool, default False
        Step along g + βb in place of b.
    no_decay : tuple of str
        Parameters that do not decay. Default: none.
    clip_norm : float, optional
        Gradients longer than this are shortened to it. Default: never.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    no_decay: tuple[str, ...] = ()
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        _in_range("momentum", self.momentum, 1.0)
        _in_range("weight_decay", self.weight_decay)
        _check_clip(self.clip_norm)

    def start(self, weights: Tensor) -> tuple[Tensor, ...]:
        """Make the state before the first step.

        Parameters
        ----------
        weights : Tensor, shape (P,)
            Gives size, dtype and device.

        Returns
        -------
        tuple of Tensor
            b = 0, or nothing without momentum.
        """
        return (torch.zeros_like(weights),) if self.momentum else ()

    def step(
        self, weights: Tensor, state: tuple[Tensor, ...], grad: Tensor, rate: float, number: int, decays: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Make one step.

        Parameters
        ----------
        weights : Tensor, shape (P,)
            θ.
        state : tuple of Tensor
            From `start` or the step before.
        grad : Tensor, shape (P,)
            g, clipped already.
        rate : float
            η.
        number : int
            Steps made before this one; not used.
        decays : Tensor, shape (P,), optional
            1 where a weight decays, else 0. None: 1 everywhere.

        Returns
        -------
        weights : Tensor, shape (P,)
            New ones.
        state : tuple of Tensor
            For the next step.
        """
        if self.weight_decay:
            grad = grad + self.weight_decay * (weights if decays is None else decays * weights)
        if not self.momentum:
            return weights - rate * grad, ()
        buffer = self.momentum * state[0] + grad
        along = grad + self.momentum * buffer if self.nesterov else buffer
        return weights - rate * along, (buffer,)


@dataclass(frozen=True, slots=True)
class AdamW:
    """θ ← (1 - ηλ)θ - η m̂ / (√(v̂ + ε₀) + ε), m and v the running means of g and g², m̂ and v̂ without their bias.

    Attributes
    ----------
    betas : (float, float), default (0.9, 0.999)
        Of m and v.
    eps : float, default 1e-8
        ε. A gradient no larger than this makes the step, and with it the result of `magic`, almost arbitrary; 1e-6 is
        a better choice for training that shall be differentiated.
    eps_root : float, default 0
        ε₀, inside the root, which bounds its derivative. torch.optim has none.
    weight_decay : float, default 0.01
        λ, apart from the gradient. Adam with weight decay in the gradient is not supported.
    no_decay : tuple of str
        Parameters that do not decay. Default: none.
    clip_norm : float, optional
        Gradients longer than this are shortened to it. Default: never.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    eps_root: float = 0.0
    weight_decay: float = 0.01
    no_decay: tuple[str, ...] = ()
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        for i, beta in enumerate(self.betas):
            _in_range(f"betas[{i}]", beta, 1.0)
        _in_range("eps_root", self.eps_root)
        _in_range("weight_decay", self.weight_decay)
        _check_clip(self.clip_norm)
        if not self.eps > 0:
            raise ArgumentError(f"eps: expected > 0, got {self.eps}")

    def start(self, weights: Tensor) -> tuple[Tensor, ...]:
        """Make the state before the first step.

        Parameters
        ----------
        weights : Tensor, shape (P,)
            Gives size, dtype and device.

        Returns
        -------
        tuple of Tensor
            m = 0 and v = 0.
        """
        return torch.zeros_like(weights), torch.zeros_like(weights)

    def step(
        self, weights: Tensor, state: tuple[Tensor, ...], grad: Tensor, rate: float, number: int, decays: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Make one step.

        Parameters
        ----------
        weights : Tensor, shape (P,)
            θ.
        state : tuple of Tensor
            m and v.
        grad : Tensor, shape (P,)
            g, clipped already.
        rate : float
            η.
        number : int
            Steps made before this one: 0 for the first.
        decays : Tensor, shape (P,), optional
            1 where a weight decays, else 0. None: 1 everywhere.

        Returns
        -------
        weights : Tensor, shape (P,)
            New ones.
        state : tuple of Tensor
            For the next step.
        """
        first, second = self.betas
        mean = torch.lerp(grad, state[0], first)
        square = torch.lerp(grad * grad, state[1], second)
        if self.weight_decay:
            shrunk = rate * self.weight_decay
            weights = weights * (1 - shrunk) if decays is None else weights - shrunk * decays * weights
        root = _root(square / (1 - second ** (number + 1)) + self.eps_root)
        scaled = rate / (1 - first ** (number + 1))
        return weights - scaled * mean / (root + self.eps), (mean, square)


Optimizer = SGD | AdamW


def _root(x: Tensor) -> Tensor:
    # v is zero where no gradient ever came, and so is m: what the root's infinite derivative would be multiplied with
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0)


def clip_gradient(grad: Tensor, limit: float | None) -> Tensor:
    """Shorten a gradient to g · min(1, c / (‖g‖ + 1e-6)), as torch does; smooth but where the norm equals c.

    Parameters
    ----------
    grad : Tensor, shape (P,)
        g, of all trained weights.
    limit : float, optional
        c. None: g as it is.

    Returns
    -------
    Tensor, shape (P,)
        No longer than c.
    """
    return grad if limit is None else grad * (limit / (grad.norm() + _CLIP_EPS)).clamp(max=1)


def decay_mask(optimizer: Optimizer, layout: ParameterLayout, like: Tensor) -> Tensor | None:
    """Mark the weights that decay.

    Parameters
    ----------
    optimizer : SGD or AdamW
        With its ``no_decay``.
    layout : ParameterLayout
        Of the trained weights.
    like : Tensor, shape (P,)
        Gives dtype and device.

    Returns
    -------
    Tensor, shape (P,), or None
        1 or 0; None if all decay.

    Raises
    ------
    ArgumentError
        If ``no_decay`` names a parameter that is not trained.
    """
    if not optimizer.no_decay:
        return None
    mask = torch.ones_like(like)
    for name in optimizer.no_decay:
        if name not in layout.names:
            raise ArgumentError(f"no_decay: the model trains no parameter {name!r}")
        mask[layout.slice(name)] = 0
    return mask


def optimizer_of(
    optimizer: torch.optim.Optimizer, model: nn.Module, *, clip_norm: float | None = None
) -> tuple[Optimizer, float]:
    """Read what `magic` and `source` need to know off an optimizer of torch.

    Parameters
    ----------
    optimizer : torch.optim.SGD, AdamW, or Adam without weight decay
        All groups with one learning rate; they may differ in whether they decay.
    model : nn.Module
        Gives the names of its parameters.
    clip_norm : float, optional
        Of the training loop. Default: gradients are not clipped.

    Returns
    -------
    optimizer : SGD or AdamW
        The same, as plain numbers.
    rate : float
        Its learning rate now.

    Raises
    ------
    ArgumentError
        If it is another optimizer, or has options that cannot be replayed.
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate and Lightning wrap it
    is_sgd = isinstance(inner, torch.optim.SGD)
    if not is_sgd and not isinstance(inner, (torch.optim.AdamW, torch.optim.Adam)):
        raise ArgumentError(f"optimizer: expected torch.optim.SGD, AdamW or Adam, got {type(inner).__name__}")
    groups: list[dict[str, Any]] = inner.param_groups
    odd = ("dampening", "maximize") if is_sgd else ("amsgrad", "maximize")
    for key in odd:
        if any(group.get(key) for group in groups):
            raise ArgumentError(f"optimizer: {key} is not supported")
    same = ("lr", "momentum", "nesterov") if is_sgd else ("lr", "betas", "eps")
    for key in same:
        if any(group[key] != groups[0][key] for group in groups):
            raise ArgumentError(f"optimizer: expected one {key} for all parameter groups")
    decays = sorted({float(group["weight_decay"]) for group in groups if group["params"]} - {0.0})
    if len(decays) > 1:
        raise ArgumentError(f"optimizer: expected one weight_decay beside 0, got {decays}")
    decay = decays[0] if decays else 0.0
    if decay and not is_sgd and not isinstance(inner, torch.optim.AdamW):
        raise ArgumentError("optimizer: Adam with weight decay in the gradient is not supported; use AdamW")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared = [p for group in groups if decay and not group["weight_decay"] for p in group["params"]]
    missing = [p for p in spared if id(p) not in names]
    if missing:
        raise ArgumentError(f"optimizer: {len(missing)} of its parameters are not the model's")
    no_decay = tuple(sorted(names[id(p)] for p in spared))
    first, rate = groups[0], float(groups[0]["lr"])
    if is_sgd:
        return SGD(float(first["momentum"]), decay, bool(first["nesterov"]), no_decay, clip_norm), rate
    betas = (float(first["betas"][0]), float(first["betas"][1]))
    return AdamW(betas, float(first["eps"]), 0.0, decay, no_decay, clip_norm), rate


def optimizer_to_dict(optimizer: Optimizer) -> dict[str, Any]:
    """Write an optimizer as plain values, for a manifest.

    Parameters
    ----------
    optimizer : SGD or AdamW
        As made.

    Returns
    -------
    dict
        With its ``kind``.
    """
    return {"kind": type(optimizer).__name__} | asdict(optimizer)


def optimizer_from_dict(fields: Mapping[str, Any]) -> Optimizer:
    """Read back what `optimizer_to_dict` wrote.

    Parameters
    ----------
    fields : mapping
        With its ``kind``.

    Returns
    -------
    SGD or AdamW
        As it was.

    Raises
    ------
    ArgumentError
        If it is of another kind.
    """
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in fields.items() if key != "kind"
    }
    kinds: dict[str, type[SGD] | type[AdamW]] = {"SGD": SGD, "AdamW": AdamW}
    kind = kinds.get(fields.get("kind", ""))
    if kind is None or set(values) != {field.name for field in dataclass_fields(kind)}:
        raise ArgumentError(f"optimizer: expected SGD or AdamW with all its fields, got {dict(fields)}")
    return kind(**values)


def _in_range(name: str, value: float, below: float = float("inf")) -> None:
    if not 0 <= value < below:
        raise ArgumentError(f"{name}: expected >= 0" + (f" and < {below:g}" if below == 1 else "") + f", got {value}")


def _check_clip(limit: float | None) -> None:
    if limit is not None and not limit > 0:
        raise ArgumentError(f"clip_norm: expected > 0 or None, got {limit}")
