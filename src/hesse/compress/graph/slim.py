"""The smaller network: the slices of zero groups cut out, the output as it was."""

import copy
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hesse.compress.graph._rebuild import AttributeChoice, rebuild
from hesse.compress.graph._trace import call_arguments, shadow_copy, unfused_attention
from hesse.compress.graph.dependency import DependencyGraph, output_difference
from hesse.errors import ArgumentError, HesseError, NumericalError

__all__ = ["SlimReport", "slim", "slim_report"]


@dataclass(frozen=True, slots=True)
class SlimReport:
    """A smaller network with what it saves."""

    module: nn.Module
    kept: dict[str, dict[int, Tensor]]  # parameter or buffer -> dimension -> places kept; uncut ones are left out
    num_parameters: tuple[int, int]  # before, after
    flops: tuple[int, int]  # one call on the example inputs, by torch's counter
    difference: float  # largest of any output on the example inputs, relative to the largest output


def slim(graph: DependencyGraph, *, groups: Tensor | None = None, tol: float | None = None) -> nn.Module:
    """Cut out all groups that are zero; the outputs do not change.

    See `slim_report` for the parameters, what is checked and what is raised.

    Parameters
    ----------
    graph : DependencyGraph
        Of the module, whose zeros are read now.
    groups : Tensor, shape (G,), optional
        bool: which groups to cut. Default: those that are zero.
    tol : float, optional
        Largest relative difference of outputs. Default: 1e-6 in float64, 1e-4 in float32, 0.05 in half precision.

    Returns
    -------
    nn.Module
        A new module of the same class, with parameters of its own.
    """
    return slim_report(graph, groups=groups, tol=tol).module


@torch.no_grad()
def slim_report(graph: DependencyGraph, *, groups: Tensor | None = None, tol: float | None = None) -> SlimReport:
    """Cut out all groups that are zero, and say what it brought.

    Producer rows, biases, norm scales and running statistics go, and so do the columns that read them. Sizes that
    modules keep as attributes (``out_features``, ``num_heads``) follow. Layer and RMS norms that lose entries become
    `CountedLayerNorm` and `CountedRMSNorm`, nn.MultiheadAttention a module of the same call. One group of each family
    always stays.

    Parameters
    ----------
    graph : DependencyGraph
        Of the module, whose zeros are read now.
    groups : Tensor, shape (G,), optional
        bool: which groups to cut; they must be zero. Default: all that are.
    tol : float, optional
        Largest relative difference of outputs on the example inputs, both networks in evaluation mode. Default: 1e-6
        in float64, 1e-4 in float32, 0.05 in half precision, by the parameters' narrowest dtype.

    Returns
    -------
    SlimReport
        The new module shares no memory with the old one, and its gradients are none.

    Raises
    ------
    ArgumentError
        If ``groups`` names one that is not zero, or the smaller network cannot be run: its code then holds a size that
        no attribute gives.
    NumericalError
        If the outputs differ by more than ``tol``.

    Notes
    -----
    Attributes of the caller's own modules are changed where the graph shows that their code handles a dimension that
    shrinks, their name speaks of a size, and their value is the old size; where several fit, the choice that gives
    the right outputs is kept. Code that takes the width of a head from the width of its input, as in
    ``C // self.num_heads``, cannot lose heads: the check tells, and ``skip=`` spares them.
    """
    zero = graph.zero_groups()
    if groups is not None:
        graph._marks(groups)
        if bool((groups.cpu() & ~zero).any()):
            count = int((groups.cpu() & ~zero).sum())
            raise ArgumentError(
                f"slim: {count} of the groups given are not zero; call finalize() of the optimiser first"
            )
        zero = groups.cpu()
    cut = _leave_one(graph, zero)
    kept = _kept_places(graph, cut)
    limit = _tolerance(graph.module) if tol is None else tol
    args, kwargs = call_arguments(graph.example_inputs)
    with FlopCounterMode(display=False) as counter, unfused_attention():
        before = shadow_copy(graph.module).eval()(*args, **kwargs)
    flops_before = counter.get_total_flops()
    failures: list[HesseError] = []
    for choice in get_args(AttributeChoice):
        module = rebuild(graph, kept, cut, choice)
        try:
            flops, difference = _check(graph, module, before, limit)
        except (ArgumentError, NumericalError) as error:
            failures.append(error)
            continue
        count = (_num_parameters(graph.module), _num_parameters(module))
        return SlimReport(module, kept, count, (flops_before, flops), difference)
    failures.sort(key=lambda error: not isinstance(error, NumericalError))  # one that ran tells more
    raise failures[0]


def _check(graph: DependencyGraph, module: nn.Module, before: object, limit: float) -> tuple[int, float]:
    # flops of the smaller network and how far its outputs are off
    args, kwargs = call_arguments(graph.example_inputs)
    try:
        with FlopCounterMode(display=False) as counter:
            after = copy.deepcopy(module).eval()(*args, **kwargs)
        difference = output_difference(before, after)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise ArgumentError(
            "slim: the smaller network cannot be run, so its code holds a size that was not found among its attributes "
            f"(leave that part out with skip=). It said: {error}"
        ) from error
    if not difference <= limit:
        raise NumericalError(
            f"slim: the smaller network's outputs differ by {difference:.2g} of the largest, more than {limit:.2g}; "
            "its code holds a size that was not found among its attributes, or a scale that depends on one"
        )
    return counter.get_total_flops(), difference


def _num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _tolerance(module: nn.Module) -> float:
    bits = min((torch.finfo(p.dtype).bits for p in module.parameters()), default=32)
    narrow = any(p.dtype in (torch.float16, torch.bfloat16) for p in module.parameters())
    return 0.05 if narrow else 1e-4 if bits <= 32 else 1e-6


def _leave_one(graph: DependencyGraph, zero: Tensor) -> Tensor:
    cut = zero.clone()
    for family in graph.families:
        if bool(cut[family.groups].all()):
            cut[family.groups[0]] = False
    return cut


def _kept_places(graph: DependencyGraph, cut: Tensor) -> dict[str, dict[int, Tensor]]:
    marked = graph._marks(cut)
    kept: dict[str, dict[int, Tensor]] = {}
    for axis in graph.axes:
        gone = marked[axis.groups]
        if bool(gone.any()):
            kept.setdefault(axis.name, {})[axis.dim] = (~gone).nonzero().squeeze(1)
    return kept
