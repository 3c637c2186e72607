"""The curvature of a head on each of several domains: closed forms where the head is linear, autograd elsewhere.

Shapes: domain e has N_e examples; D parameters of the head.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn

from hesse.curvature._binding import choose_parameters
from hesse.curvature.alignment._losses import LossName, OutputLoss, as_matrix, output_loss
from hesse.curvature.alignment.linear_head import LinearHead
from hesse.curvature.hessian import hessian
from hesse.curvature.per_sample import per_sample_gradients
from hesse.errors import ArgumentError, ArgumentTypeError, MemoryLimitError, ShapeError
from hesse.linalg.layout import ParameterLayout
from hesse.linalg.operator import LinearOperator

__all__ = [
    "Domain",
    "GeneralHead",
    "HeadCurvature",
    "Loss",
    "dense_hessian",
    "head_curvatures",
    "is_linear",
    "require_several",
]

Domain = tuple[Tensor, Tensor]
"""Features (N_e, P) with their graph, and targets."""
LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(logits, targets) -> scalar, a mean over examples."""
Loss = LossName | LossFunction

_DENSE_LIMIT = 4096  # order of the largest Hessian that is formed: 128 MB in float64


class HeadCurvature(Protocol):
    """What penalties need of one domain; gradient, direction and diagonal are shaped alike."""

    def value(self) -> Tensor:
        """Average the loss, ()."""
        ...

    def gradient(self) -> Tensor:
        """Differentiate the mean loss in the head's parameters."""
        ...

    def product(self, v: Tensor) -> Tensor:
        """Multiply the Hessian by v, differentiably in the features and in v."""
        ...

    def diagonal(self) -> Tensor:
        """Take the diagonal of the Hessian, exactly."""
        ...

    def gradient_variance(self) -> Tensor:
        """Take the variance over examples of their gradients, divided by N."""
        ...

    def scale_derivative(self) -> Tensor:
        """Differentiate the loss of w times the logits in w, at w = 1, ()."""
        ...

    def hessian(self) -> LinearOperator:
        """Wrap the Hessian as an operator of order D."""
        ...


class GeneralHead:
    """One domain behind any head and any loss: derivatives by autograd through the head.

    Parameters
    ----------
    features : Tensor, shape (N, ...)
        What the head is applied to.
    targets : Tensor
        Handed to the loss.
    head : nn.Module
        Its parameters that require a gradient are θ.
    loss_fn : callable
        (logits, targets) -> scalar.
    """

    def __init__(self, features: Tensor, targets: Tensor, head: nn.Module, loss_fn: LossFunction) -> None:
        self.features, self.targets, self.head, self.loss_fn = features, targets, head, loss_fn

    def value(self) -> Tensor:
        """Average the loss.

        Returns
        -------
        Tensor, shape ()
            As the loss function gives it.
        """
        return self.loss_fn(self.head(self.features), self.targets)

    def gradient(self) -> Tensor:
        """Differentiate the loss once, keeping the graph.

        Returns
        -------
        Tensor, shape (D,)
            g.

        Raises
        ------
        ArgumentError
            If a parameter of the head is not reachable from its output.
        """
        chosen = choose_parameters("alignment", self.head, None)
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            value = self.value()
            if not value.requires_grad:
                raise ArgumentError("alignment: the loss does not depend on the parameters of the head")
            parts = torch.autograd.grad(value, list(chosen.values()), create_graph=keep, allow_unused=True)
        lost = [name for name, part in zip(chosen, parts, strict=True) if part is None]
        if lost:
            raise ArgumentError(
                f"alignment: the output of the head does not depend on its {', '.join(lost)}; freeze what is unused "
                "with requires_grad_(False)"
            )
        return ParameterLayout.of(chosen).flatten(dict(zip(chosen, parts, strict=True)))

    def product(self, v: Tensor) -> Tensor:
        """Multiply: H v.

        Parameters
        ----------
        v : Tensor, shape (D,)
            A direction.

        Returns
        -------
        Tensor, shape (D,)
            Differentiable in features, parameters and v.
        """
        return self.hessian() @ v

    def diagonal(self) -> Tensor:
        """Read off diag H with D products.

        Returns
        -------
        Tensor, shape (D,)
            Exact.
        """
        return self.hessian().diagonal()

    def gradient_variance(self) -> Tensor:
        """Take the variance over examples of their gradients, divided by N.

        Returns
        -------
        Tensor, shape (D,)
            O(N D) memory.
        """
        rows = per_sample_gradients(self._on_batch, self.head, (self.features, self.targets))
        return rows.var(0, correction=0)

    def scale_derivative(self) -> Tensor:
        """Differentiate the loss of w z in the factor w, at w = 1.

        Returns
        -------
        Tensor, shape ()
            With its graph.
        """
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            logits = self.head(self.features)
            factor = logits.new_ones(()).requires_grad_()
            return torch.autograd.grad(self.loss_fn(logits * factor, self.targets), factor, create_graph=keep)[0]

    def hessian(self) -> LinearOperator:
        """Wrap the products.

        Returns
        -------
        LinearOperator, shape (D, D)
            Symmetric; not definite in general.
        """
        return hessian(self._on_batch, self.head, (self.features, self.targets))

    def _on_batch(self, head: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.loss_fn(head(batch[0]), batch[1])


def head_curvatures(call: str, domains: Sequence[Domain], head: nn.Module, loss: Loss) -> list[HeadCurvature]:
    """Check the domains and choose how each is differentiated.

    Parameters
    ----------
    call : str
        The caller, for messages.
    domains : sequence of (features, targets)
        One pair a domain; sizes may differ.
    head : nn.Module
        From features to logits. A plain `torch.nn.Linear` with a trainable weight and a named loss gets closed forms,
        in float32 or wider; anything else is differentiated by autograd in its own dtype. Call with autocast off.
    loss : str or callable
        A name, or (logits, targets) -> scalar mean.

    Returns
    -------
    list of HeadCurvature
        One a domain.

    Raises
    ------
    ArgumentError
        If there is no domain, one is empty, the loss is unknown, a target is out of range, or no parameter of the head
        requires a gradient.
    ArgumentTypeError
        If the head is no module or a domain is no pair of tensors.
    ShapeError
        If features and targets do not fit together, or features do not fit a linear head.
    """
    if not isinstance(head, nn.Module):
        raise ArgumentTypeError(f"{call}: head must be a module, got {type(head).__name__}")
    if not callable(loss):
        output_loss(call, loss)
    if not domains:
        raise ArgumentError(f"{call}: there are no domains")
    choose_parameters(call, head, None)
    return [_curvature(f"{call}: domain {e}", domain, head, loss) for e, domain in enumerate(domains)]


def is_linear(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Decide whether a head has closed forms.

    Parameters
    ----------
    head : nn.Module
        From features to logits.

    Returns
    -------
    bool
        Whether it is a `torch.nn.Linear` with a trainable weight; a subclass or a parametrised layer may compute
        something else.
    """
    return type(head) is nn.Linear and isinstance(head.weight, nn.Parameter) and head.weight.requires_grad


def require_several(call: str, domains: Sequence[Domain], allow_single: bool) -> None:
    """Refuse a penalty between one domain and itself.

    Parameters
    ----------
    call : str
        The caller, for the message.
    domains : sequence
        The domains.
    allow_single : bool
        Whether one is meant: every penalty is then zero.

    Raises
    ------
    ArgumentError
        If there is one domain and it is not allowed.
    """
    if len(domains) == 1 and not allow_single:
        raise ArgumentError(
            f"{call}: one domain has nothing to be aligned with; give two or more, or allow_single=True for a penalty "
            "of zero"
        )


def dense_hessian(curvature: HeadCurvature) -> Tensor:
    """Form the Hessian with D products.

    Parameters
    ----------
    curvature : HeadCurvature
        One domain.

    Returns
    -------
    Tensor, shape (D, D)
        Differentiable.

    Raises
    ------
    MemoryLimitError
        If D > 4096.
    """
    operator = curvature.hessian()
    if operator.shape[0] > _DENSE_LIMIT:
        raise MemoryLimitError(
            f"alignment: a head of {operator.shape[0]} parameters that is not linear needs its Hessian formed, which "
            f"stops at {_DENSE_LIMIT}; use a linear head or the hutchinson penalty with probes"
        )
    return operator.to_dense()


def _curvature(call: str, domain: Domain, head: nn.Module, loss: Loss) -> HeadCurvature:
    if not isinstance(domain, tuple | list) or len(domain) != 2 or not all(isinstance(t, Tensor) for t in domain):
        raise ArgumentTypeError(f"{call}: expected (features, targets), two tensors")
    features, targets = domain
    if not features.is_floating_point():
        raise ArgumentTypeError(f"{call}: features must be real floating numbers, got {features.dtype}")
    if features.ndim == 0 or targets.ndim == 0 or len(features) != len(targets):
        raise ShapeError(
            f"{call}: features {tuple(features.shape)} and targets {tuple(targets.shape)} differ in length"
        )
    if len(features) == 0:
        raise ArgumentError(f"{call} is empty")
    if not callable(loss) and is_linear(head):
        return _linear(call, features, targets, head, output_loss(call, loss))
    # what comes from an autocast region in half precision meets a head in float32
    first = next(iter(choose_parameters(call, head, None).values()))
    features = features.to(torch.promote_types(features.dtype, first.dtype))
    if callable(loss):
        return GeneralHead(features, targets, head, loss)
    kind = output_loss(call, loss)
    with torch.no_grad():
        logits = as_matrix(head(features))
    if logits.ndim != 2 or len(logits) != len(features):
        raise ShapeError(f"{call}: the head gives {tuple(logits.shape)} for features {tuple(features.shape)}")
    checked = kind.checked(call, logits, targets)
    return GeneralHead(features, checked, head, lambda outputs, goals: kind.value(as_matrix(outputs), goals))


def _linear(call: str, features: Tensor, targets: Tensor, head: nn.Linear, kind: OutputLoss) -> LinearHead:
    if features.ndim != 2 or features.shape[1] != head.in_features or features.device != head.weight.device:
        raise ShapeError(
            f"{call}: expected features of shape (N, {head.in_features}) on {head.weight.device}, got "
            f"{tuple(features.shape)} on {features.device}"
        )
    wide = torch.promote_types(torch.promote_types(features.dtype, head.weight.dtype), torch.float32)
    features, bias = features.to(wide), head.bias
    logits = nn.functional.linear(features, head.weight.to(wide), None if bias is None else bias.to(wide))
    return LinearHead(
        features, logits, kind.checked(call, logits, targets), kind, bias is not None and bias.requires_grad
    )
