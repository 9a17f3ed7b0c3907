# SPDX-License-Identifier: Apache-2.0
"""Pictures with masks; what is true is written here, or read by Pillow and pandas."""

from __future__ import annotations

import unittest
from collections import Counter
from pathlib import Path

import numpy as np
import pandas
from parameterized import parameterized
from PIL import Image
from utils_data import save_nifti, shared_data, temporary_folder
from utils_pictures import save_picture, save_radiograph

from monai_dvpt.apps.new_bundle.check import apply_rules
from monai_dvpt.apps.new_bundle.collect.pictures import collect_pictures
from monai_dvpt.apps.new_bundle.model import IGNORED, Case, Collection, Options
from monai_dvpt.transforms import LoadImage2D
from monai_dvpt.utils import InputError

SIZE = (8, 11)
TURNED = 6
"""EXIF: to be turned by a quarter to the right."""
COLOURS = {(255, 0, 0): "ff0000", (0, 128, 255): "0080ff"}


def some_indices(seed: int = 0, most: int = 2, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Indices of labels, each of which has pixels."""
    label = np.random.default_rng(seed).integers(0, most + 1, size).astype(np.uint8)
    label[0, : most + 1] = np.arange(most + 1)
    return label


def save_mask(path: Path, values: np.ndarray, **how) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **how)


def rules(collection: Collection, errors: bool | None = None) -> list[str]:
    return [each.rule for each in collection.findings if errors is None or each.error == errors]


class Pictures(unittest.TestCase):
    def setUp(self) -> None:
        self.root = temporary_folder(self)

    def pictures(self, count: int = 4, pattern: str = "images/p{}.jpg") -> None:
        for index in range(count):
            save_picture(self.root / pattern.format(index), index, SIZE)

    def masks(self, count: int = 4, pattern: str = "masks/p{}.png", scale: int = 1, most: int = 2) -> list[np.ndarray]:
        labels = [some_indices(index, most) for index in range(count)]
        for index, label in enumerate(labels):
            save_mask(self.root / pattern.format(index), label * np.uint8(scale))
        return labels

    def collect(self, **options) -> Collection:
        collection = collect_pictures(self.root, Options(secret=b"k", **options))
        self.assertIsNotNone(collection)
        self.assertEqual((collection.task, collection.spatial_dims), ("segmentation", 2))
        return collection

    def read(self, case: Case) -> tuple[np.ndarray, dict[int, str]]:
        image = LoadImage2D(channels=3)(case.image)
        label, names = case.read_label(image)
        self.assertEqual(label.shape, tuple(image.shape[1:]))
        self.assertEqual(label.dtype.kind, "i")
        return label, names

    def expect(self, collection: Collection, labels: list[np.ndarray], found: tuple = ()) -> None:
        self.assertEqual(rules(collection), list(found))
        self.assertEqual(len(collection.cases), len(labels))
        for case, wanted in zip(collection.cases, labels, strict=True):
            np.testing.assert_array_equal(self.read(case)[0], wanted)


class TestPairs(Pictures):
    @parameterized.expand(
        [
            ("images/p{}.jpg", "masks/p{}.png"),
            ("image/p{}.png", "label/p{}.png"),
            ("p{}.jpg", "GroundTruth/p{}.png"),
            ("images/p{}.jpg", "masks/p{}_segmentation.png"),
            ("train/images/p{}.jpg", "train/masks/p{}.png"),
            ("images/train/p{}.jpg", "masks/train/p{}.png"),
            ("train_images/image_{}.jpg", "train_masks/mask_{}.png"),
            ("imagesTr/p{}.png", "labelsTr/p{}.png"),
            ("p{}.jpg", "p{}_mask.png"),
            ("image_{}.png", "mask_{}.png"),
            ("case{}/image.png", "case{}/mask.png"),
            ("case{}/images/p.png", "case{}/masks/p.png"),
            ("all/p-{}.png", "all/p-{}-vessels.png"),
        ]
    )
    def test_names(self, image, mask):
        self.pictures(pattern=image)
        labels = self.masks(pattern=mask)
        collection = self.collect()
        self.expect(collection, labels)
        self.assertEqual(collection.labels, ["label_1", "label_2"])
        paths = [str(self.root / image.format(index)) for index in range(4)]
        self.assertEqual([case.image for case in collection.cases], paths)

    def test_equal_names_in_several_folders(self):
        wanted = []
        for seed, part in enumerate(("a", "b")):
            save_picture(self.root / part / "images" / "p.png", seed, SIZE)
            wanted.append(some_indices(seed))
            save_mask(self.root / part / "masks" / "p.png", wanted[-1])
        self.expect(self.collect(), wanted)

    def test_several_observers_are_asked_for(self):
        self.pictures(pattern="Image_0{}L.jpg")
        first = self.masks(pattern="Image_0{}L_1stHO.png", scale=255, most=1)
        second = [1 - label for label in first]
        for index, label in enumerate(second):
            save_mask(self.root / f"Image_0{index}L_2ndHO.png", label * np.uint8(255))
        collection = self.collect()
        (finding,) = collection.findings
        self.assertEqual((finding.rule, finding.error, collection.cases), ("several masks", True, []))
        self.assertIn("4 pictures have masks by several observers", finding.message)
        self.assertIn("choose with --columns mask=*_1stHO.png", finding.message)
        self.expect(self.collect(columns={"mask": "*_1stHO.png"}), first)
        self.expect(self.collect(columns={"mask": "*_2ndHO.png"}), second)
        collection = self.collect(columns={"mask": "*_3rd*"})
        self.assertEqual((rules(collection), collection.cases), (["no mask"], []))

    def test_a_file_for_each_label(self):
        """In folders, or, where the user says so, by the ends of their names."""
        self.pictures()
        labels = self.masks()
        for index, label in enumerate(labels):
            for value, name in ((1, "cyst"), (2, "lesion")):
                save_mask(self.root / "masks" / name / f"p{index}_{name}.png", (label == value) * np.uint8(255))
            (self.root / "masks" / f"p{index}.png").unlink()
        collection = self.collect()
        self.expect(collection, labels)
        self.assertEqual(collection.labels, ["cyst", "lesion"])
        self.assertEqual([case.labelled for case in collection.cases], [None] * 4)
        for path in (self.root / "masks").glob("*/*.png"):
            path.rename(self.root / "masks" / path.name)
        asked = self.collect()
        self.assertEqual((rules(asked), asked.findings[0].error), (["several masks"], True))
        self.assertIn("pass --labels cyst,lesion", asked.findings[0].message)
        self.expect(self.collect(labels=["cyst", "lesion"]), labels)

    def test_labels_that_overlap(self):
        """A cup lies on its disc: an error, unless the user says which is on top."""
        self.pictures(1)
        disc = np.zeros(SIZE, np.uint8)
        disc[1:7, 2:9] = 255
        cup = np.zeros(SIZE, np.uint8)
        cup[3:5, 4:6] = 255
        save_mask(self.root / "masks" / "disc" / "p0.png", disc)
        save_mask(self.root / "masks" / "cup" / "p0.png", cup)
        with self.assertRaisesRegex(InputError, "masks/.*: masks of different labels must not overlap, 4 pixels"):
            self.read(self.collect().cases[0])
        label, names = self.read(self.collect(labels=["disc", "cup"]).cases[0])
        wanted = np.array([["", "disc"], ["cup", "cup"]])[(cup > 0) * 1, (disc > 0) * 1]
        np.testing.assert_array_equal(np.vectorize({0: "", **names}.get)(label), wanted)

    def test_a_label_that_was_not_drawn(self):
        self.pictures()
        for index in range(4):
            save_mask(self.root / "masks" / "cyst" / f"p{index}.png", some_indices(index, 1))
        save_mask(self.root / "masks" / "lesion" / "p0.png", np.zeros(SIZE, np.uint8))
        collection = self.collect()
        self.assertEqual(rules(collection), ["label not drawn"])
        self.assertIn("3 pictures have no mask of lesion", collection.findings[0].message)
        self.assertEqual([case.labelled for case in collection.cases], [None, ["cyst"], ["cyst"], ["cyst"]])

    @parameterized.expand([("paths", "{folder}/p{index}.{suffix}"), ("stems", "p{index}")])
    def test_a_table(self, _, cell):
        self.pictures()
        labels = self.masks()
        columns = {"image": ("images", "jpg"), "mask": ("masks", "png")}
        rows = {
            name: [cell.format(folder=folder, index=index, suffix=suffix) for index in (2, 0, 3, 1)]
            for name, (folder, suffix) in columns.items()
        }
        rows |= {"patient": ["MRN1", "MRN0", "MRN1", "MRN0"], "split": ["train", "train", "train", "test"]}
        pandas.DataFrame(rows).to_csv(self.root / "list.csv", index=False)
        collection = self.collect()
        self.expect(collection, labels)
        self.assertEqual([case.part for case in collection.cases], ["training", "test", "training", "training"])
        aliases = [case.patient for case in collection.cases]
        self.assertEqual([aliases.index(alias) for alias in aliases], [0, 0, 2, 2])

    def test_a_table_pairs_what_names_do_not(self):
        self.pictures()
        labels = self.masks(pattern="drawn/{}.png")
        rows = {
            "file": [f"images/p{index}.jpg" for index in range(4)],
            "seg": [f"drawn/{3 - index}.png" for index in range(4)],
        }
        pandas.DataFrame(rows).to_csv(self.root / "list.csv", index=False)
        self.expect(self.collect(), labels[::-1])

    def test_a_table_pairs_stems_otherwise_than_names(self):
        self.pictures()
        labels = self.masks()
        rows = {"image": [f"p{index}" for index in range(4)], "mask": [f"p{3 - index}" for index in range(4)]}
        pandas.DataFrame(rows).to_csv(self.root / "list.csv", index=False)
        self.expect(self.collect(), labels[::-1])

    def test_a_table_of_patients_beside_folders(self):
        self.pictures()
        labels = self.masks()
        rows = {"image": [f"p{index}" for index in range(4)], "patient": list("aabb"), "set": ["train"] * 3 + ["val"]}
        pandas.DataFrame(rows).to_csv(self.root / "patients.csv", index=False)
        collection = self.collect()
        self.expect(collection, labels)
        self.assertEqual(len({case.patient for case in collection.cases}), 2)
        self.assertEqual([case.part for case in collection.cases], ["training"] * 3 + ["validation"])

    def test_json_list(self):
        self.pictures()
        labels = self.masks(pattern="drawn/{}.png")
        entries = [{"image": f"images/p{index}.jpg", "label": f"drawn/{index}.png"} for index in range(4)]
        pandas.Series({"training": entries}).to_json(self.root / "datalist.json")
        collection = self.collect()
        self.expect(collection, labels)
        self.assertEqual({case.part for case in collection.cases}, {"training"})

    def test_no_masks(self):
        self.assertIsNone(collect_pictures(self.root, Options()))
        self.pictures(pattern="scan.{}.png")
        self.assertIsNone(collect_pictures(self.root, Options()))
        save_picture(self.root / "images" / "scan_2.png", 8, SIZE)
        save_picture(self.root / "images" / "scan_2_more.png", 9, SIZE)
        self.assertIsNone(collect_pictures(self.root, Options()))


class TestValues(Pictures):
    @parameterized.expand([("indices", 1, 3), ("white", 255, 1), ("ones", 1, 1), ("greys", 80, 3)])
    def test_grey(self, _, scale, most):
        self.pictures()
        labels = self.masks(scale=scale, most=most)
        collection = self.collect()
        self.expect(collection, labels)
        one = ["foreground"]
        self.assertEqual(collection.labels, one if most == 1 else [f"label_{scale * value}" for value in (1, 2, 3)])
        self.assertEqual(self.read(collection.cases[0])[1], dict(enumerate(collection.labels, 1)))

    def test_names(self):
        self.pictures()
        labels = self.masks(scale=100)
        collection = self.collect(label_names={100: "liver", 200: "spleen", 250: "kidney"})
        self.expect(collection, labels)
        self.assertEqual(collection.labels, ["liver", "spleen", "kidney"])
        collection = self.collect(label_names={100: "liver", 200: "spleen"}, labels=["spleen"])
        self.assertEqual(collection.labels, ["spleen"])
        self.assertEqual(self.read(collection.cases[0])[1], {1: "liver", 2: "spleen"})
        collection = self.collect(labels=["heart"])
        self.assertEqual((rules(collection, True), collection.findings[0].rule), (["no such label"], "no such label"))

    def test_palette(self):
        """The index is the value, whatever the colours; some of them are equal."""
        self.pictures()
        labels = [some_indices(index, 2) for index in range(4)]
        for index, label in enumerate(labels):
            image = Image.fromarray(label).convert("P")
            image.putdata(label.ravel().tolist())
            image.putpalette([9, 9, 9, 200, 0, 0, 200, 0, 0])
            image.save(self.root / f"images/p{index}_mask.png")
        self.expect(self.collect(), labels)

    def test_palettes_that_differ(self):
        self.pictures()
        for index, label in enumerate(self.masks()):
            image = Image.fromarray(label).convert("P")
            image.putdata(label.ravel().tolist())
            image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0] if index else [0, 0, 0, 0, 200, 0, 200, 0, 0])
            image.save(self.root / f"masks/p{index}.png")
        (finding,) = self.collect().findings
        self.assertEqual((finding.rule, finding.error), ("masks differ", True))
        self.assertIn("1, 2 have several", finding.message)

    def test_one_bit_and_sixteen(self):
        self.pictures(2)
        first, second = some_indices(0, 1), some_indices(1, 1)
        save_mask(self.root / "masks" / "p0.png", first.astype(bool))
        save_mask(self.root / "masks" / "p1.png", second * np.uint8(255))
        self.expect(self.collect(), [first, second])
        self.pictures(2, "wide/images/q{}.png")
        save_mask(self.root / "wide" / "masks" / "q0.png", first.astype(np.uint16) * 1000)
        save_mask(self.root / "wide" / "masks" / "q1.png", second.astype(np.uint16) * 1000)
        collection = collect_pictures(self.root / "wide", Options())
        self.assertEqual(collection.labels, ["foreground"])
        self.expect(collection, [first, second])

    def test_colours(self):
        self.pictures()
        palette = np.array([(0, 0, 0), *COLOURS], np.uint8)
        labels = [some_indices(index, 2) for index in range(4)]
        for index, label in enumerate(labels):
            save_mask(self.root / "masks" / f"p{index}.png", palette[label])
        save_mask(self.root / "masks" / "p3.png", palette[labels[3]][..., [0, 1, 2, 2]] | np.uint8([0, 0, 0, 255]))
        collection = self.collect()
        self.assertEqual(collection.labels, ["0080ff", "ff0000"])
        self.expect(collection, [np.array([0, 2, 1])[label] for label in labels])
        collection = self.collect(label_names={0xFF0000: "vein"}, ignored=["0080ff"])
        self.assertEqual(collection.labels, ["vein"])
        self.assertEqual(self.read(collection.cases[0])[1], {1: IGNORED, 2: "vein"})

    def test_grey_stored_in_colours(self):
        self.pictures()
        labels = self.masks(most=1)
        for index, label in enumerate(labels):
            save_mask(self.root / "masks" / f"p{index}.png", np.repeat(label[..., None] * np.uint8(255), 3, 2))
        collection = self.collect()
        self.assertEqual(collection.labels, ["foreground"])
        self.expect(collection, labels)

    def test_ignored_value(self):
        self.pictures()
        for index in range(4):
            label = some_indices(index, 3)
            label[label == 3] = 255
            save_mask(self.root / "masks" / f"p{index}.png", label)
        collection = self.collect()
        self.assertEqual(rules(collection), ["unlabelled pixels"])
        self.assertIn("pass --ignore 255", collection.findings[0].message)
        collection = self.collect(ignored=["255"])
        self.assertEqual((collection.findings, collection.labels), ([], ["label_1", "label_2"]))
        self.assertEqual(self.read(collection.cases[0])[1], {1: "label_1", 2: "label_2", 3: IGNORED})

    def test_nifti(self):
        affine = np.diag([-2.0, -2, 2, 1])
        for index in range(2):
            image = np.random.default_rng(index).normal(size=(7, 5, 1)).astype(np.float32)
            save_nifti(self.root / "images" / f"p{index}.nii.gz", image, affine)
            save_nifti(self.root / "masks" / f"p{index}.nii.gz", some_indices(index, 2, (7, 5))[..., None], affine)
        self.expect(self.collect(), [some_indices(index, 2, (7, 5)).T for index in range(2)])
        save_nifti(
            self.root / "masks" / "p0.nii.gz",
            some_indices(0, 2, (7, 5))[..., None],
            affine + np.eye(4)[:, [3, 0, 1, 2]],
        )
        with self.assertRaisesRegex(InputError, "masks/p0.nii.gz: mask must lie where its picture lies"):
            self.read(self.collect().cases[0])

    def test_radiographs(self):
        for index in range(2):
            save_radiograph(self.root / "images" / f"p{index}.dcm", f"MRN{index}")
        labels = [some_indices(index, 2, (4, 6)) for index in range(2)]
        for index, label in enumerate(labels):
            save_mask(self.root / "masks" / f"p{index}.png", label)
        collection = self.collect()
        self.expect(collection, labels)
        self.assertEqual(len({case.patient for case in collection.cases}), 2)
        self.assertNotIn("MRN", str(collection))
        self.assertEqual({case.modality for case in collection.cases}, {"DX"})

    def test_a_path_that_names_the_patient_is_not_shown(self):
        for index in range(2):
            save_radiograph(self.root / "images" / f"Avasarala{index}.dcm", "77")
            save_mask(self.root / "masks" / f"Avasarala{index}.png", some_indices(index, 2, (4, 7)))
        collection = self.collect()
        with self.assertRaisesRegex(InputError, "^its mask: mask must have the rows and columns") as caught:
            collection.cases[0].read_label(LoadImage2D()(collection.cases[0].image))
        told = f"{caught.exception} {[case.name for case in collection.cases]} {collection.findings}"
        self.assertNotIn("avasarala", told.lower())


class TestBadData(Pictures):
    """Each has one clear finding, or reading its case one clear error."""

    def refused(self, pattern: str, mask: str = "masks/p0.png", others: int = 3, **options) -> None:
        collection = self.collect(**options)
        self.assertEqual(rules(collection), [])
        with self.assertRaisesRegex(InputError, f"^{mask}: {pattern}"):
            self.read(collection.cases[0])
        for case in collection.cases[1 : 1 + others]:
            self.read(case)

    def test_another_size(self):
        self.pictures()
        self.masks()
        save_mask(self.root / "masks" / "p0.png", some_indices(size=SIZE[::-1]))
        self.refused(r"mask must have the rows and columns of its picture, \(8, 11\), got \(11, 8\)\.")

    def test_a_turned_picture_with_a_mask_that_is_not(self):
        self.pictures()
        self.masks()
        exif = Image.Exif()
        exif[0x0112] = TURNED
        Image.open(self.root / "images/p0.jpg").save(self.root / "images" / "p0.jpg", exif=exif)
        collection = self.collect()
        self.assertEqual(rules(collection), ["turned pictures"])
        self.assertIn("1 pictures are turned by their EXIF data: images_p0;", collection.findings[0].message)
        with self.assertRaisesRegex(InputError, r"\(11, 8\), got \(8, 11\); the picture is turned by its EXIF data"):
            self.read(collection.cases[0])
        turned = some_indices(0, 2, SIZE[::-1])
        save_mask(self.root / "masks" / "p0.png", turned)
        np.testing.assert_array_equal(self.read(self.collect().cases[0])[0], turned)

    def test_a_mask_is_turned_by_its_own_exif_data(self):
        self.pictures()
        labels = self.masks()
        exif = Image.Exif()
        exif[0x0112] = TURNED
        Image.open(self.root / "images/p0.jpg").save(self.root / "images" / "p0.jpg", exif=exif)
        save_mask(self.root / "masks" / "p0.png", labels[0], exif=exif)
        np.testing.assert_array_equal(self.read(self.collect().cases[0])[0], np.rot90(labels[0], -1))

    def test_a_small_mask_with_smooth_edges(self):
        self.pictures(1, "images/p{}.png")
        y, x = np.mgrid[: SIZE[0], : SIZE[1]]
        label = np.clip(255 * (3.3 - np.hypot(y - 3.6, x - 5.3)), 0, 255).astype(np.uint8)
        save_mask(self.root / "masks" / "p0.png", label)
        self.assertGreater(len(np.unique(label)), 4)
        self.refused_alone("edges must not be smooth")

    def refused_alone(self, pattern: str) -> None:
        """Of a folder whose only mask is refused."""
        collection = self.collect()
        self.assertEqual(rules(collection), ["no labels"])
        with self.assertRaisesRegex(InputError, pattern):
            self.read(collection.cases[0])

    def test_jpeg(self):
        self.pictures()
        self.masks(scale=255, most=1)
        (self.root / "masks" / "p0.png").unlink()
        save_mask(self.root / "masks" / "p0.jpg", some_indices(0, 1) * np.uint8(255), quality=60)
        self.refused("mask must be saved without loss, as PNG; JPEG makes [0-9]+ values", "masks/p0.jpg")

    def test_smooth_edges(self):
        self.pictures(pattern="images/p{}.png")
        for index in range(4):
            label = np.zeros((80, 110), np.uint8)
            label[10:70, 15:90] = 255
            save_picture(self.root / "images" / f"p{index}.png", index, label.shape)
            save_mask(self.root / "masks" / f"p{index}.png", label)
        for at, value in enumerate((31, 64, 127, 190)):
            label[10 + at, 14] = value
        save_mask(self.root / "masks" / "p0.png", label)
        self.refused("mask must have a value for each label, got 6 values; edges must not be smooth")

    def test_a_photograph_for_a_mask(self):
        self.pictures()
        self.masks()
        save_picture(self.root / "masks" / "p0.png", 5, (40, 50))
        self.refused("mask must have a value for each label, got [0-9]+ values; edges")

    def test_a_colour_photograph_for_a_mask(self):
        self.pictures()
        self.masks()
        save_mask(self.root / "masks" / "p0.png", np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8))
        self.refused("mask must have a value for each label, got 88 values")

    def test_transparent(self):
        self.pictures()
        self.masks()
        values = np.repeat(some_indices()[..., None], 4, 2) * np.uint8(100)
        save_mask(self.root / "masks" / "p0.png", values)
        self.refused("mask must have no transparent pixels")

    def test_damaged(self):
        self.pictures()
        self.masks()
        path = self.root / "masks" / "p0.png"
        path.write_bytes(path.read_bytes()[:60])
        self.refused("mask cannot be read: ")

    def test_another_format(self):
        self.pictures()
        self.masks()
        path = self.root / "masks" / "p0.png"
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
        self.refused("mask must be a PNG, JPEG or NIfTI file", "masks/p0.bmp")

    def test_several_values_in_the_mask_of_one_label(self):
        self.pictures()
        for label in ("cyst", "lesion"):
            for index in range(4):
                save_mask(
                    self.root / "masks" / label / f"p{index}.png", np.eye(*SIZE, dtype=np.uint8) * (label == "cyst")
                )
        save_mask(self.root / "masks" / "lesion" / "p0.png", some_indices(0, 2))
        self.refused("the mask of one label must have one value beside 0, got 1, 2", "masks/lesion/p0.png")

    def found(self, rule: str, pattern: str, error: bool, cases: int, where: str = "", **options) -> None:
        collection = self.collect(**options)
        self.assertEqual([(each.rule, each.error, each.where) for each in collection.findings], [(rule, error, where)])
        self.assertRegex(collection.findings[0].message, pattern)
        self.assertTrue(collection.findings[0].message.endswith("."))
        self.assertEqual(len(collection.cases), cases)

    def test_a_mask_without_picture(self):
        self.pictures()
        self.masks(5)
        self.found(
            "mask without picture", "^1 masks belong to no picture, or to several: masks/p4.png; .* left out", False, 4
        )

    def test_a_picture_without_mask(self):
        """The rules of all collections tell of it."""
        self.pictures(5)
        self.masks(4)
        collection = self.collect()
        self.assertEqual((collection.findings, collection.cases[4].read_label), ([], None))

    def test_two_masks_for_a_picture(self):
        self.pictures()
        self.masks()
        save_mask(self.root / "masks" / "p0_mask.png", some_indices())
        self.found("several masks", "^1 pictures have several masks", True, 0)

    def test_two_pictures_for_a_mask(self):
        self.pictures()
        self.pictures(1, "images/p{}.png")
        self.masks()
        self.found("mask without picture", "masks/p0.png", False, 5)

    def test_ones_and_white(self):
        self.pictures()
        self.masks(2, most=1)
        for index in (2, 3):
            save_mask(self.root / "masks" / f"p{index}.png", some_indices(index, 1) * np.uint8(255))
        self.found("masks differ", "2 have 1 as their only value, 2 have 255", True, 4)
        collection = self.collect(label_names={1: "lesion", 255: "lesion"})
        self.assertEqual((collection.findings, collection.labels), ([], ["lesion"]))

    def test_colours_and_greys(self):
        self.pictures()
        self.masks(3, most=1)
        save_mask(self.root / "masks" / "p3.png", np.array([(0, 0, 0), *COLOURS], np.uint8)[some_indices()])
        self.found("masks differ", "all masks must be in colours, or none; got 1 in colours, 3 in indices", True, 4)

    def test_empty_masks(self):
        self.pictures()
        for index in range(4):
            save_mask(self.root / "masks" / f"p{index}.png", np.zeros(SIZE, np.uint8))
        self.found("no labels", "no mask has a value but 0", True, 4)

    def test_rows_without_mask(self):
        self.pictures()
        self.masks(3, "drawn/p{}.png")
        rows = {
            "image": [f"images/p{index}.jpg" for index in range(4)],
            "mask": [f"drawn/p{index}.png" for index in range(4)],
        }
        pandas.DataFrame(rows).to_csv(self.root / "list.csv", index=False)
        self.found("mask missing", "^1 rows name no mask below the folder: line 5", False, 4, "list.csv")

    def test_rows_of_one_picture(self):
        self.pictures()
        labels = self.masks()
        rows = {"image": [f"p{index}" for index in (0, 1, 2, 3, 0)], "mask": [f"p{index}" for index in (0, 1, 2, 3, 0)]}
        pandas.DataFrame(rows).to_csv(self.root / "list.csv", index=False)
        self.expect(self.collect(), labels, ["listed twice"])
        rows["mask"][-1] = "p3"
        pandas.DataFrame(rows).to_csv(self.root / "list.csv", index=False)
        self.found("listed with different masks", "got another in line 6", True, 4, "images_p0")

    def test_two_tables(self):
        self.pictures()
        self.masks()
        rows = {
            "image": [f"images/p{index}.jpg" for index in range(4)],
            "mask": [f"masks/p{index}.png" for index in range(4)],
        }
        for name in ("one.csv", "two.csv"):
            pandas.DataFrame(rows).to_csv(self.root / name, index=False)
        self.found("several tables", "could be one.csv, two.csv; pass --table", True, 0)
        self.assertEqual(len(self.collect(table="two.csv").cases), 4)

    def test_two_columns_of_masks(self):
        self.pictures()
        self.masks()
        masks = [f"masks/p{index}.png" for index in range(4)]
        rows = {"image": [f"images/p{index}.jpg" for index in range(4)], "mask_a": masks, "mask_b": masks}
        pandas.DataFrame(rows).to_csv(self.root / "list.csv", index=False)
        with self.assertRaisesRegex(
            InputError, "column of masks must be clear, could be mask_a, mask_b; pass --columns mask="
        ):
            self.collect()
        self.assertEqual(len(self.collect(columns={"mask": "mask_b"}).cases), 4)


class TestRealData(Pictures):
    def test_chase(self):
        root = shared_data("chasedb1")
        asked = collect_pictures(root, Options())
        self.assertEqual((rules(asked, errors=True), asked.cases), (["several masks"], []))
        collection = collect_pictures(root, Options(columns={"mask": "*_2ndHO.png"}))
        self.assertEqual((len(collection.cases), collection.labels, collection.findings), (20, ["foreground"], []))
        (finding,) = (each for each in apply_rules(collection, [None] * 20) if each.rule == "sides of one patient")
        self.assertIn(r"10 pairs of names differ by a side alone, such as Image_01L and Image_01R;", finding.message)
        self.assertIn(r"--patient-pattern '(.*)[LR]\.'", finding.message)
        options = Options(columns={"mask": "*_2ndHO.png"}, patient_pattern=r"(.*)[LR]\.", secret=b"of this bundle")
        joined = collect_pictures(root, options)
        self.assertEqual(sorted(Counter(case.patient for case in joined.cases).values()), [2] * 10)
        self.assertEqual(rules(joined), [])
        for case in collection.cases[::5]:
            mask = Image.open(Path(case.image).with_name(f"{Path(case.image).stem}_2ndHO.png")).convert("L")
            np.testing.assert_array_equal(self.read(case)[0], np.asarray(mask) > 0)

    def test_skin_lesions(self):
        root = shared_data("skin_lesions")
        frame = pandas.read_csv(root / "labels.csv", dtype=str)
        collection = collect_pictures(root, Options(columns={"patient": "lesion_id"}))
        self.assertEqual((len(collection.cases), collection.labels), (len(frame), ["foreground"]))
        self.assertEqual(rules(collection), [])
        self.assertEqual(len({case.patient for case in collection.cases}), frame["lesion_id"].nunique())
        mask_of = dict(zip(frame["image"], frame["mask"], strict=True))
        for case in collection.cases[::100]:
            mask = np.asarray(Image.open(root / mask_of[Path(case.image).relative_to(root).as_posix()]).convert("L"))
            self.assertEqual(Counter(self.read(case)[0].ravel()), Counter((mask > 127).astype(int).ravel()))

    @parameterized.expand(
        ["knee_kl", "dr_fundus", "brixia_cxr", "abdomen_mr", "msd_hippocampus", "totalseg_ct", "dicom"]
    )
    def test_others_have_no_pictures_with_masks(self, folder):
        self.assertIsNone(collect_pictures(shared_data(folder), Options()))


if __name__ == "__main__":
    unittest.main()
