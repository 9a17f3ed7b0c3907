# SPDX-License-Identifier: Apache-2.0
"""A study from the command line, on a bundle with a small network and small pictures."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import unittest
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from monai.engines import SupervisedTrainer
from monai.transforms import Resize, SpatialPad
from PIL import Image
from sklearn.metrics import cohen_kappa_score
from utils_commands import call
from utils_data import temporary_folder

from monai_dvpt.benchmark.__main__ import main
from monai_dvpt.benchmark.study.job import Task, has_classes, probe_of, read_cases, run_job
from monai_dvpt.benchmark.study.plan import Job, Split
from monai_dvpt.networks.nets import DVPTViT
from monai_dvpt.utils import FolderLock, InputError

BUNDLE = Path(__file__).parents[3] / "bundles" / "xray_dvpt_vit_classification"
DVPT = "dvpt:bottleneck_size=5,num_prompts=3"
NETWORK = {"hidden_size": 24, "mlp_dim": 32, "num_layers": 3, "num_heads": 2}
ENCODER = DVPTViT(3, 32, 16, spatial_dims=2, num_classes=0, method="linear", **NETWORK)


def write_data(folder: Path) -> None:
    """Two pictures of each of 18 patients, graded by the brightness of a square, and random weights."""
    generator = np.random.default_rng(0)
    rows = [("image", "patient", "split", "A", "B")]
    for patient in range(18):
        split = "training" if patient < 10 else "validation" if patient < 14 else "test"
        for shot in range(2):
            grades = patient % 3, (patient + shot) % 3
            pixels = generator.integers(0, 40, (40, 36), dtype=np.uint8)
            pixels[8:30, 4:16] += np.uint8(70 * grades[0])
            pixels[8:30, 20:32] += np.uint8(70 * grades[1])
            Image.fromarray(pixels).save(folder / f"{patient:02}_{shot}.png")
            rows.append((f"{patient:02}_{shot}.png", f"p{patient}", split, *grades))
    with open(folder / "datalist.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    torch.manual_seed(0)
    encoder = {name: torch.randn_like(tensor) * 0.05 for name, tensor in ENCODER.state_dict().items()}
    torch.save(encoder, folder / "encoder.pt")


def settings(folder: Path) -> dict:
    network = {"network_def#num_heads": NETWORK["num_heads"], "image_mean": 0.5, "image_std": 0.5}
    paths = {"dataset_dir": str(folder), "backbone_path": str(folder / "encoder.pt")}
    sizes = {"img_size": 32, "max_epochs": 2}
    return {**paths, **sizes, **network, "outputs": ["A", "B"], "grades": ["none", "some", "much"]}


class TestStudy(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = temporary_folder(cls)
        write_data(cls.folder)

    def study(self, output: Path, *arguments: str, split=("--folds", 0), **changes) -> tuple[int, str, str]:
        texts = [f"{key}={value}" for key, value in {**settings(self.folder), **changes}.items()]
        options = [part for text in texts for part in ("--set", text)]
        common = ("--bundle", BUNDLE, "--output", output, "--workers", 2, "--trials", 2, "--rounds", 0, *split)
        return call(main, "study", *common, *options, *arguments)

    def rows(self, output: Path) -> list[dict[str, str]]:
        with open(output / "runs.csv") as file:
            return list(csv.DictReader(file))

    def test_runs_reports_and_goes_on(self):
        output = self.folder / "study"
        methods = ("--methods", DVPT, "linear", "--reference", "linear", "--fractions", "1", "0.5")
        methods += ("--equal-steps",)
        status, out, err = self.study(output, *methods, "--seeds", "0")
        self.assertEqual(status, 0, err)
        rows = self.rows(output)
        self.assertEqual([row["kind"] for row in rows], ["trial"] * 6 + ["final"] * 6)
        cases = {(r["kind"], r["fraction"]): (r["training_cases"], r["scored_cases"]) for r in rows}
        self.assertEqual(
            cases, {("trial", "1.0"): ("20", "8"), ("final", "1.0"): ("28", "8"), ("final", "0.5"): ("14", "8")}
        )
        counts = {row["method"]: (row["encoder_parameters"], row["head_parameters"]) for row in rows}
        block = 24 * 5 + 5 + 3 * 5 + 1 + 5 * 24 + 24
        head = str((2 * 24 + 1) * 2 * 3)  # of class token and mean, for two outputs of three grades
        pixels = str((3 * 8 * 8 + 1) * 2 * 3)
        self.assertEqual(counts, {DVPT: (str(3 * block), head), "linear": ("0", head), "pixels": ("0", pixels)})
        for method in (DVPT, "linear", "pixels"):
            trials = [row for row in rows if (row["method"], row["kind"]) == (method, "trial")]
            best = max(trials, key=lambda row: (float(row["score"]), -float(row["head_rate"])))
            names = ("encoder_rate", "head_rate", "weight_decay", "layer_decay")
            (chosen,) = {
                tuple(r[name] for name in names) for r in rows if (r["method"], r["kind"]) == (method, "final")
            }
            self.assertEqual(chosen, tuple(best[name] for name in names))
        self.assertIn("| linear | 100% | 28 | 1 |", out)
        self.assertIn("--equal-steps", out)
        for name in ("study.md", "plan.json", "score_by_labels.png", "score_by_parameters.png", "score_by_cost.png"):
            self.assertTrue((output / name).is_file(), name)
        self.check_predictions(output, rows)
        # what is there is not run again: a mark in the file stays
        rows[-1]["score"] = "0.123456"
        self.write(output, rows)
        status, out, err = self.study(output, *methods, "--seeds", "0", "1")
        self.assertEqual(status, 0, err)
        again = self.rows(output)
        self.assertEqual([row["score"] for row in again].count("0.123456"), 1)
        self.assertEqual({row["seed"] for row in again if row["kind"] == "final"}, {"0", "1"})
        self.assertEqual(len(again), 6 + 12)
        # predictions that somebody changed are refused, and the file is named
        (changed,) = {row["predictions"] for row in again if row["score"] == "0.123456"}
        text = (output / "predictions" / changed).read_text()
        lines = text.splitlines(keepends=True)
        for broken, rule in (
            (lines[:-1], "must have 8 cases, got 7"),
            ([*lines[:-1], "a.png,p17,?\n"], "must have a number"),
        ):
            (output / "predictions" / changed).write_text("".join(broken))
            status, _, err = self.study(output, *methods, "--seeds", "0", "1")
            self.assertEqual(status, 1)
            self.assertRegex(err.splitlines()[-1], rf"^error: .*predictions/{changed}: {rule}")
        # a run whose predictions are gone is run again
        (gone,) = {row["predictions"] for row in again if row["score"] == "0.123456"}
        (output / "predictions" / gone).unlink()
        status, out, err = self.study(output, *methods, "--seeds", "0", "1")
        self.assertEqual(status, 0, err)
        self.assertNotIn("0.123456", [row["score"] for row in self.rows(output)])
        # learning rates that other trials chose are no further runs
        trials = [row for row in again if (row["kind"], row["method"]) == ("trial", "linear")]
        for row, score in zip(trials, sorted((row["score"] for row in trials), key=float), strict=True):
            row["score"] = str(1 - float(score))  # the other one wins
        self.write(output, again)
        status, out, err = self.study(output, *methods, "--seeds", "0", "1")
        self.assertEqual(status, 0, err)
        self.assertIn("| linear | 100% | 28 | 2 |", out)

    def test_second_study_in_a_folder_is_refused(self):
        with FolderLock(self.folder / "locked"):
            status, _, err = self.study(self.folder / "locked", "--methods", "full", "--seeds", "0")
        self.assertEqual(status, 1)
        self.assertRegex(err, rf"one run at a time, and another one writes there: process {os.getpid()} on ")
        self.assertFalse((self.folder / "locked" / "plan.json").exists())

    def test_few_patients_have_five_folds_by_default(self):
        output = self.folder / "folds"
        methods = ("--methods", "linear", "--reference", "linear", "--seeds", "0", "--trials", "1", "--only-folds", "3")
        status, out, err = self.study(output, *methods, split=())
        self.assertEqual(status, 0, err)
        rows = self.rows(output)
        self.assertEqual(len(rows), 4)
        # 18 patients with two images each are 4, 4, 4, 3 and 3; of the other 30 images a quarter tunes
        cases = {(row["kind"], row["fold"], row["training_cases"], row["scored_cases"]) for row in rows}
        self.assertEqual(cases, {("trial", "3", "22", "8"), ("final", "3", "30", "6")})
        self.assertIn("--folds 5", out)
        self.assertIn("--only-folds 3", out)
        self.assertEqual(json.loads((output / "plan.json").read_text())["folds"], 5)

    def test_another_plan_is_refused(self):
        output = self.folder / "plans"
        output.mkdir()
        methods = ("--methods", "linear", "--reference", "linear", "--seeds", "0", "--trials", "1")
        status, _, err = self.study(output, *methods)
        self.assertEqual(status, 0, err)
        status, _, err = self.study(output, *methods, "--equal-steps")
        self.assertIn("plan.json: must be of the same plan, equal_steps changed", err)
        for changes, named in (({"max_epochs": 3}, "--set max_epochs"), ({"outputs": ["A"]}, "--set outputs, cases")):
            status, _, err = self.study(output, *methods, **changes)
            self.assertEqual(status, 1)
            self.assertIn(f"plan.json: must be of the same plan, {named} changed", err)
        for name, value in (("trials", "3"), ("rounds", "1")):
            status, _, err = self.study(output, *methods, f"--{name}", value)
            self.assertIn(f"plan.json: must be of the same plan, {name} changed", err)
        other = self.folder / "other.pt"  # other weights
        torch.save({name: tensor + 1 for name, tensor in ENCODER.state_dict().items()}, other)
        status, _, err = self.study(output, *methods, backbone_path=other)
        self.assertIn("plan.json: must be of the same plan, --set backbone_path changed", err)
        self.check_files_of_one_method(output, methods, other)
        (output / "plan.json").unlink()
        status, _, err = self.study(output, *methods)
        self.assertIn("plan.json: must say what runs.csv depends on", err)

    def check_files_of_one_method(self, output: Path, methods: tuple[str, ...], weights: Path) -> None:
        """A method with a file of its own may join the others; later the file must hold the same."""
        arm = f"linear+backbone_path={weights}"
        status, _, err = self.study(output, *methods, "--methods", "linear", arm)
        self.assertEqual(status, 0, err)
        kept = json.loads((output / "plan.json").read_text())
        digest = subprocess.run(["sha256sum", weights], capture_output=True, text=True, check=True).stdout.split()[0]
        self.assertEqual(kept[f"--methods {arm}, backbone_path"], f"SHA-256 {digest}")
        torch.save({name: tensor - 1 for name, tensor in ENCODER.state_dict().items()}, weights)
        status, _, err = self.study(output, *methods)  # without the method its file does not matter, but stays known
        self.assertEqual((status, json.loads((output / "plan.json").read_text())), (0, kept), err)
        status, _, err = self.study(output, *methods, "--methods", "linear", arm)
        self.assertEqual(status, 1)
        self.assertIn(f"plan.json: must be of the same plan, --methods {arm}, backbone_path changed", err)

    def check_predictions(self, output: Path, rows: list[dict[str, str]]) -> None:
        """Of every final run the grades of all test cases, whose kappa is its score, and the interval of the report."""
        self.assertEqual({row["predictions"] for row in rows if row["kind"] == "trial"}, {""})
        finals = [row for row in rows if row["kind"] == "final"]
        self.assertEqual(len({row["predictions"] for row in finals}), 6)
        for row in finals:
            with open(output / "predictions" / row["predictions"]) as file:
                cases = list(csv.DictReader(file))
            self.assertEqual([case["image"] for case in cases], [f"{p}_{s}.png" for p in range(14, 18) for s in (0, 1)])
            self.assertEqual([case["patient"] for case in cases], [f"p{p}" for p in range(14, 18) for _ in (0, 1)])
            pairs = [(case[f"label_{k}"], case[f"prediction_{k}"]) for case in cases for k in (0, 1)]
            kappa = cohen_kappa_score(*zip(*pairs, strict=True), labels=["0", "1", "2"], weights="quadratic")
            self.assertAlmostEqual(float(row["score"]), kappa, places=6)
        report = (output / "study.md").read_text()
        self.assertRegex(report, r"\| linear \| 50% \| 14 \| 1 \| -?\d\.\d+ \(.* to .*\) \| -?\d.* p \d\.\d+ \|")

    def write(self, output: Path, rows: list[dict[str, str]]) -> None:
        with open(output / "runs.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def test_probe_has_no_prompts(self):
        knees = Task(str(BUNDLE.with_name("knee_xray_dvpt_vit_classification")))
        self.assertEqual(probe_of(knees), "linear+pooling=both")
        changed = (["prompts", {"every": 1}], "linear+pooling=both"), ("mean", "linear")
        for pooling, probe in changed:
            self.assertEqual(probe_of(Task(knees.bundle, {"pooling": pooling})), probe)
        self.assertEqual(probe_of(Task(str(BUNDLE.with_name("brain_mri_dvpt_unetr_segmentation")))), "linear")

    def test_settings_of_one_method(self):
        output = self.folder / "settings"
        arm = "linear+pooling=[prompts, {num_prompts: 2, bottleneck_size: 5}]"
        methods = ("--methods", "linear", arm, "--reference", "linear", "--seeds", "0", "--trials", "1")
        status, out, err = self.study(output, *methods)
        self.assertEqual(status, 0, err)
        counts = {row["method"]: row["head_parameters"] for row in self.rows(output)}
        pooled = (2 * 24 + 1) * 2 * 3
        read = (24 * 5 + 5) + 2 * 5 + (2 * 5) * 2 * 3  # bottleneck, prompts, and their part of the linear layer
        self.assertEqual((counts["linear"], counts[arm]), (str(pooled), str(pooled + read)))
        self.assertIn(f"| {arm} |", out)

    def test_a_run_that_fails_leaves_the_others(self):
        output = self.folder / "failing"
        methods = ("--methods", "linear", "dvpt:bottleneck_size=24", "--reference", "linear", "--seeds", "0")
        status, _, err = self.study(output, *methods)
        self.assertEqual(status, 1)
        self.assertEqual(err.splitlines()[-1].count("bottleneck_size must be"), 2)  # of both trials, and nothing else
        self.assertNotIn("Traceback", err)
        self.assertIn("Traceback", (output / "log.txt").read_text())
        self.assertEqual({row["method"] for row in self.rows(output)}, {"linear", "pixels"})

    def test_bad_arguments(self):
        for arguments, message in (
            (("--fractions", "0"), "--fractions must be in (0, 1], got [0.0]."),
            (("--folds", "1"), "--folds must be 0 or at least 2, got 1."),
            (("--rounds", "-1"), "--rounds must be at least 0, got -1."),
            (("--folds", "3", "--only-folds", "1", "3"), "--only-folds must be of the 3 folds from 0, got [1, 3]."),
            (("--methods", "dvpt"), "--reference must be one of --methods, got full."),
            (("--set", "max_epochs"), "--set must be KEY=VALUE, got max_epochs."),
            (
                ("--set", "epochs=3"),
                "--set must have a key of train.yaml that the study does not set itself, got epochs.",
            ),
            (
                ("--set", "weight_decay=1"),
                "--set must have a key of train.yaml that the study does not set itself, got weight_decay.",
            ),
            (("--set", "seed=3"), "--set must have a key of train.yaml that the study does not set itself, got seed."),
            (
                ("--set", "method#num_prompts=3"),
                "--set must have a key of train.yaml that the study does not set itself, got method#num_prompts.",
            ),
            (
                ("--methods", "full", "linear+epochs=3"),
                "--methods must have a key of train.yaml that the study does not set itself, got epochs.",
            ),
            (("--set", "outputs=["), "outputs must have a value in YAML, got [."),
            (("--fractions", "0.5"), "--fractions must have 1, which the others are compared with, got [0.5]."),
        ):
            status, _, err = self.study(self.folder / "bad", *arguments)
            self.assertEqual((status, err.strip()), (1, f"error: {message}"))
        status, _, err = call(main, "study", "--bundle", self.folder, "--output", self.folder / "bad")
        self.assertIn("--bundle must hold configs/train.yaml", err)


class TestJob(unittest.TestCase):
    def test_the_pixel_baseline_is_for_whole_images(self):
        found = {path.name: has_classes(Task(str(path))) for path in BUNDLE.parent.iterdir() if path.is_dir()}
        self.assertEqual(found, {name: name.endswith("_classification") for name in found})

    def data(self) -> tuple[Path, list[dict]]:
        folder = temporary_folder(self)
        write_data(folder)
        cases = [
            {"image": str(folder / f"{p:02}_{s}.png"), "name": f"{p}{s}", "label": [p % 3, (p + s) % 3]}
            for p in range(6)
            for s in range(2)
        ]
        return folder, cases

    def test_a_share_of_the_labels_takes_as_many_steps(self):
        folder, cases = self.data()
        # 11 cases are two batches an epoch, a quarter of them is one
        for equal_steps, crops, fraction, epochs, steps in (
            (True, 1, 1.0, 2, 4),
            (True, 1, 0.25, 4, 4),
            (True, 5, 0.25, 7, 14),  # 55 crops are seven batches, 15 are two
            (False, 1, 0.25, 2, 2),
        ):
            crop = {"crops_per_case": crops, "train#dataset#data#data": "$@cases['training'] * @crops_per_case"}
            task = Task(str(BUNDLE), {**settings(folder), **crop}, equal_steps=equal_steps)
            job = Job("final", "linear", 0, 0, fraction, 1e-2, 1e-2, 0.05, 1.0)
            with patch.object(SupervisedTrainer, "run", autospec=True, side_effect=SupervisedTrainer.run) as run:
                run_job(task, job, Split(cases[:7], cases[7:11], cases[11:]))
            (trainer,) = run.call_args.args
            self.assertEqual((trainer.state.max_epochs, trainer.state.iteration), (epochs, steps))
            if epochs > 2:  # the schedule of the learning rate ends with the last epoch
                self.assertLess(trainer.optimizer.param_groups[0]["lr"], 5e-3)

    def test_a_seed_decides_the_score(self):
        folder, cases = self.data()
        job = Job("final", "dvpt:bottleneck_size=5", 0, 3, 1.0, 1e-2, 1e-2, 0.05, 1.0)
        results = [run_job(Task(str(BUNDLE), settings(folder)), job, Split(cases[:8], [], cases[8:])) for _ in range(2)]
        for result in results:
            result.pop("seconds"), result.pop("peak_memory_mib")
        self.assertEqual(*results)
        self.assertEqual(results[0]["metric"], "val_kappa")
        # without patients in the list each image is one, by its path in the folder of the data
        self.assertEqual([case["patient"] for case in results[0]["cases"]], [Path(c["image"]).name for c in cases[8:]])
        # what the job leaves open is as in the bundle, whose 10 prompts serve one layer each
        block = 24 * 5 + 5 + 10 * 5 + 1 + 5 * 24 + 24
        self.assertEqual(results[0]["encoder_parameters"], 3 * block)

    def test_predictions_of_a_list_without_patients_are_alike_in_any_folder(self):
        job, found = Job("final", "linear", 0, 0, 1.0, 0.0, 1e-2, 0.05, 1.0), []
        for _ in range(2):
            folder = temporary_folder(self)
            write_data(folder)
            with open(folder / "datalist.csv", newline="") as file:
                rows = [{k: v for k, v in row.items() if k != "patient"} for row in csv.DictReader(file)]
            with open(folder / "datalist.csv", "w", newline="") as file:
                table = csv.DictWriter(file, list(rows[0]))
                table.writeheader()
                table.writerows(rows)
            task = Task(str(BUNDLE), {**settings(folder), "max_epochs": 1})
            lists = read_cases(task)
            found.append(run_job(task, job, Split(lists["training"][:6], [], lists["test"]))["cases"])
        self.assertEqual(*found)
        names = [row["image"] for row in rows if row["split"] == "test"]
        self.assertEqual([(case["image"], case["patient"]) for case in found[0]], [(name, name) for name in names])

    def test_a_run_that_diverges_is_the_worst_trial_and_no_final_run(self):
        folder, cases = self.data()
        split, task = Split(cases[:7], cases[7:], cases[7:]), Task(str(BUNDLE), settings(folder))
        result = run_job(task, Job("trial", "linear", 0, 0, 1.0, 0.0, 1e38, 0.05, 1.0), split)
        self.assertTrue(math.isnan(result["score"]))
        self.assertEqual((result["metric"], result["training_cases"], result["scored_cases"]), ("val_kappa", 7, 5))
        with self.assertRaisesRegex(InputError, "training must stay finite, but diverged"):
            run_job(task, Job("final", "linear", 0, 0, 1.0, 0.0, 1e38, 0.05, 1.0), split)

    def test_decays_reach_the_optimiser(self):
        folder, cases = self.data()
        job = Job("final", "full", 0, 0, 1.0, 1e-3, 2e-3, 0.07, 0.5)
        with patch.object(SupervisedTrainer, "run", autospec=True, side_effect=SupervisedTrainer.run) as run:
            run_job(Task(str(BUNDLE), settings(folder)), job, Split(cases[:7], [], cases[7:]))
        (trainer,) = run.call_args.args
        groups = trainer.optimizer.param_groups
        self.assertEqual({group["weight_decay"] for group in groups}, {0.0, 0.07})
        rates = {round(math.log2(group["initial_lr"] / 1e-3)) for group in groups}
        self.assertEqual(rates, {1, 0, -1, -2, -3, -4})  # head, norm, three layers, embedding

    def test_the_pixel_baseline_is_one_of_the_prepared_image(self):
        """Its grades are those of its weights on block means by NumPy, of images without augmentation."""
        folder, cases = self.data()
        job = Job("final", "pixels", 0, 0, 1.0, 0.0, 3e-2, 1e-4, 1.0)
        with patch.object(SupervisedTrainer, "run", autospec=True, side_effect=SupervisedTrainer.run) as run:
            result = run_job(
                Task(str(BUNDLE), {**settings(folder), "max_epochs": 30, "prefix_cache": "memory"}),
                job,
                Split(cases[:9], [], cases[9:]),
            )
        (trainer,) = run.call_args.args
        self.assertEqual({group["weight_decay"] for group in trainer.optimizer.param_groups}, {0.0, 1e-4})
        images = np.stack([self.prepared(Path(case["image"])) for case in cases])
        means = images.reshape(len(cases), 3, 8, 4, 8, 4).mean((3, 5)).reshape(len(cases), -1)
        features = (means - means[:9].mean(0)) / np.maximum(means[:9].std(0), 1e-6)
        linear = trainer.network.linear
        logits = features @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
        logits = logits.reshape(len(cases), 2, 3)
        shares = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
        grades = np.rint(shares @ np.arange(3)).astype(int)
        found = [[case["prediction_0"], case["prediction_1"]] for case in result["cases"]]
        self.assertEqual(found, grades[9:].tolist())
        # it learned: almost all grades of what it was trained on are right
        self.assertGreater((grades[:9] == [case["label"] for case in cases[:9]]).mean(), 0.8)

    def prepared(self, path: Path) -> np.ndarray:
        """A radiograph as the bundle prepares it, by Pillow, NumPy and MONAI's resizing alone."""
        pixels = np.asarray(Image.open(path), dtype=np.float64)
        low, high = np.percentile(pixels, [1, 99])
        scaled = np.clip((pixels - low) / (high - low), 0, 1)
        resize = Resize(32, size_mode="longest", mode="bilinear", anti_aliasing=True)
        padded = SpatialPad([32, 32])(resize(np.repeat(scaled[None], 3, axis=0).astype(np.float32)))
        return (np.asarray(padded) - 0.5) / 0.5

    def test_parts_may_stay_frozen(self):
        folder, cases = self.data()
        settings_ = {**settings(folder), "trainable": ["method"]}
        job = Job("final", "bitfit", 0, 0, 1.0, 1e-2, 1e-2, 0.05, 1.0)
        result = run_job(Task(str(BUNDLE), settings_), job, Split(cases[:8], [], cases[8:]))
        biases = 24 + 3 * (24 + 24 + 3 * 24 + 24 + 32 + 24) + 24  # patches; in a layer norms, qkv, out, MLP; last norm
        self.assertEqual((result["encoder_parameters"], result["head_parameters"]), (biases, 0))
