"""The product of two functions on the sphere, and their Poisson bracket, in terms of coefficients of harmonics.

Shapes: K = (l + 1)² coefficients of degrees 0 to l, C channels, B rows, S samples.
"""

import math
import time
from collections.abc import Callable
from statistics import median
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from hesse.equivariant._arguments import check_count
from hesse.equivariant.gaunt import _tables
from hesse.equivariant.gaunt._arguments import Normalization, check_features, check_normalization, compute_dtype
from hesse.errors import ArgumentError, ShapeError

__all__ = [
    "Backend",
    "antisymmetric_tensor_product",
    "fastest_backend",
    "gaunt_coefficients",
    "gaunt_many_body",
    "gaunt_tensor_product",
]

Backend = Literal["auto", "dense", "grid", "fourier", "cg"]
_BACKENDS = get_args(Backend)
_MOST_SAMPLES = 1 << 26  # held at once where nothing is said: 256 MiB in float32
_CACHED_SAMPLES = 1 << 18  # the same for each thread of a CPU: 1 MiB stays in its cache
_WORTH_CUTTING = (
    1 << 20
)  # samples of a whole batch on a CPU, for each thread; with fewer, cutting costs more than it saves


def gaunt_coefficients(l1: int, l2: int, l3: int) -> Tensor:
    """Integrals of three orthonormal real harmonics, G_abc = ∫ Y_a Y_b Y_c, for one degree each.

    With Wigner's 3j symbols, G = √((2l₁+1)(2l₂+1)(2l₃+1) / 4π) (l₁ l₂ l₃; 0 0 0) times the real 3j symbols of the
    orders, up to a sign for each triple of degrees. Zero unless l₁ + l₂ + l₃ is even and the degrees form a triangle.

    Parameters
    ----------
    l1, l2, l3 : int
        Degrees >= 0.

    Returns
    -------
    Tensor, shape (2 l₁ + 1, 2 l₂ + 1, 2 l₃ + 1)
        float64, exact to round-off: a quadrature of the right degree. Orders run from -l to l.

    Raises
    ------
    ArgumentError
        If a degree is negative.

    References
    ----------
    J. A. Gaunt (1929), Phil. Trans. R. Soc. A 228.
    """
    for name, degree in (("l1", l1), ("l2", l2), ("l3", l3)):
        check_count("gaunt_coefficients", name, degree)
    table = _tables.gaunt_table(l1, l2, l3, "integral", torch.float64, torch.device("cpu"))
    return table[l1 * l1 :, l2 * l2 :, l3 * l3 :].clone()


def gaunt_tensor_product(
    x: Tensor,
    y: Tensor,
    l1: int,
    l2: int,
    l3: int,
    *,
    backend: Backend = "auto",
    normalization: Normalization = "integral",
    max_grid_elements: int | None = None,
) -> Tensor:
    """Multiply the functions f_x = Σ x_a Y_a and f_y, and expand the product: z_c = Σ_ab G_abc x_a y_b.

    It is the Clebsch-Gordan product with one common weight for each triple of degrees, Gaunt's. It commutes with
    rotations and reflections. Paths with l₁ + l₂ + l₃ odd, the cross product among them, have weight zero: features of
    natural parity (-1)ˡ stay so, and a model built of this product alone cannot tell a shape from its mirror image
    (`antisymmetric_tensor_product` can). Fewer paths also mean less expressive power for each operation than the full
    Clebsch-Gordan product has; what the common weights save is a factor of L³.

    Parameters
    ----------
    x : Tensor, shape (..., (l₁ + 1)²)
        Index l² + l + m. Leading dimensions, channels among them, broadcast against those of y.
    y : Tensor, shape (..., (l₂ + 1)²)
        Of the same dtype and device.
    l1, l2, l3 : int
        Largest degrees of x, of y and of the result; l₃ <= l₁ + l₂. A smaller l₃ cuts off, and needs a smaller grid.
    backend : {"auto", "dense", "grid", "fourier", "cg"}, default "auto"
        All are exact. "dense" takes samples by one matrix product, at a few more points than the product has
        coefficients, O(L⁴), the fastest up to degree 5 or so; "grid" goes over the meridian order by order, then over
        the azimuth, O(L³); "fourier" is the form of the paper, an FFT in two dimensions between sparse changes of
        basis, on a CPU slower than either at every degree that was measured; "cg" contracts with all coefficients,
        O(L⁶). "auto" is "dense" while l₁ + l₂ <= 10 and "grid" above; `fastest_backend` measures instead.
    normalization : {"integral", "component", "norm"}, default "integral"
        Of the harmonics that x, y and z are coefficients of: if x and y are `spherical_harmonics` of some
        normalization at one point, so is z, times the sum of the harmonics' squares over it.
    max_grid_elements : int, optional
        Samples held at once, for each of the two functions: longer batches are cut. Default: 2²⁶, 256 MiB in float32;
        on a CPU and outside compiled code, 2¹⁸ for each thread of a batch of more than 2²⁰, which is up to twice as
        fast because samples stay in its cache.

    Returns
    -------
    Tensor, shape (..., (l₃ + 1)²)
        In the dtype of x; half precision is computed in float32. Twice differentiable: products of matrices only.

    Raises
    ------
    ShapeError
        If a last dimension does not fit its degree, or x and y differ in dtype or device or do not broadcast.
    ArgumentTypeError
        If x or y is not real floating point, or a degree not an integer.
    ArgumentError
        If l₃ > l₁ + l₂, a degree is negative, or a name unknown.

    References
    ----------
    S. Luo, T. Chen, A. S. Krishnapriyan (2024), ICLR, arXiv 2401.10216; on the expressive power, Y. Xie, A. Daigavane,
    M. Kotak, T. Smidt (2025), arXiv 2506.13523.
    """
    call = "gaunt_tensor_product"
    x, y, dtype = _pair(call, x, y, (l1, l2, l3), l1 + l2, "l1 + l2", normalization, max_grid_elements)
    chosen = _chosen(call, backend, l1 + l2)
    if chosen == "cg":
        table = _tables.gaunt_table(l1, l2, l3, normalization, x.dtype, x.device)
        return torch.einsum("...a,...b,abc->...c", x, y, table).to(dtype)
    if chosen == "fourier":
        tables = _tables.fourier_tables(l1, l2, l3, normalization, x.dtype, x.device)
        z = _by_chunks(lambda a, b: _fourier_product(a, b, tables), (x, y), tables.size**2, max_grid_elements)
        return z.to(dtype)
    way = _sampling(chosen, l1 + l2, l3, normalization, x)

    def product(a: Tensor, b: Tensor) -> Tensor:
        return way.project(way.evaluate(a, l1, "value") * way.evaluate(b, l2, "value"), l3, False)

    return _by_chunks(product, (x, y), way.samples, max_grid_elements).to(dtype)


def antisymmetric_tensor_product(
    x: Tensor,
    y: Tensor,
    l1: int,
    l2: int,
    l3: int,
    *,
    backend: Literal["auto", "dense", "grid"] = "auto",
    normalization: Normalization = "integral",
    max_grid_elements: int | None = None,
) -> Tensor:
    """Expand the Poisson bracket {f_x, f_y} = r · (∇f_x × ∇f_y): the paths with l₁ + l₂ + l₃ odd, in O(L³) as well.

    {f, g} = (∂_t f ∂_p g - ∂_p f ∂_t g) / sin t is a polynomial again, of degree l₁ + l₂ - 1. For vectors, l = 1, it is
    √(3 / 4π) x × y. It changes sign when x and y change places, and two features of natural parity (-1)ˡ give one of
    the opposite, -(-1)ˡ: pseudovectors, pseudoscalars one product later.

    Parameters
    ----------
    x : Tensor, shape (..., (l₁ + 1)²)
        Index l² + l + m. Leading dimensions broadcast against those of y. Degree 0 does not matter.
    y : Tensor, shape (..., (l₂ + 1)²)
        Of the same dtype and device.
    l1, l2, l3 : int
        Largest degrees; l₃ <= max(l₁ + l₂ - 1, 0).
    backend : {"auto", "dense", "grid"}, default "auto"
        As for `gaunt_tensor_product`.
    normalization : {"integral", "component", "norm"}, default "integral"
        Of the harmonics that the features are coefficients of.
    max_grid_elements : int, optional
        Samples held at once, for each of four functions. Default: as for `gaunt_tensor_product`.

    Returns
    -------
    Tensor, shape (..., (l₃ + 1)²)
        In the dtype of x; degree 0 is zero, since a bracket integrates to nothing.

    Raises
    ------
    ShapeError
        If a last dimension does not fit its degree, or x and y differ in dtype or device or do not broadcast.
    ArgumentTypeError
        If x or y is not real floating point, or a degree not an integer.
    ArgumentError
        If l₃ is too large, a degree negative, or a name unknown.

    Notes
    -----
    Not in the paper on Gaunt products: the even paths are its subject.
    """
    call = "antisymmetric_tensor_product"
    x, y, dtype = _pair(call, x, y, (l1, l2, l3), max(l1 + l2 - 1, 0), "l1 + l2 - 1", normalization, max_grid_elements)
    if backend not in ("auto", "dense", "grid"):
        raise ArgumentError(f"{call}: expected backend to be one of auto, dense, grid, got {backend!r}")
    way = _sampling(_chosen(call, backend, l1 + l2), l1 + l2, l3, normalization, x)
    evaluate = way.evaluate

    def bracket(a: Tensor, b: Tensor) -> Tensor:
        samples = evaluate(a, l1, "dt") * evaluate(b, l2, "dp") - evaluate(a, l1, "dp") * evaluate(b, l2, "dt")
        return way.project(samples, l3, True)

    return _by_chunks(bracket, (x, y), way.samples, max_grid_elements).to(dtype)


def gaunt_many_body(
    x: Tensor,
    l_in: int,
    l_out: int,
    order: int,
    weights: Tensor | None = None,
    *,
    backend: Literal["auto", "dense", "grid"] = "auto",
    normalization: Normalization = "integral",
    max_grid_elements: int | None = None,
) -> Tensor:
    """Raise a function to a power, or to a polynomial, on one grid: the coefficients of Σ_ν w_ν f_xᵛ.

    x^{⊗ν}, the product of ν copies of x, mixes ν neighbours at once. Because the product is pointwise, it costs
    one evaluation and one projection on a grid for degree ν l_in + l_out, whatever ν; nothing is cut off on the way.

    Parameters
    ----------
    x : Tensor, shape (..., (l_in + 1)²)
        Index l² + l + m.
    l_in, l_out : int
        Largest degrees; l_out <= order · l_in.
    order : int
        The largest ν >= 1.
    weights : Tensor, shape (..., order), optional
        w_ν for ν = 1 to ``order``; leading dimensions broadcast against those of x. Default: the last power alone.
    backend : {"auto", "dense", "grid"}, default "auto"
        "auto" is "dense" while ``order * l_in <= 10``.
    normalization : {"integral", "component", "norm"}, default "integral"
        Of the harmonics that the features are coefficients of.
    max_grid_elements : int, optional
        Samples held at once: longer batches are cut. Default: as for `gaunt_tensor_product`.

    Returns
    -------
    Tensor, shape (..., (l_out + 1)²)
        In the dtype of x.

    Raises
    ------
    ShapeError
        If a last dimension does not fit, or weights differ from x in dtype or device or do not broadcast.
    ArgumentTypeError
        If x is not real floating point, or a degree not an integer.
    ArgumentError
        If ``l_out > order * l_in``, ``order < 1``, a degree is negative, or a name unknown.

    References
    ----------
    S. Luo, T. Chen, A. S. Krishnapriyan (2024), ICLR, arXiv 2401.10216, section on many-body interactions.
    """
    call = "gaunt_many_body"
    check_count(call, "order", order, 1)
    _check_limit(call, max_grid_elements)
    _check_counts(call, {"l_in": l_in, "l_out": l_out}, order * l_in, "order · l_in")
    check_features(call, "x", x, l_in)
    check_normalization(call, normalization)
    if backend not in ("auto", "dense", "grid"):
        raise ArgumentError(f"{call}: expected backend to be one of auto, dense, grid, got {backend!r}")
    dtype, wide = x.dtype, compute_dtype(x.dtype)
    if weights is not None:
        _check_same(call, "weights", weights, x)
        if weights.ndim == 0 or weights.shape[-1] != order:
            raise ShapeError(f"{call}: expected weights of shape (..., {order}), got {tuple(weights.shape)}")
        shape = _broadcast(call, "weights", x.shape[:-1], weights.shape[:-1])
        x, weights = x.expand(*shape, x.shape[-1]), weights.expand(*shape, order).to(wide)
    x = x.to(wide)
    way = _sampling(_chosen(call, backend, order * l_in), order * l_in, l_out, normalization, x)

    def power(a: Tensor) -> Tensor:
        return way.project(way.evaluate(a, l_in, "value") ** order, l_out, False)

    def polynomial(a: Tensor, w: Tensor) -> Tensor:
        samples = way.evaluate(a, l_in, "value")
        columns = [way.spread(column) for column in w.unbind(1)]
        total = columns[-1] * samples
        for column in reversed(columns[:-1]):
            total = (total + column) * samples
        return way.project(total, l_out, False)

    if weights is None:
        return _by_chunks(power, (x,), way.samples, max_grid_elements).to(dtype)
    return _by_chunks(polynomial, (x, weights), way.samples, max_grid_elements).to(dtype)


def fastest_backend(
    l1: int,
    l2: int,
    l3: int,
    *,
    batch: int = 512,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    repeats: int = 7,
) -> Backend:
    """Time every backend of `gaunt_tensor_product` once on this machine and name the fastest.

    Parameters
    ----------
    l1, l2, l3 : int
        Degrees, as there.
    batch : int, default 512
        Rows, channels included.
    dtype, device
        Of the features. Default: float32 on the CPU.
    repeats : int, default 7
        Calls of each, after two that do not count; their median decides.

    Returns
    -------
    str
        For ``backend=``. Repeat the question only if shape or machine change: it takes longer than it saves in a call.

    Raises
    ------
    ArgumentError
        If degrees or numbers are out of range.
    """
    check_count("fastest_backend", "batch", batch, 1)
    check_count("fastest_backend", "repeats", repeats, 1)
    _check_counts("fastest_backend", {"l1": l1, "l2": l2, "l3": l3}, l1 + l2, "l1 + l2")
    place = torch.device(device)
    x, y = (torch.ones(batch, (size + 1) ** 2, dtype=dtype, device=place) for size in (l1, l2))
    names: list[Backend] = ["dense", "grid", "fourier"]
    if max(l1, l2) <= 4:  # beyond, the table of all coefficients is slower by far and soon does not fit
        names.append("cg")
    return min(names, key=lambda name: _seconds(x, y, (l1, l2, l3), name, repeats))


def _seconds(x: Tensor, y: Tensor, degrees: tuple[int, int, int], backend: Backend, repeats: int) -> float:
    taken = []
    with torch.no_grad():
        for _ in range(repeats + 2):
            start = time.perf_counter()
            gaunt_tensor_product(x, y, *degrees, backend=backend)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            taken.append(time.perf_counter() - start)
    return median(taken[2:])


def _pair(
    call: str,
    x: Tensor,
    y: Tensor,
    degrees: tuple[int, int, int],
    limit: int,
    reason: str,
    normalization: str,
    max_grid_elements: int | None,
) -> tuple[Tensor, Tensor, torch.dtype]:
    # Both features, checked, of one shape and in the dtype of the arithmetic; and that of the result
    l1, l2, l3 = degrees
    _check_counts(call, {"l1": l1, "l2": l2, "l3": l3}, limit, reason)
    _check_limit(call, max_grid_elements)
    check_normalization(call, normalization)
    check_features(call, "x", x, l1)
    check_features(call, "y", y, l2)
    _check_same(call, "y", y, x)
    dtype, wide = x.dtype, compute_dtype(x.dtype)
    x, y = x.to(wide), y.to(wide)
    if x.shape[:-1] != y.shape[:-1]:
        shape = _broadcast(call, "y", x.shape[:-1], y.shape[:-1])
        x, y = x.expand(*shape, -1), y.expand(*shape, -1)
    return x, y, dtype


def _check_limit(call: str, max_grid_elements: int | None) -> None:
    if max_grid_elements is not None:
        check_count(call, "max_grid_elements", max_grid_elements, 1)


def _check_counts(call: str, degrees: dict[str, int], limit: int, reason: str) -> None:
    for name, degree in degrees.items():
        check_count(call, name, degree)
    last, value = list(degrees.items())[-1]
    if value > limit:
        raise ArgumentError(
            f"{call}: expected {last} <= {reason} = {limit}, got {value}: the product holds no higher degree"
        )


def _check_same(call: str, name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.dtype != x.dtype or tensor.device != x.device:
        raise ShapeError(
            f"{call}: {name} is {tensor.dtype} on {tensor.device}, x is {x.dtype} on {x.device}; give both the same"
        )


def _broadcast(call: str, name: str, first: torch.Size, second: torch.Size) -> torch.Size:
    try:
        return torch.broadcast_shapes(first, second)
    except RuntimeError as error:
        raise ShapeError(
            f"{call}: leading dimensions {tuple(first)} of x and {tuple(second)} of {name} do not broadcast"
        ) from error


def _chosen(call: str, backend: str, within: int) -> str:
    if backend not in _BACKENDS:
        raise ArgumentError(f"{call}: expected backend to be one of {', '.join(_BACKENDS)}, got {backend!r}")
    if backend == "auto":
        return "dense" if within <= 10 else "grid"
    return backend


class _Sampling(NamedTuple):
    """Both ways between rows of coefficients and samples, whose layout is the back end's own."""

    evaluate: Callable[[Tensor, int, _tables.Kind], Tensor]  # (B, K) to samples
    project: Callable[[Tensor, int, bool], Tensor]  # samples, divided by sin t or not, to (B, K)
    spread: Callable[[Tensor], Tensor]  # one number a row, (B,), so that it multiplies the samples of the row
    samples: int  # of a row


def _sampling(backend: str, within: int, l_out: int, normalization: Normalization, like: Tensor) -> _Sampling:
    # ``within``: the degree of the product before it is cut off at l_out
    where = (normalization, like.dtype, like.device)
    degree = within + l_out
    polar, azimuth = _tables.grid_size(degree)

    def dense_evaluate(a: Tensor, l_max: int, kind: _tables.Kind) -> Tensor:
        return a @ _tables.dense_evaluation(l_max, within, degree, kind, *where)  # (B, S)

    def dense_project(samples: Tensor, l_max: int, over_sine: bool) -> Tensor:
        return samples @ _tables.dense_projection(l_max, within, degree, over_sine, *where)

    def grid_evaluate(a: Tensor, l_max: int, kind: _tables.Kind) -> Tensor:
        table = _tables.separable_evaluation(l_max, l_max, degree, kind, *where)
        return table.azimuth @ _tables.to_meridians(a, table).flatten(1)  # (P, T B)

    def grid_project(samples: Tensor, l_max: int, over_sine: bool) -> Tensor:
        table = _tables.separable_projection(l_max, degree, over_sine, *where)
        orders = table.azimuth @ samples
        return _tables.from_meridians(orders.view(len(orders), polar, samples.shape[1] // polar), table)

    if backend == "dense":
        samples = _tables.num_dense_samples(within, degree)
        return _Sampling(dense_evaluate, dense_project, lambda weight: weight[:, None], samples)
    return _Sampling(grid_evaluate, grid_project, lambda weight: weight.repeat(polar), polar * azimuth)


def _by_chunks(
    function: Callable[..., Tensor], features: tuple[Tensor, ...], samples: int, max_grid_elements: int | None
) -> Tensor:
    # Apply to rows of all leading dimensions, as many at once as the limit allows
    shape = features[0].shape[:-1]
    rows = [feature.reshape(-1, feature.shape[-1]) for feature in features]
    count = rows[0].shape[0]
    limit = max_grid_elements or _default_limit(count * samples, rows[0].device)
    size = max(1, limit // samples)
    if count <= size:
        z = function(*rows)
        return z.reshape(*shape, z.shape[-1])
    even = math.ceil(count / math.ceil(count / size))
    pieces = zip(*(row.split(even) for row in rows), strict=True)
    z = torch.cat([function(*piece) for piece in pieces])
    return z.reshape(*shape, z.shape[-1])


def _default_limit(total: int, device: torch.device) -> int:
    if device.type != "cpu" or torch.compiler.is_compiling():  # a compiler would unroll one body for each piece
        return _MOST_SAMPLES
    threads = torch.get_num_threads()
    return min(_MOST_SAMPLES, threads * _CACHED_SAMPLES if total > threads * _WORTH_CUTTING else total)


def _fourier_product(x: Tensor, y: Tensor, tables: _tables.FourierTables) -> Tensor:
    # Multiply on the torus: harmonics to Fourier series, samples, their product, and back
    n = tables.size
    if not len(x):
        return x.new_zeros(0, len(tables.minus[2]))  # the FFT refuses an empty batch
    f, g = (
        torch.fft.irfft2(_series(a, table, plus, minus, n), s=(n, n), norm="forward")
        for a, table, plus, minus in (
            (x, tables.first, tables.plus[0], tables.minus[0]),
            (y, tables.second, tables.plus[1], tables.minus[1]),
        )
    )
    spectrum = torch.fft.rfft2(f * g, norm="forward")  # (B, N, N // 2 + 1)
    orders, _, _ = tables.back.shape
    sums = spectrum[..., :orders].permute(2, 0, 1) @ tables.back  # (m, B, l)
    by_row = sums.permute(1, 0, 2).flatten(1)[:, tables.plus[2]]
    return torch.where(tables.minus[2], -by_row.imag, by_row.real)


def _series(x: Tensor, table: Tensor, plus: Tensor, minus: Tensor, n: int) -> Tensor:
    # (B, N, m): Fourier coefficients of a row, u in the order of the FFT, v = m >= 0 (the others are conjugates)
    orders, _, width = table.shape
    pair = torch.complex(x[:, plus], -x[:, minus]).unflatten(1, (orders, orders))
    pair = torch.cat([pair[:, :1].real.to(pair.dtype), pair[:, 1:]], 1)  # order zero has no sine
    series = (pair.permute(1, 0, 2) @ table).permute(1, 2, 0)  # (B, u, m)
    middle = series.new_zeros(len(x), n - width, orders)
    half = width // 2
    return torch.cat([series[:, half:], middle, series[:, :half]], 1)
