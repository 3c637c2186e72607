"""SGD preconditioned with the inverse empirical Fisher matrix of the last gradients (M-FAC).

u = F⁻¹g,   F = λI + (1/m) Σ_j g_j g_jᵀ over the last m gradients, g among them;   w ← w - lr · u
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT, StateDict

from hesse._optimizer import ClosureOptimizer
from hesse.curvature import GradientWindow
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError

__all__ = ["MFAC"]

_SMALL_WINDOW = 1 << 20  # numbers that are kept in double precision without asking: 8 MiB


class MFAC(ClosureOptimizer):
    """Natural-gradient descent on a sliding window of mini-batch gradients, without a curvature matrix.

    Each parameter group has a window of its own, which correlates all coordinates of the group; groups do not see each
    other. Every step needs one gradient, as SGD does.

    Parameters
    ----------
    params : iterable of Tensor, of (name, Tensor), or of dict
        As of any torch optimiser. The tensors of a group share dtype and device.
    lr : float, default 1e-3
        Step length. For gradients far larger than √(mλ) a first step moves by about lr · m / ‖g‖, whatever their
        scale: tune it with the window.
    window : int, default 256
        m, the gradients remembered. More is better, as long as the loss surface has not moved on meanwhile.
    damping : float, default 1e-5
        λ > 0, in the units of a squared gradient.
    momentum : float, default 0.0
        μ in v ← μ v + (1 - μ) u; 0 means none.
    weight_decay : float, default 0.0
        Multiple of w added to the gradient before it enters the window (L2, not decoupled).
    sparse : bool, default False
        Leave coordinates that are exactly zero when their group is added out of the window and of every step, as a
        pruned network wants it; memory falls in proportion.
    window_dtype : torch.dtype, optional
        In which the gradients are remembered; bfloat16 halves the memory. Default: float64 for windows of up to a
        million numbers, which saves converting them for the sums, else that of the parameters. Between float32 and
        float64 it changes time and memory only.

    Raises
    ------
    ArgumentError
        If a hyper-parameter is out of range, in a group or by default.
    ArgumentTypeError
        If a parameter is not a real floating tensor, or ``window_dtype`` no real floating dtype.
    ShapeError
        If the tensors of a group differ in dtype or device.

    Notes
    -----
    Memory m times the parameters; time 4 m multiplications a parameter and step, beside the factor of
    order m. Sums run in float64. A parameter without a gradient is left alone: its entries in the window are zeros. A
    gradient with NaN or Inf raises NumericalError and changes nothing.

    References
    ----------
    E. Frantar, E. Kurtic, D. Alistarh (2021), NeurIPS, arXiv 2107.03356.

    Examples
    --------
    >>> w = torch.tensor([3.0], requires_grad=True)
    >>> optimizer = MFAC([w], lr=1.0, window=1, damping=1.0)
    >>> (w * 2).sum().backward()  # u = 2 / (1 + 2²)
    >>> optimizer.step()
    >>> w.item()
    2.5999999046325684
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        window: int = 256,
        damping: float = 1e-5,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        sparse: bool = False,
        window_dtype: torch.dtype | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "window": window,
            "damping": damping,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "sparse": sparse,
            "window_dtype": window_dtype,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with a window of their own.

        Parameters
        ----------
        param_group : dict
            "params", and any hyper-parameter that shall differ from the defaults.

        Raises
        ------
        ArgumentError
            If a hyper-parameter is out of range, or ``sparse`` leaves nothing; as for the others, nothing is added.
        ArgumentTypeError
            If a parameter is not a real floating tensor.
        ShapeError
            If the tensors differ in dtype or device.
        """
        _check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        group = self.param_groups.pop()  # back in its place when it has passed
        _check_params(group["params"])
        if group["sparse"]:
            alive = torch.cat([(p.detach() != 0).reshape(-1) for p in group["params"]])
            if not bool(alive.any()):
                raise ArgumentError("MFAC: sparse=True, and all parameters of the group are zero: nothing would move")
            self.state[group["params"][0]]["alive"] = alive
        self.param_groups.append(group)

    def _take_step(self, loss: float | Tensor | None) -> None:
        gradients = [self._gradient(number, group) for number, group in enumerate(self.param_groups)]
        for group, gradient in zip(self.param_groups, gradients, strict=True):
            if gradient is not None:
                self._move(group, gradient)

    def _gradient(self, number: int, group: dict[str, Any]) -> Tensor | None:
        # the group's gradient in one vector, None if there is none at all
        if all(p.grad is None for p in group["params"]):
            return None
        for i, p in enumerate(group["params"]):
            if p.grad is not None and p.grad.layout != torch.strided:
                raise ArgumentTypeError(
                    f"MFAC: the gradient of {_name(group, number, i)} is a sparse tensor; a window needs dense ones"
                )
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in group["params"]]
        if group["weight_decay"]:
            decayed = torch._foreach_add(pieces, group["params"], alpha=group["weight_decay"])
            pieces = [
                x if p.grad is not None else zero for x, zero, p in zip(decayed, pieces, group["params"], strict=True)
            ]
        flat = torch.cat([piece.reshape(-1) for piece in pieces])
        if not bool(torch.isfinite(flat).all()):
            bad = [_name(group, number, i) for i, piece in enumerate(pieces) if not bool(torch.isfinite(piece).all())]
            raise NumericalError(f"MFAC: the gradient of {', '.join(bad)} has NaN or Inf; nothing has moved")
        alive = self.state[group["params"][0]].get("alive")
        return flat if alive is None else flat[alive]

    def _move(self, group: dict[str, Any], gradient: Tensor) -> None:
        first = group["params"][0]
        state = self.state[first]
        if "rows" in state:
            window = GradientWindow.from_state_dict(state)
            if window.damping != group["damping"]:  # a schedule has changed it
                window.set_damping(group["damping"])
        else:
            dtype = group["window_dtype"]
            if dtype is None:
                dtype = torch.float64 if len(gradient) * group["window"] <= _SMALL_WINDOW else first.dtype
            window = GradientWindow(len(gradient), group["window"], group["damping"], dtype=dtype, device=first.device)
        update = window.push_and_solve(gradient)
        state.update(window.state_dict())
        if group["momentum"]:
            previous = state.get("velocity")
            update = update * (1 - group["momentum"])
            update = update if previous is None else update.add_(previous, alpha=group["momentum"])
            state["velocity"] = update
        if "alive" in state:
            scattered = update.new_zeros(len(state["alive"]))
            scattered[state["alive"]] = update
            update = scattered
        moved = [
            (p, piece.reshape(p.shape).to(p.dtype))
            for p, piece in zip(group["params"], update.split([p.numel() for p in group["params"]]), strict=True)
            if p.grad is not None
        ]
        torch._foreach_add_([p for p, _ in moved], [piece for _, piece in moved], alpha=-float(group["lr"]))

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Take over the state of another M-FAC optimiser; the next steps are those it would have made, bit by bit.

        Parameters
        ----------
        state_dict : dict
            From ``state_dict``; its tensors are copied.

        Raises
        ------
        ShapeError
            If a window is of another number of coordinates.
        ValueError
            From torch, if the groups are others.
        """
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):
            state = state_dict["state"].get(saved["params"][0], {}) if saved["params"] else {}
            size = sum(p.numel() for p in group["params"])
            found = len(state["alive"]) if "alive" in state else state["rows"].shape[1] if "rows" in state else size
            if found != size:
                raise ShapeError(f"MFAC.load_state_dict: a window of {found} coordinates for a group of {size}")
        super().load_state_dict(state_dict)
        # torch casts state to the dtype of the parameter; the small matrices are float64 for a reason
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            first = group["params"][0]
            for name, value in state_dict["state"].get(saved["params"][0], {}).items():
                kept = value.detach().to(first.device, copy=True) if isinstance(value, Tensor) else value
                self.state[first][name] = kept


def _name(group: dict[str, Any], number: int, i: int) -> str:
    return group["param_names"][i] if "param_names" in group else f"parameter {i} of group {number}"


def _check_options(options: dict[str, Any]) -> None:
    for name, low, strict in (("lr", 0.0, False), ("damping", 0.0, True), ("weight_decay", 0.0, False)):
        value = float(options[name])
        if not (math.isfinite(value) and (value > low if strict else value >= low)):
            raise ArgumentError(f"MFAC: expected a finite {name} {'>' if strict else '>='} 0, got {value}")
    if not 0 <= options["momentum"] < 1:
        raise ArgumentError(f"MFAC: expected 0 <= momentum < 1, got {options['momentum']}")
    if not isinstance(options["window"], int) or options["window"] < 1:
        raise ArgumentError(f"MFAC: expected an integer window >= 1, got {options['window']!r}")
    dtype = options["window_dtype"]
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ArgumentTypeError(f"MFAC: window_dtype must be a real floating dtype, got {dtype!r}")


def _check_params(params: list[Tensor]) -> None:
    if not params:
        raise ArgumentError("MFAC: a group has no parameters")
    first = params[0]
    for i, p in enumerate(params):
        if not p.is_floating_point():
            raise ArgumentTypeError(f"MFAC: parameter {i} must be a real floating tensor, got {p.dtype}")
        if p.dtype != first.dtype or p.device != first.device:
            raise ShapeError(
                f"MFAC: parameter {i} is {p.dtype} on {p.device}, others of its group {first.dtype} on {first.device}; "
                "give it a group of its own"
            )
