# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
import os
import unittest
from collections import Counter
from pathlib import Path

from parameterized import parameterized
from utils_data import shared_data, temporary_folder

from monai_dvpt.data import load_gradelist, select_part
from monai_dvpt.data.gradelist import draw_validation
from monai_dvpt.utils import InputError

ZONES = ["left", "right"]
SEVERITY = ["none", "mild", "severe"]
PARTS = ["training", "validation", "test"]


class TestLoadGradelist(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)
        for name in ("a.png", "b.png", "c.dcm", "sub/a.png", "d.jpg", "e.nii.gz"):
            (self.root / name).parent.mkdir(exist_ok=True)
            (self.root / name).touch()
        (self.root / "link.png").symlink_to("a.png")

    def csv(self, *lines: str) -> Path:
        path = self.root / "list.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")  # as Excel writes it
        return path

    def json(self, content) -> Path:
        path = self.root / "list.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def load(self, path: Path, outputs=ZONES, grades=SEVERITY, **arguments):
        return load_gradelist(self.root, path, outputs, grades, **arguments)

    def test_volumes_may_be_folders(self):
        (self.root / "series").mkdir()
        path = self.root / "volumes.csv"
        path.write_text("image,size,split\nseries,small,training\ne.nii.gz,large,validation\n")
        cases = load_gradelist(self.root, path, ["size"], ["small", "large"], volumes=True)
        self.assertEqual(cases["training"][0]["image"], str(self.root / "series"))
        with self.assertRaisesRegex(InputError, "image must be an existing file, got 'series'"):
            load_gradelist(self.root, path, ["size"], ["small", "large"])

    def test_csv(self):
        lines = ["right,image,left,split,patient,note", "mild,a.png,severe,training,7,x", ",b.png,none,training,8,"]
        lines += ["0,sub/a.png,2.0,validation,9,", "1,c.dcm,none,test,10,"]
        cases = self.load(self.csv(*lines))
        self.assertEqual(list(cases), ["training", "validation", "test"])
        first, second = cases["training"]
        self.assertEqual(first, {"image": str(self.root / "a.png"), "name": "a", "label": [2, 1], "group": "7"})
        self.assertEqual(second["label"], [0, -1])
        self.assertEqual(cases["validation"][0]["label"], [2, 0])
        self.assertEqual(cases["validation"][0]["name"], "sub_a")
        self.assertEqual([case["label"] for case in cases["test"]], [[0, 1]])

    def test_reserved_columns_in_any_case(self):
        cases = self.load(
            self.csv(
                " Image ,left,right,Patient,SPLIT", "a.png,0,0,7,test", "b.png,0,0,8,training", "d.jpg,1,1,9,validation"
            )
        )
        self.assertEqual([case["group"] for part in PARTS for case in cases[part]], ["8", "9", "7"])
        case = {"Image": "a.png", "label": [0, 0], "Patient": 7}
        self.assertEqual(self.load(self.json({"test": [case]}))["test"][0]["group"], "7")

    def test_short_names_of_parts(self):
        """In a column as for the files of a folder."""
        lines = ["image,left,right,split", "a.png,0,0,train", "b.png,0,0,valid", "c.dcm,0,0,val", "d.jpg,0,0,test"]
        cases = self.images(self.load(self.csv(*lines)))
        found = {part: [image for image, _ in cases[part]] for part in cases}
        self.assertEqual(found, {"training": ["a.png"], "validation": ["b.png", "c.dcm"], "test": ["d.jpg"]})

    def test_what_a_part_lacks_is_said(self):
        path = self.csv("image,dx,split", "a.png,nv,training", "b.png,bcc,training", "d.jpg,nv,validation")
        with self.assertLogs("monai_dvpt", "WARNING") as logs:
            self.load(path, ["dx"], ["nv", "bcc", "mel"])
        said = [record.getMessage().partition("list.csv: ")[2] for record in logs.records]
        self.assertEqual(said, ["training has no image of mel.", "validation has no image of bcc, mel."])

    def test_one_part_alone(self):
        """It can be scored; a training on it is refused."""
        for part in PARTS[1:]:
            cases = self.load(self.csv("image,left,right,split", f"a.png,0,0,{part}"))
            self.assertEqual(list(cases), [part])
            self.assertEqual(len(select_part(cases, part)), 1)
            with self.assertRaisesRegex(InputError, rf"part must be one of \['{part}'\], got 'training'"):
                cases["training"]

    @parameterized.expand(
        [
            ("alternatives", r"^p(\d)_|^q(\d)_", ["1", "1", "r3.png"]),
            ("optional", r"^[pq](\d)?_|r\d", ["1", "1", "r3"]),
            ("empty", r"^(x?)", ["p1_a.png", "q1_b.png", "r3.png"]),
        ]
    )
    def test_patient_pattern(self, _, pattern, expected):
        images = ["p1_a.png", "q1_b.png", "r3.png"]
        for image in images:
            (self.root / image).touch()
        cases = self.load(self.json({"test": [{"image": i, "label": [0, 0]} for i in images]}), patient_pattern=pattern)
        self.assertEqual([Path(case["group"]).name for case in cases["test"]], expected)

    def test_a_part_that_is_missing_is_refused(self):
        cases = {"training": [{"name": "a"}], "validation": [{"name": "b"}], "test": []}
        self.assertEqual(select_part(cases, "validation"), [{"name": "b"}])
        for part in ("test", "tests"):
            with self.assertRaisesRegex(InputError, rf"part must be one of \['training', 'validation'\], got '{part}'"):
                select_part(cases, part)

    def test_json(self):
        content = {
            "training": [
                {"image": "a.png", "label": {"left": "mild"}, "patient": 3},
                {"image": "b.png", "label": ["severe", None]},
                {"image": "sub/a.png", "label": [0, 1], "patient": 3},
            ],
            "validation": [
                {"image": "d.jpg", "label": {"right": 2, "left": None}},
                {"image": "c.dcm", "label": [1, 1]},
            ],
            "numTraining": 2,
        }
        cases = self.load(self.json(content))
        self.assertEqual([case["label"] for case in cases["training"]], [[1, -1], [2, -1], [0, 1]])
        self.assertEqual([case["group"] for case in cases["training"]], ["3", str(self.root / "b.png"), "3"])
        self.assertEqual([case["label"] for case in cases["validation"]], [[-1, 2], [1, 1]])
        self.assertNotIn("test", cases)

    def test_columns_of_json(self):
        """A bundle's default for CSV stops no JSON list, and is used where its keys have that name."""
        names, label = ("a.png", "b.png", "d.jpg"), [0, 1]
        for given, groups in (
            ([{}] * 3, [str(self.root / name) for name in names]),
            ([{"patient": 7}, {"patient": 7}, {"patient": 8}], ["7", "7", "8"]),
            ([{"lesion_id": "L1"}, {"lesion_id": "L1"}, {"patient": "L2"}], ["L1", "L1", "L2"]),
        ):
            training = [{"image": name, "label": label, **each} for name, each in zip(names, given, strict=True)]
            cases = self.load(self.json({"training": training}), columns={"patient": "lesion_id"})
            found = {case["image"]: case["group"] for part in cases.values() for case in part}
            self.assertEqual([found[str(self.root / name)] for name in names], groups)
        both = {"image": "a.png", "label": label, "lesion_id": 1, "patient": 2}
        with self.assertRaisesRegex(InputError, r"list\.json: every key must be there once, got .*'patient': 2"):
            self.load(self.json({"training": [both]}), columns={"patient": "lesion_id"})
        with self.assertRaisesRegex(InputError, r"list\.json: columns must give different names .* got 'null'"):
            self.load(self.json({"training": [both]}), columns="null")

    @parameterized.expand([("name", "mild", 1), ("index", 1, 1), ("float", 2.0, 2), ("text", "2", 2)])
    def test_one_output(self, _, grade, expected):
        content = {"training": [{"image": "a.png", "label": grade}], "validation": [{"image": "b.png", "label": 0}]}
        cases = self.load(self.json(content), ["severity"])
        self.assertEqual(cases["training"][0]["label"], [expected])

    def test_names_that_are_numbers_are_no_indices(self):
        """In grades 1 to 3 a 1 is the first, and a 0 is none."""
        lines = ["image,kl", "a.png,1", "b.png,3.0"]
        cases = self.load(self.csv(*lines), ["kl"], ["1", "2", "3"])
        self.assertEqual(sorted(case["label"] for part in cases.values() for case in part), [[0], [2]])
        with self.assertRaisesRegex(InputError, r"a.png: kl must be one of \['1', '2', '3'\], got '0'\."):
            self.load(self.csv("image,kl", "a.png,0", "b.png,1"), ["kl"], ["1", "2", "3"])

        with self.assertRaisesRegex(InputError, r"a.png: kl must be one of \['0.5', '1.5', '2.5'\], got '1'\."):
            self.load(self.csv("image,kl", "a.png,1", "b.png,1.50"), ["kl"], [0.5, 1.5, 2.5])
        cases = self.load(self.csv("image,kl,split", "b.png,1.50,test"), ["kl"], [0.5, 1.5, 2.5])
        self.assertEqual(cases["test"][0]["label"], [1])

    def test_names_as_numbers_from_a_command_line(self):
        cases = self.load(self.csv("filename,x", "a.png,2", "b.png,0"), ["x"], [0, 1, 2])
        self.assertEqual(sorted(case["label"] for part in cases.values() for case in part), [[0], [2]])

    def test_draws_whole_patients(self):
        images = [f"{patient}_{view}.png" for patient in range(100, 120) for view in range(1 + patient % 3)]
        for image in images:
            (self.root / image).touch()
        path = self.csv("image,x", *(f"{image},{index % 3}" for index, image in enumerate(images)))
        cases = self.load(path, ["x"], patient_pattern=r"^(\d+)_")
        names = {part: {case["name"].split("_")[0] for case in section} for part, section in cases.items()}
        self.assertFalse(names["training"] & names["validation"])
        self.assertEqual(len(names["training"] | names["validation"]), 20)
        self.assertEqual({case["group"] for part in cases.values() for case in part}, set(map(str, range(100, 120))))
        self.assertEqual(len(cases["validation"]), round(0.2 * len(images)))
        self.assertEqual(self.load(path, ["x"], patient_pattern=r"^(\d+)_"), cases)  # the same again
        half = self.load(path, ["x"], patient_pattern=r"^\d+", validation_fraction=0.5)
        self.assertEqual(len(half["validation"]), len(images) // 2)

    def test_draws_of_many_patients(self):
        """As many as asked for, and of no patient a part alone; a draw that is quadratic in patients never ends."""
        sizes = {str(patient): 1 + patient % 3 for patient in range(39_999)}
        cases = [{"group": group} for group, size in sizes.items() for _ in range(size)]
        parts = draw_validation(cases, 0.5)
        self.assertEqual(len(parts[1]), len(cases) // 2)
        training, validation = (Counter(case["group"] for case in part) for part in parts)
        self.assertEqual({**training, **validation}, sizes)
        self.assertEqual(training.keys() & validation.keys(), set())

    def test_one_large_and_one_small_patient(self):
        lines = ["image,x,patient", "a.png,0,1", "b.png,1,1", "sub/a.png,1,1", "d.jpg,1,2", "c.dcm,0,2"]
        cases = self.load(self.csv(*lines), ["x"])
        self.assertEqual([case["group"] for case in cases["validation"]], ["2", "2"])

    @parameterized.expand(
        [
            ("columns", ["image,left", "a.png,mild"], r"columns image and left, right, once each; columns right are"),
            ("no image", ["left,right", "mild,mild"], "columns image, right|columns image are missing"),
            ("twice a column", ["image,left,left,right", "a.png,0,0,0"], "a column is there twice"),
            ("cells", ["image,left,right", "", "a.png,mild"], "line 3 must have 3 cells, got 2"),
            ("quoted", ['"image",left,right', '"a.png",0,"0\n"', "b.png,0"], "line 4 must have 3 cells, got 2"),
            *(
                (f"column {name}", [f"image,left,right,{name}", "a.png,0,0,1"], f"like patient or split, got '{name}'")
                for name in ("patient_id", "PatientID", "subject", "set", "Fold", "part", "pateint", "splits")
            ),
            ("twice a reserved column", ["image,left,right,split,Split", "a.png,0,0,,"], "a column is there twice"),
            ("linked", ["image,left,right", "a.png,0,0", "link.png,0,0"], "must be listed once, got .*link.png"),
            (
                "grade",
                ["image,left,right", "a.png,mild,bad"],
                r"a.png: right must be one of .* or its index, got 'bad'",
            ),
            ("index", ["image,left,right", "a.png,mild,3"], "got '3'"),
            ("nothing graded", ["image,left,right", "a.png,,-1"], "a.png: label must have a grade for at least one"),
            ("no file", ["image,left,right", "x.png,0,0"], "every image must be an existing file, got 'x.png'"),
            ("empty name", ["image,left,right", ",0,0"], "every image must be an existing file, got ''"),
            ("split", ["image,left,right,split", "a.png,0,0,dev"], "split must be one of .*, got 'dev' in line 2"),
            ("twice", ["image,left,right", "a.png,0,0", "sub/../a.png,0,0"], "must be listed once, got .*a.png"),
            ("header alone", ["image,left,right"], "holds no images"),
            ("empty", [""], "columns image, left, right are missing"),
            ("one patient", ["image,left,right", "a.png,0,0"], "one patient cannot both train and validate"),
            ("output", ["image,left,right", "a.png,0,", "b.png,1,"], "training has none of right"),
        ]
    )
    def test_bad_csv(self, _, lines, why):
        with self.assertRaisesRegex(InputError, rf"list\.csv: .*({why})"):
            self.load(self.csv(*lines))

    @parameterized.expand(
        [
            ("syntax", "{", "is not valid JSON"),
            ("no object", [1], 'must be an object with a list "training"'),
            ("no list", {"training": {}}, '"training" must be a list'),
            ("no cases", {"training": [], "test": []}, "holds no images"),
            (
                "other part",
                {"training": [{"image": "a.png", "label": [0, 0]}], "val": []},
                '"val" must be a list and one',
            ),
            ("other case", {"Test": [], "training": []}, '"Test" must be a list and one of'),
            ("no case", {"training": ["a.png"]}, """must have an "image" and a "label", got 'a.png'"""),
            ("key", {"training": [{"image": "a.png", "label": [0, 0], "patient_id": 7}]}, "got 'patient_id'"),
            ("split", {"training": [{"image": "a.png", "label": [0, 0], "split": "test"}]}, "got 'split'"),
            (
                "no label",
                {"training": [{"image": "a.png"}]},
                'must have an "image" and a "label", got .* in "training"',
            ),
            ("unknown output", {"training": [{"image": "a.png", "label": {"top": 1}}]}, "outputs of .*, got 'top'"),
            ("too few", {"training": [{"image": "a.png", "label": [1]}]}, r"grade for each of .*, got \[1\]"),
            ("fraction", {"training": [{"image": "a.png", "label": [1, 0.5]}]}, "right must be one of .*, got 0.5"),
            ("truth", {"training": [{"image": "a.png", "label": [1, True]}]}, "right must be one of .*, got True"),
        ]
    )
    def test_bad_json(self, _, content, why):
        with self.assertRaisesRegex(InputError, rf"list\.json: .*({why})"):
            self.load(self.json(content))

    def test_one_side_for_every_patient(self):
        lines = ["image,left,right,split,patient", "a.png,0,0,training,1", "b.png,0,0,validation,1"]
        with self.assertRaisesRegex(InputError, "patient must be in one part, got 1 in training and validation"):
            self.load(self.csv(*lines))
        with self.assertRaisesRegex(InputError, "listed once, got .*a.png in training and test"):
            self.load(self.csv("image,left,right,split", "a.png,0,0,training", "a.png,0,0,test"))

    def test_calibration_part(self):
        """Of prediction sets: apart from the others, and never drawn from for validation."""
        lines = ["image,left,right,split,patient", "a.png,0,0,training,1", "b.png,0,0,training,2"]
        cases = self.load(self.csv(*lines, "c.dcm,1,2,calibration,3"))
        self.assertEqual({part: len(cases[part]) for part in cases}, {"training": 1, "calibration": 1, "validation": 1})
        self.assertEqual((cases["calibration"][0]["label"], cases["calibration"][0]["group"]), ([1, 2], "3"))
        with self.assertRaisesRegex(InputError, "patient must be in one part, got 1 in training and calibration"):
            self.load(self.csv(*lines, "c.dcm,1,2,calibration,1"))

    def test_one_image_under_two_names(self):
        os.link(self.root / "a.png", self.root / "hard.png")
        for link in ("link.png", "hard.png"):
            for part in ("training", "validation"):
                content = {"training": [{"image": "a.png", "label": [0, 1]}]}
                content.setdefault(part, []).append({"image": link, "label": [0, 1]})
                with self.assertRaisesRegex(InputError, f"every image must be listed once, got .*{link} in training"):
                    self.load(self.json(content))

    def test_missing_files(self):
        with self.assertRaisesRegex(InputError, "nowhere: dataset_dir must be an existing folder"):
            load_gradelist(self.root / "nowhere", "list.csv", ZONES, SEVERITY)
        with self.assertRaisesRegex(InputError, "none.csv: datalist must be an existing file"):
            self.load(self.root / "none.csv")
        with self.assertRaisesRegex(InputError, r"a.png: datalist must be a .csv, a .txt or a .json file, or a folder"):
            self.load(self.root / "a.png")

    @parameterized.expand(
        [
            ({"outputs": []}, "outputs must be a list of at least 1 different names"),
            ({"outputs": ["x", "x"]}, "outputs must be a list of at least 1 different names"),
            ({"outputs": "left"}, "outputs must be a list of at least 1 different names, got 'left'"),
            ({"outputs": 1}, "outputs must be a list of at least 1 different names, got 1"),
            ({"grades": ["x"]}, "grades must be a list of at least 2 different names"),
            ({"grades": [1, "1"]}, "grades must be a list of at least 2 different names"),
            ({"patient_pattern": "(a"}, r"patient_pattern must be a regular expression, got '\(a': missing"),
            ({"validation_fraction": 1.0}, r"validation_fraction must be in \(0, 1\), got 1.0"),
        ]
    )
    def test_bad_arguments(self, arguments, why):
        with self.assertRaisesRegex(InputError, why):
            self.load(self.csv("image,left,right", "a.png,0,0"), **arguments)

    def folder_of(self, *names: str) -> None:
        for name in names:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).touch()

    def images(self, cases: dict) -> dict[str, list]:
        """Images below the folder, with their label, by part."""
        root = len(str(self.root)) + 1
        return {part: [(case["image"][root:], case["label"]) for case in cases[part]] for part in cases}

    def test_list_of_aptos(self):
        """Names without suffix, in a folder of their own, and other names of columns."""
        self.folder_of(*(f"train_images/{name}.png" for name in ("000c1434d8d7", "001639a390f0", "0024cdab0c1e")))
        file = self.csv("id_code,diagnosis", "000c1434d8d7,2", "001639a390f0,4", "0024cdab0c1e,1")
        columns = {"image": "id_code", "dr_grade": "diagnosis"}
        where = "train_images/{image}.png"
        cases = self.load(file, ["dr_grade"], list("01234"), columns=columns, image_path=where)
        found = {name: label for part in self.images(cases).values() for name, label in part}
        expected = {"000c1434d8d7": [2], "001639a390f0": [4], "0024cdab0c1e": [1]}
        self.assertEqual(found, {f"train_images/{name}.png": label for name, label in expected.items()})
        self.assertEqual([len(cases[part]) for part in cases], [2, 1])

    def test_lists_of_ddr(self):
        """A text file for each part, beside a folder of its name; grade 5 cannot be graded."""
        rows = {"train": {"007-1.jpg": 0, "20170.jpg": 5, "007-2.jpg": 4}, "valid": {"1.jpg": 5, "2.jpg": 3}}
        rows["test"] = {"007-1.jpg": 2}
        for part, grades in rows.items():
            self.folder_of(*(f"{part}/{name}" for name in grades))
            text = "".join(f"{name} {grade}\n" for name, grade in grades.items())
            (self.root / f"{part}.txt").write_text(text)
        (self.root / "notes.txt").write_text("none")
        outputs, grades, where = ["dr_grade"], list("01234"), "{list}/{image}"
        with self.assertRaisesRegex(InputError, "20170.jpg: dr_grade must be one of .*, got '5'"):
            self.load(self.root, outputs, grades, image_path=where)
        for values in (5, "5", [5, 6]):
            with self.assertLogs("monai_dvpt.data.gradelist", "INFO") as logs:
                cases = self.load(self.root, outputs, grades, image_path=where, exclude={"dr_grade": values})
            expected = {"training": [("train/007-1.jpg", [0]), ("train/007-2.jpg", [4])]}
            expected |= {"validation": [("valid/2.jpg", [3])], "test": [("test/007-1.jpg", [2])]}
            self.assertEqual(self.images(cases), expected)
            said = [record.getMessage().removeprefix(f"{self.root}/") for record in logs.records]
            said = [text for text in said if "left out" in text]
            words = "images are left out, with dr_grade 5."
            self.assertEqual(sorted(said), [f"train.txt: 1 of 3 {words}", f"valid.txt: 1 of 2 {words}"])

    def test_list_of_messidor_2(self):
        """What cannot be graded has no grade, and says so in a column of its own."""
        self.folder_of("20051020_PP.png", "IM0001.JPG", "IM0002.JPG")
        lines = ["20051020_PP.png,0.0,0.0,1", "IM0001.JPG,,,0", "IM0002.JPG,2.0,1.0,1"]
        file = self.csv("image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable", *lines)
        columns = {"image": "image_id", "dr_grade": "adjudicated_dr_grade"}
        arguments = {"outputs": ["dr_grade"], "grades": list("01234"), "columns": columns}
        with self.assertRaisesRegex(InputError, "IM0001.JPG: label must have a grade"):
            self.load(file, **arguments)
        with self.assertLogs("monai_dvpt.data.gradelist", "INFO") as logs:
            cases = self.load(file, **arguments, exclude={"adjudicated_gradable": 0})
        found = sorted(row for part in self.images(cases).values() for row in part)
        self.assertEqual(found, [("20051020_PP.png", [0]), ("IM0002.JPG", [2])])
        self.assertRegex(logs.output[0], "list.csv: 1 of 3 images are left out, with adjudicated_gradable 0")

    def test_columns_of_patient_and_split(self):
        columns = {"patient": "subject_id", "split": "Set"}
        lines = ["image,left,right,subject_id,Set", "a.png,0,0,7,training", "b.png,0,0,8,validation"]
        cases = self.load(self.csv(*lines), columns=columns)
        self.assertEqual([(part, cases[part][0]["group"]) for part in cases], [("training", "7"), ("validation", "8")])

    @parameterized.expand(
        [
            ({"columns": {"image": "name", "left": "name"}}, "columns must give different names"),
            ({"columns": {"top": "name"}}, r"for some of \('image', 'patient', 'split', 'left', 'right'\), got .*top"),
            ({"columns": {"left": 1}}, "columns must give different names"),
            ({"columns": {"left": "L"}}, "columns image and L, right, once each; columns L are missing"),
            ({"columns": {"patient": "who"}}, "columns who are missing"),
            ({"exclude": {"gradable": 0}}, "columns gradable are missing"),
            ({"exclude": "left"}, "exclude must give the values to leave out by .*, got 'left'"),
            ({"exclude": ["left"]}, r"exclude must give the values to leave out by .*, got \['left'\]"),
            ({"image_path": "images/"}, r"image_path must contain \{image\}, got 'images/'"),
            ({"image_path": "{image}.png"}, r"must be an existing file, got 'a.png.png'"),
        ]
    )
    def test_bad_options(self, options, why):
        with self.assertRaisesRegex(InputError, why):
            self.load(self.csv("image,left,right", "a.png,0,0", "b.png,0,0"), **options)

    def test_bad_lists_of_parts(self):
        with self.assertRaisesRegex(InputError, r"a folder of lists must hold one list for each part, .* got \[\]"):
            self.load(self.root)
        for name in ("val.txt", "valid.txt"):
            (self.root / name).write_text("a.png 0 0\n")
        with self.assertRaisesRegex(InputError, r"got \['val.txt', 'valid.txt'\]"):
            self.load(self.root)
        (self.root / "val.txt").write_text("a.png 0 0\nb.png 1\n")
        (self.root / "valid.txt").unlink()
        with self.assertRaisesRegex(InputError, "val.txt: line 2 must have 3 cells, got 2"):
            self.load(self.root)
        (self.root / "val.txt").unlink()
        (self.root / "train.csv").write_text("image,left,right,split\na.png,0,0,training\n")
        with self.assertRaisesRegex(InputError, "train.csv: a list of the part training must have no column split"):
            self.load(self.root)
        with self.assertRaisesRegex(InputError, "list.json: exclude must be for .csv or .txt lists"):
            self.load(self.json({}), exclude={"left": 1})

    @parameterized.expand([("knee_kl", "kl_grade", 2000, 1000), ("dr_fundus", "dr_grade", 391, 196)])
    def test_shared_lists(self, folder, output, images, patients):
        """As they are: patients on one side, the same ones each time."""
        root = shared_data(folder)
        cases, again = (load_gradelist(root, root / "labels.csv", [output], list("01234")) for _ in range(2))
        self.assertEqual(cases, again)
        groups = [{case["group"] for case in cases[part]} for part in ("training", "validation")]
        self.assertFalse(groups[0] & groups[1])
        self.assertEqual(len(groups[0] | groups[1]), patients)
        with open(root / "labels.csv", newline="") as file:
            expected = {str(root / row["image"]): [int(row[output])] for row in csv.DictReader(file)}
        self.assertEqual(len(expected), images)
        self.assertEqual({case["image"]: case["label"] for part in cases.values() for case in part}, expected)
        self.assertAlmostEqual(len(cases["validation"]) / images, 0.2, delta=0.01)

    def test_real_list(self):
        folder = shared_data("brixia_cxr")
        outputs = [f"S-{zone}" for zone in "ABCDEF"]
        cases = load_gradelist(
            folder / "images", folder / "annotations.csv", outputs, list("0123"), patient_pattern=r"^\d{3,}(?=[_-])"
        )
        self.assertEqual([len(section) for section in cases.values()], [112, 28])
        groups = [{case["group"] for case in section} for section in cases.values()]
        self.assertFalse(groups[0] & groups[1])
        labels = {case["name"]: case["label"] for section in cases.values() for case in section}
        self.assertEqual(labels["01E392EE-69F9-4E33-BFCE-E5C968654078"], [2, 2, 3, 2, 2, 2])


if __name__ == "__main__":
    unittest.main()
