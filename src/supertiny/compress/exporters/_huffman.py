"""Bytes as Huffman codes that can be read in many places at once: each chunk says how many bits it takes."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
CHUNK = 512  # symbols that are read one after the other; all chunks are read side by side
LONGEST = 14  # bits of a code: four of them fit into 57 bits
_CODES_OF_A_RUN = 4
_AT_ONCE = 1 << 22  # symbols that are written together


def code_lengths(counts: Array) -> Array:
    """(256,) uint8: bits of each symbol's code, at most 14, 0 where the symbol does not occur."""
    counts = counts.astype(np.int64)
    lengths = np.zeros(256, np.uint8)
    while True:
        heap: list[tuple[int, int, tuple[int, ...]]]
        heap = [(int(count), symbol, (symbol,)) for symbol, count in enumerate(counts) if count]
        lengths[[symbol for _, symbol, _ in heap]] = len(heap) == 1  # a single symbol still takes a bit
        heapq.heapify(heap)
        while len(heap) > 1:
            (first, _, left), (second, tie, right) = heapq.heappop(heap), heapq.heappop(heap)
            lengths[list(left + right)] += 1
            heapq.heappush(heap, (first + second, tie, left + right))
        if lengths.max() <= LONGEST:
            return lengths
        counts = (counts + 1) // 2  # flatter counts give shorter codes; the seldom ones lose nothing that counts


def _codes(lengths: Array) -> tuple[Array, Array]:
    """Symbols in the canonical order (shorter first, then by value), and each symbol's code, in `length` bits."""
    order = np.lexsort((np.arange(256), lengths))
    order = order[lengths[order] > 0]
    codes = np.zeros(256, np.uint32)
    width = lengths[order].astype(np.int64)
    spaces = np.left_shift(1, LONGEST - width)
    codes[order] = (np.cumsum(spaces) - spaces) >> (LONGEST - width)
    return order, codes


def encoded(symbols: Array, lengths: Array) -> tuple[Array, Array]:
    """(bytes, chunks): the stream as uint8, and uint16 bits of each chunk of 512 symbols; both of uint8 `symbols`."""
    _, codes = _codes(lengths)
    taken = lengths[symbols]
    chunks = np.add.reduceat(taken, np.arange(0, len(symbols), CHUNK), dtype=np.int64)
    words = np.zeros(int(chunks.sum()) // 64 + 2, np.uint64)
    end = 0
    for start in range(0, len(symbols), _AT_ONCE):
        part, widths = symbols[start : start + _AT_ONCE], taken[start : start + _AT_ONCE]
        runs, widths = _joined(*_joined(codes[part].astype(np.uint64), widths))  # four codes, at most 56 bits
        ends = end + np.cumsum(widths, dtype=np.int64)
        places, end = ends - widths, int(ends[-1])
        runs <<= (64 - widths).astype(np.uint64)
        spots, shifts = places >> 6, (places & 63).astype(np.uint64)
        begins = np.flatnonzero(np.diff(spots, prepend=-1))
        words[spots[begins]] |= np.bitwise_or.reduceat(runs >> shifts, begins)
        over = np.flatnonzero(ends > (spots + 1) * 64)  # at most one run crosses each border
        words[spots[over] + 1] |= runs[over] << (64 - shifts[over])
    return words.astype(">u8").view(np.uint8)[: -(-end // 8)].copy(), chunks.astype(np.uint16)


def _joined(codes: Array, widths: Array) -> tuple[Array, Array]:
    """Every two neighbouring codes as one; an odd one at the end stays alone."""
    if len(codes) % 2:
        codes, widths = np.append(codes, np.uint64(0)), np.append(widths, np.uint8(0))
    return (codes[::2] << widths[1::2].astype(np.uint64)) | codes[1::2], widths[::2] + widths[1::2]


def decoded(stream: Array, chunks: Array, lengths: Array, count: int) -> Array:
    """(count,) uint8. Raises ValueError where stream, chunks and lengths do not belong together."""
    if len(lengths) != 256 or lengths.max(initial=0) > LONGEST or len(chunks) != -(-count // CHUNK):
        raise ValueError("codes or chunks are broken")
    ends = np.cumsum(chunks, dtype=np.int64)
    if len(stream) != -(-int(ends[-1] if len(ends) else 0) // 8):
        raise ValueError(f"{len(stream)} bytes of codes where its chunks take others")
    table = _table(lengths)
    # 64 bits from every byte on, of which 57 are left after its first bits: four codes. However broken they are, no
    # chunk runs further than its longest codes, so that nothing behind the zeros is read.
    padded = np.concatenate([stream, np.zeros(CHUNK * LONGEST // 8 + 8, np.uint8)])
    runs = np.ndarray((len(padded) - 7,), ">u8", padded, strides=(1,)).astype(np.uint64)
    places = ends - chunks
    out = np.zeros((CHUNK, len(chunks)), np.uint8)
    for step in range(0, CHUNK, _CODES_OF_A_RUN):
        windows = runs[places >> 3] << (places & 7).view(np.uint64)
        for row in out[step : step + _CODES_OF_A_RUN]:
            found = table[windows >> np.uint64(64 - LONGEST)]
            row[:] = found  # the low byte is the symbol
            widths = found >> 8
            windows <<= widths
            places += widths
    symbols: Array = np.ascontiguousarray(out.T).reshape(-1)[:count]
    rest = int(lengths[symbols[(len(chunks) - 1) * CHUNK :]].sum(dtype=np.int64)) if count else 0
    if not np.array_equal(places[:-1], ends[:-1]) or rest != int(chunks[-1:].sum()):
        raise ValueError("codes do not end where their chunks do")
    return symbols


def _table(lengths: Array) -> Array:
    """(16384,) uint16: of the code with which 14 bits begin, its length and in the low byte its symbol."""
    order, _ = _codes(lengths)
    if not len(order):
        raise ValueError("there are no codes")
    spaces = np.left_shift(1, LONGEST - lengths[order].astype(np.int64))
    if spaces.sum() > 1 << LONGEST:
        raise ValueError("codes overlap")
    entries = (lengths[order].astype(np.uint16) << 8) | order.astype(np.uint16)
    table = np.full(1 << LONGEST, entries[-1], np.uint16)
    filled = np.repeat(entries, spaces)
    table[: len(filled)] = filled
    return table
