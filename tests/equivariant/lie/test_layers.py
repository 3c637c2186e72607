"""Lifting, group convolution, projection and norm."""

import pytest
import torch

from hesse.equivariant.lie import SO, GLPlus, GroupSamples, LieConv2d, LieLift2d, LieProject, RMSNormG, SampleContext
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.testing import check_layer

F64 = torch.float64
G = GLPlus(2)


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def _draw(count=4, *, group=G):
    return SampleContext(group, num_samples=count, sampling="independent").draw(2, generator=_seeded(), dtype=F64)


def _randn(*shape, seed=0):
    return torch.randn(*shape, generator=_seeded(seed), dtype=F64)


def test_lifting_is_its_sum():
    """Oracle: the formula in a loop over elements, pixels and channels."""
    layer = LieLift2d(G, 2, 3, 5, padding=2, generator=_seeded()).double()
    part, _ = _draw()
    x = _randn(1, 2, 6, 6)
    found = layer(x, part)
    assert found.shape == (1, 3, 4, 6, 6)
    wanted = torch.zeros_like(found)
    for i in range(4):
        for dy in range(5):
            for dx in range(5):
                y = torch.tensor([(2 * dx + 1) / 5 - 1, (2 * dy + 1) / 5 - 1], dtype=F64)
                k = layer.kernel((part.h_inv[i] @ y)[None, None], None)[0, 0] / torch.linalg.det(part.h[i])
                moved = torch.nn.functional.pad(x, (2, 2, 2, 2))[:, :, dy : dy + 6, dx : dx + 6]
                wanted[:, :, i] += torch.einsum("oc,bchw->bohw", k, moved)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kernel", ["basis", "siren"])
def test_full_group_convolution_is_its_sum(kernel):
    """Oracle: the formula in a loop over pairs of elements and pixels; the determinant belongs to the inputs."""
    layer = LieConv2d(G, 2, 3, 3, separable=False, spread=True, kernel=kernel, generator=_seeded()).double()
    inputs, outputs = _draw(3)
    inputs = inputs._replace(weight=torch.tensor([0.5, 1.0, 1.5], dtype=F64))
    x = _randn(2, 2, 3, 5, 5)
    found = layer(x, inputs, outputs)
    wanted = torch.zeros(2, 3, 3, 5, 5, dtype=F64)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    for i in range(3):
        for j in range(3):
            scale = inputs.weight[j] / 3 / torch.linalg.det(inputs.h[j])
            relative = (outputs.h_inv[i] @ inputs.h[j])[None, None]
            for dy in range(3):
                for dx in range(3):
                    y = torch.tensor([(2 * dx + 1) / 3 - 1, (2 * dy + 1) / 3 - 1], dtype=F64)
                    k = layer.mixing((outputs.h_inv[i] @ y)[None, None], relative)[0, 0, 0] * scale
                    moved = padded[:, :, j, dy : dy + 5, dx : dx + 5]
                    wanted[:, :, i] += torch.einsum("oc,bchw->bohw", k, moved)
    torch.testing.assert_close(found, wanted)


def test_separable_group_convolution_is_two():
    """Oracle: a convolution with the product kernel k₂(h_i⁻¹y) K₁(h_i⁻¹h_j) written out."""
    layer = LieConv2d(G, 2, 3, 5, spread=True, generator=_seeded()).double()
    inputs, outputs = _draw(3)
    x = _randn(2, 2, 3, 6, 6)
    mixing, depthwise = layer.weights(inputs, outputs)
    assert mixing.shape == (9, 6, 1, 1)
    wanted = torch.nn.functional.conv2d(x.flatten(1, 2), mixing * depthwise, padding=2).unflatten(1, (3, 3))
    torch.testing.assert_close(layer(x, inputs, outputs), wanted)


def test_stride_is_a_blur_and_every_other_pixel():
    """Oracle: the layer of stride 1, blurred by [1, 3, 3, 1]/8 and subsampled."""
    plain, strided = (
        LieLift2d(G, 1, 2, 7, stride=stride, padding=5, generator=_seeded()).double() for stride in (1, 2)
    )
    part, _ = _draw()
    x = _randn(2, 1, 9, 9)
    blur = torch.tensor([1, 3, 3, 1], dtype=F64) / 8
    kernel = torch.outer(blur, blur).expand(8, 1, 4, 4)
    wanted = torch.nn.functional.conv2d(plain(x, part).flatten(1, 2), kernel, groups=8)[..., ::2, ::2]
    torch.testing.assert_close(strided(x, part).flatten(1, 2), wanted)


@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("kernel", ["basis", "siren"])
def test_quarter_turns_are_exact(kernel, separable):
    """Invariance: image and elements turned by 90°: the features turn, to round-off; invariants do not change."""
    options = {"kernel": kernel, "generator": _seeded()}
    lift = LieLift2d(G, 1, 3, 5, **options).double()
    conv = LieConv2d(G, 3, 2, 5, separable=separable, spread=True, **options).double()
    first, second = _draw()
    turn = torch.tensor([[0, -1], [1, 0]], dtype=F64)  # x right, y down: clockwise on the screen

    def moved(part):
        return GroupSamples(turn @ part.h, part.h_inv @ turn.mT, part.weight)

    x = _randn(2, 1, 8, 8)
    wanted = conv(lift(x, first), first, second)
    found = conv(lift(x.rot90(-1, (2, 3)), moved(first)), moved(first), moved(second))
    torch.testing.assert_close(found, wanted.rot90(-1, (3, 4)), rtol=0, atol=1e-12)
    torch.testing.assert_close(LieProject()(found), LieProject()(wanted), rtol=0, atol=1e-12)


def _gaussians(points, g=None):
    # a mixture of two Gaussians, deformed by g
    points = points if g is None else points @ torch.linalg.inv(g).mT
    centres = torch.tensor([[0.15, -0.1], [-0.3, 0.25]], dtype=F64)
    return sum(a * torch.exp(-(points - c).square().sum(-1) / 0.08) for a, c in zip((1.0, -0.7), centres, strict=True))


@pytest.mark.parametrize("kernel", ["basis", "siren"])
def test_lifting_commutes_with_deformations_in_the_continuum(kernel):
    """Invariance: f and f ∘ g⁻¹ at x = 0, outputs moved by g; the error vanishes as the grid becomes fine."""
    g = torch.tensor([[1.1, 0.15], [-0.1, 0.92]], dtype=F64)
    part, _ = _draw(4, group=SO(2))  # rotations: stretched by g alone, kernels fit their window
    moved = GroupSamples(g @ part.h, part.h_inv @ torch.linalg.inv(g), part.weight)
    errors = []
    for size in (9, 41):
        layer = LieLift2d(G, 1, 8, size, padding=0, kernel=kernel, generator=_seeded()).double()
        axis = (2 * torch.arange(size, dtype=F64) + 1) / size - 1
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        points = torch.stack([x, y], -1)
        plain = layer(_gaussians(points)[None, None], part)
        deformed = layer(_gaussians(points, g)[None, None], moved)
        errors.append(float(((plain - deformed).norm() / plain.norm()).detach()))
    assert errors[1] < 0.02
    assert errors[1] < errors[0]


def test_group_of_one_pixel_kernels():
    """Oracle: a 1 x 1 convolution over channels and elements, the same whether separable or not."""
    layers = [
        LieConv2d(G, 2, 3, 1, separable=separable, spread=True, generator=_seeded()).double()
        for separable in (True, False)
    ]
    inputs, _ = _draw()
    x = _randn(2, 2, 4, 3, 3)
    weight = (layers[0].mixing(None, inputs.h_inv[:, None] @ inputs.h) / 4).permute(2, 0, 3, 1).reshape(12, 8)
    wanted = torch.einsum("oi,bihw->bohw", weight, x.flatten(1, 2)).unflatten(1, (3, 4))
    for layer in layers:
        torch.testing.assert_close(layer(x, inputs), wanted)


def test_projection():
    """Oracle: the definitions, and that a frame of zeros does not matter where maxima are positive."""
    x = _randn(2, 3, 4, 5, 5)
    highest = x.flatten(2).max(-1).values
    means = x.flatten(3).max(-1).values.mean(-1)
    torch.testing.assert_close(LieProject("max")(x), highest)
    torch.testing.assert_close(LieProject("mean")(x), means)
    torch.testing.assert_close(LieProject()(x), torch.cat([highest, means], 1))
    framed = torch.nn.functional.pad(x.abs(), (2,) * 4)
    torch.testing.assert_close(LieProject()(framed), LieProject()(x.abs()))


class _Fixed(torch.nn.Module):
    """A layer with its samples bound, which take the dtype of the input."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        part = GroupSamples(*(tensor.to(x.dtype) for tensor in _draw()[0]))
        return self.layer(x, part)


@pytest.mark.parametrize(
    ("factory", "shape"),
    [
        (lambda: _Fixed(LieLift2d(G, 2, 3, 5)), (2, 6, 6)),
        (lambda: _Fixed(LieConv2d(G, 2, 2, 3, spread=True)), (2, 4, 5, 5)),
        (lambda: _Fixed(LieConv2d(G, 2, 2, 3, separable=False, kernel="siren")), (2, 4, 4, 4)),
        (lambda: RMSNormG(3), (3, 2, 4, 4)),
    ],
)
def test_conformance(factory, shape):
    """Oracle: what hesse asks of every layer."""
    check_layer(factory, shape)


def test_half_precision():
    """Oracle: float32. Kernels are sampled in it, the convolution runs in bfloat16."""
    layer = LieConv2d(SO(2), 4, 4, 3, generator=_seeded())
    part = SampleContext(SO(2)).draw(generator=_seeded())[0]
    x = torch.randn(2, 4, 8, 6, 6, generator=_seeded())
    found = layer(x.bfloat16(), part)
    assert found.dtype == torch.bfloat16
    wanted = layer(x, part)
    assert float(((found.float() - wanted).norm() / wanted.norm()).detach()) < 0.02
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.weights(part)[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: LieLift2d(G, 1, 2, 1), ArgumentError, "kernel_size"),
        (lambda: LieLift2d(G, 1, 2, stride=3), ArgumentError, "stride"),
        (lambda: LieLift2d(GLPlus(3), 1, 2), ArgumentError, "plane"),
        (lambda: LieLift2d("GL", 1, 2), ArgumentTypeError, "group"),
        (lambda: LieLift2d(G, 0, 2), ArgumentError, "in_channels"),
        (lambda: LieConv2d(G, 1, 2, kernel="mlp"), ArgumentError, "kernel"),
        (lambda: LieConv2d(G, 1, 2, padding=-1), ArgumentError, "padding"),
        (lambda: LieProject("sum"), ArgumentError, "pooling"),
        (lambda: LieProject()(torch.ones(2, 3, 4, 4)), ShapeError, "B, C, N, H, W"),
        (lambda: RMSNormG(0), ArgumentError, "num_channels"),
        (lambda: RMSNormG(3)(torch.ones(2, 4)), ShapeError, "RMSNormG"),
        (lambda: LieLift2d(G, 1, 2).double()(torch.ones(2, 3, 5, 5), _draw()[0]), ShapeError, "x of shape"),
        (lambda: LieConv2d(G, 1, 2).double()(torch.ones(2, 1, 3, 5, 5), _draw()[0]), ShapeError, "N = 4"),
        (lambda: LieConv2d(G, 1, 2).double()(torch.ones(2, 1, 4, 5, 5).int(), _draw()[0]), ArgumentTypeError, "x to"),
    ],
)
def test_refuses(call, error, match):
    """Oracle: what the docstrings raise, by name of the argument."""
    with pytest.raises(error, match=match):
        call()
