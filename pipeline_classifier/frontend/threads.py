"""Threads that share the work on an observation."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def thread_count(threads: int | None) -> int:
    """Return the number of threads asked for, or the number of cores."""
    return threads or len(os.sched_getaffinity(0))


def begun(items: Iterator[Item]) -> Iterator[Item]:
    """Return an iterator over the same items, of which a thread computes the first one at once."""
    pool = ThreadPoolExecutor(1)
    first = pool.submit(list, islice(items, 1))
    pool.shutdown(wait=False)

    def all_items() -> Iterator[Item]:
        yield from first.result()
        yield from items

    return all_items()


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
