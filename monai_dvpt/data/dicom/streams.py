# SPDX-License-Identifier: Apache-2.0
"""The size that compressed pixel data state, compared with the header before a decoder takes memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from monai.utils import optional_import
from pydicom import encaps
from pydicom.dataset import Dataset
from pydicom.uid import UID, RLELossless

from monai_dvpt.utils import InputError

generate_frames, is_pydicom_3 = optional_import("pydicom.encaps", name="generate_frames")

__all__ = ["check_streams"]

JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", *(f"1.2.840.10008.1.2.4.20{n}" for n in (1, 2, 3)))
JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
JPEG = (*(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70)), *JPEG_LS)
FRAME_HEADERS = {*range(0xC0, 0xD0), 0xDE, 0xF7} - {0xC4, 0xC8, 0xCC}
"""Markers of JPEG and JPEG-LS before a size."""
ALONE = {0x01, *range(0xD0, 0xD8)}  # markers of JPEG without a segment
START_OF_SCAN = 0xDA
START_OF_TILE, START_OF_DATA, STYLE, STYLE_OF_COMPONENT, END_OF_STREAM = 0x90, 0x93, 0x52, 0x53, 0xD9
"""Markers of JPEG 2000."""
STARTS = (b"\xff\x4f", b"\xff\xd8")  # of JPEG 2000; of JPEG and JPEG-LS
MAX_LAYERS = 256


def check_streams(dataset: Dataset) -> list[int | None]:
    """
    Args:
        dataset: with encapsulated pixel data; its numbers have been checked.

    Returns:
        for each frame the bits of a value in its JPEG 2000 or JPEG-LS stream, the highest of which is the sign if the
        header has signed values; None for other syntaxes.

    Raises:
        InputError: if a frame is no stream of the transfer syntax, or size or number of the frames differ from the
            header.
    """
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    count = int(dataset.get("NumberOfFrames") or 1)
    wanted = (int(dataset.Columns), int(dataset.Rows), int(dataset.get("SamplesPerPixel") or 1))
    bits: list[int | None] = []
    for frame in _frames(dataset, count):
        if syntax == RLELossless:
            _check_run_lengths(frame, wanted, int(dataset.BitsAllocated))
            bits.append(None)
            continue
        if syntax not in (*JPEG, *JPEG_2000):
            raise InputError(f"has the transfer syntax {syntax.name} ({syntax}), which is not read.")
        try:
            *size, precision = _codestream(frame) if syntax in JPEG_2000 else _jpeg(frame)
        except (IndexError, ValueError):
            raise InputError(f"pixel data cannot be decoded: a frame is no stream of {syntax.name}.") from None
        if tuple(size) != wanted:
            raise InputError(
                f"must have Columns, Rows and SamplesPerPixel as its compressed pixel data, "
                f"{'x'.join(map(str, size))}, has {'x'.join(map(str, wanted))}."
            )
        bits.append(precision if syntax in (*JPEG_2000, *JPEG_LS) else None)
    if len(bits) < count:
        raise InputError(f"must have the pixels of {count} frames, has {len(bits)}.")
    return bits[:count]


def _frames(dataset: Dataset, count: int) -> Iterator[bytes]:
    """The frames that pydicom decodes; with pydicom 2 also the fragments that some decoders take for frames."""
    if is_pydicom_3:
        offsets: Any = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
        yield from generate_frames(
            dataset.PixelData, number_of_frames=count, extended_offsets=offsets if all(offsets) else None
        )
        return
    fragments = [part for part in encaps.decode_data_sequence(dataset.PixelData) if part[:2] in STARTS]
    if len(fragments) > count:  # pydicom 2 would leave them out
        raise InputError(f"must have the pixels of {count} frames, has {len(fragments)}.")
    yield from chain(encaps.generate_pixel_data_frame(dataset.PixelData, count), fragments)


def _check_run_lengths(frame: bytes, size: tuple[int, int, int], bits: int) -> None:
    """Two bytes encode at most 128, and 128 take at most 129; each row is packed alone."""
    columns, rows, samples = size
    total = columns * rows * samples * max(bits // 8, 1)
    at_most = 64 + 16 + 2 * rows * samples * max(bits // 8, 1) + 2 * total
    if not 64 + total // 64 <= len(frame) <= at_most:
        raise InputError(
            f"must have {64 + total // 64:,} to {at_most:,} bytes in an RLE frame of {columns}x{rows} pixels, "
            f"has {len(frame):,}."
        )


def _codestream(data: bytes) -> tuple[int, int, int, int]:
    """Columns, rows, components and bits by the SIZ segment (ISO 15444-1, A.5.1), which must be first."""
    if data[:4] != b"\xff\x4f\xff\x51":  # a JP2 file around it is against the standard (PS3.5 A.4.4)
        raise ValueError
    width, height, left, top = (int.from_bytes(data[at : at + 4], "big") for at in (8, 12, 16, 20))
    components = int.from_bytes(data[40:42], "big")
    precisions, *steps = (data[42 + at : 42 + 3 * components : 3] for at in range(3))
    if len(steps[1]) != components or {*steps[0], *steps[1]} != {1}:
        raise ValueError  # is cut, or has components of fewer pixels
    _check_packets(data, 1 if components < 257 else 2)
    return width - left, height - top, components, max(precisions) % 128 + 1


def _check_packets(data: bytes, index: int) -> None:
    """
    A decoder's tables grow with the number of layers and precincts in all headers (ISO 15444-1, A.6.1, A.6.2): at most
    ``MAX_LAYERS``, and at least 16 x 16 pixels. ``index`` is the number of bytes of a component's index.
    """
    at, end = 2, len(data)
    while at + 1 < len(data) and data[at + 1] != END_OF_STREAM:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at] != 0xFF or length < 2 and marker != START_OF_DATA:
            raise ValueError
        if marker == START_OF_DATA:
            at = end
            continue
        if marker == START_OF_TILE:
            size = int.from_bytes(data[at + 6 : at + 10], "big")
            end = max(at + size, at + 12) if size else len(data)
        elif marker in (STYLE, STYLE_OF_COMPONENT):
            first = at + (4 if marker == STYLE else 4 + index)
            behind = first + (10 if marker == STYLE else 6)
            precincts = data[behind : at + 2 + length] if data[first] & 1 else b""
            layers = int.from_bytes(data[at + 6 : at + 8], "big") if marker == STYLE else 1
            if layers > MAX_LAYERS or any(min(sides % 16, sides >> 4) < 4 for sides in precincts):
                raise ValueError
        at += 2 + length


def _jpeg(data: bytes) -> tuple[int, int, int, int]:
    """Columns, rows, components and bits by the one frame header (ISO 10918-1, B.2.2; ISO 14495-1, C.2.2)."""
    if data[:2] != b"\xff\xd8":
        raise ValueError
    found, at = [], 2
    while True:
        if data[at] != 0xFF:
            raise ValueError
        marker = data[at + 1]
        if marker == 0xFF:  # fill bytes may stand before a marker
            at += 1
        elif marker in ALONE:
            at += 2
        else:
            if marker == START_OF_SCAN:
                break
            if marker in FRAME_HEADERS:
                rows, columns = (int.from_bytes(data[at + k : at + k + 2], "big") for k in (5, 7))
                found.append((columns, rows, data[at + 9], data[at + 4]))
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    (only,) = found
    return only
