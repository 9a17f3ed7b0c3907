# SPDX-License-Identifier: Apache-2.0
"""The shipped grading adapter on real images, and both tasks of the hippocampus on one backbone in memory."""

from __future__ import annotations

import csv
import unittest

import torch
from monai.bundle import ConfigParser
from utils_bundles import workflow
from utils_data import ROOT, shared_data, temporary_folder

from monai_dvpt.networks.adapter import adapter_metadata, load_adapter, share_backbone
from monai_dvpt.networks.parts import freeze_backbone
from monai_dvpt.networks.pretrained import MRI_VIT_TINY

GRADING = ROOT / "bundles" / "hippocampus_mri_dvpt_vit_classification"
SEGMENTATION = ROOT / "bundles" / "hippocampus_mri_dvpt_unetr_segmentation"
ADAPTER = GRADING / "models" / "adapter.safetensors"


def inference(bundle) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.yaml")
    parser["bundle_root"] = str(bundle)
    return parser


class TestShippedAdapter(unittest.TestCase):
    def test_one_backbone_two_small_files(self):
        files = [ADAPTER, SEGMENTATION / "models" / "adapter.safetensors"]
        grade, segmentation = (adapter_metadata(file) for file in files)
        self.assertEqual(grade["backbone_sha256"], segmentation["backbone_sha256"])
        self.assertEqual(grade["backbone_file"], MRI_VIT_TINY.name)
        self.assertEqual(grade["parts"], ["method", "head"])
        self.assertLess(ADAPTER.stat().st_size, 1_000_000)

    def test_score_on_validation_cases(self):
        out = temporary_folder(self)
        settings = {"dataset_dir": str(shared_data("msd_hippocampus")), "output_dir": str(out)}
        evaluate = workflow(GRADING, "evaluate", "train", **settings)
        evaluate.run()
        evaluate.finalize()
        with open(out / "metrics.csv") as file:
            kappa = float(dict(row for row in csv.reader(file) if len(row) == 2)["val_kappa"])
        noted = adapter_metadata(ADAPTER)["notes"]["metrics"]["val_kappa"]
        self.assertAlmostEqual(kappa, noted, delta=0.03)

    def test_both_tasks_on_one_backbone(self):
        image = shared_data("msd_hippocampus/imagesTr/hippocampus_006.nii.gz")
        parsers = [inference(bundle) for bundle in (GRADING, SEGMENTATION)]
        inputs, apart = [], []
        for parser in parsers:
            prepared = parser.get_parsed_content("preprocessing")({"image": str(image), "name": "a"})
            inputs.append(prepared["image"][None].as_tensor())
            apart.append(parser.get_parsed_content("network").eval())
        segmenter = freeze_backbone(inference(SEGMENTATION).get_parsed_content("network")).eval()
        grader = share_backbone(parsers[0].get_parsed_content("network_def", instantiate=True), segmenter)
        load_adapter(grader, ADAPTER).eval()
        shared = set(map(id, segmenter.vit.parameters()))
        own = [p for name, p in grader.named_parameters() if grader.part_of(name) == "backbone"]
        self.assertTrue(own and all(id(p) in shared for p in own))
        crop = inputs[1][..., :40, :56, :40]
        sides = [(40 - crop.shape[2]), (56 - crop.shape[3]), (40 - crop.shape[4])]
        padded = torch.nn.functional.pad(crop, (0, sides[2], 0, sides[1], 0, sides[0]))
        with torch.inference_mode():
            torch.testing.assert_close(grader(inputs[0]), apart[0](inputs[0]), rtol=0, atol=0)
            torch.testing.assert_close(segmenter(padded), apart[1](padded), rtol=0, atol=0)


if __name__ == "__main__":
    unittest.main()
