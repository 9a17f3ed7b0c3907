# SPDX-License-Identifier: Apache-2.0
"""
Damaged DICOM files, the same for the same seed, each read within a small series. As a script, with a folder of series,
a range of seeds and a file: reads them one after another under limits of memory and of time, and writes what came of
each to the file, a line of JSON for each seed.
"""

from __future__ import annotations

import io
import json
import random
import resource
import signal
import struct
import sys
import traceback
import unittest
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from utils_slices import compressed, mr, real, transfer_syntax
from utils_truth import check_volume, frames_of, sources

from monai_dvpt.data.dicom import DicomSeriesReader
from monai_dvpt.utils import InputError

MEMORY_BYTES = 2 << 30
"""Limit of the address space of the process that reads; importing MONAI takes half of it."""
SECONDS = 20
"""Limit of the time that one series may take."""
DEFLATED = "1.2.840.10008.1.2.1.99"
GENERIC = "awkward/generic"
SOURCES: dict[str, Callable[[Path], list[Any]]] = {
    "uncompressed": mr(slices=4),
    "jpeg_2000": mr(compressed("1.2.840.10008.1.2.4.90"), slices=4),
    "jpeg_ls": mr(compressed("1.2.840.10008.1.2.4.80"), slices=4),
    "rle": mr(compressed("1.2.840.10008.1.2.5"), slices=4),
    "jpeg_lossless": real(f"{GENERIC}/compressed_jpeg/001"),
    "deflated": mr(transfer_syntax(DEFLATED), slices=4),
    "enhanced": real("ct_liver_seg/23x38x3/multiframe"),
}
"""Series of 3 or 4 slices to damage one file of."""
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
VALUES = (
    *(b"", b" ", b"\0", b"0", b"-1", b"1e309", b"nan", b"inf", b"-0", b"99999999999999999999", b"1\\2\\3\\4\\5\\6\\7"),
    *(
        b"\\\\\\",
        b"0\\0\\0\\0\\0\\0",
        b"abc",
        b"\xff\xfe\xfd\xfc",
        b"\xc3\xa9",
        b"1.2.3",
        b"1,5",
        b"0x10",
        b"MONOCHROME1",
    ),
)
LENGTHS = (0, 1, 2, 3, 7, 0xFF, 0x7FFF, 0xFFFE, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
PIXELS = b"\xe0\x7f\x10\x00"
TELLING = b"\x02\x20\x28\xe0\xfe"
"""First bytes of groups that say how the pixels are stored, where they lie, and what is in them."""
IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "PatientID", "PatientName", "Modality", "SOPClassUID", "ImageType")


class Reading(unittest.TestCase):
    """Has the assertions of a test."""

    def runTest(self) -> None:
        raise NotImplementedError


def elements(data: bytes, start: int, stop: int) -> list[tuple[int, int, int]]:
    """Where each element (explicit VR, little endian) of ``data`` begins, its value begins and ends, nested too."""
    found, at = [], start
    while at + 8 <= stop:
        item, vr = data[at : at + 2] == b"\xfe\xff", data[at + 4 : at + 6]
        if item:
            value, length = at + 8, struct.unpack_from("<I", data, at + 4)[0]
        elif vr in LONG:
            value, length = at + 12, struct.unpack_from("<I", data, at + 8)[0]
        else:
            value, length = at + 8, struct.unpack_from("<H", data, at + 6)[0]
        nested = item or vr == b"SQ"
        end = value if nested or length == 0xFFFFFFFF else min(value + length, stop)
        found.append((at, value, end))
        at = end  # what is nested comes next
    return found


def mutate(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Damages a file; returns what was done, and the file."""
    begin = 144 + struct.unpack_from("<I", data, 140)[0]  # of the data set
    deflated = DEFLATED.encode() in data[:begin]
    if deflated and rng.random() < 0.7:
        how, body = _damage(zlib.decompress(data[begin:], -zlib.MAX_WBITS), 0, rng)
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        return f"inflated: {how}", data[:begin] + packer.compress(body) + packer.flush()
    if deflated:
        return _scatter(data, 0, len(data), rng)
    return _damage(data, 132, rng)


def _damage(data: bytes, begin: int, rng: random.Random) -> tuple[str, bytes]:
    pixels = data.rindex(PIXELS)
    head = min(pixels + 80, len(data))  # the first bytes of the pixels, or of their stream, too
    found = elements(data, begin, min(pixels + 12, len(data)))
    telling = [each for each in found if data[each[0]] in TELLING]
    at, value, end = rng.choice(telling if telling and rng.random() < 0.6 else found)
    name = f"({data[at + 1]:02x}{data[at]:02x},{data[at + 3]:02x}{data[at + 2]:02x})"
    kind = rng.choice(
        ("scatter", "scatter", "length", "length", "vr", "tag", "value", "value", "value", "delete", "repeat")
        + ("insert", "cut", "truncate", "stream", "number")
    )
    if kind == "scatter":
        return _scatter(data, begin, head, rng)
    if kind == "length":
        length, long = rng.choice((*LENGTHS, rng.randrange(1 << 16), rng.randrange(1 << 32))), value - at == 12
        field = (
            struct.pack("<I", length)
            if long or data[at : at + 2] == b"\xfe\xff"
            else struct.pack("<H", length & 0xFFFF)
        )
        return f"length of {name} {length}", data[: value - len(field)] + field + data[value:]
    if kind == "vr":
        vr = rng.choice(
            (*LONG, b"DS", b"IS", b"US", b"SS", b"UL", b"FD", b"CS", b"LO", b"UI", b"PN", b"AT", b"??", b"\0\0")
        )
        return f"VR of {name} {vr!r}", data[: at + 4] + vr + data[at + 6 :]
    if kind == "tag":
        tag = rng.randbytes(4)
        return f"tag of {name} {tag.hex()}", data[:at] + tag + data[at + 4 :]
    if kind == "value":
        text = rng.choice(VALUES)
        if rng.random() < 0.5 and end > value:  # of the same length
            text = (text * (end - value))[: end - value] if text else bytes(end - value)
            return f"value of {name} {text[:20]!r}", data[:value] + text + data[end:]
        text += b" " * (len(text) % 2)
        field = struct.pack("<I", len(text)) if value - at == 12 else struct.pack("<H", len(text))
        return f"element {name} {text!r}", data[: value - len(field)] + field + text + data[end:]
    if kind == "number":
        step = rng.choice((-1, 1))
        changed = bytes(
            (byte + step) % 256 if 48 <= byte < 58 or end - value == 2 else byte for byte in data[value:end]
        )
        return f"digits of {name} {step:+}", data[:value] + changed + data[end:]
    if kind == "delete":
        return f"deleted {name}", data[:at] + data[end:]
    if kind == "repeat":
        times = rng.choice((1, 2, 50))
        return f"repeated {name} {times}", data[:end] + data[at:end] * times + data[end:]
    if kind == "insert":
        place, new = rng.randrange(begin, head), rng.randbytes(rng.choice((1, 2, 8, 100)))
        return f"inserted {len(new)} at {place}", data[:place] + new + data[place:]
    if kind == "cut":
        place, count = rng.randrange(begin, head), rng.choice((1, 2, 8, 100))
        return f"cut {count} at {place}", data[:place] + data[place + count :]
    if kind == "truncate":
        place = rng.randrange(0, len(data))
        return f"truncated at {place}", data[:place]
    return _scatter(data, pixels, len(data), rng)


def _scatter(data: bytes, begin: int, end: int, rng: random.Random) -> tuple[str, bytes]:
    changed = bytearray(data)
    places = sorted(rng.randrange(begin, end) for _ in range(rng.choice((1, 1, 2, 4, 16))))
    for place in places:
        changed[place] = rng.choice((0, 255, changed[place] ^ (1 << rng.randrange(8)), rng.randrange(256)))
    return f"bytes at {places}", bytes(changed)


def make_sources(folder: Path) -> None:
    """Writes the undamaged series, each to a folder of its name."""
    for name, make in SOURCES.items():
        make(folder / name)


def read_damaged(folder: Path, seed: int) -> dict[str, Any]:
    """
    Damages a file by the seed, reads the series that it is of, and judges.

    Args:
        folder: of :func:`make_sources`; the file is put back.
        seed: chooses the series in turn, and all else by chance.

    Returns:
        the seed, the series, what was done, and as "result" "refused", "right", "left out" (see :func:`judge`) or
        "wrong", with the reason.
    """
    name = list(SOURCES)[seed % len(SOURCES)]
    rng = random.Random(f"{name} {seed}")
    paths = sorted((folder / name).iterdir())
    path = rng.choice(paths)
    data = path.read_bytes()
    how, damaged = mutate(data, rng)
    outcome = {"seed": seed, "series": name, "file": path.name, "how": how}
    path.write_bytes(damaged)
    try:
        with memory_limit():
            reader = DicomSeriesReader()
            volume, meta = reader.get_data(reader.read(folder / name))
    except InputError as error:
        return {**outcome, "result": "refused", "reason": str(error)}
    except BaseException:
        return {**outcome, "result": "wrong", "reason": traceback.format_exc()}
    else:
        try:
            result = judge(volume, meta, paths, path, data)
        except BaseException:
            return {**outcome, "result": "wrong", "reason": traceback.format_exc()}
        return {**outcome, "result": result, "reason": ""}
    finally:
        path.write_bytes(data)


def judge(volume: np.ndarray, meta: dict[str, Any], paths: list[Path], damaged: Path, before: bytes) -> str:
    """
    Returns:
        "right": all slices are where their files now place them, with their values; "left out": all but the damaged
        one are, and that now says that it is something else.

    Raises:
        AssertionError: if neither holds.
    """
    if str(damaged) in {path for path, _ in frames_of(meta)}:
        check_volume(Reading(), volume, meta, sources(paths))
        return "right"
    check_volume(Reading(), volume, meta, sources([path for path in paths if path != damaged]))
    was, now = pydicom.dcmread(io.BytesIO(before)), pydicom.dcmread(damaged, stop_before_pixels=True, force=True)
    assert any(_text(now, key) not in ("", _text(was, key)) for key in IDENTITY), "a slice is lost"
    return "left out"


def _text(dataset: pydicom.Dataset, keyword: str) -> str:
    try:
        return str(dataset.get(keyword) or "")
    except Exception:  # damaged elements raise whatever their bytes lead to
        return ""


@contextmanager
def memory_limit() -> Iterator[None]:
    """Inside it the address space of this process is limited."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def main(folder: str, first: str, last: str, report: str) -> None:
    warnings.simplefilter("ignore")  # of pydicom and decoders, on damaged files
    np.seterr(all="ignore")
    with open(report, "a", encoding="utf-8") as file:
        for seed in range(int(first), int(last)):
            signal.alarm(SECONDS)  # ends the process, also within a decoder
            print(json.dumps(read_damaged(Path(folder), seed)), file=file, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
