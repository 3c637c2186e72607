"""The conformance suite of linear operators: what every solver relies on, checked against the operator's own products.

Shapes: an operator (..., m, n), its dense matrix D of the same shape, random blocks X (n, k) and Y (m, k).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hesse.errors import ArgumentTypeError, HesseError, ShapeError
from hesse.linalg.operator import LinearOperator

__all__ = ["ConformanceError", "check_linear_operator"]

_GRADCHECK_LIMIT = 400  # entries of A beyond which a numerical Jacobian takes longer than a test should


class ConformanceError(HesseError, AssertionError):
    """An object does not keep the promises of its protocol; the message lists every one it breaks."""


@dataclass(frozen=True, slots=True)
class _Case:
    a: LinearOperator
    dense: Tensor
    x: Tensor
    y: Tensor
    tol: float

    def near(self, found: Tensor, wanted: Tensor, what: str) -> None:
        # in the scale of the larger of both
        if found.shape != wanted.shape:
            raise ConformanceError(f"{what}: shape {tuple(found.shape)}, expected {tuple(wanted.shape)}")
        if found.numel() == 0:
            return
        size = max(float(wanted.abs().max()), float(found.abs().max()), float(self.dense.abs().max()), 1e-30)
        gap = float((found - wanted).abs().max())
        if not gap <= self.tol * size:
            raise ConformanceError(f"{what}: differs by {gap:.2e}, allowed {self.tol * size:.2e}")

    def holds(self, condition: bool, what: str) -> None:
        if not condition:
            raise ConformanceError(what)


def check_linear_operator(
    operator: LinearOperator,
    dense: Tensor | None = None,
    *,
    rtol: float | None = None,
    gradcheck: bool = True,
    movable: bool = True,
    seed: int = 0,
) -> tuple[str, ...]:
    """Run every check that applies to the operator: 31 of them at most, about 3 n products.

    Parameters
    ----------
    operator : LinearOperator, shape (..., m, n)
        Small: its dense matrix is formed.
    dense : Tensor, shape (..., m, n), optional
        What the matrix should be, from an independent source. Default: the operator's own ``to_dense``, by which
        only its consistency is checked.
    rtol : float, optional
        Largest deviation relative to the largest entry at hand. Default: 1000 max(m, n) eps.
    gradcheck : bool, default True
        Whether derivatives are compared with finite differences (double precision and at most 400 entries only).
    movable : bool, default True
        Whether ``to`` another dtype is checked; pass False for operators around functions that cannot be moved.
    seed : int, default 0
        Of the random blocks.

    Returns
    -------
    tuple of str
        Names of the checks that ran.

    Raises
    ------
    ConformanceError
        Listing every check that failed, each with what was found. Also an AssertionError.
    """
    m, n = operator.shape
    eps = torch.finfo(operator.dtype).eps
    generator = torch.Generator().manual_seed(seed)
    own = operator.to_dense().detach()
    reference = own if dense is None else dense.detach()
    case = _Case(
        a=operator,
        dense=reference,
        x=_random((n, 3), operator, generator),
        y=_random((m, 3), operator, generator),
        tol=1000 * max(m, n, 1) * eps if rtol is None else rtol,
    )
    ran: list[str] = []
    failed: list[str] = []
    for check in _applicable(operator, gradcheck=gradcheck, movable=movable):
        name = check.__name__.removeprefix("_check_")
        ran.append(name)
        try:
            check(case)
        except HesseError as error:
            failed.append(f"{name}: {error}")
    if failed:
        raise ConformanceError(f"{operator!r} breaks {len(failed)} of {len(ran)} promises:\n  " + "\n  ".join(failed))
    return tuple(ran)


def _applicable(a: LinearOperator, *, gradcheck: bool, movable: bool) -> list[Callable[[_Case], None]]:
    square = a.shape[0] == a.shape[1]
    wide = a.dtype in (torch.float64, torch.complex128)
    single = not a.batch_shape
    numpy_kind = a.dtype not in (torch.float16, torch.bfloat16)
    conditions: list[tuple[Callable[[_Case], None], bool]] = [
        (_check_dense_shape_and_dtype, True),
        (_check_dense_agreement, True),
        (_check_product_dtype_and_device, True),
        (_check_vector_is_a_column, True),
        (_check_matvec_of_a_stack, True),
        (_check_additivity, True),
        (_check_homogeneity, True),
        (_check_zero_maps_to_zero, True),
        (_check_columns_are_independent, True),
        (_check_no_columns, True),
        (_check_batched_operand, True),
        (_check_strided_operand, True),
        (_check_operand_is_left_alone, True),
        (_check_adjoint_identity, True),
        (_check_adjoint_dense, True),
        (_check_transpose, True),
        (_check_diagonal, True),
        (_check_trace, square),
        (_check_rows, a.shape[0] > 0),
        (_check_slice, min(a.shape) > 1),
        (_check_sum_and_multiple, True),
        (_check_gram_is_psd, True),
        (_check_shift, square),
        (_check_symmetry_flag, a.is_symmetric),
        (_check_psd_flag, a.is_psd),
        (_check_direct_solve, a.has_direct_solve and square),
        (_check_state_dict, True),
        (_check_move, movable),
        (_check_scipy, single and numpy_kind),
        (_check_bad_operands, True),
        (_check_gradients, gradcheck and wide and math.prod(a.shape) <= _GRADCHECK_LIMIT),
    ]
    return [check for check, applies in conditions if applies]


def _random(shape: tuple[int, ...], a: LinearOperator, generator: torch.Generator) -> Tensor:
    kind = torch.complex128 if a.dtype.is_complex else torch.float64
    return torch.randn(shape, generator=generator, dtype=kind).to(device=a.device, dtype=a.dtype)


def _detached(case: _Case, x: Tensor) -> Tensor:
    return case.a.matmat(x).detach()


def _check_dense_shape_and_dtype(case: _Case) -> None:
    dense = case.a.to_dense()
    case.holds(dense.shape == (*case.a.batch_shape, *case.a.shape), f"to_dense has shape {tuple(dense.shape)}")
    case.holds(
        dense.dtype == case.a.dtype and dense.device == case.a.device, f"to_dense is {dense.dtype} on {dense.device}"
    )


def _check_dense_agreement(case: _Case) -> None:
    case.near(_detached(case, case.x), case.dense @ case.x, "A @ X against D @ X")
    case.near(case.a.to_dense().detach(), case.dense, "to_dense against D")


def _check_product_dtype_and_device(case: _Case) -> None:
    out = case.a @ case.x
    case.holds(out.dtype == case.a.dtype and out.device == case.a.device, f"A @ X is {out.dtype} on {out.device}")


def _check_vector_is_a_column(case: _Case) -> None:
    case.near((case.a @ case.x[:, 0]).detach(), _detached(case, case.x[:, :1]).squeeze(-1), "A @ x against A @ X")


def _check_matvec_of_a_stack(case: _Case) -> None:
    if case.a.batch_shape:
        return
    case.near(case.a.matvec(case.x.mT).detach(), _detached(case, case.x).mT, "matvec of a stack")


def _check_additivity(case: _Case) -> None:
    left, right = case.x[:, :1], case.x[:, 1:2]
    case.near(_detached(case, left + right), _detached(case, left) + _detached(case, right), "A(x + y) against Ax + Ay")


def _check_homogeneity(case: _Case) -> None:
    c = 2 - 1j if case.a.dtype.is_complex else -3.0
    case.near(_detached(case, c * case.x), c * _detached(case, case.x), "A(cx) against c Ax")


def _check_zero_maps_to_zero(case: _Case) -> None:
    case.holds(not bool(_detached(case, torch.zeros_like(case.x)).any()), "A 0 is not 0")


def _check_columns_are_independent(case: _Case) -> None:
    single = torch.cat([_detached(case, case.x[:, i : i + 1]) for i in range(3)], -1)
    case.near(_detached(case, case.x), single, "a block against its columns")


def _check_no_columns(case: _Case) -> None:
    out = case.a @ case.x[:, :0]
    case.holds(out.shape == (*case.a.batch_shape, case.a.shape[0], 0), f"k = 0 gives shape {tuple(out.shape)}")
    back = case.a.rmatmat(case.y[:, :0])
    case.holds(back.shape == (*case.a.batch_shape, case.a.shape[1], 0), f"k = 0 adjoint has shape {tuple(back.shape)}")


def _check_batched_operand(case: _Case) -> None:
    stack = torch.stack([case.x, 2 * case.x]).reshape(2, *[1] * len(case.a.batch_shape), *case.x.shape)
    once = _detached(case, case.x)
    case.near(_detached(case, stack), torch.stack([once, 2 * once]), "a stack of blocks against each")


def _check_strided_operand(case: _Case) -> None:
    case.near(_detached(case, case.x.mT.contiguous().mT), _detached(case, case.x), "a column-major block")
    case.near(_detached(case, case.x[:, ::2]), _detached(case, case.x)[..., ::2], "every other column")


def _check_operand_is_left_alone(case: _Case) -> None:
    x, y = case.x.clone(), case.y.clone()
    case.a.matmat(x)
    case.a.rmatmat(y)
    case.holds(torch.equal(x, case.x) and torch.equal(y, case.y), "a product wrote into its operand")


def _check_adjoint_identity(case: _Case) -> None:
    forward, back = _detached(case, case.x), case.a.rmatmat(case.y).detach()
    left = (case.y.conj() * forward).sum((-2, -1))
    right = (back.conj() * case.x).sum((-2, -1))
    size = float(case.y.norm() * forward.abs().max() * math.prod(case.y.shape) ** 0.5) + 1e-30
    gap = float((left - right).abs().max()) if left.numel() else 0.0
    case.holds(gap <= case.tol * size, f"<y, Ax> and <A^H y, x> differ by {gap:.2e}")


def _check_adjoint_dense(case: _Case) -> None:
    case.near(case.a.rmatmat(case.y).detach(), case.dense.mH @ case.y, "A^H Y against D^H Y")
    case.near((case.a.H @ case.y).detach(), case.dense.mH @ case.y, "A.H @ Y")
    case.near((case.y.mH @ case.a).detach(), case.y.mH @ case.dense, "Y^H @ A")


def _check_transpose(case: _Case) -> None:
    case.near((case.a.T @ case.y).detach(), case.dense.mT @ case.y, "A.T @ Y")
    case.holds(case.a.T.shape == (case.a.shape[1], case.a.shape[0]), f"A.T has shape {case.a.T.shape}")


def _check_diagonal(case: _Case) -> None:
    case.near(case.a.diagonal().detach(), case.dense.diagonal(dim1=-2, dim2=-1), "diagonal")


def _check_trace(case: _Case) -> None:
    case.near(case.a.trace().detach(), case.dense.diagonal(dim1=-2, dim2=-1).sum(-1), "trace")


def _check_rows(case: _Case) -> None:
    index = torch.tensor([case.a.shape[0] - 1, 0], device=case.a.device)
    case.near(case.a.rows(index).detach(), case.dense[..., index, :], "rows")


def _check_slice(case: _Case) -> None:
    part = case.a[1:, [0, 1, 0]]
    case.near(part.to_dense().detach(), case.dense[..., 1:, :][..., [0, 1, 0]], "A[1:, [0, 1, 0]]")


def _check_sum_and_multiple(case: _Case) -> None:
    case.near(((case.a + case.a * 0.5) @ case.x).detach(), 1.5 * (case.dense @ case.x), "(A + A/2) @ X")
    case.near(((case.a - 2 * case.a) @ case.x).detach(), -(case.dense @ case.x), "(A - 2A) @ X")


def _check_gram_is_psd(case: _Case) -> None:
    gram = case.a.H @ case.a
    case.holds(gram.is_psd, "A.H @ A is not known to be psd")
    inner = case.dense @ case.x
    scale = max(float(case.dense.abs().max()), 1.0)
    found, wanted = (gram @ case.x).detach() / scale, case.dense.mH @ inner / scale
    case.near(found, wanted, "(A.H @ A) @ X")


def _check_shift(case: _Case) -> None:
    moved = case.a.shift(0.75)
    case.near((moved @ case.x).detach(), case.dense @ case.x + 0.75 * case.x, "(A + 0.75 I) @ X")
    case.holds(moved.is_symmetric == case.a.is_symmetric, "a real shift changed is_symmetric")
    if moved.has_direct_solve and case.a.is_psd:
        case.near(
            (moved @ moved.solve(case.x)).detach(), case.x.expand(*case.a.batch_shape, *case.x.shape), "shifted solve"
        )


def _check_symmetry_flag(case: _Case) -> None:
    case.holds(case.a.shape[0] == case.a.shape[1], "symmetric, and not square")
    case.near(case.dense, case.dense.mH, "declared symmetric: D against D^H")
    case.a.validate_symmetry()


def _check_psd_flag(case: _Case) -> None:
    wide = case.dense.to(torch.promote_types(case.dense.dtype, torch.float64))
    values = torch.linalg.eigvalsh((wide + wide.mH) / 2)
    if values.numel():
        bound = case.tol * max(float(values.abs().max()), 1e-30)
        case.holds(float(values.min()) >= -bound, f"declared psd, but an eigenvalue is {float(values.min()):.2e}")


def _check_direct_solve(case: _Case) -> None:
    wide = case.dense.to(torch.promote_types(case.dense.dtype, torch.float64))
    cond = torch.linalg.cond(wide)
    if not bool((cond < 0.01 / torch.finfo(case.a.dtype).eps ** 0.5).all()):
        return  # a singular operator has nothing to compare
    wanted = torch.linalg.solve(wide, case.x.to(wide.dtype)).to(case.dense.dtype)
    found = case.a.solve(case.x).detach()
    slack = float(cond.max())
    gap = float((found - wanted).abs().max())
    case.holds(gap <= case.tol * slack * max(float(wanted.abs().max()), 1e-30), f"solve differs by {gap:.2e}")
    gap = float(
        (case.a.logdet().detach() - torch.linalg.slogdet(wide).logabsdet.to(case.a.dtype.to_real())).abs().max()
    )
    case.holds(gap <= case.tol * slack * case.a.shape[0], f"logdet differs by {gap:.2e}")


def _check_state_dict(case: _Case) -> None:
    state = {name: tensor.clone() for name, tensor in case.a.state_dict().items()}
    again = case.a.load_state_dict(state)
    case.holds(again.shape == case.a.shape and again.is_psd == case.a.is_psd, "state_dict lost shape or flags")
    case.near((again @ case.x).detach(), _detached(case, case.x), "after a round trip by state_dict")


def _check_move(case: _Case) -> None:
    a = case.a
    case.holds(a.to(a.device, a.dtype) is a, "to() of the same dtype and device made a copy")
    other = {torch.float64: torch.float32, torch.complex128: torch.complex64}.get(a.dtype, torch.float64)
    other = torch.complex128 if a.dtype == torch.complex64 else other
    moved = a.to(dtype=other)
    out = moved @ case.x.to(other)
    case.holds(moved.dtype == other and out.dtype == other, f"to(dtype={other}) gave {moved.dtype} and {out.dtype}")
    narrow = max(torch.finfo(other).eps, torch.finfo(a.dtype).eps)
    wanted = case.dense @ case.x
    gap = float((out.detach().to(a.dtype) - wanted).abs().max()) if wanted.numel() else 0.0
    size = max(float(wanted.abs().max()), float(case.dense.abs().max())) if wanted.numel() else 1.0
    case.holds(gap <= 1000 * max(a.shape) * narrow * size, f"after to(dtype={other}) a product differs by {gap:.2e}")


def _check_scipy(case: _Case) -> None:
    wrapped = case.a.to_scipy()
    x, y = case.x.resolve_conj().cpu().numpy(), case.y.resolve_conj().cpu().numpy()
    for found, wanted, what in (
        (wrapped.matmat(x), case.dense @ case.x, "SciPy matmat"),
        (wrapped.rmatmat(y), case.dense.mH @ case.y, "SciPy rmatmat"),
        (wrapped.matvec(x[:, 0]), case.dense @ case.x[:, 0], "SciPy matvec"),
        (wrapped.rmatvec(y[:, 0]), case.dense.mH @ case.y[:, 0], "SciPy rmatvec"),
    ):
        case.near(torch.from_numpy(np.ascontiguousarray(found)), wanted.cpu(), what)


def _check_bad_operands(case: _Case) -> None:
    a = case.a
    other = torch.float32 if a.dtype != torch.float32 else torch.float64
    long = torch.zeros(a.shape[1] + 1, 2, dtype=a.dtype, device=a.device)
    for operand, error in ((long, ShapeError), (case.x.real.to(other), ShapeError), ("x", ArgumentTypeError)):
        try:
            _ = a @ operand  # pyright: ignore[reportOperatorIssue]
        except error:
            continue
        raise ConformanceError(f"A @ {type(operand).__name__} of a wrong shape, dtype or kind was accepted")


def _check_gradients(case: _Case) -> None:
    a = case.a
    probe = case.x[:, :2].clone().requires_grad_()
    if not a.matmat(probe).requires_grad:
        return  # runs outside torch: nothing to differentiate
    floating = {n: t for n, t in a.tensors().items() if t.is_floating_point() or t.is_complex()}
    leaves = [t.detach().clone().requires_grad_() for t in floating.values()]

    def product(x: Tensor, *tensors: Tensor) -> Tensor:
        return a.with_tensors({**a.tensors(), **dict(zip(floating, tensors, strict=True))}).matmat(x)

    try:
        torch.autograd.gradcheck(product, (probe, *leaves))
    except RuntimeError as error:
        raise ConformanceError(f"gradcheck of A(θ) @ X: {str(error).splitlines()[0]}") from error
