# SPDX-License-Identifier: Apache-2.0
"""Measuring cases, the rules, and the split, on small volumes whose truth is plain NumPy."""

from __future__ import annotations

import re
import unittest
from pathlib import Path

import nibabel as nib
import numpy as np
from parameterized import parameterized
from PIL import Image
from utils_data import save_nifti, temporary_folder

from monai_dvpt.apps.new_bundle.check import apply_rules, measure_cases
from monai_dvpt.apps.new_bundle.check.sides import sides_of_one_patient
from monai_dvpt.apps.new_bundle.model import IGNORED, Case, Collection
from monai_dvpt.apps.new_bundle.split import split_cases
from monai_dvpt.utils import InputError

EYE = np.eye(4)
NAMES = {1: "liver", 2: "spleen"}


def reader(label: np.ndarray, names: dict[int, str] = NAMES):
    return lambda image: (label, names)


def volume(seed: int = 0, size: tuple[int, ...] = (6, 7, 8)) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, size).astype(np.float32)


def label_map(size: tuple[int, ...] = (6, 7, 8)) -> np.ndarray:
    label = np.zeros(size, np.uint8)
    label[1:3, 2:5, 2:4], label[4, 4, 4] = 1, 2
    return label


class Look(unittest.TestCase):
    def setUp(self) -> None:
        self.root = temporary_folder(self)

    def case(self, name: str, image: np.ndarray, label: np.ndarray | None, affine=EYE, **facts) -> Case:
        path = save_nifti(self.root / f"{name}.nii.gz", image, affine)
        return Case(name, str(path), None if label is None else reader(label), **facts)

    def cases(self, count: int = 10) -> list[Case]:
        return [self.case(f"case{index}", volume(index), label_map()) for index in range(count)]

    def collection(self, cases: list[Case], **facts) -> Collection:
        given = {"task": "segmentation", "spatial_dims": 3, "labels": ["liver", "spleen"], **facts}
        return Collection(root=self.root, cases=cases, **given)

    def found(self, cases: list[Case], **facts) -> list[tuple[str, str, bool]]:
        collection = self.collection(cases, **facts)
        measured, unread = measure_cases(collection)
        self.assertEqual(len(measured), len(cases))
        return [(each.rule, each.where, each.error) for each in (*unread, *apply_rules(collection, measured))]


class TestMeasure(Look):
    def test_volume(self):
        image, label = volume(), label_map()
        affine = np.array([[0, 0, 4.0, 1], [-2, 0, 0, 2], [0, 3, 0, 3], [0, 0, 0, 1]])  # axes P, S, R
        (each,), findings = measure_cases(self.collection([self.case("a", image, label, affine)]))
        self.assertEqual(findings, [])
        self.assertEqual(each.size, (8, 6, 7))
        np.testing.assert_allclose(each.spacing_mm, (4, 2, 3), rtol=1e-6)
        self.assertEqual(each.voxels, {"liver": 12, "spleen": 1})
        inside = image[label > 0]
        np.testing.assert_allclose([each.mean, each.std], [inside.mean(), inside.std()], rtol=1e-5)
        np.testing.assert_allclose(each.foreground, np.percentile(inside, [0.5, 50, 99.5]), rtol=1e-5)
        np.testing.assert_allclose(each.percentiles, np.percentile(image, [0.5, 50, 99.5]), rtol=1e-5)
        np.testing.assert_allclose(each.range, [image.min(), image.max()])

    def test_a_copy_in_another_orientation_has_the_same_content(self):
        image = volume()
        turned = nib.as_closest_canonical(nib.Nifti1Image(image, np.diag([-1.0, -1, 1, 1])))
        cases = [
            self.case("a", image, None, np.diag([-1.0, -1, 1, 1])),
            self.case("b", np.asarray(turned.dataobj), None, turned.affine),
            self.case("c", image, None),
        ]
        (one, same, other), _ = measure_cases(self.collection(cases))
        self.assertEqual(one.content, same.content)
        self.assertNotEqual(one.content, other.content)

    def test_picture(self):
        pixels = np.random.default_rng(0).integers(0, 255, (5, 9, 3), np.uint8)
        Image.fromarray(pixels).save(self.root / "colour.png")
        Image.fromarray(pixels[..., 0]).save(self.root / "grey.png")
        cases = [Case(name, str(self.root / f"{name}.png"), grades={"g": "1"}) for name in ("colour", "grey")]
        collection = self.collection(cases, task="grading", spatial_dims=2, labels=["0", "1"], outputs=["g"])
        (colour, grey), findings = measure_cases(collection)
        self.assertEqual((colour.size, colour.channels, grey.channels, colour.spacing_mm), ((5, 9), 3, 1, None))
        self.assertEqual((grey.range, findings), ((pixels[..., 0].min(), pixels[..., 0].max()), []))

    def test_ignored_voxels_are_no_foreground(self):
        image, label = volume(), label_map()
        case = self.case("a", image, label)
        case.read_label = reader(label, {1: "liver", 2: IGNORED})
        (each,), _ = measure_cases(self.collection([case]))
        np.testing.assert_allclose(each.mean, image[label == 1].mean(), rtol=1e-5)

    def test_what_cannot_be_read_is_a_finding_without_the_folder(self):
        def refuse(image):
            raise InputError(f"{self.root / 'labels' / 'a.nii.gz'}: must have the size of the image.")

        constant = self.case("b", np.ones((4, 4, 4), np.float32), label_map())
        wrong = self.case("a", volume(), label_map())
        wrong.read_label = refuse
        nameless = self.case("c", volume(), label_map() * 3)
        collection = self.collection([wrong, constant, nameless])
        measured, findings = measure_cases(collection)
        self.assertEqual(measured, [None] * 3)
        self.assertEqual([each.where for each in findings], ["a", "b", "c"])
        self.assertTrue(all(each.error for each in findings))
        self.assertEqual(findings[0].message, "labels/a.nii.gz: must have the size of the image.")
        self.assertIn("must not be constant", findings[1].message)
        self.assertIn("must have a name, got 3", findings[2].message)
        self.assertNotIn(str(self.root), "".join(each.message for each in findings))


class TestRules(Look):
    def test_clean_data_have_no_findings(self):
        self.assertEqual(self.found(self.cases()), [])

    def test_one_case(self):
        self.assertIn(("too few cases", "", True), self.found(self.cases(1)))

    def test_one_class(self):
        cases = self.cases()
        for case in cases:
            case.grades, case.read_label = {"grade": "0"}, None
        collection = Collection("classification", 3, self.root, cases, ["0"], ["grade"])
        found = apply_rules(collection, [None] * len(cases))
        self.assertIn(("one grade", True), [(finding.rule, finding.error) for finding in found])
        collection.labels = ["0", "1"]
        self.assertNotIn("one grade", [finding.rule for finding in apply_rules(collection, [None] * len(cases))])

    def test_cases_of_one_patient(self):
        cases = self.cases()
        for case in cases:
            case.patient = "p"
        self.assertIn(("too few cases", "", True), self.found(cases))

    def test_few_cases(self):
        self.assertEqual(self.found(self.cases(9)), [("few cases", "", False)])

    def test_image_without_label(self):
        self.assertEqual(self.found([*self.cases(), self.case("x", volume(99), None)]), [("no label", "x", False)])

    @parameterized.expand([("empty label", 0), ("label covers the image", 1)])
    def test_label_that_is_everywhere_or_nowhere(self, rule, value):
        odd = self.case("x", volume(99), np.full((6, 7, 8), value, np.uint8))
        self.assertEqual(self.found([*self.cases(), odd]), [(rule, "x", False)])

    def test_label_in_few_cases_in_none_and_left_out(self):
        cases = self.cases()
        for case in cases[2:]:
            case.read_label = reader(np.minimum(label_map(), 1))
        self.assertEqual(self.found(cases), [("label in few cases", "spleen", False)])
        self.assertIn(("label without voxels", "kidney", True), self.found(cases, labels=["liver", "spleen", "kidney"]))
        self.assertEqual(self.found(cases, labels=["liver"]), [("label left out", "", False)])

    def test_copies(self):
        cases = self.cases()
        same = self.case("same", volume(0), label_map())
        other = self.case("other", volume(1), np.roll(label_map(), 1))
        self.assertEqual(self.found([*cases, same, other]), [("copy", "same", False), ("copies differ", "other", True)])

    @parameterized.expand([("unusual spacing", (6, 7, 8), 2.5), ("unusual size", (6, 15, 8), 1.0)])
    def test_far_from_the_median(self, rule, size, spacing):
        odd = self.case("x", volume(99, size), label_map(size), np.diag([1, 1, spacing, 1]))
        self.assertEqual(self.found([*self.cases(), odd]), [(rule, "x", False)])

    def test_modalities(self):
        cases = self.cases()
        for case in cases:
            case.modality = "MR"
        self.assertEqual(self.found(cases), [])
        cases[0].modality = "CT"
        cases[0].image = str(save_nifti(self.root / "ct.nii", np.abs(volume(99)), np.eye(4)))
        found = self.found(cases)
        self.assertEqual(found, [("no Hounsfield units", "case0", False), ("several modalities", "", True)])

    def test_patient_in_two_parts(self):
        cases = self.cases()
        for case, part in zip(cases, ["training", "validation"], strict=False):
            case.patient, case.part = "p", part
        self.assertEqual(self.found(cases), [("patient in two parts", "case1", True)])

    @parameterized.expand(
        [
            ("CHASE", ["Image_01L.jpg Image_01R.jpg", "Image_02R.jpg Image_02L.jpg", "Image_03L.jpg"]),
            ("words", ["a/p1_left.png a/p1_right.png", "b/p1_left.png b/p1_right.png", "b/other.png"]),
            ("eyes", ["7-OD.png 7-OS.png", "8-OD.png 8-OS.png", "8-OS-2.png"]),
            ("first", ["eyes/R_7.png eyes/L_7.png", "eyes/R_8.png eyes/L_8.png"]),
            ("folders", ["p1/l.png p1/r.png", "p2/l.png p2/r.png"]),
            ("inside", ["p1_L_a.png p1_R_a.png", "p2_L_b.png p2_R_b.png"]),
            ("volumes", ["p1_L.nii.gz p1_R.nii.gz"]),
        ]
    )
    def test_sides_that_may_be_of_one_patient(self, _, patients):
        pairs = {frozenset(patient.split()) for patient in patients if " " in patient}
        names = [name for patient in patients for name in patient.split()]
        cases = [Case(name, str(self.root / name), grades={"grade": "1"}) for name in names]
        finding = sides_of_one_patient(self.collection(cases, task="grading"))
        self.assertTrue(finding.message.startswith(f"{len(pairs)} pairs of names differ by a side"), finding.message)
        self.assertFalse(finding.error)
        pattern = re.search("--patient-pattern '(.*)'", finding.message)[1]
        groups = {}
        for name in names:
            if match := re.search(pattern, name):
                groups.setdefault(match[1], set()).add(name)
        self.assertEqual({frozenset(group) for group in groups.values() if len(group) > 1}, pairs)

    def test_names_that_are_no_sides(self):
        names = ["Image_01L.jpg", "Image_02R.jpg", "model.png", "moder.png", "xl.png", "xr.png", "01left.png"]
        cases = [Case(name, str(self.root / name)) for name in names]
        self.assertIsNone(sides_of_one_patient(self.collection(cases)))
        known = [Case(name, str(self.root / name), patient="p") for name in ("1L.png", "1R.png")]
        self.assertIsNone(sides_of_one_patient(self.collection(known)))

    def test_grades(self):
        cases = [self.case(f"case{i}", volume(i), None, grades={"g": str(min(i // 4, 2))}) for i in range(11)]
        cases[-1].grades = {"g": "3"}
        facts = {"task": "grading", "labels": list("01234"), "outputs": ["g"]}
        expected = [("grade in few cases", name, False) for name in ("g 2", "g 3")]
        self.assertEqual(self.found(cases, **facts), [*expected, ("grade without cases", "g 4", False)])


class TestSplit(Look):
    def graded(self, count: int, patients: int | None = None) -> Collection:
        cases = [
            self.case(f"c{i}", volume(i, (2, 2, 2)), None, grades={"g": str(int(i % 10 == 0))}) for i in range(count)
        ]
        for index, case in enumerate(cases if patients else []):
            case.patient = f"p{index % patients}"
        return self.collection(cases, task="grading", labels=["0", "1"], outputs=["g"])

    def test_shares_and_rare_grades(self):
        collection = self.graded(100)
        parts = split_cases(collection, measure_cases(collection)[0])
        self.assertEqual(sorted(index for part in parts.values() for index in part), list(range(100)))
        self.assertEqual({part: len(indices) for part, indices in parts.items()}, {"training": 80, "validation": 20})
        self.assertEqual(sum(collection.cases[index].grades["g"] == "1" for index in parts["validation"]), 2)

    def test_calibration_cases_of_a_large_set(self):
        collection = self.graded(300)
        parts = split_cases(collection, measure_cases(collection)[0])
        counts = {part: len(indices) for part, indices in parts.items()}
        self.assertEqual(counts["validation"], 60)
        self.assertAlmostEqual(counts["calibration"], 45, delta=1)

    def test_patients_and_copies_stay_together(self):
        collection = self.graded(60, patients=15)
        collection.cases.append(self.case("copy", volume(0, (2, 2, 2)), None, grades=collection.cases[0].grades))
        parts = split_cases(collection, measure_cases(collection)[0])
        part_of = {index: part for part, indices in parts.items() for index in indices}
        for patient in range(15):
            self.assertEqual(len({part_of[index] for index in range(60) if index % 15 == patient}), 1)
        self.assertEqual(part_of[60], part_of[0])
        self.assertTrue(9 <= len(parts["validation"]) <= 17, parts)

    def test_two_cases(self):
        collection = self.collection(self.cases(2))
        parts = split_cases(collection, measure_cases(collection)[0])
        self.assertEqual([len(parts[part]) for part in ("training", "validation")], [1, 1])

    def test_parts_that_the_data_state(self):
        collection = self.collection(self.cases(5))
        for case, part in zip(collection.cases, ["training", "validation", "test", "training", ""], strict=True):
            case.part = part
        parts = split_cases(collection, measure_cases(collection)[0])
        self.assertEqual(parts, {"training": [0, 3, 4], "validation": [1], "test": [2]})

    def test_training_alone_gets_a_validation_part(self):
        collection = self.collection(self.cases(10))
        for case in collection.cases:
            case.part = "training"
        parts = split_cases(collection, measure_cases(collection)[0])
        self.assertEqual([len(parts[part]) for part in ("training", "validation")], [8, 2])

    def test_cases_of_before_keep_their_part(self):
        collection = self.graded(20, patients=10)
        measured = measure_cases(collection)[0]
        first = split_cases(collection, measured)
        before = {measured[i].content: part for part, indices in first.items() for i in indices}
        more = self.graded(40, patients=10)
        for index in range(20):
            more.cases[index].image = collection.cases[index].image
        again = split_cases(more, measure_cases(more)[0], before)
        for part, indices in first.items():
            self.assertLessEqual(set(indices), set(again[part]))
        # new images of a patient of before go where the patient is
        part_of = {index: part for part, indices in again.items() for index in indices}
        self.assertTrue(all(part_of[index] == part_of[index + 20] for index in range(20)))

    def test_unread_and_unlabelled_cases_are_in_no_part(self):
        cases = [*self.cases(4), self.case("x", volume(9), None)]
        cases[0].image = str(Path(self.root / "missing.nii"))
        collection = self.collection(cases)
        parts = split_cases(collection, measure_cases(collection)[0])
        self.assertEqual(sorted(index for part in parts.values() for index in part), [1, 2, 3])


if __name__ == "__main__":
    unittest.main()
