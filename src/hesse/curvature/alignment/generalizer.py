"""A classifier for data from several domains, in scikit-learn's shape: a multilayer perceptron with an aligned head.

Shapes: N rows, F columns, K classes.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from hesse._estimator import Estimator
from hesse.curvature.alignment.loss import HessianAlignmentLoss, Penalty, PenaltyName
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError

__all__ = ["DomainGeneralizer"]

Array = np.ndarray | Tensor


class DomainGeneralizer(Estimator):
    """Classify rows of domains not seen in training, by a network whose head agrees across those that were.

    Full-batch Adam on the loss of `HessianAlignmentLoss`. Two classes share one logit, more have one each. Defaults are
    the paper's for Colored MNIST: with weights this large the network gives up training accuracy for what holds in
    every domain; with ``alpha=0, beta=0`` it is plain empirical risk minimisation over domains of equal weight.

    Parameters
    ----------
    hidden_sizes : sequence of int, default (390, 390)
        Widths of the layers below the head, each followed by a ReLU.
    penalty : {"hgp", "hutchinson", "frobenius"} or callable, default "hgp"
        As in `HessianAlignmentLoss`.
    alpha, beta : float or None, default 9.1e4
        Weights of curvature and gradient; for a callable penalty ``beta`` must be None.
    anneal_steps : int, default 190
        Steps before the weights apply.
    learning_rate : float, default 4.9e-4
        Adam's.
    weight_decay : float, default 1.1e-3
        Times the sum of squares of all parameters, in the loss.
    max_iter : int, default 501
        Steps.
    random_state : int, default 0
        Seed of the initial weights, the only randomness.

    Attributes
    ----------
    classes_ : ndarray, shape (K,)
        Labels, sorted.
    module_ : nn.Sequential
        The network; its last layer is the head.
    n_features_in_ : int
        F.
    n_iter_ : int
        Steps made.
    loss_curve_ : list of float
        Mean loss over domains before each step, without penalty, in nats.

    References
    ----------
    S. Hemati, G. Zhang, A. Estiri, X. Chen (2023), ICCV, arXiv 2308.11778.

    Examples
    --------
    >>> X, y, domains = torch.randn(20, 3), torch.arange(20) % 2, torch.arange(20) // 10
    >>> model = DomainGeneralizer(hidden_sizes=(8,), max_iter=5).fit(X, y, domains)
    >>> model.predict(X).shape
    (20,)
    """

    _estimator_type = "classifier"

    def __init__(
        self,
        hidden_sizes: Sequence[int] = (390, 390),
        penalty: PenaltyName | Penalty = "hgp",
        alpha: float | None = 9.1e4,
        beta: float | None = 9.1e4,
        anneal_steps: int = 190,
        learning_rate: float = 4.9e-4,
        weight_decay: float = 1.1e-3,
        max_iter: int = 501,
        random_state: int = 0,
    ) -> None:
        self.hidden_sizes = hidden_sizes
        self.penalty: PenaltyName | Penalty = penalty
        self.alpha = alpha
        self.beta = beta
        self.anneal_steps = anneal_steps
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Array, y: Array, domains: Array) -> Self:
        """Train on rows that say which domain they come from.

        Parameters
        ----------
        X : array or Tensor, shape (N, F)
            Rows. The network has its dtype (float32 or float64; anything else becomes float32) and, for a tensor, its
            device.
        y : array or Tensor, shape (N,)
            Labels of any kind, two different ones or more. A class may be missing in a domain.
        domains : array or Tensor, shape (N,)
            Labels of the domains, two different ones or more.

        Returns
        -------
        DomainGeneralizer
            Itself.

        Raises
        ------
        ArgumentError
            If there is one class or one domain only, X is not finite, or an argument of the constructor is out of
            range.
        ArgumentTypeError
            If X is no array or tensor.
        ShapeError
            If the lengths differ or X is not a table.
        """
        rows = self._rows("fit", X)
        labels, groups = _as_numpy(y), _as_numpy(domains)
        for name, values in (("y", labels), ("domains", groups)):
            if values.shape != (len(rows),):
                raise ShapeError(f"DomainGeneralizer.fit: expected {name} of shape ({len(rows)},), got {values.shape}")
        self.classes_, codes = np.unique(labels, return_inverse=True)
        places, group_codes = np.unique(groups, return_inverse=True)
        if len(self.classes_) < 2 or len(places) < 2:
            raise ArgumentError(
                f"DomainGeneralizer.fit: expected two classes and two domains at least, got {len(self.classes_)} and "
                f"{len(places)}"
            )
        if self.max_iter < 1 or not self.learning_rate > 0 or not self.weight_decay >= 0:
            raise ArgumentError(
                "DomainGeneralizer: expected max_iter >= 1, learning_rate > 0, weight_decay >= 0, got "
                f"{self.max_iter}, {self.learning_rate}, {self.weight_decay}"
            )
        binary = len(self.classes_) == 2
        self.n_features_in_ = rows.shape[1]
        self.module_ = self._network(rows, 1 if binary else len(self.classes_))
        body, head = self.module_[:-1], self.module_[-1]
        criterion = HessianAlignmentLoss(
            head,
            "binary_cross_entropy" if binary else "cross_entropy",
            self.penalty,
            self.alpha,
            self.beta,
            self.anneal_steps,
        )
        targets = torch.as_tensor(codes, device=rows.device)
        members = [torch.as_tensor(np.flatnonzero(group_codes == e), device=rows.device) for e in range(len(places))]
        parameters = list(self.module_.parameters())
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
        self.loss_curve_: list[float] = []
        for step in range(self.max_iter):
            features = body(rows)
            loss, parts = criterion([(features[index], targets[index]) for index in members], step)
            squares = torch.stack([p.square().sum() for p in parameters]).sum()
            optimizer.zero_grad()
            (loss + self.weight_decay * squares / parts["scale"]).backward()
            optimizer.step()
            self.loss_curve_.append(float(parts["loss"]))
        self.n_iter_ = self.max_iter
        return self

    def decision_function(self, X: Array) -> np.ndarray:
        """Compute logits.

        Parameters
        ----------
        X : array or Tensor, shape (N, F)
            Rows.

        Returns
        -------
        ndarray, shape (N,) for two classes, else (N, K)
            Positive means the second class.

        Raises
        ------
        ArgumentError
            If it has not been fitted, or X is not finite.
        ShapeError
            If X has another number of columns.
        """
        logits = self._logits("decision_function", X).cpu().numpy()
        return logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Array) -> np.ndarray:
        """Compute class probabilities.

        Parameters
        ----------
        X : array or Tensor, shape (N, F)
            Rows.

        Returns
        -------
        ndarray, shape (N, K)
            In the order of ``classes_``.

        Raises
        ------
        ArgumentError
            If it has not been fitted, or X is not finite.
        ShapeError
            If X has another number of columns.
        """
        logits = self._logits("predict_proba", X)
        if len(self.classes_) == 2:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return logits.softmax(1).cpu().numpy()

    def predict(self, X: Array) -> np.ndarray:
        """Name the likeliest class of each row.

        Parameters
        ----------
        X : array or Tensor, shape (N, F)
            Rows of any domain.

        Returns
        -------
        ndarray, shape (N,)
            Labels as `fit` was given them.

        Raises
        ------
        ArgumentError
            If it has not been fitted, or X is not finite.
        ShapeError
            If X has another number of columns.
        """
        chosen = self.predict_proba(X).argmax(1)
        return self.classes_[chosen]

    def score(self, X: Array, y: Array) -> float:
        """Measure accuracy.

        Parameters
        ----------
        X : array or Tensor, shape (N, F)
            Rows.
        y : array or Tensor, shape (N,)
            Labels.

        Returns
        -------
        float
            Share of rows named rightly; higher is better.

        Raises
        ------
        ArgumentError
            If it has not been fitted, or X is not finite.
        ShapeError
            If X has another number of columns.
        """
        return float(np.mean(self.predict(X) == _as_numpy(y)))

    def _network(self, rows: Tensor, num_outputs: int) -> nn.Sequential:
        sizes = [rows.shape[1], *self.hidden_sizes]
        if any(size < 1 for size in sizes):
            raise ArgumentError(f"DomainGeneralizer: expected positive hidden_sizes, got {tuple(self.hidden_sizes)}")
        generator = torch.Generator().manual_seed(self.random_state)
        layers: list[nn.Module] = []
        for width, following in zip(sizes, [*sizes[1:], num_outputs], strict=True):
            layer = nn.Linear(width, following, dtype=rows.dtype)
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.ReLU()]
        return nn.Sequential(*layers[:-1]).to(rows.device)

    def _rows(self, call: str, X: Array) -> Tensor:
        if not isinstance(X, np.ndarray | Tensor):
            raise ArgumentTypeError(f"DomainGeneralizer.{call}: X must be an array or a tensor, got {type(X).__name__}")
        rows = torch.as_tensor(X)
        if rows.dtype not in (torch.float32, torch.float64):
            rows = rows.to(torch.float32)
        if rows.ndim != 2 or rows.numel() == 0:
            raise ShapeError(f"DomainGeneralizer.{call}: expected X of shape (N, F), got {tuple(rows.shape)}")
        if not bool(torch.isfinite(rows).all()):
            raise ArgumentError(f"DomainGeneralizer.{call}: X has NaN or Inf")
        return rows

    def _logits(self, call: str, X: Array) -> Tensor:
        if not hasattr(self, "module_"):
            raise ArgumentError(f"DomainGeneralizer.{call}: call fit first")
        rows = self._rows(call, X)
        if rows.shape[1] != self.n_features_in_:
            raise ShapeError(f"DomainGeneralizer.{call}: expected {self.n_features_in_} columns, got {rows.shape[1]}")
        first = next(self.module_.parameters())
        with torch.no_grad():
            return self.module_(rows.to(first))


def _as_numpy(values: Array) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
