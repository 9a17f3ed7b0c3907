# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import errno
import os
import unittest
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import AsDiscreted, Compose, ScaleIntensityd
from parameterized import parameterized
from utils_data import AFFINE_RAS, save_nifti, temporary_folder

from monai_dvpt.data import find_cases
from monai_dvpt.engines import run_cases
from monai_dvpt.handlers import CaseWriter
from monai_dvpt.transforms import LoadVolumed
from monai_dvpt.utils import InputError

SHAPE = (8, 9, 10)


class Threshold(torch.nn.Module):
    """Label 1 where the image is positive; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.cat([-x, x], dim=1)


class TestRunCases(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)
        self.output = self.root / "out"
        self.network = Threshold()
        self.images = {}

    def save(self, *names: str) -> None:
        for name in names:
            self.images[name] = np.random.default_rng(len(self.images)).normal(size=SHAPE).astype(np.float32)
            save_nifti(self.root / "in" / f"{name}.nii.gz", self.images[name])

    def spoil(self, name: str, content: bytes = b"patient,volume\n") -> Path:
        path = self.root / "in" / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    def run_all(self, *handlers, dataset: Dataset | None = None, settings: object = None) -> None:
        load = LoadVolumed("image")
        dataset = dataset or Dataset(find_cases(self.root / "in"), load)
        self.evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(dataset, batch_size=1),
            network=self.network,
            postprocessing=Compose([AsDiscreted("pred", argmax=True)]),
            val_handlers=[CaseWriter(self.output, ["background", "bright"]), *handlers],
        )
        run_cases(self.evaluator, dataset, self.output, settings)

    def summary(self) -> list[tuple[str, str, str]]:
        with open(self.output / "summary.csv", newline="") as file:
            header, *rows = csv.reader(file)
        self.assertEqual(header, ["name", "status", "reason", "seconds", "series_uid", "files", "fingerprint"])
        return [tuple(row[:3]) for row in rows]

    def assert_written(self, *names: str) -> None:
        """Exactly these label maps are there, and right."""
        self.assertEqual({path.name for path in self.output.glob("*_seg*")}, {f"{n}_seg.nii.gz" for n in names})
        self.assertEqual([path for path in self.output.iterdir() if path.name.startswith(".")], [])
        for name in names:
            label_map = nib.load(self.output / f"{name}_seg.nii.gz")
            np.testing.assert_array_equal(np.asarray(label_map.dataobj), self.images[name] > 0)
            np.testing.assert_array_equal(label_map.affine, AFFINE_RAS)

    def test_good_cases(self):
        self.save("a", "b", "c", "d")
        self.run_all()
        self.assertEqual(self.summary(), [(name, "done", "") for name in "abcd"])
        self.assert_written("a", "b", "c", "d")
        self.assertEqual(self.network.calls, 4)  # each case once
        self.assertFalse(self.evaluator.logger.disabled)

    @parameterized.expand(
        [("first", "abdf", "ce"), ("last", "abc", "de"), ("around", "c", "abde"), ("all", "", "abcd")]
    )
    def test_bad_between_good(self, _, good, bad):
        self.save(*good)
        paths = {name: self.spoil(name) for name in bad}
        with self.assertRaises(InputError) as caught:
            self.run_all()
        message = str(caught.exception)
        self.assertTrue(message.startswith(f"{len(bad)} of {len(good + bad)} inputs failed: {bad[0]}: "))
        rows = self.summary()
        self.assertEqual([row[0] for row in rows], sorted(good + bad))
        for name, status, reason in rows:
            self.assertEqual(status, "done" if name in good else "failed")
            if name in bad:
                self.assertTrue(reason.startswith(f"{paths[name]}: cannot be read: "), reason)
                self.assertIn(reason, message)
        self.assert_written(*good)
        self.assertFalse(self.evaluator.logger.disabled)

    def test_names_that_are_not_utf8(self):
        """Each is a case as any other, and the summary is UTF-8."""
        self.save("good")
        folder = os.fsencode(self.root / "in")
        for name, content in ((b"caf\xe9", (self.root / "in" / "good.nii.gz").read_bytes()), (b"\xff", b"no volume")):
            with open(os.path.join(folder, name + b".nii.gz"), "wb") as file:
                file.write(content)
        with self.assertRaisesRegex(InputError, "1 of 3 inputs failed: _: "):
            self.run_all()
        self.assertEqual([row[:2] for row in self.summary()], [("caf_", "done"), ("good", "done"), ("_", "failed")])
        (self.output / "summary.csv").read_bytes().decode("utf-8")
        for path in self.output.iterdir():
            path.name.encode("utf-8")
        with self.assertRaisesRegex(InputError, "1 of 3 inputs failed"):
            self.run_all()
        self.assertEqual(self.evaluator.state.done_before, ["caf_", "good"])

    def test_network_that_fails(self):
        """An error that is no InputError is named with its kind."""
        self.save("a", "b", "c")
        forward = self.network.forward

        def failing(x):
            if self.network.calls == 1:
                self.network.calls += 1
                raise RuntimeError("out of\nmemory")
            return forward(x)

        with mock.patch.object(self.network, "forward", failing), self.assertRaises(InputError):
            self.run_all()
        expected = [("a", "done", ""), ("b", "failed", "RuntimeError: out of memory"), ("c", "done", "")]
        self.assertEqual(self.summary(), expected)
        self.assert_written("a", "c")

    def test_disk_that_is_full(self):
        self.save("a", "b", "c")
        save, written = nib.save, []

        def save_unless_full(image: nib.Nifti1Image, path: Path) -> None:
            written.append(path)
            if len(written) == 2:
                path.write_bytes(b"half a file")
                raise OSError(errno.ENOSPC, "No space left on device")
            save(image, path)

        with mock.patch("nibabel.save", save_unless_full), self.assertRaises(InputError):
            self.run_all()
        (a, b, c) = self.summary()
        self.assertEqual((a, c), (("a", "done", ""), ("c", "done", "")))
        self.assertEqual(b[:2], ("b", "failed"))
        self.assertRegex(b[2], f"^{self.output}/b_seg.nii.gz: cannot be written: .*No space left on device")
        self.assert_written("a", "c")

    def test_handler_that_fails(self):
        self.save("a", "b", "c")

        class Failing:
            def attach(self, engine: Engine) -> None:
                engine.add_event_handler(Events.ITERATION_COMPLETED, self.fail)

            def fail(self, engine: Engine) -> None:
                if engine.state.batch[0]["name"] == "b":
                    raise KeyError("report")

        with self.assertRaisesRegex(InputError, "1 of 3 inputs failed: b: KeyError: 'report'"):
            self.run_all(Failing())
        self.assertEqual([row[1] for row in self.summary()], ["done", "failed", "done"])

    def test_user_stops_the_run(self):
        self.save("a", "b")
        with mock.patch.object(self.network, "forward", side_effect=KeyboardInterrupt):
            with self.assertRaises(KeyboardInterrupt):
                self.run_all()
        self.assertFalse(self.evaluator.logger.disabled)

    def test_again_over_the_same_folder(self):
        self.save("a", "c")
        path = self.spoil("b")
        with self.assertRaises(InputError):
            self.run_all()
        path.unlink()
        self.save("b")
        self.run_all()
        self.assertEqual(self.summary(), [(name, "done", "") for name in "abc"])
        self.assert_written("a", "b", "c")
        self.assertEqual(self.network.calls, 3)  # what was done the first time was not done again

    def test_stopped_run_goes_on(self):
        self.save("a", "b", "c")
        forward, calls = self.network.forward, []

        def stopped(x):
            calls.append(x)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return forward(x)

        with mock.patch.object(self.network, "forward", stopped), self.assertRaises(KeyboardInterrupt):
            self.run_all()
        self.assertEqual(self.summary(), [("a", "done", "")])
        self.run_all()
        self.assertEqual(self.network.calls, 3)
        self.assert_written("a", "b", "c")

    @parameterized.expand([("image",), ("settings",), ("network",), ("output",)])
    def test_what_has_changed_is_done_again(self, changed):
        self.save("a", "b")
        self.run_all(settings=[1])
        settings, again = [1], 2
        if changed == "image":
            self.save("a")  # of the same size
            again = 1
        elif changed == "settings":
            settings = [2]
        elif changed == "network":
            self.network.register_buffer("weight", torch.ones(1))
        else:
            (self.output / "b_volumes.json").unlink()
            again = 1
        self.run_all(settings=settings)
        self.assertEqual(self.network.calls, 2 + again)
        self.assert_written("a", "b")

    def test_results_of_what_fails_now_are_gone(self):
        self.save("a", "a_b")
        self.run_all()
        self.spoil("a")
        with self.assertRaises(InputError):
            self.run_all()
        self.assertEqual([row[:2] for row in self.summary()], [("a", "failed"), ("a_b", "done")])
        self.assert_written("a_b")

    def test_two_folders_into_one(self):
        """The summary keeps what other commands did."""
        self.save("a")
        self.run_all()
        (self.root / "in" / "a.nii.gz").unlink()
        self.save("b")
        self.run_all()
        self.assertEqual(self.summary(), [(name, "done", "") for name in "ab"])

    def test_transform_that_has_changed(self):
        self.save("a")
        for scale, calls in ((1.0, 1), (1.0, 1), (2.0, 2)):
            load = Compose([LoadVolumed("image"), ScaleIntensityd("image", minv=-scale, maxv=scale)])
            self.run_all(dataset=Dataset(find_cases(self.root / "in"), load))
            self.assertEqual(self.network.calls, calls)

    def test_case_that_is_refused_or_private(self):
        self.save("a", "Avasarala")
        cases = find_cases(self.root / "in")
        cases[0] |= {"name": "study_1", "private": True, "image": str(self.spoil("Avasarala"))}
        cases.append({"name": "study_2", "image": str(self.root), "refused": "must hold one DICOM volume, holds 2"})
        with self.assertLogs("monai_dvpt.engines", "ERROR") as logged, self.assertRaises(InputError) as caught:
            self.run_all(dataset=Dataset(cases, LoadVolumed("image")))
        (first, second, third) = self.summary()
        self.assertEqual(second, ("a", "done", ""))
        self.assertEqual(third, ("study_2", "failed", "must hold one DICOM volume, holds 2"))
        self.assertRegex(first[2], "^study_1: cannot be read: ")
        self.assertNotIn("Avasarala", f"{first}{caught.exception}{logged.output}")


if __name__ == "__main__":
    unittest.main()
