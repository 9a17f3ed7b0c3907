# SPDX-License-Identifier: Apache-2.0
"""Parts of the app that need MONAI Label, but no server."""

from __future__ import annotations

import shutil
import unittest
from importlib.util import find_spec
from pathlib import Path

import torch
from parameterized import parameterized
from safetensors.torch import save_file
from utils_bundles import REPOSITORY
from utils_data import temporary_folder

from monai_dvpt.apps.monailabel.adapter_versions import AdapterVersions
from monai_dvpt.apps.monailabel.bundles import ServedBundle, find_bundles
from monai_dvpt.utils import InputError

if find_spec("monailabel") is None:
    raise unittest.SkipTest("needs the environment of MONAI Label: run .ci/monai_label")

from monai_dvpt.apps.monailabel.activelearning import MostUncertain
from monai_dvpt.apps.monailabel.gate import check_origins
from monai_dvpt.apps.monailabel.labelled_cases import split_cases
from monai_dvpt.apps.monailabel.train import AdapterTrainTask

HIPPOCAMPUS = "hippocampus_mri_dvpt_unetr_segmentation"
CT = "ct_dvpt_swin_unetr_segmentation"


def named(*names: str) -> list[dict[str, str]]:
    return [{"name": name} for name in names]


class TestSplitCases(unittest.TestCase):
    @parameterized.expand([(1, 0.2, 0), (2, 0.2, 1), (5, 0.2, 1), (10, 0.2, 2), (3, 0.9, 2), (5, 0.0, 0)])
    def test_counts(self, cases, share, expected):
        training, validation = split_cases(named(*map(str, range(cases))), share)
        self.assertEqual((len(training), len(validation)), (cases - expected, expected))

    def test_order_does_not_matter(self):
        cases = named(*"abcdefgh")
        found = [{case["name"] for case in part} for part in split_cases(cases, 0.25)]
        again = [{case["name"] for case in part} for part in split_cases(cases[::-1], 0.25)]
        self.assertEqual(found, again)

    def test_what_was_trained_on_does_not_validate(self):
        cases = named(*"abcde")
        for seen in ("abcd", "bcde", "ace"):
            _, validation = split_cases(cases, 0.4, set(seen))
            self.assertTrue(validation)
            self.assertFalse({case["name"] for case in validation} & set(seen))
        self.assertEqual(split_cases(cases, 0.4, set("abcde")), (cases, []))

    @parameterized.expand([(-0.1,), (1.0,), (float("nan"),)])
    def test_share_outside_its_range(self, share):
        with self.assertRaisesRegex(InputError, r"val_split must be in \[0, 1\)"):
            split_cases(named("a", "b"), share)


class TestTrainingOfABundle(unittest.TestCase):
    def test_bundle_in_a_folder_with_a_number_sign(self):
        """Which MONAI's config parser takes for a separator."""
        root = temporary_folder(self) / "bundles #1" / HIPPOCAMPUS
        shutil.copytree(REPOSITORY / "bundles" / HIPPOCAMPUS, root, ignore=shutil.ignore_patterns("output", "data"))
        bundle = ServedBundle(root, {})
        self.assertEqual(bundle.adapter_path, root / "models" / "adapter.safetensors")
        task = AdapterTrainTask(bundle, AdapterVersions("versions", "shipped"))
        workflow = task._workflow(task.config(), Path("a #1"), Path("run #1"), [{"image": "/a", "label": "/l"}], [])
        read = [workflow.parser.get_parsed_content(key) for key in ("bundle_root", "output_dir", "adapter_path")]
        self.assertEqual(read, [str(root), "run #1", "a #1"])

    def test_labels_of_organs_have_the_values_of_the_model(self):
        """The bundle's own label files have other values, which its training maps to those of the model."""
        settings = {"spacing_mm": [3.0, 3.0, 3.0], "backbone_path": "weights.pt", "prompt_maps": True}
        bundle = ServedBundle(REPOSITORY / "bundles" / CT, settings)
        task = AdapterTrainTask(bundle, AdapterVersions("versions", "shipped"))
        cases = [{"name": "a", "image": "/a.nii.gz", "label": "/l.nii.gz"}]
        request = {"max_epochs": 7, "seed": 0, "device": "cpu", "method": "dvpt"}
        workflow = task._workflow(request, Path("first"), Path("run"), cases, cases)
        parser = workflow.parser
        names = bundle.labels.names[1:]
        self.assertEqual(parser["organs"], {name: [value] for value, name in enumerate(names, start=1)})
        self.assertEqual(parser.get_parsed_content("labels"), list(bundle.labels.names))
        self.assertEqual((parser["spacing_mm"], parser["backbone_path"]), ([3.0, 3.0, 3.0], "weights.pt"))
        self.assertNotIn("prompt_maps", parser)  # of inference alone
        self.assertEqual(parser["trainable"], ["method", "head"])
        self.assertEqual(len(parser["train#dataset#data"]), 16)
        self.assertEqual(list(parser["validate#dataset#data"]), [{"image": "/a.nii.gz", "label": "/l.nii.gz"}])


class TestOrigins(unittest.TestCase):
    def test_addresses_of_web_pages(self):
        told = ["https://A.example/", " http://b:3000 ", "", "http://[::1]:8000"]
        self.assertEqual(check_origins(told), ["https://a.example", "http://b:3000", "http://[::1]:8000"])

    @parameterized.expand([("*",), ("null",), ("a.example",), ("https://a.example/page",), ("https://u:p@a.example",)])
    def test_what_is_none(self, origin):
        with self.assertRaisesRegex(InputError, "origins must be addresses"):
            check_origins([origin])


class TestFindBundles(unittest.TestCase):
    def test_bundles_without_their_weights(self):
        folder = REPOSITORY / "bundles"
        with self.assertLogs("monai_dvpt.apps.monailabel.bundles", "WARNING") as logs:
            found = find_bundles(folder, [], {})
        self.assertIn("hippocampus_mri_dvpt_vit_classification", found)
        self.assertIn("xray_dvpt_vit_classification: backbone_path must be an existing file", "\n".join(logs.output))
        with self.assertRaisesRegex(InputError, "xray_dvpt_vit_classification: backbone_path must be an existing file"):
            find_bundles(folder, ["xray_dvpt_vit_classification"], {})
        pictures = "skin_lesion_dvpt_vit_segmentation"
        with self.assertRaisesRegex(InputError, f"^{pictures}: must segment volumes, .*; it segments pictures"):
            find_bundles(folder, [pictures], {})
        with self.assertRaisesRegex(InputError, r"models must be of .* got \['nothing'\]"):
            find_bundles(folder, ["nothing"], {})

    def test_settings_of_a_bundle(self):
        name = "hippocampus_mri_dvpt_unetr_segmentation"
        folder = temporary_folder(self)
        save_file({"a": torch.zeros(1)}, folder / "other.safetensors")
        conf = {f"{name}#backbone_path": str(folder / "other.safetensors"), f"{name}#overlap": "0.5"}
        bundle = find_bundles(REPOSITORY / "bundles", [name], conf)[name]
        self.assertEqual((bundle.backbone_path.name, bundle.config["overlap"]), ("other.safetensors", 0.5))
        with self.assertRaisesRegex(InputError, f"{name}: .*other.safetensors"):
            bundle.network()


class TestMostUncertain(unittest.TestCase):
    def test_ranks(self):
        folder = temporary_folder(self)
        versions = AdapterVersions(folder, "shipped")
        scores = {"a": 0.25, "b": 0.5, "c": None}
        versions.keep_scores("entropy", {name: {"adapter": "v1", "entropy": score} for name, score in scores.items()})
        strategy = MostUncertain({"model": versions})

        class Store:
            images = ["c", "d", "a", "b"]

            def get_unlabeled_images(self, label_tag, labels):
                return self.images

        store, chosen = Store(), []
        while found := strategy({}, store):
            chosen.append(found["id"])
            store.images = [image for image in store.images if image != found["id"]]
        self.assertEqual(chosen, ["b", "a", "d", "c"])
        (folder / "entropy.json").write_text("{")
        self.assertEqual(strategy({}, Store())["id"], "a")
