"""The parameters of a module as one vector, with a loss and constraints on the module as functions of it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hesse.errors import ArgumentError
from hesse.linalg import ParameterLayout

__all__ = ["ConstrainedModule"]

ModuleFunction = Callable[[Any], Tensor]


class ConstrainedModule:
    """A module seen by `adasketch_newton`: pass ``fun``, ``con`` and ``x0``, then ``load_`` the answer.

    Parameters
    ----------
    module : nn.Module
        Of its parameters those that require a gradient are the variables. It is not changed until ``load_``.
    loss_fn : callable
        f, (module) -> scalar Tensor; closes over its data.
    constraint_fns : iterable of callables
        Each (module) -> Tensor of any shape, every entry of which is to be zero.

    Attributes
    ----------
    layout : ParameterLayout
        Which entries belong to which parameter.

    Raises
    ------
    ArgumentError
        If no parameter requires a gradient.

    Examples
    --------
    >>> line = ConstrainedModule(nn.Linear(3, 1), lambda m: m.bias.square().sum(), [lambda m: m.weight.sum() - 1])
    >>> line.x0.shape, line.con(line.x0).shape
    (torch.Size([4]), torch.Size([1]))
    """

    def __init__(self, module: nn.Module, loss_fn: ModuleFunction, constraint_fns: Iterable[ModuleFunction]) -> None:
        self._caller = _Caller(module)
        self._loss_fn, self._constraint_fns = loss_fn, tuple(constraint_fns)
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not self._parameters:
            raise ArgumentError("ConstrainedModule: no parameter of the module requires a gradient")
        self.layout = ParameterLayout.of(self._parameters)

    @property
    def x0(self) -> Tensor:
        """The present parameters as one vector, (N,), a copy."""
        return self.layout.flatten({name: p.detach() for name, p in self._parameters.items()}).clone()

    def fun(self, x: Tensor) -> Tensor:
        """Evaluate f at a vector of parameters.

        Parameters
        ----------
        x : Tensor, shape (N,)
            In the order of the layout.

        Returns
        -------
        Tensor, shape ()
            Differentiable.
        """
        return self._call(self._loss_fn, x)

    def con(self, x: Tensor) -> Tensor:
        """Evaluate all constraints at a vector of parameters.

        Parameters
        ----------
        x : Tensor, shape (N,)
            In the order of the layout.

        Returns
        -------
        Tensor, shape (M,)
            One after the other, each flattened; differentiable.
        """
        if not self._constraint_fns:
            return x[:0]
        return torch.cat([self._call(function, x).reshape(-1) for function in self._constraint_fns])

    def load_(self, x: Tensor) -> None:
        """Write a vector into the module.

        Parameters
        ----------
        x : Tensor, shape (N,)
            In the order of the layout.
        """
        with torch.no_grad():
            for name, value in self.layout.unflatten(x.detach()).items():
                self._parameters[name].copy_(value)

    def _call(self, function: ModuleFunction, x: Tensor) -> Tensor:
        values = {f"module.{name}": value for name, value in self.layout.unflatten(x).items()}
        return torch.func.functional_call(self._caller, values, (function,))


class _Caller(nn.Module):
    """Lets `functional_call`, which can only call forward, call any function of the module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: ModuleFunction) -> Tensor:
        return function(self.module)
