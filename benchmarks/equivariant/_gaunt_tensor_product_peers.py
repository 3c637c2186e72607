"""e3nn's products over chosen paths, on features laid out as hesse's: the peer of every claim about Gaunt products."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import pi, sqrt
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.peers import require_peer
from hesse.equivariant.gaunt import from_e3nn, gaunt_coefficients, to_e3nn

__all__ = ["e3nn_product", "float64_by_default", "full_product", "gaunt_product_of_e3nn", "harmonics_of_e3nn", "irreps"]

Paths = Literal["even", "odd"]


@contextmanager
def float64_by_default() -> Iterator[None]:
    """e3nn keeps its tables in torch's default type, whatever the type of its inputs."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def irreps(l_max: int, channels: int = 1, *, pseudo: bool = False) -> str:
    """Natural parity, (-1)^l, or the other; e3nn's string."""
    return "+".join(f"{channels}x{degree}{'eo'[(degree + pseudo) % 2]}" for degree in range(l_max + 1))


def _triples(l1: int, l2: int, l3: int, paths: Paths) -> list[tuple[int, int, int]]:
    return [
        (a, b, c)
        for a in range(l1 + 1)
        for b in range(l2 + 1)
        for c in range(abs(a - b), min(a + b, l3) + 1)
        if (a + b + c) % 2 == (paths == "odd")
    ]


def e3nn_product(l1: int, l2: int, l3: int, channels: int = 1, *, paths: Paths = "even", pseudo: bool = False) -> Any:
    """Channel by channel, all even or all odd paths, summed into one output a degree, without weights.

    ``pseudo``: the first factor has the other parity.
    """
    o3 = require_peer("e3nn.o3")
    return o3.TensorProduct(
        irreps(l1, channels, pseudo=pseudo),
        irreps(l2, channels),
        irreps(l3, channels, pseudo=pseudo != (paths == "odd")),
        [(*triple, "uuu", False) for triple in _triples(l1, l2, l3, paths)],
    )


def gaunt_product_of_e3nn(l1: int, l2: int, l3: int) -> Callable[[Tensor, Tensor], Tensor]:
    """e3nn's product with the constants that make it Gaunt's, in float64; signs of blocks are looked up."""
    o3, wigner = require_peer("e3nn.o3"), require_peer("sympy.physics.wigner")
    triples, weights = _triples(l1, l2, l3, "even"), []
    for a, b, c in triples:
        size = sqrt((2 * a + 1) * (2 * b + 1) * (2 * c + 1) / (4 * pi)) * abs(float(wigner.wigner_3j(a, b, c, 0, 0, 0)))
        same = float((gaunt_coefficients(a, b, c) * o3.wigner_3j(a, b, c, dtype=torch.float64)).sum())
        weights.append(size if same > 0 else -size)
    with float64_by_default():
        product = o3.TensorProduct(
            irreps(l1),
            irreps(l2),
            irreps(l3),
            [(*triple, "uuu", True) for triple in triples],
            irrep_normalization="none",
            path_normalization="none",
            internal_weights=False,
            shared_weights=True,
        )
    weight = torch.tensor(weights, dtype=torch.float64)
    return lambda x, y: product(x, y, weight)


def full_product(l_max: int) -> Any:
    """Every path into an output of its own."""
    o3 = require_peer("e3nn.o3")
    return o3.FullTensorProduct(irreps(l_max), irreps(l_max))


def harmonics_of_e3nn(l_max: int, vectors: Tensor) -> Tensor:
    """Orthonormal harmonics of the directions."""
    o3 = require_peer("e3nn.o3")
    return o3.spherical_harmonics(list(range(l_max + 1)), vectors, True, "integral")


class LaidOut(torch.nn.Module):
    """`e3nn_product` between features of shape (..., C, K)."""

    def __init__(
        self, l1: int, l2: int, l3: int, channels: int, *, paths: Paths = "even", pseudo: bool = False
    ) -> None:
        super().__init__()
        self.product = e3nn_product(l1, l2, l3, channels, paths=paths, pseudo=pseudo)
        self.first, self.second = irreps(l1, channels, pseudo=pseudo), irreps(l2, channels)
        self.parity_first = -1 if pseudo else 1
        changed = pseudo != (paths == "odd")
        self.third, self.parity_third = irreps(l3, channels, pseudo=changed), -1 if changed else 1

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        first = to_e3nn(self.first, x, parity=self.parity_first)
        return from_e3nn(
            self.third, self.product(first, to_e3nn(self.second, y.expand_as(x))), parity=self.parity_third
        )
