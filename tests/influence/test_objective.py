"""Losses that sum over tokens, labels drawn from the model, and square roots of the output Hessian."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hesse.errors import ArgumentError, ShapeError
from hesse.influence.examples import TokenExamples
from hesse.influence.objective import (
    CausalLMLoss,
    ClassificationLoss,
    LossOutput,
    RegressionLoss,
    check_is_likelihood,
)
from hesse.influence.sequences import Sequence
from tests.influence._tiny import VOCAB, alone, classifier, gpt2, llama, points, tokens

F64 = torch.float64


def sequences(count=4, seed=1):
    out = []
    for row in tokens(count, seed=seed):
        ids = torch.tensor(row["input_ids"]).numpy()
        out.append(Sequence(row["id"], row["id"], ids, ids.copy()))
    return out


@pytest.mark.parametrize("build", [gpt2, llama])
def test_causal_loss_is_the_sum_of_token_log_likelihoods(build):
    """Oracle: transformers' own mean loss times the number of predicted tokens."""
    model, batch = build(), alone(tokens(1)[0])
    output = CausalLMLoss()(model, batch)
    length = batch["input_ids"].shape[1]
    mean = model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss  # transformers takes it in float32
    torch.testing.assert_close(output.per_token.sum().float(), mean.float() * (length - 1))
    assert output.per_token.shape == output.valid.shape == (1, length - 1)


def test_unsupervised_tokens_do_not_count():
    """Oracle: the per-token losses of the fully supervised sequence, some left out."""
    model, row = gpt2(), tokens(1, low=6, high=6)[0]
    whole = CausalLMLoss()(model, alone(row)).per_token
    labels = [-100, -100, row["input_ids"][2], -100, row["input_ids"][4], -100]
    output = CausalLMLoss()(model, alone(row | {"labels": labels}))
    keep = torch.tensor([[False, True, False, True, False]])
    assert torch.equal(output.valid, keep)
    torch.testing.assert_close(output.per_token, whole * keep)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["right", "left", "packed"])
def test_padding_and_packing_change_no_token(kind, attention):
    """Oracle: the loss of every sequence alone."""
    model, data = gpt2(attention=attention), sequences()
    examples = TokenExamples(data, 0, "left" if kind == "left" else "right", kind == "packed")
    batch = examples.batch(range(len(data)))
    output = CausalLMLoss()(model, batch)
    for n, sequence in enumerate(data):
        ids = torch.from_numpy(sequence.input_ids)[None]
        wanted = CausalLMLoss()(model, {"input_ids": ids, "labels": ids}).per_token[0]
        if kind == "packed":
            found = output.per_token[0][(batch["segment_ids"][0, :-1] == n) & output.valid[0]]
        else:
            found = output.per_token[n][output.valid[n]]
        torch.testing.assert_close(found, wanted)


def test_positions_that_carry_a_gradient():
    """Oracle: by hand; a prompt position carries gradient, what follows the last supervised one does not."""
    batch = {"attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])}
    valid = torch.tensor([[0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
    attended, carrying = CausalLMLoss().positions(batch, valid)
    assert attended.tolist() == batch["attention_mask"].bool().tolist()
    assert carrying.tolist() == [[True] * 3 + [False] * 3, [False] * 6]
    packed = {"segment_ids": torch.tensor([[0, 0, 0, 1, 1, 1, -1]])}
    valid = torch.tensor([[0, 1, 0, 1, 0, 0]]).bool()
    attended, carrying = CausalLMLoss().positions(packed, valid)
    assert attended.tolist() == [[True] * 6 + [False]]
    assert carrying.tolist() == [[True, True, False, True, False, False, False]]


def test_positions_of_a_classifier_of_sequences():
    """Oracle: the attention mask; none without one."""
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    for loss in (ClassificationLoss(), RegressionLoss()):
        attended, carrying = loss.positions({"attention_mask": mask}, torch.ones(2, 1).bool())
        assert attended.tolist() == carrying.tolist() == mask.bool().tolist()
        assert loss.positions({}, torch.ones(2, 1).bool()) == (None, None)


def test_classification_and_regression_losses():
    """Oracle: torch's cross-entropy and half the squared distance."""
    net, (x, y) = classifier(), points(6)
    y[2] = -100
    output = ClassificationLoss()(net, {"inputs": x, "labels": y})
    wanted = nn.functional.cross_entropy(net(x), y, reduction="none")
    torch.testing.assert_close(output.per_token[:, 0], wanted)
    assert output.valid[:, 0].tolist() == [True, True, False, True, True, True]
    targets = torch.randn(6, 3, dtype=F64)
    output = RegressionLoss()(net, {"inputs": x, "labels": targets})
    torch.testing.assert_close(output.per_token[:, 0], (net(x) - targets).square().sum(1) / 2)
    flat = nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)).to(F64)
    output = RegressionLoss()(flat, {"inputs": x, "labels": targets[:, 0]})
    torch.testing.assert_close(output.per_token[:, 0], (flat(x) - targets[:, 0]).square() / 2)


def test_drawn_classes_follow_the_softmax():
    """Oracle: expected counts; 40,000 draws within five standard errors each, and the ends of the unit interval."""
    logits = torch.tensor([[[0.0, 1.0, -2.0, -40.0]]], dtype=F64)
    draws = 40_000
    uniforms = torch.rand(1, draws, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    for loss in (CausalLMLoss(), ClassificationLoss()):
        drawn = loss.sample(logits.expand(1, draws, 4), uniforms)
        p = logits[0, 0].softmax(-1)
        counts = torch.bincount(drawn.flatten(), minlength=4)
        assert bool(((counts - draws * p).abs() <= 5 * (draws * p * (1 - p)).sqrt() + 1e-9).all())
        assert loss.sample(logits, torch.zeros(1, 1, 1)).item() == 0
        assert loss.sample(logits, torch.full((1, 1, 1), 1 - 2.0**-53, dtype=F64)).item() in (1, 2, 3)


def test_drawn_targets_are_unit_gaussian():
    """Oracle: mean and covariance of the noise, each within five standard errors."""
    draws = 40_000
    uniforms = torch.rand(draws, 1, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    outputs = torch.tensor([3.0, -1.0], dtype=F64).expand(draws, 1, 2)
    noise = (RegressionLoss().sample(outputs, uniforms) - outputs)[:, 0]
    assert bool((noise.mean(0).abs() < 5 / draws**0.5).all())
    assert bool(((noise.T @ noise / draws - torch.eye(2, dtype=F64)).abs() < 5 * 2**0.5 / draws**0.5).all())
    assert bool(torch.isfinite(RegressionLoss().sample(outputs, torch.zeros_like(uniforms))).all())
    assert RegressionLoss().uniforms_per_position(outputs) == 2


@pytest.mark.parametrize(("loss", "positions"), [(CausalLMLoss(), 3), (ClassificationLoss(), 1), (RegressionLoss(), 1)])
def test_cotangents_are_a_square_root_of_the_output_hessian(loss, positions):
    """Oracle: torch.autograd.functional.hessian of the summed loss with respect to the outputs."""
    logits = torch.randn(2, positions, 4, dtype=F64)
    valid = torch.ones(2, positions).bool()
    valid[1, -1] = isinstance(loss, RegressionLoss)
    total = torch.zeros(2 * positions * 4, 2 * positions * 4, dtype=F64)
    for column in loss.cotangents(logits, valid):
        for n in range(2):  # a column serves all sequences at once: their blocks are independent
            part = torch.zeros_like(logits)
            part[n] = column[n]
            total += torch.outer(part.flatten(), part.flatten())

    def summed(flat):
        z = flat.view(2, positions, 4)
        if isinstance(loss, RegressionLoss):
            return z.square().sum() / 2
        return (z.logsumexp(-1) * valid).sum()

    torch.testing.assert_close(total, torch.autograd.functional.hessian(summed, logits.flatten()))


class Scaled(CausalLMLoss):
    """What a user may write: a mean over tokens, or the same sum under another name."""

    def __init__(self, mean):
        object.__setattr__(self, "mean", mean)

    __slots__ = ("mean",)

    def __call__(self, model, batch, labels=None):
        output = CausalLMLoss.__call__(self, model, batch, labels)
        return output._replace(per_token=output.per_token / output.valid.sum()) if self.mean else output


class Foreign(SimpleNamespace):
    """The same, not derived from a built-in loss."""

    def __call__(self, model, batch, labels=None):
        return self.inner(model, batch, labels)


def test_a_rescaled_likelihood_is_refused():
    """Oracle: the error with both numbers; the summed loss and a user's regression pass."""
    model, batch = gpt2(), alone(tokens(1)[0])
    with pytest.raises(ArgumentError, match=r"loss: it sums to .*not a mean"):
        check_is_likelihood(Foreign(inner=Scaled(True)), model, batch)
    check_is_likelihood(Foreign(inner=Scaled(False)), model, batch)
    check_is_likelihood(CausalLMLoss(), model, batch)
    x, _ = points(3)
    check_is_likelihood(
        Foreign(inner=RegressionLoss()), classifier(), {"inputs": x, "labels": torch.randn(3, 3, dtype=F64)}
    )


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCAB, VOCAB)

    def forward(self, tokens):
        return self.table(tokens)


class WithPositions(Plain):
    def forward(self, tokens, position_ids=None, attention_mask=None):
        assert position_ids is not None
        assert attention_mask is not None
        return self.table(tokens)


def test_a_plain_module_receives_what_its_forward_names():
    """Oracle: an error where a mask that matters would be dropped, none where it does not matter."""
    data = sequences(3)
    loss = CausalLMLoss()
    loss(Plain(), TokenExamples(data).batch(range(3)))
    for examples in (TokenExamples(data, 0, "left"), TokenExamples(data, pack=True)):
        batch = examples.batch(range(3))
        with pytest.raises(ArgumentError, match="takes no attention_mask"):
            loss(Plain(), batch)
        loss(WithPositions(), batch)


def test_outputs_of_the_wrong_shape_are_refused():
    """Oracle: the error with the shape."""
    with pytest.raises(ShapeError, match=r"\(B, T, V\), got \(2, 3\)"):
        CausalLMLoss()(nn.Sequential(), {"input_ids": torch.ones(2, 3), "labels": torch.ones(2, 3)})
    with pytest.raises(ShapeError, match=r"\(B, V\), got \(2, 3, 4\)"):
        ClassificationLoss()(nn.Sequential(), {"inputs": torch.ones(2, 3, 4), "labels": torch.ones(2)})


def test_loss_output_is_a_tuple():
    """Oracle: the order of its fields, which users unpack."""
    assert LossOutput._fields == ("per_token", "logits", "valid")
