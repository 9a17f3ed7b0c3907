# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
import unittest
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
import torch
from parameterized import parameterized
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
from utils_data import PATIENT, shared_data, temporary_folder

from monai_dvpt.transforms import LoadImage2D, LoadImage2Dd
from monai_dvpt.utils import InputError

PICTURE = np.random.default_rng(0).integers(3, 240, (17, 23)).astype(np.uint8)  # rows, columns
PICTURE[2:5, 1:9] = 250  # bright, top left
COLOUR = np.stack([PICTURE, 255 - PICTURE, PICTURE // 2], axis=-1)
LEFT_INFERIOR = np.array([[-0.2, 0, 0, 0], [0, 0, -1, 0], [0, -0.2, 0, 0], [0, 0, 0, 1.0]])  # x to left, y to inferior


def save_radiograph(path: Path, stored: np.ndarray, **tags) -> Path:
    """Writes a digital radiograph of one frame, (rows, columns), with further attributes."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPInstanceUID = ExplicitVRLittleEndian, generate_uid()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset = pydicom.FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID, dataset.Modality = PATIENT, "19", "DX"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    bits = 8 * stored.dtype.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    for name, value in tags.items():
        setattr(dataset, name, value)
    data = stored.tobytes()
    dataset.PixelData = data + bytes(len(data) % 2)
    dataset["PixelData"].VR = "OW"
    if int(pydicom.__version__.split(".")[0]) < 3:
        dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.save_as(path)
    return path


class TestLoadImage2D(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)

    def picture(self, array: np.ndarray, name: str = "a.png", **options) -> Path:
        Image.fromarray(array).save(self.root / name, **options)
        return self.root / name

    def nifti(self, array: np.ndarray, affine: np.ndarray | None, name: str = "a.nii.gz") -> Path:
        nib.save(nib.Nifti1Image(array, affine), self.root / name)
        return self.root / name

    def same_picture(self) -> dict[str, Path]:
        """One radiograph in all kinds of files."""
        sitk.WriteImage(sitk.GetImageFromArray(PICTURE), str(self.root / "itk.nii"))
        upward = LEFT_INFERIOR @ np.diag([1, -1, 1, 1])
        root = self.root
        return {
            "PNG": self.picture(PICTURE),
            "PNG without name": Path(self.picture(PICTURE, "b.png").rename(root / "b")),
            "PNG, 16 bit": self.picture(PICTURE.astype(np.uint16), "c.png"),
            "PNG, 1 colour": self.picture(np.dstack([PICTURE] * 3), "d.png"),
            "PNG, opaque": self.picture(np.dstack([PICTURE] * 3 + [np.full_like(PICTURE, 255)]), "e.png"),
            "JPEG": self.picture(PICTURE, "f.jpg", quality=100),
            "MONOCHROME2": save_radiograph(root / "g.dcm", PICTURE),
            "MONOCHROME2 without name": save_radiograph(root / "h", PICTURE),
            "MONOCHROME1": save_radiograph(root / "i.dcm", 255 - PICTURE, PhotometricInterpretation="MONOCHROME1"),
            "NIfTI": self.nifti(PICTURE.T, LEFT_INFERIOR, "j.nii.gz"),
            "NIfTI, slice": self.nifti(PICTURE.T[..., None], LEFT_INFERIOR, "k.nii"),
            "NIfTI, 4D": self.nifti(PICTURE.T[..., None, None], LEFT_INFERIOR, "l.nii"),
            "NIfTI, upward": self.nifti(PICTURE.T[:, ::-1], upward, "m.nii"),
            "NIfTI, rows first": self.nifti(PICTURE, LEFT_INFERIOR[:, [1, 0, 2, 3]], "n.nii"),
            "NIfTI, axial": self.nifti(PICTURE.T, np.diag([-1.0, -1, 1, 1]), "o.nii"),
            "NIfTI, coronal slice": self.nifti(PICTURE.T[:, None], np.diag([-1.0, 1, -1, 1]), "p.nii"),
            "NIfTI, sagittal slice": self.nifti(PICTURE.T[None], np.diag([1.0, -1, -1, 1]), "q.nii"),
            "NIfTI of ITK": self.root / "itk.nii",
        }

    def test_the_same_picture_from_every_kind_of_file(self):
        for kind, path in self.same_picture().items():
            with self.subTest(kind):
                image = LoadImage2D()(str(path))
                self.assertEqual((tuple(image.shape), image.dtype), ((1, 17, 23), torch.float32))
                np.testing.assert_allclose(image[0], PICTURE, atol=2 if kind == "JPEG" else 1e-4)
                self.assertEqual(image.meta["filename_or_obj"], str(path))
                self.assertNotIn(PATIENT, str(image.meta))

    def test_label_maps(self):
        mask = (PICTURE > 100).astype(np.uint8)
        for name, pixels in (
            ("values", mask),
            ("black and white", mask * 255),
            ("one bit", mask.astype(bool)),
            ("colours", np.dstack([mask * 255] * 3)),
            ("nothing", mask * 0),
            ("white", np.full_like(mask, 255)),
        ):
            with self.subTest(name):
                found = LoadImage2D(num_classes=2)(self.picture(pixels))
                self.assertEqual((tuple(found.shape), found.dtype), ((1, 17, 23), torch.float32))
                expected = np.asarray(pixels, dtype=np.uint8).reshape(17, 23, -1)[..., 0] > 0
                np.testing.assert_array_equal(found[0], expected)
        several = PICTURE % 4
        np.testing.assert_array_equal(LoadImage2D(num_classes=4)(self.picture(several))[0], several)
        nifti = self.nifti(several.T[..., None], LEFT_INFERIOR)
        np.testing.assert_array_equal(LoadImage2D(num_classes=4)(nifti)[0], several)

    @parameterized.expand(
        [
            ("three", 2, lambda p: p % 3, r"labels must be whole numbers in \[0, 2\) or 255 for 1, got 0, 1, 2\."),
            ("grey border", 2, lambda p: np.where(p > 99, 255, 128), "or 255 for 1, got 128, 255"),
            ("255 of three", 3, lambda p: p % 2 * 255, r"labels must be whole numbers in \[0, 3\), got 0, 255\."),
            ("one and 255", 2, lambda p: np.where(p > 99, 255, 1), "or 255 for 1, got 1, 255"),
            ("colours", 2, lambda p: np.dstack([p % 2, p % 2, 0 * p]), "labels must be grey, got colours"),
        ]
    )
    def test_bad_label_maps(self, _, num_classes, pixels, words):
        path = self.picture(pixels(PICTURE).astype(np.uint8))
        with self.assertRaisesRegex(InputError, rf"a\.png: .*{words}"):
            LoadImage2D(num_classes=num_classes)(path)

    def test_image_and_label_map(self):
        paths = {"image": str(self.picture(COLOUR, "a.png")), "label": str(self.picture(PICTURE % 2 * 255, "b.png"))}
        load = LoadImage2Dd(["image", "label"], channels=3, num_classes=[None, 2])
        loaded = load(paths)
        np.testing.assert_array_equal(loaded["image"], np.moveaxis(COLOUR, -1, 0))
        np.testing.assert_array_equal(loaded["label"][0], PICTURE % 2)
        paths["label"] = str(self.picture(PICTURE.T % 2, "b.png"))
        with self.assertRaisesRegex(
            InputError, r"b\.png: must have the rows and columns of .*a\.png, \(17, 23\), got \(23, 17\)"
        ):
            load(paths)
        with self.assertRaisesRegex(ValueError, "channels must be 1 for a label map, got 3"):
            LoadImage2D(3, num_classes=2)

    def test_channels(self):
        colour = self.picture(COLOUR)
        np.testing.assert_allclose(LoadImage2D(3)(colour), np.moveaxis(COLOUR, -1, 0))
        grey = COLOUR @ [0.299, 0.587, 0.114]
        np.testing.assert_allclose(LoadImage2D(1)(colour)[0], grey, rtol=1e-5)
        three = LoadImage2D(3)(self.picture(PICTURE, "grey.png"))
        np.testing.assert_allclose(three, [PICTURE] * 3)
        three[0] += 1  # each channel is its own
        self.assertFalse(torch.equal(three[0], three[1]))
        with self.assertRaisesRegex(ValueError, "channels must be 1 or 3, got 2"):
            LoadImage2D(2)

    def test_transparent_is_black(self):
        alpha = np.where(PICTURE > 100, 255, 0).astype(np.uint8)
        expected = np.where(alpha > 0, PICTURE, 0)
        for name, array in (("la", np.dstack([PICTURE, alpha])), ("rgba", np.dstack([PICTURE] * 3 + [alpha]))):
            np.testing.assert_allclose(LoadImage2D()(self.picture(array, f"{name}.png"))[0], expected, atol=1e-3)

    def test_palette(self):
        image = Image.fromarray(COLOUR).quantize(64)
        image.save(self.root / "p.png")
        np.testing.assert_allclose(
            LoadImage2D(3)(self.root / "p.png"), np.moveaxis(np.asarray(image.convert("RGB")), 2, 0)
        )
        image.save(self.root / "t.png", transparency=int(np.asarray(image)[0, 0]))
        self.assertEqual(LoadImage2D(3)(self.root / "t.png")[:, 0, 0].tolist(), [0, 0, 0])

    def test_sixteen_bit(self):
        deep = PICTURE.astype(np.uint16) * 257
        np.testing.assert_array_equal(LoadImage2D()(self.picture(deep))[0], deep)
        seen = LoadImage2D()(self.picture(deep, "key.png", transparency=int(deep[2, 1])))[0]
        np.testing.assert_array_equal(seen, np.where(deep == deep[2, 1], 0, deep))
        black_and_white = Image.fromarray(PICTURE > 128)
        black_and_white.save(self.root / "bw.png")
        np.testing.assert_allclose(LoadImage2D()(self.root / "bw.png")[0], 255 * (PICTURE > 128), atol=1e-3)

    @parameterized.expand([("LA", 4, 2), ("RGB", 2, 3), ("RGBA", 6, 4)])
    def test_sixteen_bit_colour_is_refused(self, _, kind, channels):
        chunks = [
            (b"IHDR", struct.pack(">IIBBBBB", 5, 4, 16, kind, 0, 0, 0)),
            (b"IDAT", zlib.compress((b"\0" + bytes(range(10 * channels))) * 4)),
            (b"IEND", b""),
        ]
        packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
        (self.root / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
        with Image.open(self.root / "deep.png") as image:
            self.assertEqual((np.asarray(image).shape[:2], np.asarray(image).dtype), ((4, 5), np.uint8))  # in silence
        with self.assertRaisesRegex(InputError, "deep.png: must have 8 bit, or 16 bit grey, got 16 bit colour"):
            LoadImage2D()(self.root / "deep.png")

    def test_exif_orientation(self):
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees clockwise
        path = self.picture(PICTURE, "turned.png", exif=exif)
        np.testing.assert_array_equal(LoadImage2D()(path)[0], np.rot90(PICTURE, -1))

    def test_dicom_window(self):
        stored = PICTURE.astype(np.int16) * 12 - 1000
        window = {"WindowCenter": [1000, 0], "WindowWidth": [1001, 10], "RescaleSlope": 2, "RescaleIntercept": -100}
        seen = LoadImage2D()(save_radiograph(self.root / "w.dcm", stored, BitsStored=12, HighBit=11, **window))[0]
        low, high = -2048 * 2 - 100, 2047 * 2 - 100
        rescaled = stored * 2.0 - 100
        expected = np.clip((rescaled - 999.5) / 1000 + 0.5, 0, 1) * (high - low) + low
        np.testing.assert_allclose(seen, expected, rtol=1e-5)
        other = save_radiograph(
            *(self.root / "v.dcm", stored), BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1", **window
        )
        np.testing.assert_allclose(LoadImage2D()(other)[0], low + high - expected, rtol=1e-4, atol=1e-2)

    @parameterized.expand([(0, None), (0.5, ""), (0, "SIGMOID"), ([0, 10], "LINEAR_EXACT")])
    def test_invalid_window_is_left_out(self, width, function):
        window = {"WindowCenter": 90 if width != [0, 10] else [90, 90], "WindowWidth": width, "RescaleIntercept": -3}
        window |= {"RescaleSlope": 2, **({} if function is None else {"VOILUTFunction": function})}
        seen = LoadImage2D()(save_radiograph(self.root / "w.dcm", PICTURE, **window))[0]
        np.testing.assert_array_equal(seen, PICTURE * 2.0 - 3)

    def test_empty_padding_limit(self):
        tags = {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": None}
        path = save_radiograph(self.root / "p.dcm", np.where(PICTURE > 240, 0, PICTURE), **tags)
        self.assertEqual(LoadImage2D()(path).min(), PICTURE.min())

    def test_dicom_look_up_table(self):
        item = Dataset()
        item.LUTDescriptor, item.LUTData = [256, 0, 16], [value**2 for value in range(256)]
        item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "US"
        path = save_radiograph(self.root / "lut.dcm", PICTURE, VOILUTSequence=[item])
        np.testing.assert_array_equal(LoadImage2D()(path)[0], PICTURE.astype(float) ** 2)

    def test_dicom_padding_is_as_dark_as_air(self):
        stored = 255 - PICTURE
        stored[:, -3:] = 0  # it would be white
        tags = {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 0}
        seen = LoadImage2D()(save_radiograph(self.root / "p.dcm", stored, **tags))[0].numpy()
        np.testing.assert_array_equal(seen[:, :-3], PICTURE[:, :-3])
        self.assertEqual(seen[:, -3:].max(), PICTURE[:, :-3].min())

    @parameterized.expand(
        [
            ("frames", {"NumberOfFrames": 2}, "must have one frame, got 2"),
            ("colour", {"PhotometricInterpretation": "RGB"}, "must be MONOCHROME1 or MONOCHROME2, got RGB"),
            ("rows", {"Rows": 400}, "cannot be read"),
            ("spacing", {"PixelSpacing": [0.2, 0.21]}, r"square to 1%, got PixelSpacing \[0.2, 0.21\]"),
            ("aspect", {"PixelAspectRatio": [4, 3]}, r"square to 1%, got PixelAspectRatio \[4.0, 3.0\]"),
        ]
    )
    def test_bad_dicom(self, _, tags, why):
        path = save_radiograph(self.root / "bad.dcm", PICTURE, **tags)
        with self.assertRaisesRegex(InputError, f"bad.dcm: .*{why}"):
            LoadImage2D()(path)

    def test_empty_dicom(self):
        path = save_radiograph(self.root / "empty.dcm", PICTURE, PixelSpacing=[0.2, 0.2])
        dataset = pydicom.dcmread(path)
        dataset.PixelData = b""
        dataset.save_as(path)
        with self.assertRaisesRegex(InputError, "empty.dcm: cannot be read: is truncated: has 0 bytes of pixel data"):
            LoadImage2D()(path)

    @parameterized.expand(
        [
            ("volume", np.zeros((4, 5, 6)), np.eye(4), r"one slice, got size \(4, 5, 6\)"),
            ("time", np.zeros((4, 5, 1, 3)), np.eye(4), r"one slice, got size \(4, 5, 1, 3\)"),
            ("line", np.zeros((4, 1, 1)), np.eye(4), r"got size \(4, 1, 1\)"),
            ("no orientation", PICTURE, None, "sform_code or a qform_code above 0"),
            ("spacing", PICTURE, np.diag([-1.0, -2, 1, 1]), r"square to 1%, got the spacing \[1.0, 2.0\]"),
            ("NaN", np.where(PICTURE > 200, np.nan, PICTURE), np.eye(4), "must be finite, got"),
            ("constant", np.full((4, 5), 7.0), np.eye(4), "must not be constant, got 7 everywhere"),
        ]
    )
    def test_bad_nifti(self, _, array, affine, why):
        with self.assertRaisesRegex(InputError, f"a.nii.gz: .*{why}"):
            LoadImage2D()(self.nifti(array, affine))

    @parameterized.expand([(20, True), (45, False), (60, True)])
    def test_turned_nifti(self, degrees, fits):
        """Turned by 60 degrees the rows are the columns; at 45 nobody can tell."""
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        affine = np.eye(4)
        affine[:2, :2] = [[-cos, sin], [-sin, -cos]]
        path = self.nifti(PICTURE.T, affine)
        if not fits:
            with self.assertRaisesRegex(InputError, "axes must lie along axes of the patient"):
                LoadImage2D()(path)
        else:
            self.assertEqual(LoadImage2D()(path).shape[1:], PICTURE.shape[:: 1 if degrees < 45 else -1])

    @parameterized.expand([("cut.png",), ("cut.jpg",), ("cut.dcm",), ("cut.nii.gz",)])
    def test_broken_files(self, name):
        whole = {
            "cut.png": lambda: self.picture(PICTURE),
            "cut.jpg": lambda: self.picture(PICTURE, "a.jpg"),
            "cut.dcm": lambda: save_radiograph(self.root / "a.dcm", PICTURE),
            "cut.nii.gz": lambda: self.nifti(PICTURE, np.eye(4)),
        }[name]().read_bytes()
        for part in (whole[: len(whole) * 2 // 3], b"", b"not an image"):
            (self.root / name).write_bytes(part)
            with self.assertRaisesRegex(InputError, f"{name}: cannot be read"):
                LoadImage2D()(self.root / name)

    def test_other_files(self):
        Image.fromarray(PICTURE).save(self.root / "a.gif")
        with self.assertRaisesRegex(InputError, "a.gif: cannot be read"):
            LoadImage2D()(self.root / "a.gif")
        frames = [Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)]
        frames[0].save(self.root / "moving.png", save_all=True, append_images=frames[1:])
        with self.assertRaisesRegex(InputError, "moving.png: must have one frame, got 2"):
            LoadImage2D()(self.root / "moving.png")
        with self.assertRaisesRegex(InputError, "nowhere.png: must be an existing file"):
            LoadImage2D()(self.root / "nowhere.png")
        with self.assertRaisesRegex(InputError, "must be an existing file"):
            LoadImage2D()(self.root)

    def test_dictionary(self):
        loaded = LoadImage2Dd("image", channels=3)({"image": str(self.picture(PICTURE)), "name": "a"})
        self.assertEqual((tuple(loaded["image"].shape), loaded["name"]), ((3, 17, 23), "a"))
        self.assertEqual(LoadImage2Dd("image", allow_missing_keys=True)({"name": "a"}), {"name": "a"})

    def test_real_radiographs(self):
        for path in sorted((shared_data("brixia_cxr") / "images").iterdir())[:5]:
            self.assertEqual(LoadImage2D(3)(path).shape, (3, 256, 256))


if __name__ == "__main__":
    unittest.main()
