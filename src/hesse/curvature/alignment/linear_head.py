"""Gradient and Hessian of a loss in the weights of a linear head, in closed form and differentiable in the features.

    z_i = Θ a_i,   a_i = (φ_i, 1),   G = Rᵀ A / N,   H V = (S ∘ (A Vᵀ))ᵀ A / N,   diag H = diag(S)ᵀ (A ⊙ A) / N

with r_i = ∂ℓ_i/∂z_i in the rows of R and S_i = ∂²ℓ_i/∂z_i² applied row by row. For softmax p: r = p - y and
S = diag(p) - p pᵀ. No backward pass through the head, two matrix products for H V.

Shapes: N examples, P features, K outputs, Θ and everything shaped like it (K, P + 1), the bias last.
"""

from typing import Literal

import torch
from torch import Generator, Tensor

from hesse.curvature.alignment._losses import LossName, OutputLoss, as_matrix, output_loss
from hesse.curvature.alignment._precision import without_autocast
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg.basic import FunctionOperator
from hesse.linalg.diagonals import hutchinson_diagonal
from hesse.linalg.operator import LinearOperator

__all__ = [
    "DiagonalMethod",
    "LinearHead",
    "head_gradient",
    "head_hessian",
    "head_hessian_diag",
    "head_hvp",
]

DiagonalMethod = Literal["exact", "hutchinson"]


class LinearHead:
    """The data of one domain as a linear head sees them: features, logits and the loss.

    The rows a_i = (φ_i, 1) are never laid out: the ones would cost more to append than the products they save.

    Parameters
    ----------
    features : Tensor, shape (N, P)
        φ, float32 or float64.
    logits : Tensor, shape (N, K)
        z.
    targets : Tensor
        As `OutputLoss.checked` returns them.
    loss : OutputLoss
        ℓ.
    bias : bool
        Whether the head has one that counts: Θ then has Q = P + 1 columns, else Q = P.
    """

    def __init__(self, features: Tensor, logits: Tensor, targets: Tensor, loss: OutputLoss, bias: bool) -> None:
        self.features, self.logits, self.targets, self.loss, self.bias = features, logits, targets, loss, bias

    @property
    def shape(self) -> tuple[int, int]:
        """(K, Q), that of Θ."""
        return self.logits.shape[1], self.features.shape[1] + self.bias

    def value(self) -> Tensor:
        """Average the loss.

        Returns
        -------
        Tensor, shape ()
            In nats for the entropies.
        """
        return self.loss.value(self.logits, self.targets)

    def gradient(self) -> Tensor:
        """Form G = Rᵀ A / N.

        Returns
        -------
        Tensor, shape (K, Q)
            The gradient in Θ.
        """
        return _collect(self.loss.residual(self.logits, self.targets), self.features, self.bias)

    def product(self, v: Tensor) -> Tensor:
        """Multiply: H V.

        Parameters
        ----------
        v : Tensor, shape (..., K, Q)
            One direction, or a stack of them.

        Returns
        -------
        Tensor, shape (..., K, Q)
            Differentiable in features, logits and v.
        """
        return _product(self.loss, self.features, self.logits, v, self.bias)

    def diagonal(self) -> Tensor:
        """Read off diag H.

        Returns
        -------
        Tensor, shape (K, Q)
            Exact.
        """
        return _collect(self.loss.curve_diagonal(self.logits), self.features.square(), self.bias)

    def gradient_variance(self) -> Tensor:
        """Take the variance over examples of the gradients r_i a_iᵀ, divided by N, not N - 1.

        Returns
        -------
        Tensor, shape (K, Q)
            The per-sample variance that Fishr aligns.
        """
        residual = self.loss.residual(self.logits, self.targets)
        return _collect(residual.square(), self.features.square(), self.bias) - self.gradient().square()

    def scale_derivative(self) -> Tensor:
        """Differentiate the loss of w z in the factor w, at w = 1.

        Returns
        -------
        Tensor, shape ()
            mean of r_i · z_i; with all parameters of the head in Θ, this is ⟨Θ, G⟩.
        """
        return (self.loss.residual(self.logits, self.targets) * self.logits).sum() / len(self.logits)

    def hessian(self) -> LinearOperator:
        """Wrap `product`.

        Returns
        -------
        LinearOperator, shape (K Q, K Q)
            Rows in the order of Θ read row by row; positive semi-definite.
        """
        k, q = self.shape

        def multiply(x: Tensor, features: Tensor, logits: Tensor) -> Tensor:
            columns = x.movedim(-1, 0).unflatten(-1, (k, q))  # (B, ..., K, Q)
            return _product(self.loss, features, logits, columns, self.bias).flatten(-2).movedim(0, -1)

        return FunctionOperator(
            multiply,
            (k * q, k * q),
            dtype=self.features.dtype,
            device=self.features.device,
            tensors=(self.features, self.logits),
            is_psd=True,
        )


@without_autocast
def head_gradient(
    features: Tensor, logits: Tensor, targets: Tensor, loss: LossName = "cross_entropy", *, bias: bool = True
) -> Tensor:
    """Form G = Rᵀ A / N, the gradient of the mean loss in the weights of a linear head.

    Parameters
    ----------
    features : Tensor, shape (N, P)
        φ, what the head is applied to.
    logits : Tensor, shape (N, K), or (N,) if K = 1
        z = W φ + b, given and not recomputed: the head itself is not needed. If they carry a graph, results are
        differentiable through it as well.
    targets : Tensor
        Class numbers (N,) for "cross_entropy"; else numbers of the shape of the logits.
    loss : {"cross_entropy", "binary_cross_entropy", "squared_error"}, default "cross_entropy"
        A mean over examples and a sum over outputs; "binary_cross_entropy" takes logits, "squared_error" is
        ½ ‖z - y‖².
    bias : bool, default True
        Whether the head has one.

    Returns
    -------
    Tensor, shape (K, P + 1), or (K, P) without bias
        Columns of the weight, then the bias. Half precision is computed, and returned, in float32.

    Raises
    ------
    ArgumentError
        If the loss is unknown, there are no examples, or a target is out of range. Also a ValueError.
    ArgumentTypeError
        If class numbers are not integers.
    ShapeError
        If the shapes, dtypes or devices do not fit together.

    Notes
    -----
    One matrix product, O(N K P) work and O(N P) memory.

    Examples
    --------
    >>> features, targets = torch.tensor([[2.0], [4.0]]), torch.tensor([0.0, 1.0])
    >>> head_gradient(features, torch.zeros(2), targets, "binary_cross_entropy")
    tensor([[-0.5000,  0.0000]])
    """
    return _linear_head("head_gradient", features, logits, targets, loss, bias).gradient()


@without_autocast
def head_hvp(
    features: Tensor, logits: Tensor, targets: Tensor, loss: LossName, v: Tensor, *, bias: bool = True
) -> Tensor:
    """Multiply the Hessian of the mean loss in the weights of a linear head by a direction: (S ∘ (A Vᵀ))ᵀ A / N.

    Parameters
    ----------
    features, logits, targets, loss, bias
        As in `head_gradient`. Targets are checked; for these losses the Hessian does not depend on them.
    v : Tensor, shape (..., K, P + 1), or (..., K, P) without bias
        One direction or a stack.

    Returns
    -------
    Tensor, of the shape of v
        Exact, linear in v, differentiable in features, logits and v.

    Raises
    ------
    ArgumentError
        If the loss is unknown, there are no examples, or a target is out of range.
    ArgumentTypeError
        If class numbers are not integers.
    ShapeError
        If the shapes, dtypes or devices do not fit together.

    Notes
    -----
    Two matrix products a direction, O(N K P) work and O(N P) memory.
    """
    head = _linear_head("head_hvp", features, logits, targets, loss, bias)
    if v.shape[-2:] != head.shape or v.device != features.device:
        raise ShapeError(
            f"head_hvp: expected v of shape (..., {head.shape[0]}, {head.shape[1]}) on {features.device}, got "
            f"{tuple(v.shape)} on {v.device}"
        )
    return head.product(v.to(head.features.dtype))


@without_autocast
def head_hessian_diag(
    features: Tensor,
    logits: Tensor,
    targets: Tensor,
    loss: LossName = "cross_entropy",
    *,
    method: DiagonalMethod = "exact",
    num_probes: int = 300,
    generator: Generator | None = None,
    bias: bool = True,
) -> Tensor:
    """Take the diagonal of the Hessian of the mean loss in the weights of a linear head: diag(S)ᵀ (A ⊙ A) / N.

    Parameters
    ----------
    features, logits, targets, loss, bias
        As in `head_gradient`.
    method : {"exact", "hutchinson"}, default "exact"
        "hutchinson" averages z ⊙ H z over random signs z, as the paper does: it costs more and is not exact, and is
        here to reproduce it.
    num_probes : int, default 300
        Signs for "hutchinson", the paper's number; 2 or more. Each entry's error falls as 1/√num_probes.
    generator : torch.Generator, optional
        Source of the signs. Default: torch's global generator.

    Returns
    -------
    Tensor, shape (K, P + 1), or (K, P) without bias
        Never negative if exact. Differentiable either way.

    Raises
    ------
    ArgumentError
        If loss or method is unknown, ``num_probes < 2``, there are no examples, or a target is out of range.
    ArgumentTypeError
        If class numbers are not integers.
    ShapeError
        If the shapes, dtypes or devices do not fit together.

    Notes
    -----
    "exact" is one matrix product; "hutchinson" two and (num_probes, N, K) memory.

    References
    ----------
    S. Hemati, G. Zhang, A. Estiri, X. Chen (2023), ICCV, arXiv 2308.11778 (the estimate it replaces).
    """
    head = _linear_head("head_hessian_diag", features, logits, targets, loss, bias)
    if method == "exact":
        return head.diagonal()
    if method != "hutchinson":
        raise ArgumentError(f"head_hessian_diag: method must be exact or hutchinson, got {method!r}")
    estimate = hutchinson_diagonal(head.hessian(), num_probes, generator=generator)
    return estimate.value.unflatten(0, head.shape)


def head_hessian(
    features: Tensor, logits: Tensor, targets: Tensor, loss: LossName = "cross_entropy", *, bias: bool = True
) -> LinearOperator:
    """Give the Hessian of the mean loss in the weights of a linear head as an operator.

    Parameters
    ----------
    features, logits, targets, loss, bias
        As in `head_gradient`.

    Returns
    -------
    LinearOperator, shape (K (P + 1), K (P + 1)), or (K P, K P) without bias
        Positive semi-definite. Rows: output by output, its weights, then its bias.

    Raises
    ------
    ArgumentError
        If the loss is unknown, there are no examples, or a target is out of range.
    ArgumentTypeError
        If class numbers are not integers.
    ShapeError
        If the shapes, dtypes or devices do not fit together.
    """
    return _linear_head("head_hessian", features, logits, targets, loss, bias).hessian()


def _linear_head(call: str, features: Tensor, logits: Tensor, targets: Tensor, loss: str, bias: bool) -> LinearHead:
    kind = output_loss(call, loss)
    for name, tensor in (("features", features), ("logits", logits)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ArgumentTypeError(f"{call}: {name} must be a real floating tensor, got {got}")
    if features.ndim != 2:
        raise ShapeError(f"{call}: expected features of shape (N, P), got {tuple(features.shape)}")
    z = as_matrix(logits)
    if z.ndim != 2 or len(z) != len(features) or z.device != features.device or z.dtype != features.dtype:
        raise ShapeError(
            f"{call}: expected logits of shape ({len(features)}, K), {features.dtype} on {features.device}, got "
            f"{tuple(logits.shape)}, {logits.dtype} on {logits.device}"
        )
    if len(features) == 0:
        raise ArgumentError(f"{call}: there are no examples")
    wide = torch.promote_types(features.dtype, torch.float32)
    z = z.to(wide)
    return LinearHead(features.to(wide), z, kind.checked(call, z, targets), kind, bias)


def _product(loss: OutputLoss, features: Tensor, logits: Tensor, v: Tensor, bias: bool) -> Tensor:
    p = features.shape[1]
    tangents = features @ v[..., :p].mT
    if bias:
        tangents = tangents + v[..., p].unsqueeze(-2)
    return _collect(loss.curve(logits, tangents), features, bias)


def _collect(weights: Tensor, features: Tensor, bias: bool) -> Tensor:
    # weights (..., N, K): their transpose times the rows (φ, 1), averaged
    columns = weights.mT @ features
    if bias:
        columns = torch.cat([columns, weights.sum(-2).unsqueeze(-1)], dim=-1)
    return columns / len(features)
