# SPDX-License-Identifier: Apache-2.0
"""Tables of grades and classes, whose truth is pandas or the test's own words, and what is odd about them."""

from __future__ import annotations

import hashlib
import json
import sys
import unittest
import zipfile
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import openpyxl
import pandas as pd
import pydicom
from parameterized import parameterized
from PIL import Image
from utils_data import save_dicom, save_nifti, shared_data, temporary_folder
from utils_pictures import save_radiograph

from monai_dvpt.apps.new_bundle.collect.tables import collect_table
from monai_dvpt.apps.new_bundle.model import Collection, Finding, Options
from monai_dvpt.utils import InputError

SECRET = b"key of this test"
ZONES = [f"S-{zone}" for zone in "ABCDEF"]


def alias(identifier: str) -> str:
    """As the model says: a keyed hash in 16 digits."""
    return hashlib.blake2b(identifier.encode(), key=SECRET, digest_size=8).hexdigest()


class Tables(unittest.TestCase):
    def setUp(self) -> None:
        self.root = temporary_folder(self)

    def pictures(self, *names: str) -> None:
        for seed, name in enumerate(names):
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(seed).integers(0, 255, (4, 5), np.uint8)).save(path)

    def numbered(self, count: int, folder: str = "images") -> list[str]:
        names = [f"p{number:02}" for number in range(count)]
        self.pictures(*(f"{folder}/{name}.png" for name in names))
        return names

    def write(self, text: str, name: str = "labels.csv", encoding: str = "utf-8") -> Path:
        path = self.root / name
        path.write_text(text, encoding=encoding)
        return path

    def graded(self, grades: list[str], name: str = "labels.csv", column: str = "grade") -> None:
        """A table of as many pictures."""
        names = self.numbered(len(grades))
        self.write("\n".join([f"image,{column}", *map(",".join, zip(names, grades, strict=True))]), name)

    def collect(self, **options) -> Collection:
        collection = collect_table(self.root, Options(secret=SECRET, **options))
        assert collection is not None
        return collection

    def grades(self, collection: Collection, output: str = "grade") -> dict[str, str]:
        return {Path(str(case.image)).stem: case.grades.get(output, "") for case in collection.cases}

    def one(self, rule: str, collection: Collection, error: bool = False) -> Finding:
        """The only finding of a rule."""
        found = [finding for finding in collection.findings if finding.rule == rule]
        self.assertEqual(
            [each.error for each in found], [error], [(each.rule, each.message) for each in collection.findings]
        )
        return found[0]


class TestFormats(Tables):
    ROWS = [("a", "0", "x1"), ("b", "1", "x1"), ("c", "2", "y2"), ("d", "1", "z3"), ("e", "0", "z3"), ("f", "2", "w4")]

    def check(self, **options) -> Collection:
        collection = self.collect(**options)
        self.assertEqual((collection.task, collection.spatial_dims), ("grading", 2))
        self.assertEqual((collection.labels, collection.outputs), (["0", "1", "2"], ["grade"]))
        self.assertEqual(self.grades(collection), {name: grade for name, grade, _ in self.ROWS})
        self.assertEqual([case.patient for case in collection.cases], [alias(patient) for *_, patient in self.ROWS])
        self.assertFalse([finding for finding in collection.findings if finding.error])
        return collection

    @parameterized.expand([(",",), (";",), ("\t",)])
    def test_separators(self, separator):
        self.pictures(*(f"images/{name}.png" for name, *_ in self.ROWS))
        frame = pd.DataFrame(self.ROWS, columns=["image", "grade", "patient"])
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            with self.subTest(encoding):
                frame.to_csv(self.root / "labels.csv", sep=separator, index=False, encoding=encoding)
                self.check()

    @parameterized.expand(
        [("{}",), ("{}.png",), ("images/{}.png",), ("images/{}",), ("./images/{}.png",), ("images\\{}.png",)]
    )
    def test_how_images_are_called(self, call):
        self.pictures(*(f"images/{name}.png" for name, *_ in self.ROWS))
        rows = [(grade, call.format(name), patient) for name, grade, patient in self.ROWS]
        frame = pd.DataFrame(rows, columns=["grade", "what it shows", "Patient ID"])
        frame.to_csv(self.root / "any.csv", index=False)
        self.check()

    def test_absolute_paths(self):
        self.pictures(*(f"images/{name}.png" for name, *_ in self.ROWS))
        rows = [(str(self.root / "images" / f"{name}.png"), grade, patient) for name, grade, patient in self.ROWS]
        pd.DataFrame(rows, columns=["path", "grade", "patient"]).to_csv(self.root / "any.csv", index=False)
        self.check()

    def test_excel(self):
        self.pictures(*(f"images/{name}.png" for name, *_ in self.ROWS))
        rows = [(name, int(grade), patient) for name, grade, patient in self.ROWS]
        pd.DataFrame(rows, columns=["image", "grade", "patient"]).to_excel(self.root / "labels.xlsx", index=False)
        self.check()

    def test_excel_without_openpyxl(self):
        self.pictures(*(f"images/{name}.png" for name, *_ in self.ROWS))
        pd.DataFrame(self.ROWS, columns=["image", "grade", "patient"]).to_excel(self.root / "labels.xlsx", index=False)
        with mock.patch.dict(sys.modules, {"openpyxl": None}):
            finding = self.one("table cannot be read", self.collect(), error=True)
        self.assertIn("pip install 'monai_dvpt[excel]'", finding.message)

    @parameterized.expand([("list",), ("parts",), ("label",)])
    def test_json(self, kind):
        self.pictures(*(f"images/{name}.png" for name, *_ in self.ROWS))
        records = [{"image": name, "grade": int(grade), "patient": patient} for name, grade, patient in self.ROWS]
        if kind == "label":
            for record in records:
                record["label"] = {"grade": record.pop("grade")}
        content = records if kind == "list" else {"name": "a set", "training": records[:4], "validation": records[4:]}
        self.write(json.dumps(content), "list.json")
        collection = self.check()
        parts = [case.part for case in collection.cases]
        self.assertEqual(parts, [""] * 6 if kind == "list" else ["training"] * 4 + ["validation"] * 2)

    def test_latin_1(self):
        self.pictures(*(f"images/{name}.png" for name, *_ in self.ROWS))
        frame = pd.DataFrame(self.ROWS, columns=["image", "grade", "patient"])
        frame["remarks"] = "größer"
        frame.to_csv(self.root / "labels.csv", index=False, encoding="latin-1")
        self.assertIn("Latin-1", self.one("not in UTF-8", self.check()).message)

    def test_tables_for_each_part(self):
        self.pictures(*(f"images/{name}.png" for name, *_ in self.ROWS))
        frame = pd.DataFrame(self.ROWS, columns=["image", "grade", "patient"])
        frame[:4].to_csv(self.root / "train.csv", index=False)
        frame[4:].to_csv(self.root / "test.csv", index=False)
        self.assertEqual([case.part for case in self.check().cases], ["training"] * 4 + ["test"] * 2)


class TestMeaning(Tables):
    @parameterized.expand(
        [
            ("from 0", "0 1 2 0 1 2", "grading", ["0", "1", "2"]),
            ("from 1", "1 2 3 1 2 3", "grading", ["1", "2", "3"]),
            ("with fractions", "1.0 2.0 3 1 2 3.00", "grading", ["1", "2", "3"]),
            ("yes and no", "0 1 0 1 1 1", "grading", ["0", "1"]),
            ("with gaps", "0 2 5 0 2 5", "classification", ["0", "2", "5"]),
            ("from 2", "2 3 4 2 3 4", "classification", ["2", "3", "4"]),
            ("texts", "nv mel nv mel nv mel", "classification", ["mel", "nv"]),
        ]
    )
    def test_task(self, name, grades, task, labels):
        self.graded(grades.split())
        collection = self.collect()
        self.assertEqual((collection.task, collection.labels), (task, labels))
        self.assertEqual(
            list(self.grades(collection).values()),
            [f"{float(each):g}" if each[0].isdigit() else each for each in grades.split()],
        )
        if labels[0].isdigit():
            finding = self.one("taken as grades" if task == "grading" else "taken as classes", collection)
            self.assertIn("--task", finding.message)

    def test_the_user_says_the_task(self):
        self.graded("0 1 2 0 1 2".split())
        collection = self.collect(task="classification")
        self.assertEqual((collection.task, collection.labels), ("classification", ["0", "1", "2"]))
        self.assertEqual(collection.findings, [])

    def test_a_grade_between_that_no_image_has(self):
        self.graded("0 1 3 0 1 3".split())
        self.assertEqual(self.collect(task="grading").labels, ["0", "1", "2", "3"])

    def test_named_grades(self):
        self.graded("mild none severe none mild severe".split())
        collection = self.collect(task="grading", grades=["none", "mild", "severe"])
        self.assertEqual((collection.task, collection.labels), ("grading", ["none", "mild", "severe"]))
        self.one("order of grades not known", self.collect(task="grading"), error=True)

    def test_grades_by_their_index(self):
        self.graded("1 0 2 0 1 2".split())
        collection = self.collect(task="grading", grades=["none", "mild", "severe"])
        self.assertEqual(list(self.grades(collection).values()), ["mild", "none", "severe", "none", "mild", "severe"])

    def test_columns_that_are_not_graded(self):
        names = self.numbered(8)
        rows = [
            {"image": name, "Patient": f"q{at // 2}", "side": "LR"[at % 2], "age": 40 + at % 3, "Sex": "fm"[at // 4],
             "visit date": f"2020-01-0{1 + at % 2}", "volume": 0.5 * at, "note_id": f"n{at}", "kl": at % 3}
            for at, name in enumerate(names)
        ]  # fmt: skip
        pd.DataFrame(rows).to_csv(self.root / "labels.csv", index=False)
        collection = self.collect()
        self.assertEqual(collection.outputs, ["kl"])
        self.assertEqual(self.grades(collection, "kl"), {name: str(at % 3) for at, name in enumerate(names)})
        self.assertEqual([case.patient for case in collection.cases], [alias(f"q{at // 2}") for at in range(8)])

    def test_several_outputs(self):
        names = self.numbered(6)
        frame = pd.DataFrame({"image": names, "dr": [0, 1, 2, 0, 1, 2], "edema": [0, 1, 0, 1, 0, 1]})
        frame.to_csv(self.root / "labels.csv", index=False)
        collection = self.collect()
        self.assertEqual((collection.cases, collection.outputs), ([], []))
        message = self.one("outputs not clear", collection, error=True).message
        for text in ("dr", "edema", "--outputs"):
            self.assertIn(text, message)
        collection = self.collect(outputs=["dr", "edema"])
        self.assertEqual((collection.outputs, collection.labels), (["dr", "edema"], ["0", "1", "2"]))
        self.assertEqual(collection.cases[1].grades, {"dr": "1", "edema": "1"})
        self.one("outputs differ", collection)

    def test_parts(self):
        names = self.numbered(6)
        frame = pd.DataFrame(
            {"image": names, "grade": [0, 1] * 3, "split": "train valid val test calibration train".split()}
        )
        frame.to_csv(self.root / "labels.csv", index=False)
        parts = ["training", "validation", "validation", "test", "calibration", "training"]
        self.assertEqual([case.part for case in self.collect().cases], parts)

    def test_lesions_as_patients(self):
        names = self.numbered(6)
        frame = pd.DataFrame({"image": names, "lesion_id": list("aabbcc"), "dx": ["nv", "mel"] * 3})
        frame.to_csv(self.root / "labels.csv", index=False)
        collection = self.collect()
        self.assertIn("--columns patient=lesion_id", self.one("patients not known", collection).message)
        self.assertEqual({case.patient for case in collection.cases}, {""})
        collection = self.collect(columns={"patient": "lesion_id"})
        self.assertEqual([case.patient for case in collection.cases], [alias(lesion) for lesion in "aabbcc"])
        self.assertEqual(collection.findings, [])

    def test_a_column_that_seems_to_be_of_patients_is_asked_about(self):
        names = self.numbered(6)
        frame = pd.DataFrame({"Film": names, "Study subject": list("aabbcc"), "grade": [0, 1] * 3})
        frame.to_csv(self.root / "labels.csv", index=False)
        asked = self.one("patients not known", self.collect(outputs=["grade"]), error=True)
        for option in ("'patient=Study subject'", "patient=Film"):
            self.assertIn(f"--columns {option}", asked.message)
        for column, patients in (("Study subject", "aabbcc"), ("Film", names)):
            collection = self.collect(outputs=["grade"], columns={"patient": column})
            self.assertEqual([case.patient for case in collection.cases], [*map(alias, patients)])
            self.assertEqual([finding for finding in collection.findings if finding.error], [])

    def test_patients_by_a_pattern_of_the_path(self):
        self.pictures(*(f"images/q{at // 2}/{at}.png" for at in range(6)))
        rows = [f"images/q{at // 2}/{at}.png,{at % 2}" for at in range(6)]
        self.write("\n".join(["image,grade", *rows]))
        collection = self.collect(patient_pattern=r"q(\d)")
        self.assertEqual([case.patient for case in collection.cases], [alias(str(at // 2)) for at in range(6)])
        message = self.one("patient not found", self.collect(patient_pattern="nowhere")).message
        self.assertIn("6 images", message)
        with self.assertRaisesRegex(InputError, "patient_pattern must be a regular expression"):
            self.collect(patient_pattern="(")

    def test_folders_of_classes(self):
        self.pictures(
            *(f"{part}/{name}/{at}.png" for part in ("train", "val") for name in ("mel", "nv") for at in range(3))
        )
        collection = self.collect()
        self.assertEqual((collection.task, collection.labels), ("classification", ["mel", "nv"]))
        for case in collection.cases:
            part, name, _ = Path(str(case.image)).relative_to(self.root).parts
            self.assertEqual(
                (list(case.grades.values()), case.part), ([name], {"train": "training", "val": "validation"}[part])
            )
        self.assertIn("mel, nv", self.one("classes by folder", collection).message)

    @parameterized.expand(
        [
            ("of masks", ["images/a.png", "images/b.png", "masks/a.png", "masks/b.png"]),
            ("of one kind", ["images/a.png", "images/b.png"]),
            ("of patients", [f"patient{at:03}/{name}.png" for at in range(4) for name in "ab"]),
            (
                "with masks beside",
                [f"{folder}/{name}.png" for folder in "AB" for name in ("1", "1_mask", "2", "2_mask")],
            ),
        ]
    )
    def test_folders_that_are_no_classes(self, name, paths):
        self.pictures(*paths)
        self.assertIsNone(collect_table(self.root, Options()))

    def test_tables_of_something_else(self):
        self.numbered(4)
        self.write("name,version\nmonai,1\ntorch,2\n", "software.csv")
        self.write('{"a": 1}', "config.json")
        self.write("not JSON", "broken.json")
        self.assertIsNone(collect_table(self.root, Options()))

    def test_the_masks_of_a_table_are_not_graded(self):
        self.pictures(*(f"{folder}/{at}.png" for folder in ("images", "masks") for at in range(6)))
        rows = [f"images/{at}.png,masks/{at}.png,{'nv' if at % 2 else 'mel'}" for at in range(6)]
        self.write("\n".join(["image,mask,dx", *rows]))
        collection = self.collect()
        self.assertEqual(self.grades(collection, "dx"), {str(at): "nv" if at % 2 else "mel" for at in range(6)})
        self.assertEqual({Path(str(case.image)).parent.name for case in collection.cases}, {"images"})
        self.write("\n".join(["image,mask", *(row.rpartition(",")[0] for row in rows)]))
        self.assertIsNone(collect_table(self.root, Options()))


class TestVolumes(Tables):
    def test_nifti(self):
        for at in range(4):
            volume = np.random.default_rng(at).normal(size=(4, 5, 6)).astype(np.float32)
            save_nifti(self.root / "scans" / f"s{at}.nii.gz", volume)
        self.write("scan,grade\n" + "\n".join(f"s{at},{at % 2}" for at in range(4)))
        collection = self.collect()
        self.assertEqual(
            (collection.spatial_dims, self.grades(collection)), (3, {f"s{at}.nii": str(at % 2) for at in range(4)})
        )

    def dicom(self) -> None:
        for at in range(4):
            volume = np.random.default_rng(at).integers(0, 100, (4, 5, 3)).astype(np.uint16)
            folder = save_dicom(self.root / f"study{at}", volume, np.eye(3), np.zeros(3), (2, 3, 4))
            for path in folder.iterdir():
                dataset = pydicom.dcmread(path)
                dataset.PatientID, dataset.StudyInstanceUID = f"SECRET{at // 2}", f"1.2.{at + 1}"
                dataset.save_as(path)

    def test_dicom(self):
        self.dicom()
        self.write("image,grade\n" + "\n".join(f"study{at},{at % 2}" for at in range(4)))
        collection = self.collect()
        self.assertEqual([case.grades["grade"] for case in collection.cases], ["0", "1", "0", "1"])
        self.assertEqual([case.patient for case in collection.cases], [alias(f"SECRET{at // 2}") for at in range(4)])
        self.assertTrue(all(len(case.image) == 3 for case in collection.cases))
        self.assertNotIn("SECRET", repr([collection.findings, [case.name for case in collection.cases]]))

    def test_dicom_by_its_identifiers(self):
        self.dicom()
        self.write("study,grade\n" + "\n".join(f"1.2.{at + 1},{at % 2}" for at in range(4)))
        self.assertEqual([case.grades["grade"] for case in self.collect().cases], ["0", "1", "0", "1"])
        self.write("PatientID,grade\n" + "\n".join(f"SECRET{at},{at}" for at in range(3)))
        collection = self.collect(columns={"image": "PatientID"}, outputs=["grade"])
        self.assertNotIn("SECRET", repr(collection.findings))
        self.one("several images", collection, error=True)

    @parameterized.expand(["SOPInstanceUID", "AccessionNumber", "PatientID", "path"])
    def test_radiographs(self, key):
        headers = [save_radiograph(self.root / "dx" / f"{at}.dcm", f"SECRET{at}") for at in range(8)]
        cells = [f"dx/{at}" if key == "path" else header.get(key) for at, header in enumerate(headers)]
        pd.DataFrame({"study": cells, "grade": [0, 1] * 4}).to_csv(self.root / "labels.csv", index=False)
        collection = self.collect()
        self.assertEqual((collection.spatial_dims, list(self.grades(collection).values())), (2, ["0", "1"] * 4))
        self.assertEqual([case.patient for case in collection.cases], [alias(f"SECRET{at}") for at in range(8)])
        self.assertEqual({case.modality for case in collection.cases}, {"DX"})
        self.assertNotIn("SECRET", repr(collection))

    def test_nifti_of_one_slice_is_a_picture(self):
        for at in range(4):
            volume = np.random.default_rng(at).normal(size=(5, 6, 1)).astype(np.float32)
            save_nifti(self.root / f"n{at}.nii", volume, np.diag([-2.0, -2, 2, 1]))
        self.write("image,grade\n" + "\n".join(f"n{at},{at % 2}" for at in range(4)))
        collection = self.collect()
        self.assertEqual((collection.spatial_dims, len(collection.cases)), (2, 4))

    def test_folders_of_classes(self):
        for at in range(6):
            volume = np.random.default_rng(at).normal(size=(4, 5, 6)).astype(np.float32)
            save_nifti(self.root / ("AD" if at % 2 else "CN") / f"v{at}.nii.gz", volume)
        collection = self.collect()
        self.assertEqual((collection.spatial_dims, collection.labels, len(collection.cases)), (3, ["AD", "CN"], 6))

    def test_pictures_and_volumes(self):
        self.numbered(3)
        for at in range(3):
            save_nifti(self.root / f"v{at}.nii.gz", np.random.default_rng(at).normal(size=(4, 5, 6)).astype(np.float32))
        self.write(
            "image,grade\n"
            + "\n".join([*(f"p0{at},{at % 2}" for at in range(3)), *(f"v{at},{at % 2}" for at in range(3))])
        )
        self.assertIn("3 pictures and 3 volumes", self.one("pictures and volumes", self.collect(), error=True).message)


class TestOdd(Tables):
    """Each kind of bad data has one clear finding."""

    def test_rows_without_their_image(self):
        self.graded("0 1 0 1 0 1".split())
        (self.root / "images" / "p02.png").unlink()
        collection = self.collect()
        self.assertEqual(len(collection.cases), 5)
        self.assertIn(
            "1 rows name no image below the folder, and are left out: line 4",
            self.one("image missing", collection).message,
        )

    def test_images_without_a_row(self):
        self.graded("0 1 0 1 0 1".split())
        self.pictures("images/alone.png")
        collection = self.collect()
        self.assertEqual([Path(str(case.image)).stem for case in collection.cases if not case.grades], ["alone"])

    def test_listed_twice(self):
        self.graded("0 1 0 1 0 1".split())
        with open(self.root / "labels.csv", "a") as file:
            file.write("\np01,1")
        finding = self.one("listed twice", self.collect())
        self.assertEqual((finding.where, len(self.collect().cases)), ("images_p01", 6))
        self.assertIn("line 3, line 8", finding.message)

    def test_listed_with_different_grades(self):
        self.graded("0 1 0 1 0 1".split())
        with open(self.root / "labels.csv", "a") as file:
            file.write("\np01.png,0")
        finding = self.one("listed with different grades", self.collect(), error=True)
        self.assertEqual(finding.where, "images_p01")

    def test_spellings_of_a_class(self):
        self.graded(["mel", " mel ", "Mel", "nv", "nv", "nv", "mel"])
        collection = self.collect()
        self.assertEqual(collection.labels, ["mel", "nv"])
        self.assertEqual(Counter(self.grades(collection).values()), {"mel": 4, "nv": 3})
        self.assertIn("Mel in 1 cells is taken as mel", self.one("spelled differently", collection).message)

    def test_a_slip_of_the_pen(self):
        self.graded(["melanoma"] * 6 + ["nevus"] * 6 + ["melanom"])
        finding = self.one("unknown grade", self.collect(), error=True)
        self.assertEqual(finding.where, "images_p12")
        self.assertIn("is almost melanoma", finding.message)
        self.assertIn("'melanom'", finding.message)
        names = ["melanom", "melanoma", "nevus"]
        self.assertEqual([each for each in self.collect(grades=names).findings if each.error], [])

    def test_a_text_among_numbers(self):
        self.graded("0 1 2 0 1 2 0 1 2?".split())
        finding = self.one("unknown grade", self.collect(), error=True)
        self.assertIn("must be a whole number like the others, 0 to 2, got '2?'", finding.message)

    def test_a_grade_that_the_user_does_not_name(self):
        self.graded("nv mel nv mel df mel".split())
        finding = self.one("unknown grade", self.collect(grades=["nv", "mel"]), error=True)
        self.assertIn("must be one of nv, mel, got 'df'", finding.message)

    def test_empty_cells(self):
        self.graded(["0", "1", "", "1", "n/a", "-1", "0"])
        collection = self.collect()
        self.assertEqual([name for name, grade in self.grades(collection).items() if not grade], ["p02", "p04", "p05"])
        self.assertIn("3 rows have no grade", self.one("not graded", collection).message)

    def test_a_row_without_an_image(self):
        self.graded("0 1 0 1 0 1".split())
        with open(self.root / "labels.csv", "a") as file:
            file.write("\n,1")
        self.assertIn("line 8", self.one("no image named", self.collect()).message)

    def test_a_whole_path_comes_before_an_end(self):
        self.pictures(*(f"{folder}{at}.png" for folder in ("", "other/") for at in range(6)))
        self.write("image,grade\n" + "\n".join(f"{at}.png,{at % 2}" for at in range(6)))
        graded = {Path(str(case.image)).parent for case in self.collect().cases if case.grades}
        self.assertEqual(graded, {self.root})

    def test_an_image_of_another_folder_is_not_taken(self):
        """train/0.png is not there; test/0.png is another image."""
        self.pictures(*(f"{folder}/{at}.png" for folder in ("train", "test") for at in range(6)))
        (self.root / "train" / "0.png").unlink()
        self.write("image,grade\n" + "\n".join(f"train/{at}.png,{at % 2}" for at in range(6)))
        collection = self.collect()
        graded = [Path(str(case.image)).relative_to(self.root).as_posix() for case in collection.cases if case.grades]
        self.assertEqual(graded, [f"train/{at}.png" for at in range(1, 6)])
        self.assertIn("line 2", self.one("image missing", collection).message)

    def test_patients_beside_masks_are_no_grades(self):
        self.pictures(*(f"{folder}/{at}.png" for folder in ("images", "masks") for at in range(6)))
        self.write("image,age\n" + "\n".join(f"images/{at}.png,{at % 2 + 50}" for at in range(6)))
        self.assertIsNone(collect_table(self.root, Options()))
        self.one("nothing is graded", self.collect(task="grading"), error=True)

    def test_excel_that_inflates_to_too_much(self):
        self.numbered(4)
        with zipfile.ZipFile(self.root / "labels.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("xl/workbook.xml", bytes(3 << 20))
        with mock.patch("monai_dvpt.utils.limits.max_bytes", lambda: 1 << 20):
            finding = self.one("table cannot be read", self.collect(), error=True)
        self.assertIn("the table must take at most 1,048,576 bytes", finding.message)

    def test_many_unknown_parts_are_not_shown(self):
        """They may be patients."""
        names = self.numbered(6)
        frame = pd.DataFrame({"image": names, "grade": [0, 1] * 3, "split": [f"HIDDEN{at}" for at in range(6)]})
        frame.to_csv(self.root / "labels.csv", index=False)
        collection = self.collect(columns={"split": "split"})
        self.assertIn("got 6 other values in 6 rows", self.one("unknown part", collection, error=True).message)
        self.assertNotIn("HIDDEN", repr(collection.findings))

    def test_a_name_of_several_images(self):
        self.pictures(*(f"{folder}/{at}.png" for folder in "AB" for at in range(3)))
        self.write("image,grade\n" + "\n".join(f"{at},{at % 2}" for at in range(3)))
        message = self.one("several images", self.collect(), error=True).message
        self.assertIn("line 2, line 3, line 4", message)

    def test_two_tables(self):
        self.graded("0 1 0 1 0 1".split())
        self.graded("1 1 0 0 0 1".split(), name="second.csv")
        message = self.one("several tables", self.collect(), error=True).message
        self.assertIn("labels.csv, second.csv; pass --table", message)
        self.assertEqual(self.grades(self.collect(table="second.csv"))["p00"], "1")

    def test_an_unknown_part(self):
        names = self.numbered(6)
        frame = pd.DataFrame({"image": names, "grade": [0, 1] * 3, "split": "train train train trian val val".split()})
        frame.to_csv(self.root / "labels.csv", index=False)
        self.assertIn("'trian' in 1 rows", self.one("unknown part", self.collect(), error=True).message)

    def test_folds_are_no_parts(self):
        names = self.numbered(6)
        pd.DataFrame({"image": names, "grade": [0, 1] * 3, "fold": [0, 1, 2] * 2}).to_csv(
            self.root / "labels.csv", index=False
        )
        collection = self.collect()
        self.assertIn("fold", self.one("column not used", collection).message)
        self.assertEqual((collection.outputs, {case.part for case in collection.cases}), (["grade"], {""}))

    def test_a_missing_patient(self):
        names = self.numbered(6)
        frame = pd.DataFrame(
            {
                "image": names,
                "grade": [0, 1] * 3,
                "patient": ["HIDDEN1", "HIDDEN1", "", "HIDDEN2", "HIDDEN2", "HIDDEN3"],
            }
        )
        frame.to_csv(self.root / "labels.csv", index=False)
        collection = self.collect()
        self.assertIn("1 rows have no patient", self.one("patient missing", collection).message)
        self.assertNotIn("HIDDEN", repr(collection))

    def test_two_patients_of_an_image(self):
        names = self.numbered(4)
        frame = pd.DataFrame({"image": [*names, names[0]], "grade": [0, 1, 0, 1, 0], "patient": [*"abcd", "HIDDEN"]})
        frame.to_csv(self.root / "labels.csv", index=False)
        collection = self.collect()
        self.assertIn("one patient", self.one("listed twice", collection, error=True).message)
        self.assertNotIn("HIDDEN", repr(collection.findings))

    @parameterized.expand(
        [
            ("an empty file", b"", "is empty"),
            ("zeros", bytes(100), "is no text"),
            ("a cell too many", b"image,grade\np00,0,1\np01,1\n", "line 2 must have 2 cells"),
            ("a cell too few", b"image,grade\np00,0\np01\n", "line 3 must have 2 cells"),
            ("a column twice", b"image,grade,grade\np00,0,1\n", "must name every column once, the columns 2, 3 share"),
            ("a column without a name", b"image,,grade\np00,a,1\n", "must name every column"),
            ("no header", b"p00,0\np01,1\np02,0\np03,1\n", "looks like data: column 1 is named by an image"),
            ("no header, a file", b"x.png,b,Meier\np00,a,Schulz\np01,b,Lang\n", "column 1 is named by the file of an"),
            ("no header, a number", b"x,b,90807\np00,a,90808\np01,c,90809\n", "column 3 is named by a number"),
            ("no header, a value", b"x,b,Meier\np00,a,Schulz\np01,b,Lang\n", "column 2 has its name as a value below"),
        ]
    )
    def test_tables_that_cannot_be_read(self, name, content, message):
        self.numbered(4)
        (self.root / "labels.csv").write_bytes(content)
        finding = self.one("table cannot be read", self.collect(), error=True)
        self.assertEqual(finding.where, "labels.csv")
        self.assertIn(message, finding.message)
        for word in ("Meier", "Schulz", "90807"):
            self.assertNotIn(word, repr(finding))

    @parameterized.expand([("one-hot classes", "image,0,1"), ("a name that the user gives", "photo,0,1")])
    def test_numbers_may_name_columns_beside_images(self, _, header):
        self.numbered(4)
        (self.root / "labels.csv").write_text(f"{header}\np00,0,1\np01,1,0\np02,0,1\np03,1,0\n")
        collection = self.collect(outputs=["1"], columns={"image": header.split(",")[0]})
        self.assertEqual([case.grades for case in collection.cases], [{"1": each} for each in "1010"])

    def test_a_table_of_something_else_needs_no_header(self):
        self.graded("0 1 0 1 0 1".split())
        (self.root / "boxes.csv").write_text("3,4,5\n3,7,8\n")
        self.assertEqual([each for each in self.collect().findings if each.where == "boxes.csv"], [])

    def test_a_damaged_excel_file(self):
        self.numbered(4)
        (self.root / "labels.xlsx").write_bytes(b"PK\3\4 damaged")
        self.one("table cannot be read", self.collect(), error=True)

    def test_two_sheets(self):
        names = self.numbered(4)
        frame = pd.DataFrame({"image": names, "grade": [0, 1] * 2})
        with pd.ExcelWriter(self.root / "labels.xlsx") as writer:
            frame.to_excel(writer, sheet_name="first", index=False)
            frame.to_excel(writer, sheet_name="second", index=False)
        self.assertIn(
            "one sheet with data, got first, second",
            self.one("table cannot be read", self.collect(), error=True).message,
        )

    def test_merged_cells(self):
        names = self.numbered(4)
        book = openpyxl.Workbook()
        for row in [["image", "grade", "note"], *([name, at % 2, at] for at, name in enumerate(names))]:
            book.active.append(row)
        book.active.merge_cells("B2:C2")
        book.save(self.root / "labels.xlsx")
        self.assertIn(
            "no merged cells, got B2:C2", self.one("table cannot be read", self.collect(), error=True).message
        )

    def test_broken_json_that_the_user_names(self):
        self.numbered(4)
        self.write("[{", "list.json")
        self.assertIn("JSON", self.one("table cannot be read", self.collect(table="list.json"), error=True).message)

    def test_what_the_user_names_is_not_there(self):
        self.graded("0 1 0 1 0 1".split())
        self.assertIn(
            "got severity", self.one("no such output", self.collect(outputs=["severity"]), error=True).message
        )
        for options, message in (
            ({"table": "none.csv"}, "table must be an existing file"),
            ({"columns": {"patient": "pid"}}, "column patient must be one of"),
        ):
            with self.subTest(message), self.assertRaisesRegex(InputError, message):
                self.collect(**options)

    def test_nothing_is_graded(self):
        names = self.numbered(4)
        pd.DataFrame({"image": names, "age": [50, 60, 50, 60]}).to_csv(self.root / "labels.csv", index=False)
        self.assertIn("--outputs", self.one("nothing is graded", self.collect(), error=True).message)

    def test_a_table_that_names_no_image(self):
        self.numbered(4)
        pd.DataFrame({"image": list("abcd"), "grade": [0, 1] * 2}).to_csv(self.root / "labels.csv", index=False)
        self.one("no image column", self.collect(table="labels.csv"), error=True)
        self.one("no image column", self.collect(), error=True)


class TestShared(unittest.TestCase):
    """Whole folders of real data, counted by pandas."""

    def collect(self, name: str, **options) -> Collection:
        collection = collect_table(shared_data(name), Options(secret=SECRET, **options))
        assert collection is not None
        return collection

    @parameterized.expand(
        [
            ("skin_lesions", "dx", "classification"),
            ("knee_kl", "kl_grade", "grading"),
            ("dr_fundus", "dr_grade", "grading"),
            ("brixia_cxr", "S-A", "grading"),
        ]
    )
    def test_counts(self, name, output, task):
        table = next(shared_data(name).glob("*.csv"))
        frame = pd.read_csv(table, sep=None, engine="python", dtype=str)
        collection = self.collect(name, outputs=ZONES if name == "brixia_cxr" else [output])
        self.assertEqual((collection.task, collection.spatial_dims, len(collection.cases)), (task, 2, len(frame)))
        self.assertEqual(Counter(case.grades[output] for case in collection.cases), Counter(frame[output]))
        column = "filename" if "filename" in frame else "image"
        truth = {Path(image).name: grade for image, grade in zip(frame[column], frame[output], strict=True)}
        self.assertEqual({Path(str(case.image)).name: case.grades[output] for case in collection.cases}, truth)
        if "patient" in frame:
            groups = {
                frozenset(group)
                for group in frame.groupby("patient")[column].agg(
                    lambda each: list(map(lambda path: Path(path).name, each))
                )
            }
            found: dict[str, set[str]] = {}
            for case in collection.cases:
                found.setdefault(case.patient, set()).add(Path(str(case.image)).name)
            self.assertEqual({frozenset(each) for each in found.values()}, groups)
        self.assertFalse([finding for finding in collection.findings if finding.error])

    def test_what_is_graded_is_found_or_offered(self):
        self.assertEqual(self.collect("skin_lesions").outputs, ["dx"])
        self.assertEqual(self.collect("knee_kl").outputs, ["kl_grade"])
        errors = [each for each in self.collect("brixia_cxr").findings if each.error]
        self.assertEqual(len(errors), 1)
        self.assertIn(f"--outputs {','.join(ZONES)}", errors[0].message)
        self.assertIsNone(collect_table(shared_data("chasedb1"), Options()))
