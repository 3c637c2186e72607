"""What a fit leaves on disk and holds in memory when factors are cut into blocks."""

import pytest
import torch

from hesse.curvature import BlockBasis
from hesse.influence.engine import Influence
from hesse.influence.factors import basis_of, basis_tensors, load_factors
from hesse.influence.objective import ClassificationLoss
from hesse.influence.run import open_folder
from tests.influence._tiny import points

QUIET = {"progress": False, "checkpoint_seconds": 0.0, "unit_size": 8}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(255, 256), torch.nn.Tanh(), torch.nn.Linear(256, 4)).double().eval()
    return model[:1].eval(), points(24, inputs=255, classes=256)


def bytes_of(bases) -> int:
    tensors = [t for basis in bases for t in basis_tensors(basis).values()]
    return sum(t.untyped_storage().nbytes() for t in tensors)


def test_four_blocks_take_a_quarter(net, tmp_path, monkeypatch):
    """Oracle: n²/4 numbers for bases in memory and on disk, and for the sums while they are collected."""
    model, data = net
    sizes = {}
    for blocks in (1, 4):
        folder, sums = tmp_path / str(blocks), []
        influence = Influence(model, modules="all-linear", loss=ClassificationLoss(), blocks=blocks, allow_head=True)
        from hesse.influence import fit

        real = fit.save_tensors

        def save(path, tensors, real=real, sums=sums):
            if path.parent.name.startswith("cov-"):
                sums.append(sum(t.numel() for t in tensors.values()))
            return real(path, tensors)

        with monkeypatch.context() as patch:
            patch.setattr(fit, "save_tensors", save)
            influence.fit(data, folder, **QUIET)
        run = open_folder(folder)
        layer = load_factors(folder, run.manifest)["0"]
        assert isinstance(layer.left, BlockBasis) == isinstance(layer.right, BlockBasis) == (blocks > 1)
        kept = [basis for basis in (layer.left, layer.right) if basis is not None]
        on_disk = sum(entry.size for name, entry in run.manifest.files.items() if name.startswith("eig/"))
        sizes[blocks] = max(sums), bytes_of(kept), on_disk
        gradient = torch.randn(256, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        left, right = (basis if isinstance(basis, torch.Tensor) else basis.dense() for basis in kept)
        assert layer.table is not None
        dense = left @ ((left.T @ gradient @ right) / (layer.table + layer.damping)) @ right.T
        torch.testing.assert_close(layer.precondition(gradient), dense)
    assert sizes[1][0] == 256 * 256
    assert [part * 4 for part in sizes[4][:2]] == list(sizes[1][:2])
    assert sizes[4][2] <= 0.27 * sizes[1][2]  # beside eigenvalues and heads


def test_bases_and_their_names():
    """Oracle: a round trip."""
    whole = torch.eye(3)
    assert basis_of(basis_tensors(whole)) is whole
    blocks = BlockBasis((torch.eye(2), torch.eye(1)))
    read = basis_of(basis_tensors(blocks))
    assert isinstance(read, BlockBasis)
    assert torch.equal(read.dense(), whole)
