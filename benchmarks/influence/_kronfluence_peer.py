"""kronfluence driven to the same job: same model, same rows, same Fisher, the damping heuristic instead of its 1e-8
default.

Kept apart from the claims because the memory arms import it in fresh processes.
"""

import contextlib
import copy
import io
import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.peers import require_peer
from hesse.influence.sequences import Sequence, collate


class Rows(Dataset):
    """Token sequences, unpadded; the collate function pads a batch to its own longest row, as a careful user would."""

    def __init__(self, sequences: list[Sequence]) -> None:
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> Sequence:
        return self.sequences[index]


@dataclass(frozen=True)
class Precision:
    """What the peer computes in; by default everything in the model's dtype and the eigenvectors in float64."""

    autocast: torch.dtype | None = None  # of forward and backward
    factors: torch.dtype | None = None  # of sums and products; None: the model's
    eigenvectors: torch.dtype = torch.float64


EXACT = Precision()
MIXED = Precision(torch.bfloat16, None, torch.float32)
LOW = Precision(torch.bfloat16, torch.bfloat16, torch.float32)  # its own preset "all low precision"


class Kronfluence:
    """One analyzer on a copy of the model."""

    def __init__(self, model: nn.Module, layers: list[str], folder: Path, batch_size: int) -> None:
        require_peer("kronfluence")
        warnings.filterwarnings("ignore", module=r"kronfluence|accelerate")
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import FactorArguments, ScoreArguments
        from kronfluence.task import Task
        from kronfluence.utils.dataset import DataLoaderKwargs

        class CausalLM(Task):
            def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
                logits = model(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
                ).logits[:, :-1]
                targets = batch["labels"][:, 1:]
                return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")

            def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
                return self.compute_train_loss(batch, model)

            def get_influence_tracked_modules(self) -> list[str]:
                return layers

            def get_attention_mask(self, batch: Any) -> Tensor:
                return batch["attention_mask"]

        self.dtype = next(model.parameters()).dtype
        self.batch_size = batch_size
        task = CausalLM()
        with contextlib.redirect_stdout(io.StringIO()):
            prepared = prepare_model(copy.deepcopy(model), task)
            self.analyzer = Analyzer("peer", prepared, task, cpu=True, disable_tqdm=True, output_dir=str(folder))
        self.analyzer.logger.setLevel(logging.ERROR)
        self.analyzer.set_dataloader_kwargs(DataLoaderKwargs(num_workers=0, collate_fn=collate))
        self.factor_args = FactorArguments(strategy="ekfac", use_empirical_fisher=True)
        self._score_args = ScoreArguments

    def fit(self, train: list[Sequence], precision: Precision = EXACT) -> None:
        arguments = replace(
            self.factor_args, amp_dtype=precision.autocast, eigendecomposition_dtype=precision.eigenvectors
        )
        for name in (
            "activation_covariance_dtype",
            "gradient_covariance_dtype",
            "per_sample_gradient_dtype",
            "lambda_dtype",
        ):
            setattr(arguments, name, precision.factors or self.dtype)
        self.analyzer.fit_all_factors(
            "factors",
            Rows(train),
            per_device_batch_size=self.batch_size,
            factor_args=arguments,
            overwrite_output_dir=True,
        )

    def score(
        self,
        queries: list[Sequence],
        train: list[Sequence],
        rank: int | None = None,
        precision: Precision = EXACT,
    ) -> Tensor:
        """Raw scores (Q, N): N times ours, since its measurement is a loss and it leaves the 1/N out."""
        arguments = self._score_args(damping_factor=None, query_gradient_low_rank=rank, amp_dtype=precision.autocast)
        for name in ("score_dtype", "per_sample_gradient_dtype", "precondition_dtype"):
            setattr(arguments, name, precision.factors or self.dtype)
        arguments.query_gradient_svd_dtype = self.dtype
        self.analyzer.compute_pairwise_scores(
            "scores",
            "factors",
            Rows(queries),
            Rows(train),
            per_device_query_batch_size=len(queries),
            per_device_train_batch_size=self.batch_size,
            score_args=arguments,
            overwrite_output_dir=True,
        )
        return self.analyzer.load_pairwise_scores("scores")["all_modules"]
