"""Training modules by consensus: a step is CBO on the batch's loss, and the module is left alone until told."""

import math

import pytest
import torch
from torch import nn

from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.optim import CBO, ModuleCBO, consensus_point

DATA = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
LABELS = (DATA[:, 0] > 0).long()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def trainer(module, **options):
    return ModuleCBO(module, nn.functional.cross_entropy, generator=seeded(1), **options)


def losses(module, vectors):
    kept = [p.detach().clone() for p in module.parameters()]
    found = []
    for vector in vectors:
        nn.utils.vector_to_parameters(vector, module.parameters())
        found.append(nn.functional.cross_entropy(module(DATA), LABELS).detach())
    for p, value in zip(module.parameters(), kept, strict=True):
        p.data = value
    return torch.stack(found)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_a_step_is_cbo_on_the_loss_of_the_batch(chunk_size):
    """Oracle: `CBO` on losses that a loop writes into the module, parameter vector by parameter vector."""
    module = network()
    ours = trainer(module, num_particles=12, batch_size=4, chunk_size=chunk_size)
    loop = CBO(
        lambda x: losses(module, x),
        torch.zeros(26),
        num_particles=12,
        batch_size=4,
        sigma=math.sqrt(0.4),
        alpha=50.0,
        kick_below=1e-5,
        generator=seeded(1),
    )
    for _ in range(3):
        ours.step(DATA, LABELS)
        loop.step()
    torch.testing.assert_close(ours.cbo.x, loop.x)


def test_the_module_changes_when_told():
    """Oracle: the consensus of all particles on the last batch, by the loop's losses."""
    module = network()
    before = nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    ours = trainer(module, num_particles=12, batch_size=4)
    with pytest.raises(ArgumentError, match="before the first step"):
        ours.load_consensus()
    ours.step(DATA, LABELS)
    assert torch.equal(nn.utils.parameters_to_vector(module.parameters()), before)
    expected = consensus_point(ours.cbo.x[0], losses(module, ours.cbo.x[0]), 50.0)
    ours.load_consensus()
    torch.testing.assert_close(nn.utils.parameters_to_vector(module.parameters()).detach(), expected)


def test_epochs_cool_and_drop_particles():
    """Oracle: α = 50 · 2^e, σ = σ₀ / log₂(e + 2), and fewer particles as the cloud contracts."""
    ours = trainer(network(), num_particles=100, reduction=0.2)
    ours.fit([(DATA, LABELS)] * 10, num_epochs=3)
    assert ours.cbo.alpha.item() == 400.0
    assert ours.cbo.sigma == pytest.approx(math.sqrt(0.4) / math.log2(5))
    assert 10 <= ours.cbo.num_particles < 100
    assert ours.cbo.num_particles % 10 == 0
    with pytest.raises(ArgumentError, match="num_epochs >= 1"):
        ours.fit([], num_epochs=0)


@pytest.mark.parametrize("full_moves", [False, True])
def test_learns_what_has_no_gradient(full_moves):
    """Oracle: the labels; the loss is the share of wrong answers, whose gradient is zero."""

    def wrong(outputs, labels):
        return (outputs.argmax(-1) != labels).double().mean()

    module = nn.Linear(3, 2)
    ours = ModuleCBO(module, wrong, full_moves=full_moves, generator=seeded(0))
    ours.fit([(DATA, LABELS)] * 2, num_epochs=15)
    ours.load_consensus()
    assert float((module(DATA).argmax(-1) == LABELS).double().mean()) > 0.9


def test_resumes_bit_for_bit():
    """Oracle: the run that was not interrupted."""
    batches = [(DATA[:20], LABELS[:20]), (DATA[20:], LABELS[20:])]
    whole = trainer(network(), num_particles=20, reduction=0.2)
    whole.fit(batches, num_epochs=6)
    first = trainer(network(), num_particles=20, reduction=0.2)
    first.fit(batches, num_epochs=3)
    second = ModuleCBO(network(), nn.functional.cross_entropy, num_particles=20, reduction=0.2, generator=seeded(9))
    second.load_state_dict(first.state_dict())
    second.fit(batches, num_epochs=3)
    assert torch.equal(second.cbo.x, whole.cbo.x)
    assert second.num_epochs == whole.num_epochs


def test_starts_at_the_module():
    """Oracle: with no spread, the module's own parameters."""
    module = network()
    ours = trainer(module, spread=0.0, from_module=True)
    vector = nn.utils.parameters_to_vector(module.parameters()).detach()
    assert torch.equal(ours.cbo.x[0], vector.expand(100, -1))


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(4)])
def test_refuses_modules_that_change_or_guess(layer):
    """Oracle: eval mode is accepted, training mode is not."""
    module = nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2))
    with pytest.raises(ArgumentError, match="eval"):
        trainer(module)
    ours = trainer(module.eval())
    ours.step(DATA, LABELS)
    assert bool(torch.isfinite(ours.cbo.x).all())


def test_refuses_bad_arguments():
    """Oracle: the documented errors."""
    with pytest.raises(ArgumentError, match="no parameters"):
        trainer(nn.Tanh())
    with pytest.raises(ArgumentError, match="reduction"):
        trainer(network(), reduction=1.0)
    with pytest.raises(ArgumentTypeError, match="one dtype"):
        trainer(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2).double()))
