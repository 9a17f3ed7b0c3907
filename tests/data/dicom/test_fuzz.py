# SPDX-License-Identifier: Apache-2.0
"""
Damaged headers and lengths: an error that says why, or a right volume, within limits of memory and of time. 2000 files,
about a minute of work, or as many as ``MONAI_DVPT_FUZZ`` says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unittest
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import utils_fuzz
from parameterized import parameterized
from utils_data import shared_data, temporary_folder
from utils_fuzz import SOURCES, make_sources, read_damaged
from utils_truth import sources

FILES = int(os.environ.get("MONAI_DVPT_FUZZ", 2000))
TESTS = Path(__file__).parents[2]


class TestFuzz(unittest.TestCase):
    def setUp(self):
        shared_data()
        self.folder = temporary_folder(self)
        make_sources(self.folder / "series")

    @parameterized.expand(
        [("whole", 0, 0, "right"), ("elsewhere", 0.2, 0, "wrong"), ("of other values", 0, 1, "wrong")]
    )
    def test_judge(self, _, millimetres, value, result):
        """What judges the damaged files takes those that are whole, and no others."""

        def other(paths):
            *rest, (path, number, frame) = sources(paths)
            return [
                *rest,
                (path, number, replace(frame, origin=frame.origin + millimetres, values=frame.values + value)),
            ]

        for seed, name in enumerate(SOURCES):
            with mock.patch.multiple(utils_fuzz, mutate=lambda data, _: ("nothing", data), sources=other):
                self.assertEqual(read_damaged(self.folder / "series", seed)["result"], result, name)

    def test_error_or_right_volume(self):
        outcomes = self.read(FILES)
        self.assertEqual([each["seed"] for each in outcomes], list(range(FILES)))
        wrong = [each for each in outcomes if each["result"] not in ("refused", "right", "left out")]
        self.assertEqual(wrong, [], "\n".join(json.dumps(each, indent=1) for each in wrong))
        results = Counter((each["series"], each["result"]) for each in outcomes)
        for name in SOURCES:  # enough of either kind that both were tried
            for result in ("refused", "right"):
                self.assertGreater(results[name, result], FILES / len(SOURCES) / 20, results)

    def read(self, count: int) -> list[dict[str, Any]]:
        """Reads the files of the seeds below ``count``; where the process dies, another one goes on after that seed."""
        report, outcomes = self.folder / "report.jsonl", []
        path = os.pathsep.join((str(TESTS), os.environ.get("PYTHONPATH", "")))
        while len(outcomes) < count:
            arguments = [str(self.folder / "series"), str(len(outcomes)), str(count), str(report)]
            done = subprocess.run(
                [sys.executable, utils_fuzz.__file__, *arguments],
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
            )
            self.assertTrue(report.exists(), done.stderr)
            outcomes = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
            if done.returncode:
                cause = f"status {done.returncode}: {done.stderr[-2000:]}"
                outcomes.append({"seed": len(outcomes), "result": "died", "reason": cause})
                with open(report, "a", encoding="utf-8") as file:
                    print(json.dumps(outcomes[-1]), file=file)
                make_sources(self.folder / "series")
        return outcomes


if __name__ == "__main__":
    unittest.main()
