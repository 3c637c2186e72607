"""Objectives of language models that do not predict the next token: masked and sequence-to-sequence.

Shapes: B sequences, T positions (of the text that is predicted), V classes.
"""

import re
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from hesse.errors import ArgumentError, ShapeError
from hesse.influence.examples import refuse_duplicates
from hesse.influence.objective import (
    Batch,
    Labels,
    LossOutput,
    Masks,
    SoftmaxTokens,
    labelled,
    token_logits,
)
from hesse.influence.rows import IGNORED
from hesse.io import hash_bytes, hash_tensors

__all__ = ["MaskedLMLoss", "PairExamples", "Seq2SeqLoss"]

_READS_SOURCE = re.compile(
    r"(^|\.)encoder\.|\.EncDecAttention\.[kv]$|\.(encoder_attn|crossattention\.self)\.(k|v|key|value)"
)


@dataclass(frozen=True, slots=True)
class MaskedLMLoss(SoftmaxTokens):
    """Negative log-likelihood of masked tokens, summed over those of a sequence; attention looks both ways.

    A batch holds ``input_ids`` (B, T) with the mask token where something is to be predicted, ``labels`` (B, T) with
    the true token there and -100 elsewhere, and optionally ``attention_mask``. Which tokens are masked is part of the
    data: draw the masks once, so that a score can be repeated.
    """

    def __call__(self, model: nn.Module, batch: Batch, labels: Labels | None = None) -> LossOutput:
        """Compute the loss of every masked token.

        Parameters
        ----------
        model : nn.Module
            Returns logits (B, T, V), alone or as ``.logits``.
        batch : mapping
            As above.
        labels : Tensor, shape (B, T), or callable, optional
            Instead of the data's.

        Returns
        -------
        LossOutput
            Per-token loss, logits and valid positions.

        Raises
        ------
        ArgumentError
            If documents are packed: their mask is that of causal attention.
        """
        if batch.get("segment_ids") is not None:
            raise ArgumentError("pack: a masked language model looks both ways, and cannot take packed documents")
        return labelled(token_logits(model, batch), batch["labels"], labels)

    def positions(self, batch: Batch, valid: Tensor) -> tuple[Masks, Masks]:
        """Read the attention mask: every attended position carries a gradient.

        Parameters
        ----------
        batch : mapping
            As above.
        valid : Tensor, shape (B, T), bool
            From the forward pass.

        Returns
        -------
        tuple of Tensor, shape (B, T), bool
            The same twice.
        """
        mask = batch.get("attention_mask")
        attended = torch.ones_like(valid) if mask is None else mask.bool()
        return attended, attended


@dataclass(frozen=True, slots=True)
class Seq2SeqLoss(SoftmaxTokens):
    """Negative log-likelihood of a target text given a source text, summed over the target's tokens (T5, BART).

    A batch holds ``input_ids`` (B, S) and ``attention_mask`` of the source, and ``labels`` (B, T) of the target, padded
    on the right with -100; see `PairExamples`. The model shifts the labels into the decoder's inputs by its own rule.
    Scores by training token are not defined, as a sequence is two texts.
    """

    def __call__(self, model: nn.Module, batch: Batch, labels: Labels | None = None) -> LossOutput:
        """Compute the loss of every target token.

        Parameters
        ----------
        model : nn.Module
            An encoder with a decoder, of transformers: it has ``prepare_decoder_input_ids_from_labels``.
        batch : mapping
            As above.
        labels : Tensor, shape (B, T), or callable, optional
            Instead of the data's; the decoder reads the data's all the same.

        Returns
        -------
        LossOutput
            Per-token loss, logits and valid positions.

        Raises
        ------
        ArgumentError
            If the model does not say what its decoder reads.
        """
        shift: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if shift is None:
            raise ArgumentError(
                f"model: {type(model).__name__} has no prepare_decoder_input_ids_from_labels, which Seq2SeqLoss needs"
            )
        targets: Tensor = batch["labels"]
        logits = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=shift(labels=targets),
            use_cache=False,
        ).logits
        return labelled(logits, targets, labels)

    def positions(self, batch: Batch, valid: Tensor) -> tuple[Masks, Masks]:
        """Tell the source's positions to the encoder and to what reads it, the target's to the decoder.

        Parameters
        ----------
        batch : mapping
            As above.
        valid : Tensor, shape (B, T), bool
            From the forward pass.

        Returns
        -------
        tuple of callable
            Of a layer's name, the same twice.
        """
        source = batch["attention_mask"].bool()
        last = torch.where(valid, torch.arange(valid.shape[1], device=valid.device), -1).amax(1, keepdim=True)
        target = torch.arange(valid.shape[1], device=valid.device) <= last

        def mask(name: str) -> Tensor:
            return source if _READS_SOURCE.search(name) else target

        return mask, mask


@dataclass(frozen=True)
class PairExamples:
    """Pairs of a source and a target text, as token ids: the data of `Seq2SeqLoss`."""

    sources: Items[Items[int]]
    targets: Items[Items[int]]
    ids: list[str]
    pad_id: int = 0
    argument: str = field(default="pairs", repr=False, compare=False)  # what an error calls them

    def __post_init__(self) -> None:
        if not len(self.sources) == len(self.targets) == len(self.ids):
            raise ShapeError(
                f"{self.argument}: {len(self.sources)} sources, {len(self.targets)} targets and {len(self.ids)} ids "
                "do not match"
            )
        refuse_duplicates(self.ids, self.argument)
        for name, source, target in zip(self.ids, self.sources, self.targets, strict=True):
            if len(source) == 0 or len(target) == 0:
                raise ArgumentError(f"{self.argument}: the source or the target of {name!r} is empty")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def rows(self) -> list[str]:
        """Every pair is a row of its own."""
        return self.ids

    @property
    def lengths(self) -> list[int]:
        """Tokens of both texts."""
        return [len(source) + len(target) for source, target in zip(self.sources, self.targets, strict=True)]

    def batch(self, indices: Items[int]) -> dict[str, Tensor]:
        """Collate pairs, both texts padded on the right.

        Parameters
        ----------
        indices : sequence of int
            Which, in this order.

        Returns
        -------
        dict of str to Tensor
            ``input_ids``, ``attention_mask`` and ``labels``.
        """
        sources, targets = ([torch.as_tensor(side[i]) for i in indices] for side in (self.sources, self.targets))
        return {
            "input_ids": pad_sequence(sources, batch_first=True, padding_value=self.pad_id),
            "attention_mask": pad_sequence([torch.ones_like(source) for source in sources], batch_first=True),
            "labels": pad_sequence(targets, batch_first=True, padding_value=IGNORED),
        }

    def fingerprint(self) -> str:
        """Hash over ids, sources and targets, in order.

        Returns
        -------
        str
            Hexadecimal.
        """
        tensors = {}
        for side, texts in (("source", self.sources), ("target", self.targets)):
            tensors[side] = torch.from_numpy(np.concatenate([np.asarray(text, dtype=np.int64) for text in texts]))
            tensors[f"{side} lengths"] = torch.tensor([len(text) for text in texts])
        return hash_bytes("\0".join([*self.ids, hash_tensors(tensors)]).encode())
