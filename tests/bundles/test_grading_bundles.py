# SPDX-License-Identifier: Apache-2.0
"""The grading bundles as a user runs them: on small pictures with a small network, and on small volumes."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import torch
from monai.bundle import ckpt_export
from monai.networks.nets import ViT
from parameterized import parameterized
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
from utils_bundles import REPOSITORY, BundleTestCase, read, read_metrics, workflow
from utils_data import save_nifti, shared_data, temporary_folder
from utils_dicom import validator_errors

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from monai_dvpt.handlers import calibrated_temperature
from monai_dvpt.networks.adapter import adapter_metadata, save_adapter
from monai_dvpt.utils import root_cause

FUNDUS, HIPPOCAMPUS, KNEE, XRAY = (
    REPOSITORY / "bundles" / f"{name}_dvpt_vit_classification"
    for name in ("fundus", "hippocampus_mri", "knee_xray", "xray")
)
OUTPUTS, GRADES = ["left", "right"], ["none", "mild", "severe"]
SIZES = {"hidden_size": 24, "mlp_dim": 32, "num_layers": 2, "num_heads": 3}
METHOD = {"name": "dvpt", "bottleneck_size": 5, "num_prompts": 3, "share_every": 1}
SMALL = {"network_def#num_heads": SIZES["num_heads"], "image_mean": [0.4, 0.5, 0.6], "image_std": 0.25}
SMALL |= {"outputs": OUTPUTS, "grades": GRADES, "img_size": 32, "method": METHOD}
TRAINING = {"batch_size": 4, "amp": False, "learning_rates": {"method": 1e-2, "head": 5e-2}}


def write_images(folder: Path, count: int) -> list[list[int]]:
    """Pictures whose left and right halves are as bright as their grades, and their list; returns the labels."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    labels = generator.integers(0, len(GRADES), (count, len(OUTPUTS)))
    lines = [",".join(["image", *OUTPUTS, "patient"])]
    for index, label in enumerate(labels):
        picture = np.repeat(60 * label, 22)[None] + generator.normal(60, 10, (37, 44))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
        lines.append(f"{index}.png,{GRADES[label[0]]},{GRADES[label[1]] if index % 5 else ''},{index // 2}")
    (folder / "datalist.csv").write_text("\n".join(lines))
    return labels.tolist()


def save_dicom(path: Path, pixels: np.ndarray) -> None:
    """Writes a radiograph in which air is white."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPInstanceUID = ExplicitVRLittleEndian, generate_uid()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset = pydicom.FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME1"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = (255 - pixels).tobytes()
    dataset["PixelData"].VR = "OW"
    if int(pydicom.__version__.split(".")[0]) < 3:
        dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.save_as(path)


def write_volumes(root: Path) -> None:
    """Four training and two validation cases with masks of all grades, and their list."""
    grid = np.stack(np.meshgrid(*(np.arange(side) - side / 2 for side in (34, 50, 36)), indexing="ij"), axis=-1)
    generator = np.random.default_rng(0)
    cases = []
    for index, radius in enumerate((6.8, 7.2, 7.45, 7.9, 7.2, 8)):
        mask = (np.linalg.norm(grid / (1, 2, 1), axis=-1) < radius).astype(np.uint8)
        mask[:, :25] *= 2
        image = 100 + 60.0 * (mask > 0) + generator.normal(0, 5, mask.shape)
        affine = np.diag([-1.0, 1, 1, 1])
        paths = {"image": f"imagesTr/{index}.nii.gz", "label": f"labelsTr/{index}.nii.gz"}
        save_nifti(root / paths["image"], image.astype(np.float32), affine)
        save_nifti(root / paths["label"], mask, affine)
        cases.append(paths)
    (root / "datalist.json").write_text(json.dumps({"training": cases[:4], "validation": cases[4:]}))


def report_items(path: Path) -> list[pydicom.Dataset]:
    """All content items of a structured report."""
    items, left = [], [pydicom.dcmread(path)]
    while left:
        children = list(left.pop().get("ContentSequence", []))
        items, left = [*items, *children], [*left, *children]
    return items


class TestGradingRuns(BundleTestCase):
    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.root = Path(temporary.name)
        cls.data, cls.out = cls.root / "data", cls.root / "out"
        write_images(cls.data, 20)
        torch.manual_seed(0)
        vit = ViT(3, 32, 16, classification=True, spatial_dims=2, qkv_bias=True, **SIZES)
        torch.save(vit.state_dict(), cls.root / "vit.pt")
        cls.settings = {**SMALL, "backbone_path": str(cls.root / "vit.pt")}
        cls.train(cls.out, max_epochs=6)

    @classmethod
    def train(cls, out: Path, **settings) -> None:
        train = cls.workflow("train", output_dir=str(out), **TRAINING, **settings)
        train.run()
        train.finalize()

    @classmethod
    def workflow(cls, config: str, **settings):
        settings = {"dataset_dir": str(cls.data), **cls.settings, **settings}
        if config == "inference":  # which takes the network from the adapter
            settings = {key: value for key, value in settings.items() if not key.startswith("network_def#")}
        return workflow(XRAY, config, "infer" if config == "inference" else "train", **settings)

    def test_training_writes_what_it_promises(self):
        adapter = self.out / "adapter_best.safetensors"
        for name in ("adapter_last.safetensors", "model.pt", "checkpoint.pt", "history.csv", "history.png"):
            self.assertTrue((self.out / name).is_file(), name)
        report = json.loads((self.out / "report.json").read_text())
        parameters = report["parameters"]
        self.assertEqual(parameters["backbone"]["trainable"], 0)
        self.assertEqual(parameters["head"]["trainable"], 6 * 49)  # class token, mean of the others, bias
        metrics = report["last"]["metrics"]
        self.assertEqual(set(metrics), {"val_kappa", "val_accuracy", "val_kappa_per_output"})
        self.assertEqual(list(metrics["val_kappa_per_output"]), OUTPUTS)
        metadata = adapter_metadata(adapter)
        self.assertEqual(metadata["labels"], [f"{output} {grade}" for output in OUTPUTS for grade in GRADES])
        self.assertEqual(metadata["notes"]["calibration"], json.loads((self.out / "calibration.json").read_text()))
        self.assertEqual(metadata["notes"]["epoch"], report["best"]["epoch"])
        losses = [float(row["loss"]) for row in read(self.out / "history.csv")]
        self.assertLess(losses[-1], losses[0])

    def evaluate(self, out: Path, **settings) -> dict[str, str]:
        adapter = str(self.out / "adapter_best.safetensors")
        flow = self.workflow("evaluate", output_dir=str(out), adapter_path=adapter, **settings)
        flow.run()
        flow.finalize()
        return read_metrics(out / "metrics.csv")

    def test_evaluate_agrees_with_the_report(self):
        """The calibration moves no grade, and what is written are the calibrated probabilities."""
        out = self.root / "evaluate"
        scores = self.evaluate(out)
        best = json.loads((self.out / "report.json").read_text())["best"]["metrics"]
        for name in ("val_kappa", "val_accuracy"):
            self.assertAlmostEqual(float(scores[name]), best[name], places=4)
        calibration = json.loads((self.out / "calibration.json").read_text())
        rows = read(out / "predictions.csv")
        graded = [row for row in rows if row["label"]]
        self.assertEqual((len(rows), len(graded)), (8, calibration["graded"]))
        right = np.mean([row["label"] == row["grade"] for row in graded])
        self.assertAlmostEqual(float(scores["val_accuracy"]), right, places=4)
        nll = -np.mean([math.log(float(row[f"p_{row['label']}"])) for row in graded])
        self.assertAlmostEqual(nll, calibration["after"]["nll"], places=4)
        sure = np.array([float(row["confidence"]) for row in graded])
        gap = sure - [row["label"] == row["grade"] for row in graded]
        bins = np.digitize(sure, np.linspace(0, 1, 16))
        ece = sum(abs(gap[bins == each].sum()) for each in set(bins)) / len(gap)
        self.assertAlmostEqual(ece, calibration["after"]["ece"], places=4)
        for ending, part in (("", "after"), ("_uncalibrated", "before")):
            for name in ("ece", "adaptive_ece", "brier"):
                self.assertAlmostEqual(float(scores[f"val_{name}{ending}"]), calibration[part][name], places=3)
        for name in ("confusion_matrix.png", "confusion_matrix.csv", "reliability.png", "reliability.csv"):
            self.assertTrue((out / name).is_file(), name)

    def test_frozen_layers_run_once(self):
        """With a cache training takes the same way as without; random images are refused one."""
        method = {**METHOD, "side_path": True, "start_layer": 1}
        settings = {"augment": "false", "method": method, "max_epochs": 2}
        cache = self.root / "cache"
        losses = []
        for name, value in (("without", None), ("memory", "memory"), ("folder", str(cache)), ("again", str(cache))):
            written = {path: path.stat().st_mtime_ns for path in cache.glob("*/*.safetensors")}
            self.train(self.root / f"prefix_{name}", prefix_cache=value, **settings)
            losses.append([float(row["loss"]) for row in read(self.root / f"prefix_{name}" / "history.csv")])
        self.assertEqual(len(written), 20)  # one entry for each picture; all were there before the last run
        np.testing.assert_allclose(losses, losses[:1] * 4, rtol=1e-4)
        stored = adapter_metadata(self.root / "prefix_again" / "adapter_last.safetensors")["method"]
        found = {"name": stored["name"], **stored["options"]}
        self.assertEqual({key: found[key] for key in method}, method)
        with self.assertRaises(RuntimeError) as raised:
            self.train(self.root / "random", prefix_cache="memory", max_epochs=1)
        self.assertRegex(str(root_cause(raised.exception)), "must not be random .* switch augmentation off")

    def test_compiled_inference(self):
        adapter, rows = str(self.out / "adapter_best.safetensors"), []
        for compiled in ("false", "true"):
            out = self.root / f"compiled_{compiled}"
            flow = self.workflow("inference", output_dir=str(out), adapter_path=adapter, compile=compiled)
            self.assertIs(flow.evaluator.compile, compiled == "true")
            with warnings.catch_warnings():  # MONAI takes images as plain tensors then, and says so
                warnings.filterwarnings("ignore", "Will convert to PyTorch Tensor")
                flow.run()
            flow.finalize()
            rows.append(read(out / "grades.csv"))
        self.assertEqual(len(rows[0]), 40)
        for one, other in zip(*rows, strict=True):
            self.assertEqual(one["grade"], other["grade"])
            self.assertAlmostEqual(float(one["confidence"]), float(other["confidence"]), places=4)

    def test_images_are_prepared_as_in_training(self):
        """By what the adapter says, in evaluation and inference; a value that is given counts more."""
        adapter = str(self.out / "adapter_best.safetensors")
        given = {key: SMALL[key] for key in ("image_mean", "image_std")}
        self.assertEqual(adapter_metadata(adapter)["notes"]["preparation"], given)
        without = {key: value for key, value in self.settings.items() if key not in (*given, "img_size")}
        pictures = []
        for config, key in (("train", "validate#preprocessing"), ("evaluate", "validate#preprocessing")):
            settings = {"dataset_dir": str(self.data), **(self.settings if config == "train" else without)}
            parser = workflow(XRAY, config, "train", adapter_path=adapter, **settings).parser
            case = parser.get_parsed_content("cases")["validation"][0]
            pictures.append(parser.get_parsed_content(key)(case)["image"])
        for changes in ({}, {"image_mean": 0.0, "image_std": [1, 1, 1]}):
            settings = {"dataset_dir": str(self.data), "adapter_path": adapter, **changes}
            parser = workflow(XRAY, "inference", "infer", **settings).parser
            pictures.append(parser.get_parsed_content("preprocessing")({"image": case["image"]})["image"])
        raw = pictures.pop()
        self.assertTrue(0 <= raw.min() and 0.5 < raw.max() <= 1)
        mean, std = torch.tensor(given["image_mean"])[:, None, None], given["image_std"]
        for picture in pictures:
            torch.testing.assert_close(picture.as_tensor(), (raw.as_tensor() - mean) / std)

    def test_normalisation_that_nothing_tells_is_refused(self):
        settings = {"image_mean": "$@backbone.image_mean", "output_dir": str(self.root / "unused")}
        self.assert_refused(self.workflow("train", **settings), r"vit\.pt: .* image_mean and image_std must be given")
        settings["image_mean"] = [0.5, 0.5]
        flow = self.workflow("train", **settings)
        self.assert_refused(flow, r"image_mean must be a number, or one for each of 3 channels, got \[0\.5, 0\.5\]")
        old = self.root / "old.safetensors"
        network, labels = (self.workflow("train").parser.get_parsed_content(key) for key in ("network", "labels"))
        save_adapter(network, old, labels=labels)
        flow = self.workflow(
            "inference", adapter_path=str(old), image_mean="$prepared_with(@adapter_path, 'image_mean')"
        )
        self.assert_refused(flow, f"{old}: does not record .* so image_mean must be given")

    def test_evaluate_another_part(self):
        self.evaluate(self.root / "evaluate_training", part="training")
        rows = read(self.root / "evaluate_training" / "predictions.csv")
        self.assertEqual(len(rows), 32)
        (table,) = self.root.rglob("datalist.csv")
        patients = {Path(row["image"]).stem: row["patient"] for row in read(table)}
        self.assertEqual([row["patient"] for row in rows], [patients[Path(row["name"]).name] for row in rows])
        adapter = str(self.out / "adapter_best.safetensors")
        flow = self.workflow("evaluate", part="test", adapter_path=adapter)
        self.assert_refused(flow, r"^part must be one of \['training', 'validation'\], got 'test'")

    def mixed(self) -> Path:
        """One picture in every kind of file, and a bad one."""
        folder = self.root / "mixed"
        if not folder.exists():
            (folder / "sub").mkdir(parents=True)
            pixels = np.asarray(Image.open(self.data / "1.png"))
            Image.fromarray(pixels).save(folder / "picture.png")
            Image.fromarray(pixels).save(folder / "sub" / "photo.jpg", quality=100)
            save_dicom(folder / "radiograph", pixels)
            nib.save(nib.Nifti1Image(pixels.T[..., None], np.diag([-1.0, -1, 1, 1])), folder / "slice.nii.gz")
            (folder / "bad.png").write_bytes((self.data / "1.png").read_bytes()[:200])
        return folder

    def test_inference_of_mixed_files(self):
        out, adapter = self.root / "inference", str(self.out / "adapter_best.safetensors")
        flow = self.workflow("inference", dataset_dir=str(self.mixed()), output_dir=str(out), adapter_path=adapter)
        self.assertEqual(flow.check_properties(), [])
        self.assert_refused(flow, r"^1 of 5 inputs failed: bad: .*bad\.png: cannot be read")
        names = ["picture", "radiograph", "slice", "sub_photo"]
        written = {f"{name}_{kind}" for name in names for kind in ("grades.json", "grades.png")}
        self.assertEqual({path.name for path in out.iterdir()}, {*written, "grades.csv", "summary.csv"})
        rows = read(out / "grades.csv")
        self.assertEqual([row["name"] for row in rows], [name for name in names for _ in OUTPUTS])
        self.assertNotIn("label", rows[0])
        found = [json.loads((out / f"{name}_grades.json").read_text())["outputs"] for name in names]
        for each in found:
            for output in OUTPUTS:
                chances = [one[output]["probabilities"] for one in (each, found[0])]
                np.testing.assert_allclose(*(list(chance.values()) for chance in chances), atol=0.02)
                self.assertAlmostEqual(sum(chances[0].values()), 1, places=5)

    def test_report_of_a_radiograph(self):
        """Grades as a TID 1500 report and a picture, in the study of the image; other kinds of files can have none."""
        folder, out = self.root / "radiographs", self.root / "reports"
        folder.mkdir()
        save_dicom(folder / "radiograph", np.asarray(Image.open(self.data / "1.png")))
        shutil.copy(self.data / "1.png", folder)
        adapter = str(self.out / "adapter_best.safetensors")
        settings = {
            "dataset_dir": str(folder),
            "output_dir": str(out),
            "output_format": "json,dicom_sr,secondary_capture",
        }
        flow = self.workflow("inference", adapter_path=adapter, **settings)
        self.assert_refused(flow, "^1 of 2 inputs failed: 1: output_format json, .* must have DICOM input")
        found = json.loads((out / "radiograph_grades.json").read_text())["outputs"]
        items = report_items(out / "radiograph_sr.dcm")
        said = {
            item.ConceptNameCodeSequence[0].CodeMeaning: item.ConceptCodeSequence[0].CodeMeaning
            for item in items
            if item.get("ValueType") == "CODE"
        }
        self.assertEqual({output: said[output] for output in OUTPUTS}, {o: found[o]["grade"] for o in OUTPUTS})
        chances = sorted(float(i.MeasuredValueSequence[0].NumericValue) for i in items if i.get("ValueType") == "NUM")
        np.testing.assert_allclose(chances, sorted(found[output]["confidence"] for output in OUTPUTS), rtol=1e-5)
        for name in ("radiograph_sr.dcm", "radiograph_secondary_capture.dcm"):
            self.assertEqual(validator_errors(out / name), [])

    def test_prediction_sets(self):
        """Once a list has calibration cases, the same command gives the finished run sets; all results show them."""
        data, out, scores, found = (self.root / name for name in ("sets", "sets_out", "sets_scores", "sets_found"))
        labels = write_images(data, 40)
        lines = (data / "datalist.csv").read_text().splitlines()
        parts = ["training"] * 12 + ["validation"] * 8 + ["calibration"] * 20
        splits = [f"{line},{part}" for line, part in zip(lines[1:], parts, strict=True)]
        (data / "datalist.csv").write_text("\n".join([f"{lines[0]},split", *splits[:20]]))
        with self.assertLogs("monai_dvpt.handlers", "WARNING") as logs:
            self.train(out, dataset_dir=str(data), max_epochs=2)
        self.assertRegex("".join(logs.output), "No prediction sets: the list has no part calibration")
        adapter = str(out / "adapter_best.safetensors")
        before = adapter_metadata(adapter)["tensors_sha256"]
        (data / "datalist.csv").write_text("\n".join([f"{lines[0]},split", *splits]))
        self.train(out, dataset_dir=str(data), max_epochs=2, coverage=0.6)
        self.assertEqual(adapter_metadata(adapter)["tensors_sha256"], before)
        sets = json.loads((out / "conformal.json").read_text())
        self.assertEqual(adapter_metadata(adapter)["notes"]["conformal"], sets)
        graded = [[row[0] for row in labels[20:]], [row[1] for index, row in enumerate(labels[20:], 20) if index % 5]]
        self.assertEqual(sets["counts"], [[each.count(grade) for grade in range(3)] for each in graded])

        settings = {"dataset_dir": str(data), "adapter_path": adapter, "part": "calibration"}
        flow = self.workflow("evaluate", output_dir=str(scores), **settings)
        flow.run()
        flow.finalize()
        rows = [row for row in read(scores / "predictions.csv") if row["label"]]
        held: dict[tuple, list[bool]] = {}
        for row in rows:
            low, high, label, grade = (GRADES.index(row[key]) for key in ("set_low", "set_high", "label", "grade"))
            self.assertTrue(low <= grade <= high)
            self.assertEqual(row["coverage"], "0.6")
            held.setdefault((row["output"], label), []).append(low <= label <= high)
        for right in held.values():  # on the calibration cases themselves
            self.assertGreaterEqual(np.mean(right), 0.6)

        save_dicom(data / "new.dcm", np.asarray(Image.open(data / "30.png")))
        settings = {"dataset_dir": str(data / "new.dcm"), "output_format": "json,dicom_sr", "adapter_path": adapter}
        self.workflow("inference", output_dir=str(found), **settings).run()
        outputs = json.loads((found / "new_grades.json").read_text())["outputs"]
        for row, (name, one) in zip(read(found / "grades.csv"), outputs.items(), strict=True):
            self.assertEqual((row["output"], row["set_low"], row["set_high"]), (name, one["set"][0], one["set"][-1]))
        codes = [
            item.ConceptCodeSequence[0].CodeMeaning
            for item in report_items(found / "new_sr.dcm")
            if item.get("ValueType") == "CODE" and item.ConceptNameCodeSequence[0].CodeMeaning == "prediction set"
        ]
        self.assertEqual(sorted(codes), sorted(grade for one in outputs.values() for grade in one["set"]))
        self.assertEqual(validator_errors(found / "new_sr.dcm"), [])

    def test_a_finished_run_goes_on_with_more_epochs(self):
        out = self.root / "more"
        shutil.copytree(self.out, out)
        self.train(out, max_epochs=7, val_interval=5)
        report = json.loads((out / "report.json").read_text())
        self.assertEqual((report["epochs"], report["last"]["epoch"]), (7, 7))
        adapter = (out / "adapter_best.safetensors").read_bytes()
        self.train(out, max_epochs=7, val_interval=5)  # nothing is left to do
        self.assertEqual((out / "adapter_best.safetensors").read_bytes(), adapter)
        other = self.workflow("train", output_dir=str(out), max_epochs=8, **{**TRAINING, "sharpness": 1.0})
        self.assert_refused(other, r"checkpoint\.pt: .*sharpness was None, is 1\.0")

    def test_wrong_adapter_is_refused(self):
        broken, method_alone = self.root / "broken.safetensors", self.root / "method_alone.safetensors"
        broken.write_bytes(b"not an adapter")
        train = self.workflow("train", output_dir=str(self.root / "unused"))
        network, labels = (train.parser.get_parsed_content(key) for key in ("network", "labels"))
        save_adapter(network, method_alone, parts=["method"], labels=labels)
        good = self.out / "adapter_best.safetensors"
        refused = [
            (broken, {}, "cannot be read"),
            (method_alone, {}, "parts must be"),
            (good, {"grades": ["none", "mild", "grave"]}, "labels must be"),
            (good, {"outputs": ["right", "left"]}, "labels must be"),
            (good, {"outputs": ["left"]}, "labels must be"),
        ]
        for path, changes, why in refused:
            flow = self.workflow("inference", **{"adapter_path": str(path), **changes})
            self.assert_refused(flow, f"{path}: {why}")
        flow = self.workflow("evaluate", adapter_path=str(good), outputs=["left"])
        self.assert_refused(flow, f"{good}: labels must be")
        for changes, why in (
            ({"outputs": ["left"]}, "num_classes must be"),
            ({"pooling": "mean"}, "pooling must be"),
            ({"image_std": 0.9}, "image_std must be that of the adapter's training, .*, got 0.9"),
        ):
            flow = self.workflow("train", adapter_path=str(good), output_dir=str(self.root / "unused"), **changes)
            self.assert_refused(flow, f"{good}: {why}")

    def test_missing_weights_and_bad_lists_are_refused(self):
        missing = str(self.root / "nowhere.safetensors")
        flow = self.workflow("train", backbone_path=missing, output_dir=str(self.root / "unused"))
        self.assert_refused(flow, f"{missing}: pretrained weights must be an existing file")
        flow = self.workflow("train", grades=["none", "mild"], output_dir=str(self.root / "unused"))
        self.assert_refused(flow, r"datalist\.csv: .*png: (left|right) must be one of .*, got 'severe'")

    def test_export_of_the_full_model_equals_it(self):
        exported, checkpoint = str(self.root / "model.ts"), str(self.out / "model.pt")
        config, metadata = (str(XRAY / "configs" / name) for name in ("inference.yaml", "metadata.json"))
        adapter = str(self.out / "adapter_best.safetensors")
        files = {"ckpt_file": checkpoint, "meta_file": metadata, "config_file": config, "adapter_path": adapter}
        ckpt_export("network_def", exported, input_shape=[1, 3, 32, 32], **files)
        train = self.workflow("train", output_dir=str(self.root / "unused"))
        self.assertEqual(train.check_properties(), [])
        network = train.parser.get_parsed_content("network").cpu().eval()
        network.load_state_dict(torch.load(checkpoint, weights_only=True))
        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(torch.jit.load(exported)(x), network(x), atol=1e-5, rtol=1e-5)

    def test_other_outputs_are_one_edit(self):
        """Of a copy of the bundle: all else follows."""
        bundle = self.root / "copy_classification"
        shutil.copytree(XRAY, bundle)
        config = bundle / "configs" / "train.yaml"
        text, edits = re.subn(
            r"(?m)^outputs: .*\ngrades: .*$", f"outputs: {OUTPUTS}\ngrades: {GRADES}", config.read_text()
        )
        self.assertEqual(edits, 1)
        config.write_text(text)
        given = {key: value for key, value in self.settings.items() if key not in ("outputs", "grades")}
        given |= {"dataset_dir": str(self.data), "amp": False}
        for name, kind in (("train", "train"), ("evaluate", "train"), ("inference", "infer")):
            if kind == "infer":  # which takes the network from the adapter
                given = {key: given[key] for key in ("dataset_dir", "backbone_path", "amp")}
            flow = workflow(bundle, name, kind, max_epochs=1, **given)
            flow.run()
            flow.finalize()
        for table in ("evaluate/predictions.csv", "inference/grades.csv"):
            rows = read(bundle / "output" / table)
            self.assertEqual([row["output"] for row in rows[:2]], OUTPUTS)
            self.assertEqual([key for key in rows[0] if key.startswith("p_")], [f"p_{grade}" for grade in GRADES])

    def test_two_processes(self):
        """Distributed training (gloo) of one epoch from the command line: both ranks end, and one writes."""
        out = self.root / "two"
        settings = {**self.settings, **TRAINING, "dataset_dir": self.data, "output_dir": out, "max_epochs": 1}
        settings["device"] = "$torch.device('cpu')"
        launch = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle", "run"]
        run = subprocess.run(
            [sys.executable, "-m", *launch]
            + ["--config_file", "['configs/train.yaml','configs/multi_gpu_train.yaml']"]
            + [part for key, value in settings.items() for part in (f"--{key}", str(value))],
            cwd=XRAY,
            capture_output=True,
            text=True,
            timeout=300,
        )
        self.assertEqual(run.returncode, 0, run.stderr[-3000:])
        self.assertEqual(json.loads((out / "report.json").read_text())["last"]["epoch"], 1)
        self.assertTrue((out / "calibration.json").is_file())

    def test_a_part_stays_frozen(self):
        out = self.root / "head_alone"
        self.train(out, trainable=["head"], max_epochs=1)
        parameters = json.loads((out / "report.json").read_text())["parameters"]
        self.assertEqual([parameters[part]["trainable"] for part in ("backbone", "method", "head")], [0, 0, 6 * 49])

    def command_line(self, out: Path, **settings) -> subprocess.CompletedProcess:
        """One epoch, as a user starts it."""
        given = {**self.settings, **TRAINING, "dataset_dir": self.data, "output_dir": out, "max_epochs": 1, **settings}
        return subprocess.run(
            [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/train.yaml"]
            + [part for key, value in given.items() for part in (f"--{key}", str(value))],
            cwd=XRAY,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def test_method_on_the_command_line(self):
        """By name, or with options; from an adapter training goes on with its own method alone."""
        adapters = []
        for method, rank in (("lora", 8), ("{name: lora, rank: 4}", 4)):
            out = self.root / f"lora_{rank}"
            run = self.command_line(out, method=method)
            self.assertEqual(run.returncode, 0, run.stderr[-3000:])
            adapters.append(out / "adapter_last.safetensors")
            stored = adapter_metadata(adapters[-1])
            self.assertEqual(stored["method"], {"name": "lora", "options": {"rank": rank, "alpha": None}})
        again = {"method": "{name: lora, rank: 4}", "adapter_path": adapters[1]}
        self.assertEqual(self.command_line(self.root / "lora_again", **again).returncode, 0)
        refused = self.command_line(self.root / "lora_refused", **again | {"adapter_path": adapters[0]})
        self.assertEqual(refused.returncode, 1)
        self.assertIn(
            f"{adapters[0]}: method must be that of the network, LoRA(rank=4, alpha=None), "
            "got LoRA(rank=8, alpha=None).",
            refused.stderr,
        )
        self.assertNotIn("Traceback", refused.stderr)


class TestEyesAndKnees(BundleTestCase):
    """The bundles of one organ, on real images as their lists come, and on lists as public sets have them."""

    def setUp(self):
        self.root = temporary_folder(self)

    def run_all(self, bundle: Path, settings: dict, inputs: Path, **training) -> list[dict[str, str]]:
        """Trains for one epoch, scores, and grades; returns the rows of the grades."""
        out, adapter = self.root / "out", str(self.root / "out" / "adapter_best.safetensors")
        settings = {**settings, "amp": False}
        for config, given in (
            ("train", {**training, "output_dir": str(out), "max_epochs": 1, "batch_size": 4}),
            ("evaluate", {"output_dir": str(self.root / "scores"), "adapter_path": adapter}),
            ("inference", {"output_dir": str(self.root / "grades"), "adapter_path": adapter}),
        ):
            given |= settings
            if config == "inference":
                given = {key: value for key, value in given.items() if key not in ("datalist", "columns", "image_path")}
                given |= {"dataset_dir": str(inputs)}
            flow = workflow(bundle, config, "infer" if config == "inference" else "train", **given)
            if config != "evaluate":  # which builds no network to train
                self.assertEqual(flow.check_properties(), [])
            flow.run()
            flow.finalize()
        report = json.loads((out / "report.json").read_text())
        accuracy = float(read_metrics(self.root / "scores" / "metrics.csv")["val_accuracy"])
        self.assertAlmostEqual(accuracy, report["best"]["metrics"]["val_accuracy"])
        scored = {Path(row["name"]).name: row["grade"] for row in read(self.root / "scores" / "predictions.csv")}
        rows = read(self.root / "grades" / "grades.csv")
        graded = {row["name"]: row["grade"] for row in rows}
        self.assertEqual({name: graded[name.removeprefix("images_")] for name in scored}, scored)
        return rows

    def few(self, folder: str, count: int, output: str) -> tuple[Path, Path]:
        """The first images of a shared set, each grade as often as it comes, under its own list."""
        source, target = shared_data(folder), self.root / "few"
        (target / "images").mkdir(parents=True)
        lines = (source / "labels.csv").read_text().splitlines()[: count + 1]
        (target / "labels.csv").write_text("\n".join(lines))
        for row in read(target / "labels.csv"):
            shutil.copy(source / row["image"], target / "images")
        return target, target / "labels.csv"

    @parameterized.expand([(KNEE, "knee_kl", "kl_grade", {}), (FUNDUS, "dr_fundus", "dr_grade", {"ben_graham": True})])
    def test_real_images_and_dinov2(self, bundle, folder, output, options):
        """The list as it is; everything of the backbone from its file; 112 pixels, to be quick."""
        root, datalist = self.few(folder, 16, output)
        settings = {"dataset_dir": str(root), "datalist": str(datalist)}
        settings["backbone_path"] = str(shared_data("weights/dinov2_vits14_fp16.safetensors"))
        rows = self.run_all(bundle, settings, root / "images", img_size=112, **options)
        self.assertEqual([row["output"] for row in rows], [output] * 16)
        metadata = adapter_metadata(self.root / "out" / "adapter_best.safetensors")
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        self.assertEqual(metadata["notes"]["preparation"], {"image_mean": mean, "image_std": std, **options})
        sizes = {name: metadata["arguments"][name] for name in ("patch_size", "hidden_size", "num_layers", "num_heads")}
        self.assertEqual(sizes, {"patch_size": 14, "hidden_size": 384, "num_layers": 12, "num_heads": 6})

    def photographs(self, *names: str) -> None:
        """Discs on black, brighter from one to the next."""
        y, x = np.mgrid[:40, :56] - np.array([20, 28])[:, None, None]
        for index, name in enumerate(names):
            path = self.root / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(index).uniform(0.5, 1, (40, 56, 3))
            pixels = (x**2 + y**2 < 18**2)[..., None] * noise * (100 + 20 * index)
            Image.fromarray(pixels.astype(np.uint8)).save(path)

    def small_backbone(self) -> dict[str, str]:
        torch.manual_seed(0)
        vit = ViT(3, 32, 16, classification=True, spatial_dims=2, qkv_bias=True, **SIZES)
        torch.save(vit.state_dict(), self.root / "vit.pt")
        return {"backbone_path": str(self.root / "vit.pt")}

    def test_clip_from_a_folder(self):
        """As its library saves it: sizes, arithmetic, mean and standard deviation are of the files in the folder."""
        sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3}
        torch.manual_seed(0)
        CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(self.root / "clip")
        CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(self.root / "clip")
        self.photographs(*(f"images/{index}.png" for index in range(8)))
        data = self.root / "data"
        rows = "".join(f"images/{index}.png,{index % 5},{index // 2}\n" for index in range(8))
        (data / "datalist.csv").write_text("image,kl_grade,patient\n" + rows)
        settings = {"dataset_dir": str(data), "backbone_path": str(self.root / "clip")}
        self.run_all(KNEE, settings, data / "images", img_size=32, method=METHOD)
        metadata = adapter_metadata(self.root / "out" / "adapter_best.safetensors")
        kept = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
        self.assertEqual(metadata["notes"]["preparation"], kept)
        expected = {"patch_size": 8, "hidden_size": 24, "mlp_dim": 32, "num_layers": 2, "num_heads": 3}
        expected |= {"activation": "quick_gelu", "pre_norm": True}
        self.assertEqual({name: metadata["arguments"][name] for name in expected}, expected)

    def test_lists_of_public_sets(self):
        """Lists of APTOS, DDR and Messidor-2, from the command line as the bundle's page gives it."""
        names = [f"train_images/{index}.png" for index in range(8)]
        names += [f"{part}/{index}.jpg" for part in ("train", "valid", "test") for index in range(6)]
        self.photographs(*names, *(f"{index}_PP.png" for index in range(6)))
        data = self.root / "data"
        (data / "aptos.csv").write_text("id_code,diagnosis\n" + "".join(f"{i},{i % 5}\n" for i in range(8)))
        for part in ("train", "valid", "test"):
            (data / f"{part}.txt").write_text("".join(f"{index}.jpg {index}\n" for index in range(6)))
        rows = "".join(f"{index}_PP.png,{index if index else ''},0,{min(index, 1)}\n" for index in range(5))
        (data / "messidor.csv").write_text(
            f"image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable\n{rows}"
        )
        page = (FUNDUS / "docs" / "README.md").read_text()
        given = {**self.small_backbone(), "dataset_dir": data, "img_size": 32, "max_epochs": 1, "method": METHOD}
        given |= {"image_mean": 0.5, "image_std": "[0.2,0.3,0.4]", "network_def#num_heads": SIZES["num_heads"]}
        given |= {"amp": False}
        files = {
            "APTOS 2019": ("train.csv", "aptos.csv"),
            "DDR": ("", ""),
            "Messidor-2": ("messidor_data.csv", "messidor.csv"),
        }
        for name, (published, ours) in files.items():
            (line,) = re.findall(rf"(?m)^\| {name} \| `(.*)` \|$", page)
            options = shlex.split(line.replace(published, ours, 1) if published else line)
            options = [option.replace("DIR", str(data)) for option in options]
            run = subprocess.run(
                [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/train.yaml", *options]
                + [part for key, value in given.items() for part in (f"--{key}", str(value))]
                + ["--output_dir", str(self.root / name)],
                cwd=FUNDUS,
                capture_output=True,
                text=True,
                timeout=300,
            )
            self.assertEqual(run.returncode, 0, run.stderr[-3000:])
            cases = json.loads((self.root / name / "report.json").read_text())["settings"]["cases"]
            count = {"APTOS 2019": (6, 2), "DDR": (5, 5), "Messidor-2": (3, 1)}[name]
            self.assertEqual((cases["training"], cases["validation"]), count)
            said = re.findall(r"\w+\.\w+: \d of \d images are left out, with .*", run.stdout + run.stderr)
            words = "images are left out, with"
            excluded = {"DDR": [f"{part}.txt: 1 of 6 {words} dr_grade 5." for part in ("test", "train", "valid")]}
            excluded["Messidor-2"] = [f"messidor.csv: 1 of 5 {words} adjudicated_gradable 0."]
            self.assertEqual(said, excluded.get(name, []))

    def test_graham_in_inference_as_in_training(self):
        """The picture that the network sees, with the option that the adapter keeps and no other given."""
        self.photographs(*(f"{index}.png" for index in range(6)))
        data = self.root / "data"
        (data / "datalist.csv").write_text("image,dr_grade\n" + "".join(f"{i}.png,{i % 5}\n" for i in range(6)))
        settings = {**self.small_backbone(), "dataset_dir": str(data), "network_def#num_heads": SIZES["num_heads"]}
        settings |= {"image_mean": 0.5, "image_std": 0.25, "img_size": 32, "method": METHOD}
        pictures = {}
        for graham in ("true", "false"):
            parser = workflow(FUNDUS, "train", "train", ben_graham=graham, **settings).parser
            network, labels, kept = (parser.get_parsed_content(key) for key in ("network", "labels", "preparation"))
            adapter = str(
                save_adapter(network, self.root / "a.safetensors", labels=labels, notes={"preparation": kept})
            )
            case = {"image": str(data / "3.png"), "label": [3]}
            pictures[graham] = parser.get_parsed_content("validate#preprocessing")(case)["image"]
            given = {"dataset_dir": str(data), "adapter_path": adapter}
            infer = workflow(FUNDUS, "inference", "infer", **given).parser.get_parsed_content("preprocessing")
            torch.testing.assert_close(infer({"image": case["image"]})["image"], pictures[graham])
            evaluate = workflow(FUNDUS, "evaluate", "train", **given).parser.get_parsed_content(
                "validate#preprocessing"
            )
            torch.testing.assert_close(evaluate(case)["image"], pictures[graham])
        corners = [float(pictures[graham][0, 0, 0]) for graham in ("true", "false")]
        self.assertEqual(corners, [0.0, -2.0])  # middle grey and black, less 0.5, by 0.25


class TestVolumeGradingRuns(BundleTestCase):
    def workflow(self, config: str, kind: str, **settings):
        settings = {"dataset_dir": str(self.root), "datalist": str(self.root / "datalist.json"), **settings}
        return workflow(HIPPOCAMPUS, config, kind, batch_size=2, amp=False, **settings)

    def test_train_evaluate_and_infer(self):
        self.root = temporary_folder(self)
        write_volumes(self.root)
        out, scores, grades = (self.root / name for name in ("out", "scores", "grades"))
        train = self.workflow("train", "train", output_dir=str(out), max_epochs=1)
        self.assertEqual(train.check_properties(), [])
        train.run()
        train.finalize()
        report = json.loads((out / "report.json").read_text())
        self.assertEqual(report["parameters"]["backbone"]["trainable"], 0)
        self.assertLessEqual(report["method_percent_of_encoder"], 1.0)
        adapter = str(out / "adapter_best.safetensors")
        self.assertGreater(calibrated_temperature(adapter), 0)

        evaluate = self.workflow("evaluate", "train", output_dir=str(scores), adapter_path=adapter)
        evaluate.run()
        evaluate.finalize()
        accuracy = float(read_metrics(scores / "metrics.csv")["val_accuracy"])
        self.assertAlmostEqual(accuracy, report["best"]["metrics"]["val_accuracy"])
        rows = read(scores / "predictions.csv")
        self.assertEqual([row["name"] for row in rows], ["imagesTr/4.nii.gz", "imagesTr/5.nii.gz"])
        self.assertEqual([row["label"] for row in rows], ["2.95 to 3.33 mL", "above 3.63 mL"])
        lists = json.loads((self.root / "datalist.json").read_text())
        lists["calibration"] = [lists["training"].pop()]
        (self.root / "datalist.json").write_text(json.dumps(lists))
        apart = {"adapter_path": adapter, "part": "calibration", "output_dir": str(self.root / "apart")}
        evaluate = self.workflow("evaluate", "train", **apart)
        evaluate.run()
        evaluate.finalize()
        (row,) = read(self.root / "apart" / "predictions.csv")
        self.assertEqual((row["name"], row["label"]), ("imagesTr/3.nii.gz", "above 3.63 mL"))
        refused = self.workflow("evaluate", "train", **{**apart, "part": "test"})
        self.assert_refused(refused, r"part must be one of \['training', 'validation', 'calibration'\], got 'test'")

        images = self.root / "imagesTr"
        save_nifti(images / "whole.nii.gz", np.random.default_rng(0).normal(0, 1, (50, 50, 36)).astype(np.float32))
        infer = self.workflow(
            "inference", "infer", dataset_dir=str(images), output_dir=str(grades), adapter_path=adapter
        )
        self.assertEqual(infer.check_properties(), [])
        self.assert_refused(infer, r"^1 of 7 inputs failed: whole: .*at most \[48, 64, 48\] voxels after resampling")
        found = {row["name"]: row["grade"] for row in read(grades / "grades.csv")}
        self.assertEqual(sorted(found), [str(index) for index in range(6)])
        self.assertEqual([row["grade"] for row in rows], [found["4"], found["5"]])


if __name__ == "__main__":
    unittest.main()
