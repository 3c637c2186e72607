"""DIFF2 as a torch optimiser: full-batch descent on private gradient estimates that are kept up by differences."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, replace
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT, StateDict

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg import ParameterLayout
from hesse.optim.diff2.accountant import GaussianAccountant, GaussianRelease
from hesse.optim.diff2.estimate import Adjacency, EstimateState, RoundInfo, next_estimate, rules_of
from hesse.optim.diff2.plan import NoisePlan
from hesse.optim.diff2.records import LossRecords, RecordLoss, Records

__all__ = ["DIFF2"]

Penalty = Callable[[Mapping[str, Tensor]], Tensor]


class DIFF2(Optimizer):
    """Differentially private descent whose noise shrinks with its steps.

    The gradient of a record can be as long as C₁, but between two near points it changes by at most C₂ times their
    distance. Most rounds release only that change, with noise in proportion, and add it to the last estimate; every T
    rounds a whole gradient sets the sum of the noise back.

    Parameters
    ----------
    params : iterable of Tensor, of (name, Tensor), or of dict
        As of any torch optimiser, all of one dtype and device. Names are what the loss sees; without them "0", "1", ...
    lr : float
        η, a schedule may change it. For logistic loss on rows of unit length 2 to 20; theory says of order 1/L.
    n_samples : int
        n, the number of records, taken to be public. Data of another size are refused.
    rounds : int
        R, how often `step` may be called. 50 to 200 is usual; each costs privacy, so that more is not better.
    clip_grad : float
        C₁, to which the gradient of a record is cut. 1 suits rows of unit length. Must not be read off private data.
    clip_diff : float
        C₂, likewise for differences, per unit of distance. A bound L on the Hessian of a record's loss makes the cut
        exact (1/4 for logistic loss, rows of unit length); down to 0.4 L the bias is small beside the noise it saves.
    epsilon : float, optional
        ε > 0 in nats, the budget of all rounds. Either this or ``noise_multipliers``.
    delta : float, default 1e-5
        δ of the budget; below 1/n, or a warning says so.
    noise_multipliers : (float, float), optional
        m₁ and m₂ in place of a budget, in sensitivities; zeros train without privacy.
    restart_interval : int or "auto", default "auto"
        T; 1 is DP-GD. "auto" as in `plan_noise`, ⌈R/2⌉ unless ``step_length`` is given.
    split : float or "auto", default "auto"
        Share of the budget for the restarts, in (0, 1); see `plan_noise`.
    step_length : float, optional
        A guess of η‖v‖ that does not come from the data, for the automatic choices.
    adjacency : {"replace", "add-remove"}, default "replace"
        Which data sets the guarantee cannot tell apart: those with one record of another value, or those with one
        record more or less, which is half as sensitive.
    accounting : {"rdp", "exact"}, default "rdp"
        How ``epsilon`` becomes noise; "exact" needs some 8 % less for the same guarantee.
    momentum : float, default 0.0
        μ in u ← μu + v; the step is along u. It costs no privacy.
    generator : torch.Generator, optional
        Of the noise, for experiments. Default: noise of the operating system, which nobody can repeat. Whoever knows
        the seed can remove the noise, and a generator that serves other draws as well gives it away.

    Attributes
    ----------
    plan : NoisePlan
        Rounds, interval and multipliers in force.
    accountant : GaussianAccountant
        What has been released so far.

    Raises
    ------
    ArgumentError
        If an option is out of range or contradicts another one.
    ArgumentTypeError
        If a parameter is not a real floating tensor.
    ShapeError
        If the parameters differ in dtype or device.

    Notes
    -----
    A difference round needs two gradients of every record, the first of an interval one; memory O(micro_batch · D).
    The gain over DP-GD grows as n^(1/3): expect none below n ε ≈ 5000, where restarts take budget and differences are
    not small. The guarantee covers everything but the two counts in `RoundInfo` and holds for real-numbered noise;
    floating point is an approximation to it. Generalised linear models are faster with `LinearRecords`.

    References
    ----------
    T. Murata, T. Suzuki (2023), ICML, arXiv 2302.03884. Noise is calibrated by exact composition in place of the
    paper's orders.

    Examples
    --------
    >>> w = torch.zeros(2, requires_grad=True)
    >>> data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> optimizer = DIFF2([("w", w)], lr=0.5, n_samples=2, rounds=20, clip_grad=2.0, clip_diff=1.0,
    ...                   noise_multipliers=(0.0, 0.0))
    >>> for _ in range(20):
    ...     info = optimizer.step(lambda p, z: (p["w"] - z).square().sum() / 2, data)
    >>> w.detach()
    tensor([0.5000, 0.5000])
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        n_samples: int,
        rounds: int,
        clip_grad: float,
        clip_diff: float,
        epsilon: float | None = None,
        delta: float = 1e-5,
        noise_multipliers: tuple[float, float] | None = None,
        restart_interval: int | Literal["auto"] = "auto",
        split: float | Literal["auto"] = "auto",
        step_length: float | None = None,
        adjacency: Adjacency = "replace",
        accounting: Literal["rdp", "exact"] = "rdp",
        momentum: float = 0.0,
        generator: Generator | None = None,
    ) -> None:
        if isinstance(n_samples, bool) or not isinstance(n_samples, int) or n_samples < 1:
            raise ArgumentError(f"DIFF2: expected an integer n_samples >= 1, got {n_samples!r}")
        self._rules = rules_of(
            rounds,
            n_samples,
            clip_grad=clip_grad,
            clip_diff=clip_diff,
            epsilon=epsilon,
            delta=delta,
            noise_multipliers=noise_multipliers,
            restart_interval=restart_interval,
            split=split,
            step_length=step_length,
            adjacency=adjacency,
            accounting=accounting,
        )
        self._n_samples, self._delta = n_samples, delta
        self._estimate: EstimateState | None = None
        self._velocity: Tensor | None = None
        self._generator = generator
        self.accountant = GaussianAccountant()
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @property
    def plan(self) -> NoisePlan:
        """Rounds, interval and noise multipliers in force."""
        return self._rules.plan

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, before the first round.

        Parameters
        ----------
        param_group : dict
            "params", and lr or momentum if they shall differ from the defaults.

        Raises
        ------
        ArgumentError
            If an option is out of range, or rounds have been made: an estimate of the old gradient cannot grow, and a
            fresh one is not in the budget.
        ArgumentTypeError
            If a parameter is not a real floating tensor.
        ShapeError
            If the parameters differ in dtype or device.
        """
        if self._estimate is not None:
            raise ArgumentError("DIFF2.add_param_group: rounds have been made; build a new optimiser with a new budget")
        options = {**self.defaults, **param_group}
        if not (math.isfinite(options["lr"]) and options["lr"] >= 0):
            raise ArgumentError(f"DIFF2: expected a finite lr >= 0, got {options['lr']}")
        if not 0 <= options["momentum"] < 1:
            raise ArgumentError(f"DIFF2: expected 0 <= momentum < 1, got {options['momentum']}")
        super().add_param_group(param_group)
        try:
            _check_params(self._params())
        except (ArgumentTypeError, ShapeError):
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        per_sample_loss: RecordLoss | Records,
        data: Any = None,
        micro_batch: int = 256,
        *,
        penalty: Penalty | None = None,
    ) -> RoundInfo:
        """Make one round on all records.

        Parameters
        ----------
        per_sample_loss : callable or Records
            (parameters by name, batch of one) -> scalar, the same in every round; for a module `module_loss`. Or an
            object with clipped sums of its own, as `LinearRecords`, and then no data. In every round the records must
            be the same ones, all of them: a batch drawn at random needs another accountant.
        data : tensor, or tuples, lists and dictionaries of tensors, optional
            Every tensor has the leading axis n.
        micro_batch : int, default 256
            Records whose gradients are held at once.
        penalty : callable, optional
            (parameters by name) -> scalar that does not depend on data; its gradient enters without noise or clipping.

        Returns
        -------
        RoundInfo
            What was released.

        Raises
        ------
        ArgumentError
            If all rounds have been made, or the data have another number of records than ``n_samples``; nothing has
            been released then.
        ArgumentTypeError
            If the loss is of the wrong kind, or data are missing.
        """
        params = self._params()
        named = dict(zip(self._names(), params, strict=True))
        layout = ParameterLayout.of(named)
        records = self._records(per_sample_loss, data, layout, micro_batch)
        point = layout.flatten(named)
        slope = torch.zeros_like(point)
        if penalty is not None:
            with torch.enable_grad():
                free = {name: p.detach().requires_grad_() for name, p in named.items()}
                slopes = torch.autograd.grad(penalty(free), list(free.values()), materialize_grads=True)
            slope = layout.flatten(dict(zip(named, slopes, strict=True)))
        before = EstimateState.start(point) if self._estimate is None else self._estimate
        self._estimate, info = next_estimate(self._rules, before, point, [records], generator=self._generator)
        if info.released:
            self.accountant = self.accountant.add(info.multiplier)
        direction = self._estimate.value + slope
        decay = torch.cat([p.new_full((p.numel(),), g["momentum"]) for g in self.param_groups for p in g["params"]])
        self._velocity = direction if self._velocity is None else decay * self._velocity + direction
        pieces = layout.unflatten(self._velocity)
        names = iter(named)
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(pieces[next(names)], alpha=-float(group["lr"]))
        return info

    def privacy_spent(self, delta: float | None = None, *, method: Literal["rdp", "exact"] = "rdp") -> float:
        """Read off the ε that all rounds so far have cost.

        Parameters
        ----------
        delta : float, optional
            Default: the optimiser's δ.
        method : {"rdp", "exact"}, default "rdp"
            See `GaussianAccountant.epsilon`.

        Returns
        -------
        float
            In nats.
        """
        return self.accountant.epsilon(self._delta if delta is None else delta, method=method)

    def state_dict(self) -> StateDict:
        """Everything a later process needs to go on within the same budget.

        Returns
        -------
        dict
            Of torch's form, with the run under "diff2": round, estimate, point, velocity, what was spent and the plan.
            The noise generator is left out: whoever can read it can take the noise away. After a resume give one with
            a new seed, since repeated noise cancels in differences, or none.
        """
        estimate = self._estimate
        run = {
            "estimate": None if estimate is None else [estimate.round, estimate.value, estimate.point],
            "velocity": self._velocity,
            "releases": [list(astuple(release)) for release in self.accountant.releases],
            "plan": asdict(self.plan),
            "rules": {name: getattr(self._rules, name) for name in ("clip_grad", "clip_diff", "adjacency")},
            "n_samples": self._n_samples,
            "delta": self._delta,
        }
        return {**super().state_dict(), "diff2": run}

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Go on where another DIFF2 optimiser stopped, under its plan and radii and with its spend.

        Parameters
        ----------
        state_dict : dict
            From ``state_dict``; tensors are copied.

        Raises
        ------
        ArgumentError
            If it is no state of DIFF2, or of a run with another number of records.
        ShapeError
            If it is of another number of parameters.
        ValueError
            From torch, if the groups are others.
        """
        run = state_dict.get("diff2")
        if run is None:
            raise ArgumentError("DIFF2.load_state_dict: this is not the state of a DIFF2 optimiser")
        if run["n_samples"] != self._n_samples:
            raise ArgumentError(f"DIFF2.load_state_dict: of n_samples={run['n_samples']}, here {self._n_samples}")
        first, size = self._params()[0], sum(p.numel() for p in self._params())
        held = [] if run["estimate"] is None else [*run["estimate"][1:], run["velocity"]]
        if any(len(tensor) != size for tensor in held):
            raise ShapeError(f"DIFF2.load_state_dict: of {len(held[0])} parameters, here {size}")
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "diff2"})
        self._estimate = self._velocity = None
        if held:
            value, point, self._velocity = (tensor.to(first, copy=True) for tensor in held)
            self._estimate = EstimateState(run["estimate"][0], value, point)
        self.accountant = GaussianAccountant(tuple(GaussianRelease(*release) for release in run["releases"]))
        self._rules = replace(self._rules, plan=NoisePlan(**run["plan"]), **run["rules"])
        self._delta = run["delta"]

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _names(self) -> list[str]:
        if all("param_names" in group for group in self.param_groups):
            return [name for group in self.param_groups for name in group["param_names"]]
        return [str(i) for i in range(len(self._params()))]

    def _records(self, loss: Any, data: Any, layout: ParameterLayout, micro_batch: int) -> Records:
        records: Records
        if hasattr(loss, "gradient_sum"):
            if data is not None:
                raise ArgumentTypeError("DIFF2.step: records carry their data; leave data out")
            records = loss
        elif callable(loss) and data is not None:
            loss_fn: Any = loss
            records = LossRecords(loss_fn, layout, data, micro_batch)
        else:
            raise ArgumentTypeError(f"DIFF2.step: expected a loss with data, or records; got {loss!r}")
        if records.num_records != self._n_samples:
            raise ArgumentError(
                f"DIFF2.step: the noise was planned for n_samples={self._n_samples} records, the data have "
                f"{records.num_records}; every round needs all of them"
            )
        return records


def _check_params(params: list[Tensor]) -> None:
    first = params[0]
    for i, p in enumerate(params):
        if not p.is_floating_point():
            raise ArgumentTypeError(f"DIFF2: parameter {i} must be a real floating tensor, got {p.dtype}")
        if p.dtype != first.dtype or p.device != first.device:
            raise ShapeError(
                f"DIFF2: parameter {i} is {p.dtype} on {p.device}, others {first.dtype} on {first.device}; one norm "
                "over all of them needs one kind"
            )
