# SPDX-License-Identifier: Apache-2.0
"""A folder that one run writes to at a time."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import InputError

__all__ = ["FolderLock", "folder_lock"]

LOCK = ".lock"
OWNER = ".lock.json"


class FolderLock:
    """
    A lock of a folder that ends with the process that holds it, however it ends; a second run is refused with host,
    process and start of the first.

    Args:
        folder: the folder; it is made.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self.lock = FileLock(self.folder / LOCK)

    def acquire(self) -> None:
        """
        Does nothing where this object holds the lock.

        Raises:
            InputError: if another run holds it, or the folder cannot be written.
        """
        if self.lock.is_locked:
            return
        owner = self.folder / OWNER
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(timeout=0)
            facts = {"host": platform.node(), "process": os.getpid(), "start": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
            owner.write_text(json.dumps(facts), encoding="utf-8")
        except Timeout:
            raise InputError(
                f"{self.folder}: must be of one run at a time, and another one writes there{_owner(owner)}; wait for "
                "it, end it, or choose another folder."
            ) from None
        except OSError as error:
            self.lock.release()
            raise InputError(f"{self.folder}: cannot be written: {error}") from error

    def release(self) -> None:
        """Does nothing where this object does not hold the lock."""
        if self.lock.is_locked:
            (self.folder / OWNER).unlink(missing_ok=True)
            self.lock.release()


@contextmanager
def folder_lock(folder: str | os.PathLike) -> Iterator[None]:
    """
    Holds a :class:`FolderLock` for as long as the body runs.

    Args:
        folder: the folder; it is made.

    Raises:
        InputError: if another run holds the lock, or the folder cannot be written.
    """
    lock = FolderLock(folder)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _owner(path: Path) -> str:
    """Of a lock, in words; nothing where it has not been written yet."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return f": process {facts['process']} on {facts['host']}, started {facts['start']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
