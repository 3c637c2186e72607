"""The network of directions: shapes, scale, mask and size."""

import pytest
import torch

from hesse.pde.dcdm import (
    DCDMNet,
)
from tests.pde.dcdm.cases import obstacle, seeded


@pytest.mark.parametrize(
    ("grid", "levels"), [((16, 16), 1), ((15, 9), 1), ((13, 22), 3), ((7, 8, 9), 1), ((9, 6, 7), 2)]
)
def test_network_keeps_shape_scale_and_mask(grid, levels):
    """Oracle: the definition: shape of the input, the same direction for any scale, zero outside the mask, B apart."""
    network = DCDMNet(len(grid), 4, levels, generator=seeded(0)).double()
    r = torch.randn(3, *grid, dtype=torch.float64, generator=seeded(1))
    mask = obstacle(grid)
    r = torch.where(mask, r, 0)
    out = network(r, mask)
    assert out.shape == r.shape
    assert not bool(out[:, ~mask].any())
    torch.testing.assert_close(network(1e-9 * r, mask), out)
    torch.testing.assert_close(network(r[1:2], mask), out[1:2])
    assert bool(torch.isfinite(network(torch.zeros_like(r), mask)).all())


def test_architecture_has_the_papers_size():
    """Oracle: counting: 97.9 thousand weights in 3-D (the paper's 'about 1e5'), 32.7 thousand in 2-D."""
    count = {dim: sum(p.numel() for p in DCDMNet(dim).parameters()) for dim in (2, 3)}
    assert count == {2: 160 + 14 * 2320 + 17, 3: 448 + 14 * 6928 + 17}


def test_mask_channel_sees_the_mask():
    """Oracle: the same residual on two domains that both contain its support."""
    network = DCDMNet(2, 4, mask_channel=True, generator=seeded(0))
    r = torch.zeros(1, 12, 12)
    r[0, :3] = torch.randn(3, 12, generator=seeded(1))
    small = torch.zeros(12, 12, dtype=torch.bool)
    small[:3] = True
    large = small.clone()
    large[3:6] = True
    small_out, large_out = network(r, small)[0, :2], network(r, large)[0, :2]
    assert not torch.allclose(small_out / small_out.norm(), large_out / large_out.norm(), atol=1e-3)


def test_network_draws_from_its_generator_alone():
    """Oracle: torch's global generator stands where it stood; equal seeds, equal weights."""
    before = torch.get_rng_state()
    first, second = (DCDMNet(2, 4, generator=seeded(3)).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
