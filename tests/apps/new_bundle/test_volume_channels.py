# SPDX-License-Identifier: Apache-2.0
"""Folders of volumes of several channels, in the layouts that users have; nibabel and NumPy say what is right."""

from __future__ import annotations

import json
import shutil
import unittest
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK
from parameterized import parameterized
from utils_bundles import workflow
from utils_data import AFFINE_RAS, save_dicom, save_nifti, temporary_folder

from monai_dvpt.apps.new_bundle.check import apply_rules, load_image, measure_cases
from monai_dvpt.apps.new_bundle.collect import collect
from monai_dvpt.apps.new_bundle.collect.volumes import collect_volumes
from monai_dvpt.apps.new_bundle.modalities import modality_of
from monai_dvpt.apps.new_bundle.model import Collection, Options
from monai_dvpt.apps.new_bundle.plan import make_plan
from monai_dvpt.apps.new_bundle.write import update_lists, write_bundle
from monai_dvpt.utils import InputError

SIZE = (18, 17, 20)
NAMES = ("FLAIR", "t1gd")
CASES = ("p1", "p2", "p3")
LISTED = {"channel_names": {"0": "FLAIR", "1": "t1gd"}, "labels": {"background": 0, "tumour": 1}}


def volume(case: str, channel: str) -> np.ndarray:
    seed = list(case.encode()) + list(channel.casefold().encode())
    return np.random.default_rng(seed).normal(100, 20, SIZE).astype(np.float32)


def label_map(case: str) -> np.ndarray:
    label = np.zeros(SIZE, np.uint8)
    label[2 : 8 + CASES.index(case), 3:9, 4:12] = 1
    return label


class ChannelFolders(unittest.TestCase):
    def setUp(self) -> None:
        self.root = temporary_folder(self)

    def save(self, name: str, values: np.ndarray, affine: np.ndarray = AFFINE_RAS) -> Path:
        path = self.root / name
        if path.suffix != ".nrrd":
            return save_nifti(path, values, affine)
        path.parent.mkdir(parents=True, exist_ok=True)
        image = SimpleITK.GetImageFromArray(values.transpose(2, 1, 0))
        lps = np.diag([-1, -1, 1, 1]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        SimpleITK.WriteImage(image, str(path))
        return path

    def write_list(self, content: dict) -> None:
        (self.root / "dataset.json").write_text(json.dumps(content))

    def save_cases(self, of_channel: str, of_label: str, names: dict[str, str]) -> None:
        """A file for each channel; the names have the channel as the files spell it."""
        for case in CASES:
            for spelled, name in names.items():
                self.save(of_channel.format(case, spelled), volume(case, name))
            self.save(of_label.format(case), label_map(case))

    def collect(self, *channels: str) -> Collection:
        collection = collect_volumes(self.root, Options(secret=b"of this bundle", channels=channels))
        self.assertIsNotNone(collection)
        return collection

    def assert_channels(self, collection: Collection, names: tuple[str, ...]) -> None:
        """Every case has these channels, in this order, and its own label."""
        self.assertEqual(([str(each) for each in collection.findings], len(collection.cases)), ([], len(CASES)))
        self.assertEqual(collection.channels, list(names))
        for case, name in zip(collection.cases, CASES, strict=True):
            self.assertIn(name, case.name)
            image = load_image(case, 3, collection.channels, collection.file_channels)
            np.testing.assert_array_equal(image, np.stack([volume(name, channel) for channel in names]))
            label, found = case.read_label(image)
            np.testing.assert_array_equal(label, label_map(name))
            self.assertEqual(len(found), 1)

    def errors(self, collection: Collection) -> list[tuple[str, str, str]]:
        return [(each.rule, each.where, each.message) for each in collection.findings if each.error]


class TestLayouts(ChannelFolders):
    def test_nnunet(self):
        numbers = {"0000": "FLAIR", "0001": "t1gd"}
        self.save_cases("imagesTr/{}_{}.nii.gz", "labelsTr/{}.nii.gz", numbers)
        self.write_list(LISTED)
        self.assert_channels(self.collect(), NAMES)
        self.assert_channels(self.collect("T1gd", "flair"), NAMES[::-1])
        self.assert_channels(self.collect("t1gd"), NAMES[1:])

    def test_nnunet_with_cases(self):
        self.save_cases("imagesTr/{}_{}.nii.gz", "labelsTr/{}.nii.gz", {"0000": "FLAIR", "0001": "t1gd"})
        pairs = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in CASES]
        self.write_list({**LISTED, "training": pairs})
        collection = self.collect()
        self.assert_channels(collection, NAMES)
        self.assertEqual({case.part for case in collection.cases}, {"training"})
        self.assertEqual({case.modality for case in collection.cases}, {"MR"})

    def test_nnunet_whose_cases_have_numbers(self):
        """A label whose number looks like that of a channel."""
        for number in (0, 1):
            self.save(f"labelsTr/case_000{number}.nii.gz", label_map("p1"))
            for channel, name in enumerate(NAMES):
                self.save(f"imagesTr/case_000{number}_000{channel}.nii.gz", volume("p1", name))
        self.write_list(LISTED)
        collection = self.collect()
        self.assertEqual(collection.findings, [])
        files = [[Path(path).name for path in case.image] for case in collection.cases]
        self.assertEqual(files, [[f"case_000{n}_000{channel}.nii.gz" for channel in (0, 1)] for n in (0, 1)])

    @parameterized.expand(
        [
            ("{0}/{1}.nii.gz", "{0}/seg.nii.gz"),
            ("{0}/{0}_{1}.nii.gz", "{0}/{0}_seg.nii.gz"),
            ("{0}/{0}-{1}.nrrd", "{0}/{0}-seg.nrrd"),
            ("{0}_{1}.nii.gz", "{0}_seg.nii.gz"),
            ("{1}_{0}.nii.gz", "seg_{0}.nii.gz"),
            ("images/{0}/{1}.nii.gz", "labels/{0}.nii.gz"),
        ]
    )
    def test_a_file_for_each_sequence(self, of_channel, of_label):
        self.save_cases(of_channel, of_label, {"flair": "FLAIR", "T1GD": "t1gd", "t2": "t2"})
        collection = self.collect("t1gd", "flair")
        (note,) = collection.findings
        self.assertEqual((note.rule, note.error), ("other channels", False))
        self.assertIn("3 volumes beside the channels", note.message)
        collection.findings = []
        self.assertEqual(collection.channels, ["t1gd", "flair"])
        self.assert_channels(collection, ("t1gd", "flair"))

    def test_the_order_is_asked_for(self):
        self.save_cases("{}/{}.nii.gz", "{}/seg.nii.gz", {"flair": "FLAIR", "t1": "t1"})
        collection = self.collect()
        self.assertEqual(collection.cases, [])
        for rule, where, message in self.errors(collection):
            self.assertEqual((rule, Path(where).name), ("several images", "seg.nii.gz"))
            self.assertIn("--channels A,B", message)

    def test_one_file_with_all(self):
        for case in CASES:
            self.save(f"imagesTr/{case}.nii.gz", np.stack([volume(case, name) for name in NAMES], -1))
            self.save(f"labelsTr/{case}.nii.gz", label_map(case))
        self.write_list({"modality": {"1": "t1gd", "0": "FLAIR"}, "labels": {"1": "tumour"}})
        self.assert_channels(self.collect(), NAMES)
        self.assert_channels(self.collect("t1gd"), NAMES[1:])
        self.assert_channels(self.collect("t1gd", "flair"), NAMES[::-1])
        (self.root / "dataset.json").unlink()
        self.assert_channels(self.collect(*NAMES), NAMES)
        collection = self.collect()
        self.assertEqual([rule for rule, _, _ in self.errors(collection)], ["several channels"] * 3)
        self.assertIn("has 2 channels; if they are channels of all cases", collection.findings[0].message)

    def test_one_channel_of_a_case(self):
        self.save_cases("{}/{}.nii.gz", "{}/seg.nii.gz", {"flair": "FLAIR", "t1": "t1"})
        collection = self.collect("t1")
        self.assertEqual([[Path(path).name for path in case.image] for case in collection.cases], [["t1.nii.gz"]] * 3)
        self.assertEqual(self.errors(collection), [])


class TestFindings(ChannelFolders):
    def test_a_missing_channel(self):
        self.save_cases("{}/{}.nii.gz", "{}/seg.nii.gz", {"flair": "FLAIR", "t1gd": "t1gd"})
        (self.root / "p2" / "flair.nii.gz").unlink()
        collection = self.collect(*NAMES)
        self.assertEqual([case.name for case in collection.cases], ["p1", "p3"])
        ((rule, where, message),) = self.errors(collection)
        self.assertEqual((rule, where), ("missing channel", "p2/t1gd.nii.gz"))
        self.assertIn("must have the channels FLAIR, t1gd; without FLAIR", message)
        self.assertIn("--leave-out", message)
        self.assertIn("--channels t1gd", message)
        self.assertTrue(collection.findings[0].dropped)

    def test_a_case_of_one_channel_among_files_with_all(self):
        for case in CASES:
            values = np.stack([volume(case, name) for name in NAMES], -1)
            self.save(f"imagesTr/{case}.nii.gz", values if case != "p3" else values[..., 0])
            self.save(f"labelsTr/{case}.nii.gz", label_map(case))
        self.write_list(LISTED)
        ((rule, where, message),) = self.errors(self.collect())
        self.assertEqual((rule, where), ("missing channel", "imagesTr/p3.nii.gz"))
        self.assertIn("has 1 without a name", message)

    def test_another_sequence_is_not_taken_for_the_missing_one(self):
        self.save_cases("{}/{}.nii.gz", "{}/seg.nii.gz", {"flair": "FLAIR", "t1": "t1"})
        (self.root / "p2" / "t1.nii.gz").unlink()
        collection = self.collect("t1")
        self.assertEqual([case.name for case in collection.cases], ["p1", "p3"])
        ((rule, where, message),) = self.errors(collection)
        self.assertEqual((rule, where), ("missing channel", "p2/flair.nii.gz"))
        self.assertIn("must have the channels t1", message)

    def test_names_that_say_two_channels(self):
        self.save_cases("imagesTr/{}_{}.nii.gz", "labelsTr/{}.nii.gz", {"0000": "FLAIR", "0001": "t1gd"})
        for number in (0, 1):
            self.save(f"imagesTr/flair_000{number}.nii.gz", volume("p1", NAMES[number]))
        self.save("labelsTr/flair.nii.gz", label_map("p1"))
        self.write_list(LISTED)
        ((rule, where, message),) = self.errors(self.collect())
        self.assertEqual((rule, where), ("missing channel", "imagesTr/flair_0000.nii.gz"))
        self.assertIn("must say one channel", message)

    def test_options(self):
        self.save_cases("imagesTr/{}_{}.nii.gz", "labelsTr/{}.nii.gz", {"0000": "FLAIR", "0001": "t1gd"})
        self.write_list(LISTED)
        with self.assertRaisesRegex(InputError, "--channels must be of FLAIR,t1gd, as dataset.json .*got 't2'"):
            self.collect("flair", "t2")
        with self.assertRaisesRegex(InputError, "--channels must name each channel once"):
            self.collect("flair", "FLAIR")
        self.write_list({**LISTED, "channel_names": {"0": "a", "1": "A"}})
        self.assertIn(("list cannot be used", "dataset.json"), [each[:2] for each in self.errors(self.collect("a"))])

    def test_numbers_that_no_list_names(self):
        self.save_cases("imagesTr/{}_{}.nii.gz", "labelsTr/{}.nii.gz", {"0000": "FLAIR", "0001": "t1gd"})
        for channels in (("flair",), ("t1gd", "flair"), ("0000", "0001")):
            with self.assertRaisesRegex(InputError, '"channel_names": .*"0": "t1".* the numbers 0000, 0001'):
                self.collect(*channels)

    def test_names_with_signs(self):
        self.save_cases("{}/{}.nii.gz", "{}/seg.nii.gz", {"T2": "t2", "T1": "t1"})
        with self.assertRaisesRegex(InputError, r"--channels: names of channels must .*'T2\*'"):
            self.collect("T2*", "T1")
        self.write_list({"channel_names": {"0": "T1", "1": "T1+"}})
        with self.assertRaisesRegex(InputError, r"dataset.json: names of channels must .*'T1\+'"):
            self.collect()

    def test_a_channel_that_no_case_has(self):
        self.save_cases("{}/{}.nii.gz", "{}/seg.nii.gz", {"flair": "FLAIR", "t1": "t1"})
        for _, _, message in (errors := self.errors(self.collect("flair", "t2"))):
            self.assertNotIn("--leave-out", message)
            self.assertIn("--channels flair", message)
        self.assertEqual(len(errors), len(CASES))

    def test_an_update_keeps_the_order_in_files(self):
        bundle = self.root / "bundle"
        (bundle / "configs").mkdir(parents=True)
        (bundle / "configs/train.yaml").write_text("channels: [b]\nfile_channels: [a, b]\nlabels: [x]\n")
        changed = Collection("segmentation", 3, self.root, [], ["x"], channels=["b"], file_channels=["b", "a"])
        with self.assertRaisesRegex(InputError, r"inside files must stay .*'a', 'b'.* have \['b', 'a'\]"):
            update_lists(bundle, changed, [], {})

    def test_pictures_and_grades_have_no_channels(self):
        for name in "ab":
            for index in range(2):
                self.save(f"{name}/{index}.nii.gz", volume("p1", f"{name}{index}"))
        with self.assertRaisesRegex(InputError, "--channels must be of volumes that are segmented"):
            collect(self.root, Options(task="classification", channels=("a", "b")))

    def test_dicom_series_are_no_channels(self):
        numbers = np.random.default_rng(0).integers(0, 300, (6, 7, 8)).astype(np.uint16)
        save_dicom(self.root / "study" / "series", numbers, np.eye(3), np.zeros(3), (1.0, 1.0, 1.2))
        affine = np.diag([-1, -1, 1.2, 1.0])
        self.save("study/series_seg.nii.gz", (numbers > 150).astype(np.uint8), affine)
        ((rule, _, message),) = self.errors(self.collect("t1", "t2"))
        self.assertEqual(rule, "series are no channels")
        self.assertIn("must be NIfTI, NRRD or MetaImage files, as case/t1.nii.gz or in the layout of nnU-Net", message)


class TestMeasurements(ChannelFolders):
    def save_two_grids(self) -> None:
        self.save_cases("{}/{}.nii.gz", "{}/seg.nii.gz", {"ct": "ct"})
        affine = AFFINE_RAS @ np.diag([0.5, 0.5, 0.5, 1.0])
        affine[:3, 3] += AFFINE_RAS[:3, :3] @ [0.1, 0.1, 0.1]
        for case in CASES:
            image = nib.load(self.root / case / "ct.nii.gz")
            self.save(f"{case}/ct.nii.gz", 10 * np.asarray(image.dataobj) - 1800)
            fine = np.random.default_rng(3).normal(50, 5, [2 * side for side in SIZE])
            self.save(f"{case}/pet.nii.gz", fine.astype(np.float32), affine if case != "p2" else AFFINE_RAS)

    def test_other_grids_and_rules_of_intensity(self):
        self.save_two_grids()
        collection = self.collect("ct", "pet")
        measured, found = measure_cases(collection)
        self.assertEqual(found, [])
        for each, name in zip(measured, CASES, strict=True):
            self.assertEqual((each.channels, len(each.by_channel)), (2, 2))
            values = np.asarray(nib.load(self.root / name / "ct.nii.gz").dataobj)
            inside = values[label_map(name) > 0]
            np.testing.assert_allclose(each.by_channel[0].foreground, np.percentile(inside, [0.5, 50, 99.5]), rtol=1e-4)
            self.assertEqual(each.foreground, each.by_channel[0].foreground)
            self.assertLess(abs(each.by_channel[1].mean - 50), 1)
        findings = apply_rules(collection, measured)
        self.assertNotIn("no Hounsfield units", [each.rule for each in findings])
        collection.channels.reverse()  # as if the other were the CT
        self.assertIn("no Hounsfield units", [each.rule for each in apply_rules(collection, measured)])
        collection.channels.reverse()
        (finding,) = [each for each in findings if each.rule == "channel on another grid"]
        self.assertEqual((finding.where, finding.error), ("pet", False))
        self.assertIn("in 3 of 3 cases it is resampled by its header to the grid of ct", finding.message)
        plan = make_plan(collection, measured, {"training": [0, 1], "validation": [2]}, None, None)
        rules = plan["intensity"]["channels"]
        self.assertEqual([rules[name]["rule"] for name in ("ct", "pet")], ["range", "z-score"])
        both = [np.asarray(nib.load(self.root / name / "ct.nii.gz").dataobj)[label_map(name) > 0] for name in CASES[:2]]
        low = np.median([np.percentile(values, 0.5) for values in both])
        self.assertLessEqual(abs(rules["ct"]["low"] - low), 1)
        bundle = self.root.parent / f"{self.root.name}_bundle"
        self.addCleanup(shutil.rmtree, bundle, ignore_errors=True)
        write_bundle(bundle, collection, measured, plan, {"training": [0, 1], "validation": [2]})
        self.check_values(bundle, rules["ct"])

    def check_values(self, bundle: Path, window: dict) -> None:
        """What the written transforms make of a case, up to the rule for intensities."""
        train = workflow(bundle, "train", "train").parser
        steps = train.get_parsed_content("train#deterministic_transforms")
        case = train.get_parsed_content("cases")["validation"][0]
        for step in steps[:4]:
            case = step(case)
        ct, pet = case["image"].numpy()
        given = np.asarray(nib.load(self.root / "p3" / "ct.nii.gz").dataobj)
        expected = np.clip((given - window["low"]) / (window["high"] - window["low"]), 0, 1)
        np.testing.assert_allclose(np.sort(ct.ravel()), np.sort(expected.ravel()), atol=1e-4)
        np.testing.assert_allclose([pet.mean(), pet.std()], [0, 1], atol=1e-3)
        settings = json.loads((bundle / "configs/metadata.json").read_text())["network_data_format"]["inputs"]["image"]
        self.assertEqual(settings["channel_def"], {"0": "ct", "1": "pet"})
        self.assertEqual((settings["format"], settings["value_range"]), ("hounsfield", []))

    def test_a_channel_elsewhere(self):
        self.save_cases("{}/{}.nii.gz", "{}/seg.nii.gz", {"a": "a", "b": "b"})
        affine = AFFINE_RAS.copy()
        affine[0, 3] += 500
        self.save("p2/b.nii.gz", volume("p2", "b"), affine)
        _, found = measure_cases(self.collect("a", "b"))
        self.assertEqual([(each.where, each.error) for each in found], [("p2", True)])
        self.assertIn("b.nii.gz: its field of view must hold at least 90%", found[0].message)

    def test_modalities(self):
        for name, modality in (("T1w", "MR"), ("ADC", "MR"), ("CT", "CT"), ("PET", "PT"), ("CT PET", ""), ("x", "")):
            self.assertEqual(modality_of(name), modality, name)


if __name__ == "__main__":
    unittest.main()
