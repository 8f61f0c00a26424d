"""Threads that share the work on an observation."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def thread_count(threads: int | None) -> int:
    """Return the number of threads asked for, or the number of cores."""
    return threads or len(os.sched_getaffinity(0))


def map_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int | None = None,
    prepare: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """Yield ``function`` of each item, in order, computed by threads that are at most one item each ahead.

    Parameters
    ----------
    function : callable
    items : iterable
    threads : int, optional
        One per core by default.
    prepare : callable, optional
        Called by each thread before its first item.
    """
    threads = thread_count(threads)
    with ThreadPoolExecutor(threads, initializer=prepare) as pool:
        pending: deque = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
