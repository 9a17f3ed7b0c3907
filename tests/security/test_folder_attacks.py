# SPDX-License-Identifier: Apache-2.0
"""Folders that are made to stop a search: pipes, devices, depth, and files that cannot be read."""

from __future__ import annotations

import json
import os
import time
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import pydicom
from parameterized import parameterized
from utils_attack import attack
from utils_commands import call
from utils_data import save_dicom, save_nifti, temporary_folder

from monai_dvpt.__main__ import main
from monai_dvpt.data import find_cases, find_series
from monai_dvpt.data.dicom import series as series_module
from monai_dvpt.transforms import LoadVolume
from monai_dvpt.utils import fingerprint

VOLUME = np.arange(4 * 5 * 3, dtype=np.uint16).reshape(4, 5, 3)

SEARCH = """
import json
from pathlib import Path
from monai_dvpt.data import find_cases, find_series
from monai_dvpt.data.dicom.headers import read_header
root = Path(arguments[0])
told = {}
for pictures in (False, True):
    for case in find_cases(root, pictures=pictures):
        told[f"{case['image']} {pictures}"] = case.get("refused", "")
    find_series(root)
for name in ("pipe.dcm", "device.dcm", "link.dcm"):
    try:
        read_header(root / "special" / name)
    except InputError as error:
        told[name] = str(error)
return json.dumps(told)
"""


class TestFolderAttacks(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)

    def test_pipes_and_devices_are_never_opened(self):
        """Opening a pipe waits for ever for what nobody writes; reading /dev/zero does not end."""
        save_nifti(self.root / "good.nii.gz", VOLUME)
        special = self.root / "special"
        special.mkdir()
        for name in ("pipe.dcm", "pipe", "pipe.nii.gz", "pipe.txt", "pipe.png", "summary.csv"):
            os.mkfifo(special / name)
        (special / "device.dcm").symlink_to("/dev/zero")
        (special / "device.nii").symlink_to("/dev/zero")
        (special / "link.dcm").symlink_to("pipe")
        text = attack(SEARCH, self.root, seconds=120)
        self.assertRegex(text, "^read: ")
        told = json.loads(text.removeprefix("read: "))
        for pictures in (False, True):
            self.assertEqual(told.pop(f"{self.root / 'good.nii.gz'} {pictures}"), "")
            for name in ("pipe.nii.gz", "device.nii"):
                self.assertIn("must be a regular file", told.pop(f"{special / name} {pictures}"))
        for name in ("pipe", "pipe.dcm", "device.dcm", "link.dcm"):
            self.assertIn("must be a regular file", told.pop(f"{special / name} True"))
        self.assertIn("must be a regular file", told.pop(f"{special / 'pipe.png'} True"))
        self.assertIn("must be a regular file", told.pop(f"{special} False"))
        for name in ("pipe.dcm", "device.dcm", "link.dcm"):
            self.assertRegex(told.pop(name), f"^{name}: must be a regular file")
        self.assertEqual(told, {})

    @parameterized.expand([("short", "d"), ("longer than any path", "folder_of_a_long_name")])
    def test_nested_folders(self, _, name):
        """What can be reached is found, at any depth; what cannot is told."""
        start, top = os.getcwd(), self.root / "top"
        top.mkdir()
        self.addCleanup(os.chdir, start)
        os.chdir(top)
        for _ in range(1500):
            os.mkdir(name)
            os.chdir(name)
        Path("deep.nii").write_bytes(save_nifti(self.root / "scan.nii", VOLUME).read_bytes())
        os.chdir(start)
        self.addCleanup(_remove_chain, top, name)
        save_nifti(top / "flat.nii", VOLUME)
        cases = {case["name"]: case for case in find_cases(top)}
        self.assertEqual(cases.pop("flat"), {"image": str(top / "flat.nii"), "name": "flat"})
        (deep,) = cases.values()
        self.assertLessEqual(len(deep["name"].encode()), 200)
        if len(name) == 1:
            self.assertTrue(deep["image"].endswith("/d/deep.nii"))
            self.assertNotIn("refused", deep)
        else:
            self.assertIn("File name too long", deep["refused"])

    def test_dicom_in_folders_that_are_not_utf8(self):
        """Such names come from old discs and from other systems; nothing that is made of them may fail."""
        slices = save_dicom(self.root / "scan", VOLUME, np.eye(3), (0, 0, 0), (1, 1, 1))
        (slices / "copy.dcm").write_bytes(next(slices.iterdir()).read_bytes())
        for path in list(slices.iterdir()):
            path.rename(os.fsdecode(os.fsencode(path) + b"\xe9.dcm"))
        folder = Path(os.fsdecode(os.fsencode(self.root) + b"/caf\xe9"))
        slices.rename(folder)
        (case,) = find_cases(self.root)
        self.assertEqual(case["name"], "caf_")
        self.assertEqual(tuple(LoadVolume()(case["image"]).shape), (1, 4, 5, 3))
        self.assertEqual(len(find_cases(self.root, pictures=True)), 4)
        for options in ([], ["--json"]):
            status, out, _ = call(main, "dicom", "list", self.root, *options)
            self.assertEqual(status, 0)
            self.assertIn("caf\\udce9", out.encode("utf-8").decode())
        self.assertEqual(len(fingerprint(case)), 64)

    @parameterized.expand([("one patient", False), ("many patients", True)])
    def test_effort_is_linear_in_unreadable_files(self, _, many):
        """Twice the files are twice the questions whether a text names a patient, and about twice the time."""
        counts, seconds = [], []
        slices = save_dicom(self.root / "scan", VOLUME, np.eye(3), (0, 0, 0), (1, 1, 1))
        dataset = pydicom.dcmread(next(slices.iterdir()))
        for number in (100, 400):
            folder = self.root / f"{number}"
            folder.mkdir()
            for index in range(number):
                dataset.SOPInstanceUID = f"1.2.{index + 1}"
                dataset.ImagePositionPatient = [0, 0, index]
                if many:
                    dataset.PatientName, dataset.PatientID = f"Name{index:05}^First{index:05}", f"ID{index:07}"
                    dataset.SeriesInstanceUID = f"1.2.3.{index + 1}"
                dataset.save_as(folder / f"{index}.dcm")
                (folder / f"z{index}.dcm").write_bytes(b"no DICOM" * 50)
            with mock.patch.object(series_module, "names_patient", wraps=series_module.names_patient) as asked:
                started = time.process_time()
                found = find_series(folder)
                seconds.append(time.process_time() - started)
            counts.append(asked.call_count)
            self.assertEqual(sum(series.verdict == "refused" for series in found), number + (0 if many else 1))
        self.assertLessEqual(counts[1], 4 * counts[0])
        self.assertLess(seconds[1], 10 * seconds[0])


def _remove_chain(top: Path, name: str) -> None:
    """Removes folders that are too deep for a path."""
    start = os.getcwd()
    os.chdir(top)
    depth = 0
    while os.path.isdir(name):
        os.chdir(name)
        depth += 1
    if os.path.exists("deep.nii"):
        os.unlink("deep.nii")
    for _ in range(depth):
        os.chdir("..")
        os.rmdir(name)
    os.chdir(start)


if __name__ == "__main__":
    unittest.main()
