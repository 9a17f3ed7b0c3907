# SPDX-License-Identifier: Apache-2.0
"""
Weight files out of zip files. Nothing of an archive names a file on disk: what is needed is copied under fixed names
into a temporary folder, and only for as long as it is read.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from monai_dvpt.utils import MAX_TENSORS, InputError, check_file_bytes, naming

from .weight_files import (
    CONFIG,
    INDEX,
    KNOWN,
    METADATA,
    PREPROCESSOR,
    SHARD,
    SUFFIXES,
    choose_weights,
    find_file,
    read_index,
)

__all__ = ["opened_weights", "stored_name"]

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError)


@contextmanager
def opened_weights(source: str | os.PathLike) -> Iterator[Path]:
    """
    The weight file of ``source`` as :func:`find_file` finds it, or as a zip file holds it, while the context lasts.

    Raises:
        InputError: if there is none; also inside the context, about an archive by its name.
    """
    path = find_file(source)
    if not _is_archive(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="monai_dvpt_", ignore_cleanup_errors=True) as folder:
        try:
            with naming(path):
                found = _unpack(path, Path(folder))
            yield found
        except InputError as error:  # names the copy
            error.args = (str(error).replace(f"{folder}{os.sep}", f"{path}: "),)
            raise


def stored_name(source: str | os.PathLike, path: Path) -> str:
    """Name of the file that has the weights at ``path``, which is the archive's for what was opened from one."""
    return Path(source).name if Path(source).is_file() else path.name


def _is_archive(path: Path) -> bool:
    """Whether a file is a zip file of files, not one as torch or NumPy write their tensors."""
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return False
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except UNREADABLE:
        return False  # the reader of tensors says why
    return not any(name.endswith("data.pkl") for name in names) and not all(name.endswith(".npy") for name in names)


def _unpack(path: Path, folder: Path) -> Path:
    """Copies the weight file of an archive, and what is read beside it, into a folder; returns its place there."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive)
            chosen = _choose(members)
            target = chosen if chosen in KNOWN else "weights" + PurePosixPath(chosen).suffix
            old, new = PurePosixPath(chosen).parent, PurePosixPath(target).parent
            wanted = {target: chosen, METADATA: METADATA}
            wanted |= {f"{new / name}": f"{old / name}" for name in (CONFIG, PREPROCESSOR)}
            _copy(path, archive, {to: members[name] for to, name in wanted.items() if name in members}, folder)
            if chosen.endswith(INDEX):
                shards = {f"{new / name}" for name in read_index(folder / chosen).values()}
                _copy(path, archive, {name: members[name] for name in sorted(shards & members.keys())}, folder)
            return folder / target
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"cannot be read as a zip file: {error}") from error


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The files of an archive by name, without the folder that has them all, if there is one."""
    files = [one for one in archive.infolist() if not one.is_dir() and not one.filename.startswith("__MACOSX/")]
    if len(files) > MAX_TENSORS:
        raise InputError(f"must hold at most {MAX_TENSORS:,} files, got {len(files):,}.")
    tops = {one.filename.partition("/")[0] for one in files if "/" in one.filename}
    root = f"{tops.pop()}/" if len(tops) == 1 and all("/" in one.filename for one in files) else ""
    named = {one.filename.removeprefix(root): one for one in files}
    if len(named) != len(files):
        raise InputError("must hold each of its files once.")
    return named


def _choose(members: dict[str, zipfile.ZipInfo]) -> str:
    """The weight file: as in a folder, or the only one."""
    found = [name for name in members if name.endswith(SUFFIXES)]
    is_usual = any(name in members for name in KNOWN)
    if len(found) == 1 and not is_usual and not SHARD.fullmatch(PurePosixPath(found[0]).name):
        return found[0]
    return choose_weights(members.keys(), "a zip file")


def _copy(path: Path, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], folder: Path) -> None:
    """Writes members of an archive under names of this module's choice."""
    for member in members.values():
        if member.flag_bits & 1 or member.compress_type not in METHODS:
            raise InputError(f"its members must be stored or deflated, got {member.filename[:50]!r} stored otherwise.")
    check_file_bytes(path, "what it inflates to", sum(member.file_size for member in members.values()))
    for name, member in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as source, open(folder / name, "wb") as target:
            shutil.copyfileobj(source, target)
