# SPDX-License-Identifier: Apache-2.0
"""
Reads untrusted files of tensors: none of their code runs, and tensors take no more memory than the file takes on disk
or, if it is compressed or sparse or has expanded tensors, :func:`monai_dvpt.utils.max_bytes` where that is more.
"""

from __future__ import annotations

import mmap
import os
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from .errors import InputError, naming, naming_argument
from .limits import MAX_HEADER_BYTES, MAX_NAME, MAX_TENSORS, check_file_bytes

__all__ = ["open_safetensors", "read_npz", "read_safetensors", "read_torch"]


class _Nothing:
    """Stands for a number of NumPy in a pickle, such as the best score of a checkpoint: it is left out, not made."""

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


LEFT_OUT: list[Any] = [
    (_Nothing, name)
    for name in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "_codecs.encode")
]
"""What a pickle calls to make a number of NumPy, as :func:`torch.serialization.safe_globals` takes it."""


@contextmanager
def open_safetensors(path: str | os.PathLike) -> Iterator[Any]:
    """
    Opens a ``.safetensors`` file by :func:`safetensors.safe_open` after a check of its head.

    Raises:
        InputError: if the file cannot be read, also inside the context, or exceeds a limit.
    """
    with naming(path), _readable():
        size = _check_file(path)
        with open(path, "rb") as file:
            head = int.from_bytes(file.read(8), "little")
        if head <= size:  # else the library refuses it
            _check_header(head)
        with safe_open(path, "pt") as tensors:
            _check_names(tensors.keys())
            yield tensors


def read_safetensors(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """
    The tensors of a ``.safetensors`` file by name.

    Raises:
        InputError: if the file cannot be read or exceeds a limit.
    """
    with open_safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}


@naming_argument("path")
def read_npz(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """
    The arrays of a ``.npz`` file by name.

    Raises:
        InputError: if the file cannot be read, has more than numbers, or exceeds a limit.
    """
    _check_file(path)
    with _readable():
        _check_members(path, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            _check_names(arrays.files)
            return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}


@naming_argument("path")
def read_torch(path: str | os.PathLike) -> Any:
    """
    Tensors and plain values written by :func:`torch.save`; the tensors are mapped from the file, not copied. Numbers of
    NumPy beside them are left out.

    Raises:
        InputError: if the file cannot be read, has other content, or exceeds a limit.
    """
    size = _check_file(path)
    with _readable(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about deprecated types, which are refused below
        with open(path, "rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"  # as torch tells
        if is_zip:
            # torch trusts the sizes in a pickle, and reads beyond compressed records
            _check_members(path, (zipfile.ZIP_STORED,))
        elif size:
            with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                _check_pickle(content)
        with torch.serialization.safe_globals(LEFT_OUT):
            content = torch.load(path, "cpu", weights_only=True, mmap=is_zip)
        _check_tensors(path, _tensors(content))
    return content


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (SafetensorError, RuntimeError, OSError) as error:
        raise InputError(f"cannot be read as weights: {error}") from error
    except Exception as error:  # other files raise almost anything
        raise InputError("cannot be read as weights: it must hold tensors only.") from error


def _check_file(path: str | os.PathLike) -> int:
    """The size of a regular file, which may be sparse only if it is small."""
    if not Path(path).is_file():  # opening a pipe or device would wait forever
        raise InputError("must be an existing file, and a regular one.")
    size = os.stat(path).st_size
    check_file_bytes(path, "its tensors", size)
    return size


def _check_header(size: int) -> None:
    if size > MAX_HEADER_BYTES:
        raise InputError(f"what describes its tensors must take at most {MAX_HEADER_BYTES:,} bytes, got {size:,}.")


def _check_names(names: Iterable[str]) -> None:
    names = list(names)
    if len(names) > MAX_TENSORS:
        raise InputError(f"must hold at most {MAX_TENSORS:,} tensors, got {len(names):,}.")
    for name in names:
        if len(name) > MAX_NAME or not name.isprintable():
            raise InputError(
                f"names of tensors must be printable and have at most {MAX_NAME} characters, got one of "
                f"{len(name):,}: {name[:50]!r}."
            )


def _check_members(path: str | os.PathLike, methods: tuple[int, ...]) -> None:
    """Checks a zip file; wrong sizes in its directory make reading fail later."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(methods) == 1 and any(member.filename.endswith("constants.pkl") for member in members):
            raise InputError("cannot be read as weights: it is a TorchScript program; save its tensors first.")
        if len(members) > MAX_TENSORS + 100:  # torch keeps a few of its own
            raise InputError(f"must hold at most {MAX_TENSORS:,} tensors, got {len(members):,} members.")
        for member in members:
            if member.compress_type not in methods:
                how = "be stored as they are" if len(methods) == 1 else "be stored or deflated"
                raise InputError(f"its members must {how}, got {member.filename[:50]!r} compressed otherwise.")
        check_file_bytes(path, "its tensors", sum(member.file_size for member in members))
        for member in members:
            if member.filename.endswith("data.pkl"):
                _check_header(member.file_size)
                _check_pickle(archive.read(member))


def _check_pickle(content: Any) -> None:
    if content.find(b"bytearray") >= 0:  # torch would allocate any size
        raise ValueError


def _tensors(content: Any) -> list[tuple[str, torch.Tensor]]:
    """All tensors in nested dictionaries, lists and tuples, each with its innermost name."""
    found, seen, todo = [], set[int](), [("", content)]
    while todo:
        name, item = todo.pop()
        if isinstance(item, torch.Tensor):
            found.append((name, item))
        elif isinstance(item, (Mapping, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            pairs = item.items() if isinstance(item, Mapping) else ((name, value) for value in item)
            todo += [(key if isinstance(key, str) else name, value) for key, value in pairs]
    return found


def _check_tensors(path: str | os.PathLike, tensors: list[tuple[str, torch.Tensor]]) -> None:
    _check_names([name for name, _ in tensors])
    views = {}
    for _, tensor in tensors:
        if tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested:
            view = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)  # tied weights have two names
            views[view] = tensor.numel() * tensor.element_size()
    check_file_bytes(path, "its tensors", sum(views.values()))
