"""scikit-learn's shape of an estimator, without importing scikit-learn: parameters by name, cloning, a short repr."""

import inspect
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Generator, Tensor

from hesse._optional import require
from hesse.errors import ArgumentError

__all__ = ["Estimator", "as_generator", "determination", "like", "sklearn_tags"]


class Estimator:
    """Base of classes whose constructor only stores its keyword arguments under their own names.

    ``sklearn.base.clone`` and searches over parameters work on it; ``fit`` validates, and what it learns ends in ``_``.
    """

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Read the constructor's arguments.

        Parameters
        ----------
        deep : bool, default True
            Whether to list the parameters of estimators inside as well; there are none here.

        Returns
        -------
        dict
            By name.
        """
        del deep  # scikit-learn passes it
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> Self:
        """Change some of the constructor's arguments.

        Parameters
        ----------
        **params
            By name.

        Returns
        -------
        Estimator
            Itself.

        Raises
        ------
        ArgumentError
            If there is no such parameter; nothing is changed then.
        """
        if unknown := sorted(set(params) - set(self._names())):
            raise ArgumentError(
                f"{type(self).__name__}.set_params: no parameter {', '.join(unknown)}; there are "
                f"{', '.join(self._names())}"
            )
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        changed = [
            f"{name}={value!r}" for name, value in self.get_params().items() if value is not defaults[name].default
        ]
        return f"{type(self).__name__}({', '.join(changed)})"


def as_generator(random_state: int | Generator | None, device: torch.device | str = "cpu") -> Generator | None:
    """Read scikit-learn's ``random_state``.

    Parameters
    ----------
    random_state : int or torch.Generator, optional
        A seed, or a generator on the device.
    device : torch.device or str, default "cpu"
        Where numbers will be drawn.

    Returns
    -------
    torch.Generator or None
        None for torch's global generator.
    """
    if isinstance(random_state, int | np.integer):
        return torch.Generator(device=device).manual_seed(int(random_state))
    return random_state


def like(given: Any, result: Tensor) -> Any:
    """Hand a result back as the data came.

    Parameters
    ----------
    given : array or Tensor
        What the caller passed.
    result : Tensor
        The answer.

    Returns
    -------
    array or Tensor
        A tensor on the device of a tensor and in its dtype if that is floating; an array for anything else.
    """
    if isinstance(given, Tensor):
        return result.to(given.device, given.dtype if given.is_floating_point() else result.dtype)
    return result.numpy(force=True)


def determination(found: Tensor, wanted: Tensor) -> float:
    """1 - Σ (y - prediction)² / Σ (y - mean y)², the coefficient of determination.

    Parameters
    ----------
    found : Tensor, shape (N,)
        Predictions.
    wanted : Tensor, shape (N,)
        y.

    Returns
    -------
    float
        At most 1; of a constant y 1 if it is met exactly, else 0.
    """
    error, total = float((wanted - found).square().sum()), float((wanted - wanted.mean()).square().sum())
    return 1 - error / total if total > 0 else float(error == 0)


def sklearn_tags(kind: Literal["regressor", "classifier"], **options: Any) -> Any:
    """Describe an estimator to scikit-learn, which alone asks.

    Parameters
    ----------
    kind : {"regressor", "classifier"}
        What it is.
    **options
        Further fields of ``sklearn.utils.Tags``, or ``poor_score``.

    Returns
    -------
    sklearn.utils.Tags
        For ``__sklearn_tags__``.
    """
    utils = require("sklearn.utils", extra="sklearn", feature="an estimator in scikit-learn's tools")
    poor = options.pop("poor_score", False)
    return utils.Tags(
        estimator_type=kind,
        target_tags=utils.TargetTags(required=True),
        classifier_tags=utils.ClassifierTags(poor_score=poor) if kind == "classifier" else None,
        regressor_tags=utils.RegressorTags(poor_score=poor) if kind == "regressor" else None,
        **options,
    )
