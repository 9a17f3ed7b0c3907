# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import os
import unittest
from pathlib import Path

import numpy as np
from parameterized import parameterized
from PIL import Image
from utils_data import shared_data, temporary_folder

from monai_dvpt.data import load_masklist
from monai_dvpt.utils import InputError

HEADER = "image,mask,lesion_id"
LESION = {"patient": "lesion_id"}


class TestMaskList(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)
        for name in "abcdef":
            for folder in ("images", "masks"):
                (self.root / folder).mkdir(exist_ok=True)
                pixels = np.full((4, 5), ord(name) + len(folder), np.uint8)
                Image.fromarray(pixels).save(self.root / folder / f"{name}.png")

    def write(self, *rows: str, header: str = HEADER) -> Path:
        path = self.root / "labels.csv"
        path.write_text("\n".join([header, *rows]))
        return path

    def rows(self, names: str = "abcdef", tail: str = ",{0}") -> list[str]:
        return [f"images/{name}.png,masks/{name}.png" + tail.format(name) for name in names]

    def refused(self, words: str, **arguments) -> None:
        with self.assertRaisesRegex(InputError, words):
            load_masklist(self.root, self.root / "labels.csv", **arguments)

    def test_masks_in_a_folder_of_their_own(self):
        path = self.write(*(f"images/{name}.png,{name}.png,{name}" for name in "abcdef"))
        cases = load_masklist(self.root, path, LESION, labels_dir=self.root / "masks")
        labels = {case["label"] for section in cases.values() for case in section}
        self.assertEqual(labels, {str(self.root / "masks" / f"{name}.png") for name in "abcdef"})
        self.refused("mask must be an existing file", columns=LESION)
        self.refused("labels_dir must be an existing folder", labels_dir=self.root / "nowhere")

    def test_json_is_refused(self):
        path = self.root / "labels.json"
        path.write_text("{}")
        with self.assertRaisesRegex(InputError, r"labels.json: datalist must be a .csv or .txt file, .* no JSON"):
            load_masklist(self.root, path)

    def test_parts_that_are_given(self):
        parts = ["training"] * 3 + ["validation", "test", "test"]
        path = self.write(
            *(f"{row},{part}" for row, part in zip(self.rows(), parts, strict=True)), header=HEADER + ",Split"
        )
        cases = load_masklist(self.root, path, LESION)
        self.assertEqual(
            {part: len(section) for part, section in cases.items()}, {"training": 3, "validation": 1, "test": 2}
        )
        expected = {
            "image": str(self.root / "images" / "d.png"),
            "label": str(self.root / "masks" / "d.png"),
            "name": "images_d",
            "group": "d",
        }
        self.assertEqual(cases["validation"], [expected])
        self.write(*(f"{row},{part}" for row, part in zip(self.rows("ab"), ("val", "calibration"), strict=True)))
        path.write_text(path.read_text().replace(HEADER, HEADER + ",split"))
        found = {part: [case["group"] for case in section] for part, section in load_masklist(self.root, path).items()}
        self.assertEqual(list(found), ["validation", "calibration"])

    def test_lesions_stay_together(self):
        rows = [row + "," + str(index // 3) for index, row in enumerate(self.rows(tail=""))]
        path = self.write(*rows)
        cases = load_masklist(self.root, path, LESION, validation_fraction=0.4)
        self.assertEqual([len(cases[part]) for part in ("training", "validation")], [3, 3])
        self.assertEqual([len({case["group"] for case in section}) for section in cases.values()], [1, 1])
        self.assertEqual(load_masklist(self.root, path, LESION, validation_fraction=0.4), cases)

    def test_without_patients_each_picture_is_one(self):
        path = self.write(*self.rows(tail=""), header="filename,mask")
        cases = load_masklist(self.root, path)
        self.assertEqual([len(section) for section in cases.values()], [5, 1])
        self.assertEqual(len({case["group"] for section in cases.values() for case in section}), 6)

    @parameterized.expand(
        [
            (
                "fraction",
                HEADER,
                "abc",
                "",
                {"validation_fraction": 1},
                r"validation_fraction must be in \(0, 1\), got 1",
            ),
            ("no_column", "image,mask,id", "abc", "", {"columns": LESION}, "columns lesion_id are missing"),
            ("no_mask", "image,label,id", "abc", "", {}, "must have the columns image and mask, .* mask are missing"),
            (
                "like_a_patient",
                "image,mask,patient_id",
                "abc",
                "",
                {},
                "must not be like patient or split, got 'patient_id'",
            ),
            ("twice", HEADER, "aba", "", {}, r"every image must be listed once, got .*a\.png in training and training"),
            ("empty", HEADER, "", "", {}, "holds no images"),
            ("no_file", HEADER, "abg", "", {}, r"every image must be an existing file, got 'images/g\.png' in "),
        ]
    )
    def test_refused(self, _, header, names, tail, arguments, words):
        self.write(*(row for row in self.rows(names)), header=header)
        self.refused(words, **arguments)

    def test_refused_files(self):
        self.write("images/a.png,masks/none.png,1", *self.rows("bc"))
        self.refused(r"labels\.csv: every mask must be an existing file, got 'masks/none\.png' in ")
        os.link(self.root / "images" / "a.png", self.root / "masks" / "linked.png")
        self.write("images/a.png,masks/linked.png,1", *self.rows("bc"))
        self.refused(r"every mask must be another file than its image, got .*linked\.png")
        self.write(*(row + ",test" * (index > 1) for index, row in enumerate(self.rows("abc"))))
        self.refused("line 4 must have 3 cells, got 4")
        rows = ["images/a.png,masks/a.png,1,training", "images/b.png,masks/b.png,1,test"]
        self.write(*rows, header=HEADER + ",split")
        self.refused("all images of a patient must be in one part, got 1 in training and test", columns=LESION)
        (self.root / "labels.csv").unlink()
        self.refused("datalist must be an existing file, or a folder of lists")

    def test_list_of_lesions_as_it_is(self):
        root = shared_data("skin_lesions")
        cases = load_masklist(root, root / "labels.csv", LESION)
        with open(root / "labels.csv", newline="") as file:
            masks = {os.path.basename(row["image"]): row["mask"] for row in csv.DictReader(file)}
        listed = [case for section in cases.values() for case in section]
        self.assertEqual({os.path.basename(case["image"]) for case in listed}, set(masks))
        self.assertEqual(len(cases["validation"]), round(0.2 * len(masks)))
        for case in listed:
            self.assertEqual(case["label"], str(root / masks[os.path.basename(case["image"])]))


if __name__ == "__main__":
    unittest.main()
