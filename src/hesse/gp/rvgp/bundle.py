"""The tangent bundle of a surface known by points alone: frames, parallel transport, Laplacians and their eigenfields.

Shapes: N nodes in D coordinates, tangent dimension d, E directed edges, M eigenpairs.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hesse._points import points_of
from hesse.errors import ArgumentError, ConvergenceError, NumericalError, ShapeError
from hesse.gp.rvgp.fields import Singularities, covariant_jacobian, heat, singularities, winding_numbers
from hesse.gp.rvgp.frames import (
    block_laplacian,
    estimate_dimension,
    parallel_transport,
    principal_directions,
    surroundings,
)
from hesse.gp.rvgp.graph import GraphKind, attach, neighbour_graph
from hesse.linalg import Sparse, lobpcg, shift_inverse

__all__ = ["EigenFields", "TangentBundle", "Transport"]

ALIGNED = 0.3  # cosine of the angle between neighbouring planes below which the sampling misses the curvature
GUARD = 24  # further pairs computed, to see where a multiplet ends: 16 is the largest of a square torus
MULTIPLET = 1e-7  # eigenvalues nearer than that, relative, are one
DENSE_ORDER = 2000  # below, a dense eigendecomposition takes a few seconds at most
SHIFT = -1e-3  # of the largest diagonal entry: the factored matrix is then safely definite
MODE_FLOOR = 0.1  # of the degree: eigenfields beyond λ = 0.9 are too rough to be continued by averaging


@dataclass(frozen=True, slots=True)
class Transport:
    """Parallel transport along the edges of the graph."""

    rows: Tensor  # (E,) int64
    cols: Tensor  # (E,) int64
    blocks: Tensor  # (E, d, d), coordinates at cols to coordinates at rows
    alignment: Tensor  # (E,), cosine of the largest angle between the two planes


@dataclass(frozen=True, slots=True)
class EigenFields:
    """The M smoothest fields of an operator L u = λ M u, and how smooth each is."""

    eigenvalues: Tensor  # (M,), rising
    fields: Tensor  # (N, d, M) in tangent coordinates; d = 1 for functions. Mean square 1 over the whole spectrum

    @property
    def mean_squares(self) -> Tensor:
        """Mean square of the components of each field, shape (M,)."""
        return self.fields.square().mean((0, 1))


class TangentBundle:
    """Tangent planes of a cloud, joined by parallel transport; no mesh, no chart, no embedding formula.

    A graph joins each point with its nearest. A tangent plane T_i is spanned by the principal directions of the points
    around x_i along the graph, transport is O_ij = U Vᵀ with T_iᵀ T_j = U S Vᵀ, and the connection Laplacian is
    L_c = D ⊗ I - [w_ij O_ij]. Its smallest eigenfields are the smoothest tangent fields that the surface allows.

    Parameters
    ----------
    X : array or Tensor, shape (P, D)
        The cloud; even sampling helps (`furthest_point_sampling`). Equal rows become one node.
    num_neighbors : int, default 15
        K; 15 to 30 for the Gaussian graph (on a sphere of 600 points errors fall up to 30), 10 for the paper's.
    dim : int, optional
        d, 1 to D. Default: estimated from ``explained_variance``.
    graph : {"gaussian", "paper"}, default "gaussian"
        Self-tuned Gaussian weights, corrected for density, and the random-walk Laplacian; or weights 0 and 1 and the
        plain Laplacian, as in the paper. The first approximates the Laplacian of the surface far better.
    explained_variance : float, default 0.9
        Share of a neighbourhood's variance that d directions must carry, for the estimate of d.
    allow_disconnected : bool, default False
        Whether the graph may fall into several components: each then has zeros of its own in the spectrum, and nothing
        is learnt about one from observations on another.

    Attributes
    ----------
    points : Tensor, shape (N, D)
        Nodes, in float64.
    node_of : Tensor of int64, shape (P,)
        Node of each row of X.
    dim : int
        d.
    graph : NeighbourGraph
        Edges and weights.
    frames : Tensor, shape (N, D, d)
        T, orthonormal columns; an arbitrary basis of each plane, on which no result depends.
    transport : Transport
        O.
    connection_laplacian, laplacian : Sparse
        Of fields, order N d, and of functions, order N; symmetric, M^-½ L M^-½ with M the degrees (Gaussian) or 1.

    Raises
    ------
    ShapeError
        If X is no cloud.
    NumericalError
        If X has NaN or Inf.
    ArgumentError
        If an argument is out of range, or the graph is disconnected and that is not allowed.

    Warns
    -----
    UserWarning
        If neighbouring planes are nearly perpendicular somewhere: the sampling does not resolve the curvature.

    Notes
    -----
    Geometry is in float64 on the CPU, whatever X is: trees and sparse factorisations live there. O(N K D) memory.
    No orientation is used, so that a Möbius strip is as good as any surface.

    References
    ----------
    R. L. Peach et al. (2024), ICLR, arXiv 2309.16746. A. Singer, H.-T. Wu (2012), Commun. Pure Appl. Math. 65(8).

    Examples
    --------
    >>> angle = torch.linspace(0, 6.2, 40)
    >>> bundle = TangentBundle(torch.stack([angle.cos(), angle.sin()], dim=1), num_neighbors=4)
    >>> bundle.dim, tuple(bundle.frames.shape)
    (1, (40, 2, 1))
    """

    def __init__(
        self,
        X: Tensor | np.ndarray,
        num_neighbors: int = 15,
        dim: int | None = None,
        graph: GraphKind = "gaussian",
        explained_variance: float = 0.9,
        *,
        allow_disconnected: bool = False,
    ) -> None:
        cloud = points_of("TangentBundle", "X", X, dtype=torch.float64).cpu()
        self.points, self.node_of = _merged(cloud)
        total, width = self.points.shape
        if graph not in ("gaussian", "paper"):
            raise ArgumentError(f"TangentBundle: graph must be gaussian or paper, got {graph!r}")
        if not 2 <= num_neighbors < total:
            raise ArgumentError(
                f"TangentBundle: expected 2 <= num_neighbors < {total} distinct points, got {num_neighbors}"
            )
        if dim is not None and not 1 <= dim <= width:
            raise ArgumentError(f"TangentBundle: expected 1 <= dim <= {width} coordinates, got {dim}")
        if not 0 < explained_variance <= 1:
            raise ArgumentError(f"TangentBundle: expected 0 < explained_variance <= 1, got {explained_variance}")
        self.graph = neighbour_graph(self.points, num_neighbors, graph)
        sizes = self.graph.components.bincount()
        if len(sizes) > 1 and not allow_disconnected:
            raise ArgumentError(
                f"TangentBundle: the graph falls into {len(sizes)} components of {sorted(sizes.tolist())} nodes; raise "
                "num_neighbors, split the cloud, or pass allow_disconnected=True"
            )
        directions, spreads = principal_directions(self.points, *surroundings(self.graph))
        self.dim = estimate_dimension(spreads, explained_variance) if dim is None else dim
        if self.dim > directions.shape[-1]:
            raise ArgumentError(
                f"TangentBundle: planes of dimension {dim} need more points; raise num_neighbors = {num_neighbors}"
            )
        self._set_frames(directions[..., : self.dim])
        weakest = float(self.transport.alignment.min())
        if weakest < ALIGNED:
            warnings.warn(
                f"TangentBundle: neighbouring tangent planes meet at a cosine of {weakest:.2f}; where that is so the "
                "sampling does not resolve the curvature: add points there, or lower num_neighbors",
                stacklevel=2,
            )

    def _set_frames(self, frames: Tensor) -> None:
        rows, cols = self.graph.rows, self.graph.cols
        blocks, alignment = parallel_transport(frames[rows], frames[cols])
        self.frames = frames
        self.transport = Transport(rows, cols, blocks, alignment)
        self.connection_laplacian: Sparse = block_laplacian(self.graph, blocks)
        self.laplacian: Sparse = block_laplacian(self.graph, torch.ones(len(rows), 1, 1, dtype=torch.float64))
        self._eigen: dict[bool, EigenFields] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> "TangentBundle":
        # nothing in it changes after construction but the eigenfields kept: clones of an estimator share both
        return self

    @property
    def num_nodes(self) -> int:
        """N."""
        return len(self.points)

    def with_frames(self, frames: Tensor) -> "TangentBundle":
        """Take other bases of the planes, or better planes, for instance from a known surface.

        Parameters
        ----------
        frames : Tensor, shape (N, D, d)
            Orthonormal columns.

        Returns
        -------
        TangentBundle
            A new one; the graph is shared.

        Raises
        ------
        ShapeError
            If the shape is not that of `frames`.
        ArgumentError
            If the columns are not orthonormal.
        """
        frames = torch.as_tensor(frames).detach().to("cpu", torch.float64)
        if frames.shape != self.frames.shape:
            raise ShapeError(
                f"TangentBundle.with_frames: expected {tuple(self.frames.shape)}, got {tuple(frames.shape)}"
            )
        if not bool(((frames.mT @ frames) - torch.eye(self.dim, dtype=torch.float64)).abs().max() < 1e-6):
            raise ArgumentError("TangentBundle.with_frames: the columns of a frame must be orthonormal")
        other = object.__new__(TangentBundle)
        other.points, other.node_of, other.graph, other.dim = self.points, self.node_of, self.graph, self.dim
        other._set_frames(frames)
        return other

    def eigenpairs(self, num_eigenpairs: int = 100, *, scalar: bool = False) -> EigenFields:
        """Compute the smallest eigenpairs of L_c u = λ M u, or of the Laplacian of functions.

        Parameters
        ----------
        num_eigenpairs : int, default 100
            M; more than there are become all. A multiplet (equal eigenvalues) is never cut: M grows to its end, since
            part of one would depend on how the eigensolver turned it.
        scalar : bool, default False
            Functions instead of fields.

        Returns
        -------
        EigenFields
            Kept: a later call for as many or fewer costs nothing.

        Raises
        ------
        ArgumentError
            If ``num_eigenpairs < 1``.
        ConvergenceError
            If the iteration for a large cloud does not settle.

        Warns
        -----
        UserWarning
            If a multiplet has not ended after 24 further pairs, and is cut.

        Notes
        -----
        A dense decomposition up to order 2000; beyond, block iteration (LOBPCG) preconditioned by a sparse
        factorisation of the shifted operator, which finds every copy of a multiple eigenvalue.
        """
        if num_eigenpairs < 1:
            raise ArgumentError(f"TangentBundle.eigenpairs: expected num_eigenpairs >= 1, got {num_eigenpairs}")
        operator = self.laplacian if scalar else self.connection_laplacian
        order = operator.shape[0]
        wanted = min(num_eigenpairs, order)
        guarded = min(wanted + GUARD, order)
        known = self._eigen.get(scalar)
        if known is None or len(known.eigenvalues) < guarded:
            values, vectors = _smallest(operator, guarded)
            half = self.graph.masses.rsqrt()
            scale = (len(half) * (order // len(half)) / half.square().mean()).sqrt()
            fields = vectors.reshape(len(half), order // len(half), -1) * half[:, None, None] * scale
            known = self._eigen[scalar] = EigenFields(values, fields)
        values = known.eigenvalues
        gaps = values.diff() > MULTIPLET * values[1:].clamp_min(1e-5 * values[-1])
        ends = [end for end in (gaps.nonzero()[:, 0] + 1).tolist() if end >= wanted]
        stop = ends[0] if ends else len(values)
        if not ends and stop < order:
            warnings.warn(
                f"TangentBundle.eigenpairs: the multiplet at eigenvalue {float(values[-1]):.3g} has not ended after "
                f"{GUARD} further pairs; it is cut, and results depend on the frames: change num_eigenpairs",
                stacklevel=2,
            )
        return EigenFields(values[:stop], known.fields[..., :stop])

    def coordinates(self, rows: Tensor, F: Tensor) -> Tensor:
        """T_iᵀ F_i: ambient vectors in the frames of their nodes.

        Parameters
        ----------
        rows : Tensor of int64, shape (Q,)
            Nodes.
        F : Tensor, shape (Q, D) or (Q, D, B)
            Vectors in float64.

        Returns
        -------
        Tensor, shape (Q, d) or (Q, d, B)
            Coordinates.
        """
        return torch.einsum("qka,qk...->qa...", self.frames[rows].to(F.device), F)

    def ambient(self, rows: Tensor, field: Tensor) -> Tensor:
        """T_i f_i: the way back from `coordinates`.

        Parameters
        ----------
        rows : Tensor of int64, shape (Q,)
            Nodes.
        field : Tensor, shape (Q, d) or (Q, d, B)
            Coordinates in float64.

        Returns
        -------
        Tensor, shape (Q, D) or (Q, D, B)
            Tangent vectors.
        """
        return torch.einsum("qka,qa...->qk...", self.frames[rows].to(field.device), field)

    def extend(self, X: Tensor | np.ndarray, eigen: EigenFields) -> tuple[Tensor, Tensor]:
        """Continue eigenfields to new points near the surface (Nyström).

        u(x*) = Σ_j w_*j O_*j u_j / (Σ_j w_*j (1 - λ)) for the random walk, with the frame of x* from the points around
        it; for the paper's graph the denominator is Σ_j w_*j - λ. A point of the cloud gets the values of its node.

        Parameters
        ----------
        X : array or Tensor, shape (Q, D)
            New points.
        eigen : EigenFields
            Of fields, not of functions.

        Returns
        -------
        frames : Tensor, shape (Q, D, d)
            Of the new points.
        fields : Tensor, shape (Q, d, M)
            In those frames.

        Raises
        ------
        ShapeError
            If X has another number of coordinates than the cloud.
        NumericalError
            If X has NaN or Inf.

        Notes
        -----
        Denominators are kept above a tenth of the degree: an eigenfield rougher than the graph resolves cannot be
        continued, and comes out too small instead of as noise. Points far off the cloud get the nearest edge's values.
        """
        new = points_of("TangentBundle.extend", "X", X, dtype=torch.float64).cpu()
        if new.shape[1] != self.points.shape[1]:
            raise ShapeError(f"TangentBundle.extend: expected {self.points.shape[1]} coordinates, got {new.shape[1]}")
        neighbours, distances, weights = attach(self.graph, new)
        present = torch.ones_like(neighbours, dtype=torch.bool)
        frames = principal_directions(self.points, neighbours, present)[0][..., : self.dim]
        blocks, _ = parallel_transport(frames[:, None], self.frames[neighbours])
        weights = weights.clamp_min(torch.finfo(torch.float64).tiny)  # far off, all of them may underflow
        degrees = weights.sum(1)
        masses = degrees if self.graph.kind == "gaussian" else torch.ones_like(degrees)
        carried = torch.einsum("qj,qjab,qjbm->qam", weights, blocks, eigen.fields[neighbours])
        below = degrees[:, None] - masses[:, None] * eigen.eigenvalues
        fields = carried / torch.maximum(below, MODE_FLOOR * degrees[:, None])[:, None, :]
        same = distances[:, 0] <= 1e-12 * self.points.abs().max()
        frames[same] = self.frames[neighbours[same, 0]]
        fields[same] = eigen.fields[neighbours[same, 0]]
        return frames, fields

    def diffuse(self, F: Tensor, time: float, *, idx: Tensor | None = None) -> Tensor:
        """Let a field diffuse along the surface: directions by exp(-t L_c), lengths by exp(-t L).

        f ← (exp(-tL)|f| / exp(-tL) 1_observed) · exp(-tL_c) f / |exp(-tL_c) f|, with L and L_c relative to the masses:
        smoothing of a noisy field, and extension of a sparse one that keeps lengths (the vector heat method).

        Parameters
        ----------
        F : Tensor, shape (P, D), or (Q, D) with ``idx``
            Vectors; normal parts are dropped.
        time : float
            t >= 0; 1 is one step of the random walk (Gaussian graph). The paper's graph is about K times faster.
        idx : Tensor of int64, shape (Q,), optional
            Rows of X where F is known, and zero elsewhere. Default: everywhere.

        Returns
        -------
        Tensor, shape (P, D)
            Tangent vectors, of F's dtype; zero where the diffused field vanishes.

        Raises
        ------
        ArgumentError
            If ``time`` is negative.
        ShapeError
            If F does not fit.
        NumericalError
            If F has NaN or Inf.
        """
        if not 0 <= time < float("inf"):
            raise ArgumentError(f"TangentBundle.diffuse: expected a finite time >= 0, got {time}")
        rows = self.node_of if idx is None else self.nodes_at("TangentBundle.diffuse", idx)
        field, counts = self._node_field("TangentBundle.diffuse", rows, F)
        observed = (counts > 0).to(torch.float64)
        half = self.graph.masses.rsqrt()
        fine = half.repeat_interleave(self.dim)[:, None]
        moved = (fine * heat(self.connection_laplacian, field.reshape(-1, 1) / fine, time)).reshape(-1, self.dim)
        lengths = torch.stack([torch.linalg.vector_norm(field, dim=1), observed], dim=1)
        spread = half[:, None] * heat(self.laplacian, lengths / half[:, None], time)
        tiny = torch.finfo(torch.float64).tiny
        size = torch.linalg.vector_norm(moved, dim=1)
        length = (spread[:, 0] / spread[:, 1].clamp_min(tiny)).clamp_min(0)
        result = moved * (length / size.clamp_min(tiny))[:, None]
        return self.ambient(self.node_of, result[self.node_of]).to(F.device, F.dtype)

    def jacobian(self, F: Tensor) -> Tensor:
        """Covariant derivative of a field at each point, by least squares over its neighbours.

        Parameters
        ----------
        F : Tensor, shape (P, D)
            Vectors.

        Returns
        -------
        Tensor, shape (P, d, d)
            J in the frames; its trace is the divergence, J₂₁ - J₁₂ for d = 2 the curl, whose sign follows the
            orientation of the frame.

        Raises
        ------
        ShapeError
            If F does not fit.
        NumericalError
            If F has NaN or Inf.
        """
        field, _ = self._node_field("TangentBundle.jacobian", self.node_of, F)
        found = covariant_jacobian(self.graph, self.frames, self.transport.blocks, field)
        return found[self.node_of].to(F.device, F.dtype)

    def index(self, F: Tensor) -> Tensor:
        """Poincaré index around each point of a surface: turns of the field along the ring of its neighbours.

        Parameters
        ----------
        F : Tensor, shape (P, D)
            Vectors.

        Returns
        -------
        Tensor of int64, shape (P,)
            Non-zero at the points around a zero; see `singularities` for the zeros themselves.

        Raises
        ------
        ArgumentError
            If d is not 2.
        ShapeError
            If F does not fit.
        NumericalError
            If F has NaN or Inf.
        """
        field = self._surface_field("TangentBundle.index", F)
        return winding_numbers(self.graph, self.frames, self.transport.blocks, field)[self.node_of]

    def singularities(self, F: Tensor) -> Singularities:
        """Zeros of a field on a surface with their indices; on a closed surface these sum to its Euler number.

        Parameters
        ----------
        F : Tensor, shape (P, D)
            Vectors.

        Returns
        -------
        Singularities
            ``node`` counts distinct points, as `points` does.

        Raises
        ------
        ArgumentError
            If d is not 2.
        ShapeError
            If F does not fit.
        NumericalError
            If F has NaN or Inf.
        """
        field = self._surface_field("TangentBundle.singularities", F)
        return singularities(self.graph, self.frames, self.transport.blocks, field)

    def nodes_at(self, call: str, idx: Tensor | np.ndarray) -> Tensor:
        """Nodes of rows of X, given by number or by a mask.

        Parameters
        ----------
        call : str
            The caller, for messages.
        idx : Tensor of int64, shape (Q,), or of bool, shape (P,)
            Rows of X.

        Returns
        -------
        Tensor of int64, shape (Q,)
            Nodes.

        Raises
        ------
        ShapeError
            If it is neither.
        ArgumentError
            If a row is out of range; negative ones are.
        """
        rows = torch.as_tensor(idx).detach().cpu()
        total = len(self.node_of)
        if rows.dtype == torch.bool:
            if rows.shape != (total,):
                raise ShapeError(f"{call}: a mask must have shape ({total},), got {tuple(rows.shape)}")
            return self.node_of[rows]
        if rows.ndim != 1 or rows.is_floating_point() or rows.is_complex():
            raise ShapeError(f"{call}: expected idx as a list of row numbers, got {rows.dtype} {tuple(rows.shape)}")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < total:
            raise ArgumentError(f"{call}: idx must lie in 0 to {total - 1}, got {int(rows.min())} to {int(rows.max())}")
        return self.node_of[rows.long()]

    def _surface_field(self, call: str, F: Tensor) -> Tensor:
        if self.dim != 2:
            raise ArgumentError(f"{call}: the index is that of fields on surfaces; this cloud has dimension {self.dim}")
        return self._node_field(call, self.node_of, F)[0]

    def _node_field(self, call: str, rows: Tensor, F: Tensor) -> tuple[Tensor, Tensor]:
        # mean over the rows of each node, in its frame, and how many rows there were
        expected = (len(rows), self.points.shape[1])
        if tuple(F.shape) != expected:
            raise ShapeError(f"{call}: expected F of shape {expected}, got {tuple(F.shape)}")
        if not bool(torch.isfinite(F).all()):
            raise NumericalError(f"{call}: F has NaN or Inf")
        local = self.coordinates(rows, F.detach().to("cpu", torch.float64))
        counts = torch.bincount(rows, minlength=self.num_nodes)
        sums = torch.zeros(self.num_nodes, self.dim, dtype=torch.float64).index_add(0, rows, local)
        return sums / counts.clamp_min(1)[:, None], counts


def _merged(cloud: Tensor) -> tuple[Tensor, Tensor]:
    # distinct rows in the order of their first appearance, and which of them each row is
    distinct, inverse = torch.unique(cloud, dim=0, return_inverse=True)
    first = torch.full((len(distinct),), len(cloud)).scatter_reduce(0, inverse, torch.arange(len(cloud)), "amin")
    order = first.argsort()
    return cloud[first[order]], order.argsort()[inverse]


def _smallest(operator: Sparse, count: int) -> tuple[Tensor, Tensor]:
    order = operator.shape[0]
    if order <= DENSE_ORDER or count > order // 3:
        values, vectors = torch.linalg.eigh(operator.to_dense())
        return values[:count].clamp_min(0), vectors[:, :count]
    shift = SHIFT * float(operator.values.max())
    start = torch.Generator().manual_seed(0)  # the answer does not depend on it
    found = lobpcg(operator, count, preconditioner=shift_inverse(operator, shift), max_steps=200, generator=start)
    if not found.converged:
        raise ConvergenceError(
            f"TangentBundle.eigenpairs: residual {float(found.residuals.max()):.1e} after {found.num_steps} steps; ask "
            "for fewer eigenpairs, or look for clumps in the cloud"
        )
    return found.eigenvalues.clamp_min(0), found.eigenvectors
