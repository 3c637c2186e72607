"""One pass over a batch: whose labels, whose draws, and what is refused."""

import threading

import numpy as np
import pytest
import torch

from hesse.curvature.ekfac import sequence_gradients
from hesse.curvature.layers import select_layers
from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.influence.examples import ArrayExamples, TokenExamples, as_examples
from hesse.influence.objective import CausalLMLoss, ClassificationLoss
from hesse.influence.passes import Pass, check_model, read_ahead
from hesse.influence.sequences import Sequence
from tests.influence._tiny import alone, classifier, dense_block, gpt2, loss_gradients, points, tokens

F64 = torch.float64


def gradients(model, loss, run, *, seed=0, modules="mlp"):
    """Layer -> (B, p, m) of the pass that ``run`` makes."""
    seen = {}
    job = Pass(model, loss, select_layers(model, modules), seed)
    with job.open(lambda rows: seen.__setitem__(rows.layer.name, sequence_gradients(rows))) as opened:
        run(opened)
    return seen


def sequences(count=5):
    out = []
    for row in tokens(count):
        ids = np.array(row["input_ids"])
        out.append(Sequence(row["id"], row["id"], ids, ids.copy()))
    return out


@pytest.mark.parametrize("kind", ["right", "left", "packed"])
def test_the_data_s_labels(kind):
    """Oracle: torch.autograd.grad, one unpadded sequence at a time."""
    model, data = gpt2(layers=2), sequences()
    examples = TokenExamples(data, 0, "left" if kind == "left" else "right", kind == "packed")
    batch = examples.batch(range(5))
    found = gradients(model, CausalLMLoss(), lambda run: run.empirical(batch, examples.ids), modules="all-linear")
    for name, wanted in loss_gradients(model, tokens(5), modules="all-linear").items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-10, atol=1e-11)


def test_drawn_labels_depend_on_the_sequence_alone():
    """Oracle: the sequence alone, whatever batch, padding and order; other seeds and stages differ."""
    model, data = gpt2(), sequences()
    layer = "transformer.h.0.mlp.c_fc"

    def sampled(chosen, *, side="right", pack=False, seed=0, stage=0):
        examples = TokenExamples([data[i] for i in chosen], 0, side, pack)
        names, batch = examples.ids, examples.batch(range(len(chosen)))
        return gradients(model, CausalLMLoss(), lambda run: run.sampled(batch, names, stage), seed=seed)[layer]

    single = torch.cat([sampled([n]) for n in range(5)])
    order = [3, 0, 4, 1, 2]
    for options in ({}, {"side": "left"}, {"pack": True}):
        torch.testing.assert_close(sampled(order, **options), single[order], rtol=1e-10, atol=1e-11)
    assert not torch.allclose(sampled([0, 1, 2], seed=1), single[:3])
    assert not torch.allclose(sampled([0, 1, 2], stage=1), single[:3])
    empirical = gradients(model, CausalLMLoss(), lambda run: run.empirical(TokenExamples(data).batch([0]), ["s0"]))
    assert not torch.allclose(empirical[layer], single[:1])


def test_exact_columns_sum_to_the_gauss_newton_matrix():
    """Oracle: the dense block, JᵀHJ by autograd, of one sequence."""
    model, row = gpt2(), tokens(1)[0]
    layer = select_layers(model)["transformer.h.0.mlp.c_proj"]
    order = layer.out_features * layer.columns
    total = torch.zeros(order, order, dtype=F64)

    def consume(rows):
        nonlocal total
        if rows.layer.name == layer.name:
            flat = sequence_gradients(rows).flatten()
            total += torch.outer(flat, flat)

    with Pass(model, CausalLMLoss(), select_layers(model)).open(consume) as run:
        columns = sum(1 for _ in run.exact(alone(row), ["s0"]))
    assert columns == (len(row["input_ids"]) - 1) * 11
    torch.testing.assert_close(total, dense_block(model, [row], layer), rtol=1e-9, atol=1e-10)


def test_drawn_labels_average_to_the_exact_diagonal():
    """Oracle: the dense diagonal; the mean over 400 seeds within five of its own standard errors, entry by entry."""
    net, (x, y) = classifier(), points(1)
    (name, layer), *_ = select_layers(net).items()
    squares = []
    examples = ArrayExamples(x, y, ["0"])
    for seed in range(400):
        found = gradients(net, ClassificationLoss(), lambda run: run.sampled(examples.batch([0]), ["0"], 0), seed=seed)
        squares.append(found[name][0].square())
    stack = torch.stack(squares)
    wanted = dense_block(net, (x, y), layer).diagonal().view_as(stack[0])
    error = stack.std(0) / 400**0.5
    assert bool(((stack.mean(0) - wanted).abs() <= 5 * error + 1e-12).all())


def test_a_measurement_is_followed_to_its_gradient():
    """Oracle: torch.autograd.grad of the measurement, with padding on the left."""
    model, data = gpt2(), sequences(3)
    batch = TokenExamples(data, 0, "left").batch(range(3))

    def measurement(net, given):
        output = CausalLMLoss()(net, given)
        return (output.per_token.square() * output.valid).sum(1)

    values = []
    found = gradients(model, CausalLMLoss(), lambda run: values.append(run.measured(batch, measurement)))
    parameters = dict(model.named_parameters())
    for n, row in enumerate(tokens(3)):
        value = measurement(model, alone(row))[0]
        torch.testing.assert_close(values[0][n], value.detach())
        grads = dict(zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True))
        for name, layer in select_layers(model).items():
            torch.testing.assert_close(found[name][n], layer.matrix_from_grads(grads), rtol=1e-9, atol=1e-11)
    with pytest.raises(ArgumentError, match=r"shape \(3,\), got \(\)"):
        gradients(model, CausalLMLoss(), lambda run: run.measured(batch, lambda net, b: measurement(net, b).sum()))


def test_training_mode_is_refused_and_named():
    """Oracle: the name of the submodule that was left in train()."""
    model = gpt2()
    model.transformer.h[0].mlp.dropout.train()
    with pytest.raises(ArgumentError, match=r"transformer\.h\.0\.mlp\.dropout"):
        check_model(model)
    with pytest.raises(ArgumentError, match="inside"):
        Pass(model, CausalLMLoss(), {}).empirical(alone(tokens(1)[0]), ["s0"])


@pytest.mark.parametrize("pack", [False, True])
def test_a_loss_that_is_not_finite_names_its_sequence(pack):
    """Oracle: the one sequence that holds the token whose embedding is NaN."""
    model, data = gpt2(), sequences(3)
    data[1].input_ids[-2] = 10
    for other in (0, 2):
        data[other].input_ids[data[other].input_ids == 10] = 1
    with torch.no_grad():
        model.transformer.wte.weight[10] = float("nan")
        model.lm_head.weight = torch.nn.Parameter(torch.randn(11, 8, dtype=F64))
    if pack:  # in one row, attention would carry NaN times zero into the others too
        data = data[1:2]
    examples = TokenExamples(data, pack=pack)
    batch = examples.batch(range(len(data)))
    with pytest.raises(NumericalError, match="'s1' is NaN or Inf"):
        gradients(model, CausalLMLoss(), lambda run: run.empirical(batch, examples.ids))


def test_examples_wrap_what_users_have():
    """Oracle: the same batch from mappings and from Sequence objects."""
    rows = tokens(2)
    left, right = as_examples(rows).batch([0, 1]), TokenExamples(sequences(2)).batch([0, 1])
    assert torch.equal(left["input_ids"], right["input_ids"])


def test_items_are_made_one_ahead_by_another_thread():
    """Oracle: the list itself, and which item was begun when one is handed over."""
    made, threads, begun = [], set(), threading.Event()

    def items():
        for item in range(5):
            made.append(item)
            threads.add(threading.get_ident())
            if item == 1:
                begun.set()
            yield item

    reader = read_ahead(items())
    assert next(reader) == 0
    assert begun.wait(10)  # the second is made although only the first was asked for
    assert [0, *reader] == made == [0, 1, 2, 3, 4]
    assert threads.isdisjoint({threading.get_ident()})
    assert len(threads) == 1
    assert list(read_ahead([])) == []


def test_a_fault_in_reading_arrives_where_its_item_would_have():
    """Oracle: the items before it, then the error itself; and a reader that is left early leaves no thread behind."""

    def faulty():
        yield "first"
        raise NumericalError("the second is broken")

    reader = read_ahead(faulty())
    assert next(reader) == "first"
    with pytest.raises(NumericalError, match="second is broken"):
        next(reader)
    early = read_ahead(iter(range(100)))
    next(early)
    early.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hesse-read-ahead")]


@pytest.mark.parametrize("pack", [False, True])
def test_a_measurement_has_one_value_a_sequence(pack):
    """Oracle: by hand; a mean over the batch would make a query depend on its company."""
    examples = TokenExamples(sequences(), 0, "right", pack)
    batch = examples.batch(range(5))
    model = gpt2()
    job = Pass(model, CausalLMLoss(), select_layers(model, "mlp"))
    with job.open(lambda _rows: None) as run, pytest.raises(ArgumentError, match=r"shape \(5,\), got \(1,\)"):
        run.measured(batch, lambda model, b: model(input_ids=b["input_ids"]).logits.mean()[None])


@pytest.mark.parametrize("count", [0, 3, 5])
@pytest.mark.parametrize("pack", [False, True])
def test_a_batch_of_another_count_is_refused(pack, count):
    """Oracle: by hand, 4 sequences were asked for; every kind of pass names the data set and runs nothing."""
    if pack and count == 0:
        batch = {key: value[..., :0] for key, value in TokenExamples(sequences(), 0, "right", pack).batch([0]).items()}
    else:
        batch = {key: value[:count] for key, value in TokenExamples(sequences(), 0).batch(range(5)).items()}
        if pack:
            batch = TokenExamples(sequences(), 0, "right", pack).batch(range(count))
    names, model = ["s0", "s1", "s2", "s3"], gpt2()
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    job = Pass(model, CausalLMLoss(), select_layers(model, "mlp"))
    kinds = (
        lambda run: run.empirical(batch, names),
        lambda run: run.sampled(batch, names, 0),
        lambda run: next(run.exact(batch, names)),
        lambda run: run.measured(batch, lambda *_: pytest.fail("it was measured"), names),
    )
    with job.open(lambda _rows: None, argument="texts") as run:
        for kind in kinds:
            with pytest.raises(ShapeError, match=rf"texts: its batch of 4 sequences, 's0', 's1'..., holds {count};"):
                kind(run)
