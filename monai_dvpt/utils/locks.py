# SPDX-License-Identifier: Apache-2.0
"""A lock, so that one run at a time writes to a folder."""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import InputError

__all__ = ["FolderLock"]

LOCK = ".lock"
OWNER = ".lock.json"


class FolderLock:
    """
    A lock of a folder, also as a context, that ends with its process, however that ends. The refusal of a second run
    names host, process and start of the first.

    Args:
        folder: the folder; it is made.

    Raises:
        InputError: on entry, see :meth:`acquire`.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self.lock = FileLock(self.folder / LOCK)

    def acquire(self) -> None:
        """
        Does nothing if this object has the lock.

        Raises:
            InputError: if another run has it, or the folder cannot be written.
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
        """Does nothing if this object does not have the lock."""
        if self.lock.is_locked:
            (self.folder / OWNER).unlink(missing_ok=True)
            self.lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def _owner(path: Path) -> str:
    """The owner of a lock in words, empty if not written yet."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return f": process {facts['process']} on {facts['host']}, started {facts['start']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
