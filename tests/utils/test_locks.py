# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import unittest
from pathlib import Path

from utils_data import temporary_folder

from monai_dvpt.utils import InputError, lock_folder

HOLD = """
import sys
from monai_dvpt.utils.locks import lock_folder
lock_folder(sys.argv[1], "training")
print("locked", flush=True)
sys.stdin.read()
"""


class TestLockFolder(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self) / "out"

    def hold(self) -> subprocess.Popen:
        """A process that has the lock."""
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", HOLD, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        )
        self.addCleanup(process.communicate)
        self.assertEqual(process.stdout.readline(), "locked\n")
        return process

    def test_says_whose_it_is_until_that_is_killed(self):
        holder = self.hold()
        words = f"a training, process {holder.pid} on {socket.gethostname()}, started [0-9-]+ [0-9:]+"
        with self.assertRaisesRegex(InputError, f"^{self.folder}: is in use by {words}"):
            lock_folder(self.folder, "study")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        lock_folder(self.folder, "study")
        lock_folder(Path(f"{self.folder}/../out"), "study")  # again, in the process that has it

    def test_cannot_be_written(self):
        (self.folder.parent / "file").write_bytes(b"")
        with self.assertRaisesRegex(InputError, "file/out: cannot be written: Not a directory"):
            lock_folder(self.folder.parent / "file" / "out", "study")


if __name__ == "__main__":
    unittest.main()
