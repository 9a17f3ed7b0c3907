# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import logging
import unittest
from unittest import mock

from monai.data import CacheDataset
from parameterized import parameterized

from monai_dvpt.data import QuietCacheDataset
from monai_dvpt.utils import TimeLeft, progress

LOGGER = "monai_dvpt.utils.progress"


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestProgress(unittest.TestCase):
    def setUp(self):
        self.clock = Clock()
        for patch in (
            mock.patch("monai_dvpt.utils.progress.time.monotonic", self.clock),
            mock.patch.dict("os.environ"),
        ):
            patch.start()
            self.addCleanup(patch.stop)

    def work(self, count: int, seconds: float, stderr: io.StringIO, **arguments) -> list[str]:
        """Lines of the log; each item takes as long as given."""
        with mock.patch("sys.stderr", stderr), self.assertLogs(LOGGER, "INFO") as logs:
            logging.getLogger(LOGGER).info("begin")
            for number, item in enumerate(progress(range(count), "check", **arguments)):
                self.assertEqual(item, number)
                self.clock.now += seconds
        return [record.getMessage() for record in logs.records[1:]]

    def test_two_lines_a_minute(self):
        lines = self.work(300, 5.0, io.StringIO())  # 25 minutes
        self.assertEqual(len(lines), 50)
        self.assertEqual(lines[0], "check: case 6 of 300, 24 min left")
        self.assertEqual(lines[-1], "check: case 300 of 300, less than 1 min left")

    def test_slow_items(self):
        lines = self.work(3, 4000.0, io.StringIO(), unit="image")
        self.assertEqual(lines[0], "check: image 1 of 3, 2 h 13 min left")
        self.assertEqual(len(lines), 3)

    def test_some_were_done_before(self):
        lines = self.work(10, 60.0, io.StringIO(), done=90)
        self.assertEqual(lines[0], "check: case 91 of 100, 9 min left")

    def test_nothing_of_a_short_task(self):
        stderr = io.StringIO()
        self.assertEqual(self.work(29, 1.0, stderr), [])
        self.assertEqual(stderr.getvalue(), "")

    def test_bar_on_a_terminal(self):
        stderr = Terminal()
        self.assertEqual(self.work(300, 5.0, stderr), [])
        self.assertRegex(stderr.getvalue(), r"check: 100%.*300/300")

    def test_no_bar_in_monai_label(self):
        with mock.patch.dict("os.environ", {"MONAI_LABEL_APP_DIR": "/app"}):
            stderr = Terminal()
            lines = self.work(24, 5.0, stderr)
        self.assertEqual((lines[0], stderr.getvalue()), ("check: case 6 of 24, 2 min left", ""))

    def test_items_without_a_length(self):
        with mock.patch("sys.stderr", io.StringIO()), self.assertLogs(LOGGER, "INFO") as logs:
            for _ in progress(iter("abc"), "search", unit="file"):
                self.clock.now += 70
        self.assertEqual([record.getMessage() for record in logs.records], [f"search: file {n}" for n in (1, 2, 3)])

    @parameterized.expand([(0, 1, 12, "11 min left"), (9, 10, 12, "2 min left"), (0, 12, 12, "less than 1 min left")])
    def test_time_left(self, before, done, total, expected):
        left = TimeLeft(before)
        self.clock.now += 60 * (done - before)
        self.assertEqual(left(done, total), expected)


class TestQuietCacheDataset(unittest.TestCase):
    @parameterized.expand([({"cache_num": 3},), ({"cache_rate": 0.0},), ({"hash_as_key": True, "num_workers": 2},)])
    def test_items_are_those_of_monai(self, arguments):
        data = [2, 3, 5, 7, 2]
        with mock.patch("sys.stderr", io.StringIO()) as stderr:
            ours = QuietCacheDataset(data, [abs, lambda x: 10 * x], **arguments)
        self.assertEqual(stderr.getvalue(), "")
        theirs = CacheDataset(data, [abs, lambda x: 10 * x], progress=False, **arguments)
        self.assertEqual(list(ours), list(theirs))
        self.assertEqual(list(ours._cache), list(theirs._cache))


if __name__ == "__main__":
    unittest.main()
