"""An expert that sees some of the positions: its rows come back to their sequences."""

import pytest
import torch
from torch import nn

from hesse.curvature.capture import LayerStream, dgrad_only
from hesse.curvature.ekfac import sequence_gradients
from hesse.curvature.layers import select_layers
from hesse.curvature.routed import RoutedLinear
from hesse.errors import ShapeError

F64 = torch.float64
B, T = 3, 4


class Mixture(nn.Module):
    """Position (b, t) goes to expert ``route[b, t]``; of three experts."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([RoutedLinear(2, 3, dtype=F64) for _ in range(3)])

    def forward(self, x, route):
        flat, out = x.flatten(0, 1), x.new_zeros(x.shape[0] * x.shape[1], 3)
        for number, expert in enumerate(self.experts):
            rows = torch.where(route.flatten() == number)[0].flip(0)  # in no particular order
            out = out.index_add(0, rows, expert(flat[rows], rows))
        return out.view(*x.shape[:2], 3).sin()


@pytest.fixture
def case():
    torch.manual_seed(0)
    route = torch.randint(2, (B, T))
    route[0] = 0  # a sequence that one expert does not see; the third sees none at all
    return Mixture(), torch.randn(B, T, 2, dtype=F64), route


def captured(model, x, route, mask, padding=None, segments=None):
    seen = {}
    with (
        dgrad_only(model),
        LayerStream(select_layers(model, "all-linear"), lambda r: seen.__setitem__(r.layer.name, r)) as stream,
        stream.batch(segments),
    ):
        loss = model(x, route).sum()
        stream.positions(mask, padding)
        stream.backward(loss)
    return seen


def wanted(model, x, route):
    """Layer -> (p, m), by autograd, of the positions given."""
    loss = model(x, route).sum()
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    known = {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(model.named_parameters(), grads, strict=True)
    }
    return {name: layer.matrix_from_grads(known) for name, layer in select_layers(model, "all-linear").items()}


@pytest.mark.parametrize("side", ["none", "right", "left"])
def test_gradients_and_places_of_padded_rows(case, side):
    """Oracle: torch.autograd.grad of each sequence without its padding; places counted by hand from the route."""
    model, x, route = case
    lengths = [T, 2, 3]
    attended = torch.zeros(B, T, dtype=torch.bool)
    for b, n in enumerate(lengths if side != "none" else [T] * B):
        attended[b, T - n :] = True
        if side == "right":
            attended[b] = attended[b].flip(0)
    seen = captured(model, x, route, attended, ~attended)
    for b in range(B):
        alone = wanted(model, x[b : b + 1][:, attended[b]], route[b : b + 1][:, attended[b]])
        for name, rows in seen.items():
            torch.testing.assert_close(sequence_gradients(rows)[b], alone[name], rtol=1e-12, atol=1e-14)
            places = rows.places[b][rows.mask[b]]
            assert places.tolist() == torch.where(route[b][attended[b]] == int(name[-1]))[0].tolist()
            assert bool((rows.places[b][~rows.mask[b]] == -1).all())


def test_packed_documents(case):
    """Oracle: each document as a batch of its own."""
    model, x, route = case
    segments = torch.tensor([[0, 0, 1, 1], [2, 2, 2, -1], [3, 4, 4, 4]])
    seen = captured(model, x, route, segments >= 0, segments < 0, segments)
    for document in range(5):
        inside = segments == document
        alone = wanted(model, x[inside][None], route[inside][None])
        for name, rows in seen.items():
            torch.testing.assert_close(sequence_gradients(rows)[document], alone[name], rtol=1e-12, atol=1e-14)
            places = rows.places[document][rows.mask[document]]
            assert places.tolist() == torch.where(route[inside] == int(name[-1]))[0].tolist()


def test_without_positions_the_rows_cannot_be_told(case):
    """Oracle: the error names what is missing; the batch has to say its (B, T)."""
    with pytest.raises(ShapeError, match="is an expert"):
        captured(*case, None)
