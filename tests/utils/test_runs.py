# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import sys
import unittest
from unittest import mock

import yaml
from utils_bundles import BUNDLES
from utils_data import temporary_folder
from utils_processes import ended_process

from monai_dvpt.utils import InputError, atomic_path, prepare_run
from monai_dvpt.utils.locks import LOCK


class TestPrepareRun(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.addCleanup(setattr, sys, "excepthook", sys.excepthook)

    def test_every_run_of_every_bundle_begins_with_it(self):
        configs = sorted(path for bundle in BUNDLES for path in (bundle / "configs").glob("*.yaml"))
        self.assertGreater(len(configs), 4 * len(BUNDLES))
        for path in configs:
            with self.subTest(config=f"{path.parents[1].name}/{path.name}"):
                alone = ", 'training'" if "train" in path.name else ""
                first = yaml.safe_load(path.read_text(encoding="utf-8"))["initialize"][0]
                self.assertEqual(first, f"$prepare_run(@output_dir{alone})")

    def test_folder_that_cannot_be_written(self):
        (self.folder / "file").write_bytes(b"")
        with self.assertRaisesRegex(InputError, "file/out: cannot be written: Not a directory"):
            prepare_run(self.folder / "file" / "out")
        with mock.patch("os.access", return_value=False):  # to root everything can be written
            with self.assertRaisesRegex(InputError, "cannot be written: permission denied"):
                prepare_run(self.folder)

    def test_leftovers_and_lock(self):
        with atomic_path(self.folder / "a.dcm") as path:
            left = path.with_name(path.name.replace(str(os.getpid()), str(ended_process())))
        left.write_bytes(b"")
        prepare_run(self.folder)
        self.assertEqual([path.name for path in self.folder.iterdir()], ["a.dcm"])
        with mock.patch.dict(os.environ, RANK="1"):
            prepare_run(self.folder, "training")
        self.assertFalse((self.folder / LOCK).exists())
        prepare_run(self.folder, "training")
        self.assertTrue((self.folder / LOCK).exists())


if __name__ == "__main__":
    unittest.main()
