"""Threads of the K-means engine: parts of a range side by side, and BLAS on one thread inside them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

T = TypeVar("T")


def in_parts(work: Callable[[int, int], T], total: int, threads: int) -> list[T]:
    """Call work(first, last) on `threads` equal parts of range(total), at the same time; results in order."""
    edges = [total * part // threads for part in range(threads + 1)]
    if threads == 1:
        return [work(0, total)]
    return list(_pool(threads).map(work, edges[:-1], edges[1:]))


def one_blas_thread() -> Any:
    """A context in which BLAS uses the calling thread only."""
    return _blas().limit(limits=1)


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


@lru_cache(maxsize=1)
def _blas() -> Any:
    """Found once: looking through the loaded libraries takes longer than a pass over a small shard."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")
