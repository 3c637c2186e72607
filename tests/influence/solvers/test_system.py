"""The damped Gauss-Newton matrix of the tracked weights, and what is solved with it, against dense matrices."""

import pytest
import torch
from torch import nn

from hesse.errors import ArgumentError, ShapeError
from hesse.influence import Influence, TokenExamples, as_examples, split_experts
from hesse.influence.factors import Factors, LayerFactors
from hesse.influence.objective import CausalLMLoss, ClassificationLoss, RegressionLoss
from hesse.influence.solvers import damped_ggn
from hesse.influence.solvers.system import output_hessian
from tests.influence._tiny import batches_of_one, classifier, decoder, gpt2, llama, points, spread, tokens

F64 = torch.float64


def loss_of(data):
    return ClassificationLoss() if isinstance(data, tuple) else CausalLMLoss()


def fitted(model, data, folder, **options):
    influence = Influence(model, loss=options.pop("loss", loss_of(data)), **options)
    return influence, influence.fit(data, folder / "run", progress=False)


def dense_system(model, data, influence, factors, loss=None):
    """A = (1/N) Σ JᵀHJ + diag(λ) in the order of stacked matrices, every row of J by torch.autograd.grad."""
    loss = loss or loss_of(data)
    names, parameters = zip(*model.named_parameters(), strict=True)
    size = sum(layer.out_features * layer.columns for layer in influence.layers.values())
    total, batches = torch.zeros(size, size, dtype=F64), batches_of_one(data)
    for batch in batches:
        output = loss(model, batch)
        for t in range(output.logits.shape[1]):
            if not bool(output.valid[0, t]):
                continue
            rows = []
            for logit in output.logits[0, t]:
                grads = torch.autograd.grad(logit, parameters, retain_graph=True, allow_unused=True)
                named = dict(zip(names, grads, strict=True))
                rows.append(
                    torch.cat([layer.matrix_from_grads(named).flatten() for layer in influence.layers.values()])
                )
            jacobian, p = torch.stack(rows), output.logits[0, t].detach().softmax(0)
            curve = torch.eye(len(p), dtype=F64) if isinstance(loss, RegressionLoss) else p.diag() - torch.outer(p, p)
            total += jacobian.T @ curve @ jacobian / len(batches)
    damping = [torch.full((layer.out_features * layer.columns,), factors[name].damping, dtype=F64)
               for name, layer in influence.layers.items()]  # fmt: skip
    return total + torch.cat(damping).diag()


def as_stacks(columns, layers):
    """(P, Q) in the order of `dense_system` to stacked matrices."""
    out, start = {}, 0
    for name, layer in layers.items():
        stop = start + layer.out_features * layer.columns
        out[name] = columns[start:stop].T.reshape(-1, layer.out_features, layer.columns)
        start = stop
    return out


def as_columns(stacks, layers):
    return torch.cat([stacks[name].flatten(1) for name in layers], 1).T


@pytest.mark.parametrize("build", [classifier, gpt2, llama])
def test_products_are_those_of_the_dense_matrix(build, tmp_path):
    """Oracle: JᵀHJ with the Jacobian of every supervised logit, one backward pass each, plus the factors' λ."""
    model = build()
    data = points(7) if build is classifier else tokens(3, high=5)
    influence, factors = fitted(model, data, tmp_path)
    system = damped_ggn(model, data, factors, loss=loss_of(data), batch_tokens=8)
    dense = dense_system(model, data, influence, factors)
    x = torch.randn(len(dense), 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    flat = system.flatten(as_stacks(x, influence.layers))
    with torch.no_grad():
        for columns in (1, 2):
            found = as_columns(system.unflatten(system.operator(columns=columns) @ flat), influence.layers)
            torch.testing.assert_close(found, dense @ x, rtol=1e-9, atol=1e-12)


def test_experts_of_a_mixture(tmp_path):
    """Oracle: the dense matrix, to 1e-6: the norms of transformers compute in float32 whatever the model's dtype."""
    torch.manual_seed(0)
    counts = {"num_hidden_layers": 1, "num_key_value_heads": 1, "num_local_experts": 3, "num_experts_per_tok": 2}
    model, data = split_experts(spread(decoder("Mixtral", **counts)).to(F64).eval()), tokens(3, high=5)
    influence, factors = fitted(model, data, tmp_path, fisher="empirical")
    dense = dense_system(model, data, influence, factors)
    system = damped_ggn(model, data, factors)
    x = torch.randn(len(dense), 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        product = system.operator() @ system.flatten(as_stacks(x, influence.layers))
    found = as_columns(system.unflatten(product), influence.layers)
    assert float((found - dense @ x).abs().max()) <= 1e-6 * float((dense @ x).abs().max())


def test_padding_prompts_and_packing_change_no_product(tmp_path):
    """Oracle: the dense matrix from one unpadded sequence at a time, the prompt of each not supervised."""
    model, rows = gpt2(), tokens(4, high=7)
    for row in rows:
        row["labels"] = [-100, -100, *row["input_ids"][2:]]
    influence, factors = fitted(model, rows, tmp_path, fisher="empirical")
    dense = dense_system(model, rows, influence, factors)
    x = torch.randn(len(dense), 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    for options in ({"side": "left"}, {"pack": True}):
        data = TokenExamples(as_examples(rows).sequences, **options)
        system = damped_ggn(model, data, factors)
        with torch.no_grad():
            product = system.operator() @ system.flatten(as_stacks(x, influence.layers))
        found = as_columns(system.unflatten(product), influence.layers)
        torch.testing.assert_close(found, dense @ x, rtol=1e-9, atol=1e-12)


def test_a_minibatch_is_the_mean_over_it(tmp_path):
    """Oracle: the dense matrix of those sequences alone."""
    net, (x, y) = classifier(), points(9)
    influence, factors = fitted(net, (x, y), tmp_path)
    part = [6, 1, 4]
    dense = dense_system(net, (x[part], y[part]), influence, factors)
    system = damped_ggn(net, (x, y), factors, loss=ClassificationLoss())
    eye = system.flatten(as_stacks(torch.eye(len(dense), dtype=F64), influence.layers))
    with torch.no_grad():
        found = as_columns(system.unflatten(system.operator(numbers=part) @ eye), influence.layers)
    torch.testing.assert_close(found, dense, rtol=1e-9, atol=1e-12)


def test_output_hessians_of_other_losses(tmp_path):
    """Oracle: the dense matrix with H = I for squared error; for a loss of one's own, the sum over its cotangents."""
    net, (x, _) = classifier(), points(5)
    data = (x, torch.randn(5, 3, dtype=F64))
    influence, factors = fitted(net, data, tmp_path, loss=RegressionLoss(), fisher="exact")
    dense = dense_system(net, data, influence, factors, RegressionLoss())
    system = damped_ggn(net, data, factors, loss=RegressionLoss())
    eye = system.flatten(as_stacks(torch.eye(len(dense), dtype=F64), influence.layers))
    with torch.no_grad():
        torch.testing.assert_close(as_columns(system.unflatten(system.operator() @ eye), influence.layers), dense)

    class Own:
        def cotangents(self, logits, valid):
            yield from ClassificationLoss().cotangents(logits, valid)

    logits = torch.randn(4, 1, 3, dtype=F64)
    tangent = torch.randn(4, 1, 3, dtype=F64)
    wanted = output_hessian(ClassificationLoss())(logits, tangent, None)
    torch.testing.assert_close(output_hessian(Own())(logits, tangent, None), wanted)


def test_an_expert_that_nothing_reached_takes_no_part():
    """Oracle: the layout without it, whose λ is infinite."""
    net = classifier()
    tables = {"0": torch.ones(6, 6, dtype=F64), "2": torch.ones(3, 7, dtype=F64)}
    factors = Factors(
        {"0": LayerFactors(None, None, tables["0"], 0.1), "2": LayerFactors(None, None, tables["2"], float("inf"))},
        5,
        1.0,
        {},
    )
    system = damped_ggn(net, points(5), factors, loss=ClassificationLoss())
    assert list(system.layers) == ["0"]
    assert system.layout.names == ("0.weight", "0.bias")
    assert bool(torch.isfinite(system.damping).all())


def test_refusals(tmp_path):
    """Oracle: the message names the argument."""
    net, data = classifier(), points(6)
    influence, factors = fitted(net, data, tmp_path)
    system = damped_ggn(net, data, factors, loss=ClassificationLoss())
    first = next(iter(influence.layers))
    with pytest.raises(ArgumentError, match="gradients: no layer"):
        system.flatten({first: torch.zeros(2, 6, 6)})
    with pytest.raises(ShapeError, match="gradients: layer '0' is"):
        system.flatten({name: torch.zeros(6, 6) for name in influence.layers})
    with pytest.raises(ArgumentError, match="no layer '2'; they belong to another model"):
        damped_ggn(nn.Sequential(nn.Linear(5, 6)).eval(), data, factors)
    with pytest.raises(ArgumentError, match="expected float32 or float64"):
        damped_ggn(classifier(torch.bfloat16), data, factors)
    with pytest.raises(ArgumentError, match=r"call model.eval\(\) first"):
        damped_ggn(classifier().train(), data, factors)
    plain = Factors({name: LayerFactors(None, None, None, 0.0) for name in influence.layers}, 6, 1.0, {})
    with pytest.raises(ArgumentError, match="'identity' have no damping"):
        damped_ggn(net, data, plain)
