# SPDX-License-Identifier: Apache-2.0
"""The contents of an adapter file: metadata and tensors, each covered by a SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn as nn
from safetensors.torch import save_file

from monai_dvpt.utils import (
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    InputError,
    atomic_path,
    check_bytes,
    check_finite,
    check_type,
    fingerprint,
    is_number,
    naming_argument,
    open_safetensors,
    to_json,
)

__all__ = [
    "adapter_metadata",
    "check_fit",
    "check_intact",
    "fitting_tensors",
    "frozen_sha256",
    "prepared_with",
    "read_kinds",
    "read_tensors",
    "tensors_sha256",
    "write_adapter",
]

FORMAT_VERSION = 4
KINDS = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
}
"""Tensor types that an adapter may contain, by their names in the file."""
KNOWN: WeakKeyDictionary[nn.Module, tuple[dict[str, Any], str]] = WeakKeyDictionary()
"""By network, the state of the tensors at the last call of :func:`frozen_sha256`, and its result."""


def _is_file_name(value: Any) -> bool:
    return isinstance(value, str) and value not in ("", ".", "..") and not set(value) & set("/\\:\0")


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "backbone_file": ("the name of a file beside the adapter", lambda value: value is None or _is_file_name(value)),
    "parts": ("a list of names", _are_names),
    "labels": ("a list of names or null", lambda value: value is None or _are_names(value)),
    **dict.fromkeys(
        ("arguments", "method", "versions", "notes"), ("a JSON object", lambda value: isinstance(value, dict))
    ),
}
"""Rules of metadata entries; "network", "inflate_axis" and the SHA-256 are checked where they are used."""


@naming_argument("path")
def write_adapter(path: str | os.PathLike, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> Path:
    """
    Writes an adapter file, whole or not at all. ``facts`` are the JSON-serialisable metadata without format version and
    SHA-256; the tensors are on the CPU.

    Raises:
        InputError: if a tensor is not finite or not of a type in ``KINDS``, there are too many tensors or facts, or the
            file cannot be written.
    """
    if len(tensors) > MAX_TENSORS:
        raise InputError(f"must have at most {MAX_TENSORS:,} tensors, got {len(tensors):,}.")
    for name, tensor in tensors.items():
        check_type(name, tensor)
        check_finite(name, tensor, tensor.dtype)
    own = {"format_version": FORMAT_VERSION, **facts, "tensors_sha256": tensors_sha256(tensors)}
    metadata = json.loads(to_json(own))  # tuples become lists, and keys become strings
    text = to_json({**metadata, "metadata_sha256": fingerprint(metadata)})
    if len(text) > (most := MAX_HEADER_BYTES // 4):  # JSON inside JSON, next to the entries of all tensors
        raise InputError(f"metadata must have at most {most:,} bytes as JSON, got {len(text):,}.")
    with atomic_path(path) as temporary:
        save_file(dict(tensors), temporary, metadata={"monai_dvpt": text})
    return Path(path)


@naming_argument("path")
def adapter_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """
    The JSON metadata of an adapter file.

    Raises:
        InputError: if the file is missing, damaged, no regular file, too large, or not an adapter of a known format
            version; if the metadata do not match their SHA-256; or if they name a backbone file in another folder.
    """
    with _opened(path) as file:
        text = (file.metadata() or {}).get("monai_dvpt", "")
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError("holds no adapter metadata, so it is not a monai_dvpt adapter.") from error
    if not isinstance(metadata, dict):
        raise InputError(f"adapter metadata must be a JSON object, got {metadata!r}.")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise InputError(f"format_version must be {FORMAT_VERSION}, got {metadata.get('format_version')}.")
    found = fingerprint({key: value for key, value in metadata.items() if key != "metadata_sha256"})
    if metadata.get("metadata_sha256") != found:
        given = metadata.get("metadata_sha256")
        raise InputError(f"metadata_sha256 must be that of the metadata, {found}, got {given}; it is damaged.")
    for key, (words, fits) in FIELDS.items():
        if not fits(metadata.get(key)):
            raise InputError(f"{key} must be {words}, got {metadata.get(key)!r}.")
    return metadata


@naming_argument("path")
def prepared_with(path: str | os.PathLike, name: str) -> Any:
    """
    A setting with which the images were prepared in the training of an adapter, from the entry "preparation" of its
    notes (see :class:`monai_dvpt.handlers.AdapterSaver`), so that inference prepares images in the same way.

    Args:
        path: the adapter file.
        name: of the setting, such as "image_mean".

    Returns:
        a number, a truth value, or a list of numbers.

    Raises:
        InputError: if the file is no adapter, does not record the setting, or records something else.
    """
    notes = adapter_metadata(path)["notes"]
    preparation = notes.get("preparation")
    value = preparation.get(name) if isinstance(preparation, dict) else None
    if value is None:
        raise InputError(
            f"does not record how the images were prepared in training, so {name} must be given, with its value then."
        )
    if not (isinstance(value, bool) or all(map(is_number, value if isinstance(value, list) else [value]))):
        raise InputError(f"{name} must be a number, true or false, or a list of numbers, got {repr(value)[:100]}.")
    return value


@naming_argument("path")
def read_kinds(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """
    Shapes and types of the tensors of an adapter file, as tensors on the meta device. Reads no values.

    Raises:
        InputError: if the file cannot be read, or a tensor has a type not in ``KINDS``.
    """
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        kinds = {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}
    for name, (_, kind) in kinds.items():
        if kind not in KINDS:
            raise InputError(f"{name} must have a type of {sorted(KINDS)}, got {kind}.")
    return {name: torch.empty(shape, dtype=KINDS[kind], device="meta") for name, (shape, kind) in kinds.items()}


def read_tensors(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """
    All tensors of an adapter file by name.

    Raises:
        InputError: see :func:`read_kinds`.
    """
    names = read_kinds(path)
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in names}


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Any]:
    """Opens the file if it is within the limits of an adapter."""
    with open_safetensors(path) as file:
        check_bytes("an adapter", os.path.getsize(path))
        yield file


def check_intact(metadata: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """
    Raises:
        InputError: if a tensor is not finite, or the tensors do not match the SHA-256 in the metadata.
    """
    for name, tensor in tensors.items():
        check_finite(name, tensor, tensor.dtype)
    if metadata.get("tensors_sha256") != (found := tensors_sha256(tensors)):
        raise InputError(f"tensors_sha256 must be {metadata.get('tensors_sha256')}, got {found}; it is damaged.")


def check_fit(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    targets: Mapping[str, torch.Tensor],
) -> None:
    """
    Raises:
        InputError: if names, shapes or kinds of number of the tensors differ from those of ``targets``.
    """
    missing, extra = sorted(targets.keys() - tensors.keys()), sorted(tensors.keys() - targets.keys())
    if missing or extra:
        raise InputError(f"tensors must be those of {metadata['parts']}; missing {missing[:5]}, extra {extra[:5]}.")
    for name, target in targets.items():
        if tensors[name].shape != target.shape:
            raise InputError(f"{name} must have shape {tuple(target.shape)}, got {tuple(tensors[name].shape)}.")
        if tensors[name].is_floating_point() != target.is_floating_point():
            raise InputError(f"{name} must have type {target.dtype}, got {tensors[name].dtype}.")


@naming_argument("path")
def fitting_tensors(
    path: str | os.PathLike, metadata: Mapping[str, Any], targets: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """
    The tensors of an adapter file, converted to the types of ``targets``, the network's tensors by name, which may be
    on the meta device.

    Raises:
        InputError: if the file is damaged, its tensors do not fit, or a value is too large for the network's type.
    """
    check_fit(metadata, read_kinds(path), targets)
    tensors = read_tensors(path)
    check_intact(metadata, tensors)
    for name, target in targets.items():
        check_finite(name, tensors[name], target.dtype)
    # copies, as the tensors may be mapped from the file, which another program can change
    return {name: tensors[name].to(target.dtype, copy=True) for name, target in targets.items()}


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def frozen_sha256(net: nn.Module, tensors: Mapping[str, torch.Tensor]) -> str:
    """
    :func:`tensors_sha256` of frozen tensors of a network, recomputed only after one was changed or replaced. PyTorch
    counts in-place changes, but not those through ``data``, NumPy or a fused optimiser. The sum of the bytes, a tenth
    of the work, reveals these unless values only swap places.
    """
    if any(tensor.is_inference() for tensor in tensors.values()):  # PyTorch does not count their changes
        return tensors_sha256(tensors)
    state = {name: _state(tensor) for name, tensor in tensors.items()}
    known, sha256 = KNOWN.get(net, ({}, ""))
    if state != known:
        sha256 = tensors_sha256(tensors)
        KNOWN[net] = state, sha256
    return sha256


def _state(tensor: torch.Tensor) -> tuple[Any, ...]:
    data = tensor.detach().contiguous().flatten().view(torch.uint8)
    aligned = data.numel() % 8 == 0 and data.storage_offset() % 8 == 0
    total = int((data.view(torch.int64) if aligned else data).sum())  # wraps around on overflow, so it stays exact
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device, tensor._version, total
