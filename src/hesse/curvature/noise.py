"""How much the curvature of a loss varies from example to example: measured along eigenvectors, and on average.

    C = mean_i (H_i - H)²        s_k² = v_kᵀ C v_k        Pσ² = tr C / P        s_max² = λ_max(C)

H is the mean of the curvatures H_i of single examples, v_k its eigenvectors. The curvature of a batch of B examples
drawn without replacement from N deviates from H by s_k²/b in mean square along v_k, with 1/b = 1/B - 1/N; in the mean
over all unit vectors by Pσ²/b, which for networks is a hundred times less.

Shapes: P parameters, K directions, n sampled examples of N.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from hesse.curvature.batches import BatchStream, as_batches, to_device
from hesse.curvature.hessian import CurvatureOperator, Function
from hesse.curvature.of_loss import Matrix, loss_curvature
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError
from hesse.linalg import LinearOperator, as_linear_operator, eigsh
from hesse.linalg._random import sphere_columns

__all__ = ["CurvatureNoise", "curvature_noise", "shuffled"]

_CHUNK_BYTES = 2**27  # of per-example products held at once, where the caller names no chunk


@dataclass(frozen=True, slots=True)
class CurvatureNoise:
    """Eigenvalues of the mean curvature, and the spread of single examples around it. All in float64.

    Variances are those of the N examples, unbiased; errors are one standard error of the sampling.
    """

    eigenvalues: Tensor  # (K,), falling; of the mean curvature, in units of the loss per squared unit of a parameter
    eigenvectors: Tensor  # (P, K), orthonormal
    directional: Tensor  # (K,), s_k²
    directional_error: Tensor  # (K,)
    coupling: Tensor  # (K, K), mean_i of Vᵀ(H_i - H)(I - VVᵀ)(H_i - H)V: the part of s² that leaves the K directions
    blocks: Tensor  # (n, K, K), Vᵀ(H_i - H)V of every sampled example
    largest_variance: Tensor  # (), s_max², the most that any direction has; at least the largest of ``directional``
    largest_variance_error: Tensor  # (), of the direction found, whose choice biases s_max² upwards
    p_sigma2: Tensor  # (), Pσ²
    p_sigma2_error: Tensor  # ()
    bulk_trace: Tensor  # (), tr H less the K eigenvalues, from the same probes
    bulk_trace_error: Tensor  # ()
    num_examples: int  # N
    matrix: Matrix

    @property
    def num_samples(self) -> int:
        """n, the number of examples looked at."""
        return self.blocks.shape[0]

    @property
    def num_parameters(self) -> int:
        """P."""
        return self.eigenvectors.shape[0]


def curvature_noise(
    loss_fn: Function,
    target: Any,
    data: Any,
    *,
    matrix: Matrix = "hessian",
    num_directions: int = 4,
    directions: Tensor | None = None,
    num_samples: int = 400,
    num_probes: int = 8,
    edge_steps: int = 12,
    names: Iterable[str] | None = None,
    chunk_size: int | None = None,
    tol: float = 1e-3,
    generator: Generator | None = None,
) -> CurvatureNoise:
    """Measure s_k² along the leading eigenvectors, s_max² and Pσ², from products with the curvature of single examples.

    Parameters
    ----------
    loss_fn : callable
        (model, batch) -> scalar, the *mean* loss over the batch; or (parameters, batch) if ``target`` is a mapping.
    target : nn.Module or mapping of str to Tensor
        The model (its parameters that require a gradient), or named tensors. Dropout off, batch norm in evaluation
        mode: with batch statistics there is no curvature of a single example.
    data : tensors, list or DataLoader
        All N examples: tensors, or tuples or dictionaries of them such as ``(inputs, labels)``, with one leading axis;
        a list of such batches, or a loader that does not shuffle, for data whose pass does not fit in memory.
    matrix : {"hessian", "ggn"}, default "hessian"
        The Gauss-Newton matrix is the better choice with ReLU, whose second derivatives are blind to kinks.
    num_directions : int, default 4
        K leading eigenvectors, by value; for "hessian" the one of the smallest eigenvalue comes on top of them.
    directions : Tensor, shape (P, K), optional
        Orthonormal directions to use instead; their Rayleigh quotients then stand for eigenvalues.
    num_samples : int, default 400
        n <= N examples, drawn without replacement; N where that is less.
    num_probes : int, default 8
        Random directions, two or more; every example meets all of them.
    edge_steps : int, default 12
        Lanczos steps for s_max², each of two products with every sampled example; 12 give it to a percent. Zero takes
        the largest of the other s² in its place.
    names : iterable of str, optional
        Only these parameters: the noise of one layer. Default: all.
    chunk_size : int, optional
        Examples to a vectorised pass. Default: what fits 128 MiB of products.
    tol : float, default 1e-3
        Of the eigenvectors, see `eigsh`; s² is quadratic in them and known far less well.
    generator : torch.Generator, optional
        Draws examples, probes and Lanczos' start. Default: torch's global generator.

    Returns
    -------
    CurvatureNoise
        Exact but for sampling: with ``num_samples`` = N the directional numbers have no sampling error at all. Products
        are in the dtype of the parameters, sums in float64; half precision is too coarse for second derivatives. Single
        examples can dominate s² (after training often one in a thousand does), so take all N where that is affordable.

    Raises
    ------
    ArgumentError
        If an option is out of range, ``loss_fn`` does not average over examples, or there are fewer than two examples.
    ArgumentTypeError
        If ``target`` is of another kind, or the data hold no tensors.
    ShapeError
        If tensors of the data differ in their leading axis, or ``directions`` do not fit.
    NumericalError
        If a product has NaN or Inf.

    Notes
    -----
    Some tens of products with the whole data for the eigenvectors, then K + ``num_probes`` + 2 ``edge_steps`` products
    with each of n examples, vectorised; O(P K chunk_size) memory.

    References
    ----------
    D. Granziol, S. Zohren, S. Roberts (2022), JMLR 23, arXiv 2006.09092; the directional variance is ours.
    """
    call = "curvature_noise"
    batches = as_batches(call, data)
    sizes = _sizes(call, batches)
    total = sum(sizes)
    if total < 2:
        raise ArgumentError(f"{call}: expected two or more examples, got {total}; one shows no spread")
    for option, value, low in (
        ("num_samples", num_samples, 2),
        ("num_probes", num_probes, 2),
        ("edge_steps", edge_steps, 0),
        ("chunk_size", 1 if chunk_size is None else chunk_size, 1),
    ):
        if value < low:
            raise ArgumentError(f"{call}: expected {option} >= {low}, got {value}")
    names = None if names is None else list(names)
    whole = loss_curvature(loss_fn, target, batches, matrix=matrix, names=names, reduction="weighted_mean")
    _check_mean(call, loss_fn, target, to_device(next(iter(batches)), whole.device))
    order = whole.shape[0]
    if directions is None:
        if not 1 <= num_directions < order:
            raise ArgumentError(f"{call}: expected 1 <= num_directions < {order}, got {num_directions}")
        vectors = _leading(whole, num_directions, matrix, tol, generator)
    else:
        vectors = _checked_directions(call, directions, order)
    k = vectors.shape[1]
    probes = sphere_columns(order, num_probes, dtype=torch.float64, device=whole.device, generator=generator)
    probes = probes / order**0.5
    columns = torch.cat([vectors, probes], dim=1)

    images = _finite(call, whole.matmat(columns.to(whole.dtype)).detach().double())
    count = min(num_samples, total)
    chosen = shuffled(total, generator)[:count]
    width = chunk_size if chunk_size is not None else max(1, _CHUNK_BYTES // (columns.numel() * 8))
    parts = [to_device(part, whole.device) for part in _sampled(batches, sizes, chosen, width)]

    def example_products(part: Any, block: Tensor) -> Tensor:
        # (c, P, K) for a block (P, K) that all examples share, or (c, P, K) of their own
        def of_one(batch: Any) -> LinearOperator:
            return loss_curvature(loss_fn, target, [batch], matrix=matrix, names=names)  # a loader's batch is a list

        return _finite(call, _per_example(of_one, part, block.to(whole.dtype)).detach().double())

    squared, blocks, coupling = _moments(parts, example_products, columns, images, vectors)
    unbiased = total / (total - 1)
    finite = (1 - count / total) ** 0.5  # a sample of all examples leaves no sampling error
    squared = squared * unbiased
    spread = squared.std(0) / count**0.5 * finite
    over_examples = squared[:, k:].mean(1).std() / count**0.5 * finite
    over_probes = squared[:, k:].mean(0).std() / num_probes**0.5
    most = squared.mean(0).argmax()
    largest, largest_error = squared[:, most].mean(), spread[most]
    if edge_steps > 0:
        found = _noisiest(whole, parts, example_products, edge_steps, generator) * unbiased
        if float(found.mean()) > float(largest):
            largest, largest_error = found.mean(), found.std() / count**0.5 * finite
    trace, trace_error = _bulk_trace(probes, images, vectors, k)
    values = (vectors * images[:, :k]).sum(0)
    falling = values.argsort(descending=True)
    return CurvatureNoise(
        eigenvalues=values[falling],
        eigenvectors=vectors[:, falling],
        directional=squared[:, :k].mean(0)[falling],
        directional_error=spread[:k][falling],
        coupling=(coupling * unbiased)[falling][:, falling],
        blocks=blocks[:, falling][:, :, falling],
        largest_variance=largest,
        largest_variance_error=largest_error,
        p_sigma2=squared[:, k:].mean(),
        p_sigma2_error=(over_examples.square() + over_probes.square()).sqrt(),
        bulk_trace=trace,
        bulk_trace_error=trace_error,
        num_examples=total,
        matrix=matrix,
    )


def shuffled(count: int, generator: Generator | None) -> Tensor:
    """Draw a random order.

    Parameters
    ----------
    count : int
        Of how many.
    generator : torch.Generator, optional
        Source of the numbers, on any device. Default: torch's global generator.

    Returns
    -------
    Tensor of int64, shape (count,)
        On the CPU.
    """
    home = torch.device("cpu") if generator is None else generator.device
    return torch.randperm(count, generator=generator, device=home).cpu()


def _sizes(call: str, batches: list[Any] | BatchStream) -> list[int]:
    sizes: list[int] = []
    for batch in batches:
        leaves = tree_flatten(batch)[0]
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
            raise ArgumentTypeError(f"{call}: data must be tensors, or tuples or dictionaries of them")
        lengths = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves}
        if len(lengths) != 1 or 0 in lengths:
            raise ShapeError(
                f"{call}: the tensors of a batch need one leading axis, the examples; got lengths {sorted(lengths)}"
            )
        sizes.append(lengths.pop())
    return sizes


def _check_mean(call: str, loss_fn: Function, target: Any, batch: Any) -> None:
    with torch.no_grad():
        alone = float(loss_fn(target, tree_map(lambda leaf: leaf[:1], batch)))
        twice = float(loss_fn(target, tree_map(lambda leaf: torch.cat([leaf[:1], leaf[:1]]), batch)))
        whole = float(loss_fn(target, batch))
    if not math.isfinite(whole):
        raise NumericalError(f"{call}: loss_fn is {whole} on the first batch of data; are there NaN or Inf in it?")
    if abs(twice - alone) > 1e-2 * abs(alone) + 1e-6:
        raise ArgumentError(
            f"{call}: loss_fn must average over examples, but the loss of an example and its copy together is "
            f"{twice:.6g}, of the example alone {alone:.6g}"
        )


def _leading(
    operator: CurvatureOperator, count: int, matrix: Matrix, tol: float, generator: Generator | None
) -> Tensor:
    vectors = eigsh(operator, count, which="LA", tol=tol, generator=generator).eigenvectors.double()
    if matrix == "hessian":
        lowest = eigsh(operator, 1, which="SA", tol=tol, generator=generator).eigenvectors.double()
        vectors = torch.cat([vectors, lowest], dim=1)
    return torch.linalg.qr(vectors).Q


def _checked_directions(call: str, directions: Tensor, order: int) -> Tensor:
    if directions.ndim != 2 or directions.shape[0] != order or not 1 <= directions.shape[1] <= order:
        raise ShapeError(
            f"{call}: expected directions of shape ({order}, k), k <= {order}, got {tuple(directions.shape)}"
        )
    wide = directions.detach().double()
    gram = wide.mT @ wide
    if float((gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).abs().max()) > 1e-3:
        raise ArgumentError(f"{call}: directions are not orthonormal; take the Q of torch.linalg.qr")
    Q, R = torch.linalg.qr(wide)
    return Q * R.diagonal().sign()  # QR may turn a column round


def _sampled(batches: list[Any] | BatchStream, sizes: list[int], chosen: Tensor, width: int) -> Iterator[Any]:
    # the chosen examples of every batch, in parts of at most `width`
    start = 0
    for batch, size in zip(batches, sizes, strict=True):
        here = chosen[(chosen >= start) & (chosen < start + size)] - start
        start += size
        for rows in here.split(width):
            if len(rows):
                yield tree_map(lambda leaf, rows=rows: leaf[rows.to(leaf.device)], batch)


def _per_example(of_one: Callable[[Any], LinearOperator], part: Any, block: Tensor) -> Tensor:
    leaves, structure = tree_flatten(part)

    def one(columns: Tensor, *example: Tensor) -> Tensor:
        return of_one(tree_unflatten([leaf.unsqueeze(0) for leaf in example], structure)).matmat(columns)

    axes = (0 if block.ndim == 3 else None, *[0] * len(leaves))
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no rule for a further batch axis
        return torch.vmap(one, in_dims=axes)(block, *leaves)


def _moments(
    parts: list[Any],
    example_products: Callable[[Any, Tensor], Tensor],
    columns: Tensor,
    images: Tensor,
    vectors: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    # of D_i = H_i - H: squared lengths (n, K + probes) on all columns, the blocks VᵀD_iV (n, K, K), and the mean of
    # VᵀD_i(I - VVᵀ)D_iV
    k = vectors.shape[1]
    squares: list[Tensor] = []
    blocks: list[Tensor] = []
    coupling = columns.new_zeros(k, k)
    for part in parts:
        deviations = example_products(part, columns) - images  # (c, P, K + probes)
        squares.append(deviations.square().sum(1))
        along = deviations[:, :, :k]
        inside = torch.einsum("pk,cpj->ckj", vectors, along)
        outside = along - torch.einsum("pk,ckj->cpj", vectors, inside)
        blocks.append((inside + inside.mT) / 2)
        coupling = coupling + torch.einsum("cpk,cpj->kj", outside, outside)
    squared = torch.cat(squares)
    return squared, torch.cat(blocks), coupling / len(squared)


def _noisiest(
    whole: LinearOperator,
    parts: list[Any],
    example_products: Callable[[Any, Tensor], Tensor],
    num_steps: int,
    generator: Generator | None,
) -> Tensor:
    # (n,), ‖(H_i - H) u‖² for the leading eigenvector u of C over the sampled examples
    def images_of(block: Tensor) -> Tensor:
        return whole.matmat(block.to(whole.dtype)).detach().double()

    def deviations(block: Tensor) -> list[Tensor]:
        mean = images_of(block)
        return [example_products(part, block) - mean for part in parts]

    def square(block: Tensor) -> Tensor:
        once = deviations(block.double())
        total = sum(example_products(part, each).sum(0) for part, each in zip(parts, once, strict=True))
        count = sum(len(each) for each in once)
        mean = torch.cat(once).mean(0)
        return ((total / count) - images_of(mean)).to(block.dtype)

    C = as_linear_operator(square, shape=whole.shape, dtype=whole.dtype, device=whole.device, is_psd=True)
    found = eigsh(C, 1, which="LA", tol=1e-2, max_steps=num_steps, basis_size=max(num_steps, 2), generator=generator)
    return torch.cat([each.square().sum((1, 2)) for each in deviations(found.eigenvectors.double())])


def _finite(call: str, products: Tensor) -> Tensor:
    if not bool(torch.isfinite(products).all()):
        raise NumericalError(f"{call}: a product with the curvature has NaN or Inf")
    return products


def _bulk_trace(probes: Tensor, images: Tensor, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if k == probes.shape[0]:
        return probes.new_zeros(()), probes.new_zeros(())
    # probes less their part along the directions, whose share of the trace is known: zᵀHz/‖z‖² in P - K dimensions
    along = vectors.mT @ probes
    rest = probes - vectors @ along
    image = images[:, k:] - images[:, :k] @ along
    samples = (rest * image).sum(0) / rest.square().sum(0) * (probes.shape[0] - k)
    return samples.mean(), samples.std() / len(samples) ** 0.5
