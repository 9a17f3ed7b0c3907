# SPDX-License-Identifier: Apache-2.0
"""Grades and classes from tables and folders; what is true is read by pandas, or written here."""

from __future__ import annotations

import json
import shutil
import unittest
import unittest.mock
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import openpyxl
import pandas
import pydicom
from parameterized import parameterized
from PIL import Image
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
from utils_data import AFFINE_RAS, PATIENT, save_dicom, save_nifti, shared_data, temporary_folder

from monai_dvpt.apps.new_bundle.model import Collection, Options
from monai_dvpt.apps.new_bundle.tables import collect_table
from monai_dvpt.transforms import LoadImage2D, LoadVolume
from monai_dvpt.utils import InputError

SECRET = b"of this test"
GRADES = ["0", "1", "2"] * 6
CLASSES = ["mel", "nv", "bkl"] * 6


def save_picture(path: Path, seed: int = 0, size: tuple[int, int] = (5, 7)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, np.uint8)).save(path)
    return path


def save_radiograph(path: Path, patient: str) -> pydicom.Dataset:
    """A radiograph; returns its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = DigitalXRayImageStorageForPresentation
    header.SOPInstanceUID, header.SeriesInstanceUID, header.StudyInstanceUID = (generate_uid() for _ in range(3))
    header.PatientName, header.PatientID, header.Modality = PATIENT, patient, "DX"
    header.AccessionNumber = f"A{patient}"
    header.Rows, header.Columns, header.SamplesPerPixel = 4, 6, 1
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
    header.PhotometricInterpretation = "MONOCHROME2"
    header.PixelData = np.arange(24, dtype=np.uint16).tobytes()
    header.save_as(path, enforce_file_format=True)
    return header


class Tables(unittest.TestCase):
    def setUp(self) -> None:
        self.root = temporary_folder(self)

    def pictures(self, count: int = 18, folder: str = "images") -> list[str]:
        names = [f"{folder}/p{index:02}.png" for index in range(count)]
        for index, name in enumerate(names):
            save_picture(self.root / name, index)
        return names

    def table(self, rows: dict[str, list], name: str = "labels.csv", **how) -> pandas.DataFrame:
        frame = pandas.DataFrame(rows)
        frame.to_csv(self.root / name, index=False, **how)
        return frame

    def collect(self, **options) -> Collection:
        collection = collect_table(self.root, Options(secret=SECRET, **options))
        self.assertIsNotNone(collection)
        return collection

    def grades(self, collection: Collection, output: str = "grade") -> dict[str, str]:
        return {Path(str(case.image)).name: case.grades[output] for case in collection.cases}


def rules(collection: Collection, errors: bool | None = None) -> list[str]:
    return [each.rule for each in collection.findings if errors is None or each.error == errors]


class TestFormats(Tables):
    def expect(self, collection: Collection, cells: list[str] = GRADES) -> None:
        wanted = {f"p{index:02}.png": cell for index, cell in enumerate(cells)}
        self.assertEqual(self.grades(collection), wanted)
        self.assertEqual(rules(collection, errors=True), [])
        self.assertEqual((collection.task, collection.spatial_dims), ("grading", 2))
        self.assertEqual((collection.labels, collection.outputs), (["0", "1", "2"], ["grade"]))
        for case in collection.cases:
            LoadImage2D()(case.image)

    @parameterized.expand([(",", "utf-8"), (";", "utf-8"), ("\t", "utf-8"), (",", "utf-8-sig"), (";", "utf-16")])
    def test_csv(self, separator, encoding):
        names = self.pictures()
        self.table({"image": names, "grade": GRADES, "remarks": ["é, ü"] * 18}, sep=separator, encoding=encoding)
        self.expect(self.collect())

    def test_latin_1_is_read_and_told(self):
        names = self.pictures()
        self.table({"image": names, "diagnosis": ["Fraktur", "früh"] * 9}, encoding="latin-1")
        collection = self.collect()
        self.assertEqual(collection.labels, ["Fraktur", "früh"])
        self.assertEqual(rules(collection), ["not in UTF-8"])

    def test_excel(self):
        names = self.pictures()
        frame = pandas.DataFrame({"image": names, "grade": list(map(float, GRADES))})
        frame.to_excel(self.root / "labels.xlsx", index=False)
        self.expect(self.collect())

    def test_excel_without_openpyxl(self):
        names = self.pictures()
        pandas.DataFrame({"image": names, "grade": GRADES}).to_excel(self.root / "labels.xlsx", index=False)
        with unittest.mock.patch("monai_dvpt.apps.new_bundle.table_files.optional_import", lambda name: (None, False)):
            collection = self.collect()
        self.assertEqual(collection.cases, [])
        (finding,) = collection.findings
        self.assertEqual((finding.rule, finding.where, finding.error), ("table cannot be read", "labels.xlsx", True))
        self.assertIn("pip install 'monai_dvpt[excel]'", finding.message)

    @parameterized.expand(
        [
            ("records", lambda rows: rows),
            ("parts", lambda rows: {"name": "x", "training": rows[:12], "test": rows[12:]}),
            ("outputs", lambda rows: [{"image": row["image"], "label": {"grade": row["grade"]}} for row in rows]),
        ]
    )
    def test_json(self, kind, shape):
        names = self.pictures()
        rows = [{"image": name, "grade": int(grade)} for name, grade in zip(names, GRADES, strict=True)]
        (self.root / "labels.json").write_text(json.dumps(shape(rows)))
        collection = self.collect()
        self.expect(collection)
        wanted = ["training"] * 12 + ["test"] * 6 if kind == "parts" else [""] * 18
        self.assertEqual([case.part for case in collection.cases], wanted)

    def test_a_table_for_each_part(self):
        names = self.pictures()
        self.table({"image": names[:12], "grade": GRADES[:12]}, "train.csv")
        self.table({"image": names[12:], "grade": GRADES[12:]}, "valid.csv")
        collection = self.collect()
        self.expect(collection)
        self.assertEqual([case.part for case in collection.cases], ["training"] * 12 + ["validation"] * 6)

    @parameterized.expand(
        [
            ("path", lambda name: name),
            ("other machine", lambda name: f"/home/someone/data/{name}"),
            ("windows", lambda name: "D:\\data\\" + name.replace("/", "\\")),
            ("name", lambda name: name.split("/")[1]),
            ("stem", lambda name: name.split("/")[1][:-4]),
            ("upper case", lambda name: name.split("/")[1].upper()),
            ("another suffix", lambda name: name.replace(".png", ".jpg")),
        ]
    )
    def test_names_of_images(self, _, spell):
        """The image column is found by what it holds, whatever its name."""
        names = self.pictures()
        self.table({"row": range(18), "study": [spell(name) for name in names], "grade": GRADES})
        self.expect(self.collect())

    def test_a_whole_path_comes_before_an_end(self):
        self.pictures(folder=".")
        self.pictures(folder="other")
        self.table({"image": [f"p{index:02}.png" for index in range(18)], "grade": GRADES})
        collection = self.collect()
        self.assertEqual(rules(collection, errors=True), [])
        self.assertEqual({Path(case.image).parent for case in collection.cases}, {self.root})

    def test_an_image_of_another_folder_is_not_taken(self):
        """train/p00.png is not there; test/p00.png is another image."""
        names = self.pictures(9, "train")
        self.pictures(9, "test")
        (self.root / names[0]).unlink()
        self.table({"image": names, "grade": GRADES[:9]})
        collection = self.collect()
        self.assertEqual({Path(case.image).parent.name for case in collection.cases}, {"train"})
        self.assertEqual(len(collection.cases), 8)
        self.assertIn("1 rows name no image below the folder, and are left out: line 2.", str(collection.findings))

    def test_a_masks_folder_does_not_disturb(self):
        names = self.pictures()
        self.pictures(folder="masks")
        self.table({"image": [Path(name).stem for name in names], "grade": GRADES})
        self.expect(self.collect())


class TestColumns(Tables):
    def test_patients_and_parts(self):
        names = self.pictures()
        patients = [f"MRN{index // 2}" for index in range(18)]
        parts = ["train"] * 10 + ["Validation"] * 4 + ["test"] * 4
        self.table({"image": names, "Patient_ID": patients, "side": ["L", "R"] * 9, "split": parts, "grade": GRADES})
        collection = self.collect()
        self.assertEqual(collection.outputs, ["grade"])
        self.assertEqual(Counter(case.part for case in collection.cases), {"training": 10, "validation": 4, "test": 4})
        aliases = [case.patient for case in collection.cases]
        self.assertEqual([aliases.index(alias) for alias in aliases], [index // 2 * 2 for index in range(18)])
        self.assertNotIn("MRN", f"{aliases} {collection.findings}")
        other = collect_table(self.root, Options(secret=b"another"))
        self.assertNotIn(aliases[0], [case.patient for case in other.cases])

    def test_another_key_of_patients_is_proposed_and_taken(self):
        names = self.pictures()
        self.table({"image": names, "lesion_id": [f"L{index // 3}" for index in range(18)], "dx": CLASSES})
        collection = self.collect()
        self.assertEqual(rules(collection), ["patients not known"])
        self.assertIn("6 different values in 18 rows", collection.findings[0].message)
        self.assertIn("--columns patient=lesion_id", collection.findings[0].message)
        self.assertEqual({case.patient for case in collection.cases}, {""})
        collection = self.collect(columns={"patient": "lesion_id"})
        self.assertEqual(len({case.patient for case in collection.cases}), 6)
        self.assertEqual(collection.findings, [])

    def test_patient_pattern(self):
        names = self.pictures()
        self.table({"image": names, "grade": GRADES})
        collection = self.collect(patient_pattern=r"p(\d)")
        self.assertEqual(Counter(Counter(case.patient for case in collection.cases).values()), {10: 1, 8: 1})
        self.assertEqual(rules(self.collect(patient_pattern=r"q(\d)"))[-1], "patient not found")
        with self.assertRaisesRegex(InputError, "patient_pattern must be a regular expression"):
            self.collect(patient_pattern="(")

    def test_what_is_graded_must_be_clear(self):
        names = self.pictures()
        rows = {"image": names, "L-A": GRADES, "L-B": GRADES[::-1], "quality": ["good", "bad"] * 9, "age": GRADES}
        self.table(rows)
        collection = self.collect()
        (finding,) = collection.findings
        self.assertEqual((finding.rule, finding.error, collection.cases), ("outputs not clear", True, []))
        self.assertIn("L-A, L-B (0 to 2); quality (2 texts)", finding.message)
        self.assertIn("--outputs L-A,L-B", finding.message)
        collection = self.collect(outputs=["L-A", "L-B"])
        self.assertEqual(collection.outputs, ["L-A", "L-B"])
        self.assertEqual(
            self.grades(collection, "L-B"), dict(zip([Path(n).name for n in names], GRADES[::-1], strict=True))
        )

    @parameterized.expand(
        [
            ("consecutive", ["1", "2", "3"] * 6, {}, "grading", ["1", "2", "3"], ["taken as grades"]),
            ("not consecutive", ["0", "2", "5"] * 6, {}, "classification", ["0", "2", "5"], ["taken as classes"]),
            ("gap", ["0", "1", "3"] * 6, {"task": "grading"}, "grading", ["0", "1", "2", "3"], []),
            ("said", GRADES, {"task": "classification"}, "classification", ["0", "1", "2"], []),
            ("texts", CLASSES, {}, "classification", ["bkl", "mel", "nv"], []),
            (
                "order",
                CLASSES,
                {"task": "grading", "grades": ["nv", "bkl", "mel"]},
                "grading",
                ["nv", "bkl", "mel"],
                [],
            ),
            ("named by index", GRADES, {"task": "grading", "grades": ["no", "low", "high"]}, "grading", None, []),
            ("fractions", ["0", "0.5", "1"] * 6, {"task": "grading"}, "grading", ["0", "0.5", "1"], []),
            ("floats", ["0.0", "1.0", "2"] * 6, {}, "grading", ["0", "1", "2"], ["taken as grades"]),
        ]
    )
    def test_task(self, _, cells, options, task, labels, found):
        self.table({"image": self.pictures(), "grade": cells})
        collection = self.collect(**options)
        self.assertEqual((collection.task, rules(collection)), (task, found))
        self.assertEqual(collection.labels, labels or ["no", "low", "high"])
        self.assertEqual(set(Counter(self.grades(collection).values()).values()), {6})


class TestBadData(Tables):
    """Each has one clear finding, besides what is said of every table of numbers."""

    def found(self, rule: str, pattern: str, error: bool, cases: int, where: str = "labels.csv", **options) -> None:
        collection = self.collect(**options)
        told = [each for each in collection.findings if each.rule != "taken as grades"]
        self.assertEqual([(each.rule, each.error, each.where) for each in told], [(rule, error, where)])
        self.assertRegex(told[0].message, pattern)
        self.assertTrue(told[0].message.endswith("."))
        self.assertEqual(len(collection.cases), cases)

    def test_image_missing(self):
        names = self.pictures()
        self.table({"image": [*names, "images/gone.png"], "grade": [*GRADES, "1"]})
        self.found("image missing", "^1 rows name no image.*left out: line 20", False, 18)

    def test_no_image_named(self):
        names = self.pictures()
        self.table({"image": [*names, None], "grade": [*GRADES, "1"]})
        self.found("no image named", "line 20", False, 18)

    def test_image_without_row(self):
        names = self.pictures()
        save_picture(self.root / "images" / "extra.png", 99)
        self.table({"image": names, "grade": GRADES})
        self.found("no row", "^1 images have no row, and are left out: images_extra", False, 18)

    def test_listed_twice(self):
        names = self.pictures()
        self.table({"image": [*names, names[3]], "grade": [*GRADES, GRADES[3]]})
        self.found("listed twice", "line 5, line 20 alike; counts once", False, 18, "images_p03")

    def test_listed_with_different_grades(self):
        names = self.pictures()
        self.table({"image": [*names, names[3]], "grade": [*GRADES, "2"]})
        self.found(
            "listed with different grades", "one grade, got different ones in line 5, line 20", True, 18, "images_p03"
        )

    def test_listed_for_two_patients(self):
        names = self.pictures()
        self.table(
            {"image": [*names, names[3]], "patient": [*"abcdefghijklmnopqr", "z"], "grade": [*GRADES, GRADES[3]]}
        )
        self.found("listed twice", "of one patient.*line 5, line 20 differ", True, 18, "images_p03")

    def test_text_among_grades(self):
        names = self.pictures()
        self.table({"image": names, "grade": ["2a", *GRADES[1:]]})
        self.found("unknown grade", r"line 2: grade must be a whole number.*0 to 2, got '2a'", True, 17, "images_p00")

    def test_number_out_of_range(self):
        names = self.pictures()
        self.table({"image": names, "grade": ["22", *GRADES[1:]]})
        self.found("unknown grade", "line 2: grade must be a whole number.*, 0 to 2, got '22'", True, 17, "images_p00")

    def test_slip_of_the_pen(self):
        names = self.pictures()
        self.table({"image": names, "dx": ["melanma", *(["melanoma", "naevus"] * 9)[1:]]})
        self.found(
            "unknown grade", "line 2: dx is almost melanoma, which 8 cells have, got 'melanma'", True, 17, "images_p00"
        )

    def test_not_among_the_given(self):
        names = self.pictures()
        self.table({"image": names, "dx": ["df", *CLASSES[1:]]})
        options = {"grades": ["mel", "nv", "bkl"], "task": "classification"}
        self.found(
            "unknown grade", "line 2: dx must be one of mel, nv, bkl, got 'df'", True, 17, "images_p00", **options
        )

    def test_spelled_differently(self):
        names = self.pictures()
        self.table({"image": names, "dx": ["Mel ", *CLASSES[1:]]})
        self.found("spelled differently", "^Mel in 1 cells is taken as mel", False, 18)
        self.assertEqual(self.collect().cases[0].grades, {"dx": "mel"})

    def test_not_graded(self):
        names = self.pictures()
        self.table({"image": names, "grade": ["", "-1", "n/a", *GRADES[3:]]})
        self.found("not graded", r"3 rows have no grade \(-1, n/a read as empty\): line 2, line 3, line 4", False, 15)

    def test_few_cases(self):
        names = self.pictures()
        self.table({"image": names, "dx": ["df", "df", *(["mel", "naevus"] * 8)]})
        self.found("grade in few cases", "^2 cases of dx df: too few", False, 18)

    def test_no_such_output(self):
        self.table({"image": self.pictures(), "grade": GRADES})
        self.found("no such output", "must be columns of the table, image, grade, got grad", True, 0, outputs=["grad"])

    def test_nothing_graded(self):
        names = self.pictures()
        self.table({"image": names, "age": range(18), "sex": ["f", "m"] * 9})
        self.found("nothing is graded", "a column must hold grades or classes; none of image, age, sex", True, 0)

    def test_patients_beside_masks_are_no_grades(self):
        names = self.pictures()
        self.pictures(folder="masks")
        self.table({"image": names, "age": range(18)})
        self.assertIsNone(collect_table(self.root, Options()))
        self.found("nothing is graded", "a column must hold grades", True, 0, task="grading")

    def test_excel_that_inflates_to_too_much(self):
        self.pictures()
        with zipfile.ZipFile(self.root / "labels.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("xl/workbook.xml", bytes(3 << 20))
        with unittest.mock.patch("monai_dvpt.utils.limits.max_bytes", lambda: 1 << 20):
            self.found("table cannot be read", "the table must take at most 1,048,576 bytes", True, 0, "labels.xlsx")

    def test_order_not_known(self):
        self.table({"image": self.pictures(), "dx": CLASSES})
        self.found("order of grades not known", "with --grades; got bkl, mel, nv", True, 18, task="grading")

    def test_outputs_differ(self):
        self.table({"image": self.pictures(), "a": GRADES, "b": ["0", "1"] * 9})
        self.found(
            "outputs differ", "share their grades, 0 to 2; got a 0 to 2, b 0 to 1", False, 18, outputs=["a", "b"]
        )

    def test_unknown_part(self):
        names = self.pictures()
        self.table({"image": names, "split": ["training"] * 17 + ["holdout"], "grade": GRADES})
        self.found("unknown part", "column split must hold some of .*, got 'holdout' in 1 rows", True, 18)

    def test_many_unknown_parts_are_not_shown(self):
        """They may be patients."""
        self.table({"image": self.pictures(), "split": [f"MRN{index}" for index in range(18)], "grade": GRADES})
        self.found("unknown part", "got 18 other values in 18 rows", True, 18, columns={"split": "split"})

    def test_fold_is_not_used(self):
        names = self.pictures()
        self.table({"image": names, "fold": ["0", "1"] * 9, "grade": GRADES})
        self.found("column not used", "column fold is not used", False, 18)

    def test_patient_missing(self):
        names = self.pictures()
        self.table({"image": names, "patient": ["", *(f"secret{index}" for index in range(17))], "grade": GRADES})
        self.found("patient missing", "^1 rows have no patient, and count as a patient each: line 2", False, 18)

    def test_several_images(self):
        self.pictures(9, "left")
        self.pictures(9, "right")
        names = [f"p{index:02}" for index in range(9)]
        self.table({"image": names + ["left/p00.png"] * 3, "grade": GRADES[:12]})
        collection = self.collect()
        (finding,) = [each for each in collection.findings if each.rule == "several images"]
        self.assertTrue(finding.error)
        self.assertRegex(finding.message, "9 could mean several: line 2, .*write their paths")

    def test_several_tables(self):
        names = self.pictures()
        self.table({"image": names, "grade": GRADES})
        self.table({"image": names, "grade": GRADES[::-1]}, "second.csv")
        self.found("several tables", "could be labels.csv, second.csv; pass --table", True, 0, "")
        collection = self.collect(table="second.csv")
        self.assertEqual(list(self.grades(collection).values()), GRADES[::-1])

    def test_pictures_and_volumes(self):
        names = self.pictures()
        save_nifti(self.root / "images" / "v.nii.gz", np.ones((3, 4, 5), np.float32))
        self.table({"image": [*names, "images/v.nii.gz"], "grade": [*GRADES, "1"]})
        self.found("pictures and volumes", "got 18 pictures and 1 volumes", True, 0)

    @parameterized.expand(
        [
            ("a row is short", "image,grade,note\na,1,x\nb,2\n", "line 3 must have 3 cells, as the header, got 2"),
            (
                "a column without name",
                "image,,\nimage,grade,side\na,1,L\n",
                r"columns 2, 3 have no name; leave out merged",
            ),
            ("a name twice", "image,grade,grade\na,1,2\n", "must name every column once, got grade"),
            ("empty", "\n\n", "must have a header and rows, is empty"),
            ("binary", "a,b\n\0\0,c\n", "cannot be read: is no text"),
        ]
    )
    def test_unreadable(self, _, text, pattern):
        self.pictures()
        (self.root / "labels.csv").write_text(text)
        self.found("table cannot be read", pattern, True, 0)

    def test_merged_cells(self):
        names = self.pictures()
        book = openpyxl.Workbook()
        for row in [["image", "score", "note"], *zip(names, GRADES, GRADES, strict=True)]:
            book.active.append(row)
        book.active.merge_cells("B1:C1")
        book.save(self.root / "labels.xlsx")
        self.found("table cannot be read", "must have no merged cells, got B1:C1", True, 0, "labels.xlsx")

    def test_two_sheets(self):
        names = self.pictures()
        with pandas.ExcelWriter(self.root / "labels.xlsx") as writer:
            for sheet in ("first", "second"):
                pandas.DataFrame({"image": names, "grade": GRADES}).to_excel(writer, sheet_name=sheet, index=False)
        self.found("table cannot be read", "one sheet with data, got first, second", True, 0, "labels.xlsx")

    def test_damaged_excel_old_excel_and_json(self):
        self.pictures()
        for name, text in (("a.xlsx", "PK"), ("b.xls", "x"), ("c.json", "{")):
            (self.root / name).write_text(text)
            self.found("table cannot be read", "must be|cannot be read|is not valid JSON", True, 0, name, table=name)

    def test_wrong_options(self):
        self.table({"image": self.pictures(), "grade": GRADES})
        for options, pattern in (
            ({"table": "none.csv"}, "table must be an existing file"),
            ({"columns": {"image": "picture"}}, "column image must be one of the table's, image, grade, got 'picture'"),
            ({"columns": {"grades": "grade"}}, "columns must name some of image, patient, split, mask, got grades"),
        ):
            with self.assertRaisesRegex(InputError, pattern):
                self.collect(**options)

    def test_no_column_of_images(self):
        self.pictures()
        self.table({"a": ["x", "y"], "b": ["1", "2"]})
        self.assertIsNone(collect_table(self.root, Options()))
        self.found("no image column", "a column must name images", True, 0, table="labels.csv")


class TestFolders(Tables):
    @parameterized.expand([("", ""), ("train/", "training"), ("images/", "")])
    def test_a_folder_for_each_class(self, above, part):
        self.pictures(6, f"{above}mel")
        self.pictures(7, f"{above}nv/first")
        collection = self.collect()
        self.assertEqual((collection.task, collection.labels), ("classification", ["mel", "nv"]))
        self.assertEqual(Counter(case.grades["class"] for case in collection.cases), {"mel": 6, "nv": 7})
        self.assertEqual({case.part for case in collection.cases}, {part})
        self.assertEqual(rules(collection), ["classes by folder"])

    def test_folders_of_grades(self):
        for grade in "012":
            self.pictures(5, grade)
        collection = self.collect()
        self.assertEqual((collection.task, collection.labels), ("grading", ["0", "1", "2"]))

    @parameterized.expand(
        [
            ("masks", ["images", "masks"]),
            ("parts", ["train", "test"]),
            ("patients", ["P0017", "P0018", "P0019"]),
            ("one", ["mel"]),
            ("decathlon", ["imagesTr", "labelsTr", "imagesTs"]),
        ]
    )
    def test_other_folders(self, _, folders):
        for folder in folders:
            self.pictures(5, folder)
        self.assertIsNone(collect_table(self.root, Options()))

    def test_volumes(self):
        for index in range(8):
            name = f"{'AD' if index % 2 else 'CN'}/v{index}.nii.gz"
            save_nifti(self.root / name, np.random.default_rng(index).normal(size=(4, 5, 6)).astype(np.float32))
        collection = self.collect()
        self.assertEqual((collection.spatial_dims, collection.labels), (3, ["AD", "CN"]))
        self.assertEqual(LoadVolume()(collection.cases[0].image).shape, (1, 4, 5, 6))

    def test_nothing(self):
        self.assertIsNone(collect_table(self.root, Options()))


class TestDicom(Tables):
    @parameterized.expand(["SOPInstanceUID", "SeriesInstanceUID", "AccessionNumber", "path"])
    def test_radiographs(self, key):
        headers = [save_radiograph(self.root / "dx" / f"{index}.dcm", f"MRN{index // 2}") for index in range(10)]
        for index, header in enumerate(headers):
            header.AccessionNumber = f"A{index}"
            header.save_as(self.root / "dx" / f"{index}.dcm", enforce_file_format=True)
        cells = [f"dx/{index}" if key == "path" else header.get(key) for index, header in enumerate(headers)]
        self.table({"study": cells, "grade": ["0", "1"] * 5})
        collection = self.collect()
        self.assertEqual((collection.spatial_dims, len(collection.cases)), (2, 10))
        self.assertEqual(list(self.grades(collection).values()), ["0", "1"] * 5)
        self.assertEqual(Counter(Counter(case.patient for case in collection.cases).values()), {2: 5})
        self.assertEqual({case.modality for case in collection.cases}, {"DX"})
        told = f"{[(case.name, case.patient, case.grades) for case in collection.cases]} {collection.findings}"
        self.assertNotIn("MRN", told)
        for case in collection.cases:
            self.assertEqual(LoadImage2D()(case.image).shape, (1, 4, 6))

    def test_series(self):
        orientation = np.eye(3)
        for index in range(4):
            volume = np.random.default_rng(index).integers(0, 900, (5, 6, 7)).astype(np.uint16)
            save_dicom(self.root / f"study{index}", volume, orientation, np.zeros(3), (1, 1, 2))
        self.table({"scan": [f"study{index}" for index in range(4)], "grade": ["0", "1"] * 2})
        collection = self.collect()
        self.assertEqual((collection.spatial_dims, len(collection.cases)), (3, 4))
        self.assertEqual([len(case.image) for case in collection.cases], [7] * 4)
        self.assertEqual([case.grades["grade"] for case in collection.cases], ["0", "1"] * 2)

    def test_two_dimensional_nifti(self):
        names = [f"n{index}.nii" for index in range(6)]
        for index, name in enumerate(names):
            volume = np.random.default_rng(index).normal(size=(5, 6, 1)).astype(np.float32)
            save_nifti(self.root / name, volume, np.diag([*np.abs(AFFINE_RAS.diagonal()[[0, 0, 0]]), 1]))
        self.table({"image": names, "grade": ["0", "1"] * 3})
        collection = self.collect()
        self.assertEqual((collection.spatial_dims, len(collection.cases)), (2, 6))
        self.assertEqual(LoadImage2D()(collection.cases[0].image).shape, (1, 6, 5))


class TestRealData(unittest.TestCase):
    @parameterized.expand(
        [
            ("knee_kl", {}, "kl_grade", "patient", "grading", 0),
            ("dr_fundus", {"outputs": ["dr_grade"]}, "dr_grade", "patient", "grading", 0),
            ("skin_lesions", {"columns": {"patient": "lesion_id"}}, "dx", "lesion_id", "classification", 0),
        ]
    )
    def test_a_whole_folder(self, folder, options, output, patient, task, errors):
        root = shared_data(folder)
        frame = pandas.read_csv(root / "labels.csv", dtype=str)
        collection = collect_table(root, Options(secret=SECRET, **options))
        self.assertEqual((collection.task, collection.spatial_dims), (task, 2))
        self.assertEqual(collection.labels, sorted(frame[output].unique()))
        found = {Path(case.image).relative_to(root).as_posix(): case.grades[output] for case in collection.cases}
        self.assertEqual(found, dict(zip(frame["image"], frame[output], strict=True)))
        self.assertEqual(len({case.patient for case in collection.cases}), frame[patient].nunique())
        self.assertEqual(len(rules(collection, errors=True)), errors)
        self.assertEqual({case.part for case in collection.cases}, {""})

    def test_brixia_is_offered_and_taken(self):
        root = shared_data("brixia_cxr")
        offered = collect_table(root, Options())
        self.assertEqual(rules(offered), ["outputs not clear"])
        self.assertIn("--outputs S-A,S-B,S-C,S-D,S-E,S-F.", offered.findings[0].message)
        zones = [f"S-{zone}" for zone in "ABCDEF"]
        collection = collect_table(root, Options(outputs=zones))
        self.assertEqual((collection.task, collection.labels, collection.outputs), ("grading", list("0123"), zones))
        frame = pandas.read_csv(root / "annotations.csv", dtype=str, index_col="filename")
        there = [name for name in frame.index if (root / "images" / name).is_file()]
        self.assertEqual(len(collection.cases), len(there))
        for case in collection.cases:
            self.assertEqual(case.grades, frame.loc[Path(case.image).name, zones].to_dict())
        self.assertEqual(rules(collection, errors=True), [])

    @parameterized.expand(["chasedb1", "abdomen_mr", "msd_hippocampus", "totalseg_ct", "dicom"])
    def test_segmentations_are_no_table(self, folder):
        self.assertIsNone(collect_table(shared_data(folder), Options()))

    def test_a_copy_without_table(self):
        root = temporary_folder(self)
        frame = pandas.read_csv(shared_data("knee_kl/labels.csv"), dtype=str).groupby("kl_grade").head(3)
        for name, grade in zip(frame["image"], frame["kl_grade"], strict=True):
            (root / grade).mkdir(exist_ok=True)
            shutil.copy(shared_data("knee_kl") / name, root / grade)
        collection = collect_table(root, Options())
        self.assertEqual((collection.task, collection.labels), ("grading", list("01234")))
        wanted = {Path(name).name: grade for name, grade in zip(frame["image"], frame["kl_grade"], strict=True)}
        self.assertEqual({Path(case.image).name: case.grades["class"] for case in collection.cases}, wanted)


if __name__ == "__main__":
    unittest.main()
