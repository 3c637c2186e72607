"""Every error hesse raises on purpose; each is also the built-in error a caller would expect.

HesseError
├── ArgumentError (ValueError)          an argument is out of range or contradicts another
│   └── ShapeError                      … or has the wrong shape, dtype or device
├── ArgumentTypeError (TypeError)       an argument is of the wrong kind
├── NumericalError (ArithmeticError)    NaN, Inf, breakdown of a recurrence
│   ├── ConvergenceError                an iteration stopped before its tolerance
│   └── SingularError (LinAlgError)     a matrix could not be factored or inverted
├── MemoryLimitError (MemoryError)      the job would not fit, said before it starts; or a batch of it did not
├── ArtifactError (OSError)             a file is damaged, foreign, or of another run   (exit code 3)
├── WriteError (OSError)                a file could not be written; the old one is still there, whole
├── RunLockedError (OSError)            another process is writing to the same run
├── RankError (ConnectionError)         another process of the same job has died or failed
└── MissingDependencyError (ImportError) an optional package is not installed           (exit code 4)
"""

import numpy as np

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "ArtifactError",
    "ConvergenceError",
    "HesseError",
    "MemoryLimitError",
    "MissingDependencyError",
    "NumericalError",
    "RankError",
    "RunLockedError",
    "ShapeError",
    "SingularError",
    "WriteError",
]


class HesseError(Exception):
    """Base of every error that hesse raises on purpose; ``exit_code`` is what the command line returns for it."""

    exit_code: int = 1


class ArgumentError(HesseError, ValueError):
    """An argument is out of range, or contradicts another one."""


class ShapeError(ArgumentError):
    """An argument has the wrong shape, dtype or device."""


class ArgumentTypeError(HesseError, TypeError):
    """An argument is of the wrong kind altogether."""


class NumericalError(HesseError, ArithmeticError):
    """NaN or Inf appeared, or a recurrence broke down."""


class ConvergenceError(NumericalError):
    """An iteration stopped before it reached its tolerance; the message names cause and remedy."""


class SingularError(NumericalError, np.linalg.LinAlgError):
    """A matrix could not be factored or inverted."""


class MemoryLimitError(HesseError, MemoryError):
    """The job would not fit in memory, said before it starts; or a batch did not, and the run keeps what was done."""


class ArtifactError(HesseError, OSError):
    """A file on disk is damaged, foreign, from another run, or from a newer version."""

    exit_code = 3


class WriteError(HesseError, OSError):
    """A file could not be written; what was there before is still there, whole."""


class RunLockedError(HesseError, OSError):
    """Another process is writing to the same run directory."""


class RankError(HesseError, ConnectionError):
    """Another process of the same distributed job has died, hangs, or has failed; the message names its rank."""


class MissingDependencyError(HesseError, ImportError):
    """An optional package is missing; the message says how to install it."""

    exit_code = 4
