"""Training a module by consensus of N parameter vectors: forward passes only, all of them in one batched call.

Shapes: N particles, P parameters, B examples in a batch.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.linalg import ParameterLayout
from hesse.optim.cbo.consensus import consensus_point
from hesse.optim.cbo.dynamics import CBO
from hesse.optim.cbo.schedules import CoolingSchedule, reduced_count

__all__ = ["ModuleCBO"]

_KICK_BELOW = 1e-5  # the authors' threshold for a consensus that stands still


class ModuleCBO:
    """Minimise a training loss over a module's parameters without a gradient of it.

    Each data batch is one step of `CBO` on E(θ) = loss(module_θ(inputs), targets): particles are visited in random
    batches of n, each moved to the consensus of its own batch, so that a step costs N forward passes. After every epoch
    α doubles and σ falls as in `CoolingSchedule`.

    Parameters
    ----------
    module : nn.Module
        The model, called with functional parameters and not changed before `load_consensus`. Buffers are shared by all
        particles. Put dropout and batch normalisation in eval mode first.
    loss_fn : callable
        ``(outputs, targets)`` to a scalar, any function of them, differentiable or not, that `torch.vmap` can map.
    num_particles : int, default 100
        N >= 2 parameter vectors.
    batch_size : int, default 10
        n, particles that meet at a time; the customary choice for networks.
    dt : float, default 0.1
        Step.
    drift : float, default 1.0
        λ.
    sigma : float, default sqrt(0.4)
        σ of the first epoch, anisotropic.
    alpha : float, default 50.0
        α of the first epoch, in the inverse unit of the loss.
    spread : float, default 1.0
        Standard deviation of the particles about their start, in the unit of the parameters.
    from_module : bool, default False
        Whether that start is the module's present parameters instead of the origin.
    full_moves : bool, default False
        Whether the consensus of a batch moves all particles instead of the batch.
    reduction : float, default 0.0
        μ in [0, 1): at the end of an epoch particles are dropped as the cloud shrinks (see `reduced_count`); 0.2 is
        customary. Default: none.
    chunk_size : int, optional
        How many particles are evaluated at once, to bound memory. Default: a whole particle batch.
    generator : torch.Generator, optional
        Of all randomness. Default: a new one, seeded from torch's global generator.

    Raises
    ------
    ArgumentError
        If the module has no parameters, is in a mode whose output is random or changes its buffers, or a number is out
        of range.
    ArgumentTypeError
        If the parameters differ in dtype or device.

    Notes
    -----
    Memory N P for the cloud and n B activations of the widest layer. The method needs many more forward passes than
    gradient descent needs backward ones; it is for losses without useful gradients.

    References
    ----------
    J. A. Carrillo, S. Jin, L. Li, Y. Zhu (2021), ESAIM: COCV 27, arXiv 1909.09249. M. Fornasier, T. Klock, K. Riedl
    (2022), EvoApplications, arXiv 2111.08136.

    Examples
    --------
    >>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    >>> model, wrong = torch.nn.Linear(2, 2), lambda out, y: (out.argmax(-1) != y).double().mean()
    >>> trainer = ModuleCBO(model, wrong, generator=torch.Generator().manual_seed(0))
    >>> trainer.fit([(x, (x[:, 0] > 0).long())], num_epochs=20)
    >>> trainer.load_consensus()
    >>> bool((model(x).argmax(-1) == (x[:, 0] > 0)).double().mean() > 0.9)
    True
    """

    def __init__(
        self,
        module: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        *,
        num_particles: int = 100,
        batch_size: int = 10,
        dt: float = 0.1,
        drift: float = 1.0,
        sigma: float = math.sqrt(0.4),
        alpha: float = 50.0,
        spread: float = 1.0,
        from_module: bool = False,
        full_moves: bool = False,
        reduction: float = 0.0,
        chunk_size: int | None = None,
        generator: Generator | None = None,
    ) -> None:
        parameters = {name: value.detach() for name, value in module.named_parameters()}
        _check_module(module, parameters)
        if not 0 <= reduction < 1 or (chunk_size is not None and chunk_size < 1):
            raise ArgumentError(
                f"ModuleCBO: expected 0 <= reduction < 1 and chunk_size >= 1, got {reduction} and {chunk_size}"
            )
        self.module = module
        self._layout = ParameterLayout.of(parameters)
        self._loss_fn = loss_fn
        self._data: tuple[Any, Any] | None = None
        self._reduction = reduction
        self._batch_size = min(batch_size, num_particles)
        self._cooling = CoolingSchedule()
        self._energies = torch.vmap(self._loss, chunk_size=chunk_size)
        present = self._layout.flatten(parameters)
        self.cbo = CBO(
            self._energies,
            present if from_module else torch.zeros_like(present),
            num_particles=num_particles,
            dt=dt,
            drift=drift,
            sigma=sigma,
            alpha=alpha,
            spread=spread,
            batch_size=self._batch_size,
            moves="full" if full_moves else "partial",
            kick_below=_KICK_BELOW,
            generator=generator,
        )
        self.num_epochs = 0
        self._width = self._cloud_width()  # at the start of the epoch

    def step(self, inputs: Any, targets: Any) -> None:
        """Move all particles once on one data batch.

        Parameters
        ----------
        inputs : Tensor
            What the module is called with, (B, ...).
        targets : Tensor
            What ``loss_fn`` compares with.
        """
        self._data = (inputs, targets)
        self.cbo.step()

    def end_epoch(self) -> None:
        """Cool α and σ, and drop particles if ``reduction`` is set."""
        self.num_epochs += 1
        self.cbo.alpha, self.cbo.sigma = self._cooling(self.num_epochs, self.cbo.alpha, self.cbo.sigma)
        width = self._cloud_width()
        if self._reduction:
            count = self.cbo.num_particles
            self.cbo.keep(reduced_count(count, min(self._batch_size, count), self._width, width, self._reduction))
        self._width = width

    def fit(self, batches: Iterable[tuple[Any, Any]], num_epochs: int = 1) -> None:
        """Go through the data so many times.

        Parameters
        ----------
        batches : iterable of (inputs, targets)
            Such as a DataLoader; iterated once an epoch.
        num_epochs : int, default 1
            >= 1.

        Raises
        ------
        ArgumentError
            If ``num_epochs < 1``.
        """
        if num_epochs < 1:
            raise ArgumentError(f"ModuleCBO.fit: expected num_epochs >= 1, got {num_epochs}")
        for _ in range(num_epochs):
            for inputs, targets in batches:
                self.step(inputs, targets)
            self.end_epoch()

    def consensus(self) -> dict[str, Tensor]:
        """Where all particles meet on the last data batch, by one evaluation of each.

        Returns
        -------
        dict of str to Tensor
            The module's parameters by name.

        Raises
        ------
        ArgumentError
            Before the first step.
        """
        if self._data is None:
            raise ArgumentError("ModuleCBO.consensus: there is no consensus before the first step")
        with torch.no_grad():
            energy = self.cbo.objective(self.cbo.x)
            point = consensus_point(self.cbo.x, energy, self.cbo.alpha)
        return self._layout.unflatten(point[0])

    def load_consensus(self) -> None:
        """Write the consensus into the module's parameters."""
        with torch.no_grad():
            found = self.consensus()
            for name, parameter in self.module.named_parameters():
                parameter.copy_(found[name])

    def state_dict(self) -> dict[str, Any]:
        """Copy the cloud, the generator and the epoch: what a run needs to go on bit for bit.

        Returns
        -------
        dict
            Of `CBO.state_dict`, and two numbers more. The data batch is not part of it.
        """
        return {"cbo": self.cbo.state_dict(), "num_epochs": self.num_epochs, "width": self._width}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Parameters
        ----------
        state : mapping
            As `state_dict` gives.
        """
        self.cbo.load_state_dict(state["cbo"])
        self.num_epochs, self._width = state["num_epochs"], state["width"]

    def _loss(self, vector: Tensor) -> Tensor:
        inputs, targets = self._data or (None, None)
        return self._loss_fn(functional_call(self.module, self._layout.unflatten(vector), (inputs,)), targets)

    def _cloud_width(self) -> float:
        return float(torch.linalg.vector_norm(self.cbo.x[0].var(0)))


def _check_module(module: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    if not parameters:
        raise ArgumentError("ModuleCBO: the module has no parameters")
    if len({(value.dtype, value.device) for value in parameters.values()}) > 1:
        raise ArgumentTypeError("ModuleCBO: expected all parameters in one dtype on one device")
    for name, part in module.named_modules():
        random = isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0
        changing = isinstance(part, nn.modules.batchnorm._NormBase) and part.track_running_stats
        if part.training and (random or changing):
            raise ArgumentError(
                f"ModuleCBO: {name} ({type(part).__name__}) is in training mode, where particles would see different "
                "models or share running statistics; call module.eval() first"
            )
