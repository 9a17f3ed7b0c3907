# SPDX-License-Identifier: Apache-2.0
"""DICOM files that are small, or look it, and would take much memory or time."""

from __future__ import annotations

import json
import os
import struct
import unittest
import zlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pydicom
from utils_attack import attack
from utils_data import temporary_folder
from utils_words import (
    EXPLICIT,
    JPEG_2000,
    JPEG_LOSSLESS,
    JPEG_LS,
    RLE,
    WORDS,
    WORDS_JPEG_LS,
    jpeg_2000,
    run_lengths,
    save_words,
)

from monai_dvpt.utils.limits import VARIABLE

LIMIT = 1 << 26
"""Bytes that are allowed, so that the test takes less time."""
READ = """
import json

import numpy

from monai_dvpt.data import SeriesGrid, find_series
from monai_dvpt.data.dicom_segmentation import read_dicom_seg
from monai_dvpt.transforms import LoadImage2D, LoadVolume

readers = {
    "volume": lambda path: LoadVolume()(path),
    "list": lambda path: "; ".join(series.reason for series in find_series([path])),
    "image": lambda path: LoadImage2D()(path),
    "segmentation": lambda path: read_dicom_seg(path, SeriesGrid((), {}, (7, 5, 2), numpy.eye(4))),
}
told = []
for path, way in zip(arguments[::2], arguments[1::2], strict=True):
    try:
        result = readers[way](path)
        told.append(result if isinstance(result, str) else "read")
    except Exception as error:
        if not isinstance(root_cause(error), InputError):
            raise
        told.append(reason(error))
return json.dumps(told)
"""
"""Code that reads files, each in the way that is named behind it, and tells what came of it."""
Attack = tuple[str, str, Path, str]
"""Its name, the ways to read it, the file, and why it is refused."""
GIANT = 40_000
"""Rows and columns that a stream claims: 6 GB as 32 bit integers."""


def giant_jpeg_2000() -> bytes:
    """A stream whose SIZ segment has an image, and a tile, of ``GIANT`` rows and columns."""
    data = bytearray(jpeg_2000(WORDS))
    for at in (8, 12, 24, 28):
        data[at : at + 4] = struct.pack(">L", GIANT)
    return bytes(data)


def jpeg(marker: int, size: int) -> bytes:
    """JPEG segments: a frame header of ``size`` rows and columns, if it is 5 of ``WORDS``, and a scan that begins."""
    frame = struct.pack(">BBHBHHBBBB", 0xFF, marker, 11, 16, size, 7 if size == 5 else size, 1, 1, 0x11, 0)
    return b"\xff\xd8" + frame + struct.pack(">BBHBBBBBB", 0xFF, 0xDA, 8, 1, 1, 0, 1, 0, 0)


def giant_jpeg_ls() -> bytes:
    at = WORDS_JPEG_LS.index(b"\xff\xf7") + 5
    return WORDS_JPEG_LS[:at] + struct.pack(">HH", GIANT, GIANT) + WORDS_JPEG_LS[at + 4 :]


class TestDicomAttacks(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.count = 0

    def file(self, syntax: str = EXPLICIT, data: bytes | list[bytes] | None = None, edit=None, **elements) -> Path:
        """One of two slices that are alike."""
        self.count += 1
        folder = self.folder / str(self.count)
        data = WORDS.tobytes() if data is None else data
        for path in save_words(folder, WORDS, syntax, data, **elements):
            if edit is not None:
                path.write_bytes(edit(path.read_bytes()))
        return path

    def test_refused(self):
        """All are refused for the reason that is given, whatever reads them, in one process of 1 GiB."""
        makers = (self.streams, self.tables, self.headers, self.items, self.deflated, self.segmentations)
        each = [(name, way, path, why) for make in makers for name, ways, path, why in make() for way in ways.split()]
        arguments = [argument for _, way, path, _ in each for argument in (path, way)]
        with mock.patch.dict("os.environ", {VARIABLE: str(LIMIT)}):
            told = json.loads(attack(READ, *arguments, seconds=300).removeprefix("read: "))
        for (name, way, _, why), text in zip(each, told, strict=True):
            with self.subTest(name, way=way):
                self.assertRegex(text, why)

    def streams(self) -> Iterator[Attack]:
        """What a decoder would take memory for is what the stream says, not what the header says."""
        other, short = "must have Columns, Rows and SamplesPerPixel as its compressed", "bytes in an RLE frame"
        none, ways = "a frame is no stream of", "volume image"
        large, packed, single = {"Rows": 2_500, "Columns": 2_500}, run_lengths(WORDS), jpeg_2000(WORDS)
        components = single[:40] + struct.pack(">H", 16384) + single[42:]
        boxed = b"\0\0\0\x0cjP  \r\n\x87\n" + giant_jpeg_2000()
        twice = jpeg(0xC3, 5) + jpeg(0xC3, GIANT)[2:]
        nested = jpeg(0xC3, 5)[:15] + jpeg(0xC3, GIANT)[2:]
        long = packed[:64] + b"\x81\x00" * 5_000_000
        yield "JPEG 2000", ways, self.file(JPEG_2000, [giant_jpeg_2000()]), other
        large_jpeg_2000 = self.file(JPEG_2000, [giant_jpeg_2000()], Rows=GIANT, Columns=GIANT)
        yield "JPEG 2000, the same in the header", ways, large_jpeg_2000, "must take at most"
        yield "JPEG 2000 of many components", ways, self.file(JPEG_2000, [components]), none
        yield "JPEG 2000 in a file of its own", ways, self.file(JPEG_2000, [boxed]), none
        yield "JPEG 2000, small", ways, self.file(JPEG_2000, [single], **large), other
        yield "JPEG", ways, self.file(JPEG_LOSSLESS, [jpeg(0xC3, GIANT)]), other
        yield "JPEG, hierarchical", ways, self.file(JPEG_LOSSLESS, [jpeg(0xDE, GIANT)]), other
        yield "JPEG of two frames", ways, self.file(JPEG_LOSSLESS, [twice]), "read|decoded"  # of the first
        yield "JPEG of two frame headers", ways, self.file(JPEG_LOSSLESS, [nested]), none
        yield "JPEG without a size", ways, self.file(JPEG_LOSSLESS, [b"\xff\xd8" + b"\xff" * 100]), none
        yield "JPEG-LS", ways, self.file(JPEG_LS, [giant_jpeg_ls()]), other
        yield "RLE, too short", ways, self.file(RLE, [packed], **large), short
        yield "RLE, too long", ways, self.file(RLE, [long]), short
        yield "more frames than the header says", ways, self.file(JPEG_2000, [single] * 3), "frame"

    def tables(self) -> Iterator[Attack]:
        """Of a decoder, that grow with tiles, layers and precincts."""
        single, none = jpeg_2000(WORDS), "a frame is no stream of"
        at = single.index(b"\xff\x52")  # COD: length, style, order, layers (2), and 6 more
        layers = single[: at + 6] + b"\xff\xff" + single[at + 8 :]
        precincts = single[:at] + b"\xff\x52\0\x0d\1" + single[at + 5 : at + 14] + b"\0" + single[at + 14 :]
        yield (
            "tiles",
            "image",
            self.file(JPEG_2000, [single[:24] + struct.pack(">LL", 1, 1) + single[32:]]),
            "read|decoded",
        )
        yield "layers", "image", self.file(JPEG_2000, [layers]), none
        yield "precincts", "image", self.file(JPEG_2000, [precincts]), none

    def headers(self) -> Iterator[Attack]:
        giant, ways = {"Rows": 65_535, "Columns": 65_535}, "volume image"
        length = struct.pack("<L", (4 << 30) - 32)
        pixels, name = b"\xe0\x7f\x10\0OW\0\0", b"\x10\0\x10\0PN"

        def long_name(data: bytes) -> bytes:
            at = data.index(name)
            return data[:at] + b"\x10\0\x10\0UT\0\0" + length + data[at + 8 :]

        sparse = self.file(edit=lambda data: data[: data.index(pixels)] + pixels + length)
        for path in sparse.parent.iterdir():  # of 4 GB, which take no place
            os.truncate(path, 4 << 30)
            self.assertLess(os.stat(path).st_blocks, 100)
        yield "rows and columns", ways, self.file(**giant), "is truncated: has 70 bytes"
        yield "compressed", ways, self.file(RLE, [run_lengths(WORDS)], **giant), "must take at most"
        yield "pixel data", ways, sparse, "what is read of it must take at most"
        yield "frames", ways, self.file(NumberOfFrames=100_000), "NumberOfFrames must be at most 20,000, got 100,000"
        yield "length of a name", ways, self.file(edit=long_name), "must have Rows and Columns|no pixel data"

    def items(self) -> Iterator[Attack]:
        """Three million items of 8 bytes, each of which would be an object of a thousand."""
        items, end = b"\xfe\xff\x00\xe0\0\0\0\0" * 3_000_000, b"\xfe\xff\xdd\xe0\0\0\0\0"
        pixels, undefined = b"\xe0\x7f\x10\0OW", b"\xff\xff\xff\xff"
        many = "sequences must have at most 200,000 items in all, have more"

        def insert(element: bytes) -> Path:
            return self.file(edit=lambda data: data.replace(pixels, element + pixels))

        known = b"\x00\x52\x30\x92SQ\0\0" + struct.pack("<L", len(items)) + items
        nested = (b"\x99\0\x10\x10SQ\0\0" + undefined + b"\xfe\xff\x00\xe0" + undefined) * 20_000
        yield "items", "image", insert(b"\x09\x52\x10\x10SQ\0\0" + undefined + items + end), many
        yield "items of a known length", "volume image", insert(known), many
        yield "items in each other", "volume image", insert(nested), "nested too deeply"
        yield "fragments", "volume image", self.file(RLE, [bytes(4)] * 250_000), many

    def deflated(self) -> Iterator[Attack]:
        """Three gigabytes of zeros, which deflate to a thousandth."""
        path = self.file()
        data, syntax = path.read_bytes(), EXPLICIT.encode()
        start, pixels = data.index(b"\x08\0\x16\0UI"), data.index(b"\xe0\x7f\x10\0OW")
        head = data[:start].replace(b"\x14\0" + syntax + b"\0", b"\x16\0" + syntax + b".99")
        deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        first = deflater.compress(data[start:pixels] + b"\xe0\x7f\x10\0OW\0\0" + struct.pack("<L", 3 << 30))
        first += deflater.flush(zlib.Z_FULL_FLUSH)
        block = deflater.compress(bytes(1 << 20)) + deflater.flush(zlib.Z_FULL_FLUSH)
        path.write_bytes(head + first + block * 3072)
        self.assertLess(path.stat().st_size, 4 << 20)
        yield "deflated", "volume image", path, f"what it inflates to must take at most {LIMIT:,} bytes"

    def segmentations(self) -> Iterator[Attack]:
        """The same limits hold for results that come back."""
        seg = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4", "SegmentationType": "BINARY"}
        ones = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}
        way, giant = "segmentation", self.file(Rows=65_535, Columns=65_535, **seg, **ones)
        yield "SEG of frames", way, self.file(NumberOfFrames=100_000, **seg), "NumberOfFrames must be at most 20,000"
        yield "SEG of pixels", way, giant, "is truncated"
        yield "SEG of a stream", way, self.file(JPEG_2000, [giant_jpeg_2000()], **seg), "Columns, Rows and Samples"
        fewer = self.file(JPEG_2000, [jpeg_2000(WORDS)], NumberOfFrames=200, **seg)
        yield "SEG of fewer frames", way, fewer, r"must have the pixels of 200 frames, has \d"
        yield "SEG of names", way, self.file(SegmentSequence=[numbered("DOE^JOHN")], **seg), "got what is no number"


def numbered(number: object) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.add_new("SegmentNumber", "LO", number)
    item.SegmentLabel = "liver"
    return item


if __name__ == "__main__":
    unittest.main()
