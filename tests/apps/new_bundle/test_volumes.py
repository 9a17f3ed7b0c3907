# SPDX-License-Identifier: Apache-2.0
"""Volumes with segmentations in folders of many shapes; nibabel and plain bytes say what is right."""

from __future__ import annotations

import json
import shutil
import unittest
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK
from parameterized import parameterized
from utils_data import AFFINE_RAS, PATIENT, dice, save_nifti, shared_data, temporary_folder
from utils_segmentations import ORGANS, read_hippocampus, save_itk, save_on_series, save_series, save_slicer

from monai_dvpt.apps.new_bundle.check import load_image, measure_cases
from monai_dvpt.apps.new_bundle.collect.volumes import collect_volumes
from monai_dvpt.apps.new_bundle.model import IGNORED, Case, Collection, Options
from monai_dvpt.data.dicom import series
from monai_dvpt.utils import InputError

SIZE = (8, 9, 7)
HIPPOCAMPUS = ("hippocampus_001", "hippocampus_004")


def image(seed: int = 0, size: tuple[int, ...] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, size).astype(np.float32)


def label_map(*values: int, size: tuple[int, ...] = SIZE) -> np.ndarray:
    """A row of voxels of each value, nothing symmetric."""
    label = np.zeros(size, np.uint8)
    for row, value in enumerate(values, 1):
        label[1 : 3 + row, row, 2:4] = value
    return label


def canonical(values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    turned = nib.as_closest_canonical(nib.Nifti1Image(values.astype(np.uint8), affine))
    return np.asarray(turned.dataobj), turned.affine


class Volumes(unittest.TestCase):
    def setUp(self) -> None:
        self.root = temporary_folder(self)

    def collect(self, **options) -> Collection:
        collection = collect_volumes(self.root, Options(secret=b"of this bundle", **options))
        self.assertIsNotNone(collection)
        self.assertEqual((collection.task, collection.spatial_dims, collection.root), ("segmentation", 3, self.root))
        return collection

    def read(self, case: Case) -> tuple[np.ndarray, dict[int, str]]:
        return case.read_label(load_image(case, 3))

    def by_name(self, case: Case) -> dict[str, int]:
        """Voxels of each name."""
        label, names = self.read(case)
        return {name: int((label == value).sum()) for value, name in names.items()}

    def rules(self, collection: Collection) -> list[tuple[str, str, bool]]:
        return [(each.rule, each.where, each.error) for each in collection.findings]

    def save(self, name: str, values: np.ndarray, affine: np.ndarray = AFFINE_RAS) -> Path:
        path = self.root / name
        if name.endswith((".nii", ".nii.gz")):
            return save_nifti(path, values, affine)
        return save_itk(path, values, affine)


class TestLayouts(Volumes):
    @parameterized.expand(
        [
            ("images/{}.nii.gz", "labels/{}.nii.gz"),
            ("image/{}.nii.gz", "mask/{}.nii.gz"),
            ("imagesTr/{}.nii.gz", "labelsTr/{}.nii.gz"),
            ("imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"),
            ("train/images/{}.nrrd", "train/ground_truth/{}.nrrd"),
            ("scans/{}.nii.gz", "by_hand/{}.nii.gz"),
            ("{}.nii.gz", "{}_seg.nii.gz"),
            ("{}.nrrd", "{}-label.nrrd"),
            ("{}.mha", "seg_{}.mha"),
            ("volume-{}.nii", "segmentation-{}.nii"),
            ("{}/image.nii.gz", "{}/segmentation.nii.gz"),
            ("{}/ct.nii.gz", "{}/label.nrrd"),
            ("{}_ct.nii.gz", "{}_seg.nii.gz"),
            ("{}/some scan.nii.gz", "{}/mask.nii.gz"),
            ("a/{}.nii.gz", "b/{}.nii.gz"),
        ]
    )
    def test_pairs(self, of_image, of_label):
        names = ["case1", "case2", "case10"]
        for index, name in enumerate(names):
            self.save(of_image.format(name), image(index))
            self.save(of_label.format(name), label_map(*range(1, 2 + index)))
        collection = self.collect()
        self.assertEqual(collection.findings, [])
        self.assertEqual(len(collection.cases), 3)
        self.assertEqual(collection.labels, ["1", "2", "3"])
        for case in collection.cases:
            index = next(i for i, name in enumerate(names) if Path(case.image) == self.root / of_image.format(name))
            label, found = self.read(case)
            np.testing.assert_array_equal(label, label_map(*range(1, 2 + index)))
            self.assertEqual(found, {value: str(value) for value in range(1, 2 + index)})
            self.assertIsNone(case.labelled)
            self.assertEqual(case.patient, "")
        self.assertEqual(len({case.name for case in collection.cases}), 3)
        self.assertEqual(measure_cases(collection)[1], [])

    def test_one_file_per_label_and_case(self):
        for index, organs in enumerate([["liver", "vertebrae_L1"], ["liver"]]):
            self.save(f"s{index}/ct.nii.gz", image(index))
            for row, organ in enumerate(organs):
                self.save(f"s{index}/segmentations/{organ}.nii.gz", label_map(*[0] * row, 1))
        collection = self.collect()
        self.assertEqual((collection.findings, collection.labels), ([], ["liver", "vertebrae_L1"]))
        self.assertEqual([case.labelled for case in collection.cases], [["liver", "vertebrae_L1"], ["liver"]])
        sizes = [int((label_map(1) > 0).sum()), int((label_map(0, 1) > 0).sum())]
        self.assertEqual(self.by_name(collection.cases[0]), {"liver": sizes[0], "vertebrae_L1": sizes[1]})
        self.assertEqual(self.by_name(collection.cases[1]), {"liver": sizes[0]})

    def test_names_of_labels_after_those_of_the_cases(self):
        self.save("case1.nii.gz", image())
        self.save("case1_liver.nii.gz", label_map(255))
        self.save("case1_spleen.nii.gz", label_map(0, 1))
        collection = self.collect()
        (case,) = collection.cases
        self.assertEqual(sorted(collection.labels), ["liver", "spleen"])
        self.assertEqual(sorted(self.by_name(case)), ["liver", "spleen"])

    def test_a_voxel_in_two_masks_is_refused(self):
        self.save("case1.nii.gz", image())
        self.save("case1_liver.nii.gz", label_map(1))
        self.save("case1_spleen.nii.gz", label_map(1, 1))
        (case,) = self.collect().cases
        with self.assertRaisesRegex(
            InputError, r"case1_spleen.nii.gz: .* of one label, but 6 are of both label liver and spleen; .*--labels"
        ):
            self.read(case)

    def test_a_pattern_that_is_none(self):
        with self.assertRaisesRegex(InputError, "patient_pattern must be a regular expression"):
            collect_volumes(self.root, Options(patient_pattern="("))

    def test_no_segmentation(self):
        self.assertIsNone(collect_volumes(self.root, Options()))
        self.save("images/case1.nii.gz", image())
        self.save("case2.nii.gz", image(1))
        self.assertIsNone(collect_volumes(self.root, Options()))

    def test_image_without_label(self):
        self.save("images/a.nii.gz", image(1))
        self.save("labels/a.nii.gz", label_map(1))
        self.save("images/b.nii.gz", image(2))
        collection = self.collect()
        self.assertEqual([case.read_label is None for case in collection.cases], [False, True])
        self.assertEqual(collection.findings, [])

    def test_parts_and_patients_by_folders(self):
        for part, name in (("train", "p1_a"), ("train", "p1_b"), ("val", "p2_a"), ("test", "p3_a")):
            self.save(f"{part}/images/{name}.nii.gz", image(len(name)))
            self.save(f"{part}/labels/{name}.nii.gz", label_map(1))
        collection = self.collect(patient_pattern=r"/(p\d)_")
        found = {Path(case.image).name[:4]: (case.part, case.patient) for case in collection.cases}
        self.assertEqual([found[name][0] for name in ("p1_a", "p2_a", "p3_a")], ["training", "validation", "test"])
        self.assertEqual(found["p1_a"][1], Options(secret=b"of this bundle").patient("p1"))
        self.assertEqual(found["p1_a"], found["p1_b"])
        self.assertEqual(len({patient for _, patient in found.values()}), 3)

    def test_grey_values_of_one_byte_are_no_label_map(self):
        """Real images of whole numbers below 256, in folders whose names say nothing."""
        folder = shared_data("msd_hippocampus")
        for name in HIPPOCAMPUS:
            source = nib.load(folder / "imagesTr" / f"{name}.nii.gz")
            values = np.asarray(source.dataobj, float)
            self.save(f"a/{name}.nii.gz", (values / values.max() * 255).astype(np.uint8), source.affine)
            label = nib.load(folder / "labelsTr" / f"{name}.nii.gz")
            self.save(f"b/{name}.nii.gz", np.asarray(label.dataobj).astype(np.uint8), label.affine)
        collection = self.collect()
        self.assertEqual([Path(case.image).parent.name for case in collection.cases], ["a", "a"])
        self.assertEqual(collection.labels, ["1", "2"])


class TestLists(Volumes):
    def write_list(self, content: dict, name: str = "dataset.json") -> None:
        (self.root / name).write_text(json.dumps(content))

    @parameterized.expand([("imagesTr",), ("abdomen",)])
    def test_real_data(self, kind):
        self.root = shared_data("msd_hippocampus" if kind == "imagesTr" else "abdomen_mr")
        collection = self.collect()
        self.assertEqual(collection.findings, [])
        pairs = {path.name: path for path in (self.root / "labelsTr").iterdir()}
        self.assertEqual(len(collection.cases), len(pairs))
        if kind == "imagesTr":
            self.assertEqual(collection.labels, ORGANS)
            parts = [case.part for case in collection.cases]
            self.assertEqual((parts.count("training"), parts.count("validation")), (160, 40))
        for case in collection.cases[::40]:
            label, names = self.read(case)
            np.testing.assert_array_equal(label, np.asarray(nib.load(pairs[Path(case.image).name]).dataobj))
            self.assertEqual(list(names), [1, 2] if kind == "imagesTr" else [1, 2, 3, 4])

    @parameterized.expand(
        [({"0": "background", "1": "liver", "2": "tumour"},), ({"background": 0, "tumour": 2, "liver": 1},)]
    )
    def test_names_of_labels(self, labels):
        self.save("imagesTr/la_003_0000.nii.gz", image())
        self.save("labelsTr/la_003.nii.gz", label_map(2, 1))
        self.write_list({"labels": labels, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"})
        collection = self.collect()
        self.assertEqual((collection.findings, collection.labels), ([], ["liver", "tumour"]))
        (case,) = collection.cases
        self.assertEqual(self.read(case)[1], {1: "liver", 2: "tumour"})
        self.assertEqual((case.modality, case.part), ("CT", "training"))

    def test_pairs_and_parts_of_a_list(self):
        for name in "abcd":
            self.save(f"x/{name}.nii.gz", image(ord(name)))
            self.save(f"y/{name}{name}.nii.gz", label_map(1))
        pairs = [{"image": f"./x/{name}.nii.gz", "label": f"./y/{name}{name}.nii.gz"} for name in "abc"]
        self.write_list({"training": pairs[:2], "validation": pairs[2:], "test": []}, "datalist.json")
        self.write_list({"labels": {"1": "liver"}, "modality": {"0": "MRI"}})
        collection = self.collect()
        self.assertEqual([case.part for case in collection.cases], ["training", "training", "validation"])
        self.assertEqual({case.modality for case in collection.cases}, {"MR"})
        self.assertEqual(collection.labels, ["liver"])
        self.assertEqual(self.rules(collection), [("not listed", ".", False)])
        self.assertIn("2 volumes", collection.findings[0].message)

    def test_a_list_of_nnunet_leaves_out_the_channel(self):
        self.save("imagesTr/la_003_0000.nii.gz", image())
        self.save("labelsTr/la_003.nii.gz", label_map(1))
        pair = {"image": "./imagesTr/la_003.nii.gz", "label": "./labelsTr/la_003.nii.gz"}
        self.write_list({"labels": {"0": "background", "1": "atrium"}, "training": [pair], "test": []})
        collection = self.collect()
        self.assertEqual(collection.findings, [])
        self.assertEqual([Path(case.image).name for case in collection.cases], ["la_003_0000.nii.gz"])
        self.assertEqual(len(self.by_name(collection.cases[0])), 1)

    @parameterized.expand(
        [
            ("list cannot be used", {"labels": {"whole": [1, 2]}}),
            ("list cannot be used", {"labels": {"1": "a", "b": 1}}),
            ("list cannot be used", {"training": [{"picture": "x"}]}),
            ("list cannot be used", {"training": [{"image": "case1.nii.gz"}, {"image": "./case1.nii.gz"}]}),
            ("listed file missing", {"training": [{"image": "case1.nii.gz", "label": "none.nii.gz"}]}),
        ]
    )
    def test_bad_lists(self, rule, content):
        self.save("case1.nii.gz", image())
        self.save("case1_seg.nii.gz", label_map(1))
        self.save("sub/case2.nii.gz", image())
        self.save("sub/case2_seg.nii.gz", label_map(1))
        (self.root / "sub" / "dataset.json").write_text('{"labels": {"1": "liver"}}')
        self.write_list(content)
        self.assertIn((rule, True), [(each.rule, each.error) for each in self.collect().findings])

    def test_several_channels(self):
        self.save("imagesTr/a_0000.nii.gz", image())
        self.save("imagesTr/a_0001.nii.gz", image(1))
        self.save("labelsTr/a.nii.gz", label_map(1))
        collection = self.collect()
        self.assertEqual(collection.cases, [])
        self.assertEqual(self.rules(collection), [("several channels", "labelsTr/a.nii.gz", True)])
        self.assertIn("imagesTr/a_0001.nii.gz", collection.findings[0].message)


class TestFindings(Volumes):
    def test_two_labels_for_one_image(self):
        self.save("case1.nii.gz", image())
        self.save("case1_seg.nii.gz", label_map(1, 2))
        self.save("case1-mask.nrrd", label_map(1, 2))
        collection = self.collect()
        self.assertEqual(self.rules(collection), [("two labels", "case1.nii.gz", True)])
        for name in ("case1_seg.nii.gz", "case1-mask.nrrd"):
            self.assertIn(name, collection.findings[0].message)
        self.assertEqual(collection.cases, [])

    def test_two_images_for_one_label(self):
        self.save("case1/t1.nii.gz", image())
        self.save("case1/t2.nii.gz", image(1))
        self.save("case1/seg.nii.gz", label_map(1, 2))
        collection = self.collect()
        self.assertEqual(self.rules(collection), [("several images", "case1/seg.nii.gz", True)])
        for name in ("case1/t1.nii.gz", "case1/t2.nii.gz"):
            self.assertIn(name, collection.findings[0].message)

    def test_the_grid_tells_images_apart(self):
        self.save("case1/t1.nii.gz", image(size=(9, 9, 7)))
        self.save("case1/t2.nii.gz", image(1))
        self.save("case1/seg.nii.gz", label_map(1, 2))
        collection = self.collect()
        labelled = [case for case in collection.cases if case.read_label is not None]
        self.assertEqual([Path(case.image).name for case in labelled], ["t2.nii.gz"])

    def test_label_without_image(self):
        self.save("images/a.nii.gz", image())
        self.save("labels/a.nii.gz", label_map(1))
        self.save("labels/b.nii.gz", label_map(1))
        collection = self.collect()
        self.assertEqual(self.rules(collection), [("label without image", "labels/b.nii.gz", False)])
        self.assertEqual(len(collection.cases), 1)

    @parameterized.expand([("fractions", 0.5), ("negative", -1.0)])
    def test_no_label_map(self, _, value):
        self.save("images/a.nii.gz", image())
        self.save("images/b.nii.gz", image(1))
        bad = label_map(1).astype(np.float32)
        bad[0, 0, 0] = value
        self.save("labels/a.nii.gz", bad)
        self.save("labels/b.nii.gz", label_map(1))
        collection = self.collect()
        self.assertEqual(self.rules(collection), [("no label map", "labels/a.nii.gz", True)])
        self.assertIn("must be whole numbers", collection.findings[0].message)
        self.assertEqual([Path(case.image).name for case in collection.cases], ["b.nii.gz"])

    def test_an_image_in_the_place_of_a_label(self):
        self.save("images/a.nii.gz", image())
        self.save("labels/a.nii.gz", image(2).round().clip(0, 255).astype(np.uint8))
        self.save("images/b.nii.gz", image(1))
        self.save("labels/b.nii.gz", label_map(1))
        collection = self.collect()
        self.assertEqual(self.rules(collection), [("no label map", "labels/a.nii.gz", True)])
        self.assertIn("must have few values", collection.findings[0].message)

    def test_files_that_cannot_be_read(self):
        self.save("images/a.nii.gz", image())
        self.save("labels/a.nii.gz", label_map(1))
        (self.root / "images" / "b.nii.gz").write_bytes(b"nothing")
        (self.root / "images" / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        (self.root / "notes.txt").write_text("of the reader")
        collection = self.collect()
        self.assertEqual(
            self.rules(collection), [("cannot be read", "images/b.nii.gz", True), ("ignored files", "", False)]
        )
        self.assertNotIn(str(self.root), "".join(each.message for each in collection.findings))

    @parameterized.expand([("size", (8, 9, 6), 0), ("affine", SIZE, 0.01)])
    def test_label_on_another_grid(self, what, size, shift):
        affine = AFFINE_RAS.copy()
        affine[0, 3] += shift
        self.save("images/a.nii.gz", image())
        self.save("labels/a.nii.gz", label_map(1, size=size), affine)
        (case,) = self.collect().cases
        with self.assertRaisesRegex(InputError, f"labels/a.nii.gz: must have the {what} of .*images/a.nii.gz"):
            self.read(case)


class TestOptions(Volumes):
    def test_names_of_values(self):
        self.save("case1.nii.gz", image())
        self.save("case1_seg.nii.gz", label_map(1, 4, 7))
        collection = self.collect(label_names={4: "liver", 1: "spleen"}, ignored=["7"])
        self.assertEqual(collection.labels, ["spleen", "liver"])
        self.assertEqual(self.read(collection.cases[0])[1], {1: "spleen", 4: "liver", 7: IGNORED})
        self.assertEqual(self.collect(labels=["liver"], label_names={4: "liver"}).labels, ["liver"])
        collection = self.collect(label_names={4: "liver"}, ignored=["liver"])
        self.assertEqual(collection.labels, ["1", "7"])

    def test_labels_of_several_formats_are_merged_by_name(self):
        self.save("a.nii.gz", image())
        save_slicer(self.root / "a_seg.nrrd", label_map(1, 2), AFFINE_RAS, [("liver", 1, 0), ("spleen", 2, 0)])
        self.save("b.nii.gz", image(1))
        save_slicer(self.root / "b_seg.nrrd", label_map(5, 3), AFFINE_RAS, [("spleen", 5, 0), ("liver", 3, 0)])
        collection = self.collect()
        self.assertEqual((collection.findings, collection.labels), ([], ["liver", "spleen"]))
        self.assertEqual([case.labelled for case in collection.cases], [["liver", "spleen"], ["spleen", "liver"]])
        measured, found = measure_cases(collection)
        self.assertEqual(found, [])
        rows = [int((label_map(1) > 0).sum()), int((label_map(0, 1) > 0).sum())]
        self.assertEqual(
            [each.voxels for each in measured],
            [{"liver": rows[0], "spleen": rows[1]}, {"spleen": rows[0], "liver": rows[1]}],
        )


class TestSlicer(Volumes):
    def save_case(self, layers: np.ndarray, affine: np.ndarray, segments: list[tuple[str, int, int]]) -> None:
        self.save("case1.nii.gz", image())
        save_slicer(self.root / "case1.seg.nrrd", layers, affine, segments)

    def test_a_crop_is_placed(self):
        whole = label_map(3, 8)
        affine = AFFINE_RAS.copy()
        affine[:3, 3] = (AFFINE_RAS @ [1, 1, 2, 1])[:3]
        self.save_case(whole[1:6, 1:4, 2:5], affine, [("Left lung", 3, 0), ("Heart", 8, 0)])
        (case,) = self.collect().cases
        label, names = self.read(case)
        self.assertEqual(names, {1: "Left lung", 2: "Heart"})
        np.testing.assert_array_equal(label, np.select([whole == 3, whole == 8], [1, 2]))

    def test_layers(self):
        layers = np.stack([label_map(1), label_map(0, 1, 2)])
        self.save_case(layers, AFFINE_RAS, [("a", 1, 0), ("b", 1, 1), ("c", 2, 1)])
        (case,) = self.collect().cases
        label, names = self.read(case)
        np.testing.assert_array_equal(label, label_map(1, 2, 3))
        self.assertEqual(names, {1: "a", 2: "b", 3: "c"})

    def without(self, *fields: str) -> None:
        """Takes fields of the segments out of the header, as older versions wrote it."""
        path = self.root / "case1.seg.nrrd"
        header, values = path.read_bytes().split(b"\n\n", 1)
        lines = [line for line in header.split(b"\n") if not any(f"_{field}:=".encode() in line for field in fields)]
        path.write_bytes(b"\n\n".join([b"\n".join(lines), values]))

    def test_layers_of_an_older_version(self):
        layers = np.stack([label_map(1), label_map(0, 1)])
        self.save_case(layers, AFFINE_RAS, [("a", 1, 0), ("b", 1, 1)])
        self.assertEqual(SimpleITK.ReadImage(str(self.root / "case1.seg.nrrd")).GetNumberOfComponentsPerPixel(), 2)
        self.without("LabelValue", "Layer")
        self.save("case2.nii.gz", image(2))
        self.save("case2_label.nii.gz", label_map(1))
        collection = self.collect()
        self.assertEqual(self.rules(collection), [("no label map", "case1.seg.nrrd", True)])
        message = collection.findings[0].message
        self.assertIn("Segment0 must have a LabelValue", message)
        self.assertIn("save it again as .seg.nrrd", message)
        self.assertEqual([case.name for case in collection.cases], ["case2"])  # with --leave-out

    def test_one_segment_of_an_older_version(self):
        self.save_case(label_map(1), AFFINE_RAS, [("a", 1, 0)])
        self.without("LabelValue", "Layer")
        label, names = self.read(self.collect().cases[0])
        np.testing.assert_array_equal(label, label_map(1))
        self.assertEqual(names, {1: "a"})

    def test_segments_of_one_value_in_several_layers(self):
        layers = np.stack([label_map(1), label_map(0, 1), label_map(0, 0, 1)])
        self.save_case(layers, AFFINE_RAS, [("c", 1, 2), ("a", 1, 0), ("empty", 2, 0), ("b", 1, 1)])
        label, names = self.read(self.collect().cases[0])
        np.testing.assert_array_equal(label, label_map(2, 4, 1))
        self.assertEqual(names, {1: "c", 2: "a", 3: "empty", 4: "b"})

    def test_overlap_is_refused_unless_one_is_wanted(self):
        layers = np.stack([label_map(1), label_map(1, 2)])
        self.save_case(layers, AFFINE_RAS, [("a", 1, 0), ("b", 1, 1), ("c", 2, 1)])
        with self.assertRaisesRegex(InputError, r"case1.seg.nrrd: a voxel must be of one segment, but 6 .* 1 and 2"):
            self.read(self.collect().cases[0])
        (case,) = self.collect(labels=["c", "a"]).cases
        self.assertEqual(self.read(case)[1], {1: "a", 3: "c"})
        np.testing.assert_array_equal(self.read(case)[0], label_map(1, 3))

    @parameterized.expand([("beside the voxels", 0.3, 1), ("outside", -2.0, 4), ("another spacing", 0, 1.5)])
    def test_elsewhere_is_refused(self, kind, shift, scale):
        affine = AFFINE_RAS.copy()
        if kind == "outside":
            affine[:3, 3] = (AFFINE_RAS @ [-3, 0, 0, 1])[:3]
        else:
            affine[0, 3] += shift
            affine[:3, 2] *= scale
        self.save_case(label_map(1), affine, [("a", 1, 0)])
        wanted = "lie outside the image" if kind == "outside" else "must lie on those of the image to 0.1 mm"
        with self.assertRaisesRegex(InputError, wanted):
            self.read(self.collect().cases[0])

    def test_a_value_without_segment_is_refused(self):
        self.save_case(label_map(1, 2), AFFINE_RAS, [("a", 1, 0)])
        with self.assertRaisesRegex(InputError, "every value must be that of a segment, got 2 in layer 0"):
            self.read(self.collect().cases[0])


class TestDicom(Volumes):
    """Real cases of the hippocampus as DICOM series with labels of every format."""

    def make(self, name: str, folder: str) -> tuple[np.ndarray, np.ndarray]:
        """Writes a series; returns the label map and its affine."""
        values, label, affine = read_hippocampus(name)
        save_series(self.root / folder, values, affine)
        return label, affine

    def write(self, kind: str, name: str, folder: str) -> tuple[np.ndarray, np.ndarray]:
        label, affine = self.make(name, f"{folder}/series")
        if kind in ("SEG", "RTSTRUCT"):
            save_on_series(kind, self.root / folder / "result.dcm", self.root / folder / "series", label, affine)
        elif kind == "Slicer":
            segments = [(organ, value, 0) for value, organ in enumerate(ORGANS, 1)]
            save_slicer(self.root / folder / "Segmentation.seg.nrrd", label, affine, segments)
        else:
            turned, turn = label, np.eye(4)
            if kind == "turned NIfTI":  # as dcm2niix does
                turned, turn[1, 1], turn[1, 3] = label[:, ::-1], -1, label.shape[1] - 1
            self.save(f"{folder}/segmentation.nii.gz", turned, affine @ turn)
        return label, affine

    @parameterized.expand([("SEG",), ("RTSTRUCT",), ("Slicer",), ("NIfTI",), ("turned NIfTI",)])
    def test_equal_to_the_nifti(self, kind):
        truths = [self.write(kind, name, f"case{index}") for index, name in enumerate(HIPPOCAMPUS)]
        options = {"label_names": dict(enumerate(ORGANS, 1))} if "NIfTI" in kind else {}
        collection = self.collect(**options)
        self.assertEqual((collection.findings, collection.labels), ([], ORGANS))
        self.assertEqual(len(collection.cases), 2)
        for case, (truth, affine) in zip(collection.cases, truths, strict=True):
            loaded = load_image(case, 3)
            label, names = case.read_label(loaded)
            self.assertEqual(names, dict(enumerate(ORGANS, 1)))
            found, found_affine = canonical(label, loaded.affine.numpy())
            wanted, wanted_affine = canonical(truth, affine)
            np.testing.assert_allclose(found_affine, wanted_affine, atol=1e-3)
            np.testing.assert_array_equal(found, wanted)
            self.assertGreaterEqual(min(dice(found, wanted, value) for value in (1, 2)), 0.98)
            self.assertEqual(case.labelled, None if "NIfTI" in kind else ORGANS)
            self.assertEqual((case.modality, case.patient), ("MR", Options(secret=b"of this bundle").patient("19")))
            self.assertEqual(len(case.image), truth.shape[2])

    def test_the_series_that_a_segmentation_refers_to(self):
        self.write("SEG", HIPPOCAMPUS[0], "case0")
        files = sorted((self.root / "case0" / "series").iterdir())
        study = pydicom.dcmread(files[0]).StudyInstanceUID
        self.make(HIPPOCAMPUS[1], "case0/other")
        for path in (self.root / "case0" / "other").iterdir():
            dataset = pydicom.dcmread(path)
            dataset.StudyInstanceUID = study
            dataset.save_as(path)
        collection = self.collect()
        self.assertEqual([case.image for case in collection.cases], [list(map(str, files))])
        self.assertEqual(self.rules(collection), [("series without label", "case0/other", False)])
        # without it, both could be meant
        (self.root / "case0" / "result.dcm").unlink()
        self.save("case0/segmentation.nii.gz", label_map(1))
        (self.root / "case0" / "series").rename(self.root / "case0" / "one")
        collection = self.collect()
        self.assertEqual(self.rules(collection), [("several series", "case0/segmentation.nii.gz", True)])
        self.assertEqual(collection.cases, [])

    def test_segmentation_of_a_series_that_is_not_there(self):
        self.write("SEG", HIPPOCAMPUS[0], "case0")
        self.write("SEG", HIPPOCAMPUS[1], "case1")
        for path in (self.root / "case0" / "series").iterdir():
            path.unlink()
        collection = self.collect()
        self.assertEqual(self.rules(collection), [("label without image", "case0/result.dcm", False)])
        self.assertEqual(len(collection.cases), 1)

    def test_two_segmentations_of_one_series(self):
        self.write("SEG", HIPPOCAMPUS[0], "case0")
        label = nib.load(shared_data(f"msd_hippocampus/labelsTr/{HIPPOCAMPUS[0]}.nii.gz"))
        series = self.root / "case0" / "series"
        save_on_series(
            "RTSTRUCT", self.root / "case0" / "contours.dcm", series, np.asarray(label.dataobj), label.affine
        )
        collection = self.collect()
        self.assertEqual(self.rules(collection), [("two labels", "case0/series", True)])
        self.assertIn("anterior, posterior", collection.findings[0].message)

    def liver(self, *names: str) -> None:
        """The real series of the liver, with files beside it."""
        shutil.copytree(shared_data("dicom/ct_liver_seg/ct-3slice"), self.root / "case" / "dicom")
        for name in names:
            shutil.copy(shared_data("dicom/ct_liver_seg") / name, self.root / "case")

    @parameterized.expand([("liver.dcm", "Liver"), ("liver_seg.nrrd", "liver")])
    def test_real_segmentations(self, name, label):
        self.liver(name)
        collection = self.collect()
        self.assertEqual((collection.findings, collection.labels), ([], [label]))
        truth = SimpleITK.ReadImage(str(shared_data("dicom/ct_liver_seg/liver_seg.nrrd")))
        voxels = int((SimpleITK.GetArrayFromImage(truth) > 0).sum())
        (measured,), found = measure_cases(collection)
        self.assertEqual((found, measured.voxels), ([], {label: voxels}))
        self.assertTrue(33 <= measured.mean <= 40, measured.mean)

    def test_real_segments_that_overlap(self):
        self.liver("partial_overlaps.dcm")
        (case,) = self.collect().cases
        with self.assertRaisesRegex(InputError, "but 3017 of frame 2 are of both segment 1 and 2; .* with --labels"):
            self.read(case)
        names = list(case.labelled)
        self.assertEqual(len(names), 5)
        files = [shared_data(f"dicom/ct_liver_seg/partial_overlaps-{number}.nrrd") for number in (1, 2, 3)]
        truths = [SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))).transpose(2, 1, 0) for file in files]
        for number, name in enumerate(names, 1):
            (case,) = self.collect(labels=[name]).cases
            label, found = self.read(case)
            self.assertEqual((found, case.labelled), ({number: name}, [name]))
            np.testing.assert_array_equal(label == number, np.any([truth == number for truth in truths], axis=0))
            self.assertTrue(label.any())

    def test_a_series_that_cannot_be_read(self):
        self.write("SEG", HIPPOCAMPUS[0], "case0")
        path = next((self.root / "case0" / "series").iterdir())
        dataset = pydicom.dcmread(path)
        dataset.ImagePositionPatient[2] += 0.4
        dataset.save_as(path)
        collection = self.collect()
        self.assertEqual((self.rules(collection), collection.cases), ([("cannot be read", "case0/series", True)], []))

    def test_each_header_of_a_series_is_read_once(self):
        self.write("SEG", HIPPOCAMPUS[0], "case0")
        with mock.patch.object(series, "read_header", wraps=series.read_header) as reading:
            collection = self.collect()
            measured, found = measure_cases(collection)
        self.assertEqual((found, len(measured)), ([], 1))
        read = [call.args[0] for call in reading.call_args_list]
        self.assertEqual(sorted(read), sorted([*(self.root / "case0").rglob("*.dcm")]))

    def test_no_patient_is_named(self):
        name = PATIENT.replace("^", " ")
        for kind, folder in (("SEG", "one"), ("NIfTI", "two"), ("Slicer", "three")):
            self.write(kind, HIPPOCAMPUS[0], f"{name}/{folder}")
        (self.root / name / "two" / "broken.nii.gz").write_bytes(b"nothing")
        collection = self.collect()
        self.assertEqual(len(collection.cases), 3)
        texts = [str(each) for each in collection.findings]
        texts += [f"{case.name} {case.patient} {case.labelled} {case.part}" for case in collection.cases]
        for case in collection.cases:
            loaded = load_image(case, 3)
            loaded.affine[0, 3] += 0.7
            try:
                case.read_label(loaded)
            except InputError as error:
                texts.append(str(error))
        self.assertGreaterEqual(len(texts), 6)
        for text in texts:
            for word in PATIENT.split("^"):
                self.assertNotIn(word.lower(), text.lower())
        self.assertNotIn("19", [case.patient for case in collection.cases])


if __name__ == "__main__":
    unittest.main()
