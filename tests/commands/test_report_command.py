# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import unittest

from utils_commands import call
from utils_data import temporary_folder

from monai_dvpt.__main__ import main


class TestReport(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)
        self.bundle = self.root / "bundle"
        (self.bundle / "configs").mkdir(parents=True)
        self.train = self.root / "elsewhere"
        for folder, seconds in ((self.bundle / "output" / "train", 90), (self.train, 7200)):
            folder.mkdir(parents=True)
            (folder / "report.json").write_text(json.dumps({"seconds": seconds, "epochs": 3}))

    def test_writes_the_page(self):
        status, out, err = call(main, "report", self.bundle)
        path = self.bundle / "report.html"
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(out, f"wrote {path}: {path.stat().st_size:,} bytes\n")
        self.assertIn("1.5 min, 3 epochs", path.read_text(encoding="utf-8"))

    def test_other_folders(self):
        output = self.root / "pages" / "page.html"
        output.parent.mkdir()
        status, _, _ = call(main, "report", self.bundle, "--output", output, "--train", self.train)
        self.assertEqual(status, 0)
        self.assertIn("2.0 h, 3 epochs", output.read_text(encoding="utf-8"))
        self.assertFalse((self.bundle / "report.html").exists())

    def test_nothing_to_report(self):
        status, out, err = call(main, "report", self.bundle, "--train", self.root / "none")
        self.assertEqual((status, out), (1, ""))
        self.assertRegex(err, "^error: .*bundle: must hold results to report, .*, got none.\n$")
        status, _, err = call(main, "report", self.root / "none")
        self.assertEqual(status, 1)
        self.assertIn("must be the folder of a bundle", err)


if __name__ == "__main__":
    unittest.main()
