# SPDX-License-Identifier: Apache-2.0
"""Choices by trials: which backbone is taken, what rates a search finds in its time; only training cases are read."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import itertools
import json
import math
import shutil
import unittest
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import yaml
from monai.networks.nets import ViT
from PIL import Image
from utils_commands import call
from utils_data import shared_data, temporary_folder

from monai_dvpt.__main__ import main
from monai_dvpt.apps.new_bundle import NewBundle, Options
from monai_dvpt.apps.new_bundle.plan import make_plan
from monai_dvpt.apps.new_bundle.trials import choose_file, search_rates
from monai_dvpt.apps.new_bundle.trials.backbones import draw_cases
from monai_dvpt.apps.new_bundle.trials.rates import Trials
from monai_dvpt.apps.new_bundle.trials.trial_bundle import inner_parts
from monai_dvpt.benchmark.study.job import Task, train_and_score
from monai_dvpt.benchmark.study.plan import Job, Split
from monai_dvpt.utils import InputError

TINY = "weights/vit_tiny_patch16_224_timm.safetensors"
PLANNED = Job("trial", "linear", 0, 0, 1.0, 0.0, 1e-3, 0.05, 1.0)


def save_knees(root: Path, patients: int = 6) -> Path:
    """Knees without and with severe arthrosis, as pictures of 224 pixels, and their table."""
    source = shared_data("knee_kl")
    with open(source / "labels.csv", newline="") as file:
        rows = sorted((row for row in csv.DictReader(file) if row["kl_grade"] in "03"), key=lambda row: row["image"])
    chosen = []
    for grade in "03":
        known = dict.fromkeys(row["patient"] for row in rows if row["kl_grade"] == grade)
        wanted = set(itertools.islice(known, patients))
        chosen += [row for row in rows if row["patient"] in wanted and row["kl_grade"] == grade]
    (root / "images").mkdir(parents=True)
    for row in chosen:
        shutil.copy(source / row["image"], root / row["image"])
    with open(root / "labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(chosen[0]))
        writer.writeheader()
        writer.writerows(chosen)
    return root


def save_lesions(root: Path, count: int = 10) -> Path:
    source = shared_data("skin_lesions")
    for mask in sorted((source / "masks").iterdir())[:count]:
        image = next((source / "images").glob(f"{mask.stem.split('_seg')[0]}*"))
        for folder, path, name in (("images", image, f"{image.stem}.jpg"), ("masks", mask, f"{image.stem}.png")):
            (root / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / folder / name)
    return root


def save_hippocampus(root: Path, count: int = 8) -> Path:
    source = shared_data("msd_hippocampus")
    labels = sorted(source.rglob("labelsTr/*.nii.gz"))[:count]
    for label in labels:
        for folder, path in (("labelsTr", label), ("imagesTr", label.parent.parent / "imagesTr" / label.name)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / folder / label.name)
    return root


def random_vit(path: Path, layers: int = 12) -> Path:
    """Random weights of the size of ViT-Ti, or of fewer layers."""
    torch.manual_seed(0)
    net = ViT(3, 224, 16, 192, 768, layers, num_heads=3, classification=True, spatial_dims=2, qkv_bias=True)
    torch.save(net.state_dict(), path)
    return path


def looked_at(root: Path, backbone=None, **options) -> NewBundle:
    new = NewBundle(root, Options(secret=bytes(32), **options), backbone)
    new.look()
    return new


def facts(new: NewBundle):
    return new.collection, new.measured, new.parts


def ruin_all_but_training(new: NewBundle) -> int:
    training = set(new.parts["training"])
    others = [case for index, case in enumerate(new.collection.cases) if index not in training]
    for case in others:
        Path(case.image).write_bytes(b"not to be read")
    return len(others)


class TestBackbones(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.tiny = shared_data(TINY)

    def test_grades_of_knees_on_training_cases_alone(self):
        new = looked_at(save_knees(self.folder / "knees"), outputs=["kl_grade"], task="grading")
        self.assertGreater(ruin_all_but_training(new), 2)
        file, found = choose_file(*facts(new), [self.tiny, random_vit(self.folder / "vit.pt", layers=2)])
        self.assertEqual({each.name for each in found.scores}, {self.tiny.name, "vit.pt"})
        self.assertEqual(found.images, len(new.parts["training"]))
        self.assertEqual(found.patients, len({new.collection.cases[index].patient for index in new.parts["training"]}))
        self.assertEqual(found.metric, "quadratic kappa")
        self.assertEqual(str(file), str(self.tiny if found.chosen.name == self.tiny.name else self.folder / "vit.pt"))
        Path(new.collection.cases[new.parts["training"][0]].image).write_bytes(b"to be read")
        with self.assertRaisesRegex(InputError, "cannot identify image|cannot be read|transform"):
            choose_file(*facts(new), [self.folder / "vit.pt", self.tiny])

    def test_a_probe_that_fails_names_its_backbone(self):
        new = looked_at(save_knees(self.folder / "knees", 3), outputs=["kl_grade"], task="grading")
        files = [random_vit(self.folder / name, layers=1) for name in ("a.pt", "b.pt")]
        calls = []

        def fail(net, dataset, name):
            calls.append(name)
            if name == "b.pt":
                raise torch.cuda.OutOfMemoryError("too large")
            return torch.rand(len(dataset), 4).double(), torch.stack([torch.as_tensor(d["label"]) for d in dataset])

        with patch("monai_dvpt.apps.probe.compare.image_features", fail):
            with self.assertRaisesRegex(InputError, r"^b\.pt: OutOfMemoryError: too large"):
                choose_file(*facts(new), files)
        self.assertEqual(calls, ["a.pt", "b.pt"])

    def test_lesions(self):
        new = looked_at(save_lesions(self.folder / "lesions"), self.tiny)
        self.assertEqual(new.collection.task, "segmentation")
        ruin_all_but_training(new)
        file, found = choose_file(*facts(new), [random_vit(self.folder / "vit.pt"), self.tiny])
        dice = {each.name: each.score.mean for each in found.scores}
        self.assertGreater(dice[self.tiny.name], 0.6)
        self.assertGreater(dice[self.tiny.name], dice["vit.pt"])

    def test_volumes_try_the_shipped_weights_too(self):
        new = looked_at(save_hippocampus(self.folder / "volumes"))
        ruin_all_but_training(new)
        file, found = choose_file(*facts(new), [self.tiny])
        self.assertEqual([each.name for each in found.scores][0], self.tiny.name)
        self.assertEqual(len(found.scores), 2)
        self.assertEqual(file is None, found.chosen.name != self.tiny.name)
        self.assertTrue(all(0.02 < each.score.mean < 1 for each in found.scores), found.scores)
        self.assertTrue(all(each.parameters > 1e6 for each in found.scores))

    def test_names_tell_files_apart(self):
        new = looked_at(save_knees(self.folder / "knees", 3), outputs=["kl_grade"], task="classification")
        files = []
        for name in ("a", "b"):
            (self.folder / name).mkdir()
            files.append(random_vit(self.folder / name / "vit.pt", layers=1))
        _, found = choose_file(*facts(new), files)
        self.assertEqual([each.name for each in found.scores], ["a/vit.pt", "b/vit.pt"])
        self.assertEqual(found.metric, "balanced accuracy")
        self.assertEqual(found.scores[0].score, found.scores[1].score)  # the same weights
        self.assertEqual(found.scores[1].below_best, (0, 0, 0))

    def test_drawn_cases_keep_the_shares_of_grades(self):
        new = looked_at(save_knees(self.folder / "knees"), outputs=["kl_grade"], task="grading")
        everything = range(len(new.collection.cases))
        share = np.mean([new.collection.cases[index].grades["kl_grade"] == "3" for index in everything])
        drawn = draw_cases(new.collection, new.measured, everything, 8)
        self.assertEqual((len(drawn), len(set(drawn))), (8, 8))
        found = np.mean([new.collection.cases[index].grades["kl_grade"] == "3" for index in drawn])
        self.assertAlmostEqual(found, share, delta=1 / 8)


def near_a_hundredth(job: Job) -> float:
    """A score, the best of which has the rate 0.01."""
    return -abs(np.log10(job.head_rate) + 2)


class FakeTraining:
    """
    Trains on a clock of its own, of which an epoch and what is beside it take as long as said; in no time, with a score
    by the job, or really.
    """

    def __init__(self, epoch: float, beside: float, slower: float = 1.0, score=near_a_hundredth, real=False) -> None:
        self.now, self.epoch, self.beside, self.slower = 1000.0, epoch, beside, slower
        self.score, self.real = score, real
        self.trials: list[tuple[Job, int, float, float]] = []

    def clock(self) -> float:
        return self.now

    def __call__(self, task: Task, job: Job, split: Split) -> dict:
        epochs, begun = task.settings["max_epochs"], self.now
        seconds = epochs * self.epoch * (self.slower if self.trials else 1)
        self.now += seconds + self.beside
        self.trials.append((job, epochs, begun, self.now))
        if self.real:
            return {**train_and_score(task, job, split), "seconds": seconds}
        return {**asdict(job), "metric": "val_kappa", "score": self.score(job), "seconds": seconds}

    def run(self, minutes: float, max_epochs: int = 40) -> Trials:
        trials = Trials(Task("none"), Split([], [], []), PLANNED, max_epochs, self, self.clock)
        trials.run(self.now + 60 * minutes)
        return trials


class TestTime(unittest.TestCase):
    def test_a_search_ends_in_time(self):
        for epoch, beside, minutes in itertools.product((0.01, 0.5, 4, 30), (0.1, 20), (0.5, 3, 20)):
            fake = FakeTraining(epoch, beside)
            trials = fake.run(minutes)
            with self.subTest(epoch=epoch, beside=beside, minutes=minutes):
                first = fake.trials[0]
                self.assertEqual(first[:2], (PLANNED, 1))  # measured, not scored
                self.assertTrue(all(end <= 1000 + 60 * minutes + 1e-6 for *_, end in fake.trials[1:]))
                self.assertEqual(len(trials.rows), len(fake.trials) - 1)
                self.assertLessEqual(len({epochs for _, epochs, *_ in fake.trials[1:]}), 1)
                if trials.rows:
                    self.assertEqual(fake.trials[1][0], PLANNED)
                    self.assertLessEqual(fake.trials[1][1], 40)

    def test_trials_that_take_longer_than_the_first_epoch_told_cost_one_trial_at_most(self):
        fake = FakeTraining(1, 2, slower=3)
        fake.run(10)
        longest = max(end - begun for _, _, begun, end in fake.trials)
        self.assertGreater(len(fake.trials), 2)
        self.assertLessEqual(fake.trials[-1][3], 1600 + longest)
        self.assertTrue(all(begun + longest <= 1600 + 1e-6 for _, _, begun, _ in fake.trials[3:]))

    def test_a_long_search_trains_all_epochs_and_comes_near_the_best(self):
        fake = FakeTraining(0.1, 0.1)
        trials = fake.run(60)
        self.assertEqual(trials.epochs, 40)
        self.assertEqual(len(trials.rows), 1 + 8 + 2 * 5)
        best = max(trials.rows, key=lambda row: row["score"])
        self.assertAlmostEqual(best["head_rate"] / 0.01, 1, delta=0.15)

    def test_a_short_search_has_fewer_and_shorter_trials(self):
        shorter = FakeTraining(1, 1).run(5)
        self.assertEqual(shorter.epochs, 21)  # 13 trials of 22 seconds, after one of 2
        self.assertGreaterEqual(len(shorter.rows), 13)
        fewer = FakeTraining(4, 1).run(4)
        self.assertEqual(fewer.epochs, 11)  # of 5 trials, since 9 or 13 would have under 10 epochs
        self.assertEqual(len(fewer.rows), 5)


class TestRates(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)

    def test_a_better_rate_than_an_absurd_one_is_found_on_training_cases_alone(self):
        tiny = shared_data(TINY)
        new = looked_at(save_knees(self.folder / "knees"), tiny, outputs=["kl_grade"], task="grading")
        ruin_all_but_training(new)
        plan = make_plan(*facts(new), tiny, None)
        plan.choose("learning_rates", {"method": 3e-3, "head": 1e-9}, "absurd.")
        plan.choose("max_epochs", 8, "few.")
        fake = FakeTraining(1, 1, real=True)
        search_rates(plan, *facts(new), 1, fake, fake.clock)
        self.assertGreater(plan["learning_rates"]["head"], 5e-5)
        self.assertEqual(plan["learning_rates"]["method"], 3e-3)  # nothing in the encoder is trained
        reason = plan.choices["learning_rates"].reason
        self.assertRegex(
            reason,
            r"searched: \d+ trials of \d of 8 epochs .*scored by val_kappa: the best is taken, .*head 1e-09, ",
        )
        self.assertLess(len(reason), 400)
        details = plan.choices["learning_rates"].details
        self.assertEqual(details[0]["head"], 1e-9)
        best = max(float(trial["val_kappa"]) for trial in details)
        taken = {
            "head": plan["learning_rates"]["head"],
            "weight decay": plan["weight_decay"],
            "val_kappa": f"{best:.3f}",
        }
        self.assertIn(taken, details)
        self.assertEqual(plan.as_json()["learning_rates"]["details"], details)

    def searched(self, score) -> tuple[dict, dict, str, int]:
        """Planned and found rates, the reason, and the number of trainings of a long search with such scores."""
        vit = random_vit(self.folder / "vit.pt", layers=1)
        new = looked_at(save_knees(self.folder / "knees", 3), vit, outputs=["kl_grade"], task="grading")
        plan = make_plan(*facts(new), vit, None)
        before, fake = dict(plan.values), FakeTraining(0.1, 0.1, score=score)
        search_rates(plan, *facts(new), 60, fake, fake.clock)
        planned, found = ({key: each[key] for key in ("learning_rates", "weight_decay")} for each in (before, plan))
        return planned, found, plan.choices["learning_rates"].reason, len(fake.trials)

    def test_trials_that_score_alike_keep_the_plan_and_end_the_search(self):
        for value in (0.0, 1.0, math.nan):
            with self.subTest(value):
                self.setUp()
                planned, found, reason, count = self.searched(lambda job, value=value: value)
                self.assertEqual(found, planned)
                self.assertRegex(reason, r"not searched: all 9 trials scored alike, (0\.000|1\.000|nan)\.$")
                self.assertLessEqual(count, 2 + 9)

    def test_a_trial_must_be_better_than_the_planned_one(self):
        first = []

        def worse_or_equal(job: Job) -> float:
            first.append(job)
            return 0.5 if job == first[0] or len(first) % 2 else 0.25

        planned, found, reason, _ = self.searched(worse_or_equal)
        self.assertEqual(found, planned)
        self.assertIn("no trial was better than the planned one", reason)
        self.assertNotIn("the best is taken", reason)

    def test_a_trial_that_fails_costs_no_other(self):
        def fails_with_large_rates(job: Job) -> float:
            if job.head_rate > 0.02:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return near_a_hundredth(job)

        planned, found, reason, _ = self.searched(fails_with_large_rates)
        self.assertRegex(reason, r"; [1-9]\d* failed with OutOfMemoryError\.$")
        self.assertIn("the best is taken", reason)
        self.assertLess(abs(math.log10(found["learning_rates"]["head"]) + 2), 0.5)

    def test_a_first_trial_that_fails_keeps_the_plan(self):
        def fail(job: Job) -> float:
            raise RuntimeError("no kernel image")

        planned, found, reason, count = self.searched(fail)
        self.assertEqual((found, count), (planned, 1))
        self.assertIn("not searched: the first trial failed (RuntimeError: no kernel image).", reason)

    def test_bad_input_ends_the_search(self):
        def fail(job: Job) -> float:
            try:
                raise InputError("a.png: must be an image.")
            except InputError as error:
                raise RuntimeError("applying transform") from error

        with self.assertRaisesRegex(InputError, r"^a\.png: must be an image\.$"):
            self.searched(fail)

    def test_inner_parts_share_no_patient_and_no_other_part(self):
        new = looked_at(save_knees(self.folder / "knees"), outputs=["kl_grade"], task="grading")
        inner = inner_parts(new.collection, new.measured, new.parts["training"])
        self.assertEqual(sorted([*inner["training"], *inner["validation"]]), sorted(new.parts["training"]))
        patients = [{new.collection.cases[index].patient for index in inner[part]} for part in inner]
        self.assertFalse(patients[0] & patients[1])

    def test_too_little_time_keeps_the_plan_and_says_so(self):
        tiny = random_vit(self.folder / "vit.pt", layers=1)
        new = looked_at(save_knees(self.folder / "knees", 3), tiny, outputs=["kl_grade"], task="grading")
        plan = make_plan(*facts(new), tiny, None)
        before = plan.values
        search_rates(plan, *facts(new), minutes=1e-3)
        self.assertEqual(plan.values, before)
        self.assertRegex(plan.choices["learning_rates"].reason, r"not searched: 0\.001 minutes were too short")


class TestCommand(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.bundle = self.folder / "bundle"

    def new(self, *words) -> tuple[int, str, str]:
        return call(main, "new", *words)

    def test_backbones_and_search(self):
        root, files = save_knees(self.folder / "knees"), [shared_data(TINY), random_vit(self.folder / "vit.pt", 2)]
        options = ("--outputs", "kl_grade", "--task", "grading", "--output", self.bundle, "--search", 3)
        fake = FakeTraining(0.5, 0.5)
        search = functools.partial(search_rates, run_job=fake, clock=fake.clock)
        with patch("monai_dvpt.apps.new_bundle.new.search_rates", search):
            status, out, err = self.new(root, *options, "--backbone", *files)
        self.assertEqual(status, 0, err)
        self.assertRegex(out, r"(?m)^compare backbones: by linear probes on \d+ training cases$")
        self.assertRegex(out, r"(?m)^search of rates: 3 minutes at most, on \d+ training cases$")
        plan = json.loads((self.bundle / "configs/plan.json").read_text())
        config = yaml.safe_load((self.bundle / "configs/train.yaml").read_text())
        chosen = next(file for file in files if file.name == plan["backbone"]["value"])
        self.assertEqual(config["backbone_path"], str(chosen))
        self.assertEqual(json.loads((self.bundle / "configs/new.json").read_text())["backbone"], str(chosen))
        self.assertEqual(set(plan["backbone_scores"]["value"]), {file.name for file in files})
        self.assertEqual(config["learning_rates"], plan["learning_rates"]["value"])
        self.assertEqual(config["weight_decay"], plan["weight_decay"]["value"])
        for text in (out, (self.bundle / "docs/README.md").read_text(), (self.bundle / "report.html").read_text()):
            self.assertRegex(text, r"quadratic kappa of linear probes on the frozen features of \d+ training cases")
            self.assertRegex(text, r"\bsearched: \d+ trials of")
        self.assertNotIn("initialised", out)  # what trials print

    def test_what_takes_minutes_is_said_before_it_begins(self):
        root, files = save_knees(self.folder / "knees", 3), [random_vit(self.folder / name, 1) for name in "ab"]
        out = open(self.folder / "out.txt", "w")  # as a shell does, with a buffer
        self.addCleanup(out.close)
        said = []

        def stop(*_: object) -> None:
            said.append((self.folder / "out.txt").read_text())
            raise InputError("seen enough.")

        options = ["--outputs", "kl_grade", "--task", "grading", "--output", str(self.bundle)]
        for name, words in (("choose_file", ["--backbone", *map(str, files)]), ("search_rates", ["--search", "2"])):
            words = words if "--backbone" in words else [*words, "--backbone", str(files[0])]
            with patch(f"monai_dvpt.apps.new_bundle.new.{name}", stop), contextlib.redirect_stdout(out):
                with contextlib.redirect_stderr(io.StringIO()):
                    self.assertEqual(main(["new", str(root), *options, *words]), 1)
        self.assertRegex(said[0], r"(?m)^grading of \d+ pictures[^$]*^compare backbones: .* training cases\n\Z")
        self.assertRegex(said[1], r"(?m)^search of rates: 2 minutes at most, .* training cases\n\Z")

    def test_weights_are_checked_before_an_image_is_read(self):
        root = save_knees(self.folder / "knees", 3)
        table = shutil.copy(root / "labels.csv", self.folder / "no weights.pt")
        options = (root, "--outputs", "kl_grade", "--task", "grading")
        written = ("--output", self.bundle)
        with patch("monai_dvpt.apps.new_bundle.new.measure_cases", side_effect=AssertionError) as measure:
            for words, message in (
                ((*written, "--backbone", table), "no weights.pt"),
                ((*written, "--backbone", self.folder / "gone.pt"), "gone.pt"),
                (("--check", "--backbone", self.folder / "gone.pt"), "gone.pt"),
                (written, "pictures need the weights .* pass --backbone FILE"),
            ):
                with self.subTest(message):
                    status, out, err = self.new(*options, *words)
                    self.assertEqual((status, out), (1, ""))
                    self.assertRegex(err, rf"\Aerror: .*{message}.*\n\Z")
        measure.assert_not_called()
        self.assertEqual(self.new(*options, "--check")[0], 0)  # only to look, no weights are needed

    def test_bad_arguments_are_one_line(self):
        root = save_knees(self.folder / "knees", 3)
        vit, other = random_vit(self.folder / "vit.pt", 1), random_vit(self.folder / "other.pt", 1)
        table = shutil.copy(root / "labels.csv", self.folder / "no weights.pt")
        options = ("--outputs", "kl_grade", "--task", "grading", "--output", self.bundle)
        for words, message in (
            ([root, *options, "--backbone", vit, vit], "--backbone must name each file once"),
            ([root, *options, "--backbone", vit, "shipped"], "pictures need the weights"),
            ([root, *options, "--backbone", vit, table], "no weights.pt"),
            ([*options, "--backbone", vit, other, root], "DATA must be given.*before --backbone"),
            ([root, "--check", "--search", 3], "--search must stand without --check"),
            (["--update", self.bundle, "--search", 3], "--update must stand alone.*got --search"),
        ):
            with self.subTest(message):
                status, _, err = self.new(*words)
                self.assertEqual(status, 1)
                self.assertRegex(err.strip(), message)
                self.assertEqual(len(err.strip().splitlines()), 1, err)
                self.assertFalse(self.bundle.exists())
        for minutes in ("0", "-1", "nan", "soon"):
            err = io.StringIO()
            with self.assertRaises(SystemExit) as ended, contextlib.redirect_stderr(err):
                main(["new", str(root), f"--search={minutes}"])
            self.assertEqual(ended.exception.code, 2)
            self.assertIn(f"must be a number of minutes above 0, got {minutes}", err.getvalue())

    def test_one_patient_cannot_be_compared_on(self):
        root = self.folder / "one"
        (root / "images").mkdir(parents=True)
        rows = []
        for index in range(4):
            pixels = np.random.default_rng(index).integers(0, 255, (40, 40)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "images" / f"{index}.png")
            rows.append(f"images/{index}.png,{index % 2},{int(index > 2)},{'train' if index < 3 else 'val'}\n")
        (root / "t.csv").write_text("image,grade,patient,split\n" + "".join(rows))
        new = looked_at(root, outputs=["grade"], task="grading")
        with self.assertRaisesRegex(InputError, "at least 2 patients to train, got 1"):
            choose_file(*facts(new), [random_vit(self.folder / "a.pt", 1), random_vit(self.folder / "b.pt", 1)])


if __name__ == "__main__":
    unittest.main()
