# SPDX-License-Identifier: Apache-2.0
"""Checks of the text headers of NRRD and MetaImage files; ITK invents a geometry that is missing there."""

from __future__ import annotations

import math
import os
import re
import zlib
from pathlib import Path

from monai_dvpt.data.kinds import check_regular
from monai_dvpt.utils import InputError
from monai_dvpt.utils.limits import check_bytes

__all__ = ["check_metaimage", "check_nrrd", "nrrd_values"]

MAX_BYTES = 1 << 20  # of a header
BLOCK_BYTES = 1 << 20
SPACES = (
    *("right-anterior-superior", "ras", "left-anterior-superior", "las"),
    *("left-posterior-superior", "lps"),
)
"""Spaces whose directions ITK knows."""
ALIASES = {"rotation": "transformmatrix", "orientation": "transformmatrix", "position": "offset", "origin": "offset"}
TRUE = ("T", "t", "1")  # first letter of a word that ITK takes for true
BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_LONG", "MET_ULONG", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
"""Bytes of one value of a MetaImage."""


def check_nrrd(path: str | os.PathLike, alone: bool = False) -> None:
    """
    Args:
        path: the file.
        alone: whether it must contain its values, since a file from elsewhere could name any file.

    Raises:
        InputError: without the name of the file, if the header lacks the geometry (``space``, ``space directions``,
            ``space origin``, in mm), states a field twice, or the image would take too much memory.
    """
    fields: dict[str, str] = {}
    for line in _lines(path):
        if not line.strip():
            break
        key, colon, value = line.partition(":")
        if colon and not line.startswith("#") and not value.startswith("="):
            if (field := "".join(key.lower().split())) in fields:  # readers differ in which of them counts
                raise InputError("must state each field once, states one twice.")
            fields[field] = value.strip()
    _check_size("sizes", fields.get("sizes", ""))
    if alone and "datafile" in fields:
        raise InputError("must hold its values, got an NRRD header that names another file.")
    if fields.get("space", "").lower() not in SPACES:
        raise InputError(f"must say where it lies: space must be one of {', '.join(SPACES)}, is not.")
    axes = re.findall(r"\(([^)]*)\)", fields.get("spacedirections", ""))
    if len(axes) != 3 or not all(any(_numbers(axis, 3)) for axis in axes):
        raise InputError("must say where it lies: space directions must be three finite vectors.")
    if not _numbers(fields.get("spaceorigin", "").strip("()"), 3):
        raise InputError("must say where it lies: space origin must be three finite numbers.")
    if units := set(re.findall(r'"([^"]*)"', fields.get("spaceunits", ""))) - {"mm", ""}:
        raise InputError(f"unit of length must be mm, got {sorted(units)[0][:20]!r}.")
    _check_data_file(path, fields.get("datafile"))


def nrrd_values(path: str | os.PathLike) -> dict[str, str]:
    """The values by key (``key:=value``) that the header of an NRRD file has beside its fields."""
    values = {}
    for line in _lines(path):
        if not line.strip():
            break
        key, sign, value = line.partition(":=")
        if sign and not line.startswith("#"):
            values[key] = value.strip().encode("latin-1").decode("utf-8", errors="replace")
    return values


def check_metaimage(path: str | os.PathLike) -> None:
    """
    Raises:
        InputError: without the name of the file, if the header lacks the geometry (``ElementSpacing``,
            ``TransformMatrix``, ``Offset``), the image would take too much memory, or compressed values are not
            complete: ITK would fill them up with arbitrary memory.
    """
    fields, start = {}, 0
    for line in _lines(path):
        start += len(line) + 1
        key, equals, value = line.partition("=")
        key = key.strip().lower()
        if equals and (field := ALIASES.get(key, key)) in fields:  # readers differ in which of them counts
            raise InputError("must state each field once, states one twice.")
        if equals:
            fields[field] = value.strip()
        if key == "elementdatafile":
            break
    channels = fields.get("elementnumberofchannels", "1")
    sizes = f"{fields.get('dimsize', '')} {channels}"
    dimensions = _check_size("DimSize", sizes) - 1
    if fields.get("ndims") != str(dimensions):  # ITK takes memory for this number
        raise InputError(f"NDims must be the number of sizes in DimSize, {dimensions}, is not.")
    if (kind := fields.get("elementtype", "")) not in BYTES:
        raise InputError(f"ElementType must be one of {', '.join(BYTES)}, is not.")
    if fields.get("binarydata", "True")[:1] not in TRUE:
        raise InputError("BinaryData must be True, is not.")
    for name, count in (("ElementSpacing", dimensions), ("TransformMatrix", dimensions**2), ("Offset", dimensions)):
        numbers = _numbers(fields.get(name.lower(), ""), count)
        if not numbers or name == "ElementSpacing" and min(numbers) <= 0:
            above = ", above 0" if name == "ElementSpacing" else ""
            raise InputError(f"must say where it lies: {name} must be {count} finite numbers{above}.")
    name = fields.get("elementdatafile", "")
    local = name.lower() == "local"
    _check_data_file(path, None if local else name)
    if fields.get("compresseddata", "")[:1] in TRUE:
        data, offset = (Path(path), start) if local else (Path(path).parent / name, 0)
        size = BYTES[kind] * math.prod(map(int, sizes.split()))
        _check_deflated(data, offset, fields.get("compresseddatasize", ""), size)


def _check_deflated(data: Path, offset: int, stored: str, size: int) -> None:
    if not re.fullmatch("[0-9]{1,18}", stored) or int(stored) > data.stat().st_size - offset:
        raise InputError("CompressedDataSize must be the bytes of the compressed values, is not.")
    stream, got, left = zlib.decompressobj(47), 0, int(stored)
    try:
        with open(data, "rb") as file:
            file.seek(offset)
            while left and not stream.eof and got <= size and (block := file.read(min(left, BLOCK_BYTES))):
                left -= len(block)
                while block and got <= size:
                    got += len(stream.decompress(block, BLOCK_BYTES))
                    block = stream.unconsumed_tail
    except zlib.error as error:
        raise InputError(f"cannot be read: is truncated or damaged: {error}") from error
    if got != size or not stream.eof:
        raise InputError(f"cannot be read: is truncated or damaged: must inflate to {size:,} bytes, does not.")


def _lines(path: str | os.PathLike) -> list[str]:
    with open(path, "rb") as file:
        return file.read(MAX_BYTES).decode("latin-1").split("\n")


def _numbers(text: str, count: int) -> list[float]:
    """``count`` finite numbers; none if the text is anything else."""
    try:
        numbers = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        return []
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else []


def _check_size(name: str, text: str) -> int:
    words = text.split()
    if not words or len(words) > 16 or not all(word.isascii() and word.isdigit() and len(word) < 20 for word in words):
        raise InputError(f"{name} must be whole numbers.")
    check_bytes("values", 4 * math.prod(map(int, words)))
    return len(words)


def _check_data_file(path: str | os.PathLike, name: str | None) -> None:
    """The values must be in the file itself (None), or in one regular file of that name."""
    if name is not None:
        if not name or name.startswith("LIST") or "%" in name:
            raise InputError("must have its values in one file.")
        check_regular(Path(path).parent / name)
