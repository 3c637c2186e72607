"""A module's per-sample gradients in the metric of its loss."""

import pytest
import torch
from torch import nn

from hesse.curvature.ggn import cross_entropy_hessian, ggn
from hesse.curvature.stability.linearise import linearise
from hesse.errors import ArgumentError, ArgumentTypeError, MemoryLimitError, ShapeError

F64 = torch.float64


def net(outputs=2, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).to(F64)


def points(n=7, outputs=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, dtype=F64, generator=generator), torch.randn(n, outputs, dtype=F64, generator=generator)


def gradient(loss_value, module):
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss_value, list(module.parameters()))])


def losses(name):
    return {
        "mse": nn.functional.mse_loss,
        "half_mse": lambda f, y: (f - y).square().sum() / (2 * len(y)),
        "cross_entropy": nn.functional.cross_entropy,
    }[name]


@pytest.mark.parametrize("name", ["mse", "half_mse", "cross_entropy"])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_features_and_residuals_make_gradient_and_loss(name, chunk_size):
    """Oracle: torch's own loss and its gradient by backpropagation."""
    module, (x, y) = net(), points()
    y = torch.tensor([0, 1, 1, 0, 1, 0, 0]) if name == "cross_entropy" else y
    found = linearise(module, (x, y), name, chunk_size=chunk_size)
    value = losses(name)(module(x), y)
    assert found.loss == pytest.approx(value.item(), rel=1e-12)
    product = (found.features * found.residuals.unsqueeze(2)).sum((0, 1)) / len(x)
    torch.testing.assert_close(product, gradient(value, module), rtol=1e-10, atol=1e-12)
    assert not found.features.requires_grad
    assert found.layout.names == tuple(n for n, _ in module.named_parameters())


def test_their_gram_matrix_is_gauss_newton():
    """Oracle: the ggn operator, for squared errors without residuals the Hessian that autograd forms."""
    module, (x, _) = net(), points()
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    a = linearise(module, (x, labels), "cross_entropy").features.flatten(0, 1)
    dense = ggn(lambda m, b: m(b), module, x, cross_entropy_hessian).to_dense().detach() / len(x)
    torch.testing.assert_close(a.mT @ a / len(x), dense, rtol=1e-10, atol=1e-12)

    shapes = {n: p.shape for n, p in module.named_parameters()}
    sizes = [p.numel() for p in module.parameters()]
    y = module(x).detach()

    def loss(flat):
        values = dict(
            zip(shapes, (v.view(s) for v, s in zip(flat.split(sizes), shapes.values(), strict=True)), strict=True)
        )
        return nn.functional.mse_loss(torch.func.functional_call(module, values, x), y)

    hessian = torch.autograd.functional.hessian(loss, torch.cat([p.detach().reshape(-1) for p in module.parameters()]))
    found = linearise(module, (x, y), "mse")
    a = found.features.flatten(0, 1)
    torch.testing.assert_close(a.mT @ a / len(x), hessian, rtol=1e-9, atol=1e-11)
    assert found.interpolation_residual == 0


def test_a_loader_is_joined_and_frozen_parameters_are_left_out():
    """Oracle: the same samples at once; the columns of the parameters that remain."""
    module, (x, y) = net(), points()
    whole = linearise(module, (x, y))
    pieces = linearise(module, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=3))
    torch.testing.assert_close(pieces.features, whole.features)
    module[0].requires_grad_(False)
    frozen = linearise(module, (x, y))
    torch.testing.assert_close(frozen.features, whole.features[:, :, 16:])


def test_preconditioner_divides_the_curvature():
    """Oracle: D^{-1/2} H D^{-1/2} formed."""
    module, data = net(), points()
    D = {name: torch.rand_like(p) + 0.5 for name, p in module.named_parameters()}
    plain = linearise(module, data).features.flatten(0, 1)
    found = linearise(module, data, preconditioner={k: v.detach() for k, v in D.items()}).features.flatten(0, 1)
    root = torch.cat([d.reshape(-1) for d in D.values()]).detach().rsqrt()
    torch.testing.assert_close(found.mT @ found, root.unsqueeze(1) * (plain.mT @ plain) * root)


def test_interpolation_residual_is_relative_to_the_spread():
    """Oracle: closed form; a constant target has no spread."""
    module, (x, _) = net(outputs=1), points()
    f = module(x).detach()
    y = f + 0.1 * f.std(unbiased=False)
    assert linearise(module, (x, y)).interpolation_residual == pytest.approx(0.1)
    assert linearise(module, (x, torch.zeros(7, dtype=F64))).interpolation_residual == float("inf")


def test_coupled_samples_and_chance_are_refused():
    """Oracle: the rule; batch normalisation in evaluation mode is an affine map and passes."""
    x, y = points()
    normalised = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(F64)
    with pytest.raises(ArgumentError, match="normalises by its batch"):
        linearise(normalised, (x, y))
    assert linearise(normalised.eval(), (x, y)).features.shape == (7, 2, 12)
    with pytest.raises(ArgumentError, match="normalises by its batch"):
        linearise(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)).to(F64).eval(), (x, y))
    with pytest.raises(ArgumentError, match="dropout"):
        linearise(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).to(F64), (x, y))


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    module, (x, y) = net(), points()
    with pytest.raises(ArgumentTypeError, match="module"):
        linearise(lambda z: z, (x, y))
    with pytest.raises(ArgumentError, match="loss"):
        linearise(module, (x, y), "hinge")
    with pytest.raises(ArgumentError, match="pairs"):
        linearise(module, 3)
    with pytest.raises(ArgumentTypeError, match="pairs"):
        linearise(module, [x, y, y])
    with pytest.raises(ShapeError, match="as many targets"):
        linearise(module, (x, y[:3]))
    with pytest.raises(ShapeError, match="targets"):
        linearise(module, (x, y[:, :1]))
    with pytest.raises(ShapeError, match="class numbers"):
        linearise(module, (x, y), "cross_entropy")
    with pytest.raises(MemoryLimitError, match="max_gib"):
        linearise(module, (x, y), max_gib=1e-9)
    with pytest.raises(ArgumentError, match="positive"):
        linearise(module, (x, y), preconditioner={n: torch.zeros_like(p) for n, p in module.named_parameters()})
    with pytest.raises(ArgumentError, match="missing"):
        linearise(module, (x, y), preconditioner={})
