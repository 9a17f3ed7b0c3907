# SPDX-License-Identifier: Apache-2.0
"""The bundle of classes without an order, as a user runs it: on small pictures, and on real photographs."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import tempfile
import unittest
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import torch
from monai.networks.nets import ViT
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, roc_auc_score
from utils_bundles import REPOSITORY, BundleTestCase, read, read_metrics, workflow
from utils_data import save_dicom, shared_data, temporary_folder
from utils_dicom import validator_errors

from monai_dvpt.networks.adapter import adapter_metadata

SKIN = REPOSITORY / "bundles" / "skin_lesion_dvpt_vit_classification"
CLASSES = ["red", "green", "blue", "grey"]
COUNTS = [24, 16, 8, 0]  # of which nobody has a grey one
TRAINING = {"batch_size": 4, "amp": False, "learning_rates": {"method": 1e-2, "head": 5e-2}}


def write_photographs(folder: Path) -> None:
    """Noise with a tinge of the class, two pictures of each lesion, and their list."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    lines, index = ["image,mask,lesion_id,dx"], 0
    for channel, count in enumerate(COUNTS):
        for _ in range(count):
            picture = generator.normal(110, 25, (37, 44, 3))
            picture[..., channel] += generator.normal(25, 15)
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
            lines.append(f"{index}.png,{index}_mask.png,L{index // 2},{CLASSES[channel]}")
            index += 1
    (folder / "datalist.csv").write_text("\n".join(lines))


def scores_of(rows: list[dict[str, str]], classes: list[str]) -> dict[str, float]:
    """scikit-learn's, of a table of predictions."""
    truth, given = [row["label"] for row in rows], [row["class"] for row in rows]
    chances = np.array([[float(row[f"p_{name}"]) for name in classes] for row in rows])
    areas = [roc_auc_score([one == name for one in truth], chances[:, classes.index(name)]) for name in set(truth)]
    return {
        "val_macro_f1": f1_score(truth, given, labels=classes, average="macro", zero_division=np.nan),
        "val_balanced_accuracy": balanced_accuracy_score(truth, given),
        "val_auroc": float(np.mean(areas)),
        "val_accuracy": accuracy_score(truth, given),
    }


class TestClassRuns(BundleTestCase):
    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.root = Path(temporary.name)
        cls.data, cls.out = cls.root / "data", cls.root / "out"
        write_photographs(cls.data)
        torch.manual_seed(0)
        vit = ViT(3, 28, 14, 24, 32, 2, 3, classification=True, spatial_dims=2, qkv_bias=True)
        torch.save(vit.state_dict(), cls.root / "vit.pt")
        cls.settings = {"classes": CLASSES, "backbone_path": str(cls.root / "vit.pt"), "dataset_dir": str(cls.data)}
        cls.network = {"img_size": 28, "image_mean": 0.45, "image_std": [0.2, 0.25, 0.3], "network_def#num_heads": 3}
        with cls.assertLogs(cls(), "monai_dvpt", "WARNING") as logs:
            cls.train(cls.out, max_epochs=8, sampling="balanced")
        cls.said = [record.getMessage() for record in logs.records]

    @classmethod
    def train(cls, out: Path, **settings) -> None:
        given = {**cls.settings, **cls.network, **TRAINING, "output_dir": str(out), **settings}
        train = workflow(SKIN, "train", "train", **given)
        train.run()
        train.finalize()

    def test_training(self):
        report = json.loads((self.out / "report.json").read_text())
        metrics = report["best"]["metrics"]
        self.assertEqual(list(metrics["val_recall_per_class"]), CLASSES)
        self.assertIsNone(metrics["val_recall_per_class"]["grey"])  # undefined, not 0
        self.assertGreater(metrics["val_macro_f1"], 0.8)
        self.assertEqual(report["settings"]["sampling"], "balanced")
        self.assertEqual(report["parameters"]["backbone"]["trainable"], 0)
        metadata = adapter_metadata(self.out / "adapter_best.safetensors")
        self.assertEqual(metadata["labels"], [f"dx {name}" for name in CLASSES])
        prepared = {"value_range": [0, 255], "image_mean": 0.45, "image_std": [0.2, 0.25, 0.3]}
        self.assertEqual(metadata["notes"]["preparation"], prepared)
        self.assertTrue(any("training has no image of grey" in text for text in self.said), self.said)

    def test_evaluate_agrees_with_scikit_learn(self):
        out = self.root / "evaluate"
        adapter = str(self.out / "adapter_best.safetensors")
        given = {**self.settings, "network_def#num_heads": 3, "output_dir": str(out), "adapter_path": adapter}
        evaluate = workflow(SKIN, "evaluate", "train", **given)
        evaluate.run()
        evaluate.finalize()
        found, rows = read_metrics(out / "metrics.csv"), read(out / "predictions.csv")
        best = json.loads((self.out / "report.json").read_text())["best"]["metrics"]
        for name, expected in scores_of(rows, CLASSES).items():
            self.assertAlmostEqual(float(found[name]), expected, places=4)
            if name != "val_auroc":  # the calibration may round two probabilities to one
                self.assertAlmostEqual(best[name], expected, places=4)
        self.assertTrue(all(row["class"] == max(CLASSES, key=lambda c, r=row: float(r[f"p_{c}"])) for row in rows))
        with open(out / "confusion_matrix.csv", newline="") as file:
            matrix = [[int(cell) for cell in line[2:]] for line in list(csv.reader(file))[1:]]
        pairs = [[row[key] for row in rows] for key in ("label", "class")]
        self.assertEqual(matrix, confusion_matrix(*pairs, labels=CLASSES).tolist())
        sure = np.array([float(row["confidence"]) for row in rows])
        gap = sure - [row["label"] == row["class"] for row in rows]
        bins = np.digitize(sure, np.linspace(0, 1, 16))
        ece = sum(abs(gap[bins == each].sum()) for each in set(bins)) / len(gap)
        self.assertAlmostEqual(float(found["val_ece"]), ece, places=4)
        fitted = json.loads((self.out / "calibration.json").read_text())["before"]["brier"]
        self.assertAlmostEqual(float(found["val_brier_uncalibrated"]), fitted, places=3)
        for name in ("reliability.png", "reliability.csv"):
            self.assertTrue((out / name).is_file(), name)

    def test_inference(self):
        """A photograph, and a grey DICOM image, whose class is said by name in a report."""
        images, out = self.root / "new", self.root / "classes"
        images.mkdir()
        Image.open(self.data / "0.png").save(images / "red.png")
        grey = np.random.default_rng(1).integers(0, 200, (44, 37, 1)).astype(np.uint16)
        save_dicom(images / "scan", grey, np.eye(3), np.zeros(3), (1, 1, 1))
        given = {"output_format": "json,dicom_sr", "adapter_path": str(self.out / "adapter_best.safetensors")}
        given |= {**self.settings, "dataset_dir": str(images), "output_dir": str(out)}
        flow = workflow(SKIN, "inference", "infer", **given)
        self.assertEqual(flow.check_properties(), [])
        self.assert_refused(flow, "^1 of 2 inputs failed: red: output_format json, dicom_sr must have DICOM input")
        (report,) = out.glob("*_sr.dcm")
        out = self.root / "classes_of_both"
        flow = workflow(SKIN, "inference", "infer", **{**given, "output_format": "json", "output_dir": str(out)})
        flow.run()
        flow.finalize()
        rows = {row["name"]: row for row in read(out / "classes.csv")}
        self.assertEqual(rows["red"]["class"], "red")
        for name, row in rows.items():
            said = json.loads((out / f"{name}_classes.json").read_text())["outputs"]["dx"]
            self.assertEqual(said["class"], row["class"])
            self.assertEqual(said["class"], max(said["probabilities"], key=said["probabilities"].get))
            self.assertAlmostEqual(sum(said["probabilities"].values()), 1, places=5)
            self.assertTrue((out / f"{name}_classes.png").is_file())
        self.assertEqual(validator_errors(report), [])
        name = report.name.removesuffix("_sr.dcm")
        codes, left = {}, [pydicom.dcmread(report)]
        while left:
            for item in left.pop().get("ContentSequence", []):
                left.append(item)
                if item.ValueType == "CODE":
                    codes[item.ConceptNameCodeSequence[0].CodeMeaning] = item.ConceptCodeSequence[0].CodeMeaning
        self.assertEqual(codes["dx"], rows[name]["class"])

    def test_two_processes_with_balanced_sampling(self):
        out = self.root / "two"
        given = {**self.settings, **self.network, **TRAINING, "output_dir": out, "max_epochs": 1}
        given |= {"sampling": "balanced", "device": "$torch.device('cpu')"}
        launch = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle", "run"]
        run = subprocess.run(
            [sys.executable, "-m", *launch]
            + ["--config_file", "['configs/train.yaml','configs/multi_gpu_train.yaml']"]
            + [part for key, value in given.items() for part in (f"--{key}", str(value))],
            cwd=SKIN,
            capture_output=True,
            text=True,
            timeout=300,
        )
        self.assertEqual(run.returncode, 0, run.stderr[-3000:])
        self.assertEqual(json.loads((out / "report.json").read_text())["last"]["epoch"], 1)

    def test_the_list_as_it_is_published(self):
        """HAM10000's own names its images without a suffix."""
        path, rows = self.root / "HAM10000_metadata.csv", read(self.data / "datalist.csv")
        lines = [f"{row['lesion_id']},{Path(row['image']).stem},{row['dx']},histo,80.0,male,scalp" for row in rows]
        path.write_text("\n".join(["lesion_id,image_id,dx,dx_type,age,sex,localization", *lines]))
        given = {"columns": {"image": "image_id", "patient": "lesion_id"}, "image_path": "{image}.png"}
        parser = workflow(SKIN, "train", "train", **self.settings, datalist=str(path), **given).parser
        cases = [case for part in parser.get_parsed_content("cases").values() for case in part]
        found = {Path(case["image"]).name: (case["group"], CLASSES[case["label"][0]]) for case in cases}
        self.assertEqual(found, {row["image"]: (row["lesion_id"], row["dx"]) for row in rows})

    def test_lists_with_a_column_patient(self):
        """The option of the bundle's page, from the command line; a JSON list needs none."""
        (option,) = set(re.findall(r'--columns ("\{\}"|None|null)', (SKIN / "docs" / "README.md").read_text()))
        rows = read(self.data / "datalist.csv")
        lines = ["image,dx,patient", *(f"{row['image']},{row['dx']},{row['lesion_id']}" for row in rows)]
        (self.root / "patients.csv").write_text("\n".join(lines))
        cases = [{"image": row["image"], "label": row["dx"], "patient": row["lesion_id"]} for row in rows]
        (self.root / "patients.json").write_text(json.dumps({"training": cases}))
        show = "['$print([[c[\"group\"] for c in part] for part in @cases.values()])']"
        for name, options in (("patients.csv", ["--columns", option.strip('"')]), ("patients.json", [])):
            given = {"dataset_dir": self.data, "datalist": self.root / name, "classes": CLASSES, "show": show}
            run = subprocess.run(
                [sys.executable, "-m", "monai.bundle", "run", "show", "--config_file", "configs/train.yaml", *options]
                + [part for key, value in given.items() for part in (f"--{key}", str(value))],
                cwd=SKIN,
                capture_output=True,
                text=True,
                timeout=300,
            )
            self.assertEqual(run.returncode, 0, run.stderr[-3000:])
            training, validation = (set(part) for part in json.loads(run.stdout.splitlines()[-1].replace("'", '"')))
            self.assertEqual(training | validation, {row["lesion_id"] for row in rows})
            self.assertEqual(training & validation, set())

    def test_refused(self):
        unused = {**self.settings, **self.network, "output_dir": str(self.root / "unused")}
        for change, why in (
            ({"sampling": "even"}, "sampling must be one of natural, balanced, got even"),
            (
                {"columns": {"patient": "case"}},
                r"datalist\.csv: must have the columns image and dx, once.* case are missing",
            ),
            ({"classes": CLASSES[:2]}, r"dx must be one of \['red', 'green'\] or its index, got 'blue'"),
        ):
            self.assert_refused(workflow(SKIN, "train", "train", **{**unused, **change}), why)


class TestLesions(BundleTestCase):
    def test_a_few_real_photographs(self):
        """DINOv2 on the shared set's own list: ten lesions of each of four classes, and what it was trained with."""
        source, weights = shared_data("skin_lesions"), shared_data("weights") / "dinov2_vits14_fp16.safetensors"
        if not weights.is_file():
            self.skipTest(f"no weights at {weights}")
        rows, few = read(source / "labels.csv"), Counter()
        classes = ["akiec", "bkl", "nv", "vasc"]
        root = temporary_folder(self)
        with open(root / "labels.csv", "w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            for row in rows:
                few[row["dx"]] += 1
                if row["dx"] in classes and few[row["dx"]] <= 10:
                    table.writerow(row)
        given = {"dataset_dir": str(source), "datalist": str(root / "labels.csv"), "backbone_path": str(weights)}
        given |= {"classes": classes, "img_size": 56, "max_epochs": 6, "output_dir": str(root / "out")}
        train = workflow(SKIN, "train", "train", **given, batch_size=8, amp=False, sampling="balanced")
        train.run()
        train.finalize()
        report = json.loads((root / "out" / "report.json").read_text())
        self.assertEqual(report["settings"]["cases"]["training"] + report["settings"]["cases"]["validation"], 40)
        self.assertLessEqual(report["method_percent_of_encoder"], 0.5)
        losses = [float(row["loss"]) for row in read(root / "out" / "history.csv")]
        self.assertLess(losses[-1], 0.8 * losses[0])
        notes = adapter_metadata(root / "out" / "adapter_best.safetensors")["notes"]
        self.assertEqual(notes["preparation"]["image_mean"], [0.485, 0.456, 0.406])


if __name__ == "__main__":
    unittest.main()
