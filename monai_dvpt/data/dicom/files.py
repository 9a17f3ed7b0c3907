# SPDX-License-Identifier: Apache-2.0
"""The files of a folder that are, or were to be, DICOM."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["looks_like_dicom", "walk_files"]

SUFFIXES = ("", ".dcm", ".ima")


def looks_like_dicom(path: Path) -> bool:
    """
    Whether a file is DICOM, by its first bytes or, without them, by its name. What cannot be opened, or is empty or cut
    within its preamble and named as DICOM files are, was to be one.
    """
    if path.name.upper() == "DICOMDIR":  # an index of other files
        return False
    suffix = path.suffix.lower()
    dicom_name = suffix in SUFFIXES or suffix[1:].isdigit()  # of many files the name is a UID
    try:
        with open(path, "rb") as file:
            start = file.read(132)
    except IsADirectoryError:
        return False
    except OSError:  # no permission, or a link to nowhere
        return dicom_name
    if start[128:] == b"DICM" or suffix in SUFFIXES[1:]:
        return True
    if not start[:128].strip(b"\0"):  # empty, cut within or behind the preamble, or never filled
        return dicom_name
    group, element = start[:2], start[2:4]  # of a file without preamble
    return len(start) == 132 and group in (b"\2\0", b"\10\0") and element[1] == 0


def walk_files(root: Path, leave_out: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """
    Files at any depth, in the order of their paths, through links to folders too; hidden ones are passed over. A folder
    that cannot be opened is among them.

    Args:
        root: the folder.
        leave_out: whether to pass over a folder.
    """
    seen = {os.path.realpath(root)}
    closed: list[Path] = []
    for folder, subfolders, names in os.walk(
        root, followlinks=True, onerror=lambda error: closed.append(Path(error.filename))
    ):
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in list(subfolders):
            real = os.path.realpath(os.path.join(folder, name))
            if real in seen or leave_out(Path(folder, name)):
                subfolders.remove(name)
            seen.add(real)
    yield from closed
