# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import unittest
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from matplotlib.backends.backend_agg import FigureCanvasAgg
from monai.data import MetaTensor
from parameterized import parameterized
from PIL import Image
from utils_data import temporary_folder

from monai_dvpt.handlers import MaskWriter, plot_outlines
from monai_dvpt.transforms import LoadImage2D
from monai_dvpt.utils import InputError

ROWS, COLUMNS = 17, 23
COLOUR = np.random.default_rng(0).integers(3, 240, (ROWS, COLUMNS, 3)).astype(np.uint8)
MASK = np.zeros((ROWS, COLUMNS), np.uint8)
MASK[2:6, 3:14] = 1
MASK[10:12, 0:3] = 2
LABELS = ["background", "lesion"]
# columns to the left and rows to inferior, as in the tests of the loader; then the same picture, stored otherwise
CORONAL = np.array([[-0.2, 0, 0, 0], [0, 0, -1, 0], [0, -0.2, 0, 0], [0, 0, 0, 1.0]])
LAYOUTS = [
    ("left_inferior", CORONAL, lambda picture: picture.T),
    ("one_slice", CORONAL, lambda picture: picture.T[..., None]),
    ("upward", CORONAL @ np.diag([1, -1, 1, 1]), lambda picture: picture.T[:, ::-1]),
    ("rows_first", CORONAL[:, [1, 0, 2, 3]], lambda picture: picture),
    ("rightward", CORONAL @ np.diag([-1, 1, 1, 1]), lambda picture: picture.T[::-1]),
    (
        "slice_first",
        np.array([[0, 0, -0.2, 5], [1, 0, 0, 0], [0, -0.2, 0, 0], [0, 0, 0, 1.0]]),
        lambda picture: picture[None],
    ),
]


class TestMaskWriter(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)
        self.out = self.root / "out"

    def write(self, source: Path, mask: np.ndarray = MASK == 1, labels: list[str] = LABELS, **options) -> None:
        image = LoadImage2D(3)(str(source))
        self.assertEqual(tuple(image.shape[1:]), mask.shape)
        output = {"image": image, "pred": MetaTensor(mask[None].astype(np.uint8))}
        state = SimpleNamespace(batch=[{"name": "case"}], output=[output])
        MaskWriter(self.out, labels, **options).write(SimpleNamespace(state=state))

    def png(self) -> np.ndarray:
        with Image.open(self.out / "case_seg.png") as file:
            return np.asarray(file)

    def photograph(self, **options) -> Path:
        Image.fromarray(COLOUR).save(self.root / "a.png", **options)
        return self.root / "a.png"

    def test_files_of_a_photograph(self):
        self.write(self.photograph())
        names = ["case_areas.json", "case_overlay.png", "case_seg.png"]
        self.assertEqual(sorted(path.name for path in self.out.iterdir()), names)
        with Image.open(self.out / "case_seg.png") as file:
            self.assertEqual((file.mode, file.size), ("L", (COLUMNS, ROWS)))
            np.testing.assert_array_equal(np.asarray(file), np.where(MASK == 1, 255, 0))
        facts = json.loads((self.out / "case_areas.json").read_text())
        self.assertEqual(facts, {"name": "case", "rows_columns": [17, 23], "areas_pixels": {"lesion": 44}})
        again = LoadImage2D(num_classes=2)(str(self.out / "case_seg.png"))
        np.testing.assert_array_equal(again[0], MASK == 1)

    def test_several_labels(self):
        self.write(self.photograph(), MASK, ["background", "lesion", "ruler"])
        np.testing.assert_array_equal(self.png(), MASK)
        areas = json.loads((self.out / "case_areas.json").read_text())["areas_pixels"]
        self.assertEqual(areas, {"lesion": 44, "ruler": 6})
        again = LoadImage2D(num_classes=3)(str(self.out / "case_seg.png"))
        np.testing.assert_array_equal(again[0], MASK)

    def test_turned_photograph(self):
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees to the right
        Image.fromarray(np.ascontiguousarray(np.rot90(COLOUR))).save(self.root / "a.png", exif=exif)
        self.write(self.root / "a.png")
        np.testing.assert_array_equal(self.png(), np.where(MASK == 1, 255, 0))

    @parameterized.expand(LAYOUTS)
    def test_nifti(self, _, affine, stored):
        grey = COLOUR[..., 0]
        nib.save(nib.Nifti1Image(np.ascontiguousarray(stored(grey)), affine), self.root / "a.nii.gz")
        np.testing.assert_array_equal(LoadImage2D()(str(self.root / "a.nii.gz"))[0], grey)
        self.write(self.root / "a.nii.gz", output_format="nifti")
        written, source = nib.load(self.out / "case_seg.nii.gz"), nib.load(self.root / "a.nii.gz")
        np.testing.assert_allclose(written.affine, source.affine, atol=1e-6)
        self.assertEqual(written.get_data_dtype(), np.uint8)
        found = np.asarray(written.dataobj)
        np.testing.assert_array_equal(found.reshape(source.shape), stored(MASK == 1))
        self.assertFalse((self.out / "case_seg.png").exists())
        self.assertEqual(sitk.ReadImage(str(self.out / "case_seg.nii.gz")).GetDimension(), 3)

    def test_unknown_format(self):
        with self.assertRaisesRegex(InputError, "output_format must be of nifti, png, got dicom_seg"):
            MaskWriter(self.out, LABELS, output_format="dicom_seg")


class TestOutlines(unittest.TestCase):
    def draw(self, mask: np.ndarray) -> np.ndarray:
        figure = plot_outlines(np.full((ROWS, COLUMNS, 3), 7.0), mask, {1: "lesion"}, "a $title_")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
        box = figure.axes[1].get_window_extent()
        return pixels[round(len(pixels) - box.y1) : round(len(pixels) - box.y0), round(box.x0) : round(box.x1)]

    def test_outline_is_where_the_mask_ends(self):
        panel = self.draw((MASK == 1).astype(np.uint8))
        rows, columns = np.nonzero((panel != panel[0, 0]).any(axis=-1))
        scale = np.array(panel.shape[:2]) / MASK.shape
        np.testing.assert_allclose(np.array([rows.min(), rows.max()]) / scale[0], [2, 6], atol=0.3)
        np.testing.assert_allclose(np.array([columns.min(), columns.max()]) / scale[1], [3, 14], atol=0.3)

    def test_nothing_and_everything(self):
        self.assertFalse((self.draw(np.zeros_like(MASK)) != self.draw(np.zeros_like(MASK))[0, 0]).any())
        self.draw(np.ones_like(MASK))


if __name__ == "__main__":
    unittest.main()
