"""TRAK: gradients of the margin, randomly projected, regressed on each other, averaged over models.

    φ_n = P ∇m(z_n),   m = Σ_t log p_t / (1 - p_t),    score = [mean_k φ_qᵀ(ΦᵀΦ + λI)⁻¹φ_n] · [mean_k (1 - p̄_n)]

Shapes: Q queries, N training sequences, D projected dimensions.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hesse.curvature.layers import Picker
from hesse.curvature.stored_weights import floating_dtype
from hesse.errors import ArgumentError
from hesse.influence.baselines.checkpoints import each_checkpoint
from hesse.influence.examples import Examples, as_examples
from hesse.influence.gradients import gradient_pass, stream_gradients
from hesse.influence.objective import Batch, Loss, RegressionLoss
from hesse.influence.passes import Pass
from hesse.linalg.sketch import SparseSign

__all__ = ["trak"]

_ENTRIES = 8  # nonzeros a column of the projection


def trak(
    model: nn.Module,
    queries: Any,
    dataset: Any,
    *,
    checkpoints: Iterable[Mapping[str, Tensor]] | None = None,
    dimensions: int = 512,
    damping: float = 1e-3,
    seed: int = 0,
    modules: Picker = "mlp",
    loss: Loss | None = None,
    batch_tokens: int = 4096,
) -> Tensor:
    """Scores by randomly projected gradients of the log-odds, as TRAK has them.

    Parameters
    ----------
    model : nn.Module
        In eval mode.
    queries, dataset, modules, loss, batch_tokens : see `gradient_dot`
        As there; the loss is a negative log-likelihood of classes, not a regression.
    checkpoints : iterable of mappings, optional
        State dictionaries of several models, trained independently, best on different halves of the data: their mean is
        what makes the method. Default: the model alone.
    dimensions : int, default 512
        D. Too many for N overfit, too few blur: the published range is 10³ to 10⁵ for 10⁴ sequences and more.
    damping : float, default 1e-3
        λ, in units of the mean eigenvalue of ΦᵀΦ. The paper has none, which asks for D well below N.
    seed : int, default 0
        Of the projections; each model has its own.

    Returns
    -------
    Tensor, shape (Q, N)
        Nats of the query's log-odds that having the sequence in the training set brought, to first order. Positive
        raises them.

    Raises
    ------
    ArgumentError
        If an option is out of range, or the loss is a regression.

    Notes
    -----
    The projection has eight signs a column instead of being dense, and the gradient is of the tracked layers only. One
    backward pass a sequence and model; N·D numbers, and nothing of the size of the model but 16 numbers a weight.

    References
    ----------
    S. M. Park, K. Georgiev, A. Ilyas, G. Leclerc, A. Madry (2023), ICML, arXiv 2303.14186.
    """
    if dimensions < 1:
        raise ArgumentError(f"dimensions: expected >= 1, got {dimensions}")
    if not 0 <= damping < float("inf"):
        raise ArgumentError(f"damping: expected a finite number >= 0, got {damping}")
    if not 0 <= seed < 2**63:
        raise ArgumentError(f"seed: expected 0 to 2**63 - 1, got {seed}")
    if isinstance(loss, RegressionLoss):
        raise ArgumentError("loss: TRAK's log-odds are those of classes; a regression has none")
    asked, examples = as_examples(queries, argument="queries"), as_examples(dataset)
    products: list[Tensor] = []
    doubts: list[Tensor] = []
    states = [model.state_dict()] if checkpoints is None else checkpoints
    for number, at in enumerate(each_checkpoint(model, states)):
        run_pass = gradient_pass(at, modules, loss)
        generator = torch.Generator().manual_seed((seed + number) % 2**63)
        device = next(at.parameters()).device
        sketches = {
            name: SparseSign(
                layer.out_features * layer.columns, dimensions, min(_ENTRIES, dimensions), generator=generator,
                dtype=next(at.parameters()).dtype, device=device,
            )
            for name, layer in run_pass.layers.items()
        }  # fmt: skip
        query_features, _doubt = _features(run_pass, asked, sketches, dimensions, batch_tokens, "queries")
        features, doubt = _features(run_pass, examples, sketches, dimensions, batch_tokens, "dataset")
        gram = (features.T @ features).double()
        gram.diagonal().add_(damping * gram.diagonal().mean())
        solved = torch.linalg.lstsq(gram.cpu(), query_features.T.double().cpu(), driver="gelsd").solution
        products.append(solved.T.to(features) @ features.T)
        doubts.append(doubt.to(features))
    return torch.stack(products).mean(0) * torch.stack(doubts).mean(0)


def _features(
    run_pass: Pass,
    examples: Examples,
    sketches: Mapping[str, SparseSign],
    dimensions: int,
    batch_tokens: int,
    argument: str,
) -> tuple[Tensor, Tensor]:
    # φ (N, D), and the mean of 1 - p over the predicted tokens of every sequence (N,)
    parameter = next(run_pass.model.parameters())
    wide = torch.float64 if floating_dtype(run_pass.model) == torch.float64 else torch.float32
    out = torch.zeros(len(examples), dimensions, dtype=wide, device=parameter.device)
    doubt = torch.zeros(len(examples), dtype=wide, device=parameter.device)
    latest: list[Tensor] = []

    def margin(model: nn.Module, batch: Batch) -> Tensor:
        output = run_pass.loss(model, batch)
        losses = output.per_token
        tiny = torch.finfo(losses.dtype).eps
        missed = (-torch.expm1(-losses)).clamp_min(tiny)  # 1 - p, of a certain token as far from 0 as rounding lets
        latest[:] = [(missed.detach() * output.valid).sum(1) / output.valid.sum(1).clamp_min(1)]
        return torch.where(output.valid, -losses - missed.log(), 0).sum(1)

    def consume(name: str, places: list[int], gradients: Tensor) -> None:
        out[places] += (sketches[name] @ gradients.flatten(1).T).T.to(wide)
        if name == first:
            doubt[places] = latest[0][: len(places)].to(wide)
            latest[0] = latest[0][len(places) :]  # a batch comes in blocks, in order

    first = next(iter(run_pass.layers))
    stream_gradients(run_pass, examples, consume, measurement=margin, batch_tokens=batch_tokens, argument=argument)
    return out, doubt
