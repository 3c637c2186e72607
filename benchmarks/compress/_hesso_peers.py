"""The peers of the HESSO claims: torch-pruning, and the authors' own optimiser from only-train-once."""

import contextlib
import importlib.util
import io
import signal
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import PeerMissing, require_peer
from hesse.compress import DependencyGraph

__all__ = ["OnlyTrainOnce", "TorchPruning", "covers"]

PATIENCE = 20  # seconds


class TorchPruning:
    """Global structured pruning in several rounds, each of which makes the module smaller in place."""

    def __init__(
        self, module: nn.Module, example: Tensor, sparsity: float, importance: str, rounds: int, last: nn.Module
    ) -> None:
        peer = require_peer("torch_pruning")
        kinds = {
            "magnitude": peer.importance.GroupMagnitudeImportance,
            "taylor": peer.importance.GroupTaylorImportance,
        }
        self._layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m is not last]
        self._widths = [len(m.weight) for m in self._layers]
        self._pruner = peer.pruner.BasePruner(
            module,
            example,
            importance=kinds[importance](),
            global_pruning=True,
            pruning_ratio=sparsity,
            max_pruning_ratio=0.95,
            iterative_steps=rounds,
            ignored_layers=[last],
        )

    def cut(self) -> None:
        """One round."""
        self._pruner.step()

    def shares(self) -> list[float]:
        """Share of the channels that went, layer by layer."""
        return [1 - len(m.weight) / width for m, width in zip(self._layers, self._widths, strict=True)]


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"not finished after {PATIENCE} s")


def covers(module: nn.Module, example: Any, outputs: list[nn.Module]) -> str:
    """Whether torch-pruning halves a network so that it still runs: "yes", or what it said."""
    peer = require_peer("torch_pruning")
    before = sum(p.numel() for p in module.parameters())
    previous = signal.signal(signal.SIGALRM, _too_long)  # on one of these networks it does not come to an end
    signal.alarm(PATIENCE)
    try:
        pruner = peer.pruner.BasePruner(
            module,
            example,
            importance=peer.importance.GroupMagnitudeImportance(),
            pruning_ratio=0.5,
            ignored_layers=outputs,
        )
        pruner.step()
        args = ((), example) if isinstance(example, dict) else ((example,), {})
        with torch.no_grad():
            module(*args[0], **args[1])
    except Exception as error:  # whatever it fails with is the finding
        return f"{type(error).__name__}: {str(error)[:80]}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    after = sum(p.numel() for p in module.parameters())
    return "yes" if after < before else "nothing was cut"


class OnlyTrainOnce:
    """The published optimiser, fed with groups of our graph whose slices are whole first dimensions.

    Its package cannot be imported as a whole beside a torch of today, its optimiser can. It moves one mask to a GPU
    whether there is one or not; here that call does nothing.
    """

    def __init__(
        self,
        graph: DependencyGraph,
        sparsity: float,
        start_step: int,
        pruning_steps: int,
        periods: int,
        *,
        lr: float,
        momentum: float,
    ) -> None:
        names = _published()
        basic = names["TensorTransform"].BASIC
        groups, used = [], set()
        for number, family in enumerate(graph.families):
            own = [name for name, dim in family.axes if dim == 0]
            if len(own) != len(family.axes):
                raise PeerMissing("only-train-once: a group is not a slice of first dimensions")
            groups.append(self._group(graph, number, own, basic, len(family.groups), prunable=True))
            used.update(own)
        rest = [name for name, _ in graph.module.named_parameters() if name not in used]
        no_prune = names["TensorTransform"].NO_PRUNE
        groups.append(self._group(graph, len(groups), rest, no_prune, 1, prunable=False))
        with _quiet():
            self._optimizer = names["HESSO"](
                groups,
                variant="sgd",
                lr=lr,
                first_momentum=momentum,
                dampening=0.0,
                weight_decay=0.0,
                target_group_sparsity=sparsity,
                start_pruning_step=start_step,
                pruning_steps=pruning_steps,
                pruning_periods=periods,
            )

    @staticmethod
    def _group(
        graph: DependencyGraph, number: int, names: list[str], transform: Any, count: int, *, prunable: bool
    ) -> dict[str, Any]:
        return {
            "id": number,
            "p_names": names,
            "params": [graph.tensor(name) for name in names],
            "p_transform": [transform] * len(names),
            "num_groups": count,
            "is_prunable": prunable,
            "is_auxiliary": False,
            "auxiliary_ngs": [],
        }

    def step(self, lr: float) -> None:
        """One step at the given rate."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        with _quiet():
            self._optimizer.step()


def _published() -> dict[str, Any]:
    name = "only_train_once"
    spec = importlib.util.find_spec(name) if name not in sys.modules else sys.modules[name].__spec__
    if spec is None:
        raise PeerMissing("only_train_once is not installed: pip install --no-deps only-train-once==3.0.1")
    if name not in sys.modules:  # an empty head in place of the one that imports onnx
        head = types.ModuleType(name)
        head.__path__ = list(spec.submodule_search_locations or [])
        head.__spec__ = spec
        sys.modules[name] = head
        # ... and of the subpackage whose graph patterns need the module imp, which Python 3.12 no longer has
        transform = types.ModuleType(f"{name}.transform")
        transform.__path__ = [f"{head.__path__[0]}/transform"]
        sys.modules[f"{name}.transform"] = transform
        tensors = importlib.import_module(f"{name}.transform.tensor_transform")
        vars(transform).update({k: v for k, v in vars(tensors).items() if not k.startswith("_")})
    module = importlib.import_module(f"{name}.optimizer.hesso")
    return {"HESSO": module.HESSO, "TensorTransform": module.TensorTransform}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    original = torch.Tensor.cuda
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda tensor, *_, **__: tensor
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        torch.Tensor.cuda = original
