# SPDX-License-Identifier: Apache-2.0
"""Files that are either whole or not there."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import InputError

__all__ = ["atomic_path", "fingerprint", "to_json"]


def to_json(data: Any) -> str:
    """JSON text of ``data``, with null for numbers that are not finite, which JSON does not have."""

    def finite(item: Any) -> Any:
        if isinstance(item, float):
            return item if math.isfinite(item) else None
        if isinstance(item, Mapping):
            return {key: finite(value) for key, value in item.items()}
        return [finite(value) for value in item] if isinstance(item, (list, tuple)) else item

    return json.dumps(finite(data), indent=1, allow_nan=False)


def fingerprint(data: Any, root: str | os.PathLike = "") -> str:
    """
    SHA-256, in hexadecimal, of ``data`` as JSON, such as the cases of a run: tells whether two are the same without
    naming anything in them.

    Args:
        data: JSON-serialisable.
        root: folder that is left out of all paths in ``data``, so that it may move.
    """
    text = json.dumps(data, sort_keys=True)
    prefix = json.dumps(os.path.abspath(root))[1:-1] if str(root) else ""
    return hashlib.sha256((text.replace(prefix, "") if prefix else text).encode()).hexdigest()


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """
    A temporary path beside ``path`` to write to; on success it is flushed to disk and renamed to ``path``, on any
    error it is removed and what stood at ``path`` before is untouched. It keeps the suffixes of ``path``.

    Raises:
        InputError: if the file cannot be written (no space left, no permission); names the file and the cause.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=f".part{''.join(path.suffixes)}")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp allows the owner alone
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        # torch.save raises a RuntimeError
        if isinstance(error, (OSError, SafetensorError)) or "inline_container" in str(error):
            raise InputError(f"{path}: cannot be written: {error}") from error
        raise
