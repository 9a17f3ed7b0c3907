# SPDX-License-Identifier: Apache-2.0
"""Studies through the bundles: DICOM in; label maps, DICOM SEG, reports and outlines out; and no patient's name."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
import unittest
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from utils_bundles import workflow
from utils_data import ROOT, shared_data
from utils_dicom import validator_errors

from monai_dvpt.utils import InputError, root_cause

SEGMENTATION = ROOT / "bundles" / "hippocampus_mri_dvpt_unetr_segmentation"
GRADING = ROOT / "bundles" / "hippocampus_mri_dvpt_vit_classification"
PATIENT = {"PatientName": "Chrisjen^Avasarala", "PatientID": "UN-7734-X", "PatientBirthDate": "20980407"}
SECRETS = ("chrisjen", "avasarala", "un-7734", "20980407")
FORMATS = "nifti,dicom_seg,dicom_seg_probability,dicom_sr,rtstruct,secondary_capture"


def write_study(folder: Path, leave_out: tuple[int, ...] = (), **attributes: str) -> None:
    """The real series of a hippocampus, with a patient, in a study of its own, without some of its slices."""
    folder.mkdir(parents=True)
    uids = {keyword: pydicom.uid.generate_uid() for keyword in ("StudyInstanceUID", "SeriesInstanceUID")}
    for path in shared_data("dicom/hippocampus_mr").iterdir():
        dataset = pydicom.dcmread(path)
        if int(dataset.InstanceNumber) in leave_out:
            continue
        for keyword, value in {**PATIENT, **uids, **attributes}.items():
            setattr(dataset, keyword, value)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        dataset.save_as(folder / path.stem)  # without an extension


class Run:
    """Inference over a folder, with what it logged."""

    def __init__(self, test: unittest.TestCase, bundle: Path, inputs: Path, outputs: Path, **settings: str) -> None:
        with test.assertLogs(level="DEBUG") as logs:
            flow = workflow(bundle, "inference", "infer", dataset_dir=str(inputs), output_dir=str(outputs), **settings)
            try:
                flow.run()
                self.error = None
            except RuntimeError as error:
                self.error = root_cause(error)
        self.logs = "\n".join(logs.output)
        with open(outputs / "summary.csv", newline="") as file:
            self.summary = {row["name"]: row for row in csv.DictReader(file)}


class TestStudies(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.root = Path(temporary.name).resolve()
        cls.inputs, cls.out = cls.root / "studies", cls.root / "out"
        write_study(cls.inputs / "good" / "series")
        write_study(cls.inputs / "Avasarala, Chrisjen" / "mr")
        write_study(cls.inputs / "gap", leave_out=(11, 12))
        write_study(cls.inputs / "two" / "a", StudyInstanceUID="1.2.3", SeriesDescription="first")
        write_study(cls.inputs / "two" / "b", StudyInstanceUID="1.2.3", SeriesDescription="second")
        cls.before = {path: path.read_bytes() for path in cls.inputs.rglob("*") if path.is_file()}
        cls.first = Run(cls(), SEGMENTATION, cls.inputs, cls.out, output_format=FORMATS)
        cls.alias = next(name for name in cls.first.summary if name.startswith("study_"))

    def test_every_study_is_done_or_has_a_reason(self):
        summary = self.first.summary
        self.assertEqual(set(summary), {"good_series", self.alias, "gap", "two"})
        self.assertEqual({n for n, row in summary.items() if row["status"] == "done"}, {"good_series", self.alias})
        self.assertRegex(summary["gap"]["reason"], "2 of its slices missing: .* 1.000 mm and, between .* 3.000 mm")
        self.assertRegex(summary["two"]["reason"], "holds 2: .*'(first|second)'.*choose by uid, description")
        self.assertIsInstance(self.first.error, InputError)
        self.assertRegex(str(self.first.error), "^2 of 4 inputs failed: gap: .*; two: ")

    def test_results_lie_on_the_source(self):
        """Label map, segments and outlines tell of the same voxels, at the positions of the slices."""
        sources = [pydicom.dcmread(path) for path in (self.inputs / "good" / "series").iterdir()]
        positions = {source.SOPInstanceUID: np.array(source.ImagePositionPatient, float) for source in sources}
        label_map = nib.load(self.out / "good_series_seg.nii.gz")
        labels, from_ras = np.asarray(label_map.dataobj), np.linalg.inv(label_map.affine)
        self.assertEqual(set(np.unique(labels)), {0, 1, 2})
        segmentation = pydicom.dcmread(self.out / "good_series_seg.dcm")
        names = {int(item.SegmentNumber): str(item.SegmentLabel) for item in segmentation.SegmentSequence}
        self.assertEqual(names, {1: "anterior", 2: "posterior"})
        rebuilt = np.zeros_like(labels)
        for mask, frame in zip(segmentation.pixel_array, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
            position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
            source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            self.assertLess(np.linalg.norm(position - positions[source]), 0.01)
            value = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            z = round((from_ras @ [-position[0], -position[1], position[2], 1])[2])
            rebuilt[:, :, z] += (mask.T * value).astype(np.uint8)
        np.testing.assert_array_equal(rebuilt, labels)
        outlines = pydicom.dcmread(self.out / "good_series_rtstruct.dcm")
        drawn = {c.ContourImageSequence[0].ReferencedSOPInstanceUID for r in outlines.ROIContourSequence
                 for c in r.ContourSequence}  # fmt: skip
        seen = {f.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
                for f in segmentation.PerFrameFunctionalGroupsSequence}  # fmt: skip
        self.assertEqual(drawn, seen)

    def test_report_has_the_volumes(self):
        volumes = json.loads((self.out / "good_series_volumes.json").read_text())["volumes_ml"]
        report = pydicom.dcmread(self.out / "good_series_sr.dcm")
        found = [
            float(item.MeasuredValueSequence[0].NumericValue)
            for item in walk(report)
            if item.get("ValueType") == "NUM" and item.ConceptNameCodeSequence[0].CodeMeaning == "Volume"
        ]
        np.testing.assert_allclose(found, [volumes["anterior"], volumes["posterior"]], rtol=1e-5)

    def test_conforms_to_the_standard(self):
        written = sorted(self.out.glob("good_series_*.dcm"))
        self.assertEqual(len(written), 5)
        for path in written:
            self.assertEqual(validator_errors(path), [], path.name)

    def test_nothing_names_the_patient_outside_dicom(self):
        texts = {"log": self.first.logs, "error": str(self.first.error)}
        for path in self.out.rglob("*"):
            self.assertFalse(any(secret in path.name.lower() for secret in SECRETS), path)
            if path.is_file() and path.suffix != ".dcm":
                texts[str(path)] = path.read_bytes().decode("latin-1")
                if path.name.endswith(".gz"):
                    image = nib.load(path)
                    texts[str(path)] = image.header.binaryblock.decode("latin-1") + str(image.header.extensions)
        self.assertGreater(len(texts), 7)
        for name, text in texts.items():
            self.assertFalse([secret for secret in SECRETS if secret in text.lower()], name)
        for path in self.out.glob("*.dcm"):
            self.assertEqual(pydicom.dcmread(path).PatientID, PATIENT["PatientID"])

    def test_inputs_are_not_changed(self):
        self.assertEqual({path: path.read_bytes() for path in self.before}, self.before)
        self.assertEqual({path for path in self.inputs.rglob("*") if path.is_file()}, set(self.before))

    def test_again_does_only_what_is_left(self):
        out = self.root / "again"
        shutil.copytree(self.out, out)
        before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
        second = Run(self, SEGMENTATION, self.inputs, out, output_format=FORMATS,
                     **{"dicom_reader#description": "[fHs]*"})  # fmt: skip
        # the reader is another one, so all is done again; two is still refused
        self.assertEqual(second.summary["good_series"]["status"], "done")
        self.assertNotEqual(before["good_series_seg.dcm"], (out / "good_series_seg.dcm").stat().st_mtime_ns)
        before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
        third = Run(self, SEGMENTATION, self.inputs, out, output_format=FORMATS,
                    **{"dicom_reader#description": "[fHs]*"})  # fmt: skip
        changed = {path.name for path in out.iterdir() if before[path.name] != path.stat().st_mtime_ns}
        self.assertEqual(changed, {"summary.csv"})
        self.assertIn("2 of 4 are done already", third.logs)

    def test_one_study_and_a_choice(self):
        run = Run(self, SEGMENTATION, self.inputs / "two", self.root / "chosen", output_format="dicom_seg",
                  **{"dicom_reader#description": "sec*"})  # fmt: skip
        self.assertIsNone(run.error)
        (uid,) = {pydicom.dcmread(path).SeriesInstanceUID for path in (self.inputs / "two" / "b").iterdir()}
        self.assertEqual(run.summary["two"]["series_uid"], uid)
        segmentation = pydicom.dcmread(self.root / "chosen" / "two_seg.dcm")
        self.assertEqual(segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID, uid)
        self.assertFalse((self.root / "chosen" / "two_seg.nii.gz").exists())

    def test_grade_of_a_study(self):
        out = self.root / "grades"
        run = Run(self, GRADING, self.inputs / "good", out, output_format="json,dicom_sr,secondary_capture")
        self.assertIsNone(run.error)
        grades = json.loads((out / "series_grades.json").read_text())["outputs"]["volume"]
        items = list(walk(pydicom.dcmread(out / "series_sr.dcm")))
        meanings = [i.ConceptCodeSequence[0].CodeMeaning for i in items if i.get("ValueType") == "CODE"]
        self.assertIn(grades["grade"], meanings)
        numbers = [float(i.MeasuredValueSequence[0].NumericValue) for i in items if i.get("ValueType") == "NUM"]
        np.testing.assert_allclose(numbers, [grades["confidence"]], rtol=1e-5)
        for name in ("series_sr.dcm", "series_secondary_capture.dcm"):
            self.assertEqual(validator_errors(out / name), [])

    def test_training_on_studies_names_nobody(self):
        data, out = self.root / "training", self.root / "trained"
        for name in "ab":  # the same images have the same label
            write_study(data / name)
            shutil.copy(self.out / "good_series_seg.nii.gz", data / f"{name}.nii.gz")
        cases = [{"image": name, "label": f"{name}.nii.gz"} for name in "ab"]
        data.joinpath("datalist.json").write_text(json.dumps({"training": cases[:1], "validation": cases[1:]}))
        with self.assertLogs(level="DEBUG") as logs:
            train = workflow(SEGMENTATION, "train", "train", dataset_dir=str(data), datalist="auto",
                             output_dir=str(out), max_epochs=1, val_interval=1, amp=False)  # fmt: skip
            train.run()
            train.finalize()
        files = [path for path in out.rglob("*") if path.is_file()]
        self.assertTrue({"report.json", "checkpoint.pt", "adapter_best.safetensors"} <= {path.name for path in files})
        self.assertTrue(any("tfevents" in path.name for path in files))
        for path in files:
            text = path.read_bytes().decode("latin-1").lower()
            self.assertFalse([secret for secret in SECRETS if secret in text], path)
        self.assertFalse([secret for secret in SECRETS if secret in "\n".join(logs.output).lower()])

    def test_dicom_output_of_nifti_is_refused(self):
        inputs = self.root / "nifti"
        inputs.mkdir()
        shutil.copy(self.out / "good_series_seg.nii.gz", inputs / "a.nii.gz")
        run = Run(self, SEGMENTATION, inputs, self.root / "from_nifti", output_format="dicom_seg")
        self.assertRegex(run.summary["a"]["reason"], "output_format dicom_seg must have DICOM input")

    def test_unknown_format(self):
        for bundle, known in ((SEGMENTATION, "nifti, uncertainty"), (GRADING, "json, dicom_sr, secondary_capture")):
            with self.assertRaises(RuntimeError) as raised:
                settings = {"dataset_dir": str(self.inputs / "good"), "output_dir": str(self.root / "no")}
                workflow(bundle, "inference", "infer", output_format="dicom", **settings).run()
            self.assertRegex(str(root_cause(raised.exception)), f"output_format must be of {known}.*, got dicom")


def walk(item: pydicom.Dataset):
    """All content items of a report."""
    for child in item.get("ContentSequence", []):
        yield child
        yield from walk(child)


if __name__ == "__main__":
    unittest.main()
