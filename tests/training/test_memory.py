"""Keeping freed memory changes nothing that is computed, and memory goes back at the end."""

from __future__ import annotations

import ctypes

import psutil
import pytest
import torch

from supertiny.training.memory import freed_memory_kept

GLIBC = hasattr(ctypes.CDLL(None), "malloc_trim")


@pytest.mark.skipif(not GLIBC, reason="only glibc's allocator has these settings")
def test_freed_memory_stays_within_the_block_and_goes_back_after_it() -> None:
    process = psutil.Process()
    with freed_memory_kept():
        before = process.memory_info().rss
        block = torch.ones(64 << 20, dtype=torch.uint8)
        assert int(block.sum(dtype=torch.int64)) == 64 << 20
        del block
        kept = process.memory_info().rss - before
    given_back = process.memory_info().rss - before
    assert kept > 48 << 20
    assert given_back < 16 << 20


def test_an_error_within_goes_through() -> None:
    with pytest.raises(ValueError, match="within"), freed_memory_kept():
        raise ValueError("within")
