import gc
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hesse.errors import ArgumentError, MemoryLimitError
from hesse.linalg import (
    FunctionOperator,
    block_cg,
    block_lanczos,
    cg,
    eigsh,
    gmres,
    hutchpp_trace,
    lanczos,
    lsmr,
    lsqr,
    minres,
    multishift_cg,
    nystrom,
    recycled_cg,
    rsvd,
    slq,
    solve,
    xnystrace,
    xtrace,
)
from hesse.linalg import memory as memory_module
from hesse.linalg.memory import available_memory, memory_needed, require_memory

N = 4000


class Peak(TorchDispatchMode):
    """The largest number of bytes in storages that were made inside and live at the same time."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in known and storage._cdata not in self.seen:
                    size = storage.nbytes()
                    self.seen[storage._cdata] = size
                    self.now += size
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self.freed, storage._cdata)
        return result

    def freed(self, key):
        self.now -= self.seen.pop(key, 0)


def operator(dtype=torch.float64):
    diagonal = torch.linspace(1, 50, N, dtype=dtype).unsqueeze(1)
    return FunctionOperator(lambda x, d: d * x, (N, N), dtype=dtype, tensors=(diagonal,), is_psd=True)


def block(k, dtype=torch.float64):
    return torch.randn(N, k, dtype=dtype, generator=torch.Generator().manual_seed(0))


CALLS = {
    "cg": (lambda a: cg(a, block(40, a.dtype), max_steps=6), {"columns": 40, "size": 0}),
    "block_cg": (lambda a: block_cg(a, block(12, a.dtype), max_steps=4), {"columns": 12}),
    "minres": (lambda a: minres(a, block(10, a.dtype), max_steps=6), {"columns": 10}),
    "lsqr": (lambda a: lsqr(a, block(10, a.dtype), max_steps=6), {"columns": 10}),
    "lsmr": (lambda a: lsmr(a, block(10, a.dtype), max_steps=6), {"columns": 10}),
    "gmres": (lambda a: gmres(a, block(2, a.dtype), restart=25, max_steps=25), {"columns": 2, "size": 25}),
    "multishift_cg": (
        lambda a: multishift_cg(a, block(2, a.dtype), torch.linspace(0, 1, 8).to(a.dtype), max_steps=6),
        {"columns": 2, "size": 8},
    ),
    "recycled_cg": (
        lambda a: recycled_cg(a, block(1, a.dtype), rank=4, window=20, max_steps=45),
        {"columns": 1, "size": 20},
    ),
    "lanczos": (lambda a: lanczos(a, 30, start=block(2, a.dtype)), {"columns": 2, "size": 30}),
    "block_lanczos": (lambda a: block_lanczos(a, block(4, a.dtype), 8), {"columns": 4, "size": 8}),
    "eigsh": (lambda a: eigsh(a, 3, basis_size=24, max_steps=30), {"size": 24}),
    "slq": (lambda a: slq(a, torch.log, num_probes=3, num_steps=20), {"columns": 3, "size": 20}),
    "nystrom": (lambda a: nystrom(a, 20), {"size": 20}),
    "rsvd": (lambda a: rsvd(a, 12, oversampling=8), {"size": 20}),
    "hutchpp_trace": (lambda a: hutchpp_trace(a, 60), {"size": 60}),
    "xtrace": (lambda a: xtrace(a, 60), {"size": 60}),
    "xnystrace": (lambda a: xnystrace(a, 24), {"size": 24}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("call", list(CALLS))
def test_estimates_are_upper_bounds_within_a_factor_three(call, dtype):
    """Oracle: the storages alive at the peak, counted by a dispatch mode while the call runs."""
    a = operator(dtype)
    run, sizes = CALLS[call]
    a.validate_symmetry()
    gc.collect()
    with Peak() as peak:
        run(a)
    needed = memory_needed(call, a, **sizes)
    assert peak.most <= needed <= 3 * peak.most


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("recurrence_dtype", [torch.float32, torch.float64], ids=str)
def test_recurrence_dtype_counts(dtype, recurrence_dtype):
    """Oracle: the storages alive at the peak; and the bytes of a number, whatever the dtype of the products."""
    a, start = operator(dtype), block(2, dtype)
    gc.collect()
    with Peak() as peak:
        lanczos(a, 30, start=start, recurrence_dtype=recurrence_dtype)
    needed = memory_needed("lanczos", a, columns=2, size=30, recurrence_dtype=recurrence_dtype)
    assert peak.most <= needed <= 3 * peak.most
    assert needed == memory_needed("lanczos", a, columns=2, size=30) * recurrence_dtype.itemsize // 8


def test_chunks_of_probes_share_memory():
    """Oracle: the storages alive at the peak; with three probes at a time there is a basis of three, not of all."""
    a = operator()
    gc.collect()
    with Peak() as peak:
        slq(a, torch.log, num_probes=30, num_steps=20, chunk_size=3)
    needed = memory_needed("slq", a, columns=3, size=20 + 9)  # nine further chunks wait, one vector a probe
    assert peak.most <= needed <= 3 * peak.most
    assert 3 * peak.most < memory_needed("slq", a, columns=30, size=20)


def test_dense_and_stacks():
    """Oracle: the bytes of the matrix; a stack of three."""
    a = FunctionOperator(lambda x: x, (70, 70), batch_shape=(3,), is_psd=True)
    assert memory_needed("dense", a) == 3 * 70 * 70 * 4
    assert memory_needed("minres", a) == 3 * memory_needed("minres", FunctionOperator(lambda x: x, (70, 70)))


def test_too_large_a_call_is_refused_before_any_product():
    """Oracle: the error, with what is needed, what there is, and what to lower; and that no product was made."""
    products = []
    huge = FunctionOperator(lambda x: products.append(1) or x, (10**9, 10**9), is_psd=True)
    b = torch.zeros(1).expand(10**9)  # a view of one number
    with pytest.raises(MemoryLimitError, match=r"gmres: needs about 1e\+04 GB.*restart") as caught:
        gmres(huge, b, restart=2500, max_steps=5000, validate=False)
    assert isinstance(caught.value, MemoryError)
    with pytest.raises(MemoryLimitError, match=r"nystrom.*rank"):
        nystrom(huge, 10_000)
    with pytest.raises(MemoryLimitError, match="xtrace"):
        xtrace(huge, 10_000)
    with pytest.raises(MemoryLimitError, match=r"dense.*iterate"):
        solve(huge, b, method="dense")
    assert not products
    with pytest.raises(MemoryLimitError, match="allowed"):
        require_memory("cg", operator(), size=0, memory_limit=1000)
    assert require_memory("cg", operator(), size=0, memory_limit=10**9) == memory_needed("cg", operator(), size=0)


def test_free_memory_is_read(monkeypatch, tmp_path):
    """Oracle: what torch can allocate is below it, and a container's limit counts."""
    free = available_memory()
    assert free is None or 1 << 20 < free < 1 << 50
    assert available_memory("meta") is None
    monkeypatch.setattr(memory_module, "_group_memory", lambda: 12345)
    assert available_memory() == 12345
    monkeypatch.setattr(memory_module, "_machine_memory", lambda: None)
    monkeypatch.setattr(memory_module, "_group_memory", lambda: None)
    assert available_memory() is None
    assert require_memory("minres", FunctionOperator(lambda x: x, (10**12, 10**12))) > 1 << 40  # not known, not refused


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    a = operator()
    with pytest.raises(ArgumentError, match="unknown call"):
        memory_needed("magic", a)
    with pytest.raises(ArgumentError, match="restart"):
        memory_needed("gmres", a)
    with pytest.raises(ArgumentError, match="columns only"):
        memory_needed("minres", a, size=3)
    with pytest.raises(ArgumentError, match="columns"):
        memory_needed("minres", a, columns=0)
