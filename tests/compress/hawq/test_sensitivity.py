from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from hesse.compress.hawq import (
    LayerTraces,
    UniformQuantizer,
    activation_table,
    activation_traces,
    count_macs,
    joint_table,
    layer_traces,
    quadratic_table,
    sensitivity_table,
)
from hesse.curvature import ggn
from hesse.errors import ArgumentError, ShapeError
from tests.compress.hawq.cases import F64, cross_entropy, dense_block, seeded, small_batch, small_conv, trained


@pytest.fixture(scope="module")
def case():
    batch = small_batch()
    net = trained(small_conv(), batch, 600)
    return net, batch, layer_traces(net, cross_entropy, batch, matrix="ggn", generator=seeded(0))


def made_up(trace: list[float], numel: tuple[int, ...], gradient: float = 0.0) -> LayerTraces:
    names = ("0.weight", "3.weight", "5.weight")
    values = torch.tensor(trace, dtype=F64)
    return LayerTraces(names, numel, values, values.abs() / 10, (50,) * 3, torch.full((3,), gradient, dtype=F64))


def test_omega_is_average_trace_times_squared_error(case):
    """Oracle: the definition, for every weight and width, with the size in bits."""
    net, _, traces = case
    table = sensitivity_table(net, traces, [8, 3], UniformQuantizer(scale="max"))
    assert table.options == (3, 8)
    for i, (name, weight) in enumerate((n, p) for n, p in net.named_parameters() if n.endswith("weight")):
        for j, bits in enumerate(table.options):
            n = 2 ** (bits - 1) - 1
            scale = weight.abs().max() / n
            error = ((weight / scale).round() * scale - weight).square().sum().item()
            assert table.error[i, j] == pytest.approx(error, rel=1e-12)
            assert table.omega[i, j] == pytest.approx(traces.trace[i].item() / weight.numel() * error, rel=1e-12), name
            assert table.costs["size"][i, j] == bits * weight.numel()


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_quadratic_table_is_the_form_of_the_dense_block(case, matrix):
    """Oracle: ΔWᵀ H ΔW with the dense float64 block, clipped at 0."""
    net, batch, _ = case
    table = quadratic_table(net, cross_entropy, batch, (2, 4), matrix=matrix)
    parameters = dict(net.named_parameters())
    outer = ggn(lambda model, b: model(b[0]), net, batch)
    for i, name in enumerate(table.names):
        if matrix == "hessian":
            block = dense_block(net, cross_entropy, batch, name)
        else:
            block = outer.block([name]).to_dense().detach() / len(batch[1])
        weight = parameters[name].detach()
        for j, bits in enumerate(table.options):
            delta = (UniformQuantizer(bits).grid(weight).round_trip(weight) - weight).reshape(-1)
            assert table.omega[i, j] == pytest.approx(max(0.0, float(delta @ block @ delta)), rel=1e-9, abs=1e-15)


def test_prediction_is_the_expected_rise_for_errors_without_direction(case):
    """Oracle: finite perturbations. Mean loss rise of 400 random errors of one norm against t ‖Δ‖² / 2."""
    net, batch, _ = case
    name, size = "3.weight", 1e-3
    block = dense_block(net, cross_entropy, batch, name)
    weight = dict(net.named_parameters())[name].detach()
    start = cross_entropy(net, batch).item()
    rises = []
    for seed in range(400):
        delta = torch.randn(weight.shape, generator=seeded(seed), dtype=F64)
        delta *= size / delta.norm()
        pair = [
            cross_entropy(
                lambda x, shift=sign * delta: torch.func.functional_call(net, {name: weight + shift}, (x,)), batch
            )
            for sign in (1, -1)  # both signs: the gradient drops out
        ]
        rises.append((pair[0].item() + pair[1].item()) / 2 - start)
    rises = np.array(rises)
    predicted = block.trace().item() / weight.numel() * size**2 / 2
    assert abs(rises.mean() - predicted) <= 4 * rises.std() / 20


def test_activation_table_is_a_loop_over_examples(case):
    """Oracle: the mean over examples of the squared error of the input, tapped by hand."""
    net, batch, _ = case
    traces = activation_traces(net, cross_entropy, batch, num_probes=4, generator=seeded(1))
    with pytest.warns(UserWarning, match="negative") if bool((traces.trace < 0).any()) else nullcontext():
        table = activation_table(net, cross_entropy, batch, traces, (4, 8))
    for i, start in enumerate((0, 3, 5)):
        x = net[:start](batch[0]).detach()
        for j, bits in enumerate((4, 8)):
            grid = UniformQuantizer(bits, symmetric=False, scale="max").grid(x)
            mean = np.mean([float((grid.round_trip(e) - e).square().sum()) for e in x])
            assert table.error[i, j] == pytest.approx(mean, rel=1e-12)
            assert table.omega[i, j] == pytest.approx(max(0.0, traces.average[i].item()) * mean, rel=1e-12)


def test_joint_table_adds_omegas_and_multiplies_widths(case):
    """Oracle: by hand for every pair."""
    net, batch, traces = case
    macs = count_macs(net, cross_entropy, batch)
    weights = sensitivity_table(net, traces, (2, 8), macs=macs, activation_bits=4)
    assert weights.costs["bitops"][0, 0] == macs["0.weight"] * 2 * 4
    inputs = LayerTraces(
        ("0", "3", "5"), (36, 12, 8), torch.ones(3, dtype=F64), torch.zeros(3), (2,) * 3, torch.zeros(3)
    )
    activations = activation_table(net, cross_entropy, batch, inputs, (4, 6))
    table = joint_table(net, weights, activations, macs)
    assert table.options == ((2, 4), (2, 6), (8, 4), (8, 6))
    for i, name in enumerate(table.names):
        for j, (w, a) in enumerate(table.options):
            mine = weights.omega[i, weights.column(w)] + activations.omega[i, activations.column(a)]
            assert table.omega[i, j] == pytest.approx(mine)
            assert table.costs["bitops"][i, j] == macs[name] * w * a
    assert table.inputs == (("0", 36), ("3", 12), ("5", 8))
    with pytest.raises(ArgumentError, match="activation table"):
        joint_table(net, activations, weights, macs)


def test_negative_traces_and_large_gradients_are_reported(case):
    """Oracle: the documented warnings."""
    net, _, _ = case
    with pytest.warns(UserWarning, match="negative traces are taken as 0: 3.weight"):
        table = sensitivity_table(net, made_up([1.0, -1.0, 1.0], (27, 96, 24)))
    assert not table.omega[1].any()
    with pytest.warns(UserWarning, match="gradient"):
        sensitivity_table(net, made_up([1.0, 1.0, 1.0], (27, 96, 24), gradient=1e3))


def test_bad_input_is_refused(case):
    """Oracle: the documented errors."""
    net, _, traces = case
    table = sensitivity_table(net, traces, (2, 4))
    with pytest.raises(ArgumentError, match="different widths"):
        sensitivity_table(net, traces, (4, 4))
    with pytest.raises(ArgumentError, match="traces its own"):
        sensitivity_table(nn.Linear(2, 2), traces)
    with pytest.raises(ArgumentError, match="macs says nothing"):
        sensitivity_table(net, traces, macs={})
    with pytest.raises(ShapeError, match=r"\(3, 2\)"):
        table.with_cost("latency", np.ones((3, 3)))
    with pytest.raises(ArgumentError, match="not negative"):
        table.with_cost("latency", -np.ones((3, 2)))
    with pytest.raises(ArgumentError, match="finite"):
        table.with_omega(np.full((3, 2), np.nan))
    with pytest.raises(ArgumentError, match="no column"):
        table.column(3)
