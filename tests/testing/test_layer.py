"""The conformance suite of layers against layers that break one known promise each."""

import pytest
import torch
from torch import nn

from hesse.errors import ArgumentError
from hesse.testing import ConformanceError, check_layer


class Honest(nn.Module):
    """A bilinear layer with a buffer, which keeps every promise."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 2))
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x, y):
        return torch.einsum("bi,bj,oij->bo", x, y, self.weight).tanh() + self.shift


SHAPES = ((3,), (2,))


def test_an_honest_layer_passes():
    """Oracle: the count promised in the docstring."""
    assert len(check_layer(Honest, *SHAPES)) == 14


@pytest.mark.parametrize(
    ("factory", "shape"),
    [
        (lambda: nn.Linear(5, 2), (5,)),
        (lambda: nn.Conv2d(2, 3, 3), (2, 6, 6)),
        (lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU()), (7, 4)),
        (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (5, 4)),
    ],
)
def test_torchs_layers_pass(factory, shape):
    """Oracle: layers of torch that are known to be sound."""
    check_layer(factory, shape)


class Widens(Honest):
    def forward(self, x, y):
        return super().forward(x, y).double()


class Overflows(Honest):
    def forward(self, x, y):
        return super().forward(x, y) + 0 * (x.square().sum(1, keepdim=True)).exp()


class Jitters(Honest):
    def forward(self, x, y):
        return super().forward(x, y) + 1e-6 * torch.randn(4, dtype=x.dtype)


class Mixes(Honest):
    def forward(self, x, y):
        return super().forward(x - x.mean(0), y) if len(x) else super().forward(x, y)


class NeedsRows(Honest):
    def forward(self, x, y):
        x.max()
        return super().forward(x, y)


class Scribbles(Honest):
    def forward(self, x, y):
        output = super().forward(x, y)
        if not x.requires_grad:
            x[:, 0] = 0
        return output


class Reinterprets(Honest):
    def forward(self, x, y):
        return super().forward(torch.as_strided(x, (len(x), 3), (3, 1), x.storage_offset()), y)


class WrongSlope(Honest):
    def forward(self, x, y):
        return super().forward(x + x.detach(), y)


class Unused(Honest):
    def __init__(self):
        super().__init__()
        self.idle = nn.Parameter(torch.zeros(2))


class Forgets(Honest):
    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.randn(4), persistent=False)
        self.shift = self.shift + id(self) % 97


class Shares(Honest):
    def __deepcopy__(self, memo):
        return self


class Counts(Honest):
    def train(self, mode=True):
        self.shift = self.shift + float(mode)
        return super().train(mode)


class Hoards(Honest):
    def forward(self, x, y):
        output = super().forward(x, y)
        self.shift = self.shift + 0 * output.sum()
        return output


class Swallows(Honest):
    def forward(self, x, y):
        return super().forward(x[:, :3], y)


@pytest.mark.parametrize(
    ("layer", "check"),
    [
        (Widens, "keeps_dtype"),
        (Overflows, "is_finite"),
        (Jitters, "is_deterministic"),
        (Mixes, "rows_are_independent"),
        (NeedsRows, "empty_batch"),
        (Scribbles, "leaves_inputs"),
        (Reinterprets, "any_strides"),
        (WrongSlope, "input_gradients"),
        (Unused, "parameter_gradients"),
        (Forgets, "state_dict_round_trip"),
        (Shares, "deepcopy"),
        (Counts, "modes"),
        (Hoards, "keeps_no_graph"),
        (Swallows, "refuses_wrong_shapes"),
    ],
)
def test_each_broken_promise_is_named(layer, check):
    """Oracle: the one promise that the layer was written to break."""
    with pytest.raises(ConformanceError, match=rf"\n  {check}: "):
        check_layer(layer, *SHAPES)


def test_a_check_can_be_left_out():
    """Oracle: the failing check's name."""
    ran = check_layer(Swallows, *SHAPES, skip=["refuses_wrong_shapes"])
    assert "refuses_wrong_shapes" not in ran
    assert len(ran) == 13


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, "batch_size >= 2"),
        ({"skip": ["nothing"]}, "skip names no check: nothing"),
    ],
)
def test_bad_arguments_are_named(options, message):
    """Oracle: the message."""
    with pytest.raises(ArgumentError, match=message):
        check_layer(Honest, *SHAPES, **options)
    with pytest.raises(ArgumentError, match="input_shapes"):
        check_layer(Honest)
