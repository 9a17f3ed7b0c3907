# SPDX-License-Identifier: Apache-2.0
"""Progress of a command whose standard error is no terminal, as in a log."""

from __future__ import annotations

import logging
import unittest
from types import SimpleNamespace
from unittest import mock

from utils_commands import call

from monai_dvpt.commands import run_commands
from monai_dvpt.utils import InputError, progress


def add_parser(commands) -> None:
    parser = commands.add_parser("count")
    parser.add_argument("--fail", action="store_true")
    parser.set_defaults(run=_count)


def _count(arguments) -> None:
    times = iter(range(0, 1000, 20))
    with mock.patch("monai_dvpt.utils.progress.time.monotonic", lambda: float(next(times))):
        for _ in progress(range(4), "count", unit="number"):
            logging.getLogger("monai_dvpt").info("nobody asked for this")
    if arguments.fail:
        raise InputError("no more.")


def run(*words: str) -> tuple[int, str, str]:
    return call(lambda argv: run_commands("prog", "", [SimpleNamespace(add_parser=add_parser)], argv), "count", *words)


class TestProgressOnStandardError(unittest.TestCase):
    def setUp(self):
        patch = mock.patch.object(logging.getLogger(), "handlers", [])  # as outside of a test
        patch.start()
        self.addCleanup(patch.stop)
        self.logger = logging.getLogger("monai_dvpt.utils.progress")

    def test_lines_and_no_others(self):
        status, out, err = run()
        self.assertEqual((status, out), (0, ""))
        lines = err.splitlines()
        self.assertGreater(len(lines), 0)
        for line in lines:
            self.assertRegex(line, r"^count: number \d of 4, .* min left$")

    def test_nothing_stays_behind(self):
        level = self.logger.level
        for words in ((), ("--fail",)):
            run(*words)
            self.assertEqual((self.logger.handlers, self.logger.level), ([], level))

    def test_a_log_that_is_set_up_is_left_alone(self):
        handler = logging.NullHandler()
        self.logger.addHandler(handler)
        self.addCleanup(self.logger.removeHandler, handler)
        self.assertEqual(run(), (0, "", ""))


if __name__ == "__main__":
    unittest.main()
