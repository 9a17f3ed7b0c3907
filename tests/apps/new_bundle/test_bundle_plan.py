# SPDX-License-Identifier: Apache-2.0
"""Plans, of measurements whose right answer is plain or that of a bundle tuned by hand."""

from __future__ import annotations

import itertools
import json
import unittest
from pathlib import Path

import torch
import yaml
from monai.data.utils import dense_patch_slices
from monai.inferers.utils import _get_scan_interval
from monai.networks.nets import ViT
from parameterized import parameterized
from utils_data import shared_data, temporary_folder

from monai_dvpt.apps.new_bundle.check import measure_cases
from monai_dvpt.apps.new_bundle.collect import collect
from monai_dvpt.apps.new_bundle.model import Case, Collection, Measurement, Options
from monai_dvpt.apps.new_bundle.plan import Plan, make_plan
from monai_dvpt.apps.new_bundle.plan.planning import has_sides, side_by_side
from monai_dvpt.apps.new_bundle.plan.step import Step, measure_steps
from monai_dvpt.apps.new_bundle.plan.window import count_windows, fit_window
from monai_dvpt.utils import InputError, to_json

BUNDLES = Path(__file__).parents[3] / "bundles"
HIPPOCAMPUS = {"size": (36, 51, 36), "spacing_mm": (1.0, 1.0, 1.0), "voxels": {"anterior": 1700, "posterior": 1500}}
ABDOMEN = {"size": (256, 256, 36), "spacing_mm": (1.25, 1.25, 7.7), "voxels": {"liver": 90000, "left_kidney": 9000}}
CT = {"range": (-1024.0, 3000.0), "foreground": (-88.4, 40.0, 203.6), "percentiles": (-1000.0, 0.0, 900.0)}


def measurement(**facts) -> Measurement:
    given = {
        "size": (36, 51, 36),
        "spacing_mm": (1.0, 1.0, 1.0),
        "channels": 1,
        "range": (0.0, 900.0),
        "percentiles": (1.0, 200.0, 700.0),
        "foreground": (50.0, 200.0, 400.0),
        "mean": 200.0,
        "std": 60.0,
        "zeros": 0.001,
        "voxels": {},
        "content": "",
        **facts,
    }
    return Measurement(**given)


def plan_of(count: int = 160, labels=("anterior", "posterior"), measure=None, backbone=None, **facts) -> Plan:
    """The plan of the segmentation of equal cases."""
    each = measurement(**facts)
    dims = len(each.size)
    cases = [Case(f"case{index}", "image", lambda image: (image, {})) for index in range(count)]
    collection = Collection("segmentation", dims, Path("data"), cases, list(labels))
    parts = {"training": list(range(count)), "validation": []}
    return make_plan(collection, [each] * count, parts, backbone, measure)


def plan_of_grades(grades: list[str], names: list[str], task: str = "grading", backbone=None, **facts) -> Plan:
    cases = [Case(f"case{index}", "image", grades={"grade": grade}) for index, grade in enumerate(grades)]
    each = measurement(foreground=None, **facts)
    collection = Collection(task, len(each.size), Path("data"), cases, names, ["grade"])
    parts = {"training": list(range(len(cases))), "validation": []}
    return make_plan(collection, [each] * len(cases), parts, backbone, None)


def write_vit(path: Path, layers: int = 1) -> Path:
    """Random weights, 192 wide, of a 2D ViT with patches of 16 pixels."""
    torch.manual_seed(0)
    net = ViT(3, 224, 16, 192, 768, layers, num_heads=3, classification=True, spatial_dims=2, qkv_bias=True)
    torch.save(net.state_dict(), path)
    return path


class TestVolumes(unittest.TestCase):
    def test_the_hippocampus_gets_the_settings_tuned_by_hand(self):
        config = BUNDLES / "hippocampus_mri_dvpt_unetr_segmentation" / "configs" / "train.yaml"
        hand, plan = yaml.safe_load(config.read_text()), plan_of(**HIPPOCAMPUS)
        same = ("roi_size", "spacing_mm", "batch_size", "learning_rates", "method", "val_interval")
        self.assertEqual({name: plan[name] for name in same}, {name: hand[name] for name in same})
        self.assertAlmostEqual(plan["max_epochs"], hand["max_epochs"], delta=1)
        self.assertEqual(hand["network_def"]["_target_"].rpartition(".")[2], plan["network"])
        self.assertEqual(plan["patch_size"], hand["network_def"]["patch_size"])
        turned = next(step for step in hand["train"]["random_transforms"] if step["_target_"] == "RandAffined")
        self.assertEqual(plan["augmentation"]["rotate"], turned["rotate_range"])
        self.assertEqual((plan["flips"], plan["crops"]), ([0], {"rule": "random"}))

    def test_every_choice_has_a_value_for_json_and_a_sentence(self):
        for plan in (plan_of(**HIPPOCAMPUS), plan_of_grades(["0", "1"] * 20, ["0", "1"])):
            read = json.loads(to_json(plan.as_json()))
            self.assertEqual({name: entry["value"] for name, entry in read.items()}, plan.values)
            for name, entry in read.items():
                self.assertRegex(entry["reason"], r"^\S.{5,}\.$", name)
            self.assertEqual(len(list(plan.lines())), len(read))

    def test_thick_slices_are_kept(self):
        plan = plan_of(8, ["liver", "left_kidney"], **ABDOMEN)
        self.assertEqual(plan["spacing_mm"][2], 7.7)
        self.assertGreater(plan["spacing_mm"][0], 1.25)
        self.assertLess(plan["spacing_mm"][0], 7.7)
        self.assertEqual(plan["spacing_mm"][0], plan["spacing_mm"][1])
        self.assertGreaterEqual(plan["roi_size"][2], 36)  # all slices
        self.assertEqual(plan["augmentation"]["rotate"][:2], [0.0, 0.0])
        self.assertIn("slices", plan.choices["spacing_mm"].reason)

    @parameterized.expand(
        [
            ("two kidneys", (100.0, 10.0, -20.0), 9000, ("1", "2")),
            ("one much larger than the other", (100.0, 10.0, -20.0), 60000, None),
            ("one before the other", (20.0, 40.0, 5.0), 9000, None),
            ("at one place", (0.0, 0.0, 0.0), 9000, None),
        ]
    )
    def test_labels_that_lie_side_by_side(self, _, second, size, expected):
        voxels = {"1": 9000, "2": size}

        def image(sign: int) -> Measurement:
            return measurement(voxels=voxels, centres={"1": (0.0, 0.0, 0.0), "2": (sign * second[0], *second[1:])})

        self.assertEqual(side_by_side([image(1)] * 4, 0), expected)
        self.assertIsNone(side_by_side([image(1)], 0))  # one image says nothing
        self.assertIsNone(side_by_side([image(1), image(-1)], 0))  # on either side

    def test_nothing_is_mirrored_where_unnamed_labels_have_sides(self):
        kidneys = {"voxels": {"1": 9000, "2": 9000}, "centres": {"1": (0.0, 0.0, 0.0), "2": (99.0, 9.0, 9.0)}}
        plan = plan_of(8, ["1", "2"], **{**ABDOMEN, **kidneys})
        self.assertEqual(plan["flips"], [])
        self.assertIn("labels 1 and 2", plan.choices["flips"].reason)

    def test_real_kidneys_and_hippocampi(self):
        for folder, expected in (("abdomen_mr", ("2", "3")), ("msd_hippocampus", None)):
            measured, _ = measure_cases(collect(shared_data(folder), Options()))
            self.assertEqual(side_by_side(measured, 0), expected)

    def test_mirrored_labels_are_not_flipped(self):
        plan = plan_of(8, ["liver", "left_kidney"], **ABDOMEN)
        self.assertEqual(plan["flips"], [])

    @parameterized.expand(
        [
            (["liver", "kidney_L"], True),
            (["Kidney (right)"], True),
            (["LeftVentricle"], True),
            (["anterior", "posterior"], False),
            (["liver", "lung"], False),
            (["R"], True),
        ]
    )
    def test_sides(self, names, sides):
        self.assertEqual(has_sides(names), sides)

    def test_small_labels_in_a_large_image_are_cropped_by_label(self):
        facts = {"size": (300, 300, 200), "spacing_mm": (1.5, 1.5, 2.0)}
        few = plan_of(20, ["spleen"], voxels={"spleen": 100_000}, **facts)
        many = plan_of(20, ["body"], voxels={"body": 9_000_000}, **facts)
        self.assertEqual(few["crops"]["rule"], "by label")
        self.assertEqual(many["crops"]["rule"], "random")
        self.assertEqual(few["max_epochs"], 25)  # 20 cases, 4 crops each, 2 a step, 1,000 steps
        self.assertEqual(many["max_epochs"], 100)

    @parameterized.expand([(1, 250), (160, 12), (5000, 5)])
    def test_epochs_have_bounds(self, cases, epochs):
        self.assertEqual(plan_of(cases, **HIPPOCAMPUS)["max_epochs"], epochs)

    def test_ct_is_clipped_to_its_labels(self):
        plan = plan_of(20, **{**HIPPOCAMPUS, **CT})
        self.assertEqual(plan["intensity"], {"rule": "range", "low": -88, "high": 204})

    @parameterized.expand([(0.5, 0.0, True), (0.5, 12.0, False), (0.2, 0.0, False)])
    def test_zeros_that_fill_an_image_are_no_tissue(self, zeros, low, nonzero):
        plan = plan_of(20, **HIPPOCAMPUS, zeros=zeros, range=(low, 900.0))
        self.assertEqual(plan["intensity"], {"rule": "z-score", "nonzero": nonzero})

    def test_the_largest_window_whose_step_fits_is_taken(self):
        facts = {"size": (300, 300, 200), "spacing_mm": (1.5, 1.5, 2.0)}
        fast, slow = Step(1.0, 0.1, "CPU"), Step(9.0, 0.1, "CPU")
        asked = []

        def measure(network, arguments, batch_size):
            asked.extend(arguments)
            return [fast, fast, slow]

        plan = plan_of(20, ["spleen"], measure=measure, **facts)
        self.assertEqual(plan["roi_size"], asked[1]["img_size"])
        self.assertIn("takes 1.0 s", plan.choices["roi_size"].reason)
        self.assertIn("next larger takes 9.0 s", plan.choices["roi_size"].reason)
        self.assertEqual([len(a["img_size"]) for a in asked], [3] * len(asked))
        sizes = [torch.tensor(a["img_size"]).prod().item() for a in asked]
        self.assertEqual(sizes, sorted(sizes))
        first = plan_of(20, ["spleen"], measure=lambda *_: [slow], **facts)
        self.assertEqual(first["roi_size"], asked[0]["img_size"])
        self.assertIn("though a training step takes 9.0 s", first.choices["roi_size"].reason)

    def test_a_step_is_measured_on_this_machine(self):
        arguments = {"in_channels": 1, "out_channels": 2, "feature_size": 2, "patch_size": 8}
        arguments |= {"hidden_size": 24, "mlp_dim": 32, "num_heads": 2, "method": "linear"}
        steps = measure_steps(
            "DVPTUNETR", [{**arguments, "img_size": [16, 16, 24]}, {**arguments, "img_size": [7] * 3}], 1
        )
        self.assertEqual(len(steps), 1)  # the second is impossible
        self.assertGreater(steps[0].seconds, 0)
        self.assertTrue(0 < steps[0].share < 1)


class TestWindows(unittest.TestCase):
    @parameterized.expand([((100, 60, 40), (40, 40, 40)), ((121, 33, 64), (24, 40, 32)), ((9, 500, 70), (8, 96, 16))])
    def test_they_are_counted_as_monai_takes_them(self, size, roi):
        padded = tuple(max(pair) for pair in zip(size, roi, strict=True))
        interval = _get_scan_interval(padded, roi, 3, (0.25,) * 3)
        self.assertEqual(count_windows(size, roi), len(dense_patch_slices(padded, roi, interval)))

    def test_a_window_keeps_its_bounds(self):
        sides = [(40.0, 300.0), (1.0, 1.5), (0.7, 5.0)]
        for x, y, z in itertools.product(*sides):
            for tokens in (64, 512):
                extent, spacing = (x, 2 * x, 200.0), (y, y, z)
                window = fit_window(extent, spacing, (8, 8, 8), tokens)
                self.assertLessEqual(window.tokens, tokens)
                self.assertEqual(window.tokens * 512, torch.tensor(window.roi_size).prod().item())
                self.assertLessEqual(window.windows, 8)
                self.assertTrue(all(new >= old for new, old in zip(window.spacing_mm, spacing, strict=True)))

    def test_a_small_image_is_covered_at_its_own_spacing(self):
        window = fit_window((36.0, 51.0, 36.0), (1.0, 1.0, 1.0), (8, 8, 8), 512)
        self.assertEqual((window.spacing_mm, window.roi_size), ((1.0, 1.0, 1.0), (40, 56, 40)))
        self.assertEqual(window.windows, 1)


class TestPictures(unittest.TestCase):
    def setUp(self):
        self.backbone = write_vit(temporary_folder(self) / "vit.pt")
        self.facts = {"size": (150, 200), "spacing_mm": None}

    def test_pictures_without_weights_are_refused_with_what_to_pass(self):
        with self.assertRaisesRegex(InputError, "--backbone FILE"):
            plan_of_grades(["0", "1"] * 20, ["0", "1"], **self.facts)

    def test_colours_keep_their_meaning(self):
        plan = plan_of(100, ["lesion"], backbone=self.backbone, channels=3, **self.facts)
        self.assertEqual(plan["intensity"], {"rule": "range", "low": 0, "high": 255})
        self.assertEqual((plan["img_size"], plan["flips"], plan["batch_size"]), (224, [0, 1], 8))

    def test_grey_pictures_are_scaled_by_their_percentiles_and_stay_upright(self):
        plan = plan_of(100, ["lung"], backbone=self.backbone, **self.facts)
        self.assertEqual(plan["intensity"], {"rule": "percentiles", "lower": 1, "upper": 99})
        self.assertEqual(plan["flips"], [1])
        sided = plan_of(100, ["left lung", "right lung"], backbone=self.backbone, **self.facts)
        self.assertEqual(sided["flips"], [])

    def test_large_pictures_are_segmented_larger(self):
        plan = plan_of(20, ["vessel"], backbone=self.backbone, channels=3, size=(960, 999), spacing_mm=None)
        self.assertEqual(plan["img_size"], 448)

    def test_knees_get_the_settings_tuned_by_hand(self):
        config = BUNDLES / "knee_xray_dvpt_vit_classification" / "configs" / "train.yaml"
        hand = yaml.safe_load(config.read_text())
        plan = plan_of_grades(list("01234") * 270, list("01234"), backbone=self.backbone, **self.facts)
        same = ("method", "pooling", "batch_size", "sampling", "learning_rates", "sharpness", "decision", "coverage")
        same += ("augment", "prefix_cache", "img_size")
        self.assertEqual({name: plan[name] for name in same}, {name: hand[name] for name in same})
        self.assertTrue(20 <= plan["max_epochs"] <= 40)

    @parameterized.expand([(["a"] * 110 + ["b"] * 10, "balanced"), (["a"] * 100 + ["b"] * 10, "natural")])
    def test_rare_classes_are_drawn_more_often(self, grades, sampling):
        plan = plan_of_grades(grades, ["a", "b"], "classification", self.backbone, **self.facts)
        self.assertEqual(plan["sampling"], sampling)
        self.assertNotIn("coverage", plan.values)


class TestGradesOfVolumes(unittest.TestCase):
    def test_the_whole_image_is_seen(self):
        plan = plan_of_grades(["0", "1"] * 80, ["0", "1"], size=(180, 220, 170))
        covered = [side * step for side, step in zip(plan["roi_size"], plan["spacing_mm"], strict=True)]
        for long, extent, largest in zip(covered, (180, 220, 170), plan["largest_size"], strict=True):
            self.assertGreaterEqual(long + 1, extent)
            self.assertGreater(largest, 0)
        self.assertLessEqual(torch.tensor(plan["roi_size"]).prod().item(), 512 * 512)


if __name__ == "__main__":
    unittest.main()
