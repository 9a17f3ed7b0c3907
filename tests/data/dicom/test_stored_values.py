# SPDX-License-Identifier: Apache-2.0
"""Stored values and padding, in a volume and in a 2D image, by the bits that were written."""

from __future__ import annotations

import shutil
import unittest

import numpy as np
import pydicom
from monai.transforms import NormalizeIntensity
from parameterized import parameterized
from utils_data import shared_data, temporary_folder
from utils_words import (
    BIG_ENDIAN,
    EXPLICIT,
    IMPLICIT,
    JPEG_2000,
    JPEG_LS,
    RLE,
    WORDS,
    WORDS_JPEG_LS,
    change,
    jpeg_2000,
    run_lengths,
    save_words,
)

from monai_dvpt.data import DicomSeriesReader
from monai_dvpt.transforms import LoadImage2D, LoadVolume
from monai_dvpt.utils import InputError

TWELVE = {"BitsStored": 12, "HighBit": 11}


def stored(words: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """The value of each pixel, one by one, as PS3.5 8.1.1 has it."""

    def value(word: int) -> int:
        lowest = int(f"{word:016b}"[16 - bits :], 2)
        return lowest - 2**bits if signed and lowest >= 2 ** (bits - 1) else lowest

    return np.array([[value(int(word)) for word in row] for row in words])


ENCODINGS = {
    "explicit": (EXPLICIT, WORDS.astype("<u2").tobytes()),
    "implicit": (IMPLICIT, WORDS.astype("<u2").tobytes()),
    "big endian": (BIG_ENDIAN, WORDS.astype(">u2").tobytes()),
    "RLE": (RLE, [run_lengths(WORDS)]),
    "JPEG 2000": (JPEG_2000, [jpeg_2000(WORDS)]),
    "JPEG 2000 with a sign": (JPEG_2000, [jpeg_2000(WORDS, signed=True)]),
    "JPEG-LS": (JPEG_LS, [WORDS_JPEG_LS]),
}
"""All hold the same 16 bits of every pixel."""


class TestUnusedBits(unittest.TestCase):
    """Bits above BitsStored, of an old overlay or of a stream with more bits, count in no reader."""

    def setUp(self):
        self.folder = temporary_folder(self) / "study"

    @parameterized.expand(
        [(name, bits, signed) for name in ENCODINGS for bits in (12, 16) for signed in (False, True)],
        name_func=lambda f, n, p: f"{f.__name__}_{p.args[0].replace(' ', '_')}_{p.args[1]}_{p.args[2]}",
    )
    def test_value(self, name, bits, signed):
        header = {"BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": int(signed)}
        paths = save_words(self.folder, WORDS, *ENCODINGS[name], **header)
        expected = stored(WORDS, bits, signed)
        self.assertEqual(int(expected.min()) < 0, signed)
        volume = LoadVolume()(str(self.folder))
        np.testing.assert_array_equal(volume[0], np.stack([expected.T] * 2, axis=-1))
        np.testing.assert_array_equal(LoadImage2D()(paths[0])[0], expected)

    def test_rescaled(self):
        paths = save_words(self.folder, WORDS, *ENCODINGS["RLE"], **TWELVE, RescaleSlope=2, RescaleIntercept=-1024)
        expected = 2 * stored(WORDS, 12, False) - 1024
        np.testing.assert_array_equal(LoadVolume()(str(self.folder))[0, :, :, 0], expected.T)
        np.testing.assert_array_equal(LoadImage2D()(paths[0])[0], expected)

    @parameterized.expand(
        [({"HighBit": 15}, "HighBit of one less"), ({"BitsStored": 17, "HighBit": 16}, "BitsStored of")]
    )
    def test_other_bits_are_refused(self, bits, why):
        paths = save_words(self.folder, WORDS, *ENCODINGS["explicit"], **{**TWELVE, **bits})
        with self.assertRaisesRegex(InputError, why):
            LoadVolume()(str(self.folder))
        with self.assertRaisesRegex(InputError, why):
            LoadImage2D()(paths[0])


BITS = np.arange(100, 135, dtype=np.int64).reshape(5, 7)
BITS[0, :3], BITS[4, 6] = [-2000, -2000, -1990], -900


class TestPadding(unittest.TestCase):
    """It takes the least other value, in a volume 0, in CT -1000 or the least other value if it is lower."""

    def setUp(self):
        self.folder = temporary_folder(self) / "study"

    def check(self, padded: np.ndarray, values: np.ndarray, header: dict, words: np.ndarray = BITS, nothing: float = 0):
        """Of both readers: what is padding, and that all else is as it was."""
        header = {"PixelRepresentation": 1, **header}
        paths = save_words(self.folder, words, EXPLICIT, (words % 65536).astype("<u2").tobytes(), **header)
        least = values[~padded].min()
        image = LoadImage2D()(paths[0])[0]
        np.testing.assert_array_equal(image, np.where(padded, least, values))
        reader = DicomSeriesReader()
        volume, meta = reader.get_data(reader.read(self.folder))
        expected = np.where(padded, min(nothing, least) if header.get("Modality") == "CT" else nothing, values)
        np.testing.assert_array_equal(volume, np.stack([expected.T] * 2, axis=-1))
        self.assertEqual(meta["padding_voxels"], 2 * padded.sum())

    @parameterized.expand(
        [
            ("value", {"PixelPaddingValue": -2000}, [-2000]),
            ("value without a sign", {"PixelPaddingValue": 63536, "vr": {"PixelPaddingValue": "US"}}, [-2000]),
            ("range", {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1985}, [-2000, -1990]),
            ("range the other way", {"PixelPaddingValue": -1985, "PixelPaddingRangeLimit": -2000}, [-2000, -1990]),
            ("empty", {"PixelPaddingValue": None}, []),
            ("elsewhere", {"PixelPaddingValue": -5}, []),
            ("modality", {"PixelPaddingValue": -2000, "Modality": "CT"}, [-2000]),
        ]
    )
    def test_which_value(self, _, header, which):
        self.check(np.isin(BITS, which), BITS, header, nothing=-1000 if "Modality" in header else 0)

    def test_before_rescale(self):
        header = {"PixelPaddingValue": -2000, "RescaleSlope": 0.5, "RescaleIntercept": 1000}  # which makes it 0
        self.check(BITS == -2000, BITS * 0.5 + 1000, header)

    def test_twelve_bits(self):
        """Of the bits above them nothing counts; 0x0830 and 0xF830 are both -2000."""
        words = np.where(BITS == -2000, 0x0830, BITS)
        for value, kind in ((0x0830, "US"), (-2000, "SS")):
            header = {**TWELVE, "PixelPaddingValue": value, "vr": {"PixelPaddingValue": kind}}
            self.check(BITS == -2000, BITS, header, words)
            shutil.rmtree(self.folder)

    def test_value_beyond_the_stored_bits(self):
        """Against the standard, but seen: what is left of it in 12 bits, 0, is a value like others."""
        words = np.where(BITS == -2000, -32768, np.abs(BITS))
        words[2, 2] = 0
        header = {**TWELVE, "PixelPaddingValue": -32768, "vr": {"PixelPaddingValue": "SS"}}
        self.check(words == -32768, words, header, words)

    def test_each_slice_by_its_own_header(self):
        words = np.abs(BITS)
        paths = save_words(self.folder, words, EXPLICIT, words.astype("<u2").tobytes())
        order = sorted(paths, key=lambda path: float(pydicom.dcmread(path).ImagePositionPatient[2]))
        change(order[0], PixelPaddingValue=105)
        change(order[1], PixelPaddingValue=110, PixelRepresentation=1)
        volume = LoadVolume()(str(self.folder))[0].numpy()
        for index, value in enumerate((105, 110)):
            np.testing.assert_array_equal(volume[:, :, index], np.where(words == value, 0, words).T)

    def test_floating_point(self):
        values = BITS.astype("<f4") + 0.25
        save_words(self.folder, BITS, EXPLICIT, b"", PixelRepresentation=1)
        for path in self.folder.iterdir():

            def edit(dataset):
                dataset.FloatPixelData, dataset.BitsAllocated = values.tobytes(), 32
                del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation

            change(path, edit, FloatPixelPaddingValue=-1999.75)
        reader = DicomSeriesReader()
        volume, meta = reader.get_data(reader.read(self.folder))
        expected = np.where(BITS == -2000, 0, values)
        np.testing.assert_array_equal(volume, np.stack([expected.T] * 2, axis=-1))
        self.assertEqual(meta["padding_voxels"], 4)

    @parameterized.expand([("PixelPaddingValue", 7), ("PixelPaddingRangeLimit", 3000)])
    def test_nothing_but_padding(self, *limit):
        words = np.where(BITS > 0, 7, 8) if limit[0] == "PixelPaddingRangeLimit" else np.full_like(BITS, 7)
        header = {"PixelPaddingValue": 7, limit[0]: limit[1]}
        paths = save_words(self.folder, words, EXPLICIT, words.astype("<u2").tobytes(), **header)
        for read in (lambda: LoadVolume()(str(self.folder)), lambda: LoadImage2D()(paths[0])):
            with self.assertRaisesRegex(InputError, "study.*: an? (volume|image) must have pixels that are no padding"):
                read()

    def test_text_in_its_place(self):
        paths = save_words(self.folder, BITS, EXPLICIT, (BITS % 65536).astype("<u2").tobytes())
        for path in paths:
            change(path, PixelPaddingValue="DOE", vr={"PixelPaddingValue": "LO"})
        for read in (lambda: LoadVolume()(str(self.folder)), lambda: LoadImage2D()(paths[0])):
            with self.assertRaisesRegex(InputError, "PixelPaddingValue .* must be numbers, got what is no number"):
                read()

    def test_corner_of_the_hippocampus(self):
        """What is around padding is normalised as if there was none."""
        for path in sorted(shared_data("dicom/hippocampus_mr").iterdir()):
            self.folder.mkdir(exist_ok=True)
            shutil.copyfile(path, self.folder / path.name)
        whole = LoadVolume()(str(self.folder))[0].numpy()
        for path in self.folder.iterdir():

            def edit(dataset):
                words = np.frombuffer(dataset.PixelData, "<i2").reshape(dataset.Rows, dataset.Columns).copy()
                words[:12, :9] = -32768
                dataset.PixelData = words.tobytes()

            change(path, edit, PixelPaddingValue=-32768)
        volume = LoadVolume()(str(self.folder))
        tissue = np.ones(whole.shape, bool)
        tissue[:9, :12] = False
        np.testing.assert_array_equal(volume[0], np.where(tissue, whole, 0))
        self.assertEqual(volume.meta["padding_voxels"], 9 * 12 * 32)
        normal = NormalizeIntensity(nonzero=True)(volume)[0].numpy()
        there = whole[tissue & (whole != 0)]
        np.testing.assert_allclose(normal[tissue], (whole[tissue] - there.mean()) / there.std(), atol=1e-4)
        self.assertEqual(np.abs(normal[~tissue]).max(), 0)


if __name__ == "__main__":
    unittest.main()
