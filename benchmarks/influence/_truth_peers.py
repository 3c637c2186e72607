"""traker, dattri and kronfluence asked about the same checkpoints: scores (Q, N), positive where a row helps."""

import contextlib
import copy
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.influence._kronfluence_peer import Kronfluence
from benchmarks.peers import require_peer
from hesse.influence import Sequence

__all__ = ["dattri_ekfac", "dattri_on_sequences", "kronfluence_ekfac", "traker_classifier", "traker_language_model"]


def kronfluence_ekfac(
    model: nn.Module, layers: list[str], train: list[Sequence], queries: list[Sequence]
) -> np.ndarray:
    """EK-FAC with labels drawn from the model and a tenth of each mean eigenvalue for damping, as ours."""
    with tempfile.TemporaryDirectory() as folder:
        peer = Kronfluence(model, layers, Path(folder), 32)
        peer.factor_args.use_empirical_fisher = False
        task = peer.analyzer.task
        task.compute_train_loss = _sampling(task.compute_train_loss)
        peer.fit(train)
        return peer.score(queries, train).double().numpy() / len(train)  # of a loss: its sign is already ours


def _sampling(compute: Any) -> Any:
    def compute_train_loss(batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
        if not sample:
            return compute(batch, model)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits[
            :, :-1
        ]
        drawn = torch.distributions.Categorical(logits=logits.detach()).sample()
        drawn = torch.where(batch["labels"][:, 1:] == -100, -100, drawn)
        return F.cross_entropy(logits.flatten(0, 1), drawn.flatten(), ignore_index=-100, reduction="sum")

    return compute_train_loss


def dattri_ekfac(
    model: nn.Module, train: tuple[Tensor, Tensor], queries: tuple[Tensor, Tensor], damping: float
) -> np.ndarray:
    """EK-FAC of a classifier, with the data's own labels and one absolute damping for all layers: what it offers."""
    require_peer("dattri")
    from dattri.algorithm.influence_function import IFAttributorEKFAC
    from dattri.task import AttributionTask

    def mean_loss(parameters: Any, batch: Any) -> Tensor:
        inputs, labels = batch
        inputs, labels = inputs.reshape(-1, inputs.shape[-1]), labels.reshape(-1)  # one example comes without a batch
        logits = torch.func.functional_call(model, parameters, (inputs,))
        return F.cross_entropy(logits, labels)

    task = AttributionTask(loss_func=mean_loss, model=model, checkpoints=dict(model.state_dict()))
    peer = IFAttributorEKFAC(task=task, damping=damping)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        peer.cache(_loader(train, 50))
        found = peer.attribute(_loader(train, 50), _loader(queries, len(queries[0])))
    return found.T.detach().double().numpy() / len(train[0])


def dattri_on_sequences(model: nn.Module, layers: list[str], train: list[Sequence]) -> str:
    """What its EK-FAC says to inputs with a time axis: "" if it takes them."""
    model = copy.deepcopy(model)  # its hooks stay where it fails
    require_peer("dattri")
    from dattri.algorithm.influence_function import IFAttributorEKFAC
    from dattri.task import AttributionTask

    def mean_loss(parameters: Any, batch: Any) -> Tensor:
        tokens, labels = batch
        logits = torch.func.functional_call(model, parameters, (), {"input_ids": tokens, "use_cache": False}).logits
        losses = F.cross_entropy(logits[:, :-1].mT, labels[:, 1:], ignore_index=-100, reduction="none")
        return losses.sum(1).mean()

    task = AttributionTask(loss_func=mean_loss, model=model, checkpoints=dict(model.state_dict()))
    rows = tuple(torch.from_numpy(np.stack([getattr(r, n) for r in train])) for n in ("input_ids", "labels"))
    try:
        IFAttributorEKFAC(task=task, module_name=layers).cache(_loader(rows, 32))
    except Exception as error:  # the row is what it says
        return f"{type(error).__name__}: {error}"
    return ""


def _loader(arrays: tuple[Tensor, Tensor], batch_size: int) -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*arrays), batch_size=batch_size)


def traker_language_model(
    models: list[nn.Module], layers: list[str], train: list[Sequence], queries: list[Sequence], *, dimensions: int = 256
) -> np.ndarray:
    """TRAK over the checkpoints, its projector on the CPU; the output is the summed log-odds of the labels."""
    require_peer("trak")
    from trak.modelout_functions import AbstractModelOutput

    def odds(model: nn.Module, weights: Any, buffers: Any, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.func.functional_call(
            model, (weights, buffers), args=(), kwargs={"input_ids": tokens, "use_cache": False}
        ).logits[:, :-1]
        valid = labels[:, 1:] != -100
        log_p = -F.cross_entropy(logits.mT, labels[:, 1:], ignore_index=-100, reduction="none")
        p = log_p.exp().clamp(max=1 - 1e-6)
        return torch.where(valid, log_p - torch.log1p(-p), 0).sum(1), (1 - p)[valid].view(len(tokens), -1).mean(1)

    class LanguageModelOutput(AbstractModelOutput):
        def __init__(self) -> None: ...

        @staticmethod
        def get_output(model: Any, weights: Any, buffers: Any, tokens: Tensor, labels: Tensor) -> Tensor:
            logits = torch.func.functional_call(
                model, (weights, buffers), args=(), kwargs={"input_ids": tokens[None], "use_cache": False}
            ).logits[:, :-1]
            target = labels[None, 1:]
            log_p = -F.cross_entropy(logits.mT, target, ignore_index=-100, reduction="none")
            p = log_p.exp().clamp(max=1 - 1e-6)
            return torch.where(target != -100, log_p - torch.log1p(-p), 0).sum()

        def get_out_to_loss_grad(self, model: Any, weights: Any, buffers: Any, batch: Any) -> Tensor:
            return odds(model, weights, buffers, *batch)[1].detach()[:, None]

    def arrays(rows: list[Sequence]) -> list[Tensor]:
        return [torch.from_numpy(np.stack([getattr(row, name) for row in rows])) for name in ("input_ids", "labels")]

    weights = [f"{layer}.weight" for layer in layers]
    return _traker(models, LanguageModelOutput(), arrays(train), arrays(queries), dimensions, weights)


def traker_classifier(
    models: list[nn.Module], train: tuple[Tensor, Tensor], queries: tuple[Tensor, Tensor], *, dimensions: int = 256
) -> np.ndarray:
    """TRAK over the checkpoints with its own classification output."""
    require_peer("trak")
    from trak.modelout_functions import ImageClassificationModelOutput

    return _traker(models, ImageClassificationModelOutput(), list(train), list(queries), dimensions, None)


def _traker(
    models: list[nn.Module], task: Any, train: list[Tensor], queries: list[Tensor], dimensions: int, names: Any
) -> np.ndarray:
    from trak import TRAKer

    count, asked = len(train[0]), len(queries[0])
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        peer = TRAKer(
            model=models[0], task=task, train_set_size=count, save_dir=folder, device="cpu", proj_dim=dimensions,
            use_half_precision=False, logging_level=50, grad_wrt=names,
        )  # fmt: skip
        for number, model in enumerate(models):
            peer.load_checkpoint(model.state_dict(), model_id=number)
            for start in range(0, count, 32):
                batch = [part[start : start + 32] for part in train]
                peer.featurize(batch=batch, num_samples=len(batch[0]))
            peer.finalize_features()
        for number, model in enumerate(models):
            peer.start_scoring_checkpoint("asked", model.state_dict(), number, num_targets=asked)
            peer.score(batch=queries, num_samples=asked)
        return np.array(peer.finalize_scores(exp_name="asked"), dtype=np.float64).T
