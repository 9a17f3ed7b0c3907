# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import os
import unittest
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from parameterized import parameterized
from utils_data import save_dicom, save_nifti, shared_data, temporary_folder

from monai_dvpt.data import DicomSeriesReader, find_cases
from monai_dvpt.utils import InputError

VOLUME = np.arange(4 * 5 * 6, dtype=np.uint16).reshape(4, 5, 6)


class TestFindCases(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self) / "scans"
        self.root.mkdir()

    def dicom(self, folder: str, suffix: str = ".dcm", **attributes: str) -> Path:
        """A series in a study of its own."""
        path = save_dicom(self.root / folder, VOLUME, np.eye(3), (0, 0, 0), (1, 1, 1), suffix)
        for file in path.iterdir() if attributes else []:
            dataset = pydicom.dcmread(file)
            for keyword, value in attributes.items():
                setattr(dataset, keyword, value)
            dataset.save_as(file)
        return path

    def found(self, **options) -> dict[str, dict]:
        return {case.pop("name"): case for case in find_cases(self.root, **options)}

    @parameterized.expand([("scan.nii",), ("scan.nii.gz",)])
    def test_one_file_is_one_case(self, name):
        path = self.root / name
        path.touch()
        (case,) = find_cases(path)
        self.assertEqual((case["image"], case["name"]), (str(path), "scan"))

    def test_one_file_that_is_no_dicom(self):
        (self.root / "scan.dcm").touch()
        (case,) = find_cases(self.root / "scan.dcm")
        self.assertEqual(case["name"], "scan")
        self.assertRegex(case["refused"], "scan.dcm: must be a DICOM object")

    def test_one_dicom_file_is_its_series(self):
        folder = self.dicom("Avasarala")
        path = sorted(folder.iterdir())[2]
        (case,) = find_cases(path)
        self.assertEqual(case["image"], sorted(map(str, folder.iterdir())))
        self.assertRegex(case["name"], "^study_[0-9a-f]{12}$")

    def test_nested_folders_are_sorted_and_named_by_their_path(self):
        for name in ("b/c/two.nii.gz", "b/one.nii", "a.nii"):
            save_nifti(self.root / name, VOLUME)
        (self.root / "b" / "notes.txt").write_text("not an image")
        expected = [("a", "a.nii"), ("b_c_two", "b/c/two.nii.gz"), ("b_one", "b/one.nii")]
        self.assertEqual(find_cases(self.root), [{"image": str(self.root / p), "name": n} for n, p in expected])

    @parameterized.expand([(".dcm",), ("",)])
    def test_dicom_folders(self, suffix):
        first, second = self.dicom("patient1/series.1", suffix), self.dicom("patient2", suffix)
        (second / "report.txt").write_text("not an image")
        cases = self.found()
        self.assertEqual(list(cases), ["patient1_series.1", "patient2"])
        for case, folder in zip(cases.values(), (first, second), strict=True):
            images = sorted(path for path in folder.iterdir() if path.suffix != ".txt")
            self.assertEqual(case["image"], [str(path) for path in images])
            self.assertEqual(case["series_uid"], pydicom.dcmread(images[0]).SeriesInstanceUID)

    def test_dicom_and_nifti_side_by_side(self):
        folder = self.dicom("patient")
        nifti = save_nifti(folder / "converted.nii", VOLUME)
        cases = self.found()
        self.assertEqual(list(cases), ["patient", "patient_converted"])
        self.assertEqual(cases["patient"]["image"], sorted(str(path) for path in folder.glob("*.dcm")))
        self.assertEqual(cases["patient_converted"], {"image": str(nifti)})

    def test_folder_of_one_series_has_its_own_name(self):
        self.assertEqual([case["name"] for case in find_cases(self.dicom("series"))], ["series"])

    def test_names_are_unique(self):
        for name in ("scan.nii", "scan.nii.gz", "scan_2.nii", "a/b.nii", "a_b.nii"):
            save_nifti(self.root / name, VOLUME)
        cases = find_cases(self.root)
        self.assertEqual(len({case["name"] for case in cases}), 5)
        self.assertEqual(len({case["image"] for case in cases}), 5)

    def test_labels_and_hidden_are_left_out(self):
        for name in ("imagesTr/a.nii", "labelsTr/a.nii", "x/labels/a.nii", ".cache/a.nii", "imagesTr/._a.nii"):
            save_nifti(self.root / name, VOLUME)
        self.dicom("labels_dicom")
        self.assertEqual([case["name"] for case in find_cases(self.root)], ["imagesTr_a"])

    def test_broken_link_is_no_slice_less(self):
        folder = self.dicom("study")
        (folder / "gone.dcm").symlink_to(self.root / "nowhere.dcm")
        save_nifti(self.root / "a.nii", VOLUME)
        cases = self.found()
        self.assertEqual(cases["a"], {"image": str(self.root / "a.nii")})
        self.assertRegex(cases["study"]["refused"], "gone.dcm: cannot be read: FileNotFoundError")

    def test_links_to_folders_are_followed_once(self):
        outside = save_dicom(self.root.parent / "elsewhere", VOLUME, np.eye(3), (0, 0, 0), (1, 1, 1))
        (self.root / "linked").symlink_to(outside)
        (self.root / "loop").symlink_to(self.root)
        self.assertEqual(list(self.found()), ["linked"])

    def test_results_are_no_input(self):
        save_nifti(self.root / "a.nii", VOLUME)
        save_nifti(self.root / "results" / "a_seg.nii.gz", VOLUME)
        summary = self.root / "results" / "summary.csv"
        summary.write_text("subject,age\n")  # somebody else's
        self.assertEqual(list(self.found()), ["a", "results_a_seg"])
        summary.write_text("name,status,reason,seconds\n")
        self.assertEqual(list(self.found()), ["a"])
        with self.assertRaisesRegex(InputError, "output_dir must be another folder than dataset_dir"):
            find_cases(self.root, exclude=self.root)

    def test_dicomdir_alone_is_no_series(self):
        self.dicom("disc/series")
        index = next((self.root / "disc" / "series").iterdir())
        (self.root / "disc" / "DICOMDIR").write_bytes(index.read_bytes())
        self.assertEqual([case["name"] for case in find_cases(self.root)], ["disc_series"])

    @parameterized.expand([("empty", None), ("text only", "notes.txt"), ("labels only", "labelsTr/a.nii")])
    def test_folder_without_images(self, _, name):
        if name:
            save_nifti(self.root / "labelsTr" / "a.nii", VOLUME) if "/" in name else (self.root / name).touch()
        with self.assertRaisesRegex(InputError, "scans: dataset_dir must hold NIfTI, NRRD, MetaImage or DICOM"):
            find_cases(self.root)

    def test_missing_path(self):
        with self.assertRaisesRegex(InputError, "nowhere: dataset_dir must be an existing file or folder"):
            find_cases(self.root / "nowhere")

    def test_pictures(self):
        """Of 2D images every file is an input, a DICOM file by its content or by its name."""
        folder = self.dicom("patient", suffix="")
        count = len(list(folder.iterdir()))
        for name in ("a.png", "b/A.JPG", "b/c.jpeg", "broken.dcm", "notes.txt", "labels/a.png", ".hidden.png"):
            (self.root / name).parent.mkdir(exist_ok=True)
            (self.root / name).write_text("not an image")
        save_nifti(self.root / "a.nii.gz", VOLUME)
        cases = find_cases(self.root, pictures=True)
        expected = {"a": "a.nii.gz", "a_2": "a.png", "b_A": "b/A.JPG", "b_c": "b/c.jpeg", "broken": "broken.dcm"}
        names = {case["name"]: case["image"] for case in cases if "patient" not in case["name"]}
        self.assertEqual(names, {name: str(self.root / path) for name, path in expected.items()})
        self.assertEqual(len(cases), count + len(expected))
        self.assertEqual(find_cases(self.root / "b" / "A.JPG", pictures=True)[0]["name"], "A")

    def test_pictures_are_asked_for(self):
        (self.root / "a.png").touch()
        with self.assertRaisesRegex(InputError, "must hold NIfTI, NRRD, MetaImage or DICOM files"):
            find_cases(self.root)
        (self.root / "a.png").unlink()
        with self.assertRaisesRegex(InputError, "must hold NIfTI, NRRD, MetaImage, PNG, JPEG or DICOM files"):
            find_cases(self.root, pictures=True)

    def test_images_are_told_by_what_is_in_them(self):
        """One volume in every spelling and format: none is passed over."""
        nifti, packed = (save_nifti(self.root / f"a{end}", VOLUME) for end in (".nii", ".nii.gz"))
        for name in ("b.NII", "c.Nii", "d.volume", "e.dcm"):
            (self.root / name).write_bytes(nifti.read_bytes())
        for name in ("f.NII.GZ", "g.Nii.Gz"):
            (self.root / name).write_bytes(packed.read_bytes())
        nib.save(nib.Nifti1Pair(VOLUME.astype(np.int16), np.eye(4)), self.root / "h.hdr")
        data = VOLUME.tobytes(order="F")
        (self.root / "i.NRRD").write_bytes(
            b"NRRD0004\ntype: uint16\ndimension: 3\nsizes: 4 5 6\nencoding: raw\nendian: little\n\n" + data
        )
        (self.root / "j.mhd").write_text("ObjectType = Image\nNDims = 3\nElementDataFile = j.raw\n")
        (self.root / "j.raw").write_bytes(data)
        (self.root / "k.mha").write_bytes(b"ObjectType = Image\nNDims = 3\nElementDataFile = LOCAL\n" + data)
        for name in ("l.txt", "l.json", "l.csv", "l.png", "l.PDF"):
            (self.root / name).write_text("no volume")
        cases = find_cases(self.root)
        self.assertFalse([case for case in cases if "refused" in case])
        names = {Path(case["image"]).name: case["name"] for case in cases}
        spelled = ["b.NII", "c.Nii", "f.NII.GZ", "g.Nii.Gz", "h.hdr", "i.NRRD", "j.mhd", "k.mha"]
        expected = {"a.nii": "a", "a.nii.gz": "a_2", "d.volume": "d.volume", "e.dcm": "e"}
        self.assertEqual(names, {**expected, **{name: name[0] for name in spelled}})
        for part in ("h.hdr", "h.img"):  # of a pair either file is the image
            self.assertEqual(find_cases(self.root / part), [{"image": str(self.root / "h.hdr"), "name": "h"}])

    def test_images_that_cannot_be_read_have_a_reason(self):
        analyze = nib.AnalyzeImage(VOLUME.astype(np.int16), np.eye(4))
        nib.save(analyze, self.root / "analyze.hdr")
        nib.save(nib.Nifti1Pair(VOLUME.astype(np.int16), np.eye(4)), self.root / "lost.hdr")
        (self.root / "lost.img").unlink()
        for name in ("empty.nii", "text.NII.GZ", "x.mgz", "x.tif", "x.nrrd", "x.img", "y.MHA"):
            (self.root / name).write_text("no volume\n" if "text" in name else "")
        os.mkfifo(self.root / "pipe.nii.gz")
        cases = find_cases(self.root)
        reasons = {Path(case["image"]).name: case.get("refused", "") for case in cases}
        self.assertEqual(len(reasons), 10)
        self.assertRegex(
            reasons["analyze.hdr"],
            "cannot be read: is of Analyze 7.5, which does not say",
        )
        self.assertRegex(reasons["lost.hdr"], "must have its values beside it")
        self.assertRegex(reasons["pipe.nii.gz"], "must be a regular file")
        for name, text in reasons.items():
            self.assertIn(name, text)
            if name not in ("analyze.hdr", "lost.hdr", "pipe.nii.gz"):
                self.assertIn("must hold NIfTI, NRRD, MetaImage or DICOM, does not", text)
        (self.root / "p.png").touch()
        pictures = {Path(case["image"]).name: case for case in find_cases(self.root, pictures=True)}
        self.assertEqual(pictures.keys() - reasons.keys(), {"p.png"})
        self.assertIn("PNG, JPEG or DICOM", pictures["p.png"]["refused"])

    def test_real_folders(self):
        images = sorted((shared_data("msd_hippocampus") / "imagesTr").iterdir())
        cases = find_cases(shared_data("msd_hippocampus"))
        self.assertEqual([case["image"] for case in cases], [str(path) for path in images])
        series = shared_data("dicom/hippocampus_mr")
        (case,) = find_cases(series)
        self.assertEqual((case["name"], case["image"]), ("hippocampus_mr", sorted(map(str, series.iterdir()))))

    def test_one_case_for_a_study(self):
        """Series of one study in two folders; the second is told from the first by its description."""
        study = {"StudyInstanceUID": "1.2.3"}
        for folder, text in (("study/s1", "T1 sagittal"), ("study/s2", "T2 axial")):
            self.dicom(folder, **study, SeriesDescription=text)
        case = self.found()["study"]
        self.assertRegex(
            case["refused"], "must hold one DICOM volume, holds 2: .*(T1 sagittal|T2 axial).*choose by uid"
        )
        case = self.found(dicom_reader=DicomSeriesReader(description="t2*"))["study"]
        self.assertEqual({Path(path).parent.name for path in case["image"]}, {"s2"})

    def test_two_studies_in_one_folder(self):
        first, second = self.dicom("flat"), self.dicom("other")
        for path in second.iterdir():
            path.rename(first / f"b{path.name}")
        cases = self.found()
        for name, case in cases.items():  # which a third study does not change
            uid = pydicom.dcmread(case["image"][0]).StudyInstanceUID
            self.assertEqual(name, f"flat_{hashlib.sha256(uid.encode()).hexdigest()[:12]}")
        self.assertEqual(sum(len(case["image"]) for case in cases.values()), 12)
        self.assertNotEqual(*(case["series_uid"] for case in cases.values()))

    def test_study_without_a_volume_has_a_reason(self):
        self.dicom("report", Modality="SR")
        self.assertRegex(self.found()["report"]["refused"], "must hold a DICOM volume, holds none; there is: .*SR")

    @parameterized.expand(
        [
            ("name", "chrisjen_avasarala/mr", {}),
            ("joined", "AvasaralaC-CT", {}),
            ("one word", "Avasarala 2/mr", {}),
            ("ID", "x/4711", {}),
            ("ID inside", "MRN1234567", {"PatientID": "1234567"}),
            ("parts of an ID", "sub-HC-00123_ses-1", {"PatientID": "HC-00123"}),
            ("accents", "Muller_Joerg", {"PatientName": "Müller^Jörg", "SpecificCharacterSet": "ISO_IR 192"}),
            ("spelled out", "Mueller-J", {"PatientName": "Müller^Jörg", "SpecificCharacterSet": "ISO_IR 192"}),
            ("stroke", "Soren 2", {"PatientName": "Hansen^Søren", "SpecificCharacterSet": "ISO_IR 192"}),
            ("zeros", "scan 12345", {"PatientID": "0012345"}),
            ("short and joined", "LiWu2020", {"PatientName": "Li^Wu"}),
            ("day first", "born 01.12.1980", {"PatientBirthDate": "19801201"}),
            ("short", "Li_Wu_2020", {"PatientName": "Li^Wu"}),
            ("birth date", "DOB 1980-01-01 scan", {"PatientBirthDate": "19800101"}),
        ]
    )
    def test_name_of_a_patient_is_no_name_of_a_case(self, _, folder, header):
        self.dicom(folder, **{"PatientID": "4711", **header})
        ((name, case),) = self.found().items()
        self.assertRegex(name, "^study_[0-9a-f]{12}$")
        self.assertTrue(case["private"])
        self.assertEqual(list(self.found(pictures=True))[0][:6], "study_")

    def test_pictures_leave_out_reports(self):
        folder = self.dicom("reports", Modality="SEG")
        self.dicom("images")
        self.assertEqual({Path(case["image"]).parent.name for case in find_cases(self.root, pictures=True)}, {"images"})
        self.assertTrue(any(folder.iterdir()))


if __name__ == "__main__":
    unittest.main()
