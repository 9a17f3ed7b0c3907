# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import unittest
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import torch
from matplotlib.image import imread
from monai.data import MetaTensor
from parameterized import parameterized
from PIL import Image
from utils_data import AFFINE_RAS, dice, temporary_folder

from monai_dvpt.handlers import GradePictures, SegmentationPictures
from monai_dvpt.metrics import HausdorffDistanceMm
from monai_dvpt.transforms import GradeLogitsd
from monai_dvpt.utils.label_sets import UNKNOWN
from monai_dvpt.visualize import label_colour

SHAPE = (18, 14, 10)
LABELS = ["background", "anterior", "posterior"]
HOSTILE = '<script>alert("Müller")</script>'
PERMUTED = np.array([[0, 0, -5, 4], [1.5, 0, 0, 5], [0, 3, 0, 6], [0, 0, 0, 1.0]])  # slices are sagittal


def truth() -> np.ndarray:
    label_map = np.zeros(SHAPE, np.uint8)
    label_map[3:9, 4:9, 2:6], label_map[9:11, 4:9, 2:4] = 1, 2
    label_map[3:13, 4:9, 3] = 1  # the largest cross-section
    return label_map


def shifted(by: int) -> np.ndarray:
    return np.roll(truth(), by, axis=1)


def segmented(path: str, label: np.ndarray, pred: np.ndarray, affine: np.ndarray = AFFINE_RAS) -> dict:
    """The output of an evaluator for one case."""
    image = np.random.default_rng(0).normal(size=(1, *label.shape)).astype(np.float32)
    maps = {
        key: MetaTensor((np.arange(3)[:, None, None, None] == each[None]).astype(np.float32), affine=affine)
        for key, each in (("label", label), ("pred", pred))
    }
    return {"image": MetaTensor(image, affine=affine, meta={"filename_or_obj": path}), **maps}


def run(handler, batches) -> None:
    """What an evaluator does; each batch is of pairs of a case and its output."""
    if isinstance(handler, SegmentationPictures):
        handler.reset(None)
    for batch in filter(None, batches):
        cases, outputs = zip(*batch, strict=True)
        handler.add(SimpleNamespace(state=SimpleNamespace(batch=list(cases), output=list(outputs))))
    handler.write(None)


class PicturesTestCase(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)

    def index(self) -> dict:
        return json.loads((self.root / "pictures" / "index.json").read_text(encoding="utf-8"))

    def groups(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for entry in self.index()["cases"]:
            self.assertTrue((self.root / "pictures" / entry["file"]).is_file())
            found.setdefault(entry["group"], []).append(entry["name"])
        return found


class TestSegmentationPictures(PicturesTestCase):
    def write(self, outputs: list[dict], **arguments) -> None:
        run(SegmentationPictures(self.root, LABELS, **arguments), [[({}, output)] for output in outputs])

    def pixels(self, file: str) -> np.ndarray:
        return (255 * imread(self.root / "pictures" / file)[..., :3]).round().astype(int)

    def colour(self, value: int) -> np.ndarray:
        text = label_colour(value)
        return np.array([int(text[place : place + 2], 16) for place in (1, 3, 5)])

    def test_ranks_are_by_dice(self):
        shifts = [3, 0, 5, 1, 4, 2, 6, 7, 8, 9]
        self.write([segmented(f"/data/x/{by}.nii.gz", truth(), shifted(by)) for by in shifts])
        scores = {str(by): np.mean([dice(truth(), shifted(by), value) for value in (1, 2)]) for by in shifts}
        ranked = sorted(scores, key=scores.get, reverse=True)
        self.assertEqual(set(scores), {str(by) for by in range(10)})
        groups = self.groups()
        self.assertEqual(list(groups), ["best", "median", "worst"])
        self.assertEqual(groups["best"], ranked[:3])
        self.assertEqual([scores[name] for name in groups["median"]], [scores[name] for name in ranked[3:6]])
        self.assertEqual([scores[name] for name in groups["worst"]], [scores[name] for name in ranked[7:]])
        for entry in self.index()["cases"]:
            expected = {label: dice(truth(), shifted(int(entry["name"])), v) for v, label in enumerate(LABELS[1:], 1)}
            for label, value in expected.items():
                self.assertAlmostEqual(entry["dice"][label], value, 5)
            self.assertAlmostEqual(entry["mean_dice"], scores[entry["name"]], 5)
            self.assertEqual(scores[ranked[entry["rank"] - 1]], scores[entry["name"]])
        self.assertEqual(self.index()["scored"], 10)
        self.assertNotIn("/data", (self.root / "pictures" / "index.json").read_text())

    def test_labels_that_one_side_lacks(self):
        no_posterior, nothing = np.where(truth() == 2, 0, truth()), np.zeros_like(truth())
        unknown = segmented("/d/unknown.nii.gz", no_posterior, truth())
        unknown["label"].meta[UNKNOWN] = [2]
        outputs = [
            segmented("/d/both.nii.gz", truth(), shifted(1)),
            segmented("/d/missed.nii.gz", truth(), no_posterior),
            segmented("/d/found.nii.gz", no_posterior, truth()),
            segmented("/d/neither.nii.gz", no_posterior, no_posterior),
            segmented("/d/empty.nii.gz", nothing, shifted(1)),
            unknown,
        ]
        with self.assertLogs("monai_dvpt.handlers.case_pictures", "WARNING") as logged:
            self.write(outputs)
        found = {(each["name"], each["label"], each["missing_in"]) for each in self.index()["missing"]}
        expected = {("missed", "posterior", "answer"), ("found", "posterior", "truth")}
        expected |= {("empty", label, "truth") for label in LABELS[1:]}
        self.assertEqual(found, expected)
        self.assertIn(
            "posterior in the answer: 1, posterior in the truth: 2, anterior in the truth: 1", logged.output[0]
        )
        diagonal = float(np.linalg.norm(np.array(SHAPE) * np.linalg.norm(AFFINE_RAS[:3, :3], axis=0)))
        metric = HausdorffDistanceMm(include_background=False, percentile=95)
        for output in outputs:
            name = Path(output["image"].meta["filename_or_obj"]).name.removesuffix(".nii.gz")
            measured = metric([output["pred"]], [output["label"]])[0].tolist()
            for label, value in zip(LABELS[1:], measured, strict=True):
                self.assertEqual(abs(value - diagonal) < 1e-3, any(each[:2] == (name, label) for each in found))
        with self.assertNoLogs("monai_dvpt.handlers.case_pictures", "WARNING"):
            self.write(outputs[:1])
        self.assertEqual(self.index()["missing"], [])

    def test_the_first_of_several_channels_is_shown(self):
        output = segmented("/data/a.nii.gz", truth(), shifted(1))
        self.write([output])
        (entry,) = self.index()["cases"]
        alone = self.pixels(entry["file"])
        image = output["image"]
        more = torch.cat([image.as_tensor(), 1e4 * torch.rand(2, *SHAPE)])
        self.write([{**output, "image": MetaTensor(more, meta=image.meta)}])
        (entry,) = self.index()["cases"]
        np.testing.assert_array_equal(self.pixels(entry["file"]), alone)
        self.assertGreater(np.ptp(alone), 50)

    @parameterized.expand([(1,), (2,), (3,), (4,), (5,), (8,), (9,), (20,)])
    def test_few_cases(self, count):
        self.write([segmented(f"/d/{by}.nii.gz", truth(), shifted(by % 7)) for by in range(count)])
        groups = self.groups()
        names = [name for group in groups.values() for name in group]
        self.assertEqual(len(names), len(set(names)))
        self.assertEqual(len(names), {1: 1, 2: 2}.get(count, 3 * min(3, count // 3)))
        self.assertIn("best", groups)

    def test_slice_of_the_scan(self):
        """The plane across the thickest voxel side, and in it the slice with most of truth and answer."""
        self.write([segmented("/d/a.nii.gz", truth(), shifted(1))])
        (entry,) = self.index()["cases"]
        union = (truth() > 0) | (shifted(1) > 0)
        self.assertEqual((entry["plane"], entry["slices"]), ("axial", SHAPE[2]))
        self.assertEqual(entry["slice"], 1 + int(union.sum(axis=(0, 1)).argmax()))
        self.write([segmented("/d/a.nii.gz", truth(), truth(), PERMUTED)])
        (entry,) = self.index()["cases"]
        self.assertEqual((entry["plane"], entry["slices"]), ("sagittal", SHAPE[2]))
        turned = nib.as_closest_canonical(nib.Nifti1Image(truth(), PERMUTED)).get_fdata()
        self.assertEqual(entry["slice"], 1 + int((turned > 0).sum(axis=(1, 2)).argmax()))

    def test_contours_lie_where_the_labels_are(self):
        """The patient's right is on the left, anterior on top; AFFINE_RAS has x to the left."""
        pred = np.zeros_like(truth())
        pred[12:16, 10:13, 3] = 2  # more to the patient's right, and more anterior
        self.write([segmented("/d/a.nii.gz", truth(), pred)])
        pixels = self.pixels("best_1.png")
        near = [np.argwhere(np.abs(pixels - self.colour(value)).sum(axis=-1) < 12) for value in (1, 2)]
        self.assertGreater(min(map(len, near)), 20)
        (row_1, column_1), (row_2, column_2) = (each.mean(axis=0) for each in near)
        self.assertGreater(row_1, row_2)
        world = [
            nib.affines.apply_affine(AFFINE_RAS, np.argwhere(each)).mean(axis=0) for each in (truth() == 1, pred == 2)
        ]
        self.assertEqual(column_1 > column_2, world[0][0] < world[1][0])
        self.assertGreater(world[1][1], world[0][1])
        # white cores of the dashes of the answer alone, next to its colour
        white = np.argwhere((pixels > 245).all(axis=-1) & (np.arange(pixels.shape[0]) < near[1][:, 0].max())[:, None])
        distances = np.abs(white[:, None] - near[1][None]).sum(axis=-1).min(axis=1)
        self.assertGreater((distances <= 3).sum(), 10)

    def test_proportions(self):
        self.write([segmented("/d/a.nii.gz", truth(), truth())])
        rows, columns = self.pixels("best_1.png").shape[:2]
        inside = np.argwhere(truth()[..., 3] > 0)
        sides = [
            min(inside[:, axis].max() + 1 + pad, SHAPE[axis]) - max(inside[:, axis].min() - pad, 0)
            for axis, pad in ((0, int(0.25 * SHAPE[0]) + 1), (1, int(0.25 * SHAPE[1]) + 1))
        ]
        self.assertAlmostEqual(rows / columns, 3 * sides[1] / (2 * sides[0]), delta=0.03)

    def test_cases_without_a_label(self):
        empty = np.zeros_like(truth())
        part = np.where(truth() == 2, 0, truth())
        self.write([segmented("/d/x/empty.nii.gz", empty, truth()), segmented("/d/part.nii.gz", part, truth())])
        index = self.index()
        self.assertEqual(index["scored"], 1)
        (entry,) = index["cases"]
        self.assertEqual((entry["name"], entry["dice"]["posterior"]), ("part", None))
        self.write([segmented("/d/empty.nii.gz", empty, truth())])
        self.assertEqual(self.index()["cases"], [])
        self.assertEqual([path.name for path in (self.root / "pictures").iterdir()], ["index.json"])

    def test_names(self):
        """Files are named after their group; a case after its path below the folder of all."""
        paths = [f"/home/meier/data/{folder}/image.nii.gz" for folder in ("one", HOSTILE.replace("/", "|"))]
        self.write([segmented(path, truth(), shifted(by)) for by, path in enumerate(paths)])
        self.assertEqual(
            sorted(path.name for path in (self.root / "pictures").iterdir()),
            ["best_1.png", "index.json", "worst_1.png"],
        )
        names = [entry["name"] for entry in self.index()["cases"]]
        self.assertEqual(names, ["one_image", HOSTILE.replace("/", "|") + "_image"])

    def test_image_on_another_grid_is_refused(self):
        output = segmented("/d/a.nii.gz", truth(), truth())
        output["image"] = output["image"][:, 1:]
        with self.assertRaisesRegex(
            ValueError, r"image must be on the grid of the label.*\(18, 14, 10\).*\(17, 14, 10\)"
        ):
            self.write([output])

    def test_pictures(self):
        """A picture is shown as in its file, whatever the network saw."""
        rows, columns = 40, 60
        pixels = np.zeros((rows, columns, 3), np.uint8)
        pixels[:20] = (200, 30, 30)
        Image.fromarray(pixels).save(self.root / "a.png")
        mask = np.zeros((rows, columns), int)
        mask[10:30, 20:40] = 1
        maps = torch.tensor(np.stack([mask == value for value in range(3)])).float()
        image = MetaTensor(torch.zeros(3, 16, 16), meta={"filename_or_obj": str(self.root / "a.png")})
        run(SegmentationPictures(self.root, LABELS), [[({}, {"image": image, "pred": maps, "label": maps})]])
        (entry,) = self.index()["cases"]
        self.assertNotIn("plane", entry)
        shown = self.pixels("best_1.png")
        self.assertGreater(shown[3, 3, 0], 220)
        self.assertLess(shown[3, 3, 1], 60)
        self.assertLess(shown[-3, -3].max(), 10)

    def test_count(self):
        with self.assertRaisesRegex(ValueError, "count must be"):
            SegmentationPictures(self.root, LABELS, count=0)
        self.write([segmented(f"/d/{by}.nii.gz", truth(), shifted(by)) for by in range(6)], count=1)
        self.assertEqual(
            {group: len(names) for group, names in self.groups().items()}, dict.fromkeys(("best", "median", "worst"), 1)
        )


class TestGradePictures(PicturesTestCase):
    def output(self, probability, label: int, volume: bool = False) -> dict:
        if volume:
            image = MetaTensor(torch.rand(1, *SHAPE), affine=AFFINE_RAS)
        else:
            path = self.root / "image.png"
            Image.fromarray(np.arange(20 * 30, dtype=np.uint8).reshape(20, 30)).save(path)
            image = MetaTensor(torch.zeros(3, 8, 8), meta={"filename_or_obj": str(path)})
        logits = torch.tensor(probability).log()
        return GradeLogitsd("pred", 3)({"pred": logits, "image": image, "label": torch.tensor([label])})

    def write(self, cases: dict[str, tuple], **arguments) -> None:
        batch = [({"name": name}, self.output(*case)) for name, case in cases.items()]
        run(GradePictures(self.root, ["severity"], ["none", "mild", "severe"], **arguments), [batch[:2], batch[2:]])

    CASES = {
        "sure and right": ([0.9, 0.06, 0.04], 0),
        "unsure and right": ([0.36, 0.34, 0.3], 0),
        "one off": ([0.1, 0.8, 0.1], 0),
        "two off, surest": ([0.04, 0.06, 0.9], 0),
        "two off": ([0.1, 0.1, 0.8], 0),
        "not graded": ([0.1, 0.1, 0.8], -1),
        HOSTILE: ([0.05, 0.9, 0.05], 1),
    }

    def test_groups(self):
        self.write(self.CASES, count=2)
        groups = self.groups()
        self.assertEqual(groups["most wrong"], ["two off, surest", "two off"])
        self.assertEqual(groups["least certain"], ["unsure and right", "one off"])
        self.assertEqual(set(groups["most certain"]), {"sure and right", HOSTILE})
        index = self.index()
        self.assertEqual((index["scored"], index["ordered"], index["kind"]), (6, True, "grades"))
        first = index["cases"][0]
        self.assertEqual((first["file"], first["label"], first["answer"]), ("most_wrong_1.png", "none", "severe"))
        self.assertAlmostEqual(first["confidence"], 0.9, 5)
        self.assertEqual(list(first["probabilities"]), ["none", "mild", "severe"])
        with Image.open(self.root / "pictures" / "most_wrong_1.png") as shown:
            self.assertEqual((shown.size, shown.mode), ((30, 20), "RGB"))

    def test_classes_have_no_distance(self):
        self.write(self.CASES, count=1, ordered=False)
        self.write({"two off": ([0.1, 0.1, 0.8], 0), "one off": ([0.04, 0.92, 0.04], 0)}, count=1, ordered=False)
        self.assertEqual(self.groups()["most wrong"], ["one off"])

    def test_many_cases(self):
        """Only as many are kept as may be shown; the result is that of sorting all."""
        generator = np.random.default_rng(0)
        cases = {
            f"case {index}": (generator.dirichlet([1, 1, 1]).tolist(), int(generator.integers(3)))
            for index in range(60)
        }
        handler = GradePictures(self.root, ["severity"], ["none", "mild", "severe"])
        run(handler, [[({"name": name}, self.output(*case))] for name, case in cases.items()])
        errors = {name: (abs(int(np.argmax(p)) - label), max(p)) for name, (p, label) in cases.items()}
        expected = sorted(errors, key=errors.get, reverse=True)[:3]
        groups = self.groups()
        self.assertEqual(groups["most wrong"], expected)
        unsure = [name for name in sorted(cases, key=lambda name: max(cases[name][0])) if name not in expected]
        self.assertEqual(groups["least certain"], unsure[:3])

    def test_volume(self):
        self.write({"volume": ([0.1, 0.1, 0.8], 0, True)})
        with Image.open(self.root / "pictures" / "most_wrong_1.png") as shown:
            self.assertEqual(shown.mode, "L")
            self.assertAlmostEqual(shown.height / shown.width, SHAPE[1] * 3 / (SHAPE[0] * 2), delta=0.02)

    def test_an_evaluation_replaces_the_pictures_of_the_one_before(self):
        self.write(self.CASES)
        self.assertGreater(len(list((self.root / "pictures").glob("*.png"))), 1)
        (self.root / "pictures" / "mine.png").write_bytes(b"")
        self.write({"one": ([0.9, 0.06, 0.04], 0)})
        names = sorted(Path(path).name for path in (self.root / "pictures").iterdir())
        self.assertEqual(names, ["index.json", "least_certain_1.png", "mine.png"])


if __name__ == "__main__":
    unittest.main()
