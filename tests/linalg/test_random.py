import pytest
import torch

from hesse.linalg._random import gaussian_columns, sign_columns, sphere_columns

DRAWS = [gaussian_columns, sign_columns, sphere_columns]
CPU = torch.device("cpu")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("n", [1, 7, 1000])
def test_columns_do_not_depend_on_how_many_are_drawn(draw, n):
    """Oracle: invariance; five columns at once, and two and three."""
    whole = draw(n, 5, dtype=torch.float64, device=CPU, generator=seeded(0))
    g = seeded(0)
    pieces = [draw(n, k, dtype=torch.float64, device=CPU, generator=g) for k in (2, 3)]
    assert torch.equal(whole, torch.cat(pieces, dim=1))
    assert draw(n, 0, dtype=torch.float64, device=CPU).shape == (n, 0)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_isotropic(draw, dtype):
    """Oracle: E[z z^H] = I, within five standard errors over 4000 columns."""
    z = draw(4, 4000, dtype=dtype, device=CPU, generator=seeded(1))
    products = z.unsqueeze(1) * z.unsqueeze(0).conj()
    error = (products.mean(-1) - torch.eye(4, dtype=dtype)).abs()
    assert bool((error <= 5 * products.std(-1) / 4000**0.5 + 1e-12).all())


def test_half_precision_is_rounded_float32():
    """Oracle: the float32 draw with the same seed."""
    half = gaussian_columns(20, 3, dtype=torch.bfloat16, device=CPU, generator=seeded(2))
    full = gaussian_columns(20, 3, dtype=torch.float32, device=CPU, generator=seeded(2))
    assert torch.equal(half, full.to(torch.bfloat16))
