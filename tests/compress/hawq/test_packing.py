import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hesse.compress.hawq import pack_integers, unpack_integers
from hesse.errors import ArgumentError
from tests.compress.hawq.cases import seeded


@given(st.integers(2, 8), st.integers(1, 41), st.booleans(), st.integers(0, 99))
def test_packing_is_undone(bits, count, signed, seed):
    """Oracle: the numbers themselves, and the number of bytes that so many bits need."""
    low = -(2 ** (bits - 1)) if signed else 0
    codes = torch.randint(low, low + 2**bits, (count,), generator=seeded(seed)).to(torch.int16)
    packed = pack_integers(codes, bits, low)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-count * bits // 8)
    assert torch.equal(unpack_integers(packed, bits, low, (count,)), codes)


def test_bits_stand_lowest_first():
    """Oracle: by hand, 3 bits: 1, 2, 7 -> 1 + 2 * 8 + (7 mod 4) * 64, then the bit left over."""
    assert pack_integers(torch.tensor([1, 2, 7]), 3, 0).tolist() == [1 + 16 + 3 * 64, 1]


def test_what_does_not_fit_is_refused():
    """Oracle: the documented errors."""
    with pytest.raises(ArgumentError, match="from -2 to 1"):
        pack_integers(torch.tensor([2]), 2, -2)
    with pytest.raises(ArgumentError, match="needs 2 bytes"):
        unpack_integers(torch.zeros(1, dtype=torch.uint8), 2, 0, (5,))
