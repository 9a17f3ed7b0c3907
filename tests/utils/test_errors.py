# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import subprocess
import sys
import unittest
from pathlib import Path

from parameterized import parameterized

from monai_dvpt.utils import InputError, naming, reason

HEAD = """
from monai_dvpt.utils import InputError, report_input_errors

def wrapped(error):
    try:
        try:
            raise error
        except Exception as inner:
            raise RuntimeError("applying transform") from inner
    except RuntimeError as inner:
        raise RuntimeError("Failed to instantiate the component") from inner

report_input_errors()
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-c", HEAD + script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def chain(*errors: BaseException) -> BaseException:
    """The last of ``errors``, each but the first raised from the one before it."""
    for cause, error in zip(errors, errors[1:], strict=False):
        error.__cause__ = cause
    return errors[-1]


class TestReportInputErrors(unittest.TestCase):
    @parameterized.expand(
        [
            ("wrapped(InputError('scan.nii: 2 channels must be 1.'))", "error: scan.nii: 2 channels must be 1.\n"),
            ("raise InputError('a.json: bad')", "error: a.json: bad\n"),
            ("wrapped(InputError('a.json: cannot be read:\\n  line 3\\n'))", "error: a.json: cannot be read: line 3\n"),
        ]
    )
    def test_input_error_is_one_line(self, script, expected):
        ended = run(script)
        self.assertEqual((ended.returncode, ended.stdout, ended.stderr), (1, "", expected))

    @parameterized.expand(["wrapped(KeyError('x'))", "wrapped(ValueError('x'))", "raise OSError('x')", "1 / 0"])
    def test_other_errors_keep_their_traceback(self, script):
        ended = run(script)
        self.assertEqual(ended.returncode, 1)
        self.assertTrue(ended.stderr.startswith("Traceback (most recent call last):\n"), ended.stderr)
        self.assertEqual("applying transform" in ended.stderr, "wrapped" in script)
        self.assertNotRegex(ended.stderr, "(?m)^error: ")

    def test_success_is_silent(self):
        ended = run("print('done')")
        self.assertEqual((ended.returncode, ended.stdout, ended.stderr), (0, "done\n", ""))


class TestReason(unittest.TestCase):
    def test_input_error_is_a_value_error(self):
        self.assertTrue(issubclass(InputError, ValueError))

    def test_finds_the_input_error(self):
        error = chain(OSError("disk"), InputError("a.nii: bad\n  file"), RuntimeError("b"), RuntimeError("c"))
        self.assertEqual(reason(error), "a.nii: bad file")

    def test_names_the_last_cause_otherwise(self):
        self.assertEqual(reason(chain(OSError("disk"), ValueError("a"), RuntimeError("b"))), "OSError: disk")
        self.assertEqual(reason(ValueError("a\nb")), "ValueError: a b")


class TestNaming(unittest.TestCase):
    def told(self, *contexts, error: Exception) -> str:
        with self.assertRaises(type(error)) as raised, contextlib.ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            raise error
        return str(raised.exception)

    def test_names_a_file_once(self):
        self.assertEqual(self.told(naming("a/b.nii"), error=InputError("is cut.")), "a/b.nii: is cut.")
        inner = self.told(naming(Path("pair.hdr")), naming("pair.img"), error=InputError("is cut."))
        self.assertEqual(inner, "pair.img: is cut.")
        both = self.told(naming("folder", outer=True), naming("1.dcm"), error=InputError("is cut."))
        self.assertEqual(both, "folder: 1.dcm: is cut.")

    def test_leaves_other_errors(self):
        self.assertEqual(self.told(naming("a.nii"), error=ValueError("ours")), "ours")


if __name__ == "__main__":
    unittest.main()
