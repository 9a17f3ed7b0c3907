# SPDX-License-Identifier: Apache-2.0
"""Folders of any shape and depth."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["walk_files"]


def walk_files(root: Path, leave_out: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """
    Files at any depth, in the order of their paths, also through links to folders; hidden ones are ignored. A folder
    that cannot be opened is listed like a file.

    Args:
        root: the folder.
        leave_out: whether to ignore a folder.
    """
    seen = {_identity(root)}
    left = [os.fspath(root)]
    while left:
        folder = left.pop()
        try:
            with os.scandir(folder) as entries:
                shown = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError:  # no permission, or a path that is too long
            yield Path(folder)
            continue
        below = {entry.path: None for entry in shown if _is_folder(entry)}
        yield from (Path(entry.path) for entry in shown if entry.path not in below)
        fresh = []
        for path in below:
            identity = _identity(path)
            if identity not in seen and not leave_out(Path(path)):
                fresh.append(path)
            seen.add(identity)
        left += reversed(fresh)


def _identity(path: str | os.PathLike) -> tuple[int, int] | str:
    """Of a folder, through links."""
    try:
        state = os.stat(path)
    except OSError:  # it is listed when it cannot be opened
        return os.fspath(path)
    return state.st_dev, state.st_ino


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
