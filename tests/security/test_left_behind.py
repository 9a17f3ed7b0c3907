# SPDX-License-Identifier: Apache-2.0
"""What killed and doubled runs leave behind, as real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import unittest
from pathlib import Path

from utils_data import temporary_folder
from utils_processes import children, ended_process, is_running, wait_until
from utils_study import BUNDLE, settings, write_data

from monai_dvpt.utils import atomic_path

SECONDS = 120
"""Bound against waiting for ever."""


class TestStudies(unittest.TestCase):
    """Two studies in one folder, and one that is killed."""

    def setUp(self):
        self.folder = temporary_folder(self)
        write_data(self.folder)
        self.out = self.folder / "study"

    def start(self, log: Path) -> subprocess.Popen:
        options = ["--bundle", BUNDLE, "--output", self.out, "--methods", "full", "--seeds", 0, "--trials", 1]
        for key, value in {**settings(self.folder), "max_epochs": 100_000}.items():
            options += ["--set", f"{key}={value}"]
        with open(log, "w") as file:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "monai_dvpt.benchmark", "study", *map(str, options)],
                stdout=file,
                stderr=file,
                env={**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
            )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def test_second_is_refused_and_workers_end_with_the_first(self):
        self.out.mkdir()
        with atomic_path(self.out / "report.csv") as path:
            left = path.with_name(path.name.replace(str(os.getpid()), str(ended_process())))
        left.write_bytes(b"")
        first = self.start(self.folder / "first.log")
        log = self.out / "log.txt"
        ready = wait_until(lambda: log.is_file() or first.poll() is not None, SECONDS)  # a worker has begun
        self.assertTrue(ready and first.poll() is None, (self.folder / "first.log").read_text())
        workers = children(first.pid)
        self.assertGreaterEqual(len(workers), 1)
        second = self.start(self.folder / "second.log")
        self.assertEqual(second.wait(SECONDS), 1)
        self.assertRegex((self.folder / "second.log").read_text(), f"in use by a study, process {first.pid} on ")
        self.assertFalse(left.exists())
        first.send_signal(signal.SIGKILL)
        self.assertTrue(wait_until(lambda: not any(map(is_running, workers)), SECONDS), workers)


class TestTrainings(unittest.TestCase):
    def test_options_that_do_not_arrive_as_typed(self):
        """Through MONAI's own command line: nothing is written anywhere, and the message says what to type."""
        folder = temporary_folder(self)
        bundle = BUNDLE.with_name("hippocampus_mri_dvpt_unetr_segmentation")
        command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file"]
        command += [str(bundle / "configs" / "inference.yaml"), "--bundle_root", str(bundle)]
        command += ["--dataset_dir", "20240101_120000", "--output_dir", "results#1"]
        environment = {**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
        self.assertEqual(ended.returncode, 1, ended.stderr)
        self.assertIn("error: --dataset_dir must be a path, but 20240101_120000 arrives as the int", ended.stderr)
        self.assertIn("type --dataset_dir ./20240101_120000", ended.stderr)
        self.assertNotIn("Traceback", ended.stderr)
        self.assertEqual(list(folder.iterdir()), [])


if __name__ == "__main__":
    unittest.main()
