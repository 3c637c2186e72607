"""Atoms, matrices of roles, bundles, sequences and phrases."""

import hashlib
import math

import numpy as np
import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.testing import check_linear_operator
from hesse.vsa import Codebook, OrthogonalBinding, atom, bundle, encode_phrase, sequence_decode, sequence_encode
from hesse.vsa.mbat.atoms import gaussian_numbers, permutation, sign_rows

FAMILIES = ["signed_permutation", "hadamard", "haar"]


def vectors(count: int, dim: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, dim, dtype=dtype, generator=torch.Generator().manual_seed(0))


def test_draws_are_frozen():
    """Oracle: digests written down when the draws were fixed; vectors kept on disk depend on them."""
    frozen = {
        "signs": hashlib.sha256(sign_rows("atom", ["hesse", "é"], 1000).tobytes()).hexdigest()[:16],
        "order": hashlib.sha256(permutation("role order", "key name", 256).tobytes()).hexdigest()[:16],
        "normal": gaussian_numbers("number", "frequencies", 3).round(6).tolist(),
    }
    assert frozen == {
        "signs": "7119d8809ce5037d",
        "order": "f0ee9d07d2d340ad",
        "normal": [0.619189, -0.040992, 0.014153],
    }


def test_atoms_are_unit_and_nearly_orthogonal():
    """Oracle: 1/√D is the standard deviation of inner products of independent sign vectors; 200 atoms, all pairs."""
    atoms = torch.stack([atom(f"t{i}", 256, dtype=torch.float64) for i in range(200)])
    gram = atoms @ atoms.T
    torch.testing.assert_close(gram.diagonal(), torch.ones(200, dtype=torch.float64))
    pairs = gram[torch.triu_indices(200, 200, 1).unbind()]
    assert abs(float(pairs.std()) * 16 - 1) < 0.05
    assert abs(float(pairs.mean())) < 4 / 16 / len(pairs) ** 0.5
    assert torch.equal(atom("e\u0301"), atom("\u00e9"))  # the two ways to type é


def test_gaussian_numbers_have_their_moments():
    """Oracle: mean 0, variance 1 and fourth moment 3, within four standard errors of 20,000 draws."""
    x = gaussian_numbers("k", "t", 20_001)
    assert abs(x.mean()) < 4 / 141
    assert abs((x**2).mean() - 1) < 4 * math.sqrt(2) / 141
    assert abs((x**4).mean() - 3) < 4 * math.sqrt(96) / 141
    assert len(np.unique(x)) == 20_001


@pytest.mark.parametrize("family", FAMILIES)
def test_operators_are_orthogonal_and_agree_with_bind(family):
    """Oracle: the dense matrix, MᵀM = I, and the checks that every linear operator passes."""
    binding = OrthogonalBinding(64, family, dtype=torch.float64)
    operator = binding.operator("role")
    check_linear_operator(operator)
    dense = operator.to_dense()
    torch.testing.assert_close(dense.T @ dense, torch.eye(64, dtype=torch.float64))
    x = vectors(5, 64)
    torch.testing.assert_close(binding.bind("role", x), x @ dense.T)
    torch.testing.assert_close(binding.unbind("role", x), x @ dense)
    path = binding.operator(("a", "b", "c")).to_dense()
    parts = [binding.operator(role).to_dense() for role in "abc"]
    torch.testing.assert_close(path, parts[0] @ parts[1] @ parts[2])
    torch.testing.assert_close(binding.bind(("a", "b", "c"), x), x @ path.T)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unbind_undoes_bind_and_keeps_inner_products(family, dtype):
    """Oracle: the identity, at depth 20; exact for signed permutations."""
    binding = OrthogonalBinding(128, family, dtype=dtype)
    x = vectors(2, 128, dtype)
    roles = [f"r{i}" for i in range(20)]
    bound = binding.bind(roles, x)
    tolerance = {"rtol": 0, "atol": 0.0 if family == "signed_permutation" else 500 * torch.finfo(dtype).eps}
    torch.testing.assert_close(binding.unbind(roles, bound), x, **tolerance)
    torch.testing.assert_close(bound @ bound.T, x @ x.T, rtol=1e-4 if dtype == torch.float32 else 1e-12, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_binding_does_not_commute(family):
    """Oracle: cosine of M_a M_b v and M_b M_a v within four standard deviations, 4/√D, of 0."""
    binding = OrthogonalBinding(1024, family, dtype=torch.float64)
    v = atom("v", dtype=torch.float64)
    assert abs(float(binding.bind(("a", "b"), v) @ binding.bind(("b", "a"), v))) < 4 / 32


@pytest.mark.parametrize("family", FAMILIES)
def test_bind_is_differentiable(family):
    """Oracle: finite differences."""
    binding = OrthogonalBinding(8, family, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: binding.bind(("a", "b"), v), vectors(2, 8).requires_grad_())
    assert torch.autograd.gradcheck(lambda v: binding.unbind("a", v), vectors(2, 8).requires_grad_())


def test_sequences_and_phrases():
    """Oracle: the recursion written out, and reading back what was put in."""
    binding = OrthogonalBinding(1024)
    tokens = ["the", "smart", "girl", "saw", "the", "dog"]
    codebook = Codebook(sorted(set(tokens)) + [f"w{i}" for i in range(100)])
    state = sequence_encode([codebook.vector(token) for token in tokens], binding)
    powers = [binding.bind(["sequence"] * (5 - i), codebook.vector(token)) for i, token in enumerate(tokens)]
    torch.testing.assert_close(state, torch.stack(powers).sum(0))
    assert sequence_decode(state, 6, codebook, binding) == tokens
    phrase = [("actor", ["smart", "girl"]), ("object", [[("actor", ["dog"])], "saw"])]
    v = encode_phrase(phrase, binding)
    inner = binding.bind("actor", atom("dog")) + atom("saw")
    wanted = binding.bind("actor", atom("smart") + atom("girl")) + binding.bind("object", inner)
    torch.testing.assert_close(v, wanted)
    assert {token for token, _ in codebook.cleanup(binding.unbind("actor", v), 2)} == {"smart", "girl"}
    assert codebook.cleanup(binding.unbind(("object", "actor"), v))[0][0] == "dog"


def test_bundles_are_weighted_sums():
    """Oracle: the sum."""
    x = vectors(3, 8)
    torch.testing.assert_close(bundle(list(x)), x.sum(0))
    torch.testing.assert_close(bundle(x, [1, 2, 3]), x[0] + 2 * x[1] + 3 * x[2])


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(ArgumentError, match="power of two"):
        OrthogonalBinding(100, "hadamard")
    with pytest.raises(ArgumentError, match="family"):
        OrthogonalBinding(64, "fourier")
    with pytest.raises(ArgumentTypeError, match="dtype"):
        OrthogonalBinding(64, dtype=torch.float16)
    with pytest.raises(ArgumentTypeError, match="dim"):
        atom("a", 64.0)
    with pytest.raises(ArgumentError, match="dim >= 2"):
        OrthogonalBinding(1)
    with pytest.raises(ShapeError, match="64"):
        OrthogonalBinding(64).bind("a", torch.ones(32))
    for role in (3, ("a", 3)):
        with pytest.raises(ArgumentTypeError, match="role"):
            OrthogonalBinding(64).bind(role, torch.ones(64))
    with pytest.raises(ArgumentError, match="at least one"):
        bundle([])
    with pytest.raises(ShapeError, match="weights"):
        bundle(torch.ones(2, 4), [1.0])
    with pytest.raises(ArgumentError, match="no words"):
        encode_phrase([("actor", [])], OrthogonalBinding(64))
    with pytest.raises(ArgumentError, match="twice"):
        Codebook(["a", "a"])
    with pytest.raises(ArgumentError, match="not in"):
        Codebook(["a"]).vector("b")
    with pytest.raises(ShapeError, match="1024"):
        Codebook(["a"]).cleanup(torch.ones(3))
