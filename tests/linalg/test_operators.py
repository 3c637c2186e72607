"""Every concrete operator through the public conformance suite, against a dense matrix built another way."""

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError, SingularError
from hesse.linalg import (
    BlockDiagonal,
    Dense,
    Diagonal,
    Eigh,
    EighKronecker,
    FunctionOperator,
    InverseOperator,
    Kronecker,
    KroneckerSum,
    LowRank,
    LowRankPlusDiagonal,
    Permutation,
    PoissonStencil,
    ScaledIdentity,
    Sparse,
    as_linear_operator,
)
from hesse.testing import check_linear_operator

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape, dtype, seed=0):
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(*shape, generator=seeded(seed), dtype=wide).to(dtype)


def spd(*shape, dtype, seed=0):
    root = draw(*shape, dtype=dtype, seed=seed)
    return root @ root.mH / shape[-1] + torch.eye(shape[-1], dtype=dtype)


def orthonormal(*shape, dtype, seed=0):
    return torch.linalg.qr(draw(*shape, dtype=dtype, seed=seed)).Q


def kron(*matrices):
    out = matrices[0]
    for m in matrices[1:]:
        out = torch.kron(out, m)
    return out


def function_of(matrix):
    return FunctionOperator(
        lambda x, m: m @ x, tuple(matrix.shape), dtype=matrix.dtype, tensors=(matrix,), rmatmat_fn=lambda y, m: m.mH @ y
    )


def case_dense(dtype):
    m = draw(5, 4, dtype=dtype)
    return Dense(m), m


def case_dense_psd(dtype):
    m = spd(5, 5, dtype=dtype)
    return Dense(m, is_psd=True), m


def case_dense_batched(dtype):
    m = draw(2, 3, 5, 4, dtype=dtype)
    return Dense(m), m


def case_sparse(dtype):
    m = draw(6, 5, dtype=dtype) * (torch.rand(6, 5, generator=seeded(1)) < 0.5)
    return Sparse(m.to_sparse_coo()), m


def case_sparse_from_csr(dtype):
    m = draw(5, 5, dtype=dtype) * (torch.rand(5, 5, generator=seeded(2)) < 0.5)
    m[3] = 0
    csr = m.to_sparse_csr()
    return Sparse.from_csr(csr.crow_indices(), csr.col_indices(), csr.values(), (5, 5)), m


def case_diagonal(dtype):
    d = draw(6, dtype=dtype)
    return Diagonal(d), torch.diag(d)


def case_diagonal_batched(dtype):
    d = draw(2, 6, dtype=dtype)
    return Diagonal(d), torch.diag_embed(d)


def case_identity(dtype):
    return ScaledIdentity(4, draw((), dtype=dtype) + 2), (draw((), dtype=dtype) + 2) * torch.eye(4, dtype=dtype)


def case_permutation(dtype):
    index = torch.randperm(6, generator=seeded())
    return Permutation(index, dtype=dtype), torch.eye(6, dtype=dtype)[index]


def case_function(dtype):
    m = draw(5, 4, dtype=dtype)
    return function_of(m), m


def case_function_without_adjoint(dtype):
    m = draw(5, 4, dtype=dtype)
    return FunctionOperator(lambda x, m: m @ x, (5, 4), dtype=dtype, tensors=(m,)), m


def case_sum(dtype):
    a, b = draw(4, 5, dtype=dtype), draw(4, 5, dtype=dtype, seed=1)
    return Dense(a) + function_of(b), a + b


def case_scaled(dtype):
    a, c = draw(2, 4, 4, dtype=dtype), draw(2, dtype=dtype, seed=1)
    return Dense(a) * c, c[:, None, None] * a


def case_product(dtype):
    a, b = draw(4, 6, dtype=dtype), draw(6, 3, dtype=dtype, seed=1)
    return Dense(a) @ Dense(b), a @ b


def case_congruence(dtype):
    a, h = Dense(draw(6, 4, dtype=dtype)), Dense(spd(6, 6, dtype=dtype), is_psd=True)
    return a.H @ h @ a, a.matrix.mH @ h.matrix @ a.matrix


def case_adjoint(dtype):
    m = draw(5, 4, dtype=dtype)
    return function_of(m).H, m.mH


def case_transposed(dtype):
    m = draw(5, 4, dtype=dtype)
    return Dense(m).T, m.mT


def case_sliced(dtype):
    m = draw(6, 6, dtype=dtype)
    return Dense(m)[::2, [5, 1, 1]], m[::2][:, [5, 1, 1]]


def case_principal_slice(dtype):
    m = spd(6, 6, dtype=dtype)
    return Dense(m, is_psd=True)[1:5, 1:5], m[1:5, 1:5]


def case_shifted(dtype):
    m, mu = spd(2, 5, 5, dtype=dtype), torch.tensor([0.5, 2.0], dtype=dtype.to_real())
    return Dense(m, is_psd=True).shift(mu), m + mu[:, None, None] * torch.eye(5, dtype=dtype)


def case_blocks(dtype):
    a, b = draw(2, 3, dtype=dtype), draw(4, 2, dtype=dtype, seed=1)
    return BlockDiagonal([Dense(a), Dense(b)]), torch.block_diag(a, b)


def case_direct_blocks(dtype):
    d, m = draw(3, dtype=dtype), spd(2, 2, dtype=dtype)
    return BlockDiagonal([Diagonal(d), Kronecker([m])]), torch.block_diag(torch.diag(d), m)


def case_low_rank(dtype):
    u, s, v = draw(6, 2, dtype=dtype), draw(2, dtype=dtype, seed=1), draw(5, 2, dtype=dtype, seed=2)
    return LowRank(u, s, v), u * s @ v.mH


def case_low_rank_psd(dtype):
    u = draw(2, 6, 2, dtype=dtype)
    return LowRank(u), u @ u.mH


def case_woodbury(dtype):
    u, s, v = draw(6, 2, dtype=dtype), draw(2, dtype=dtype, seed=1), draw(6, 2, dtype=dtype, seed=2)
    d = draw(6, dtype=dtype, seed=3) + 3
    return LowRankPlusDiagonal(d, u, s, v), torch.diag(d) + u * s @ v.mH


def case_woodbury_psd(dtype):
    u = draw(2, 6, 2, dtype=dtype)
    return LowRank(u).shift(0.5), u @ u.mH + 0.5 * torch.eye(6, dtype=dtype)


def case_kronecker(dtype):
    a, b, c = draw(2, 3, dtype=dtype), draw(3, 2, dtype=dtype, seed=1), draw(2, 2, dtype=dtype, seed=2)
    return Kronecker([a, b, c]), kron(a, b, c)


def case_kronecker_square(dtype):
    a, b = draw(3, 3, dtype=dtype), draw(4, 4, dtype=dtype, seed=1)
    return Kronecker([a, b]), kron(a, b)


def case_kronecker_psd(dtype):
    a, b = spd(3, 3, dtype=dtype), spd(2, 2, dtype=dtype, seed=1)
    return Kronecker([a, b], is_psd=True), kron(a, b)


def case_kronecker_batched(dtype):
    a, b = draw(2, 3, 3, dtype=dtype), draw(2, 2, 2, dtype=dtype, seed=1)
    return Kronecker([a, b]), torch.stack([torch.kron(x, y) for x, y in zip(a, b, strict=True)])


def case_kronecker_sum(dtype):
    a, b = spd(3, 3, dtype=dtype), spd(2, 2, dtype=dtype, seed=1)
    return KroneckerSum([a, b], is_psd=True), kron(a, torch.eye(2, dtype=dtype)) + kron(torch.eye(3, dtype=dtype), b)


def case_eigh_kronecker(dtype):
    p, q = orthonormal(3, 3, dtype=dtype), orthonormal(4, 4, dtype=dtype, seed=1)
    table = torch.rand(3, 4, generator=seeded(2), dtype=torch.float64).to(dtype.to_real()) + 0.1
    basis = torch.kron(p, q)
    return EighKronecker([p, q], table), basis * table.flatten() @ basis.mH


def case_eigh_kronecker_three_batched(dtype):
    qs = [orthonormal(2, n, n, dtype=dtype, seed=n) for n in (2, 3, 2)]
    table = torch.rand(2, 2, 3, 2, generator=seeded(2), dtype=torch.float64).to(dtype.to_real()) - 0.5
    bases = [kron(*(q[i] for q in qs)) for i in range(2)]
    return EighKronecker(qs, table), torch.stack([b * t.flatten() @ b.mH for b, t in zip(bases, table, strict=True)])


def case_eigh(dtype):
    q, values = orthonormal(5, 5, dtype=dtype), torch.linspace(-1, 2, 5, dtype=dtype.to_real())
    return Eigh(q, values), q * values @ q.mH


def case_eigh_partial(dtype):
    q, values = orthonormal(6, 2, dtype=dtype), torch.tensor([1.0, 3.0], dtype=dtype.to_real())
    return Eigh(q, values), q * values @ q.mH


def case_stencil(dtype):
    fluid = torch.rand(4, 5, generator=seeded()) > 0.2
    operator = PoissonStencil(fluid, (1.0, 0.5), boundary="neumann", dtype=dtype)
    return operator, operator.to_csr().to_dense()


def case_inverse(dtype):
    m = draw(6, 6, dtype=dtype) + 4 * torch.eye(6, dtype=dtype)
    return InverseOperator(Kronecker([m])), torch.linalg.inv(m)


CASES = [value for name, value in sorted(globals().items()) if name.startswith("case_")]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__.removeprefix("case_"))
def test_conformance(case, dtype):
    """Oracle: a dense matrix built without the operator, and finite differences."""
    operator, dense = case(dtype)
    ran = check_linear_operator(operator, dense)
    assert len(ran) >= 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_stays_half(dtype):
    """Oracle: the dense product in float32, to the precision of the half."""
    m = draw(5, 4, dtype=torch.float64).to(dtype)
    check_linear_operator(Dense(m), m, gradcheck=False)
    k = Kronecker([m, m])
    check_linear_operator(k, torch.kron(m, m), gradcheck=False)


def test_flags_follow_the_algebra():
    """Oracle: the rules, written out."""
    p, s, g = (Dense(spd(3, 3, dtype=torch.float64), **f) for f in ({"is_psd": True}, {"is_symmetric": True}, {}))
    table = [
        (p + p, True, True),
        (p + s, True, False),
        (p + g, False, False),
        (2 * p, True, True),
        (-p, True, False),
        (p.shift(1.0), True, True),
        (p.shift(-1.0), True, False),
        (p @ p, True, True),
        (p @ s, False, False),
        (s @ p @ s, True, True),
        (g.H @ s @ g, True, False),
        (g @ g.H, True, True),
        (p[1:, 1:], True, True),
        (p[1:, :2], False, False),
        (Kronecker([p, s]), True, False),
        (BlockDiagonal([p, p]), True, True),
        (InverseOperator(Kronecker([p])), True, True),
    ]
    for operator, symmetric, psd in table:
        assert (operator.is_symmetric, operator.is_psd) == (symmetric, psd), operator


def test_shift_stays_recognisable():
    """Oracle: the class names that solvers look for."""
    a = Dense(spd(3, 3, dtype=torch.float64), is_psd=True)
    assert (a + ScaledIdentity(3, 2.0, dtype=torch.float64)).base is a
    assert a.shift(1.0).shift(2.0).amount == 3.0
    assert isinstance(Kronecker([a]).eigh().shift(1.0), EighKronecker)
    assert isinstance(LowRank(a.matrix).shift(1.0), LowRankPlusDiagonal)


def test_declared_symmetry_is_tested_once():
    """Oracle: a matrix that is not symmetric, and a count of its products."""
    m = draw(30, 30, dtype=torch.float64)
    with pytest.raises(NumericalError, match="declared symmetric"):
        Dense(m, is_symmetric=True).validate_symmetry()
    calls = []
    good = FunctionOperator(lambda x: calls.append(0) or 2 * x, (30, 30), dtype=torch.float64, is_symmetric=True)
    good.validate_symmetry()
    good.validate_symmetry()
    assert len(calls) == 1


def test_nan_in_the_first_product():
    """Oracle: a matrix with one NaN."""
    m = spd(4, 4, dtype=torch.float64)
    m[1, 1] = torch.nan
    with pytest.raises(NumericalError, match="NaN or Inf"):
        Dense(m, is_psd=True).validate_symmetry()


def test_exact_kronecker_algebra():
    """Oracle: the same on the dense matrix, in float64."""
    a, b = spd(4, 4, dtype=torch.float64), spd(3, 3, dtype=torch.float64, seed=1)
    k, dense = Kronecker([a, b], is_psd=True), torch.kron(a, b)
    eye = torch.eye(12, dtype=torch.float64)
    close = torch.testing.assert_close
    close(k.eigh().to_dense(), dense)
    close(k.damped_inverse(0.3).to_dense(), torch.linalg.inv(dense + 0.3 * eye))
    close(k.shift(0.3).solve(eye), torch.linalg.inv(dense + 0.3 * eye))
    close(k.cholesky().to_dense(), torch.linalg.cholesky(dense))
    close(k.power(3).to_dense(), torch.linalg.matrix_power(dense, 3))
    close(k.power(-1).to_dense(), torch.linalg.inv(dense))
    root = k.power(0.5).to_dense()
    close(root @ root, dense)
    wide = Kronecker([draw(4, 2, dtype=torch.float64), draw(3, 5, dtype=torch.float64)])
    close(wide.pinv().to_dense(), torch.linalg.pinv(wide.to_dense()))
    s = KroneckerSum([a, b], is_psd=True)
    close(s.exp().to_dense(), torch.linalg.matrix_exp(s.to_dense()))
    close(s.solve(s @ eye), eye)


@pytest.mark.parametrize("sizes", [(5,), (5, 4), (2, 3, 4)])
def test_shaped_operands_are_the_flat_ones(sizes):
    """Oracle: row-major reshape, (A ⊗ B) vec(V) = vec(A V Bᵀ)."""
    qs = [orthonormal(n, n, dtype=torch.complex128, seed=n) for n in sizes]
    e = EighKronecker(qs, torch.rand(sizes, generator=seeded(), dtype=torch.float64))
    v = draw(6, *sizes, dtype=torch.complex128)
    flat = v.reshape(6, -1).mT
    torch.testing.assert_close(e.multiply_shaped(v).reshape(6, -1).mT, e @ flat)
    torch.testing.assert_close(e.solve_shaped(v, 0.1).reshape(6, -1).mT, e.shift(0.1).solve(flat))
    with pytest.raises(ShapeError, match="solve_shaped"):
        e.solve_shaped(v.mT if len(sizes) > 1 else v[:, :2])


@pytest.mark.parametrize("sizes", [(4,), (2, 3), (2, 3, 2)])
def test_shaped_products_of_a_batch(sizes):
    """Oracle: each operator of the batch by itself."""
    bases = [torch.linalg.qr(draw(3, n, n, dtype=torch.float64)).Q for n in sizes]
    table, v = draw(3, *sizes, dtype=torch.float64).abs() + 0.5, draw(3, *sizes, dtype=torch.float64)
    whole = EighKronecker(bases, table)
    single = [EighKronecker([q[i] for q in bases], table[i]) for i in range(3)]
    for found, each in (
        (whole.multiply_shaped(v), [e.multiply_shaped(v[i]) for i, e in enumerate(single)]),
        (whole.solve_shaped(v, 0.1), [e.solve_shaped(v[i], 0.1) for i, e in enumerate(single)]),
    ):
        torch.testing.assert_close(found, torch.stack(each), rtol=1e-12, atol=1e-12)


def test_singular_structures_say_so():
    """Oracle: operators with an exact zero eigenvalue."""
    eye = torch.eye(3, dtype=torch.float64)
    zero = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    for operator in (Diagonal(zero), Eigh(eye, zero), EighKronecker([eye], zero), Kronecker([torch.diag(zero)])):
        with pytest.raises(SingularError):
            operator.solve(eye)
        assert operator.logdet() == -torch.inf
    pseudo = EighKronecker([eye], zero).pinv().to_dense()
    torch.testing.assert_close(pseudo, torch.linalg.pinv(torch.diag(zero)))


def test_stencil_against_the_five_point_matrix():
    """Oracle: the Kronecker sum of one-dimensional second differences, on the full square."""
    t = (
        2 * torch.eye(6, dtype=torch.float64)
        - torch.diag(torch.ones(5).double(), 1)
        - torch.diag(torch.ones(5).double(), -1)
    )
    stencil = PoissonStencil(torch.ones(6, 6, dtype=torch.bool), 0.5, dtype=torch.float64)
    torch.testing.assert_close(stencil.to_dense(), KroneckerSum([t * 4, t * 4]).to_dense())


def test_stencil_in_a_closed_box_has_constants_in_its_kernel():
    """Oracle: Neumann walls on all sides: the constant per connected fluid region, and no other null vector."""
    fluid = torch.ones(4, 3, 5, dtype=torch.bool)
    fluid[1, 1, 2] = False
    a = PoissonStencil(fluid, boundary="neumann", dtype=torch.float64)
    constant = fluid.flatten().double()
    assert (a @ constant).abs().max() == 0
    assert int((torch.linalg.eigvalsh(a.to_dense()) < 1e-10).sum()) == 1 + int((~fluid).sum())
    empty = torch.zeros_like(fluid)
    empty[0], fluid[0] = True, False
    held = PoissonStencil(fluid, empty=empty, boundary="neumann", dtype=torch.float64)
    assert int((torch.linalg.eigvalsh(held.to_dense()) < 1e-10).sum()) == int((~fluid).sum())


def test_conversion_of_everything_that_multiplies():
    """Oracle: the dense matrix each object was made from."""
    dense = np.random.default_rng(0).standard_normal((5, 4)) * (np.random.default_rng(1).random((5, 4)) < 0.6)
    tensor = torch.from_numpy(dense)
    sources = [
        tensor,
        tensor.to_sparse_coo(),
        tensor.to_sparse_csr(),
        dense,
        dense.tolist() and np.asfortranarray(dense),
        scipy.sparse.csr_array(dense),
        scipy.sparse.coo_matrix(dense),
        scipy.sparse.linalg.aslinearoperator(dense),
        Peer(tensor),
    ]
    for source in sources:
        check_linear_operator(
            as_linear_operator(source),
            tensor,
            movable=not isinstance(source, Peer | scipy.sparse.linalg.LinearOperator),
        )
    function = as_linear_operator(lambda x: tensor @ x, shape=(5, 4), dtype=torch.float64)
    check_linear_operator(function, tensor, movable=False)


class Peer:
    """An operator of another library: a shape and a product."""

    def __init__(self, matrix):
        self.matrix, self.shape, self.dtype, self.device = matrix, matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, x):
        return self.matrix @ x

    def adjoint(self):
        return Peer(self.matrix.mH)


def test_dense_arrays_are_shared():
    """Oracle: the pointer."""
    array = np.ones((3, 2))
    assert as_linear_operator(array).matrix.data_ptr() == array.ctypes.data


def test_bad_input_is_named():
    """Oracle: the hesse error and the words that tell what came."""
    m = Dense(torch.ones(3, 2))
    with pytest.raises(ShapeError, match=r"\(\.\.\., 2, k\), got \(3, 2\)"):
        m @ torch.ones(3, 2)
    with pytest.raises(ShapeError, match=r"float32, the operand torch\.float64"):
        m @ torch.ones(2, 2, dtype=torch.float64)
    with pytest.raises(ArgumentTypeError, match="floating"):
        Dense(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ShapeError, match="square"):
        Dense(torch.ones(3, 2), is_psd=True)
    with pytest.raises(ShapeError, match="inner dimensions"):
        m @ m
    with pytest.raises(ShapeError, match="differ"):
        m + Dense(torch.ones(2, 2))
    with pytest.raises(ArgumentError, match="outside"):
        m[[5], :]
    with pytest.raises(ArgumentError, match="slice"):
        m[0, :]
    with pytest.raises(ArgumentTypeError, match="complex"):
        m * 1j
    with pytest.raises(ShapeError, match="needs shape"):
        as_linear_operator(lambda x: x)
    with pytest.raises(ArgumentTypeError, match="NoneType"):
        as_linear_operator(None)
    with pytest.raises(ArgumentTypeError, match=r"hesse\.linalg\.solve"):
        Dense(torch.eye(2)).solve(torch.ones(2))
    with pytest.raises(ArgumentTypeError, match="_rmatmat"):
        FunctionOperator(lambda x: x.detach() * 2, (2, 2)).rmatmat(torch.ones(2, 1))
    with pytest.raises(ArgumentError, match="cannot be moved"):
        FunctionOperator(lambda x: x, (2, 2)).to(dtype=torch.float64)
