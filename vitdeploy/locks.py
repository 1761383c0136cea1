"""Locks on files, which exclude threads and processes alike and end with the process that holds them."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# What a file system says that has no locks: some FUSE mounts, NFS without its lock service.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_POLL_SECONDS = 0.1

# A lock of NFS belongs to the process and not to the open file, so threads need one of their own.
_threads: dict[str, threading.Lock] = {}
_open: set[int] = set()


@contextlib.contextmanager
def locked(path: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock of the file `path`, which exists as long as somebody holds it or waits for it.

    `waiting` is called once if somebody else holds it. The lock is not to be taken again by the thread that holds it.
    Raises OSError where the file cannot be made.
    """
    with locked_if_free(path) as free:
        if free:
            yield
            return
    if waiting is not None:
        waiting()
    thread = _thread_lock(path)
    with thread:
        descriptor = _acquire(path, wait=True)
        try:
            yield
        finally:
            _release(path, descriptor)


@contextlib.contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """As `locked`, without waiting; tells whether the lock is held now. Raises OSError where it cannot be made."""
    thread = _thread_lock(path)
    if not thread.acquire(blocking=False):
        yield False
        return
    try:
        descriptor = _acquire(path, wait=False)
        if descriptor is None:
            yield False
            return
        try:
            yield True
        finally:
            _release(path, descriptor)
    finally:
        thread.release()


def _thread_lock(path: Path) -> threading.Lock:
    return _threads.setdefault(os.path.abspath(path), threading.Lock())  # noqa: PTH100 -- resolve() would touch the disk


def _acquire(path: Path, *, wait: bool) -> int | None:
    """The descriptor of the locked file; None where another process holds it and `wait` is not set."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        _open.add(descriptor)
        try:
            held = _lock(descriptor, wait=wait)
            # Who held it before has removed the file: the lock of a file that nobody finds excludes nobody.
            current = held and _is_at(descriptor, path)
        except BaseException:
            _close(descriptor)
            raise
        if current:
            return descriptor
        _close(descriptor)
        if not held:
            return None


def _release(path: Path, descriptor: int | None) -> None:
    if descriptor is None:
        return
    if descriptor in _open:  # a child that was forked meanwhile holds nothing
        with contextlib.suppress(OSError):  # Windows removes no open files
            path.unlink()
        _close(descriptor)


def _close(descriptor: int) -> None:
    _open.discard(descriptor)
    os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int, *, wait: bool) -> bool:
        while True:
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EDEADLK):
                    raise
            else:
                return True
            if not wait:
                return False
            time.sleep(_POLL_SECONDS)

else:
    import fcntl

    def _lock(descriptor: int, *, wait: bool) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        return True

    def _after_fork() -> None:
        """A child inherits open files: without this it would go on holding its parent's locks after its parent."""
        _threads.clear()
        for descriptor in tuple(_open):
            _close(descriptor)

    os.register_at_fork(after_in_child=_after_fork)
