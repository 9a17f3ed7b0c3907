# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import re
import unittest

import torch
from safetensors.torch import save_file
from utils_commands import call
from utils_data import shared_data, temporary_folder

from monai_dvpt.__main__ import main
from monai_dvpt.networks.pretrained import MRI_VIT_TINY


def rows_of(text: str) -> list[tuple[str, str]]:
    """Label and value of each line; the values begin in one column."""
    lines = text.splitlines()
    start = re.search(r"^file +", lines[0]).end()
    return [(line[:start].strip(), line[start:]) for line in lines]


class TestInfo(unittest.TestCase):
    def test_text(self):
        status, out, err = call(main, "backbone", "info", MRI_VIT_TINY)
        self.assertEqual((status, err), (0, ""))
        rows = rows_of(out)
        found = dict(rows)
        self.assertEqual(found["file"], f"{MRI_VIT_TINY}, {MRI_VIT_TINY.stat().st_size:,} bytes")
        self.assertEqual(found["SHA-256"], hashlib.sha256(MRI_VIT_TINY.read_bytes()).hexdigest())
        self.assertEqual((found["layout"], found["family"]), ("MONAI ViT", "not known"))
        self.assertEqual((found["img_size"], found["patch_size"], found["qkv_bias"]), ("[40, 56, 40]", "8", "false"))
        self.assertEqual(found["num_heads"], "3, as usual for this width; the file does not say it")
        self.assertEqual(
            [value.split(":")[0] for label, value in rows if label == "fits"],
            ["DVPTViT", "DVPTViTSegmenter", "DVPTUNETR"],
        )
        self.assertEqual(found["DVPT"], "trains 51,332, 0.94 % of the encoder's parameters")  # as in weights/README.md

    def test_json_of_several(self):
        released = shared_data("weights/vit_tiny_patch16_224_timm.safetensors")
        status, out, err = call(main, "backbone", "info", released, MRI_VIT_TINY, "--json")
        self.assertEqual((status, err), (0, ""))
        first, second = json.loads(out)
        self.assertEqual(first["files"][0]["path"], str(released))
        self.assertEqual((first["sizes"]["img_size"], first["sizes"]["spatial_dims"]), (224, 2))
        self.assertEqual(second["sizes"]["spatial_dims"], 3)
        self.assertAlmostEqual(first["dvpt_share"], first["dvpt_parameters"] / first["parameters"])
        self.assertEqual({fit["network"]: fit["fits"] for fit in first["fits"]}["DVPTUNETR"], True)

    def test_refused_with_its_reason(self):
        path = temporary_folder(self) / "other.safetensors"
        save_file({"fc.weight": torch.zeros(2, 2)}, path)
        status, out, err = call(main, "backbone", "info", path, MRI_VIT_TINY)
        self.assertEqual(status, 1)
        self.assertIn("must hold weights of a ViT", dict(rows_of(out))["refused"])
        self.assertIn("DVPTUNETR", out)  # the second is said all the same
        self.assertEqual(err, f"error: 1 of 2 sources cannot be used as a backbone: {path}.\n")
        status, out, _ = call(main, "backbone", "info", path, "--json")
        self.assertEqual(status, 1)
        self.assertIn("must hold weights of a ViT", json.loads(out)[0]["refused"])

    def test_no_file(self):
        status, out, err = call(main, "backbone", "info", "none.pt")
        self.assertEqual((status, out), (1, ""))
        self.assertRegex(err, "^error: none.pt: .*existing file")


if __name__ == "__main__":
    unittest.main()
