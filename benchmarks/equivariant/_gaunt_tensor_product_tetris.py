"""Eight shapes of four blocks, two of them mirror images, and networks that tell them apart in any orientation.

Shapes: S shapes, N = 4 blocks, C channels, K = 9 coefficients of degrees 0 to 2.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.equivariant._gaunt_tensor_product_peers import LaidOut
from hesse.equivariant.gaunt import (
    DegreeLinear,
    antisymmetric_tensor_product,
    gaunt_convolution,
    gaunt_tensor_product,
    spherical_harmonics,
)

__all__ = ["MIRROR_PAIR", "Flavour", "TetrisNet", "blocks", "random_rotations", "train"]

Flavour = Literal["gaunt", "gaunt and antisymmetric", "e3nn"]
DEGREE, CHANNELS, STEPS = 2, 8, 300
MIRROR_PAIR = (0, 1)
_BLOCKS = (
    ((0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 1, 0)),  # the first two are mirror images that no rotation makes equal
    ((0, 0, 0), (0, 0, 1), (1, 0, 0), (1, -1, 0)),
    ((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)),  # square
    ((0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3)),  # line
    ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)),  # corner
    ((0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0)),  # L
    ((0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 1)),  # T
    ((0, 0, 0), (1, 0, 0), (1, 1, 0), (2, 1, 0)),  # zigzag
)


def blocks() -> Tensor:
    """Centres of the blocks, (8, 4, 3)."""
    return torch.tensor(_BLOCKS, dtype=torch.float64)


def random_rotations(count: int, generator: torch.Generator) -> Tensor:
    """Uniform on SO(3): the orthogonal factor of a Gaussian matrix with the signs of its triangle, made proper."""
    q, r = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=torch.float64))
    q = q * torch.diagonal(r, dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return q * torch.linalg.det(q)[:, None, None]


class TetrisNet(nn.Module):
    """Two rounds of messages between all blocks, products in between and at the end, sums over blocks.

    Features of natural parity are joined by pseudo-features unless the flavour is "gaunt". The flavours with both have
    the same parameters; they differ in the weights of the paths: Gaunt's or Poisson's, or e3nn's.
    """

    def __init__(self, flavour: Flavour, generator: torch.Generator) -> None:
        super().__init__()
        self.flavour: Flavour = flavour
        self.pseudo = flavour != "gaunt"

        def linear() -> DegreeLinear:
            return DegreeLinear(DEGREE, CHANNELS, CHANNELS, generator=generator)

        def dense(inputs: int, outputs: int) -> nn.Linear:
            layer = nn.Linear(inputs, outputs)
            with torch.no_grad():
                layer.weight.copy_(torch.randn(outputs, inputs, generator=generator) / inputs**0.5)
                layer.bias.copy_(torch.randn(outputs, generator=generator))
            return layer

        self.radial = nn.ModuleList(
            nn.Sequential(dense(1, 16), nn.Tanh(), dense(16, CHANNELS * (DEGREE + 1))) for _ in range(2)
        )
        self.mix = nn.ModuleList(linear() for _ in range(5))
        self.classes = nn.Linear(2 * CHANNELS, 8)
        if self.pseudo:
            self.mix_pseudo = nn.ModuleList(linear() for _ in range(3))
            self.classes_pseudo = nn.Linear(2 * CHANNELS, 8, bias=False)
        if flavour == "e3nn":
            size = (DEGREE, DEGREE, DEGREE, CHANNELS)
            self.even, self.even_pseudo = LaidOut(*size), LaidOut(*size, pseudo=True)
            self.odd = LaidOut(*size, paths="odd")
        self.double()

    def forward(self, positions: Tensor) -> Tensor:
        """(S, 4, 3) -> logits (S, 8)."""
        # from every block to each of the three others
        receivers, senders = zip(*[(i, j) for i in range(4) for j in range(4) if i != j], strict=True)
        vectors = (positions[:, senders] - positions[:, receivers]).unflatten(1, (4, 3))  # (S, N, 3, 3)
        lengths = vectors.norm(dim=-1, keepdim=True)
        x = positions.new_zeros(*vectors.shape[:-1], CHANNELS, (DEGREE + 1) ** 2)
        x[..., 0] = 1.0
        a = self._messages(x, vectors, lengths, 0)
        first, second = self.mix[0](a), self.mix[1](a)
        b = self.mix[2](a) + self._even(first, second)
        c = self._messages(self._to_edges(b, senders), vectors, lengths, 1)
        left, right = self.mix[3](c), self.mix[4](c)
        scalars = torch.cat([c[..., 0], self._even(left, right)[..., 0]], -1).sum(1)
        logits = self.classes(scalars)
        if self.pseudo:
            p = self.mix_pseudo[0](self._odd(first, second))
            q = self._messages(self._to_edges(p, senders), vectors, lengths, 1, pseudo=True)
            q = q + self.mix_pseudo[1](self._odd(left, right))
            product = self._even(self.mix_pseudo[2](q), right, pseudo=True)
            logits = logits + self.classes_pseudo(torch.cat([q[..., 0], product[..., 0]], -1).sum(1))
        return logits

    @staticmethod
    def _to_edges(x: Tensor, senders: tuple[int, ...]) -> Tensor:
        return x[:, senders].unflatten(1, (4, 3))

    def _messages(self, x: Tensor, vectors: Tensor, lengths: Tensor, layer: int, *, pseudo: bool = False) -> Tensor:
        h = self.radial[layer](lengths).unflatten(-1, (CHANNELS, DEGREE + 1))
        if self.flavour == "e3nn":
            degrees = [0, 1, 1, 1, 2, 2, 2, 2, 2]
            y = spherical_harmonics(DEGREE, vectors).unsqueeze(-2) * h[..., degrees]
            return self._even(x, y, pseudo=pseudo).sum(2)
        return gaunt_convolution(x, vectors, h, DEGREE, DEGREE, DEGREE).sum(2)

    def _even(self, x: Tensor, y: Tensor, *, pseudo: bool = False) -> Tensor:
        if self.flavour == "e3nn":
            return (self.even_pseudo if pseudo else self.even)(x, y)
        return gaunt_tensor_product(x, y, DEGREE, DEGREE, DEGREE)

    def _odd(self, x: Tensor, y: Tensor) -> Tensor:
        if self.flavour == "e3nn":
            return self.odd(x, y)
        return antisymmetric_tensor_product(x, y, DEGREE, DEGREE, DEGREE)


def train(flavour: Flavour, seed: int) -> TetrisNet:
    """Fit the eight shapes in one orientation each, by full-batch Adam."""
    net = TetrisNet(flavour, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for layer in (net.classes, getattr(net, "classes_pseudo", None)):
            if layer is not None:
                layer.weight.zero_()  # all classes alike at the start
    net.classes.bias.data.zero_()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    positions, labels = blocks(), torch.arange(8)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(positions), labels)
        loss.backward()
        optimizer.step()
    return net
