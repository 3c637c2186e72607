"""Deep conjugate directions: A x = b by line searches along directions that a convolutional network reads off the
residual, from one network for every domain of the same kind.   Shapes: N cells of a grid, K right-hand sides.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Generator, Tensor, nn

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.io.tensors import load_tensors
from hesse.linalg.operator import LinearOperator
from hesse.linalg.stencil import PoissonStencil
from hesse.pde.dcdm.directions import DirectionSolution, conjugate_directions
from hesse.pde.dcdm.network import DCDMNet, direction_on_grid
from hesse.pde.dcdm.neumann import EnclosedRegions
from hesse.pde.dcdm.schedule import OperatorFunction, Training, TrainingPlan

__all__ = ["DeepConjugateDirection"]

_WEIGHTS = {dim: Path(__file__).parent / f"weights_{dim}d.safetensors" for dim in (2, 3)}


class DeepConjugateDirection:
    """A solver for many symmetric positive definite systems that share a structure, to a given tolerance.

    Each step asks the network for a direction, makes it A-orthogonal to the last ``i_orth`` ones and searches along it
    exactly. The answer is as exact as that of conjugate gradients, whatever the network: only the number of steps
    depends on it.

    Parameters
    ----------
    network : nn.Module, optional
        From ``(B, *grid)`` and a mask to ``(B, *grid)``. Default: a `DCDMNet` made by `fit`.
    i_orth : int, default 2
        Earlier directions kept; more hardly helps.
    tol : float, default 1e-6
        Stop where ‖b - A x‖ <= tol ‖b - A x0‖.
    max_steps : int, default 200
        Limit of one solve.
    fallback : {"cg", None}, default "cg"
        What a column does when the network stalls; see `conjugate_directions`.

    Raises
    ------
    ArgumentTypeError
        If ``network`` is no module.
    ArgumentError
        If a number is out of range.

    References
    ----------
    A. Kaneda, O. Akar, J. Chen, V. Kala, D. Hyde, J. Teran (2023), "A Deep Conjugate Direction Method for Iteratively
    Solving Linear Systems", ICML, arXiv 2205.10763.

    Examples
    --------
    >>> fluid = torch.ones(32, 32, dtype=torch.bool)
    >>> fluid[10:16, 8:20] = False  # an obstacle
    >>> A = PoissonStencil(fluid, dtype=torch.float64)
    >>> b = fluid.double().flatten()
    >>> bool(DeepConjugateDirection.pretrained().solve(A, b).converged)
    True
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        *,
        i_orth: int = 2,
        tol: float = 1e-6,
        max_steps: int = 200,
        fallback: Literal["cg"] | None = "cg",
    ) -> None:
        if network is not None and not isinstance(network, nn.Module):
            raise ArgumentTypeError(f"DeepConjugateDirection: network must be a module, got {type(network).__name__}")
        if i_orth < 0 or max_steps < 0 or not tol >= 0 or fallback not in ("cg", None):
            raise ArgumentError(
                "DeepConjugateDirection: expected i_orth, max_steps, tol >= 0 and fallback 'cg' or None, "
                f"got {i_orth}, {max_steps}, {tol}, {fallback!r}"
            )
        self.network = network
        self.i_orth, self.tol, self.max_steps = i_orth, tol, max_steps
        self.fallback: Literal["cg"] | None = fallback
        self._training: Mapping[str, Tensor] | None = None

    @classmethod
    def pretrained(
        cls,
        dim: int = 2,
        *,
        i_orth: int = 2,
        tol: float = 1e-6,
        max_steps: int = 200,
        fallback: Literal["cg"] | None = "cg",
    ) -> Self:
        """Take the network that comes with hesse, trained on the Poisson operator of an empty box.

        Parameters
        ----------
        dim : {2, 3}, default 2
            Dimensions of the grid.
        i_orth, tol, max_steps, fallback : optional
            As in the constructor.

        Returns
        -------
        DeepConjugateDirection
            On the CPU in float32; move it by ``solver.network.to(...)``.

        Raises
        ------
        ArgumentError
            If there is none for ``dim``.
        ArtifactError
            If the file of weights is missing or damaged.
        """
        if dim not in _WEIGHTS:
            raise ArgumentError(f"DeepConjugateDirection.pretrained: expected dim 2 or 3, got {dim}")
        solver = cls(i_orth=i_orth, tol=tol, max_steps=max_steps, fallback=fallback)
        solver.load_state_dict(load_tensors(_WEIGHTS[dim]))
        return solver

    # ------------------------------------------------------------------------------------------ training

    def fit(
        self,
        operator: LinearOperator,
        grid_shape: tuple[int, ...] | None = None,
        *,
        num_ritz: int = 400,
        num_steps: int = 1600,
        batch_size: int = 10,
        learning_rate: float = 1e-3,
        margin: int | None = None,
        noise: float = 0.0,
        operator_fn: OperatorFunction | None = None,
        stop_after: int | None = None,
        generator: Generator | None = None,
    ) -> Self:
        """Train the network on one operator, without any solution: see `dcdm_loss` and `ritz_training_set`.

        Parameters
        ----------
        operator : LinearOperator, shape (N, N)
            A of the empty domain, scaled to entries near one. float32 is enough.
        grid_shape : tuple of int, optional
            Its grid. Default: the stencil's.
        num_ritz : int, default 400
            Ritz vectors.
        num_steps : int, default 1600
            Steps of Adam, with fresh right-hand sides each. Cosine decay to a hundredth of the rate.
        batch_size : int, default 10
            Right-hand sides a step (the paper's).
        learning_rate : float, default 1e-3
            The first. The paper's 1e-4 asks for ten times the steps.
        margin : int, optional
            See `ritz_training_set`.
        noise : float, default 0.0
            Share of each batch that is white noise.
        operator_fn : callable, optional
            Draws the operator of each step from a generator, a `PoissonStencil` of the same grid: random obstacles,
            for a network with ``mask_channel``. Default: always ``operator``.
        stop_after : int, optional
            Stop at this step, to be continued by `resume`. Default: train to the end.
        generator : torch.Generator, optional
            Source of everything random; one number is drawn from it. Default: torch's global generator.

        Returns
        -------
        DeepConjugateDirection
            Itself, trained.

        Raises
        ------
        ShapeError
            If ``grid_shape`` does not have N cells.
        ArgumentError
            If a number is out of range.
        ConvergenceError
            If the loss stays at one from three different starts.

        Notes
        -----
        On a 64 x 64 grid a step takes 55 to 80 ms on one core, 1600 of them two minutes. Residuals of the network's own
        solves are left out on purpose: as a fifth of the batches they turned its directions worse than the residual,
        because they are what its directions have just been searched along.
        """
        grid = _grid("fit", operator, grid_shape, None)
        plan = TrainingPlan(
            num_steps,
            batch_size,
            learning_rate,
            num_ritz,
            num_ritz // 20 if margin is None else margin,
            noise,
        )
        device = "cpu" if generator is None else generator.device
        seed = int(torch.randint(2**62, (), generator=generator, device=device))
        own = Generator().manual_seed(seed)
        if self.network is None:
            if len(grid) not in (2, 3):
                raise ShapeError(f"fit: expected a grid of 2 or 3 dimensions, got {grid}")
            self.network = DCDMNet(len(grid), generator=own).to(operator.device)
        self._train(Training(plan, self.network, operator, grid, own, operator_fn), stop_after)
        return self

    def resume(
        self, operator: LinearOperator, *, operator_fn: OperatorFunction | None = None, stop_after: int | None = None
    ) -> Self:
        """Go on with a training that ``stop_after`` interrupted, in this process or in another one.

        Parameters
        ----------
        operator : LinearOperator, shape (N, N)
            The same as in `fit`.
        operator_fn : callable, optional
            The same as in `fit`.
        stop_after : int, optional
            Stop again at this step. Default: train to the end.

        Returns
        -------
        DeepConjugateDirection
            Itself, with the weights of an uninterrupted run, to the bit on one machine.

        Raises
        ------
        ArgumentError
            If there is nothing to continue.
        """
        if self._training is None or self.network is None:
            raise ArgumentError(
                "resume: no unfinished training; call fit(..., stop_after=...) or load_state_dict first"
            )
        self._train(Training.resumed(self._training, self.network, operator, operator_fn), stop_after)
        return self

    def _train(self, run: Training, stop_after: int | None) -> None:
        stop_at = run.plan.num_steps if stop_after is None else min(stop_after, run.plan.num_steps)
        if stop_at < run.step:
            raise ArgumentError(f"fit: stop_after={stop_after} lies behind step {run.step}")
        run.run(stop_at)
        self._training = run.tensors()

    @property
    def losses(self) -> Tensor:
        """The training loss of each step, of the last `fit`; empty for a network from elsewhere."""
        return torch.zeros(0, dtype=torch.float64) if self._training is None else self._training["losses"]

    # ------------------------------------------------------------------------------------------ solving

    def solve(
        self,
        operator: LinearOperator,
        b: Tensor,
        x0: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        project: bool = False,
        tol: float | None = None,
        max_steps: int | None = None,
        record_history: bool = False,
        callback_fn: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> DirectionSolution:
        """Solve A x = b for every column at once, with one call of the network a step.

        Parameters
        ----------
        operator : LinearOperator, shape (N, N)
            A; any grid of the network's dimensions. It is applied in float64, whatever its dtype.
        b : Tensor, shape (N,) or (N, K)
            Right-hand sides, zero outside the mask.
        x0 : Tensor, shape of b, optional
            Start, zero outside the mask. Default: zero.
        mask : Tensor of bool, shape of the grid, optional
            The cells that carry an unknown. Default: the stencil's fluid, or every cell.
        project : bool, default False
            Whether b may lie outside the range of a stencil with enclosed fluid (no outlet): its mean over each such
            region is then left out.
        tol, max_steps : optional
            Default: the solver's.
        record_history : bool, default False
            Keep the residual norm of every step.
        callback_fn : callable, optional
            As in `conjugate_directions`.

        Returns
        -------
        DirectionSolution
            In b's dtype. On enclosed regions x has mean zero. ``.require()`` raises unless all columns converged.

        Raises
        ------
        ArgumentError
            If there is no network yet, or b is not zero outside the mask, or not in the range of A.
        ShapeError
            If shapes, dtypes or devices do not fit.
        NumericalError
            If b has NaN or Inf, or A is not positive semi-definite.
        """
        grid, mask = self._domain("solve", operator, mask)
        block = b if b.ndim == 2 else b.unsqueeze(-1)
        if b.ndim not in (1, 2) or b.shape[0] != operator.shape[0]:
            raise ShapeError(f"solve: expected b of shape ({operator.shape[0]}, ...), got {tuple(b.shape)}")
        if mask is not None:
            for name, value in (("b", b), ("x0", x0)):
                if value is not None and bool((value.reshape(block.shape)[~mask.flatten()] != 0).any()):
                    raise ArgumentError(f"solve: {name} is not zero outside the mask; set it to zero there")
        enclosed = EnclosedRegions(operator) if isinstance(operator, PoissonStencil) else None
        if enclosed is not None:
            if not project:
                enclosed.require_range(block)
            b = enclosed.without_means(block).reshape(b.shape)
        solution = conjugate_directions(
            operator,
            b,
            direction_on_grid(self._ready("solve"), grid, mask),
            x0=x0,
            i_orth=self.i_orth,
            tol=self.tol if tol is None else tol,
            max_steps=self.max_steps if max_steps is None else max_steps,
            fallback=self.fallback,
            record_history=record_history,
            callback_fn=callback_fn,
        )
        if enclosed is not None and enclosed.count:
            # in place: the constants that the directions brought along are nobody's answer
            solution.x.copy_(enclosed.without_means(solution.x.reshape(block.shape)).reshape(b.shape))
        return solution

    def as_preconditioner(self, operator: LinearOperator, mask: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Make a preconditioner for ``cg(..., flexible=True)``: z = ± ‖r‖ f(r / ‖r‖), the sign such that rᵀz > 0.

        Parameters
        ----------
        operator : LinearOperator, shape (N, N)
            A; only its grid is read.
        mask : Tensor of bool, shape of the grid, optional
            As in `solve`.

        Returns
        -------
        callable
            From (N, K) to (N, K). It is not linear: plain conjugate gradients may stall. Where the network has no
            use, z = r.

        Raises
        ------
        ArgumentError
            If there is no network yet.
        ShapeError
            If the mask does not fit.
        """
        grid, mask = self._domain("as_preconditioner", operator, mask)
        direction = direction_on_grid(self._ready("as_preconditioner"), grid, mask)

        @torch.no_grad()
        def precondition(r: Tensor) -> Tensor:
            size = torch.linalg.vector_norm(r, dim=-2, keepdim=True)
            z = size * direction(r / torch.where(size > 0, size, 1))
            inner = (r * z).sum(-2, keepdim=True)
            useful = torch.isfinite(inner) & (inner != 0)
            return torch.where(useful, z * torch.where(useful, inner, 1).sign(), r)

        return precondition

    def _ready(self, call: str) -> nn.Module:
        if self.network is None:
            raise ArgumentError(
                f"{call}: there is no network yet; call fit, load_state_dict, or DeepConjugateDirection.pretrained()"
            )
        return self.network

    def _domain(
        self, call: str, operator: LinearOperator, mask: Tensor | None
    ) -> tuple[tuple[int, ...], Tensor | None]:
        if mask is not None and mask.dtype != torch.bool:
            raise ArgumentTypeError(f"{call}: expected a boolean mask, got {mask.dtype}")
        fitted = None if self._training is None else tuple(int(length) for length in self._training["grid"])
        grid = _grid(call, operator, None if mask is None else tuple(mask.shape), fitted)
        if isinstance(operator, PoissonStencil):
            mask = operator.fluid if mask is None else mask & operator.fluid
        return grid, None if mask is None or bool(mask.all()) else mask.to(operator.device)

    # ------------------------------------------------------------------------------------------ saving

    def state_dict(self, *, with_training: bool = True) -> dict[str, Tensor]:
        """Everything that was learnt, as named tensors, for `hesse.io.save_tensors`.

        Parameters
        ----------
        with_training : bool, default True
            Whether to add what `resume` needs: twice the size of the weights.

        Returns
        -------
        dict of str to Tensor
            Weights as "network.*", the architecture of a `DCDMNet` as "config", the rest as "training.*".

        Raises
        ------
        ArgumentError
            If there is no network yet.
        """
        network = self._ready("state_dict")
        found = {f"network.{name}": value.detach() for name, value in network.state_dict().items()}
        if isinstance(network, DCDMNet):
            numbers = (network.dim, network.channels, network.levels, *network.num_pairs, int(network.mask_channel))
            found["config"] = torch.tensor(numbers)
        if with_training and self._training is not None:
            found |= {f"training.{name}": value for name, value in self._training.items()}
        return found

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Self:
        """Take over what `state_dict` gave, building a `DCDMNet` if there is no network yet.

        Parameters
        ----------
        state : mapping of str to Tensor
            From `state_dict`.

        Returns
        -------
        DeepConjugateDirection
            Itself.

        Raises
        ------
        ArgumentError
            If the names or shapes are not those of the network, or there is neither network nor "config".
        """
        network = self.network
        if network is None:
            if "config" not in state or state["config"].numel() != 7:
                raise ArgumentError("load_state_dict: no network to load into, and no config of a DCDMNet in the state")
            dim, channels, levels, before, coarse, after, masked = (int(value) for value in state["config"])
            network = DCDMNet(
                dim,
                channels,
                levels,
                num_pairs=(before, coarse, after),
                mask_channel=bool(masked),
                generator=Generator(),
            )
        weights = {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:  # torch's own message lists the names
            raise ArgumentError(f"load_state_dict: the weights do not fit the network: {error}") from error
        self.network = network
        training = {
            name.removeprefix("training."): value.clone()
            for name, value in state.items()
            if name.startswith("training.")
        }
        self._training = training or None
        return self


def _grid(
    call: str, operator: LinearOperator, given: tuple[int, ...] | None, fitted: tuple[int, ...] | None
) -> tuple[int, ...]:
    own = operator.grid if isinstance(operator, PoissonStencil) else fitted if given is None else given
    if own is None:
        raise ArgumentError(f"{call}: the grid of {type(operator).__name__} is unknown; pass grid_shape (fit) or mask")
    size = 1
    for length in own:
        size *= length
    if (given is not None and tuple(given) != tuple(own)) or size != operator.shape[0]:
        raise ShapeError(f"{call}: a grid of shape {tuple(own if given is None else given)} does not fit {operator!r}")
    return tuple(own)
