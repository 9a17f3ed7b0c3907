# SPDX-License-Identifier: Apache-2.0
"""Bundles as they are written: checked as the repository's own are, and trained, scored and used on small images."""

from __future__ import annotations

import csv
import json
import unittest
from pathlib import Path
from unittest.mock import patch

import nibabel as nib
import numpy as np
import pydicom
import torch
import yaml
from monai.bundle import ckpt_export, onnx_export
from monai.networks.nets import ViT
from monai.utils import optional_import
from PIL import Image
from utils_bundles import (
    check_files,
    check_labels,
    check_metadata,
    check_network,
    preparations,
    read_metrics,
    unused_keys,
    workflow,
)
from utils_data import save_dicom, save_nifti, temporary_folder
from utils_dicom import validator_errors
from utils_networks import randomise

from monai_dvpt.apps.new_bundle.check import measure_cases
from monai_dvpt.apps.new_bundle.model import IGNORED, Case, Collection, Finding
from monai_dvpt.apps.new_bundle.plan import make_plan
from monai_dvpt.apps.new_bundle.write import write_bundle
from monai_dvpt.data import load_datalist, load_gradelist, load_masklist
from monai_dvpt.transforms import LoadVolume
from monai_dvpt.utils import InputError

onnxruntime, has_onnxruntime = optional_import("onnxruntime")
_, has_onnxscript = optional_import("onnxscript")

PARTS = {"training": [0, 1, 2], "validation": [3]}
# an oblique, left-handed grid: 0.9 x 1.1 x 1.2 mm, turned by 0.2 rad
TURN = np.array([[np.cos(0.2), -np.sin(0.2), 0.0], [np.sin(0.2), np.cos(0.2), 0.0], [0.0, 0.0, 1.0]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = TURN @ np.diag([-0.9, 1.1, 1.2])
AFFINE[:3, 3] = [12.0, -34.0, 5.0]
SHAPE = (20, 24, 16)
NAMES = {7: "Lesion, left", 3: "organ"}  # as a file has them


def label_of(index: int) -> np.ndarray:
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    label = np.zeros(SHAPE, np.int64)
    label[(((grid - (7 + index, 12, 8)) / (4, 7, 5)) ** 2).sum(axis=-1) < 1] = 3
    label[(((grid - (15, 10 + index, 7)) / (3, 5, 4)) ** 2).sum(axis=-1) < 1] = 7
    return label


def volumes(root: Path, count: int = 4, labels=("organ", "Lesion, left"), **facts) -> Collection:
    """Bright ellipsoids on noise."""
    cases = []
    for index in range(count):
        label = label_of(index)
        image = 100 + 20.0 * label + np.random.default_rng(index).normal(0, 5, SHAPE)
        path = save_nifti(root / "scans" / f"{index}.nii.gz", image.astype(np.float32), AFFINE)
        cases.append(Case(f"scans_{index}", str(path), lambda image, label=label: (label, NAMES), **facts))
    return Collection("segmentation", 3, root, cases, list(labels))


def pictures(root: Path, count: int = 12) -> list[tuple[Path, np.ndarray]]:
    """Skin with a dark ellipse, and where it is; of several sizes."""
    made = []
    (root / "photos").mkdir(parents=True)
    for index in range(count):
        rows, columns = ((37, 44), (61, 40), (56, 56))[index % 3]
        y, x = np.mgrid[:rows, :columns]
        inside = ((y - rows / 2) / (0.3 * rows)) ** 2 + ((x - columns / 2) / (0.25 * columns)) ** 2 < 1
        noise = np.random.default_rng(index).normal(0, 8, (rows, columns, 3))
        pixels = np.array([210, 150, 130]) - (60 + 20 * (index % 3)) * inside[..., None] + noise
        path = root / "photos" / f"{index}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        made.append((path, inside))
    return made


def save_series(folder: Path, seed: int) -> list[Path]:
    """A DICOM series of noise."""
    values = np.random.default_rng(seed).integers(0, 900, SHAPE).astype(np.uint16)
    save_dicom(folder, values, np.eye(3), np.array([10.0, 20.0, 30.0]), (1.0, 1.0, 1.5))
    return sorted(folder.iterdir())


def write_vit(path: Path) -> Path:
    """Random weights, 192 wide, of a 2D ViT with patches of 16 pixels."""
    torch.manual_seed(0)
    net = ViT(3, 224, 16, 192, 768, num_layers=3, num_heads=3, classification=True, spatial_dims=2, qkv_bias=True)
    torch.save(net.state_dict(), path)
    return path


def write(output: Path, collection: Collection, parts=PARTS, backbone=None, findings=()) -> Path:
    measured, found = measure_cases(collection)
    assert not found, found
    plan = make_plan(collection, measured, parts, backbone, None)
    write_bundle(output, collection, measured, plan, parts, findings)
    return output


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


class WrittenBundle(unittest.TestCase):
    """What the tests of the repository's bundles ask of each."""

    bundle: Path
    root: Path

    def check_written(self) -> None:
        bundle = self.bundle
        check_files(self, bundle)
        check_labels(self, bundle)
        self.assertEqual(*preparations(bundle))
        for config in sorted((bundle / "configs").glob("*.yaml")):
            self.assertEqual(unused_keys(config), [], config)
            text = config.read_text()
            self.assertNotRegex(text, r"\{%|\{\{|\n\n\n| \n|^\n", config)
            self.assertTrue(text.endswith("\n") and not text.endswith("\n\n"), config)
        self.assertEqual(self.flow("train", "train").check_properties(), [])
        self.check_export(check_network(bundle, self.root))
        check_metadata(self, bundle)  # or skips where there is no schema

    def check_export(self, adapter: Path) -> None:
        """TorchScript and ONNX give what the network gives; that of the bundle has random weights of its own."""
        config, meta = (str(self.bundle / "configs" / name) for name in ("inference.yaml", "metadata.json"))
        weights, scripted, onnx = (str(self.root / name) for name in ("model.pt", "model.ts", "model.onnx"))
        infer = self.flow("inference", "infer", adapter_path=str(adapter))
        network = randomise(infer.parser.get_parsed_content("network_def"), seed=3).eval()
        torch.save(network.state_dict(), weights)
        described = json.loads(Path(meta).read_text())["network_data_format"]["inputs"]["image"]
        shape = (1, described["num_channels"], *described["spatial_shape"])
        image = torch.randn(shape, generator=torch.Generator().manual_seed(4))
        with torch.no_grad():
            expected = network(image)
        self.assertGreater(float(expected.std()), 1e-3)
        options = {"ckpt_file": weights, "meta_file": meta, "config_file": config}
        options |= {"bundle_root": str(self.bundle), "adapter_path": str(adapter)}
        ckpt_export("network_def", scripted, **options)
        with torch.no_grad():
            torch.testing.assert_close(torch.jit.load(scripted)(image), expected, rtol=1e-5, atol=1e-5)
        if not (has_onnxruntime and has_onnxscript):
            return
        converter = {"dynamo": True, "external_data": False, "input_names": ["image"], "output_names": ["pred"]}
        onnx_export("network_def", onnx, use_trace=True, converter_kwargs=converter, **options)
        session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        (pred,) = session.run(["pred"], {"image": image.numpy()})
        torch.testing.assert_close(torch.from_numpy(pred), expected, rtol=1e-4, atol=1e-4)

    def flow(self, config: str, kind: str, **settings):
        return workflow(self.bundle, config, kind, **settings)

    def run_all(self, inputs: Path, key: str, epochs: int = 2, **settings) -> dict[str, str]:
        """Trains, scores and infers with what the bundle says by itself; the scores of evaluation."""
        train = self.flow("train", "train", max_epochs=epochs, val_interval=1, **settings)
        train.run()
        train.finalize()
        losses = [float(row["loss"]) for row in rows_of(self.bundle / "output" / "train" / "history.csv")]
        self.assertEqual(len(losses), epochs)
        self.assertLess(losses[-1], losses[0])
        evaluate = self.flow("evaluate", "train")
        evaluate.run()
        evaluate.finalize()
        infer = self.flow("inference", "infer", dataset_dir=str(inputs))
        infer.run()
        infer.finalize()
        scores = read_metrics(self.bundle / "output" / "evaluate" / "metrics.csv")
        best = json.loads((self.bundle / "output" / "train" / "report.json").read_text())["best"]["metrics"]
        self.assertIn(key, scores)
        self.assertIn(key, best)
        return scores


class TestVolumes(WrittenBundle):
    @classmethod
    def setUpClass(cls):
        cls.root = temporary_folder(cls)
        cls.collection = volumes(cls.root / "data")
        findings = [Finding("few cases", "", "4 labelled cases: scores of so few cases vary by chance.")]
        cls.bundle = write(cls.root / "liver_ct", cls.collection, findings=findings)

    def test_it_passes_the_checks_of_every_bundle(self):
        self.check_written()

    def test_it_trains_scores_and_infers(self):
        self.run_all(self.root / "data" / "scans" / "0.nii.gz", "val_mean_dice", epochs=3)
        mask = nib.load(self.bundle / "output" / "inference" / "0_seg.nii.gz")
        self.assertEqual(mask.shape, SHAPE)
        np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-5)
        out = self.bundle / "output"
        exported = str(self.root / "model.ts")
        config, meta = (str(self.bundle / "configs" / name) for name in ("inference.yaml", "metadata.json"))
        options = {"ckpt_file": str(out / "train" / "model.pt"), "meta_file": meta, "config_file": config}
        adapter = str(out / "train" / "adapter_best.safetensors")
        ckpt_export("network_def", exported, adapter_path=adapter, bundle_root=str(self.bundle), **options)
        shape = json.loads(Path(meta).read_text())["network_data_format"]["inputs"]["image"]["spatial_shape"]
        self.assertEqual(tuple(torch.jit.load(exported)(torch.zeros(1, 1, *shape)).shape), (1, 3, *shape))
        study = self.root / "study"
        save_series(study, 0)
        given = {"output_format": ["nifti", "dicom_seg"], "output_dir": str(self.root / "out")}
        infer = self.flow("inference", "infer", dataset_dir=str(study), **given)
        infer.run()
        infer.finalize()
        (path,) = (self.root / "out").glob("*_seg.dcm")
        segments = pydicom.dcmread(path).SegmentSequence
        self.assertEqual([str(item.SegmentLabel) for item in segments], ["organ", "Lesion, left"])
        schemes = {item.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator for item in segments}
        self.assertEqual(schemes, {"99MONAIDVPT"})
        self.assertEqual(validator_errors(path), [])

    def test_label_maps_have_the_values_of_the_labels_on_the_grid_of_the_image(self):
        for index in range(4):
            written = nib.load(self.bundle / "labels" / f"scans_{index}.nii.gz")
            given = label_of(index)
            self.assertEqual(written.get_data_dtype(), np.uint8)
            np.testing.assert_allclose(written.affine, AFFINE, atol=1e-5)
            np.testing.assert_array_equal(np.asarray(written.dataobj), (given == 3) + 2 * (given == 7))

    def test_the_list_names_images_where_they_are(self):
        config = yaml.safe_load((self.bundle / "configs" / "train.yaml").read_text())
        self.assertEqual(config["dataset_dir"], str(self.root / "data"))
        listed = json.loads((self.bundle / "configs" / "datalist.json").read_text())
        self.assertEqual([case["image"] for case in listed["training"]], [f"scans/{i}.nii.gz" for i in range(3)])
        self.assertEqual(listed["validation"], [{"image": "scans/3.nii.gz", "label": "scans_3.nii.gz"}])
        cases = load_datalist(
            config["dataset_dir"], self.bundle / "configs" / "datalist.json", labels_dir=self.bundle / "labels"
        )
        self.assertEqual(cases["validation"][0]["image"], self.collection.cases[3].image)

    def test_plan_and_readme_say_why(self):
        plan = json.loads((self.bundle / "configs" / "plan.json").read_text())
        readme = (self.bundle / "docs" / "README.md").read_text()
        config = yaml.safe_load((self.bundle / "configs" / "train.yaml").read_text())
        for name in ("roi_size", "spacing_mm", "batch_size", "max_epochs", "learning_rates", "method"):
            self.assertEqual(config[name], plan[name]["value"])
            self.assertIn(plan[name]["reason"], readme)
        self.assertIn("few cases: 4 labelled cases", readme)

    def test_an_existing_output_is_refused(self):
        with self.assertRaisesRegex(InputError, "must not exist"):
            write(self.bundle, self.collection)

    def test_nothing_is_left_of_a_bundle_that_could_not_be_written(self):
        def fail(image):
            raise InputError("has no outline.")

        broken = volumes(self.root / "broken")
        measured, _ = measure_cases(broken)
        plan = make_plan(broken, measured, PARTS, None, None)
        broken.cases[2].read_label = fail
        output = self.root / "folder" / "bundle"
        with self.assertRaisesRegex(InputError, "scans_2: has no outline"):
            write_bundle(output, broken, measured, plan, PARTS)
        self.assertEqual(list(output.parent.iterdir()), [])
        with patch("monai_dvpt.apps.new_bundle.write.bundle._write", side_effect=KeyboardInterrupt):
            with self.assertRaises(KeyboardInterrupt):
                write_bundle(output, volumes(self.root / "data"), measured, plan, PARTS)
        self.assertEqual(list(output.parent.iterdir()), [])

    def test_a_name_that_a_config_would_run_is_refused(self):
        for name in ("$print(1)", "@labels", "%file", " ", "a\nb"):
            collection = volumes(self.root / "data", labels=("organ", name))
            with self.subTest(name), self.assertRaisesRegex(InputError, "name of a label must"):
                write(self.root / "unwritten", collection)
        self.assertFalse((self.root / "unwritten").exists())


class TestPartialLabels(unittest.TestCase):
    """Voxels of which the data do not say everything."""

    def setUp(self):
        self.root = temporary_folder(self)
        self.collection = volumes(self.root / "data")

    def values(self, bundle: Path, index: int) -> np.ndarray:
        return np.asarray(nib.load(bundle / "labels" / f"scans_{index}.nii.gz").dataobj)

    def sets(self, bundle: Path) -> list[list[str]]:
        config = yaml.safe_load((bundle / "configs" / "train.yaml").read_text())
        self.assertEqual(config["labels"], ["background", "organ", "Lesion, left"])
        self.assertIn("LabelSet", config["train"]["loss"]["_target_"])
        return config["label_sets"]

    def test_ignored_voxels_may_be_anything(self):
        label = label_of(0)
        label[0] = 9
        self.collection.cases[0].read_label = lambda image: (label, {**NAMES, 9: IGNORED})
        bundle = write(self.root / "bundle", self.collection)
        self.assertEqual(self.sets(bundle), [["background", "organ", "Lesion, left"]])
        np.testing.assert_array_equal(self.values(bundle, 0)[0], 3)
        self.assertEqual(set(np.unique(self.values(bundle, 0)[1:])), {0, 1, 2})
        self.assertEqual(set(np.unique(self.values(bundle, 1))), {0, 1, 2})

    def test_background_may_be_a_label_that_was_not_drawn(self):
        label = np.where(label_of(1) == 3, 3, 0)
        self.collection.cases[1].read_label = lambda image: (label, {3: "organ"})
        self.collection.cases[1].labelled = ["organ"]
        bundle = write(self.root / "bundle", self.collection)
        self.assertEqual(self.sets(bundle), [["background", "Lesion, left"]])
        np.testing.assert_array_equal(self.values(bundle, 1), np.where(label == 3, 1, 3))
        self.assertEqual(set(np.unique(self.values(bundle, 0))), {0, 1, 2})


class TestDicom(unittest.TestCase):
    """Images that are DICOM series, alone in a folder and beside another."""

    def test_a_series_is_listed_by_its_folder_or_by_its_files(self):
        root = temporary_folder(self)
        files = [save_series(root / "data" / "alone", 0), save_series(root / "data" / "both", 1)]
        moved = save_series(root / "more", 2)
        files.append([path.rename(root / "data" / "both" / f"second_{path.name}") for path in moved])

        def read_label(image):
            return np.ones(image.shape[1:], int), {1: "all"}

        cases = [Case(f"case{index}", list(map(str, paths)), read_label) for index, paths in enumerate(files)]
        collection = Collection("segmentation", 3, root / "data", cases, ["all"])
        bundle = write(root / "bundle", collection, {"training": [0, 1], "validation": [2]})
        listed = json.loads((bundle / "configs" / "datalist.json").read_text())
        self.assertEqual(listed["training"][0]["image"], "alone")
        self.assertEqual(len(listed["training"][1]["image"]), len(cases[1].image))
        loaded = load_datalist(root / "data", bundle / "configs" / "datalist.json", labels_dir=bundle / "labels")
        for entry, case in zip([*loaded["training"], *loaded["validation"]], cases, strict=True):
            image = LoadVolume()(entry["image"])
            np.testing.assert_array_equal(image, LoadVolume()(case.image))
            np.testing.assert_allclose(nib.load(entry["label"]).affine, image.affine, atol=1e-4)


class TestPictures(WrittenBundle):
    @classmethod
    def setUpClass(cls):
        cls.root = temporary_folder(cls)
        made = pictures(cls.root / "data")
        cls.masks = [inside for _, inside in made]
        cases = [
            Case(path.stem, str(path), lambda image, mask=mask: (mask.astype(int), {1: "lesion"}), patient=f"p{i // 2}")
            for i, (path, mask) in enumerate(made)
        ]
        cls.backbone = write_vit(cls.root / "vit.pt")
        collection = Collection("segmentation", 2, cls.root / "data", cases, ["lesion"])
        cls.parts = {"training": list(range(8)), "validation": [8, 9], "test": [10, 11]}
        cls.bundle = write(cls.root / "skin", collection, cls.parts, cls.backbone)

    def test_it_passes_the_checks_of_every_bundle(self):
        self.check_written()

    def test_it_trains_scores_and_infers(self):
        self.run_all(self.root / "data" / "photos" / "1.png", "val_mean_dice", batch_size=4)
        with Image.open(self.bundle / "output" / "inference" / "1_seg.png") as mask:
            self.assertEqual(mask.size, (40, 61))

    def test_masks_have_the_pixels_of_their_pictures(self):
        for index, mask in enumerate(self.masks):
            with Image.open(self.bundle / "labels" / f"{index}.png") as file:
                np.testing.assert_array_equal(np.asarray(file), mask)
        config, configs = yaml.safe_load((self.bundle / "configs" / "train.yaml").read_text()), self.bundle / "configs"
        listed = load_masklist(config["dataset_dir"], configs / "datalist.csv", labels_dir=self.bundle / "labels")
        self.assertEqual(
            {part: len(cases) for part, cases in listed.items()}, {k: len(v) for k, v in self.parts.items()}
        )
        self.assertEqual(listed["test"][0]["group"], "p5")


class TestGrades(WrittenBundle):
    @classmethod
    def setUpClass(cls):
        cls.root = temporary_folder(cls)
        made = pictures(cls.root / "data")
        grades = ["none", "mild", "severe"]
        cases = [
            Case(path.stem, str(path), grades={"stage": grades[i % 3], "other": grades[(i + 1) % 3]}, patient=f"p{i}")
            for i, (path, _) in enumerate(made)
        ]
        cls.collection = Collection("grading", 2, cls.root / "data", cases, grades, ["stage", "other"])
        cls.backbone = write_vit(cls.root / "vit.pt")
        cls.parts = {"training": list(range(6)), "validation": [6, 7, 8], "calibration": [9, 10, 11]}
        cls.bundle = write(cls.root / "grades", cls.collection, cls.parts, cls.backbone)

    def test_it_passes_the_checks_of_every_bundle(self):
        self.check_written()

    def test_it_trains_scores_and_infers(self):
        self.run_all(self.root / "data" / "photos" / "1.png", "val_kappa")
        row = rows_of(self.bundle / "output" / "inference" / "grades.csv")[0]
        self.assertEqual(row["output"], "stage")
        self.assertIn(row["grade"], ["none", "mild", "severe"])

    def test_the_list_has_the_grades(self):
        config = yaml.safe_load((self.bundle / "configs" / "train.yaml").read_text())
        listed = load_gradelist(
            config["dataset_dir"], self.bundle / "configs" / "datalist.csv", config["outputs"], config["grades"]
        )
        self.assertEqual([case["label"] for case in listed["validation"]], [[0, 1], [1, 2], [2, 0]])
        self.assertEqual(listed["calibration"][0]["group"], "p9")

    def test_classes_have_no_order(self):
        collection = Collection(
            "classification", 2, self.root / "data", self.collection.cases, ["none", "mild", "severe"]
        )
        collection.outputs = ["stage"]
        self.bundle = write(self.root / "classes", collection, {**self.parts}, self.backbone)
        self.check_written()
        self.assertNotIn("grades", yaml.safe_load((self.bundle / "configs" / "train.yaml").read_text()))
        scores = self.run_all(self.root / "data" / "photos" / "1.png", "val_macro_f1")
        self.assertNotIn("val_kappa", scores)


class TestGradesOfVolumes(WrittenBundle):
    def test_it_passes_the_checks_trains_scores_and_infers(self):
        self.root = temporary_folder(self)
        collection = volumes(self.root / "data", 6)
        for index, case in enumerate(collection.cases):
            case.read_label, case.grades = None, {"size": "small" if index % 2 else "large"}
        collection.task, collection.labels, collection.outputs = "grading", ["small", "large"], ["size"]
        self.bundle = write(self.root / "sizes", collection, {"training": [0, 1, 2, 3], "validation": [4, 5]})
        self.check_written()
        self.run_all(self.root / "data" / "scans", "val_kappa", epochs=3)
        self.assertEqual(len(rows_of(self.bundle / "output" / "inference" / "grades.csv")), 6)


if __name__ == "__main__":
    unittest.main()
