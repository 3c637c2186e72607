"""Import an optional package, or say how to install it."""

import importlib
from types import ModuleType

from hesse.errors import MissingDependencyError

__all__ = ["require"]


def require(module: str, *, extra: str, feature: str | None = None) -> ModuleType:
    """Return the module, or raise with the one line that installs it.

    Parameters
    ----------
    module : str
        Dotted name, as in ``import``.
    extra : str
        The extra of ``hesse`` that brings it.
    feature : str, optional
        What needs it, for the message. Default: "this feature".

    Returns
    -------
    ModuleType
        The imported module.

    Raises
    ------
    MissingDependencyError
        If the package is not installed. Also an ImportError.
    ModuleNotFoundError
        If the package is there but misses a package of its own.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # the package is there, and misses one of its own
        name = module.split(".")[0]
        raise MissingDependencyError(
            f'{feature or "this feature"} needs {name}: pip install "hesse[{extra}]"'
        ) from error
