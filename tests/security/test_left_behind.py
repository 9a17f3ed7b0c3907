# SPDX-License-Identifier: Apache-2.0
"""What killed runs leave: temporary files, locks, workers, and points of their curves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path
from unittest import mock

import torch
from monai.handlers import ValidationHandler
from parameterized import parameterized
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from utils_data import temporary_folder
from utils_training import make_evaluator, make_trainer, tiny_network

from monai_dvpt.data import PrefixCacheDataset
from monai_dvpt.handlers import ResumableCheckpoint, TensorBoardLog
from monai_dvpt.utils import FolderLock, InputError, atomic_path, remove_leftovers

KILLED = """
import os, signal, sys
from monai_dvpt.utils import FolderLock, atomic_path
lock = FolderLock(sys.argv[1])
lock.acquire()
with atomic_path(sys.argv[1] + "/DOE.JANE.1970_seg.nii.gz") as path:
    path.write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""
STUDY = """
import multiprocessing, sys, time
from pathlib import Path
from monai_dvpt.benchmark.study.runner import _pool
import os

if __name__ == "__main__":
    with _pool(2, Path(sys.argv[1])) as pool:
        workers = [pool.submit(os.getpid) for _ in range(2)]
        print(*(worker.result() for worker in workers), flush=True)
        pool.submit(time.sleep, 300)
        time.sleep(300)
"""


def running(process: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class TestKilledRun(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = temporary_folder(cls)
        run = subprocess.Popen(
            [sys.executable, "-c", KILLED, cls.folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert run.stdout.readline() == "writing\n"
        cls.part = [path for path in cls.folder.iterdir() if ".part" in path.name]
        remove_leftovers(cls.folder)
        cls.kept = all(path.is_file() for path in cls.part)
        try:
            FolderLock(cls.folder).acquire()
            cls.refused = ""
        except InputError as error:
            cls.refused = str(error)
        run.kill()
        run.communicate()
        cls.process = run.pid

    def test_names_no_patient(self):
        self.assertEqual(len(self.part), 1)
        self.assertRegex(self.part[0].name, rf"^\.[0-9a-f]{{8}}-{self.process}-[a-z0-9_]{{8}}\.part\.nii\.gz$")

    def test_stays_while_its_process_lives_and_then_goes(self):
        self.assertTrue(self.kept)
        with atomic_path(self.folder / "next.json") as path:
            path.write_text("{}")
        names = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith(".lock"))
        self.assertEqual(names, ["next.json"])

    def test_lock(self):
        self.assertRegex(self.refused, rf"one run at a time.*: process {self.process} on \S+, started [-\d]+ [:\d]+; ")
        with FolderLock(self.folder), self.assertRaisesRegex(InputError, f"process {os.getpid()} on"):
            FolderLock(self.folder).acquire()  # the first is taken over from the dead process


class TestLeftovers(unittest.TestCase):
    @parameterized.expand(["1.2.DOE^JANE", "scan.DOE JANE", "a.b.dcm", ".hidden"])
    def test_suffix(self, name):
        with atomic_path(temporary_folder(self) / name) as path:
            self.assertNotIn("DOE", path.name)
            self.assertTrue(path.name.endswith(".part.dcm" if name.endswith(".dcm") else path.suffix))

    def test_by_age_and_by_name_alone(self):
        folder, day_ago = temporary_folder(self), time.time() - 25 * 3600
        other_host = ".00000000-1-abcdefgh.part.dcm"
        others = [".profile", "a.part", ".part", "b.part.csv", ".abc.part.csv", ".download.part"]
        for name in (other_host, *others):
            (folder / name).touch()
        remove_leftovers(folder)
        self.assertEqual(len(list(folder.iterdir())), 7)
        for path in folder.iterdir():
            os.utime(path, (day_ago, day_ago))
        remove_leftovers(folder)
        self.assertEqual(sorted(path.name for path in folder.iterdir()), sorted(others))
        remove_leftovers(folder / "missing")

    def test_prefix_cache(self):
        net, root = tiny_network(), temporary_folder(self)
        data = [{"image": torch.rand(1, 16, 24, 32)}]
        PrefixCacheDataset(data, net, root, progress=False)
        (encoder,) = root.iterdir()
        left = encoder / ".00000000-1-abcdefgh.part.safetensors"
        left.touch()
        os.utime(left, (0, 0))
        PrefixCacheDataset(data, net, root, progress=False)
        self.assertFalse(left.exists())

    @parameterized.expand(["/proc/a", "/dev/null/a"])
    def test_lock_of_a_folder_that_cannot_be_written(self, folder):
        with self.assertRaisesRegex(InputError, f"^{folder}: cannot be written: "):
            FolderLock(folder).acquire()


@unittest.skipUnless(sys.platform == "linux", "looks into /proc")
class TestWorkers(unittest.TestCase):
    def test_end_with_the_study(self):
        folder = temporary_folder(self)
        script = folder / "study.py"
        script.write_text(STUDY)
        study = subprocess.Popen([sys.executable, script, folder / "log.txt"], stdout=subprocess.PIPE, text=True)
        children = Path(f"/proc/{study.pid}/task/{study.pid}/children")
        self.assertTrue(study.stdout.readline().strip())
        time.sleep(1)
        tree = [int(child) for child in children.read_text().split()]
        for process in list(tree):
            tree += [int(c) for c in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
        self.assertTrue(any(running(process) for process in tree))
        study.send_signal(signal.SIGKILL)
        study.communicate()
        end = time.monotonic() + 30
        while any(map(running, tree)) and time.monotonic() < end:
            time.sleep(0.2)
        self.assertEqual([process for process in tree if running(process)], [])


class TestCurves(unittest.TestCase):
    def test_no_point_twice_after_a_kill(self):
        """Three iterations an epoch; killed in the second epoch's third."""
        root = temporary_folder(self)

        def run(epochs: int, kill: int = 0) -> None:
            net = tiny_network()
            evaluator = make_evaluator(net, [0.1, 0.2, 0.3])
            TensorBoardLog(root / "curves" / "validation", iteration_log=False).attach(evaluator)

            def loss(output: list) -> float:
                if kill and trainer.state.iteration == kill:
                    raise KeyboardInterrupt
                return output[0]["loss"]

            curve = TensorBoardLog(root / "curves", output_transform=loss, tag_name="loss")
            checkpoint = ResumableCheckpoint(root / "checkpoint.pt", {"network": net}, 0)
            trainer = make_trainer(net, epochs, None, [ValidationHandler(1, evaluator), curve, checkpoint])
            with mock.patch.object(trainer.logger, "disabled", True):
                trainer.run()
            curve.close()

        with self.assertRaises(KeyboardInterrupt):
            run(3, kill=6)
        self.assertEqual(len(list((root / "curves").glob("events*"))), 1)
        time.sleep(1.1)  # their names have the second
        run(3)
        for folder, tag, steps in (("", "loss", range(1, 10)), ("validation", "val_score", range(1, 4))):
            events = EventAccumulator(str(root / "curves" / folder))
            events.Reload()
            self.assertEqual([point.step for point in events.Scalars(tag)], list(steps))


if __name__ == "__main__":
    unittest.main()
