# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import os
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
from parameterized import parameterized
from utils_data import save_nifti, shared_data, temporary_folder

from monai_dvpt.data import describe_cases, images_sha256, list_sha256, load_datalist
from monai_dvpt.utils import InputError


def entry(name: str) -> dict[str, str]:
    return {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"}


def names(cases: list[dict[str, str]]) -> list[str]:
    return [Path(case["image"]).name.split(".")[0] for case in cases]


class TestLoadDatalist(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self) / "Task99_Organ"
        for folder in ("imagesTr", "labelsTr"):
            (self.root / folder).mkdir(parents=True)

    def touch(self, *cases: str, folders: tuple[str, ...] = ("imagesTr", "labelsTr")) -> None:
        for folder in folders:
            for name in cases:
                (self.root / folder / f"{name}.nii.gz").touch()

    def write(self, content: object, name: str = "datalist.json") -> Path:
        (self.root / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return self.root / name

    def test_lists_are_kept_in_order(self):
        self.touch("a", "b", "c", "d")
        self.write({"training": [entry("c"), entry("a")], "validation": [entry("d")], "labels": {"1": "organ"}})
        cases = load_datalist(self.root)
        self.assertEqual(list(cases), ["training", "validation"])
        expected = {key: str(self.root / path) for key, path in entry("c").items()}
        self.assertEqual(cases["training"][0], expected)
        self.assertEqual((names(cases["training"]), names(cases["validation"])), (["c", "a"], ["d"]))

    def test_case_in_both_parts(self):
        self.touch("a", "b")
        self.write({"training": [entry("a"), entry("b")], "validation": [entry("b")]})
        with self.assertRaisesRegex(InputError, r"must not be in training and validation; listed twice: .*b\.nii\.gz"):
            load_datalist(self.root)

    def test_labels_in_a_folder_of_their_own(self):
        labels = self.root.parent / "drawn"
        labels.mkdir()
        self.touch("a", "b", folders=("imagesTr",))
        for name in "ab":
            (labels / f"{name}.nii.gz").touch()
        lists = [{"image": f"imagesTr/{name}.nii.gz", "label": f"{name}.nii.gz"} for name in "ab"]
        self.write({"training": lists[:1], "validation": lists[1:]})
        cases = load_datalist(self.root, labels_dir=labels)
        self.assertEqual(cases["training"][0]["label"], str(labels / "a.nii.gz"))
        self.assertEqual(cases["training"][0]["image"], str(self.root / "imagesTr" / "a.nii.gz"))
        with self.assertRaisesRegex(InputError, "a.nii.gz"):
            load_datalist(self.root)
        with self.assertRaisesRegex(InputError, "nowhere: labels_dir must be an existing folder"):
            load_datalist(self.root, labels_dir=self.root / "nowhere")

    def test_an_image_of_several_files(self):
        """The files of a DICOM series, beside those of another."""
        self.touch("a", "b")
        for name in "123":
            (self.root / f"{name}.dcm").touch()
        files = ["1.dcm", "2.dcm"]
        series = {**entry("a"), "image": files}
        self.write({"training": [series], "validation": [entry("b")]})
        cases = load_datalist(self.root)
        self.assertEqual(cases["training"][0]["image"], [str(self.root / path) for path in files])
        moved = describe_cases(cases["training"], cases["validation"])
        self.assertEqual((moved["training"], moved["validation"]), (1, 1))
        for image in ([], [1], ["missing.dcm"]):
            self.write({"training": [{**series, "image": image}], "validation": [entry("b")]})
            with (
                self.subTest(image),
                self.assertRaisesRegex(InputError, 'must name an "image"|missing.dcm'),
            ):
                load_datalist(self.root)
        self.write({"training": [series], "validation": [{**entry("b"), "image": [*files[1:], "3.dcm"]}]})
        with self.assertRaisesRegex(InputError, r"listed twice: .*2\.dcm"):
            load_datalist(self.root)

    def test_channels_in_several_files(self):
        self.touch("a", "b")
        files = [f"imagesTr/{name}.nii.gz" for name in "yx"]
        for file in files:
            save_nifti(self.root / file, np.zeros((2, 3, 4), np.uint8))
        self.write({"training": [{**entry("a"), "image": files}], "validation": [entry("b")]})
        (case,) = load_datalist(self.root)["training"]
        self.assertEqual(case["image"], [str(self.root / file) for file in files])
        (self.root / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        self.write({"training": [{**entry("a"), "image": [*files, "x.png"]}], "validation": [entry("b")]})
        with self.assertRaisesRegex(InputError, "one for each channel; case 0 lists nifti and png files"):
            load_datalist(self.root)

    def test_the_digest_of_several_files_survives_a_move(self):
        def of(root: str) -> str:
            case = {"image": [f"{root}/s/1.dcm", f"{root}/s/2.dcm"], "label": f"{root}/l/1.nii.gz"}
            return str(describe_cases([case], [])["sha256"])

        self.assertEqual(of("/one"), of("/other/place"))

    def test_test_cases(self):
        self.touch("a", "b", "c")
        lists = {"training": [entry("a")], "validation": [entry("b")]}
        self.write({**lists, "test": [entry("c")]})
        self.assertEqual(names(load_datalist(self.root)["test"]), ["c"])
        self.write({**lists, "test": [entry("a")]})
        with self.assertRaisesRegex(InputError, "must not be in training and test"):
            load_datalist(self.root)
        self.write({**lists, "test": ["imagesTs/x.nii.gz"]})  # as the Decathlon lists images without labels
        self.assertEqual(list(load_datalist(self.root)), ["training", "validation"])

    def test_calibration_cases(self):
        """Of prediction sets: a third part, apart from the others."""
        self.touch("a", "b", "c", "d")
        lists = {"training": [entry("a"), entry("b")], "validation": [entry("c")], "calibration": [entry("d")]}
        self.write(lists)
        cases = load_datalist(self.root)
        self.assertEqual({part: names(cases[part]) for part in cases}, {k: names(v) for k, v in lists.items()})
        for part, shared in (("training", "a"), ("validation", "c")):
            self.write({**lists, "calibration": [entry("d"), entry(shared)]})
            with self.assertRaisesRegex(InputError, f"must not be in {part} and calibration; listed twice: .*{shared}"):
                load_datalist(self.root)
        self.write({**lists, "calibration": {}})
        with self.assertRaisesRegex(InputError, '"calibration" must be a list'):
            load_datalist(self.root)

    def test_links_where_validation_cases_are_drawn(self):
        """Two names of one scan never end in both parts."""
        self.touch("a", "b", "c")
        (self.root / "imagesTr" / "d.nii.gz").symlink_to("a.nii.gz")
        self.touch("d", folders=("labelsTr",))
        outcomes = set()
        for fraction in (0.2, 0.4, 0.5, 0.7):
            try:
                parts = load_datalist(self.root, validation_fraction=fraction)
                outcomes.add("together")
                self.assertIn({"a", "d"} & {*names(parts["training"])}, (set(), {"a", "d"}))
            except InputError as error:
                outcomes.add("refused")
                self.assertRegex(str(error), r"every file must be there once; listed or linked twice: .*nii\.gz")
        self.assertEqual(outcomes, {"together", "refused"})

    @parameterized.expand([(0,), (1,), (-0.1,)])
    def test_bad_validation_fraction(self, fraction):
        with self.assertRaisesRegex(ValueError, f"validation_fraction must be in \\(0, 1\\), got {fraction}"):
            load_datalist(self.root, validation_fraction=fraction)

    def test_paths_are_absolute(self):
        self.touch("a", "b")
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.root.parent)
        for cases in load_datalist(self.root.name).values():
            for path in cases[0].values():
                self.assertTrue(os.path.isabs(path), path)

    def test_which_list_is_taken(self):
        self.touch("a", "b", "c", "d", "e")
        self.assertEqual(len(sum(load_datalist(self.root).values(), [])), 5)
        self.write({"training": [entry("a")], "validation": [entry("b")]}, "dataset.json")
        self.assertEqual(names(load_datalist(self.root)["training"]), ["a"])
        self.write({"training": [entry("c")], "validation": [entry("b")]}, "datalist.json")
        self.assertEqual(names(load_datalist(self.root)["training"]), ["c"])
        other = self.write({"training": [entry("d")], "validation": [entry("b")]}, "other.json")
        self.assertEqual(names(load_datalist(self.root, other)["training"]), ["d"])

    @parameterized.expand([(0.2, 2), (0.5, 5), (0.01, 1), (0.99, 9)])
    def test_split_is_fixed_and_disjoint(self, fraction, validating):
        self.touch(*"abcdefghij")
        cases = load_datalist(self.root, validation_fraction=fraction)
        self.assertEqual(len(cases["validation"]), validating)
        self.assertEqual(sorted(names(cases["training"] + cases["validation"])), list("abcdefghij"))
        self.assertEqual(cases, load_datalist(self.root, validation_fraction=fraction))

    def test_split_of_a_list_without_validation(self):
        self.touch(*"abcde")
        self.write({"training": [entry(name) for name in "abcde"], "validation": []}, "dataset.json")
        cases = load_datalist(self.root)
        self.assertEqual((len(cases["training"]), len(cases["validation"])), (4, 1))
        (self.root / "dataset.json").unlink()
        self.assertEqual(cases, load_datalist(self.root))

    def test_hidden_files_are_ignored(self):
        self.touch("a", "b")
        self.touch("._a", "._c", folders=("imagesTr",))
        self.assertEqual(sorted(names(sum(load_datalist(self.root).values(), []))), ["a", "b"])

    @parameterized.expand([("imagesTr", "labelsTr"), ("labelsTr", "imagesTr")])
    def test_file_without_partner(self, folder, other):
        self.touch("a", "b")
        self.touch(*"cdefghi", folders=(folder,))
        with self.assertRaises(InputError) as caught:
            load_datalist(self.root)
        listed = ", ".join(f"{name}.nii.gz" for name in "cdefg")
        message = f"{self.root / folder}: no file of the same name in {other} for {listed} and 2 more."
        self.assertEqual(str(caught.exception), message)

    def test_listed_files_that_do_not_exist(self):
        self.touch("a")
        self.touch("b", folders=("imagesTr",))
        self.write({"training": [entry("a"), entry("b")]})
        with self.assertRaisesRegex(InputError, r"do not exist or are no files: \S+labelsTr/b.nii.gz"):
            load_datalist(self.root)

    @parameterized.expand(
        [
            ("invalid JSON", '{"training": [', "datalist.json: is not valid JSON"),
            ("binary", "\x00\x01", "datalist.json: is not valid JSON"),
            ("a list", [], 'datalist.json: must be an object with a list "training"'),
            ("no training", {"validation": []}, 'datalist.json: must be an object with a list "training"'),
            ("training not a list", {"training": {}}, 'datalist.json: must be an object with a list "training"'),
            (
                "validation not a list",
                {"training": [entry("a")], "validation": None},
                'json: "validation" must be a list',
            ),
            ("empty", {"training": []}, "datalist.json: holds no training cases"),
            ("no label", {"training": [entry("a"), {"image": "imagesTr/a.nii.gz"}]}, '"label".*; case 1 is .*imagesTr'),
            ("no image", {"training": [{"label": "labelsTr/a.nii.gz"}]}, 'must name an "image" and .*; case 0 is '),
            ("a name", {"training": ["imagesTr/a.nii.gz"]}, "case 0 is 'imagesTr/a.nii.gz'"),
            ("files that are missing", {"training": [{**entry("a"), "image": ["x", "y"]}]}, r"do not exist .*/x, .*/y"),
            ("one case", {"training": [entry("a")]}, "one case cannot both train and validate"),
        ]
    )
    def test_bad_list(self, _, content, message):
        self.touch("a")
        self.write(content)
        with self.assertRaisesRegex(InputError, message):
            load_datalist(self.root)

    def test_one_pair(self):
        self.touch("a")
        with self.assertRaisesRegex(InputError, "Task99_Organ: one case cannot both train and validate; list at least"):
            load_datalist(self.root)

    def test_no_pairs(self):
        with self.assertRaisesRegex(InputError, "Task99_Organ: holds no training cases"):
            load_datalist(self.root)

    def test_missing_files_and_folders(self):
        with self.assertRaisesRegex(InputError, "nowhere: dataset_dir must be an existing folder"):
            load_datalist(self.root / "nowhere")
        with self.assertRaisesRegex(InputError, "other.json: datalist must be an existing file"):
            load_datalist(self.root, self.root / "other.json")
        (self.root / "labelsTr").rmdir()
        with self.assertRaisesRegex(InputError, "Task99_Organ: must hold datalist.json, dataset.json, or the folders"):
            load_datalist(self.root)

    def test_download(self):
        self.touch("a", "b")
        elsewhere = self.root.parent / "new" / "Task99_Organ"

        def download(root_dir, task, **settings):
            self.assertEqual((Path(root_dir), task), (elsewhere.parent, "Task99_Organ"))
            self.root.rename(Path(root_dir) / task)

        with mock.patch("monai_dvpt.data.datalist.DecathlonDataset", side_effect=download) as dataset:
            load_datalist(self.root, msd_task="Task99_Organ")  # is there already
            with self.assertRaises(InputError):
                load_datalist(self.root.parent / "another_name", msd_task="Task99_Organ")
            dataset.assert_not_called()
            self.assertEqual(len(load_datalist(elsewhere, msd_task="Task99_Organ")["validation"]), 1)
            dataset.assert_called_once()

    def test_real_split(self):
        cases = load_datalist(shared_data("msd_hippocampus"))
        self.assertEqual((len(cases["training"]), len(cases["validation"])), (160, 40))
        for key in ("image", "label"):
            training, validation = ({case[key] for case in cases[part]} for part in ("training", "validation"))
            self.assertEqual((len(training), len(validation)), (160, 40))
            self.assertFalse(training & validation)

    @parameterized.expand([("symbolic",), ("hard",), ("folder",), ("files of a folder",)])
    def test_one_scan_under_two_names(self, kind):
        """A link is the scan that it leads to, so a model must not be validated on it."""
        self.touch("a", "b")
        images = self.root / "imagesTr"
        if kind == "symbolic":
            (images / "c.nii.gz").symlink_to("a.nii.gz")
        elif kind == "hard":
            os.link(images / "a.nii.gz", images / "c.nii.gz")
        else:
            (images / "a").mkdir()
            (images / "a" / "1.dcm").write_bytes(b"a slice")
        if kind == "folder":
            (images / "c").symlink_to("a")
        elif kind == "files of a folder":
            (images / "c").mkdir()
            (images / "c" / "2.dcm").symlink_to("../a/1.dcm")
        suffix = "" if "folder" in kind else ".nii.gz"
        training, validation = (
            {"image": f"imagesTr/{name}{suffix}", "label": f"labelsTr/{label}.nii.gz"} for name, label in ("aa", "cb")
        )
        self.write({"training": [training], "validation": [validation]})
        with self.assertRaisesRegex(InputError, "must not be in training and validation; listed twice: .*imagesTr/c"):
            load_datalist(self.root)


class TestDescribeCases(unittest.TestCase):
    TRAINING = [{"image": "/a/b/1.nii", "label": "/a/c/1.nii"}, {"image": "/a/b/2.nii", "label": "/a/c/2.nii"}]
    VALIDATION = [{"image": "/a/b/3.nii", "label": "/a/c/3.nii"}]

    def test_counts_different_images(self):
        found = describe_cases(self.TRAINING * 3, self.VALIDATION)
        self.assertEqual((found["training"], found["validation"]), (2, 1))
        self.assertEqual(describe_cases(self.TRAINING, [])["validation"], 0)
        self.assertEqual(describe_cases([], [])["training"], 0)

    def test_images_alone(self):
        def found(*images) -> str | None:
            return images_sha256([{"image": image, "label": len(str(image))} for image in images])

        here = found("/a/x/1.nii", "/a/x/2.nii")
        self.assertEqual(here, found("/b/1.nii", "/b/2.nii"))
        self.assertEqual(len(here), 64)
        for other in (
            ("/b/2.nii", "/b/1.nii"),
            ("/b/1.nii",),
            ("/b/1.nii", "/b/3.nii"),
            ("/b/1.nii", "/b/2.nii", "/b/3.nii"),
        ):
            self.assertNotEqual(here, found(*other))
        self.assertEqual(found(["/a/1", "/a/2"], ["/a/3"]), found(["/b/1", "/b/2"], ["/b/3"]))
        self.assertNotEqual(found(["/a/1", "/a/2"], ["/a/3"]), found(["/b/1"], ["/b/2", "/b/3"]))
        self.assertIsNone(images_sha256([]))
        self.assertIsNone(images_sha256([{"image": np.zeros(3)}]))
        self.assertIsNone(images_sha256([3]))

    def test_tells_lists_apart_but_not_where_they_lie(self):
        here = describe_cases(self.TRAINING, self.VALIDATION)["sha256"]
        moved = [
            [{k: v.replace("/a/", "/elsewhere/a/") for k, v in case.items()} for case in part]
            for part in (self.TRAINING, self.VALIDATION)
        ]
        self.assertNotEqual(here, describe_cases(self.TRAINING[::-1], self.VALIDATION)["sha256"])
        self.assertNotEqual(here, describe_cases(self.TRAINING, [])["sha256"])
        self.assertNotEqual(here, describe_cases(self.TRAINING * 2, self.VALIDATION)["sha256"])
        self.assertEqual(here, describe_cases(*moved)["sha256"])


class TestListSha256(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.file = self.folder / "datalist.json"
        self.file.write_text("{}")

    def test_a_list_of_its_own(self):
        self.assertEqual(list_sha256(self.file), hashlib.sha256(b"{}").hexdigest())
        self.assertIsNone(list_sha256("auto"))

    def test_a_folder_of_lists(self):
        lists = self.folder / "lists"
        lists.mkdir()
        for name in ("val", "train"):
            (lists / f"{name}.txt").write_text(name)
        self.assertEqual(list_sha256(lists), hashlib.sha256(b"trainval").hexdigest())

    def test_a_list_that_new_wrote_has_the_hash_of_its_data(self):
        facts = {"sha256": "of the data", "file_sha256": hashlib.sha256(b"{}").hexdigest()}
        (self.folder / "check.json").write_text(json.dumps({"list": facts}))
        self.assertEqual(list_sha256(self.file), "of the data")
        self.file.write_text("{ }")  # changed by hand
        self.assertEqual(list_sha256(self.file), hashlib.sha256(b"{ }").hexdigest())


if __name__ == "__main__":
    unittest.main()
