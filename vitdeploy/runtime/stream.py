"""Batches computed ahead of the one who asks for them: in order, and never more than a few at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Batch = TypeVar("Batch")
Result = TypeVar("Result")

AHEAD = 2


def stream(
    batches: Iterable[Batch], compute: Callable[[Batch], list[Result]], *, workers: int
) -> Generator[Result, None, None]:
    """The results of all batches in their order, `workers` of them computed at once.

    `batches` is read by the thread that iterates, until AHEAD batches a worker are under way. What `compute` raises, or
    `batches` itself, ends the stream in its turn; so does closing it, and then nothing more is begun.
    """
    source, failure = iter(batches), None
    under_way: deque[Future[list[Result]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="vitdeploy")
    try:
        while True:
            try:
                batch = next(source)
            except StopIteration:
                break
            except Exception as error:
                failure = error
                break
            under_way.append(pool.submit(compute, batch))
            while under_way and (len(under_way) == AHEAD * workers or under_way[0].done()):
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(cancel_futures=True)
