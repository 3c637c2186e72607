"""Second derivatives of the losses against autograd, and inside the generalised Gauss-Newton operator."""

import pytest
import torch
from torch import nn

from hesse.curvature import ggn
from hesse.errors import ArgumentError, ShapeError
from hesse.nn.comp_sum import comp_sum_hessian, comp_sum_loss, comp_sum_output_hessian

F64 = torch.float64


def rows():
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(6, 4, generator=generator, dtype=F64), torch.randint(4, (6,), generator=generator)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.7, 2.0, 3.0])
def test_matrices_and_products(tau):
    """Oracle: autograd's Hessian of each row; products agree with the matrices."""
    h, y = rows()
    dense = torch.stack(
        [
            torch.autograd.functional.hessian(lambda x, label=label: comp_sum_loss(x, label, tau), row)
            for row, label in zip(h, y, strict=True)
        ]
    )
    torch.testing.assert_close(comp_sum_hessian(h, y, tau), dense, rtol=1e-10, atol=1e-12)
    tangent = h.flip(0)
    for psd in (False, True):
        product = comp_sum_output_hessian(tau, psd=psd)(h, tangent, (None, y))
        matrix = comp_sum_hessian(h, y, tau, psd=psd)
        torch.testing.assert_close(product, (matrix @ tangent.unsqueeze(-1)).squeeze(-1))


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.7, 3.0])
def test_signs(tau):
    """Oracle: eigenvalues. None is negative with ``psd``; without it some are where τ > 1."""
    h, y = rows()
    assert float(torch.linalg.eigvalsh(comp_sum_hessian(h, y, tau, psd=True)).min()) > -1e-12
    lowest = float(torch.linalg.eigvalsh(comp_sum_hessian(h, y, tau)).min())
    assert lowest < -1e-3 if tau > 1 else lowest > -1e-12


def test_as_output_hessian_of_ggn():
    """Oracle: the Hessian in the weights by autograd, which the operator equals for a linear model."""
    x, y = rows()
    model = nn.Linear(4, 4, bias=False, dtype=F64)

    def function(net, batch):
        return net(batch[0])

    for tau in (0.5, 1.7):
        output_hessian = comp_sum_output_hessian(tau, target_fn=lambda batch: batch[1], psd=False)
        operator = ggn(function, model, (x, y), output_hessian, is_psd=tau <= 1)
        dense = torch.autograd.functional.hessian(
            lambda flat, tau=tau: comp_sum_loss(x @ flat.view(4, 4).T, y, tau, reduction="sum"),
            model.weight.detach().flatten(),
        )
        torch.testing.assert_close(operator.to_dense().detach(), dense)


def test_bad_input():
    """Oracle: the documented errors."""
    h, y = rows()
    with pytest.raises(ArgumentError, match="tau"):
        comp_sum_output_hessian(-1.0)
    with pytest.raises(ArgumentError, match="tau"):
        comp_sum_hessian(h, y, -1.0)
    with pytest.raises(ShapeError, match="target"):
        comp_sum_hessian(h, y[:2])
