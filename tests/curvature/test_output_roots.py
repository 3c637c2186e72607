"""Square roots of output Hessians."""

import pytest
import torch

from hesse.curvature import bernoulli_hessian, cross_entropy_hessian, output_hessian_columns, squared_error_hessian
from hesse.errors import ArgumentError

F64 = torch.float64


@pytest.mark.parametrize(
    ("likelihood", "product"),
    [
        ("categorical", cross_entropy_hessian),
        ("bernoulli", bernoulli_hessian),
        ("gaussian", squared_error_hessian),
    ],
)
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (3, 1)])
def test_columns_sum_to_the_output_hessian(likelihood, product, shape):
    """Oracle: products with the Hessian in closed form, applied to unit vectors."""
    z = 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    columns = torch.stack(list(output_hessian_columns(z.requires_grad_(), likelihood)), -1)
    eye = torch.eye(shape[-1], dtype=F64)
    wanted = torch.stack([product(z.detach(), eye[c].expand(shape)) for c in range(shape[-1])], -1)
    torch.testing.assert_close(columns @ columns.mT, wanted, rtol=1e-12, atol=1e-14)
    assert not columns.requires_grad


def test_an_unknown_likelihood_is_refused():
    """Oracle: the error class and the choices in the message."""
    with pytest.raises(ArgumentError, match="bernoulli or gaussian"):
        next(output_hessian_columns(torch.zeros(2), "poisson"))
