# SPDX-License-Identifier: Apache-2.0
"""Opening of DICOM files, which reads no more than the limits allow."""

from __future__ import annotations

import io
import os
import re
import zlib

from pydicom.filereader import read_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from monai_dvpt.utils import InputError
from monai_dvpt.utils.limits import MAX_ITEMS, check_bytes, max_bytes

__all__ = ["LimitedFile", "refusal"]

ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
"""First bytes of each item of a sequence, in both byte orders."""
PATTERNS = tuple(map(re.compile, ITEM_TAGS))
"""``bytes.count`` is slower in zeros."""
SMALL = 1 << 16


class LimitedFile(io.BufferedReader):
    """
    A DICOM file for ``pydicom.dcmread``, which reads items one by one and values at once. It counts both, and refuses
    more than ``max_bytes()`` and ``MAX_ITEMS`` before memory is taken. Since pydicom inflates a deflated file as a
    whole, it is first inflated once to count its bytes and items, without keeping them.

    Raises:
        InputError: if the file has more than the limits allow.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(io.FileIO(path))
        self.size = os.fstat(self.fileno()).st_size
        self._limit, self._taken, self._items = max_bytes(), 0, 0
        try:
            self._check_inflated()
        except BaseException:
            self.close()
            raise

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads as any file does, but asks for no more than the file has, whatever a header says."""
        if size is None or not 0 <= size <= min(SMALL, self._limit - self._taken):
            left = max(self.size - self.tell(), 0)
            size = left if size is None or size < 0 else min(size, left)
            check_bytes("what is read of it", self._taken + size)
        data = super().read(size)
        self._taken += len(data)
        self._count(data)
        return data

    def _count(self, data: bytes) -> None:
        if len(data) > 8:
            self._items += sum(1 for pattern in PATTERNS for _ in pattern.finditer(data))
        elif data.startswith(ITEM_TAGS):  # most of what pydicom reads is the tag, VR and length of an element
            self._items += 1
        if self._items > MAX_ITEMS:
            raise InputError(f"sequences must have at most {MAX_ITEMS:,} items in all, have more.")

    def _check_inflated(self) -> None:
        start = super().read(1024)
        self.seek(0)
        if DeflatedExplicitVRLittleEndian.encode() in start and start[128:132] == b"DICM":
            self.seek(132)
            read_dataset(self, False, True, stop_when=lambda tag, *_: tag.group != 2)  # is not deflated
            inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
            while not inflater.eof and (chunk := inflater.unconsumed_tail or self.read(SMALL)):
                inflated = inflater.decompress(chunk, 1 << 20)
                size += len(inflated)
                if size > self._limit:
                    check_bytes("what it inflates to", size)
                self._count(inflated)
            self.seek(0)
        self._taken = self._items = 0


def refusal(error: BaseException | None) -> InputError | None:
    """The :class:`InputError` that led to an error of pydicom, or None."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error
