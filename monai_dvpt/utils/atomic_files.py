# SPDX-License-Identifier: Apache-2.0
"""Files that are either whole or absent."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import platform
import re
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import InputError, naming

__all__ = ["atomic_path", "file_sha256", "fingerprint", "remove_leftovers", "to_json", "write_csv"]

SUFFIX = re.compile(r"(\.nii)?\.[A-Za-z0-9]{1,11}$")  # writers need it; the rest of a name may be a patient's
TEMPORARY = re.compile(r"\.([0-9a-f]{8})-(\d+)-[a-z0-9_]{8}\.part(\..*)?", re.DOTALL)
OLD_SECONDS = 24 * 3600  # older temporary files are left over, whoever wrote them
_umask = threading.Lock()
_cleaned: set[tuple[int, str]] = set()


def to_json(data: Any) -> str:
    """JSON text of ``data``, with null for numbers that are not finite."""

    def finite(item: Any) -> Any:
        if isinstance(item, float):
            return item if math.isfinite(item) else None
        if isinstance(item, Mapping):
            return {key: finite(value) for key, value in item.items()}
        return [finite(value) for value in item] if isinstance(item, (list, tuple)) else item

    return json.dumps(finite(data), indent=1, allow_nan=False)


def fingerprint(data: Any, root: str | os.PathLike = "") -> str:
    """
    SHA-256, in hexadecimal, of ``data`` as JSON: tells whether two runs, for instance, have the same cases, without
    their names.

    Args:
        data: JSON-serialisable.
        root: folder to leave out of all paths in ``data``, so that it may move.
    """
    text = json.dumps(data, sort_keys=True)
    prefix = json.dumps(os.path.abspath(root))[1:-1] if str(root) else ""
    return hashlib.sha256((text.replace(prefix, "") if prefix else text).encode()).hexdigest()


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """
    A temporary path beside ``path`` to write to. On success it is flushed to disk and renamed to ``path``; on any error
    it is removed, and an earlier file at ``path`` stays. It has only the suffix of ``path``, not its name. A process
    that first writes to a folder removes the leftovers of killed processes there.

    Raises:
        InputError: if the file cannot be written (no space left, no permission); names the file and the cause.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if (first := (os.getpid(), str(path.parent.absolute()))) not in _cleaned:
            _cleaned.add(first)
            remove_leftovers(path.parent)
        suffix = match.group() if (match := SUFFIX.search(path.name)) else ""
        prefix = f".{_host()}-{os.getpid()}-"
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=f".part{suffix}")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        with _umask:  # reading it means setting it, one thread at a time
            os.umask(umask := os.umask(0))
        temporary.chmod(0o666 & ~umask)  # mkstemp allows only the owner
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        # torch.save raises a RuntimeError
        if isinstance(error, (OSError, SafetensorError)) or "inline_container" in str(error):
            with naming(path):
                raise InputError(f"cannot be written: {error}") from error
        raise


def write_csv(path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a CSV file by :func:`atomic_path`; each row has the values of all ``columns`` by name."""
    with atomic_path(path) as part, open(part, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """
    Removes temporary files of :func:`atomic_path` whose process is gone, and all older than a day, since processes of
    other computers are invisible.

    Args:
        folder: the folder, without its subfolders; it need not exist.
    """
    with suppress(OSError), os.scandir(Path(folder)) as entries:
        for entry in entries:
            match = TEMPORARY.fullmatch(entry.name)
            if match is None:
                continue
            with suppress(OSError):  # another user's, or removed already
                old = time.time() - entry.stat(follow_symlinks=False).st_mtime > OLD_SECONDS
                if old or (match[1] == _host() and not _runs(int(match[2]))):
                    os.unlink(entry.path)


@cache
def _host() -> str:
    """Names this computer and, in a container, its own process numbers."""
    name = platform.node()
    with suppress(OSError):  # only Linux
        name += Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def _runs(process: int) -> bool:
    if os.name == "nt":  # there signal 0 ends a process
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True
