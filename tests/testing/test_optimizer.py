"""The conformance suite of optimisers against optimisers that break one known promise each."""

import pytest
import torch
from torch.optim import Adam, Optimizer

from hesse.errors import ArgumentError
from hesse.testing import ConformanceError, check_optimizer


class Honest(Optimizer):
    """Gradient descent with momentum, which keeps every promise."""

    def __init__(self, params, lr=0.1, momentum=0.5):
        for name, value in (("lr", lr), ("momentum", momentum)):
            if not 0 <= value < float("inf"):
                raise ArgumentError(f"{name} must be finite and >= 0, got {value}")
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.move(p, self.velocity(p, group), group)
        return loss

    def velocity(self, p, group):
        state = self.state[p]
        state["velocity"] = state.get("velocity", torch.zeros_like(p)) * group["momentum"] + p.grad
        return state["velocity"]

    def move(self, p, velocity, group):
        p.sub_(velocity, alpha=group["lr"] / (1 + float(velocity.norm())))


def test_an_honest_optimiser_passes():
    """Oracle: the count promised in the docstring."""
    assert len(check_optimizer(Honest)) == 14


def test_torchs_adam_passes_but_for_the_names_of_its_options():
    """Oracle: torch.optim.Adam, whose errors say 'learning rate' and 'beta parameter', and which takes infinity."""

    def factory(params, **options):
        return Adam(params, **({"lr": 0.05} | options))

    assert len(check_optimizer(factory, skip=("refuses_bad_options",))) == 13
    with pytest.raises(ConformanceError, match="breaks 1 of 14"):
        check_optimizer(factory)


class Climbs(Honest):
    def move(self, p, velocity, group):
        p.add_(velocity, alpha=1e-4 * group["lr"])


class Replaces(Honest):
    def move(self, p, velocity, group):
        p.data = p.data - group["lr"] * velocity / (1 + velocity.norm())


class Widens(Honest):
    def move(self, p, velocity, group):
        p.data = p.data.double()
        super().move(p, velocity, group)


class Jitters(Honest):
    def move(self, p, velocity, group):
        super().move(p, velocity + 1e-6 * torch.randn_like(p), group)


class Counter:
    count = 0


class Drifts(Honest):
    def move(self, p, velocity, group):
        Counter.count += 1
        super().move(p, velocity * (1 + 1e-3 * Counter.count), group)


class Pickles(Honest):
    def velocity(self, p, group):
        self.state[p]["window"] = Counter()
        return super().velocity(p, group)


class Forgets(Honest):
    def load_state_dict(self, state_dict):
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})


class Rounds(Honest):
    """Keeps a state in double precision that torch rounds to the parameter's single precision on loading."""

    def velocity(self, p, group):
        state = self.state[p]
        clock = state.get("clock", torch.ones((), dtype=torch.float64))
        state["clock"] = clock.double() + 1e-9
        return super().velocity(p, group) * (1 + 1e7 * float(state["clock"] - 1))


class IgnoresGroups(Honest):
    def move(self, p, velocity, group):
        super().move(p, velocity, self.param_groups[0])


class AddsNothing(Honest):
    def add_param_group(self, param_group):
        if not self.param_groups or len(self.param_groups[0]["params"]) == 2:
            super().add_param_group(param_group)


class AddsTwice(Honest):
    def add_param_group(self, param_group):
        try:
            super().add_param_group(param_group)
        except ValueError:
            return


class MovesTheIdle(Honest):
    def step(self, closure=None):
        loss = super().step(closure)
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.mul_(0.999)
        return loss


class NeedsAll(Honest):
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            float(p.grad.norm()) if closure is None else None
        return super().step(closure)


class KeepsGradients(Honest):
    def zero_grad(self, set_to_none=True):
        super().zero_grad(False)


class DropsTheLoss(Honest):
    def step(self, closure=None):
        super().step(closure)


class ClosureWithoutGradients(Honest):
    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure is not None else None
        super().step()
        return loss


class HoldsTheGraph(Honest):
    def velocity(self, p, group):
        self.state[p]["gradient"] = p.grad
        return super().velocity(p, group)


class TakesAnything(Honest):
    def __init__(self, params, lr=0.1, momentum=0.5):
        Optimizer.__init__(self, params, {"lr": lr, "momentum": momentum})


class HidesTheName(Honest):
    def __init__(self, params, lr=0.1, momentum=0.5):
        try:
            super().__init__(params, lr, momentum)
        except ArgumentError:
            raise ArgumentError("bad value") from None


@pytest.mark.parametrize(
    ("broken", "names"),
    [
        (Climbs, ["decreases_parabola", "decreases_rosenbrock"]),
        (Replaces, ["updates_in_place"]),
        (Widens, ["keeps_dtype"]),
        (Jitters, ["is_deterministic"]),
        (Drifts, ["is_deterministic"]),
        (Pickles, ["state_dict_is_plain_data"]),
        (Forgets, ["state_dict_round_trip"]),
        (Rounds, ["state_dict_round_trip"]),
        (IgnoresGroups, ["parameter_groups"]),
        (AddsNothing, ["add_param_group"]),
        (AddsTwice, ["add_param_group"]),
        (MovesTheIdle, ["none_gradients"]),
        (NeedsAll, ["none_gradients"]),
        (KeepsGradients, ["zero_grad"]),
        (DropsTheLoss, ["closure"]),
        (ClosureWithoutGradients, ["closure"]),
        (TakesAnything, ["refuses_bad_options"]),
        (HidesTheName, ["refuses_bad_options"]),
    ],
)
def test_what_is_broken_is_named(broken, names):
    """Oracle: optimisers that break one known promise each."""
    with pytest.raises(ConformanceError) as caught:
        check_optimizer(broken, num_steps=150)
    for name in names:
        assert f"\n  {name}: " in str(caught.value)


def test_a_graph_that_outlives_its_step_is_seen():
    """Oracle: a drive that differentiates with create_graph and an optimiser that keeps the gradients."""

    def drive(optimizer, problem):
        optimizer.zero_grad()
        gradients = torch.autograd.grad(problem.loss(), problem.parameters, create_graph=True, allow_unused=True)
        for p, g in zip(problem.parameters, gradients, strict=True):
            p.grad = g
        optimizer.step()

    with pytest.raises(ConformanceError, match="keeps_no_graph: the graph of a loss outlives its step"):
        check_optimizer(HoldsTheGraph, drive=drive)


def test_a_protocol_of_its_own_is_driven():
    """Oracle: a drive that hands over single losses; the closure protocol is then left out."""
    calls = []

    class FromLosses(Honest):
        def play(self, losses):
            self.zero_grad()
            losses.sum().backward()
            self.step()

    def drive(optimizer, problem):
        losses = problem.losses()
        assert losses.ndim == 1
        torch.testing.assert_close(losses.sum(), problem.loss())
        calls.append(len(losses))
        optimizer.play(losses)

    ran = check_optimizer(FromLosses, drive=drive)
    assert "closure" not in ran
    assert len(ran) == 13
    assert set(calls) == {7, 2}


def test_arguments_of_the_suite():
    """Oracle: the definition; names that are no checks are refused, ranges can be widened."""
    with pytest.raises(ArgumentError, match="no_such"):
        check_optimizer(Honest, skip=("no_such",))
    with pytest.raises(ArgumentError, match="num_steps"):
        check_optimizer(Honest, num_steps=0)

    class Wider(Honest):
        def __init__(self, params, lr=0.1, momentum=0.5):
            if not lr >= 0:
                raise ArgumentError(f"lr: {lr}")
            if not abs(momentum) < float("inf"):
                raise ArgumentError(f"momentum: {momentum}")
            Optimizer.__init__(self, params, {"lr": lr, "momentum": momentum})

    check_optimizer(Wider, signed=("momentum",), unbounded=("lr",))
