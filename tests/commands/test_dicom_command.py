# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import unittest

import numpy as np
import pydicom
from utils_commands import call
from utils_data import PATIENT, save_dicom, temporary_folder

from monai_dvpt.__main__ import main
from monai_dvpt.data import find_series
from monai_dvpt.transforms import LoadVolume

VOLUME = np.arange(4 * 5 * 6, dtype=np.uint16).reshape(4, 5, 6)


class TestDicomList(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)

    def save(self, name: str) -> list:
        return sorted(save_dicom(self.root / name, VOLUME, np.eye(3), (0, 0, 0), (1, 1.5, 2)).iterdir())

    def test_table(self):
        self.save("good")
        next(path for path in self.save("gap") if pydicom.dcmread(path).ImagePositionPatient[2] == 4).unlink()
        status, out, _ = call(main, "dicom", "list", self.root)
        self.assertEqual(status, 0)
        lines = out.splitlines()
        self.assertRegex(lines[0], "^verdict +modality +size +spacing, mm +orientation +times +stacks +files")
        self.assertEqual(sum(line.startswith("study 1.2.826") for line in lines), 2)
        self.assertRegex(out, r"(?m)^ok +MR +4x5x6 +1x1.5x2 +axial +1 +1 +6$")
        self.assertRegex(out, r"(?m)^refused +MR +4x5x5 .*\n    series [\d.]+: 1 of its slices missing: ")
        for word in PATIENT.split("^"):
            self.assertNotIn(word, out)

    def test_json(self):
        self.save("good")
        status, out, _ = call(main, "dicom", "list", self.root, "--json")
        (facts,) = json.loads(out)
        (series,) = find_series(self.root)
        expected = json.loads(json.dumps({**series.facts(), "files": 6}))
        self.assertEqual((status, facts), (0, expected))
        self.assertEqual((facts["verdict"], facts["spacing_mm"]), ("ok", [1, 1.5, 2]))

    def test_slices_that_are_set_aside(self):
        """A localizer in the same series, and a copy, are named, here and in the image's metadata."""
        *_, scout = paths = self.save("study")
        dataset = pydicom.dcmread(scout)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        dataset.save_as(scout.with_name("scout.dcm"))
        scout.with_name("twin.dcm").write_bytes(paths[0].read_bytes())
        expected = [
            {"file": "study/twin.dcm", "reason": "is a copy of study/000.dcm"},
            {"file": "study/scout.dcm", "reason": "is a localizer"},
        ]
        _, out, _ = call(main, "dicom", "list", self.root)
        self.assertRegex(out, "2 of 8 files are set aside: study/twin.dcm is a copy of study/000.dcm; study/scout.dcm")
        (facts,) = json.loads(call(main, "dicom", "list", self.root, "--json")[1])
        self.assertEqual((facts["verdict"], facts["size"], facts["set_aside"]), ("ok", [4, 5, 6], expected))
        image = LoadVolume()(str(self.root / "study"))
        self.assertEqual(json.loads(image.meta["set_aside"]), expected)
        self.assertNotIn(str(scout.with_name("scout.dcm")), [path for path, _ in image.meta["series_grid"].frames])

    def test_name_of_a_patient_is_not_shown_of_what_is_set_aside(self):
        path = self.save("study")[0]
        path.with_name(f"{PATIENT.split('^')[0]}.dcm").write_bytes(path.read_bytes())
        _, out, _ = call(main, "dicom", "list", self.root)
        self.assertIn("1 of 7 files are set aside", out)
        self.assertNotIn(PATIENT.split("^")[0], out)

    def test_merge_acquisitions_and_one_file(self):
        path = self.save("good")[2]
        for options in ([], ["--merge-acquisitions"]):
            status, out, _ = call(main, "dicom", "list", path, *options)
            self.assertEqual(status, 0)
            self.assertIn("4x5x6", out)

    def test_nothing_there(self):
        for folder, why in (
            (self.root, "must hold DICOM files, found none"),
            (self.root / "no", "must be an existing"),
        ):
            status, out, error = call(main, "dicom", "list", folder)
            self.assertEqual((status, out), (1, ""))
            self.assertRegex(error, f"error: {folder}: {why}")


if __name__ == "__main__":
    unittest.main()
