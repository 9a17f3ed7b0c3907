# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import unittest
from types import SimpleNamespace

import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from monai.data import MetaTensor
from parameterized import parameterized
from scipy.spatial.transform import Rotation
from utils_data import AFFINE_RAS, temporary_folder

from monai_dvpt.handlers import CaseWriter, label_volumes_ml, plot_overlay

SHAPE = (18, 14, 10)
LABELS = ["background", "anterior", "posterior"]
OBLIQUE = nib.affines.from_matvec(Rotation.from_euler("x", 25, degrees=True).as_matrix() * (0.8, 1.1, 2.5), (5, -6, 7))
AFFINES = [
    ("identity", np.eye(4)),
    ("left-handed, anisotropic", AFFINE_RAS),
    ("LPS", np.diag([-1.5, -1, 2.5, 1])),
    ("axes permuted", np.array([[0, 0, -2, 4], [1.5, 0, 0, 5], [0, 3, 0, 6], [0, 0, 0, 1.0]])),
    ("oblique", OBLIQUE),
]


def volumes(affine: np.ndarray, empty: bool = False) -> tuple[MetaTensor, MetaTensor]:
    """An image, and a label map as the bundle's postprocessing leaves it."""
    image = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)
    label_map = np.zeros((1, *SHAPE), np.uint8)
    if not empty:
        label_map[0, 3:7, 4:11, 2:5], label_map[0, 7:9, 4:11, 2:5] = 1, 2
    return tuple(MetaTensor(volume, affine=affine) for volume in (image, label_map))


def draw(*args) -> tuple[np.ndarray, list]:
    """Pixels (rows from the top, columns, RGB) of the figure, and its three panels."""
    figure = plot_overlay(*args)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int), figure.axes


def crop(pixels: np.ndarray, panel) -> np.ndarray:
    """The pixels of one panel."""
    box = panel.get_window_extent()
    top, bottom = pixels.shape[0] - box.y1, pixels.shape[0] - box.y0
    return pixels[round(top) : round(bottom), round(box.x0) : round(box.x1)]


class TestCaseWriter(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)

    def write(self, affine: np.ndarray, empty: bool = False, name: str = "case") -> MetaTensor:
        image, pred = volumes(affine, empty)
        state = SimpleNamespace(batch=[{"name": name}], output=[{"image": image, "pred": pred}])
        CaseWriter(self.root / "out", LABELS).write(SimpleNamespace(state=state))
        return pred

    @parameterized.expand([(*case, empty) for case in AFFINES for empty in (False, True)])
    def test_files(self, _, affine, empty):
        pred = self.write(affine, empty)
        names = ["case_overlay.png", "case_seg.nii.gz", "case_volumes.json"]
        self.assertEqual(sorted(path.name for path in (self.root / "out").iterdir()), names)

        label_map = nib.load(self.root / "out" / "case_seg.nii.gz")
        self.assertEqual((label_map.get_data_dtype(), label_map.shape), (np.uint8, SHAPE))
        np.testing.assert_array_equal(np.asarray(label_map.dataobj), pred.numpy()[0])
        np.testing.assert_allclose(label_map.affine, affine, atol=1e-6)
        self.assertEqual(label_map.header.get_xyzt_units()[0], "mm")

        written = json.loads((self.root / "out" / "case_volumes.json").read_text())
        voxel_ml = np.prod(np.linalg.norm(affine[:3, :3], axis=0)) / 1000
        expected = {name: (pred.numpy() == value).sum() * voxel_ml for value, name in enumerate(LABELS) if value}
        self.assertEqual(written["name"], "case")
        self.assertEqual(set(written["volumes_ml"]), set(expected))
        for name, volume in expected.items():
            self.assertAlmostEqual(written["volumes_ml"][name], volume, places=6)

        picture = imread(self.root / "out" / "case_overlay.png")
        self.assertGreater(min(picture.shape[:2]), 300)
        self.assertGreater(len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)), 10)

    @parameterized.expand(AFFINES)
    def test_uncertainty(self, _, affine):
        image, pred = volumes(affine)
        values = np.random.default_rng(1).random((1, *SHAPE)).astype(np.float32)
        output = {"image": image, "pred": pred, "uncertainty": MetaTensor(values, affine=affine)}
        state = SimpleNamespace(batch=[{"name": "case"}], output=[output])
        CaseWriter(self.root / "out", LABELS, "uncertainty").write(SimpleNamespace(state=state))
        names = ["case_overlay.png", "case_uncertainty.nii.gz", "case_volumes.json"]
        self.assertEqual(sorted(path.name for path in (self.root / "out").iterdir()), names)
        written = nib.load(self.root / "out" / "case_uncertainty.nii.gz")
        self.assertEqual(written.get_data_dtype(), np.float32)
        np.testing.assert_array_equal(written.get_fdata(dtype=np.float32), values[0])
        np.testing.assert_allclose(written.affine, affine, atol=1e-6)

    def test_name_may_look_like_mathematics(self):
        self.write(np.eye(4), name="scan_$x^$")
        self.assertTrue((self.root / "out" / "scan_$x^$_seg.nii.gz").is_file())


class TestLabelVolumes(unittest.TestCase):
    def test_by_hand(self):
        label_map = np.zeros((4, 5, 6), np.uint8)
        label_map[:2, :2, :2] = 3
        found = label_volumes_ml(label_map, AFFINE_RAS, {1: "absent", 3: "cube"})
        self.assertEqual(found, {"absent": 0.0, "cube": 8 * 24 / 1000})  # 8 voxels of 2 x 3 x 4 mm


class TestPlotOverlay(unittest.TestCase):
    LABELS = {1: "anterior", 2: "posterior"}
    VOLUMES = {"anterior": 1.0, "posterior": 2.0}

    def plot(self, image: MetaTensor, label_map: MetaTensor) -> tuple[np.ndarray, list]:
        return draw(image, label_map, self.LABELS, self.VOLUMES, "case")

    @parameterized.expand(AFFINES)
    def test_sides_of_the_patient(self, _, affine):
        """A bright corner, right, front and top of the patient, is where a radiologist expects it."""
        points = nib.affines.apply_affine(affine, np.moveaxis(np.indices(SHAPE), 0, -1))
        towards = (points - points.mean(axis=(0, 1, 2))) / np.ptp(points, axis=(0, 1, 2))
        corner = (towards > 0.1).all(axis=-1)[None]
        image, label_map = (MetaTensor(corner.astype(dtype), affine=affine) for dtype in (np.float32, np.uint8))
        pixels, panels = self.plot(image, label_map)
        self.assertEqual([panel.get_title() for panel in panels], ["axial", "coronal", "sagittal"])
        for panel, (right, up) in zip(panels, ((-1, 1), (-1, 1), (1, 1)), strict=True):
            inner = crop(pixels, panel)
            row, column = np.argwhere(inner.max(axis=-1) > 100).mean(axis=0) - np.array(inner.shape[:2]) / 2
            self.assertEqual((np.sign(column), np.sign(row)), (right, -up), panel.get_title())

    @parameterized.expand(AFFINES[:4])
    def test_true_proportions(self, _, affine):
        _, panels = self.plot(*volumes(affine))
        volume = nib.as_closest_canonical(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), affine))
        x, y, z = np.array(volume.shape) * volume.header.get_zooms()  # mm
        for panel, (across, up) in zip(panels, ((x, y), (x, z), (y, z)), strict=True):
            box = panel.get_window_extent()
            self.assertAlmostEqual(box.width / box.height, across / up, delta=0.02 * across / up)

    def test_each_label_has_its_colour(self):
        image, label_map = volumes(AFFINE_RAS)
        pixels, panels = self.plot(image * 0 + 1e-3 * image, label_map)
        for panel in panels[:2]:
            inner = crop(pixels, panel)
            blue = (inner[..., 2] - inner[..., 0]) > 60
            orange = (inner[..., 0] - inner[..., 2]) > 60
            self.assertTrue(blue.any() and orange.any())

    def test_no_label_means_no_colour(self):
        pixels, panels = self.plot(*volumes(AFFINE_RAS, empty=True))
        for panel in panels:
            inner = crop(pixels, panel)
            np.testing.assert_array_equal(inner[..., 0], inner[..., 2])
            self.assertGreater(len(np.unique(inner)), 10)

    @parameterized.expand(
        [
            ("one voxel", (slice(3, 4), slice(4, 5), slice(5, 6))),
            ("one plane", (3,)),
            ("everything", ()),
            ("at the edge", (slice(None), slice(0, 1))),
        ]
    )
    def test_odd_label_maps(self, _, where):
        image, label_map = volumes(AFFINE_RAS, empty=True)
        label_map[(0, *where)] = 1
        pixels, panels = self.plot(image, label_map)
        self.assertGreater(np.ptp(crop(pixels, panels[0]), axis=-1).max(), 20)

    def test_single_slice(self):
        image, label_map = volumes(AFFINE_RAS)
        pixels, panels = self.plot(image[..., 3:4], label_map[..., 3:4])
        self.assertGreater(np.ptp(crop(pixels, panels[0]), axis=-1).max(), 20)

    def test_constant_image(self):
        image, label_map = volumes(AFFINE_RAS)
        self.plot(image * 0, label_map)


if __name__ == "__main__":
    unittest.main()
