"""Cut zero groups out of a network in the middle of its training: the same module object, optimiser state and all."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hesse.compress.graph import DependencyGraph, SlimReport
from hesse.errors import NumericalError

__all__ = ["become", "old_groups", "retarget"]


def become(module: nn.Module, smaller: nn.Module) -> None:
    """Give a module the contents of another of its class: parameters, buffers, children and attributes.

    Parameters
    ----------
    module : nn.Module
        Whoever holds it holds the smaller network from now on.
    smaller : nn.Module
        Shares its contents afterwards; not to be used on.
    """
    module.__dict__.clear()
    module.__dict__.update(smaller.__dict__)


@torch.no_grad()
def retarget(optimizer: Optimizer, old: dict[str, nn.Parameter], module: nn.Module, report: SlimReport) -> None:
    """Let an optimiser go on with the smaller parameters; what it keeps an entry a parameter for is cut likewise.

    Parameters
    ----------
    optimizer : Optimizer
        Changed in place.
    old : dict of str to Parameter
        Those it held, by name.
    module : nn.Module
        The smaller network, with the same names.
    report : SlimReport
        What was kept.
    """
    names = {id(p): name for name, p in old.items()}
    for group in optimizer.param_groups:
        group["params"] = [module.get_parameter(names[id(p)]) if id(p) in names else p for p in group["params"]]
    for name, before in old.items():
        if before not in optimizer.state:
            continue
        carried = optimizer.state.pop(before)
        for key, value in carried.items():
            if isinstance(value, Tensor) and value.shape == before.shape:
                for dim, places in report.kept.get(name, {}).items():
                    value = value.index_select(dim, places.to(value.device))
                carried[key] = value
        optimizer.state[module.get_parameter(name)] = carried


def old_groups(old: DependencyGraph, new: DependencyGraph, report: SlimReport) -> Tensor:
    """Find for every group of the smaller network which group of the larger one it was.

    Parameters
    ----------
    old, new : DependencyGraph
        Before and after the cut.
    report : SlimReport
        What was kept.

    Returns
    -------
    Tensor, shape (G of ``new``,)
        int64.

    Raises
    ------
    NumericalError
        If the smaller network has other groups.
    """
    before: dict[tuple[str, int], Tensor] = {}
    for axis in old.axes:
        places = report.kept.get(axis.name, {}).get(axis.dim)
        before[axis.name, axis.dim] = axis.groups if places is None else axis.groups[places]
    found = torch.full((new.num_groups,), -1)
    for axis in new.axes:
        was = before.get((axis.name, axis.dim))
        cut = axis.groups >= 0
        if was is None or not torch.equal(was >= 0, cut):
            raise NumericalError(f"HESSO.compact: the smaller network has other groups along {axis.name}[{axis.dim}]")
        found[axis.groups[cut]] = was[cut]
    left: Any = torch.unique(found)
    if len(left) != new.num_groups:
        raise NumericalError("HESSO.compact: groups of the smaller network have come apart")
    return found
