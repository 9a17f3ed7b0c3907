# SPDX-License-Identifier: Apache-2.0
"""Folders in which one run at a time may write."""

from __future__ import annotations

import json
import logging
import os
import socket
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import InputError
from .files import atomic_path

__all__ = ["lock_folder"]

logger = logging.getLogger(__name__)

LOCK = ".lock"
OWNER = ".lock.json"
_held: dict[Path, FileLock] = {}


def lock_folder(folder: str | os.PathLike, what: str) -> None:
    """
    Keeps other processes from locking a folder until this one has ended, however it ends: the kernel lets go of the
    lock then. A second call in the same process changes nothing. The folder is made if it is not there.

    Args:
        folder: where results are written.
        what: what the process does, such as "training", for the error of others.

    Raises:
        InputError: if another process has the lock, naming what it is, its number, its host and its start; or if the
            folder cannot be written.
    """
    folder = Path(folder).resolve()
    if folder in _held:
        return
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{folder}: is in use by {_owner(folder)}; wait until that has ended, or choose another folder."
        ) from None
    except NotImplementedError:  # some network file systems
        logger.warning(f"{folder}: this file system has no locks, so nothing keeps a second {what} out of it.")
        return
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}.") from error
    _held[folder] = lock
    started = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    owner = {"what": what, "process": os.getpid(), "host": socket.gethostname(), "started": started}
    with atomic_path(folder / OWNER) as path:
        path.write_text(json.dumps(owner), encoding="utf-8")


def _owner(folder: Path) -> str:
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return f"a {owner['what']}, process {owner['process']} on {owner['host']}, started {owner['started']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has only just begun
        return "another process"
