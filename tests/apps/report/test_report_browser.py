# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: Chromium, as PyQt6-WebEngine brings it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

import numpy as np
from PIL import Image
from utils_data import temporary_folder
from utils_report import UMLAUTS, make_bundle

from monai_dvpt.apps.report import write_report

BROWSER = Path(__file__).with_name("utils_browser.py")
HAS_BROWSER = importlib.util.find_spec("PyQt6") is not None and bool(importlib.util.find_spec("PyQt6.QtWebEngineCore"))


@unittest.skipUnless(HAS_BROWSER, 'needs a browser: pip install "monai_dvpt[browser]".')
class TestBrowser(unittest.TestCase):
    def open(self, page: Path, width: int) -> dict:
        """What the browser says of a page in a window of this width, and a screenshot beside the page."""
        picture = page.with_name(f"screen_{width}.png")
        flags = "--no-sandbox --disable-gpu"  # a test may run as root, without a screen
        environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen", "QTWEBENGINE_CHROMIUM_FLAGS": flags}
        command = [sys.executable, str(BROWSER), str(page), str(picture), str(width)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        if "cannot open shared object file" in done.stderr:
            self.skipTest(f"the browser needs a library of the system: {done.stderr.splitlines()[-1]}")
        self.assertEqual(done.returncode, 0, done.stderr)
        return {**json.loads(done.stdout.splitlines()[-1]), "picture": picture}

    def test_page(self):
        page = write_report(make_bundle(temporary_folder(self) / "bundle"))
        for width in (1100, 390):
            with self.subTest(width=width):
                seen = self.open(page, width)
                self.assertTrue(seen["loaded"])
                self.assertEqual(seen["pwned"], None)
                self.assertLessEqual(set(seen["schemes"]), {"file", "data"})
                self.assertEqual(seen["files"], [page.name])
                self.assertTrue(seen["title"].startswith(UMLAUTS))
                self.assertGreater(seen["images"], 5)
                self.assertEqual(seen["broken"], 0)
                self.assertLessEqual(seen["page_width"], seen["window_width"])  # only tables scroll sideways
                self.assertEqual(seen["background"], "rgb(255, 255, 255)")
                self.assertEqual(seen["border"], "rgb(27, 79, 114)")  # the style sheet is in force
                self.assertEqual(seen["complaints"], [])
                with Image.open(seen["picture"]) as picture:
                    pixels = np.asarray(picture.convert("L"))
                self.assertGreater((pixels > 250).mean(), 0.5)
                self.assertGreater((pixels < 60).mean(), 0.005)


if __name__ == "__main__":
    unittest.main()
