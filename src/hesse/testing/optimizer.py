"""The conformance suite of optimisers: what a training script relies on, beside that the loss goes down.

Every check builds its optimiser anew, on one of two small problems whose loss is a sum of squares.
"""

import copy
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.optim import Optimizer

from hesse.errors import ArgumentError
from hesse.testing.linear_operator import ConformanceError

__all__ = ["OptimizerProblem", "check_optimizer"]

_PLAIN = (Tensor, bool, int, float, str, torch.dtype, type(None))  # what torch.load reads with weights_only=True


@dataclass(frozen=True, slots=True)
class OptimizerProblem:
    """What a step is made on: parameters, and the squares whose sum is the loss."""

    parameters: list[Tensor]  # leaves that require a gradient
    losses: Callable[[], Tensor]  # () -> (n,), one entry a residual, differentiable

    def loss(self) -> Tensor:
        """Sum the squares at the present parameters.

        Returns
        -------
        Tensor, shape ()
            Differentiable.
        """
        return self.losses().sum()


Factory = Callable[..., Optimizer]
Drive = Callable[[Optimizer, OptimizerProblem], None]


@dataclass(frozen=True, slots=True)
class _Suite:
    factory: Factory
    drive: Drive
    num_steps: int
    signed: Collection[str]
    unbounded: Collection[str]
    device: torch.device
    own_protocol: bool

    def run(self, optimizer: Optimizer, problem: OptimizerProblem, steps: int) -> None:
        for _ in range(steps):
            self.drive(optimizer, problem)

    def parabola(self, dtype: torch.dtype = torch.float64) -> OptimizerProblem:
        generator = torch.Generator().manual_seed(0)
        starts = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3,), (2, 2))]
        x, y = (start.to(device=self.device, dtype=dtype).requires_grad_() for start in starts)
        slopes = torch.tensor([0.5, 1.0, 2.0], device=self.device, dtype=dtype)
        return OptimizerProblem([x, y], lambda: torch.cat([(slopes * (x - 1)).square(), (y + 1).square().reshape(-1)]))

    def rosenbrock(self) -> OptimizerProblem:
        x = torch.tensor([-1.2, 1.0], device=self.device, dtype=torch.float64).requires_grad_()
        return OptimizerProblem([x], lambda: torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]]).square())


def check_optimizer(
    factory: Factory,
    *,
    drive: Drive | None = None,
    num_steps: int = 200,
    signed: Collection[str] = (),
    unbounded: Collection[str] = (),
    skip: Collection[str] = (),
    device: torch.device | str = "cpu",
) -> tuple[str, ...]:
    """Run every check that applies to an optimiser: 14 of them, about 3 ``num_steps`` steps in all.

    Parameters
    ----------
    factory : callable
        ``factory(params, **options)`` -> Optimizer; a class serves if its defaults reach the bar of the two problems.
        One that draws random numbers must give each optimiser a new generator of the same seed.
    drive : callable, optional
        ``drive(optimizer, problem)`` makes one step, for an optimiser with a protocol of its own: it reads
        ``problem.losses()`` or ``problem.loss()`` as often as it likes. Default: ``zero_grad``, ``backward`` of the
        loss, ``step()``.
    num_steps : int, default 200
        After which the parabola must be below a tenth, Rosenbrock's function below half of its first value.
    signed : collection of str, optional
        Hyper-parameters that may be negative.
    unbounded : collection of str, optional
        Hyper-parameters that may be infinite.
    skip : collection of str, optional
        Checks to leave out, by the names returned.
    device : torch.device or str, default "cpu"
        Of the parameters.

    Returns
    -------
    tuple of str
        Names of the checks that ran.

    Raises
    ------
    ArgumentError
        If ``skip`` names no check, or ``num_steps < 1``.
    ConformanceError
        Listing every check that failed, each with what was found. Also an AssertionError.
    """
    if num_steps < 1:
        raise ArgumentError(f"check_optimizer: expected num_steps >= 1, got {num_steps}")
    checks = {check.__name__.removeprefix("_check_"): check for check in _CHECKS}
    if unknown := sorted(set(skip) - set(checks)):
        raise ArgumentError(
            f"check_optimizer: skip names no check: {', '.join(unknown)}; there are {', '.join(checks)}"
        )
    suite = _Suite(
        factory, drive or _default_drive, num_steps, signed, unbounded, torch.device(device), drive is not None
    )
    ran: list[str] = []
    failed: list[str] = []
    for name, check in checks.items():
        if name in skip or (suite.own_protocol and check is _check_closure):
            continue
        ran.append(name)
        try:
            check(suite)
        except Exception as error:  # whatever an optimiser under test may raise is a finding
            failed.append(f"{name}: {error if isinstance(error, ConformanceError) else repr(error)}")
    if failed:
        raise ConformanceError(f"the optimiser breaks {len(failed)} of {len(ran)} promises:\n  " + "\n  ".join(failed))
    return tuple(ran)


def _default_drive(optimizer: Optimizer, problem: OptimizerProblem) -> None:
    optimizer.zero_grad()
    problem.loss().backward()
    optimizer.step()


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ConformanceError(what)


def _values(problem: OptimizerProblem) -> list[Tensor]:
    return [p.detach().clone() for p in problem.parameters]


def _same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def _check_decreases_parabola(suite: _Suite) -> None:
    _require_decrease(suite, suite.parabola(), 0.1)


def _check_decreases_rosenbrock(suite: _Suite) -> None:
    _require_decrease(suite, suite.rosenbrock(), 0.5)


def _require_decrease(suite: _Suite, problem: OptimizerProblem, bar: float) -> None:
    first = float(problem.loss().detach())
    suite.run(suite.factory(problem.parameters), problem, suite.num_steps)
    last = float(problem.loss().detach())
    _require(last <= bar * first, f"the loss went from {first:.3g} to {last:.3g} in {suite.num_steps} steps")


def _check_updates_in_place(suite: _Suite) -> None:
    problem = suite.parabola()
    places, before = [p.data_ptr() for p in problem.parameters], _values(problem)
    suite.run(suite.factory(problem.parameters), problem, 2)
    _require(places == [p.data_ptr() for p in problem.parameters], "a parameter was given other memory")
    for old, p in zip(before, problem.parameters, strict=True):
        _require(not torch.equal(old, p.detach()), f"a parameter of shape {tuple(p.shape)} has not moved")


def _check_keeps_dtype(suite: _Suite) -> None:
    for dtype in (torch.float32, torch.float64):
        problem = suite.parabola(dtype)
        suite.run(suite.factory(problem.parameters), problem, 3)
        for p in problem.parameters:
            _require(p.dtype == dtype, f"a {dtype} parameter became {p.dtype}")
            _require(bool(torch.isfinite(p).all()), f"a {dtype} parameter has NaN or Inf after 3 steps")


def _check_is_deterministic(suite: _Suite) -> None:
    ends = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            state = torch.get_rng_state()
            problem = suite.parabola()
            suite.run(suite.factory(problem.parameters), problem, 5)
            _require(torch.equal(state, torch.get_rng_state()), "it draws from torch's global generator")
        ends.append(_values(problem))
    _require(_same(*ends), "two runs from the same start ended elsewhere")


def _check_state_dict_is_plain_data(suite: _Suite) -> None:
    problem = suite.parabola()
    optimizer = suite.factory(problem.parameters)
    suite.run(optimizer, problem, 2)
    for path, value in _leaves(optimizer.state_dict(), "state_dict"):
        _require(
            isinstance(value, _PLAIN),
            f"{path} is a {type(value).__name__}, which torch.load(weights_only=True) refuses",
        )


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{path}[{i}]")
    else:
        yield path, value


def _check_state_dict_round_trip(suite: _Suite) -> None:
    for dtype in (torch.float32, torch.float64):  # torch casts state to the parameter's dtype: see that nothing is lost
        problem = suite.parabola(dtype)
        optimizer = suite.factory(problem.parameters)
        suite.run(optimizer, problem, 3)
        for group in optimizer.param_groups:
            if "lr" in group:
                group["lr"] = float(group["lr"]) / 2
        saved = copy.deepcopy(optimizer.state_dict())
        again = suite.parabola(dtype)
        for p, value in zip(again.parameters, _values(problem), strict=True):
            p.data.copy_(value)
        restored = suite.factory(again.parameters)
        restored.load_state_dict(saved)
        for name, value in saved["param_groups"][0].items():
            if name != "params" and isinstance(value, int | float | str):
                found = restored.param_groups[0][name]
                _require(found == value, f"after load_state_dict {name} is {found}, was {value}")
        suite.run(optimizer, problem, 4)
        suite.run(restored, again, 4)
        _require(_same(_values(problem), _values(again)), f"in {dtype} the restored optimiser went on differently")


def _check_parameter_groups(suite: _Suite) -> None:
    problem = suite.parabola()
    moving, still = problem.parameters
    optimizer = suite.factory([{"params": [moving]}, {"params": [still]}])
    _require(len(optimizer.param_groups) == 2, f"two groups became {len(optimizer.param_groups)}")
    if "lr" not in optimizer.param_groups[1]:
        return
    optimizer.param_groups[1]["lr"] = 0.0
    before = _values(problem)
    suite.run(optimizer, problem, 2)
    _require(not torch.equal(before[0], moving.detach()), "the first group has not moved")
    _require(torch.equal(before[1], still.detach()), "a group with lr = 0 has moved")


def _check_add_param_group(suite: _Suite) -> None:
    problem = suite.parabola()
    first, second = problem.parameters
    optimizer = suite.factory([first])
    suite.run(optimizer, problem, 2)
    optimizer.add_param_group({"params": [second]})
    before = _values(problem)
    suite.run(optimizer, problem, 2)
    for old, p in zip(before, problem.parameters, strict=True):
        _require(not torch.equal(old, p.detach()), "after add_param_group a parameter has not moved")
    try:
        optimizer.add_param_group({"params": [second]})
    except ValueError:
        return
    raise ConformanceError("a parameter could be added twice")


def _check_none_gradients(suite: _Suite) -> None:
    problem = suite.parabola()
    idle = torch.ones(2, device=suite.device, dtype=torch.float64, requires_grad=True)
    kept = idle.detach().clone()
    optimizer = suite.factory([problem.parameters[0], idle, problem.parameters[1]])
    before = _values(problem)
    suite.run(optimizer, problem, 3)
    _require(torch.equal(kept, idle.detach()), "a parameter without a gradient has moved")
    _require(not _same(before, _values(problem)), "one parameter without a gradient kept all from moving")


def _check_zero_grad(suite: _Suite) -> None:
    problem = suite.parabola()
    optimizer = suite.factory(problem.parameters)
    problem.loss().backward()
    optimizer.zero_grad(set_to_none=False)
    for p in problem.parameters:
        _require(p.grad is not None and not bool(p.grad.any()), "zero_grad(set_to_none=False) left no zeros")
    optimizer.zero_grad()
    _require(all(p.grad is None for p in problem.parameters), "zero_grad() left gradients")


def _check_closure(suite: _Suite) -> None:
    problem = suite.parabola()
    optimizer = suite.factory(problem.parameters)
    seen: list[float] = []

    def closure() -> Tensor:
        _require(torch.is_grad_enabled(), "the closure is called without gradients")
        optimizer.zero_grad()
        loss = problem.loss()
        loss.backward()
        seen.append(float(loss.detach()))
        return loss

    before = _values(problem)
    with torch.no_grad():
        step: Callable[..., Any] = optimizer.step
        returned = step(closure)
    returned = returned.detach() if isinstance(returned, Tensor) else returned
    _require(bool(seen), "step(closure) did not call the closure")
    _require(not _same(before, _values(problem)), "step(closure) moved nothing")
    _require(
        returned is not None and float(returned) in seen, f"step(closure) returned {returned}, the loss was {seen}"
    )
    _require(step() is None, "step() without a closure returned something")


class _Saved:
    """A tensor that autograd holds for a backward pass; dies with its graph."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _check_keeps_no_graph(suite: _Suite) -> None:
    problem = suite.parabola()
    optimizer = suite.factory(problem.parameters)
    held: list[ref[_Saved]] = []

    def pack(tensor: Tensor) -> _Saved:
        saved = _Saved(tensor.detach())
        held.append(ref(saved))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        suite.run(optimizer, problem, 3)
    alive = sum(saved() is not None for saved in held)
    _require(alive == 0, f"the graph of a loss outlives its step: {alive} saved tensors are still held")
    for p in problem.parameters:
        _require(p.is_leaf and p.requires_grad, "a parameter is no longer a leaf that requires a gradient")
    for path, value in _leaves(optimizer.state_dict(), "state_dict"):
        _require(not (isinstance(value, Tensor) and value.requires_grad), f"{path} requires a gradient")


def _check_refuses_bad_options(suite: _Suite) -> None:
    found = suite.factory(suite.parabola().parameters).defaults
    accepted: list[str] = []
    for name, default in found.items():
        for bad in _bad_values(default, signed=name in suite.signed, unbounded=name in suite.unbounded):
            try:
                suite.factory(suite.parabola().parameters, **{name: bad})
            except (ValueError, TypeError) as error:
                if name not in str(error):
                    accepted.append(f"{name}={bad} is refused without its name: {error}")
                continue
            accepted.append(f"{name}={bad} was accepted")
    _require(not accepted, "; ".join(accepted))


def _bad_values(default: Any, *, signed: bool, unbounded: bool) -> list[Any]:
    if isinstance(default, tuple) and default and all(isinstance(item, int | float) for item in default):
        return [(bad, *default[1:]) for bad in _bad_values(default[0], signed=signed, unbounded=unbounded)]
    if isinstance(default, bool) or not isinstance(default, int | float):
        return []
    return [math.nan] + [math.inf] * (not unbounded) + [-1 if isinstance(default, int) else -1.0] * (not signed)


_CHECKS: tuple[Callable[[_Suite], None], ...] = (
    _check_decreases_parabola,
    _check_decreases_rosenbrock,
    _check_updates_in_place,
    _check_keeps_dtype,
    _check_is_deterministic,
    _check_state_dict_is_plain_data,
    _check_state_dict_round_trip,
    _check_parameter_groups,
    _check_add_param_group,
    _check_none_gradients,
    _check_zero_grad,
    _check_closure,
    _check_keeps_no_graph,
    _check_refuses_bad_options,
)
