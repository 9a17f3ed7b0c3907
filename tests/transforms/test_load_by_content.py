# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import os
import struct
import unittest
import zlib
from pathlib import Path

import numpy as np
import torch
from parameterized import parameterized
from PIL import Image
from utils_data import AFFINE_RAS, temporary_folder
from utils_headers import metaimage, nifti_1, nifti_2, nrrd

from monai_dvpt.transforms import LoadImage2D, LoadVolume
from monai_dvpt.utils import InputError

SHAPE = (2, 3, 4)
NUMBERS = [7 * i - 50 for i in range(24)]  # the first index runs fastest
WORDS = struct.pack("<24h", *NUMBERS)
SWAPPED = struct.pack(">24h", *NUMBERS)
NO_FORM = {"codes": (0, 0)}
NOWHERE = "must say where it lies"
LABELS = [0, 1, 2, 1] * 6


def voxel(*sides: float, qfac: float = 1, codes: tuple[int, int] = (0, 1)) -> dict[str, bytes]:
    """A file with that voxel size."""
    return {"a.nii": nifti_1(WORDS, SHAPE, pixdim=(qfac, *sides, 1, 1, 1, 1), codes=codes)}


def deflated(data: bytes, size: int | None = None) -> bytes:
    """A MetaImage of compressed values that says that they take ``size`` bytes, by default the truth."""
    return metaimage(data, CompressedData="True", CompressedDataSize=str(len(data) if size is None else size))


class TestLoadVolumeByContent(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)

    def save(self, files: dict[str, bytes]) -> Path:
        """Writes them; returns the first."""
        for name, content in files.items():
            (self.root / name).write_bytes(content)
        return self.root / next(iter(files))

    def refused(self, path: Path, message: str, num_classes: int | None = None) -> None:
        with self.assertRaisesRegex(InputError, message) as caught:
            LoadVolume(num_classes)(str(path))
        self.assertTrue(str(caught.exception).startswith(f"{path}: "))
        self.assertNotIn("\n", str(caught.exception))

    @parameterized.expand(
        [
            ("capitals", {"a.NII": nifti_1(WORDS, SHAPE)}),
            ("capitals, compressed", {"a.Nii.Gz": gzip.compress(nifti_1(WORDS, SHAPE))}),
            ("compressed, not named so", {"a.nii": gzip.compress(nifti_1(WORDS, SHAPE))}),
            ("named compressed", {"a.nii.gz": nifti_1(WORDS, SHAPE)}),
            ("no suffix", {"scan": nifti_1(WORDS, SHAPE)}),
            ("number", {"1.2.840": nifti_1(WORDS, SHAPE)}),
            ("as DICOM", {"a.dcm": nifti_1(WORDS, SHAPE)}),
            ("as NRRD", {"a.nrrd": gzip.compress(nifti_1(WORDS, SHAPE))}),
            ("big end first", {"a.nii": nifti_1(SWAPPED, SHAPE, order=">")}),
            ("NIfTI-2", {"a.nii": nifti_2(WORDS, SHAPE)}),
            ("NIfTI-2, big end first, odd name", {"a.img": gzip.compress(nifti_2(SWAPPED, SHAPE, order=">"))}),
            ("gap", {"a.nii": nifti_1(bytes(16) + WORDS, SHAPE, offset=368)}),
            ("header of a pair", {"a.hdr": nifti_1(b"", SHAPE, magic=b"ni1\0", offset=0), "a.img": WORDS}),
            ("values of a pair", {"a.img": WORDS, "a.hdr": nifti_1(b"", SHAPE, magic=b"ni1\0", offset=0)}),
            ("pair in capitals", {"a.IMG": WORDS, "a.HDR": nifti_1(b"", SHAPE, magic=b"ni1\0", offset=0)}),
            (
                "compressed pair",
                {"a.img.gz": gzip.compress(WORDS), "a.hdr": nifti_1(b"", SHAPE, magic=b"ni1\0", offset=0)},
            ),
            ("qform whose qfac is 0", {"a.nii": nifti_1(WORDS, SHAPE, pixdim=(0, 2, 3, 4, 1, 1, 1, 1), codes=(1, 0))}),
            ("NRRD", {"a.nrrd": nrrd(WORDS)}),
            ("NRRD of another name", {"a.NII": nrrd(WORDS)}),
            ("NRRD, RAS", {"a.nrrd": nrrd(WORDS, space="RAS", space_directions="(-2,0,0) (0,3,0) (0,0,4)",
                                         space_origin="(9,-7,5)")}),
            ("MetaImage", {"a.mha": metaimage(WORDS)}),
            ("MetaImage of another name", {"a.nii": metaimage(WORDS)}),
            ("MetaImage, compressed", {"a.mha": deflated(zlib.compress(WORDS))}),
            ("MetaImage, two files", {"a.mhd": metaimage(b"", ElementDataFile="a.raw"), "a.raw": WORDS}),
        ]
    )  # fmt: skip
    def test_content_decides(self, name, files):
        volume = LoadVolume()(str(self.save(files)))
        expected = np.reshape(NUMBERS, (4, 3, 2)).T
        self.assertEqual((tuple(volume.shape), volume.dtype), ((1, *SHAPE), torch.float32))
        np.testing.assert_array_equal(volume.numpy()[0], expected)
        expected = np.diag([2, 3, 4, 1]) if name.startswith("qform") else AFFINE_RAS  # without a turn or a shift
        np.testing.assert_allclose(volume.affine.numpy(), expected, atol=1e-6)

    def test_picture_is_known_by_content_too(self):
        picture = np.arange(20, dtype=np.uint8).reshape(4, 5)
        Image.fromarray(picture).save(self.root / "a.png")
        for name in ("a.dcm", "a.nii.gz", "a"):
            path = (self.root / "a.png").rename(self.root / name)
            np.testing.assert_array_equal(LoadImage2D()(str(path))[0], picture)
            path.rename(self.root / "a.png")
        flat = {"shape": (5, 4), "srow": (-1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0), "pixdim": (1, 1, 1, 1, 0, 0, 0, 0)}
        content = nifti_1(picture.tobytes(), datatype=2, **flat)
        header = nifti_1(b"", datatype=2, magic=b"ni1\0", offset=0, **flat)
        for files in (
            {"b.NII": content},
            {"c.png": gzip.compress(content)},
            {"d.img": picture.tobytes(), "d.hdr": header},
            {"e.hdr": header, "e.img": picture.tobytes()},
        ):
            np.testing.assert_array_equal(LoadImage2D()(str(self.save(files)))[0], picture)

    @parameterized.expand(
        [
            ("NIfTI", {"a.nii": nifti_1(WORDS, SHAPE, **NO_FORM)}, NOWHERE),
            ("capitals", {"a.NII": nifti_1(WORDS, SHAPE, **NO_FORM)}, NOWHERE),
            ("pair", {"a.hdr": nifti_1(b"", SHAPE, magic=b"ni1\0", offset=0, **NO_FORM), "a.img": WORDS}, NOWHERE),
            ("Analyze", {"a.hdr": nifti_1(b"", SHAPE, magic=bytes(4)), "a.img": WORDS}, NOWHERE),
            ("values of Analyze", {"a.img": WORDS, "a.hdr": nifti_1(b"", SHAPE, magic=bytes(4))}, NOWHERE),
            ("voxel of 0", voxel(2, 0, 4), r"got pixdim \[2.0, 0.0"),
            ("voxel below 0", voxel(2, 3, -4), "must be finite and a"),
            ("voxel NaN", voxel(float("nan"), 3, 4), "voxel size must"),
            ("voxel of 0, qform", voxel(2, 3, 0, codes=(1, 0)), "voxel"),
            ("qfac", voxel(2, 3, 4, qfac=-3, codes=(1, 0)), r"pixdim\[0\] must"),
            ("micrometres", {"a.NII": nifti_1(WORDS, SHAPE, units=3)}, "unit of length must be mm, got micron"),
            ("pair without values", {"a.hdr": nifti_1(b"", SHAPE, magic=b"ni1\0")}, "must have its values beside it"),
            ("NRRD without space", {"a.nrrd": nrrd(WORDS, space=None, space_directions=None)}, NOWHERE),
            ("NRRD with a number", {"a.nrrd": nrrd(WORDS, space=None, space_dimension="3")}, NOWHERE),
            ("NRRD of a scanner", {"a.nrrd": nrrd(WORDS, space="scanner-xyz")}, f"{NOWHERE}: space must be one of"),
            ("NRRD without directions", {"a.nrrd": nrrd(WORDS, space_directions=None)}, f"{NOWHERE}: space directions"),
            ("NRRD of spacings", {"a.nrrd": nrrd(WORDS, space_directions=None, spacings="2 3 4")}, NOWHERE),
            ("NRRD, NaN", {"a.nrrd": nrrd(WORDS, space_directions="(nan,0,0) (0,3,0) (0,0,4)")}, NOWHERE),
            ("NRRD, zero", {"a.nrrd": nrrd(WORDS, space_directions="(0,0,0) (0,3,0) (0,0,4)")}, NOWHERE),
            ("NRRD without origin", {"a.nrrd": nrrd(WORDS, space_origin=None)}, f"{NOWHERE}: space origin"),
            ("NRRD in cm", {"a.nrrd": nrrd(WORDS, space_units='"cm" "cm" "cm"')}, "must be mm, got 'cm'"),
            ("MetaImage without spacing", {"a.mha": metaimage(WORDS, ElementSpacing=None)}, f"{NOWHERE}: ElementS"),
            ("MetaImage, zero", {"a.mha": metaimage(WORDS, ElementSpacing="2 0 4")}, f"{NOWHERE}: ElementS"),
            ("MetaImage without matrix", {"a.mha": metaimage(WORDS, TransformMatrix=None)}, f"{NOWHERE}: Transform"),
            ("MetaImage, inf", {"a.mha": metaimage(WORDS, TransformMatrix="inf 0 0 0 1 0 0 0 1")}, NOWHERE),
            ("MetaImage without offset", {"a.mha": metaimage(WORDS, Offset=None)}, f"{NOWHERE}: Offset must be 3"),
            ("text", {"a.nii": b"patient,volume\n" * 100}, "cannot be read: is no NIfTI, NRRD, MetaImage or DICOM"),
        ]
    )  # fmt: skip
    def test_geometry_that_is_not_stated(self, _, files, message):
        self.refused(self.save(files), message)

    @parameterized.expand(
        [
            ("complex64", 32, struct.pack("<48f", *NUMBERS, *NUMBERS), "must be real numbers, .*got complex"),
            ("complex128", 1792, struct.pack("<48d", *NUMBERS, *NUMBERS), "must be real numbers, .*got complex"),
            ("RGB", 128, bytes(range(72)), "must be real numbers, .*got RGB"),
            ("RGBA", 2304, bytes(range(96)), "must be real numbers, .*got RGB"),
            ("unknown", 77, WORDS, "datatype must be one of the standard, got 77"),
            ("too large", 64, struct.pack("<24d", 1e300, *NUMBERS[1:]), r"must be finite as float32, got 1e\+300"),
        ]
    )
    def test_cast_that_would_lose(self, _, datatype, data, message):
        self.refused(self.save({"a.nii": nifti_1(data, SHAPE, datatype)}), message)
        flat = {"srow": (-1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0), "pixdim": (1, 1, 1, 1, 0, 0, 0, 0)}
        path = self.save({"b.nii": nifti_1(data, (4, 6), datatype, **flat)})
        with self.assertRaisesRegex(InputError, f"^{path}: .*{message}"):
            LoadImage2D()(str(path))

    @parameterized.expand(
        [
            ("fraction", 64, struct.pack("<24d", 1 + 1e-9, *LABELS[1:]), "must be whole numbers .*got 1.000000001"),
            ("int64", 1024, struct.pack("<24q", 2**24 + 1, *LABELS[1:]), "must be whole numbers .*got 16777217"),
            ("uint32", 768, struct.pack("<24I", 2**24 + 1, *LABELS[1:]), "must be whole numbers .*got 16777217"),
        ]
    )  # fmt: skip
    def test_label_that_the_cast_would_change(self, _, datatype, data, message):
        self.refused(self.save({"a.nii": nifti_1(data, SHAPE, datatype)}), message, num_classes=2**24 + 1)

    @parameterized.expand([("int64", 1024, "q"), ("uint8", 2, "B"), ("float64", 64, "d"), ("uint64", 1280, "Q")])
    def test_label_of_any_type(self, _, datatype, code):
        path = self.save({"a.nii": nifti_1(struct.pack(f"<24{code}", *LABELS), SHAPE, datatype)})
        np.testing.assert_array_equal(LoadVolume(3)(str(path))[0].numpy().T.ravel(), LABELS)

    @parameterized.expand(
        [
            ("none", (0, 5), 1, 0),
            ("NaN is none", (float("nan"), 5), 1, 0),
            ("both", (0.5, -3), 0.5, -3),
            ("below 0", (-2, 1), -2, 1),
        ]
    )
    def test_slope(self, _, scale, slope, intercept):
        path = self.save({"a.nii": nifti_1(WORDS, SHAPE, scale=scale)})
        values = LoadVolume()(str(path))[0].numpy().T.ravel()
        np.testing.assert_array_equal(values, [slope * number + intercept for number in NUMBERS])

    @parameterized.expand([("slope", (float("inf"), 0)), ("intercept", (1, float("nan")))])
    def test_infinite_slope(self, _, scale):
        self.refused(
            self.save({"a.nii": nifti_1(WORDS, SHAPE, scale=scale)}), "slope and intercept must be finite, got "
        )

    def test_values_that_are_cut(self):
        for missing, there in ((1, 23), (2, 23), (3, 22)):  # of 24 of two bytes
            path = self.save({"a.nii": nifti_1(WORDS[:-missing], SHAPE)})
            self.refused(path, f"is truncated or damaged: has {there} of 24 values")

    def test_damaged_compressed_file(self):
        content = gzip.compress(nifti_1(bytes(2000) + WORDS, SHAPE, offset=2352), 0)
        wrong_sum = content[:-8] + bytes([content[-8] ^ 1]) + content[-7:]
        for bad in (content[:-30], content[:-4], wrong_sum):
            self.refused(self.save({"a.nii.gz": bad}), "cannot be read: is truncated or damaged: ")

    @parameterized.expand(
        [
            ("longer", deflated(zlib.compress(WORDS + b"12")), "must inflate to 48 bytes, does not"),
            ("shorter", deflated(zlib.compress(WORDS[:-2])), "must inflate to 48 bytes, does not"),
            ("cut", deflated(zlib.compress(WORDS)[:-9]), "must inflate to 48 bytes, does not"),
            ("wrong sum", deflated(zlib.compress(WORDS)[:-1] + b"?"), "is truncated or damaged: Error -3"),
            ("noise", deflated(bytes(range(50))), "is truncated or damaged: Error -3"),
            ("size", deflated(zlib.compress(WORDS), 10**12), "CompressedDataSize must be"),
            ("1 for True", metaimage(WORDS, CompressedData="1"), "CompressedDataSize must be"),
            ("twice", metaimage(WORDS, Position="0 0 0"), "must state each field once"),
            ("text", metaimage(WORDS, BinaryData="False"), "BinaryData must be True"),
            ("no size", metaimage(zlib.compress(WORDS), CompressedData="True"), "CompressedDataSize must be"),
        ]
    )
    def test_damaged_metaimage(self, _, content, message):
        """ITK gives whatever stands in memory as its values."""
        self.refused(self.save({"a.mha": content}), message)

    def test_pipes_are_not_opened(self):
        os.mkfifo(self.root / "a.nii")
        os.symlink("/dev/zero", self.root / "b.nii.gz")
        (self.root / "c.hdr").write_bytes(nifti_1(b"", SHAPE, magic=b"ni1\0", offset=0))
        os.mkfifo(self.root / "c.img")
        (self.root / "d.mhd").write_bytes(metaimage(b"", ElementDataFile="a.nii"))
        (self.root / "e.nhdr").write_bytes(nrrd(b"", data_file="a.nii"))
        for name in ("a.nii", "b.nii.gz", "c.hdr", "d.mhd", "e.nhdr"):
            with self.assertRaisesRegex(InputError, "must be an existing file, and a regular one"):
                LoadVolume()(str(self.root / name))
            if name < "d":
                with self.assertRaisesRegex(InputError, "must be an existing file, and a regular one"):
                    LoadImage2D()(str(self.root / name))


if __name__ == "__main__":
    unittest.main()
