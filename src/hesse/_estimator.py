"""scikit-learn's shape of an estimator, without importing scikit-learn: parameters by name, cloning, a short repr."""

import inspect
from typing import Any, Self

from hesse.errors import ArgumentError

__all__ = ["Estimator"]


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
