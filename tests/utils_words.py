# SPDX-License-Identifier: Apache-2.0
"""Slices of which all 16 bits of every pixel are known, in several encodings, written without an encoder of pydicom."""

from __future__ import annotations

import base64
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import UID
from utils_data import save_dicom

EXPLICIT, IMPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
RLE, JPEG_2000, JPEG_LS = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
WORDS = np.array(
    [
        [0x1000 * ((5 * row + 3 * column) % 16) | (977 * row + 331 * column) % 4096 for column in range(7)]
        for row in range(5)
    ],
    np.uint16,
)
"""Of 5 rows and 7 columns, something in all 16 bits."""
WORDS_JPEG_LS = base64.b64decode(
    "/9j/9wALEAAFAAcBAREA//gADQH//wASAEMBFABA/9oACAEBAAAAAIAAADSoAAAGlRFJsUixR7FGgAAAAAA9EAAABpYRSjFJMUhAAAAAAAAHoTPN"
    "MUYxRUAAAAAAAA9ExRDFMGeSYpcz0TFCIUExQDFLGejI9ExPzE+MT1ABnoz/2Q=="
)
"""``WORDS`` as CharLS writes them, 16 bits without a sign."""


def run_lengths(words: np.ndarray) -> bytes:
    """An RLE frame (PS3.5 G), all of literal runs: the high bytes, then the low bytes."""
    segments = []
    for plane in (words >> 8, words & 0xFF):
        data = plane.astype(np.uint8).tobytes()
        packed = b"".join(
            bytes([len(part) - 1]) + part for part in (data[i : i + 128] for i in range(0, len(data), 128))
        )
        segments.append(packed + bytes(len(packed) % 2))
    return struct.pack("<16L", 2, 64, 64 + len(segments[0]), *13 * [0]) + b"".join(segments)


def jpeg_2000(words: np.ndarray, signed: bool = False) -> bytes:
    """A codestream of 16 bits; with a sign it has no level shift, so that the same bits are of values 32768 lower."""
    stream = io.BytesIO()
    Image.fromarray(words ^ 0x8000 if signed else words).save(stream, "JPEG2000", no_jp2=True, num_resolutions=1)
    data = bytearray(stream.getvalue())
    data[42] |= 0x80 * signed  # Ssiz
    return bytes(data)


def encode(dataset: pydicom.Dataset, syntax: str, data: bytes | list[bytes]) -> None:
    """Gives a data set its pixels, native or as the frames of compressed data."""
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.PixelData = data if isinstance(data, bytes) else encapsulate(data, fragments_per_frame=1)
    dataset["PixelData"].VR = "OW" if isinstance(data, bytes) else "OB"
    dataset["PixelData"].is_undefined_length = not isinstance(data, bytes)
    if int(pydicom.__version__.split(".")[0]) < 3:
        dataset.is_little_endian, dataset.is_implicit_VR = syntax != BIG_ENDIAN, syntax == IMPLICIT


def save_words(folder: Path, words: np.ndarray, syntax: str, data: bytes | list[bytes], **elements: Any) -> list[Path]:
    """Two slices of the same pixels, of shape (rows, columns); the second one is above the first."""
    save_dicom(folder, np.zeros((*words.shape[::-1], 2), np.uint16), np.eye(3), np.zeros(3), (1, 1, 2))
    paths = sorted(folder.iterdir())
    for path in paths:
        change(path, lambda dataset: encode(dataset, syntax, data), **elements)
    return paths


def change(path: Path, edit: Any = lambda _: None, vr: dict[str, str] | None = None, **elements: Any) -> None:
    """Sets elements of a file, with the VR that is given for some."""
    dataset = pydicom.dcmread(path)
    with pydicom.config.disable_value_validation():
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        signed = "SS" if dataset.get("PixelRepresentation") else "US"
        kinds = {keyword: signed for keyword in elements if keyword.startswith("PixelPadding")} | (vr or {})
        for keyword, kind in kinds.items():
            value = dataset[keyword].value
            del dataset[keyword]
            dataset.add_new(keyword, kind, value)
        edit(dataset)
        pydicom.dcmwrite(path, dataset)
