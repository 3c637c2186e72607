"""What the model was trained on: losses that sum over the tokens of a sequence, and labels drawn from the model.

A loss is called as ``loss(model, batch, labels=None)`` and returns per-token negative log-likelihoods, the logits, and
which positions count. The training objective is the mean over sequences of the sum over tokens; there is no second
convention.
Shapes: B sequences, T positions, V classes.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hesse.curvature.output_roots import output_hessian_columns
from hesse.curvature.stored_weights import floating_dtype
from hesse.errors import ArgumentError, ShapeError

__all__ = [
    "Batch",
    "CausalLMLoss",
    "ClassificationLoss",
    "Labels",
    "Loss",
    "LossOutput",
    "Masks",
    "RegressionLoss",
    "SoftmaxTokens",
    "check_is_likelihood",
    "labelled",
    "negative_log_likelihood",
    "token_logits",
]

Batch = Mapping[str, Any]
Labels = Tensor | Callable[[Tensor, Tensor], Tensor]
"""Targets, or a function (logits, valid) -> targets that draws them; the forward pass is then made only once."""

Masks = Tensor | Callable[[str], Tensor] | None
"""Positions that count, (B, T) bool: one mask, a function of a layer's name, or None without a time axis."""

_FORWARD_KEYS = ("input_ids", "attention_mask", "position_ids", "token_type_ids", "inputs_embeds")


class LossOutput(NamedTuple):
    """Negative log-likelihood of every position, what it was computed from, and where it counts."""

    per_token: Tensor  # (B, T), zero where not valid
    logits: Tensor  # (B, T, V) aligned with the targets
    valid: Tensor  # (B, T) bool


class Loss(Protocol):
    """What `Influence` needs to know about the training objective."""

    def __call__(self, model: nn.Module, batch: Batch, labels: Labels | None = None) -> LossOutput:
        """Per-token loss, logits and valid positions; ``labels`` replaces the data's targets."""
        ...

    def sample(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Labels drawn from the model's own predictive distribution, from the uniform numbers of each position."""
        ...

    def uniforms_per_position(self, logits: Tensor) -> int:
        """How many uniform numbers a label takes."""
        ...

    def cotangents(self, logits: Tensor, valid: Tensor) -> Iterator[Tensor]:
        """Columns C of the square root of the output Hessian, Σ C Cᵀ = H, each shaped like the logits."""
        ...

    def positions(self, batch: Batch, valid: Tensor) -> tuple[Masks, Masks]:
        """(attended, gradient-carrying) positions of the model's own (B, T)."""
        ...


def _inverse_cdf(logits: Tensor, uniforms: Tensor) -> Tensor:
    # invert the cumulative distribution, in float64 so that the tail of a large vocabulary is reachable
    cumulative = logits.detach().double().softmax(-1).cumsum(-1)
    drawn = torch.searchsorted(cumulative, uniforms.double() * cumulative[..., -1:])
    return drawn.squeeze(-1).clamp(max=logits.shape[-1] - 1)


def _softmax_columns(logits: Tensor) -> Tensor:
    # a square root of diag(p) - p pᵀ: (..., V, V)
    return torch.stack(list(output_hessian_columns(logits)), -1)


@dataclass(frozen=True, slots=True)
class SoftmaxTokens:
    """What the losses of token models share: a softmax at every position, with the true context."""

    def sample(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Draw every next token from the softmax, with the true prefix as context.

        Parameters
        ----------
        logits : Tensor, shape (B, T, V)
            Of the predicted positions.
        uniforms : Tensor, shape (B, T, 1)
            In [0, 1).

        Returns
        -------
        Tensor, shape (B, T), int64
            Token ids.
        """
        return _inverse_cdf(logits, uniforms)

    def uniforms_per_position(self, logits: Tensor) -> int:
        """One.

        Returns
        -------
        int
            1.
        """
        return 1

    def cotangents(self, logits: Tensor, valid: Tensor) -> Iterator[Tensor]:
        """Yield T x V columns: one backward pass for every position and class, for tests and small heads."""
        root = _softmax_columns(logits) * valid[..., None, None]
        for t in range(logits.shape[1]):
            if bool(valid[:, t].any()):
                for c in range(logits.shape[2]):
                    column = torch.zeros_like(logits)
                    column[:, t] = root[:, t, :, c]
                    yield column


@dataclass(frozen=True, slots=True)
class CausalLMLoss(SoftmaxTokens):
    """Next-token negative log-likelihood, summed over the supervised tokens of a sequence.

    A batch holds ``input_ids`` (B, T), ``labels`` (B, T) with -100 where a token is not supervised, and optionally
    ``attention_mask`` and ``position_ids``. Position t predicts token t + 1, so ``labels[:, 0]`` never counts.
    The model is anything that returns logits (B, T, V), alone or as ``.logits``; of what a batch holds it is handed
    what its ``forward`` names.
    """

    def __call__(self, model: nn.Module, batch: Batch, labels: Labels | None = None) -> LossOutput:
        """Compute the loss of every predicted token.

        Parameters
        ----------
        model : nn.Module
            The language model.
        batch : mapping
            As above.
        labels : Tensor, shape (B, T), or callable, optional
            Instead of the data's; a callable takes the logits and valid positions, both without the last, and returns
            targets already shifted.

        Returns
        -------
        LossOutput
            Per-token loss (B, T - 1), logits (B, T - 1, V) and valid positions (B, T - 1).
        """
        given = labels[:, 1:] if isinstance(labels, Tensor) else labels
        return labelled(token_logits(model, batch)[:, :-1], batch["labels"][:, 1:], given)

    def positions(self, batch: Batch, valid: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Find non-padding positions, and of these the ones up to the last that predicts a supervised token.

        Parameters
        ----------
        batch : mapping
            As above; ``segment_ids`` if several documents share a row.
        valid : Tensor, shape (B, T - 1), bool
            From the forward pass.

        Returns
        -------
        tuple of Tensor, shape (B, T), bool
            Attended and gradient-carrying positions.
        """
        length = valid.shape[1] + 1
        padded = F.pad(valid, (0, 1))
        attended = batch.get("attention_mask")
        attended = torch.ones_like(padded) if attended is None or attended.dim() != 2 else attended.bool()
        segments = batch.get("segment_ids")
        if segments is None:
            steps = torch.arange(length, device=valid.device)
            last = torch.where(padded, steps, -1).amax(1, keepdim=True)
            return attended, attended & (steps <= last)
        attended = attended & (segments >= 0)
        # packed documents: a position carries gradient if a later position of its own document is supervised
        later = torch.zeros(int(segments.max()) + 1, dtype=torch.bool, device=valid.device)
        carries = torch.zeros_like(attended)
        for t in range(length - 1, -1, -1):
            owner = segments[:, t]
            inside = owner >= 0
            later[owner[inside & padded[:, t]]] = True
            carries[inside, t] = later[owner[inside]]
        return attended, carries


@dataclass(frozen=True, slots=True)
class ClassificationLoss:
    """Cross-entropy of one label an example: the T = 1 case. A batch holds ``inputs`` and ``labels`` (B,)."""

    def __call__(self, model: nn.Module, batch: Batch, labels: Labels | None = None) -> LossOutput:
        """Compute the loss of every example.

        Parameters
        ----------
        model : nn.Module
            Returns (B, V), alone or as ``.logits``.
        batch : mapping
            As above; without ``inputs`` everything but the labels is handed to the model by name.
        labels : Tensor, shape (B,), or callable, optional
            Instead of the data's.

        Returns
        -------
        LossOutput
            Loss (B, 1), logits (B, 1, V) and valid positions (B, 1).
        """
        given = labels.reshape(-1, 1) if isinstance(labels, Tensor) else labels
        return labelled(_single_output(model, batch), batch["labels"].reshape(-1, 1), given)

    def sample(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Draw the class from the softmax.

        Parameters
        ----------
        logits : Tensor, shape (B, 1, V)
            Of the model.
        uniforms : Tensor, shape (B, 1, 1)
            In [0, 1).

        Returns
        -------
        Tensor, shape (B, 1), int64
            Classes.
        """
        return _inverse_cdf(logits, uniforms)

    def uniforms_per_position(self, logits: Tensor) -> int:
        """One.

        Returns
        -------
        int
            1.
        """
        return 1

    def cotangents(self, logits: Tensor, valid: Tensor) -> Iterator[Tensor]:
        """Yield V columns."""
        root = _softmax_columns(logits) * valid[..., None, None]
        for c in range(logits.shape[-1]):
            yield root[..., c]

    def positions(self, batch: Batch, valid: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Read the attention mask, if the model reads sequences; there is no time axis otherwise.

        Parameters
        ----------
        batch : mapping
            As above.

        Returns
        -------
        tuple of Tensor, shape (B, T), bool, or of None
            The same twice: every attended position carries a gradient.
        """
        return _attended(batch)


@dataclass(frozen=True, slots=True)
class RegressionLoss:
    """½ ‖y - f(x)‖², the negative log-likelihood of unit Gaussian noise.

    A batch holds ``inputs`` and ``labels``, (B,) or (B, V).
    """

    def __call__(self, model: nn.Module, batch: Batch, labels: Labels | None = None) -> LossOutput:
        """Compute the loss of every example.

        Parameters
        ----------
        model : nn.Module
            Returns (B,) or (B, V), alone or as ``.logits``.
        batch : mapping
            As above; without ``inputs`` everything but the labels is handed to the model by name.
        labels : Tensor, shape (B,) or (B, V), or callable, optional
            Instead of the data's.

        Returns
        -------
        LossOutput
            Loss (B, 1), outputs (B, 1, V) and valid positions (B, 1), all of them.
        """
        outputs = _single_output(model, batch)
        valid = torch.ones(outputs.shape[:2], dtype=torch.bool, device=outputs.device)
        given = batch["labels"] if labels is None else labels
        targets = given.reshape(outputs.shape) if isinstance(given, Tensor) else given(outputs, valid)
        return LossOutput((outputs - targets).square().sum(-1) / 2, outputs, valid)

    def sample(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Add unit Gaussian noise to the outputs.

        Parameters
        ----------
        logits : Tensor, shape (B, 1, V)
            The outputs.
        uniforms : Tensor, shape (B, 1, V)
            In [0, 1).

        Returns
        -------
        Tensor, shape (B, 1, V)
            Targets.
        """
        # the quantile function is infinite at 0: half a step of the generator's grid keeps it finite
        noise = torch.special.ndtri(uniforms.double().clamp(min=2.0**-54))
        return logits.detach() + noise.to(logits.dtype)

    def uniforms_per_position(self, logits: Tensor) -> int:
        """One for each output.

        Parameters
        ----------
        logits : Tensor, shape (B, 1, V)
            The outputs.

        Returns
        -------
        int
            V.
        """
        return logits.shape[-1]

    def cotangents(self, logits: Tensor, valid: Tensor) -> Iterator[Tensor]:
        """Yield one column an output: the output Hessian is the identity."""
        for c in range(logits.shape[-1]):
            column = torch.zeros_like(logits)
            column[..., c] = 1
            yield column

    def positions(self, batch: Batch, valid: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Read the attention mask, if the model reads sequences; there is no time axis otherwise.

        Parameters
        ----------
        batch : mapping
            As above.

        Returns
        -------
        tuple of Tensor, shape (B, T), bool, or of None
            The same twice: every attended position carries a gradient.
        """
        return _attended(batch)


def _attended(batch: Batch) -> tuple[Tensor | None, Tensor | None]:
    mask = batch.get("attention_mask")
    return (None, None) if mask is None or mask.dim() != 2 else (mask.bool(), mask.bool())


def check_is_likelihood(loss: Loss, model: nn.Module, batch: Batch) -> None:
    """Refuse a rescaled negative log-likelihood: with labels drawn from the model the scores would come out as I / c.

    With a loss c·L the sampled-label eigenvalues scale as c² and the true Gauss-Newton matrix as c, so the scores would
    come out divided by c. A mean over tokens, the default of most training code, is such a rescaling.

    Parameters
    ----------
    loss : Loss
        The user's; the losses of this module pass without a look.
    model : nn.Module
        The model; called only if the loss is the user's.
    batch : mapping
        The first batch.

    Raises
    ------
    ArgumentError
        If the summed loss is not the summed negative log-softmax of its own logits.
    """
    if type(loss).__module__.startswith("hesse.influence."):  # a subclass may rescale
        return
    output = loss(model, batch)
    labels = batch["labels"]
    targets = labels[:, -output.valid.shape[1] :] if labels.dim() > 1 else labels.reshape(-1, 1)
    if output.logits.is_floating_point() and targets.is_floating_point():
        return  # a regression loss of the user's own: there is no softmax to compare with
    expected = negative_log_likelihood(output.logits.detach(), targets, output.valid).sum()
    got = output.per_token.detach().sum()
    if not torch.isclose(got, expected, rtol=1e-3):
        raise ArgumentError(
            f"loss: it sums to {float(got):.6g} on the first batch, but the negative log-likelihood of its own logits "
            f"to {float(expected):.6g}. "
            "Factors from sampled labels are valid only for the summed negative log-likelihood: return the loss of "
            "every token, "
            "not a mean and not rescaled, or use fisher='exact'."
        )


def token_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Call a language model with what of a batch its ``forward`` names.

    Parameters
    ----------
    model : nn.Module
        Returns logits (B, T, V), alone or as ``.logits``.
    batch : mapping
        ``input_ids`` and, if there, ``attention_mask``, ``position_ids`` and the like.

    Returns
    -------
    Tensor, shape (B, T, V)
        Logits.

    Raises
    ------
    ArgumentError
        If a plain module would attend to padding.
    ShapeError
        If there is no time axis.
    """
    inputs = {key: batch[key] for key in _FORWARD_KEYS if key in batch}
    mask = inputs.get("attention_mask")
    if mask is not None and mask.dim() == 4 and mask.dtype == torch.bool:
        # added to the attention scores: eager attention would take true and false for the numbers 1 and 0
        dtype = floating_dtype(model)
        inputs["attention_mask"] = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    if "input_ids" in inputs and not hasattr(model, "config"):
        output = _call_plain(model, inputs)
    else:
        output = (
            model(**inputs, use_cache=False)
            if hasattr(getattr(model, "config", None), "use_cache")
            else model(**inputs)
        )
    logits = output if isinstance(output, Tensor) else output.logits
    if logits.dim() != 3:
        raise ShapeError(f"loss: expected logits of shape (B, T, V), got {tuple(logits.shape)}")
    return logits


def _call_plain(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    # a plain module: token ids first, and of the rest what its forward names
    named = inspect.signature(model.forward).parameters
    extra = {key: value for key, value in inputs.items() if key != "input_ids" and key in named}
    mask = inputs.get("attention_mask")
    if mask is not None and "attention_mask" not in extra and (mask.dim() == 4 or bool((mask[:, :1] == 0).any())):
        raise ArgumentError(
            f"model: the forward of {type(model).__name__} takes no attention_mask, so it would attend to padding on "
            "the "
            "left and across packed documents; pad on the right, or give it an attention_mask"
        )
    return model(inputs["input_ids"], **extra)


def _single_output(model: nn.Module, batch: Batch) -> Tensor:
    output = model(batch["inputs"]) if "inputs" in batch else model(**{k: v for k, v in batch.items() if k != "labels"})
    logits = output if isinstance(output, Tensor) else output.logits
    if logits.dim() == 1:
        logits = logits[:, None]
    if logits.dim() != 2:
        raise ShapeError(f"loss: expected outputs of shape (B, V), got {tuple(logits.shape)}")
    return logits[:, None]


def labelled(logits: Tensor, targets: Tensor, labels: Labels | None = None) -> LossOutput:
    """Compute the loss of every position that has a label.

    Parameters
    ----------
    logits : Tensor, shape (B, T, V)
        Of the model.
    targets : Tensor, shape (B, T), int64
        The data's labels, -100 where there is none.
    labels : Tensor, shape (B, T), or callable, optional
        To be used in their place, where the data has one.

    Returns
    -------
    LossOutput
        Its parts.
    """
    valid = targets != -100
    if callable(labels):
        targets = labels(logits, valid)
    elif labels is not None:
        targets = labels
    return LossOutput(negative_log_likelihood(logits, targets, valid), logits, valid)


def negative_log_likelihood(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Negative log-likelihood of every target, in float32 at least.

    Parameters
    ----------
    logits : Tensor, shape (B, T, V)
        Of the model.
    targets : Tensor, shape (B, T), int64
        Anything where not valid.
    valid : Tensor, shape (B, T), bool
        Which positions count.

    Returns
    -------
    Tensor, shape (B, T)
        Zero where not valid.
    """
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    safe = torch.where(valid, targets, -100)
    return F.cross_entropy(wide.flatten(0, 1), safe.flatten(), reduction="none", ignore_index=-100).view(targets.shape)
