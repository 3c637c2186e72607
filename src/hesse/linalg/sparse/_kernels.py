"""Compiled loops of the sparse product: counting, multiplying, gathering, differentiating, simulating hash tables.

Every kernel works on a run of rows ``lo:hi`` in scratch memory of its own and holds no lock, so that threads run side
by side. Scratch is zero (or the semiring's zero) on entry and left so on exit. Indices into scratch are unsigned:
numba turns a mixture of signed and unsigned words into floating point.

Names: (ap, ai, av) and (bp, bi, bv) are row pointers, columns and values of A and B, (op, oi, ov) those of the output.
"""

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

__all__ = [
    "AUTO",
    "BITMAP",
    "BLOCK",
    "HASH",
    "count_rows",
    "gather",
    "gradient_rows",
    "largest_table",
    "multiply",
    "multiply_masked",
    "pack_columns",
    "pattern_rows",
    "probe_windows",
    "table_size",
    "uses_hash",
]

AUTO, BITMAP, HASH = 0, 1, 2
WIDE = 1 << 17  # columns up to which the dense sums of a row stay in a second-level cache
BLOCK = 1 << 15  # columns a pass once it does not
SPARSE_ROW = 512  # columns a product above which walking the bitmap costs more than hashing and sorting
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio, odd: the multiplicative hash

_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_WORD = np.uint64
_ONE, _SIX, _LOW6 = np.uint64(1), np.uint64(6), np.uint64(63)


@intrinsic
def _trailing_zeros(_typing: Any, _word: Any) -> Any:
    # Position of the lowest set bit of a word that is not zero.

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        from llvmlite import ir

        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


@intrinsic
def _set_bits(_typing: Any, _word: Any) -> Any:
    # number of set bits of a word
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@njit(**_OPTIONS)
def table_size(entries: int) -> int:
    # Smallest power of two with at most half of its slots taken.
    size = 2
    while size < 2 * entries:
        size *= 2
    return size


@njit(**_OPTIONS)
def uses_hash(flops: int, span: Any, mode: int) -> bool:
    # whether a row that spans so many columns is summed in the hash table; else in the bitmap
    if mode != AUTO:
        return mode == HASH
    return flops * SPARSE_ROW < span or (span > WIDE and flops * 16 <= span)


@njit(**_OPTIONS)
def _span(first, last, ai, bp, bi):
    # least and greatest column among the rows of B that A's entries first:last name; B's rows are sorted
    low, high = np.int64(2**62), np.int64(-1)
    for p in range(first, last):
        start, end = bp[ai[p]], bp[ai[p] + 1]
        if end > start:
            low = min(low, np.int64(bi[start]))
            high = max(high, np.int64(bi[end - 1]))
    return low, high


@njit(**_OPTIONS)
def _sort(columns, start, end):
    # short rows by insertion: numba's own sort sets a stack up first
    if end - start > 48:
        columns[start:end].sort()
        return
    for p in range(start + 1, end):
        column = columns[p]
        q = p
        while q > start and columns[q - 1] > column:
            columns[q] = columns[q - 1]
            q -= 1
        columns[q] = column


@njit(**_OPTIONS)
def largest_table(flops, n, mode):
    # slots that the heaviest row needs if it spans all n columns; no row needs more, and 0 if none is hashed
    heaviest = 0
    for row in flops:
        if row > heaviest and uses_hash(row, n, mode):
            heaviest = row
    return table_size(min(heaviest, n)) if heaviest > 0 else 0


@njit(**_OPTIONS)
def _home(column: Any, bits: Any) -> Any:
    return np.int64((_WORD(column) * _WORD(GOLDEN)) >> (_WORD(64) - bits))


@njit(**_OPTIONS)
def _bits_of(size: int) -> Any:
    bits = 0
    while (1 << bits) < size:
        bits += 1
    return _WORD(bits)


@njit(**_OPTIONS)
def pack_columns(bp, bi):
    # the columns of every row as 64-bit words that are not zero: (pointers, positions, words)
    # a pattern then merges a word at a time, several columns in one step where they crowd
    m = bp.size - 1
    pointers = np.zeros(m + 1, np.int64)
    positions, words = np.empty(bi.size, bi.dtype), np.empty(bi.size, np.uint64)
    end = 0
    for k in range(m):
        start = end
        for q in range(bp[k], bp[k + 1]):
            position = bi[q] >> 6
            if end == start or positions[end - 1] != position:
                positions[end] = position
                words[end] = _WORD(0)
                end += 1
            words[end - 1] |= _ONE << (_WORD(bi[q]) & _LOW6)
        pointers[k + 1] = end
    return pointers, positions[:end].copy(), words[:end].copy()


@njit(**_OPTIONS)
def count_rows(lo, hi, flops, ap, ai, bp, bi, wp, wi, ww, n, mode, bitmap, keys, used, counts):
    # number of columns of every output row, without any value; -1 if the table is too small
    for i in range(lo, hi):
        first, last = ap[i], ap[i + 1]
        if last - first <= 1 or flops[i] == 0:
            counts[i] = flops[i]
            continue
        found = 0
        low, high = _span(first, last, ai, bp, bi)
        if uses_hash(flops[i], high - low + 1, mode):
            size = table_size(min(flops[i], n))
            if size > keys.size:
                return -1
            bits, wrap = _bits_of(size), size - 1
            for p in range(first, last):
                for q in range(bp[ai[p]], bp[ai[p] + 1]):
                    slot = _home(bi[q], bits)
                    while keys[slot] != -1 and keys[slot] != bi[q]:
                        slot = (slot + 1) & wrap
                    if keys[slot] == -1:
                        keys[slot] = bi[q]
                        used[found] = slot
                        found += 1
            for s in range(found):
                keys[used[s]] = -1
        else:
            for p in range(first, last):
                for q in range(wp[ai[p]], wp[ai[p] + 1]):
                    bitmap[_WORD(wi[q])] |= ww[q]
            for w in range(low >> 6, (high >> 6) + 1):
                found += np.int64(_set_bits(bitmap[w]))  # pyright: ignore[reportCallIssue]
                bitmap[w] = _WORD(0)
        counts[i] = found
    return 0


@njit(**_OPTIONS)
def pattern_rows(lo, hi, flops, ap, ai, bp, bi, wp, wi, ww, n, mode, bitmap, keys, used, op, oi):
    # Columns of every output row, sorted, at positions known from ``count_rows``; -1 if the table is too small.
    for i in range(lo, hi):
        position = op[i]
        first, last = ap[i], ap[i + 1]
        if last - first == 1:
            for q in range(bp[ai[first]], bp[ai[first] + 1]):
                oi[position] = bi[q]
                position += 1
        if last - first <= 1 or flops[i] == 0:
            continue
        low, high = _span(first, last, ai, bp, bi)
        if uses_hash(flops[i], high - low + 1, mode):
            size = table_size(min(flops[i], n))
            if size > keys.size:
                return -1
            bits, wrap = _bits_of(size), size - 1
            for p in range(first, last):
                for q in range(bp[ai[p]], bp[ai[p] + 1]):
                    slot = _home(bi[q], bits)
                    while keys[slot] != -1 and keys[slot] != bi[q]:
                        slot = (slot + 1) & wrap
                    if keys[slot] == -1:
                        keys[slot] = bi[q]
                        used[position - op[i]] = slot
                        oi[position] = bi[q]
                        position += 1
            for s in range(position - op[i]):
                keys[used[s]] = -1
            _sort(oi, op[i], position)
        else:
            for p in range(first, last):
                for q in range(wp[ai[p]], wp[ai[p] + 1]):
                    bitmap[_WORD(wi[q])] |= ww[q]
            for w in range(low >> 6, (high >> 6) + 1):
                word = bitmap[w]
                bitmap[w] = _WORD(0)
                while word != _WORD(0):
                    oi[position] = (_WORD(w) << _SIX) + _trailing_zeros(word)  # pyright: ignore[reportCallIssue]
                    word &= word - _ONE
                    position += 1
    return 0


@njit(**_OPTIONS)
def _emit(low, high, offset, zero, drop, acc, bitmap, position, oi, ov):
    # Move the marked sums to the output in order of column, and clear them; returns the new end of the output.
    for w in range(low >> 6, (high >> 6) + 1):
        word = bitmap[w]
        if word != _WORD(0):
            bitmap[w] = _WORD(0)
            base = _WORD(w) << _SIX
            while word != _WORD(0):
                column = base + _trailing_zeros(word)  # pyright: ignore[reportCallIssue]
                word &= word - _ONE
                value = acc[column]
                acc[column] = zero
                if drop < 0.0 or not abs(value) <= drop:
                    oi[position] = np.int64(column) + offset
                    ov[position] = value
                    position += 1
    return position


def _multiply_for(semiring: int) -> Any:
    # Numeric kernel of one semiring; the branches of the others are pruned as it compiles.

    @njit(**_OPTIONS)
    def multiply_rows(
        lo, hi, position, flops, ap, ai, av, bp, bi, bv, n, zero, drop, mode,
        acc, bitmap, keys, used, sums, cursor, counts, oi, ov,
    ):  # fmt: skip
        # Rows written one after the other from ``position``; returns the end, or -1 if the table is too small.
        for i in range(lo, hi):
            first, last, start = ap[i], ap[i + 1], position
            counts[i] = 0
            if last - first == 1:
                v = av[first]
                for q in range(bp[ai[first]], bp[ai[first] + 1]):
                    if semiring == 0:
                        value = v * bv[q]
                    elif semiring == 1:
                        value = v + bv[q]
                    else:
                        value = v & bv[q]
                    if drop < 0.0 or not abs(value) <= drop:
                        oi[position] = bi[q]
                        ov[position] = value
                        position += 1
                counts[i] = position - start
            if last - first <= 1 or flops[i] == 0:
                continue
            low, high = _span(first, last, ai, bp, bi)
            if uses_hash(flops[i], high - low + 1, mode):
                size = table_size(min(flops[i], n))
                if size > keys.size:
                    return -1
                bits, wrap, found = _bits_of(size), size - 1, 0
                for p in range(first, last):
                    v = av[p]
                    for q in range(bp[ai[p]], bp[ai[p] + 1]):
                        slot = _home(bi[q], bits)
                        while keys[slot] != -1 and keys[slot] != bi[q]:
                            slot = (slot + 1) & wrap
                        if keys[slot] == -1:
                            keys[slot] = bi[q]
                            sums[slot] = zero
                            used[found] = slot
                            oi[start + found] = bi[q]
                            found += 1
                        if semiring == 0:
                            sums[slot] += v * bv[q]
                        elif semiring == 1:
                            value = v + bv[q]
                            if value < sums[slot] or value != value:
                                sums[slot] = value
                        else:
                            sums[slot] |= v & bv[q]
                _sort(oi, start, start + found)
                for s in range(found):
                    column = oi[start + s]
                    slot = _home(column, bits)
                    while keys[slot] != column:
                        slot = (slot + 1) & wrap
                    value = sums[slot]
                    if drop < 0.0 or not abs(value) <= drop:
                        oi[position] = column
                        ov[position] = value
                        position += 1
                for s in range(found):
                    keys[used[s]] = -1
            elif high - low < WIDE:
                for p in range(first, last):
                    v = av[p]
                    for q in range(bp[ai[p]], bp[ai[p] + 1]):
                        column = _WORD(bi[q])
                        if semiring == 0:
                            acc[column] += v * bv[q]
                        elif semiring == 1:
                            value = v + bv[q]
                            if value < acc[column] or value != value:
                                acc[column] = value
                        else:
                            acc[column] |= v & bv[q]
                        bitmap[column >> _SIX] |= _ONE << (column & _LOW6)
                position = _emit(low, high, 0, zero, drop, acc, bitmap, position, oi, ov)
            else:
                for p in range(first, last):
                    cursor[p - first] = bp[ai[p]]
                for offset in range(low, high + 1, BLOCK):
                    stop = min(offset + BLOCK, high + 1)
                    for p in range(first, last):
                        v = av[p]
                        q, end = cursor[p - first], bp[ai[p] + 1]
                        while q < end and bi[q] < stop:
                            column = _WORD(bi[q] - offset)
                            if semiring == 0:
                                acc[column] += v * bv[q]
                            elif semiring == 1:
                                value = v + bv[q]
                                if value < acc[column] or value != value:
                                    acc[column] = value
                            else:
                                acc[column] |= v & bv[q]
                            bitmap[column >> _SIX] |= _ONE << (column & _LOW6)
                            q += 1
                        cursor[p - first] = q
                    position = _emit(0, stop - offset - 1, offset, zero, drop, acc, bitmap, position, oi, ov)
            counts[i] = position - start
        return position

    return multiply_rows


def _masked_for(semiring: int) -> Any:
    # Numeric kernel that sums only where the mask has entries.

    @njit(**_OPTIONS)
    def masked_rows(
        lo, hi, position, ap, ai, av, bp, bi, bv, mp, mi, mv, zero, drop, acc, flags, counts, oi, ov
    ):  # fmt: skip
        # Rows of (A B) ∘ M, one after the other from ``position``; returns the end.
        for i in range(lo, hi):
            start = position
            for p in range(mp[i], mp[i + 1]):
                flags[_WORD(mi[p])] = 1
            for p in range(ap[i], ap[i + 1]):
                v = av[p]
                for q in range(bp[ai[p]], bp[ai[p] + 1]):
                    column = _WORD(bi[q])
                    if flags[column] != 0:
                        flags[column] = 2
                        if semiring == 0:
                            acc[column] += v * bv[q]
                        elif semiring == 1:
                            value = v + bv[q]
                            if value < acc[column] or value != value:
                                acc[column] = value
                        else:
                            acc[column] |= v & bv[q]
            for p in range(mp[i], mp[i + 1]):
                column = _WORD(mi[p])
                if flags[column] == 2:
                    value = acc[column] * mv[p] if semiring == 0 else acc[column]
                    if drop < 0.0 or not abs(value) <= drop:
                        oi[position] = mi[p]
                        ov[position] = value
                        position += 1
                acc[column] = zero
                flags[column] = 0
            counts[i] = position - start
        return position

    return masked_rows


def _gather_for(semiring: int) -> Any:
    # Numeric kernel for a pattern that is known already.

    @njit(**_OPTIONS)
    def gather_rows(lo, hi, ap, ai, av, bp, bi, bv, zero, acc, op, oi, ov):
        # Sum a row in dense scratch, then pick its known columns.
        for i in range(lo, hi):
            for p in range(ap[i], ap[i + 1]):
                v = av[p]
                for q in range(bp[ai[p]], bp[ai[p] + 1]):
                    column = _WORD(bi[q])
                    if semiring == 0:
                        acc[column] += v * bv[q]
                    elif semiring == 1:
                        value = v + bv[q]
                        if value < acc[column] or value != value:
                            acc[column] = value
                    else:
                        acc[column] |= v & bv[q]
            for p in range(op[i], op[i + 1]):
                column = _WORD(oi[p])
                ov[p] = acc[column]
                acc[column] = zero

    return gather_rows


multiply = tuple(_multiply_for(s) for s in range(3))
multiply_masked = tuple(_masked_for(s) for s in range(3))
gather = tuple(_gather_for(s) for s in range(3))


@njit(**_OPTIONS)
def gradient_rows(lo, hi, ap, ai, av, bp, bi, bv, op, oi, grad, zero, acc, grad_a, grad_b):
    # Add (G Bᴴ) on A's pattern to ``grad_a`` and (Aᴴ G) on B's to ``grad_b``, G being given on C's pattern.
    for i in range(lo, hi):
        for p in range(op[i], op[i + 1]):
            acc[_WORD(oi[p])] = grad[p]
        for p in range(ap[i], ap[i + 1]):
            v = np.conj(av[p])
            total = zero
            for q in range(bp[ai[p]], bp[ai[p] + 1]):
                g = acc[_WORD(bi[q])]
                total += g * np.conj(bv[q])
                grad_b[q] += v * g
            grad_a[p] = total
        for p in range(op[i], op[i + 1]):
            acc[_WORD(oi[p])] = zero


@njit(**_OPTIONS)
def probe_windows(windows, ap, ai, bp, bi, n, sizes, kind, keys, entry_probes, probes, longest, claims):
    # Insert every partial product of every window into its table, in order, and count the slots that are looked at.
    # ``kind`` 0: the tag's low bits; 1: its high bits; 2: multiplicative. ``keys`` holds -1 throughout.
    for w in range(windows.size - 1):
        lo, hi, size = windows[w], windows[w + 1], sizes[w]
        bits, wrap = _bits_of(size), size - 1
        space = _bits_of((hi - lo) * n)
        shift = space - bits if space > bits else _WORD(0)
        for i in range(lo, hi):
            for p in range(ap[i], ap[i + 1]):
                in_entry = 0
                for q in range(bp[ai[p]], bp[ai[p] + 1]):
                    tag = np.int64((i - lo) * n + bi[q])
                    if kind == 0:
                        slot = tag & wrap
                    elif kind == 1:
                        slot = np.int64(_WORD(tag) >> shift)
                    else:
                        slot = _home(tag, bits)
                    seen = 1
                    while keys[slot] != -1 and keys[slot] != tag:
                        slot = (slot + 1) & wrap
                        seen += 1
                    if keys[slot] == -1:
                        keys[slot] = tag
                        claims[w] += 1
                    in_entry += seen
                    if seen > longest[w]:
                        longest[w] = seen
                entry_probes[p] = in_entry
                probes[w] += in_entry
        keys[:size] = -1
