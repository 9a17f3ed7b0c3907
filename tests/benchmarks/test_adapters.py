# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import unittest
from functools import partial
from unittest import mock

import torch
from parameterized import parameterized
from utils_commands import UNETR, VIT, call
from utils_data import temporary_folder

from benchmarks import adapters
from benchmarks.__main__ import main
from benchmarks.adapters import NETWORKS, ROWS, measure_adapter_size, measure_adapters
from monai_dvpt.networks.nets import DVPTUNETR, DVPTViT

TINY = {"vit": partial(DVPTViT, **VIT), "unetr": partial(DVPTUNETR, **UNETR)}


class TestMeasureAdapters(unittest.TestCase):
    def test_counted_by_hand(self):
        vit, unetr = measure_adapters(TINY, repeats=3)
        self.assertEqual((vit["network"], unetr["network"]), ("vit", "unetr"))
        width, mlp = 24, 20
        norms = 3 * 2 * width  # the third for cross-attention, which MONAI builds and does not use
        layer = norms + 3 * width * width + width * width + width + 2 * width * mlp + width + mlp
        patches = 2 * 16 * 16 * width + width + 6 * width  # 2 x 3 tokens
        backbone = 5 * (layer + 3 * width) + patches + width + 2 * width  # bias of qkv; class token; last norm
        self.assertEqual(vit["backbone_parameters"], backbone)
        self.assertEqual(unetr["backbone_parameters"], 12 * layer + patches + 2 * width)
        block = 24 * 5 + 5 + 7 * 5 + 1 + 5 * 24 + 24
        self.assertEqual((vit["dvpt_parameters"], unetr["dvpt_parameters"]), (2 * block, 4 * block))
        self.assertAlmostEqual(vit["dvpt_percent"], 100 * 2 * block / backbone)
        self.assertEqual(vit["adapter_parts"], ["method", "head"])
        self.assertEqual(unetr["adapter_parts"], ["method", "decoder", "head"])
        self.assertGreater(vit["adapter_bytes"], 4 * (2 * block + 24 * 3 + 3))
        self.assertGreater(vit["full_bytes"], 4 * (backbone + 2 * block + 24 * 3 + 3))
        for row in (vit, unetr):
            self.assertAlmostEqual(row["saved_percent"], 100 - 100 * row["adapter_bytes"] / row["full_bytes"])
            for key in ("full_load_seconds", "load_adapter_seconds", "set_adapter_seconds"):
                self.assertGreater(row[key], 0)
            self.assertAlmostEqual(row["switch_ratio"], row["set_adapter_seconds"] / row["full_load_seconds"])
            self.assertIs(row["same_answers"], True)

    @parameterized.expand([("wrong",), ("equal",)])
    def test_answers_that_are_not_those_of_a_fresh_load(self, fault):
        def nothing(net, *args):
            return net

        name = "set_adapter" if fault == "wrong" else "_randomise_adapter"
        with mock.patch.object(adapters, name, nothing):
            self.assertIs(measure_adapters({"vit": TINY["vit"]}, 1)[0]["same_answers"], False)

    def test_leaves_random_numbers_alone(self):
        state = torch.get_rng_state()
        measure_adapters({"vit": TINY["vit"]}, 1)
        self.assertTrue(torch.equal(torch.get_rng_state(), state))


class TestClaims(unittest.TestCase):
    """What the method promises for ViT-B/16, in files that were really written."""

    def test_vit_b16(self):
        size = measure_adapter_size(NETWORKS["vit_b16"](), temporary_folder(self))
        self.assertLessEqual(size["dvpt_percent"], 0.5)
        self.assertLessEqual(size["adapter_bytes"], 1_000_000)
        self.assertGreater(size["full_bytes"], 343_000_000)
        self.assertGreater(size["saved_percent"], 99)


class TestCommand(unittest.TestCase):
    def setUp(self):
        networks = mock.patch.dict(adapters.NETWORKS, TINY, clear=True)
        networks.start()
        self.addCleanup(networks.stop)
        self.folder = temporary_folder(self)

    def test_table_and_files(self):
        status, out, err = call(main, "adapters", "--repeats", 1, "--output", self.folder / "new")
        self.assertEqual(status, 0)
        self.assertIn("unetr: 100%", err)
        table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line[0] == "|"]
        self.assertEqual(table[0], ["", "vit", "unetr"])
        self.assertEqual([row[0] for row in table[2:]], [row.title for row in ROWS[1:]])
        self.assertIn(["DVPT, parameters", "610", "1,220"], table)
        self.assertIn(["answers as after a fresh load", "yes", "yes"], table)
        self.assertIn("Weights are random", out)
        with open(self.folder / "new" / "adapters.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual([row["network"] for row in rows], ["vit", "unetr"])
        self.assertEqual([row["dvpt_parameters"] for row in rows], ["610", "1220"])
        self.assertEqual([row["adapter_parts"] for row in rows], ["method+head", "method+decoder+head"])
        loads = [f"{float(row['full_load_seconds']):.4f}" for row in rows]
        self.assertIn(["load the full model, s", *loads], table)
        self.assertEqual(
            (rows[1]["torch"], rows[1]["torch_threads"]), (torch.__version__, str(torch.get_num_threads()))
        )

    def test_chosen_network(self):
        _, out, _ = call(main, "adapters", "--networks", "unetr", "--repeats", 1)
        self.assertEqual(out.splitlines()[0].split(), ["|", "|", "unetr", "|"])

    def test_bad_arguments(self):
        status, out, err = call(main, "adapters", "--repeats", 0)
        self.assertEqual((status, out, err), (1, "", "error: --repeats must be at least 1, got 0.\n"))
        (self.folder / "file").touch()
        status, _, err = call(main, "adapters", "--repeats", 1, "--output", self.folder / "file")
        self.assertEqual(status, 1)
        self.assertRegex(err, r"error: .*file/adapters.csv: cannot be written: [^\n]*\n$")
        with self.assertRaises(SystemExit):
            call(main, "adapters", "--networks", "resnet")


if __name__ == "__main__":
    unittest.main()
