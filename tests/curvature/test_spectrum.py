"""Spectra of curvature matrices against the dense matrix, and resumed runs against uninterrupted ones."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hesse.curvature.hessian import hessian
from hesse.curvature.spectrum import eigenvalue_density, sampled_diagonal, sampled_trace, top_eigenpairs
from hesse.errors import ArgumentError, ArgumentTypeError, ArtifactError
from hesse.io import verify_run
from hesse.linalg import Dense, hutchinson_diagonal, spectral_density

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def net_and_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(F64)
    x = torch.randn(20, 4, generator=seeded(1), dtype=F64)
    return model, (x, torch.randint(3, (20,), generator=seeded(2)))


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def small_hessian(**options):
    model, batch = net_and_batch()
    return hessian(loss_fn, model, batch, **options)


class DyingError(RuntimeError):
    pass


def dying(operator, products):
    """Make the operator raise in its n-th product, as a killed process would stop there."""
    matmat = operator._matmat
    count = 0

    def product(x):
        nonlocal count
        count += 1
        if count > products:
            raise DyingError
        return matmat(x)

    operator._matmat = product
    return operator


def until_done(call, operator, patience):
    """Restart a call that dies after ``patience`` products until it comes through; the result and the deaths."""
    deaths = 0
    while True:
        try:
            return call(dying(operator(), patience)), deaths
        except DyingError:
            deaths += 1
            assert deaths < 200


@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
def test_top_eigenpairs_are_those_of_the_dense_matrix(which):
    """Oracle: eigh of the dense float64 Hessian."""
    operator = small_hessian(keep_graph=True)
    dense = operator.to_dense()
    found = top_eigenpairs(operator, 4, which=which, generator=seeded())
    values = torch.linalg.eigvalsh(dense)
    order = values.abs().argsort() if which == "LM" else values.argsort(descending=which == "SA")
    torch.testing.assert_close(found.eigenvalues, values[order[-4:]].sort().values, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(dense @ found.eigenvectors, found.eigenvectors * found.eigenvalues, rtol=0, atol=1e-9)


def test_density_is_that_of_linalg():
    """Oracle: hesse.linalg.spectral_density of the dense matrix with the same probes; the mean eigenvalue."""
    operator = small_hessian(keep_graph=True)
    dense = Dense(operator.to_dense(), is_symmetric=True)
    found = eigenvalue_density(operator, num_probes=8, num_steps=20, generator=seeded(3))
    peer = spectral_density(dense, num_probes=8, num_steps=20, generator=seeded(3))
    torch.testing.assert_close(found.density, peer.density, rtol=1e-5, atol=1e-7)
    mean, error = found.integrate(lambda t: t)
    assert abs(float(mean) - float(dense.trace()) / len(dense.to_dense())) < 4 * float(error)


def test_trace_and_diagonal_are_hutchinsons():
    """Oracle: sampled diagonal, hesse.linalg with the same probes; trace, the sum of that diagonal's mean."""
    operator = small_hessian(keep_graph=True)
    dense = operator.to_dense()
    found = sampled_diagonal(operator, 30, chunk_size=4, generator=seeded(3))
    peer = hutchinson_diagonal(dense, 30, generator=seeded(3))
    torch.testing.assert_close(found.value, peer.value)
    torch.testing.assert_close(found.standard_error, peer.standard_error)
    total = sampled_trace(operator, 30, chunk_size=7, generator=seeded(3))
    torch.testing.assert_close(total.value, peer.value.sum())
    assert total.num_matvecs == 30


def test_the_standard_errors_are_honest():
    """Oracle: the dense trace; about 95 % of 200 runs lie within two standard errors, and the chi square of entries."""
    operator = Dense(small_hessian().to_dense().detach(), is_symmetric=True)
    exact = float(operator.trace())
    runs = [sampled_trace(operator, 64, chunk_size=64, generator=seeded(s)) for s in range(200)]
    hits = sum(abs(float(run.value) - exact) <= 2 * float(run.standard_error) for run in runs)
    assert 180 <= hits <= 200
    entries = [sampled_diagonal(operator, 64, chunk_size=64, generator=seeded(s)) for s in range(200)]
    scores = torch.stack([(e.value - operator.diagonal()) / e.standard_error for e in entries])
    assert 0.9 < float(scores.square().mean()) < 1.2  # t with 63 degrees of freedom: 63/61


def test_rtol_stops_early():
    """Oracle: the standard error asked for, and fewer probes than allowed."""
    operator = Dense(torch.diag(torch.arange(1.0, 41.0, dtype=F64)) + 0.1, is_symmetric=True)
    found = sampled_trace(operator, 1000, rtol=0.01, generator=seeded())
    assert 10 <= found.num_matvecs < 1000
    assert float(found.standard_error) <= 0.01 * float(found.value)


CALLS = {
    "eigenpairs": lambda operator, run: top_eigenpairs(operator, 3, basis_size=8, generator=seeded(5), run=run),
    "density": lambda operator, run: eigenvalue_density(
        operator, num_probes=5, num_steps=9, chunk_size=2, generator=seeded(5), run=run
    ),
    "trace": lambda operator, run: sampled_trace(operator, 21, chunk_size=2, generator=seeded(5), run=run),
    "diagonal": lambda operator, run: sampled_diagonal(operator, 21, chunk_size=2, generator=seeded(5), run=run),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("patience", [5, 8])
def test_a_run_killed_again_and_again_gives_the_same_bits(name, patience, tmp_path):
    """Oracle: the uninterrupted run without a folder, bit for bit."""
    whole = CALLS[name](small_hessian(keep_graph=True), None)
    found, deaths = until_done(
        lambda operator: CALLS[name](operator, tmp_path), lambda: small_hessian(keep_graph=True), patience
    )
    assert deaths >= 1
    for field in whole.__slots__:
        left, right = getattr(whole, field), getattr(found, field)
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right, field
    assert verify_run(tmp_path) == []


@pytest.mark.parametrize("name", CALLS)
def test_a_finished_run_costs_no_further_step(name, tmp_path):
    """Oracle: the same answer from an operator that dies after the products that check its identity."""
    first = CALLS[name](small_hessian(), tmp_path)
    again = CALLS[name](dying(small_hessian(), 2), tmp_path)
    for field in first.__slots__:
        left, right = getattr(first, field), getattr(again, field)
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right, field


def test_remains_of_an_interrupted_step_are_removed(tmp_path):
    """Oracle: the uninterrupted answer, and a folder that verifies."""
    whole = CALLS["trace"](small_hessian(), None)
    with pytest.raises(DyingError):
        CALLS["trace"](dying(small_hessian(), 4), tmp_path)
    (tmp_path / "state-000099.safetensors").write_bytes(b"half a file")
    found = CALLS["trace"](small_hessian(), tmp_path)
    assert torch.equal(found.value, whole.value)
    assert verify_run(tmp_path) == []


def test_a_run_of_something_else_is_refused(tmp_path):
    """Oracle: the error, for other settings, other parameters, other data and another kind."""
    CALLS["trace"](small_hessian(), tmp_path)
    with pytest.raises(ArtifactError, match="num_probes"):
        sampled_trace(small_hessian(), 12, chunk_size=2, run=tmp_path)
    with pytest.raises(ArtifactError, match="diagonal"):
        CALLS["diagonal"](small_hessian(), tmp_path)
    model, (x, y) = net_and_batch()
    with pytest.raises(ArtifactError, match="other data"):
        CALLS["trace"](hessian(loss_fn, model, (x + 0.01, y)), tmp_path)
    with torch.no_grad():
        model[0].weight.add_(1e-12)
    with pytest.raises(ArtifactError, match="another tensors"):
        CALLS["trace"](hessian(loss_fn, model, (x, y)), tmp_path)


def test_a_refused_call_leaves_the_folder_free(tmp_path):
    """Oracle: the right call in the same folder after a wrong one."""
    with pytest.raises(ArgumentError, match="1 <= k"):
        top_eigenpairs(small_hessian(), 0, run=tmp_path)
    assert len(top_eigenpairs(small_hessian(), 1, run=tmp_path).eigenvalues) == 1


def test_the_global_generator_seeds_a_run():
    """Oracle: equal numbers after torch.manual_seed, without a generator given."""
    values = []
    for _ in range(2):
        torch.manual_seed(3)
        values.append(sampled_trace(small_hessian(), 4).value)
    assert torch.equal(*values)


def test_nothing_leaves_a_graph():
    """Oracle: no result requires a gradient, although the parameters do."""
    operator = small_hessian()
    assert not sampled_trace(operator, 4).value.requires_grad
    assert not sampled_diagonal(operator, 4).value.requires_grad
    assert not top_eigenpairs(operator, 2, max_steps=20).eigenvectors.requires_grad
    assert not eigenvalue_density(operator, num_probes=2, num_steps=3).density.requires_grad


def test_bad_arguments_are_named():
    """Oracle: the error and the argument it names."""
    operator = small_hessian()
    with pytest.raises(ArgumentError, match="num_probes"):
        sampled_trace(operator, 1)
    with pytest.raises(ArgumentError, match="rtol"):
        sampled_trace(operator, 4, rtol=-1.0)
    with pytest.raises(ArgumentError, match="chunk_size"):
        sampled_diagonal(operator, 4, chunk_size=0)
    with pytest.raises(ArgumentError, match="sigma"):
        eigenvalue_density(operator, sigma=0.0)
    with pytest.raises(ArgumentError, match="num_steps"):
        eigenvalue_density(operator, num_steps=0)
    with pytest.raises(ArgumentError, match="1 <= k"):
        top_eigenpairs(operator, 0)
    with pytest.raises(ArgumentTypeError, match="real"):
        sampled_trace(Dense(torch.eye(3, dtype=torch.complex128)), 4)


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_spectrum import CALLS, small_hessian
operator = small_hessian(keep_graph=True)
matmat, count = operator._matmat, 0
def product(x):
    global count
    count += 1
    if count > 14:
        os.kill(os.getpid(), signal.SIGKILL)
    return matmat(x)
operator._matmat = product
CALLS["eigenpairs"](operator, {folder!r})
"""


def test_a_process_killed_outright_loses_one_step_at_most(tmp_path):
    """Oracle: SIGKILL in the middle of a product, then the uninterrupted run bit for bit."""
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert child.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("rows-*"))) >= 1
    whole = CALLS["eigenpairs"](small_hessian(keep_graph=True), None)
    found = CALLS["eigenpairs"](small_hessian(keep_graph=True), tmp_path)
    assert torch.equal(whole.eigenvectors, found.eigenvectors)
    assert whole.num_matvecs == found.num_matvecs
