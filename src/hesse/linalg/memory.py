"""How much memory a call will hold, said before it starts.

Counted are the tensors that the routine itself keeps at its peak, in vectors of the operator's length; what the
operator holds, and what one of its products needs on the way, comes on top.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from hesse.errors import ArgumentError, MemoryLimitError
from hesse.linalg._arguments import at_least, wide_dtype
from hesse.linalg.operator import LinearOperator

__all__ = ["MemoryCall", "available_memory", "memory_needed", "require_memory"]

MemoryCall = Literal[
    "block_cg",
    "block_lanczos",
    "cg",
    "dense",
    "eigsh",
    "gmres",
    "hutchpp_trace",
    "lanczos",
    "lsmr",
    "lsqr",
    "minres",
    "multishift_cg",
    "nystrom",
    "recycled_cg",
    "rsvd",
    "slq",
    "xnystrace",
    "xtrace",
]

_DOUBLE = frozenset({"block_lanczos", "eigsh", "lanczos", "slq"})  # keep vectors in float64 whatever the operator's
_QUIET = 1 << 26  # bytes below which a routine does not ask the machine: the question costs more than it saves

# vectors of the longer side of A, for k columns and the size s that the table in `memory_needed` names
_VECTORS: dict[str, tuple[str | None, Callable[[int, int], int]]] = {
    "block_cg": (None, lambda k, _: 10 * k),
    "block_lanczos": ("num_steps", lambda k, s: 5 * k * s + 4 * k),
    "cg": ("columns of the deflation, or 0", lambda k, s: 11 * k + 4 * s),
    "eigsh": ("basis_size", lambda _, s: 2 * s + 4),
    "gmres": ("restart", lambda k, s: (s + 8) * k),
    "hutchpp_trace": ("num_matvecs", lambda _, s: 5 * s // 2),
    "lanczos": ("num_steps, or 0 without a basis", lambda k, s: (s + 8) * k),
    "lsmr": (None, lambda k, _: 11 * k),
    "lsqr": (None, lambda k, _: 10 * k),
    "minres": (None, lambda k, _: 12 * k),
    "multishift_cg": ("number of shifts", lambda k, s: (5 * s + 5) * k),
    "nystrom": ("rank", lambda _, s: 6 * s),
    "recycled_cg": ("window", lambda k, s: 11 * k + 5 * s),
    "rsvd": ("rank + oversampling", lambda _, s: 6 * s),
    "slq": ("num_steps, or 0 with reorthogonalize='none'", lambda k, s: (s + 8) * k),
    "xnystrace": ("num_matvecs", lambda _, s: 7 * s),
    "xtrace": ("num_matvecs", lambda _, s: 7 * s // 2),
}


def memory_needed(
    call: MemoryCall,
    operator: LinearOperator,
    *,
    columns: int = 1,
    size: int | None = None,
    recurrence_dtype: torch.dtype | None = None,
) -> int:
    """Estimate the bytes that a call keeps beside the operator, at its peak.

    Parameters
    ----------
    call : str
        Name of the routine, or "dense" for the matrix itself.
    operator : LinearOperator, shape (..., m, n)
        What it would be called with.
    columns : int, default 1
        Right-hand sides, starting vectors, probes that run side by side.
    size : int, optional
        What the memory grows with: ``restart`` of gmres, ``num_steps`` of lanczos, block_lanczos and slq (0 without a
        basis), ``basis_size`` of eigsh, ``rank`` of nystrom (of rsvd with the oversampling), ``num_matvecs`` of the
        trace estimators, ``window`` of recycled_cg, columns of the deflation of cg, number of shifts of multishift_cg.
        The other calls have none.
    recurrence_dtype : torch.dtype, optional
        In which the vectors are kept, where the call takes it as an argument. Default: float64 for eigsh, lanczos,
        block_lanczos and slq, otherwise the operator's dtype, float32 for half precision.

    Returns
    -------
    int
        Never below what was measured, and less than three times as much, for vectors that outweigh the small matrices.

    Raises
    ------
    ArgumentError
        If the call is unknown, a number is out of range, or the size is missing or of no use.
    """
    at_least("memory_needed", "columns", columns, 1)
    m, n = operator.shape
    stack = 1
    for extent in operator.batch_shape:
        stack *= extent
    if call == "dense":
        _no_size(call, size)
        return stack * m * n * operator.dtype.itemsize
    if call not in _VECTORS:
        raise ArgumentError(f"memory_needed: unknown call {call!r}; expected dense, {', '.join(_VECTORS)}")
    meaning, vectors = _VECTORS[call]
    if meaning is None:
        _no_size(call, size)
    elif size is None:
        raise ArgumentError(f"memory_needed: {call} needs size=, its {meaning}")
    else:
        at_least("memory_needed", "size", size, 0)
    dtype = wide_dtype(operator.dtype)
    if recurrence_dtype is not None:
        dtype = recurrence_dtype.to_complex() if dtype.is_complex else recurrence_dtype
    elif call in _DOUBLE:
        dtype = torch.promote_types(dtype, torch.float64)
    return stack * max(m, n) * vectors(columns, size or 0) * dtype.itemsize


def _no_size(call: str, size: int | None) -> None:
    if size is not None:
        raise ArgumentError(f"memory_needed: the memory of {call} depends on columns only, got size={size}")


def available_memory(device: torch.device | str = "cpu") -> int | None:
    """Ask how many bytes can still be had on a device.

    Parameters
    ----------
    device : torch.device or str, default "cpu"
        Where.

    Returns
    -------
    int or None
        On CUDA what the driver has free and torch holds unused. On the CPU what Linux calls available, or what the
        process group (a container, a batch job) may still take if that is less. None where the system does not say.
    """
    place = torch.device(device)
    if place.type == "cuda":
        unused = torch.cuda.memory_reserved(place) - torch.cuda.memory_allocated(place)
        return torch.cuda.mem_get_info(place)[0] + unused
    if place.type != "cpu":
        return None
    known = [amount for amount in (_machine_memory(), _group_memory()) if amount is not None]
    return min(known) if known else None


def _machine_memory() -> int | None:
    table = Path("/proc/meminfo")
    if not table.exists():
        return None
    fields = dict(line.split(":", 1) for line in table.read_text().splitlines())
    available = fields.get("MemAvailable")
    return None if available is None else int(available.split()[0]) * 1024


def _group_memory() -> int | None:
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if not (limit.exists() and used.exists()):
        return None
    most = limit.read_text().strip()
    if most == "max":
        return None
    cache = 0  # the kernel gives file pages back before it runs out
    table = Path("/sys/fs/cgroup/memory.stat")
    if table.exists():
        fields = dict(line.split() for line in table.read_text().splitlines())
        cache = int(fields.get("inactive_file", 0))
    return max(int(most) - int(used.read_text()) + cache, 0)


def require_memory(
    call: MemoryCall,
    operator: LinearOperator,
    *,
    columns: int = 1,
    size: int | None = None,
    recurrence_dtype: torch.dtype | None = None,
    memory_limit: int | None = None,
) -> int:
    """Refuse a call that would not fit, before it starts.

    `block_lanczos`, `eigsh`, `gmres`, `lanczos`, `nystrom`, `slq` and its relatives, `xtrace`, and `solve` where it
    forms the matrix, ask this of themselves.

    Parameters
    ----------
    call, operator, columns, size, recurrence_dtype
        As in `memory_needed`.
    memory_limit : int, optional
        Bytes that may be used. Default: `available_memory` of the operator's device; nothing is refused where that is
        not known, or where the call needs less than 64 MB.

    Returns
    -------
    int
        What the call needs, in bytes.

    Raises
    ------
    MemoryLimitError
        If it needs more than there is. Also a MemoryError.
    ArgumentError
        As in `memory_needed`.
    """
    needed = memory_needed(call, operator, columns=columns, size=size, recurrence_dtype=recurrence_dtype)
    if memory_limit is None and needed <= _QUIET:
        return needed
    limit = available_memory(operator.device) if memory_limit is None else memory_limit
    if limit is None or needed <= limit:
        return needed
    meaning = None if call == "dense" else _VECTORS[call][0]
    remedy = (
        "iterate with products instead of forming the matrix" if call == "dense" else "take fewer columns at a time"
    )
    if meaning is not None:
        remedy += f", or lower size = {size} ({meaning})"
    raise MemoryLimitError(
        f"{call}: needs about {_readable(needed)} for {operator!r} with {columns} column{'s' * (columns != 1)}, "
        f"{_readable(limit)} {'are free' if memory_limit is None else 'are allowed'} on {operator.device}; {remedy}"
    )


def _readable(amount: int) -> str:
    value = float(amount)
    for unit in ("B", "KB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"
