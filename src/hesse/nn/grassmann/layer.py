"""A classifier head whose classes are subspaces, scored by the length of a feature's projection on each.

Shapes: N rows, D features, C classes, K dimensions of a subspace (the largest of them, where they differ).
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg import GrassmannParameter, principal_angles

__all__ = ["GrassmannLinear"]

_LEAST_GAMMA = 5.0  # below it the logits, all in [0, gamma], cannot tell classes apart well enough to fit


class GrassmannLinear(nn.Module):
    """Logits gamma ‖S_cᵀ f/‖f‖‖ for orthonormal S_c (D, K): a last layer to train with cross-entropy.

    A feature may move within the subspace of its class at no cost, where softmax over vectors draws each class to a
    point; what varies inside a class is kept for tasks that need it later. With K = 1 a logit is gamma |cos|: blind to
    the sign, hence not the cosine softmax. There is no bias, and subspaces need not be orthogonal to each other.

    Train ``weight`` with `hesse.optim.RiemannianSGD`, or `hesse.optim.RiemannianAdam`, which see that it is a
    `GrassmannParameter`; another optimiser would take it off the manifold.

    Parameters
    ----------
    in_features : int
        D.
    num_classes : int
        C >= 2.
    subspace_dim : int or sequence of C int, default 8
        Dimension of every subspace, or of each; 1 <= K < D, since at K = D the logit is gamma for every feature. The
        best of the paper's sizes on ImageNet. Unequal ones are stored with columns of zeros behind, whose gradients
        are zero.
    gamma : float, default 25
        Largest logit, the paper's; below max(5, log C) the loss cannot come near zero, and a warning says so.
    learn_gamma : bool, default False
        Whether gamma is trained, as ``log_gamma``. Weight decay would draw it to 1: leave it out.
    eps : float, default 1e-12
        Projections are taken as √(‖z‖² + eps), so that every derivative exists at zero: a logit is too large by at most
        gamma √eps, 2.5e-5, and by gamma eps/(2‖z‖) elsewhere.
    generator : torch.Generator, optional
        Source of the first subspaces, which are uniformly distributed. Default: torch's global generator.
    device : torch.device or str, optional
        Default: torch's default device.
    dtype : torch.dtype, optional
        float32 or float64; half precision would lose orthonormality. Default: torch's default dtype.

    Attributes
    ----------
    weight : GrassmannParameter, shape (C, D, K)
        Orthonormal bases.
    subspace_dims : tuple of int
        Dimension of each class.

    Raises
    ------
    ArgumentError
        If a size or gamma is out of range.
    ShapeError
        If ``subspace_dim`` has not C entries, or the dtype is neither float32 nor float64.

    References
    ----------
    H. Wang, Z. Li, W. Zhang (2023), ICCV, arXiv 2308.01547.

    Examples
    --------
    >>> head = GrassmannLinear(64, 10, subspace_dim=4)
    >>> head(torch.ones(2, 64)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        subspace_dim: int | Sequence[int] = 8,
        gamma: float = 25.0,
        learn_gamma: bool = False,
        eps: float = 1e-12,
        *,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ArgumentError(f"GrassmannLinear: expected num_classes >= 2, got {num_classes}")
        dims = (subspace_dim,) * num_classes if isinstance(subspace_dim, int) else tuple(subspace_dim)
        if len(dims) != num_classes:
            raise ShapeError(f"GrassmannLinear: subspace_dim has {len(dims)} entries for {num_classes} classes")
        if not all(1 <= k < in_features for k in dims):
            raise ArgumentError(
                f"GrassmannLinear: expected 1 <= subspace_dim < in_features = {in_features}, got {sorted(set(dims))}; "
                "a subspace that is the whole space gives every feature the same logit"
            )
        if not (math.isfinite(gamma) and gamma > 0):
            raise ArgumentError(f"GrassmannLinear: expected a finite gamma > 0, got {gamma}")
        if not 0 <= eps < 1:
            raise ArgumentError(f"GrassmannLinear: expected eps in [0, 1), got {eps}")
        if (dtype or torch.get_default_dtype()) not in (torch.float32, torch.float64):
            raise ShapeError(f"GrassmannLinear: expected dtype float32 or float64, got {dtype}")
        if gamma < (least := max(_LEAST_GAMMA, math.log(num_classes))):
            warnings.warn(
                f"GrassmannLinear: gamma = {gamma:g} bounds all logits; below {least:.3g} the loss cannot come near "
                "zero: raise gamma, 25 is usual",
                stacklevel=2,
            )
        self.in_features, self.num_classes, self.subspace_dims, self.eps = in_features, num_classes, dims, eps
        first = GrassmannParameter.random(
            num_classes, in_features, max(dims), dtype=dtype, device=device, generator=generator
        )
        with torch.no_grad():
            first.mul_(torch.tensor([[float(j < k) for j in range(max(dims))] for k in dims]).to(first).unsqueeze(-2))
        self.weight = first
        self._fixed_gamma = float(gamma)
        self.log_gamma = nn.Parameter(first.new_tensor(math.log(gamma))) if learn_gamma else None

    @classmethod
    def from_subspaces(
        cls, bases: Sequence[Tensor], gamma: float = 25.0, *, learn_gamma: bool = False, eps: float = 1e-12
    ) -> "GrassmannLinear":
        """Start at given subspaces, such as those that `class_subspaces` finds in the features of a trained network.

        Parameters
        ----------
        bases : sequence of C Tensor, shape (D, K_c)
            Orthonormal columns.
        gamma, learn_gamma, eps
            As for the class.

        Returns
        -------
        GrassmannLinear
            On the device and in the dtype of the bases, which are copied.

        Raises
        ------
        ShapeError
            If the bases do not have the same number of rows.
        ArgumentError
            If one is not orthonormal to the root of its precision.
        """
        if not bases or any(basis.ndim != 2 or len(basis) != len(bases[0]) for basis in bases):
            shapes = [tuple(basis.shape) for basis in bases]
            raise ShapeError(f"from_subspaces: expected bases (d, k) of one d, got {shapes}")
        for c, basis in enumerate(bases):
            gap = basis.mT @ basis - torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
            if not float(gap.abs().max()) < torch.finfo(basis.dtype).eps ** 0.5:
                raise ArgumentError(f"from_subspaces: bases[{c}] does not have orthonormal columns")
        head = cls(
            len(bases[0]),
            len(bases),
            [basis.shape[1] for basis in bases],
            gamma,
            learn_gamma,
            eps,
            device=bases[0].device,
            dtype=bases[0].dtype,
        )
        with torch.no_grad():
            for c, basis in enumerate(bases):
                head.subspace(c).copy_(basis)
        return head

    @property
    def gamma(self) -> float | Tensor:
        """Largest logit: a number, or a differentiable scalar where it is learnt."""
        return self._fixed_gamma if self.log_gamma is None else self.log_gamma.exp()

    def forward(self, features: Tensor) -> Tensor:
        """Score features against every class.

        Parameters
        ----------
        features : Tensor, shape (..., D)
            Of the weight's dtype, or of a narrower one, as in a mixed-precision backbone: they are widened, and
            autocast is off within. A zero vector scores gamma √eps everywhere.

        Returns
        -------
        Tensor, shape (..., C)
            Logits in [0, gamma], in the weight's dtype. O(N C D K) time.

        Raises
        ------
        ShapeError
            If the last axis is not D long, or the features are wider than the weight.
        """
        return self.gamma * self._projection_lengths(features)

    def open_set_score(self, features: Tensor) -> Tensor:
        """Tell the known from the unknown: cosine of the angle between a feature and the nearest subspace.

        Parameters
        ----------
        features : Tensor, shape (..., D)
            As for `forward`.

        Returns
        -------
        Tensor, shape (...)
            max_c ‖S_cᵀ f/‖f‖‖, in [0, 1]. Sign: low means that the feature belongs to none of the classes.
        """
        return self._projection_lengths(features).amax(-1)

    def _projection_lengths(self, features: Tensor) -> Tensor:
        weight = self.weight
        if features.ndim < 1 or features.shape[-1] != self.in_features:
            raise ShapeError(
                f"GrassmannLinear: expected features (..., {self.in_features}), got shape {tuple(features.shape)}"
            )
        if torch.promote_types(features.dtype, weight.dtype) != weight.dtype:
            raise ShapeError(f"GrassmannLinear: {features.dtype} features, but the weight is {weight.dtype}")
        with torch.autocast(weight.device.type, enabled=False):
            f = features.to(weight.dtype)
            # the square is bounded before its root, since the root has no derivative at a zero vector
            f = f / f.square().sum(-1, keepdim=True).clamp_min(1e-24).sqrt()
            # QR leaves the weight with long columns, of which this is a view
            rows = weight.mT.reshape(-1, self.in_features)
            z_NCK = nn.functional.linear(f, rows).unflatten(-1, (self.num_classes, -1))
            return (z_NCK.square().sum(-1) + self.eps).sqrt()

    def subspace(self, c: int) -> Tensor:
        """Look at the basis of one class.

        Parameters
        ----------
        c : int
            Class.

        Returns
        -------
        Tensor, shape (D, K_c)
            A view of the weight, without the columns of zeros.
        """
        return self.weight[c, :, : self.subspace_dims[c]]

    def projector(self, c: int) -> Tensor:
        """Form the orthogonal projector on one class, S_c S_cᵀ.

        Parameters
        ----------
        c : int
            Class.

        Returns
        -------
        Tensor, shape (D, D)
            Independent of the choice of the basis.
        """
        S = self.subspace(c)
        return S @ S.mT

    def principal_angles(self, c1: int, c2: int) -> Tensor:
        """Measure the angles between two classes.

        Parameters
        ----------
        c1, c2 : int
            Classes.

        Returns
        -------
        Tensor, shape (min(K_c1, K_c2),)
            Rising, in [0, π/2] rad.
        """
        return principal_angles(self.subspace(c1), self.subspace(c2))

    def extra_repr(self) -> str:
        """Describe the sizes.

        Returns
        -------
        str
            What ``repr`` shows between the brackets.
        """
        dims = self.subspace_dims
        shown = dims[0] if len(set(dims)) == 1 else f"{min(dims)}..{max(dims)}"
        return f"{self.in_features}, {self.num_classes}, subspace_dim={shown}, gamma={float(self.gamma):g}"

    def _apply(self, *args: Any, **kwargs: Any) -> "GrassmannLinear":
        super()._apply(*args, **kwargs)
        self._mark()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._mark()

    def _mark(self) -> None:
        # torch makes a plain Parameter where it cannot reuse the old one (assign=True, other kinds of devices), and an
        # optimiser would then take the weight for an ordinary one
        if not isinstance(self.weight, GrassmannParameter):
            self.weight = GrassmannParameter(self.weight.data, self.weight.requires_grad)
