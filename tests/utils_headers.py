# SPDX-License-Identifier: Apache-2.0
"""NIfTI, Analyze, NRRD and MetaImage files, byte by byte, without a library."""

from __future__ import annotations

import struct
from typing import Any

SROW = (-2.0, 0, 0, 9, 0, 3, 0, -7, 0, 0, 4, 5)
"""The first three rows of ``utils_data.AFFINE_RAS``."""
NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "2 3 4",
    "space directions": "(2,0,0) (0,-3,0) (0,0,4)",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(-9,7,5)",
}
META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "TransformMatrix": "1 0 0 0 -1 0 0 0 1",
    "Offset": "-9 7 5",
    "ElementSpacing": "2 3 4",
    "DimSize": "2 3 4",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}


def nifti_1(
    data: bytes,
    shape: tuple[int, ...],
    datatype: int = 4,
    *,
    order: str = "<",
    magic: bytes = b"n+1\0",
    pixdim: tuple[float, ...] = (1, 2, 3, 4, 1, 1, 1, 1),
    offset: float = 352,
    scale: tuple[float, float] = (0, 0),
    units: int = 2,
    codes: tuple[int, int] = (0, 1),
    srow: tuple[float, ...] = SROW,
) -> bytes:
    """
    A file of NIfTI-1; without ``magic`` it is Analyze 7.5.

    Args:
        data: of the values.
        shape: becomes ``dim``.
        datatype: number of the standard; 4 is int16.
        order: "<" or ">".
        magic: "ni1" for the header of a pair.
        pixdim: with qfac.
        offset: where the values begin.
        scale: slope and intercept.
        units: of length (2: mm).
        codes: of qform and sform.
        srow: the sform.
    """
    header = bytearray(348)

    def put(at: int, kind: str, *values: Any) -> None:
        struct.pack_into(order + kind, header, at, *values)

    put(0, "i", 348)
    put(40, "8h", len(shape), *shape, *[1] * (7 - len(shape)))
    put(70, "h", datatype)
    put(76, "8f", *pixdim)
    put(108, "3f", offset, *scale)
    put(123, "B", units)
    put(252, "2h", *codes)
    put(280, "12f", *srow)
    header[344:348] = magic
    return bytes(header) + (bytes(4) + data if magic == b"n+1\0" else b"")


def nifti_2(data: bytes, shape: tuple[int, ...], datatype: int = 4, order: str = "<", offset: int = 544) -> bytes:
    """A file of NIfTI-2 with the sform of ``SROW``."""
    header = bytearray(540)

    def put(at: int, kind: str, *values: Any) -> None:
        struct.pack_into(order + kind, header, at, *values)

    put(0, "i", 540)
    header[4:12] = b"n+2\0\r\n\x1a\n"
    put(12, "h", datatype)
    put(16, "8q", len(shape), *shape, *[1] * (7 - len(shape)))
    put(104, "8d", 1, 2, 3, 4, 1, 1, 1, 1)
    put(168, "q", offset)
    put(344, "2i", 0, 1)
    put(400, "12d", *SROW)
    put(500, "i", 2)
    return bytes(header) + bytes(4) + data


def nrrd(data: bytes, **fields: str | None) -> bytes:
    """A NRRD file that lies as ``SROW`` says; ``fields`` replace others (``_`` for a blank), None leaves one out."""
    merged = {**NRRD, **{key.replace("_", " "): value for key, value in fields.items()}}
    lines = [f"{key}: {value}\n" for key, value in merged.items() if value is not None]
    return ("NRRD0004\n" + "".join(lines) + "\n").encode() + data


def metaimage(data: bytes, **fields: str | None) -> bytes:
    """As :func:`nrrd`."""
    merged = {**META, **fields}
    merged["ElementDataFile"] = merged.pop("ElementDataFile")  # the last
    return "".join(f"{key} = {value}\n" for key, value in merged.items() if value is not None).encode() + data
