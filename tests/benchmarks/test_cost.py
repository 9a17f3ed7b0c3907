# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import unittest
from functools import partial
from unittest import mock

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.nets import UNETR, ViT
from parameterized import parameterized
from tqdm import tqdm
from utils_commands import UNETR as UNETR_SIZES
from utils_commands import VIT, call
from utils_data import entered, temporary_folder

from benchmarks.__main__ import main
from benchmarks.cost import NETWORKS
from benchmarks.cost.measure import Trial, count_flops, saved_bytes
from benchmarks.cost.measure_cost import RESULTS, measure_cost
from benchmarks.cost.tokens import fit_exponent, measure_tokens
from benchmarks.cost.variants import REFERENCE, VARIANTS, Network, build_variant
from benchmarks.measuring import interleave
from monai_dvpt.networks.blocks import DVPTBlock
from monai_dvpt.networks.nets import DVPTUNETR, DVPTViT

ADDED = ("bottleneck_size", "num_prompts", "share_every")
VIT_PLAIN = {key: value for key, value in VIT.items() if key not in ADDED}
VIT_PLAIN |= {"patch_size": 16, "classification": True, "post_activation": "none", "qkv_bias": True}
UNETR_PLAIN = {key: value for key, value in UNETR_SIZES.items() if key not in ADDED}
TINY = {
    "vit": Network(partial(ViT, **VIT_PLAIN), partial(DVPTViT, **VIT), (2, 32, 48), 3, 4),
    "unetr": Network(partial(UNETR, **UNETR_PLAIN), partial(DVPTUNETR, **UNETR_SIZES), (2, 32, 48), 3, 2, True),
}
SLOW = {"peak_bytes", "peak_bytes_ratio"}


class TestSavedBytes(unittest.TestCase):
    def test_counted_by_hand(self):
        net = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))
        x, label = torch.randn(2, 5), torch.tensor([0, 2])
        held = [*net.parameters(), x, label]
        hidden = 2 * 2 * 7 * 4  # before and after the activation
        self.assertEqual(saved_bytes(lambda: net(x).sum(), held), hidden)
        loss = 2 * 3 * 4 + 4  # log-probabilities, and the sum of the weights of the labels
        self.assertEqual(saved_bytes(lambda: F.cross_entropy(net(x), label), held), hidden + loss)
        self.assertEqual(saved_bytes(lambda: net(x).sum(), list(net.parameters())), hidden + 2 * 5 * 4)

    def test_frozen_before(self):
        net = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))
        net[0].requires_grad_(False)
        x = torch.randn(2, 5)
        self.assertEqual(saved_bytes(lambda: net(x).sum(), [*net.parameters(), x]), 2 * 7 * 4)

    def test_one_storage_counts_once(self):
        x = torch.ones(6, requires_grad=True)

        def squares():
            y = x * 2
            return (y[:4] * y[2:]).sum()

        self.assertEqual(saved_bytes(squares, [x]), 6 * 4)


class TestCountFlops(unittest.TestCase):
    def test_attention(self):
        q, k = torch.randn(1, 1, 3, 8), torch.randn(1, 1, 5, 8)
        self.assertEqual(count_flops(lambda: F.scaled_dot_product_attention(q, k, k)), 2 * 2 * 3 * 5 * 8)


class TestInterleave(unittest.TestCase):
    def test_every_function_in_every_round(self):
        ran = []
        seconds = interleave({name: partial(ran.append, name) for name in "abcdefg"}, 5, tqdm(disable=True))
        rounds = ["".join(ran[start : start + 7]) for start in range(0, 35, 7)]
        self.assertEqual({"".join(sorted(one)) for one in rounds}, {"abcdefg"})
        self.assertEqual(len(set(rounds)), 5)
        self.assertEqual({name: len(times) for name, times in seconds.items()}, dict.fromkeys("abcdefg", 5))


class TestVariants(unittest.TestCase):
    @parameterized.expand([(name, kind) for kind in TINY for name in VARIANTS if name != "peft_lora"])
    def test_a_step_changes_nothing(self, name, kind):
        network = TINY[kind]
        template = network.dvpt()
        before = {key: tensor.clone() for key, tensor in template.state_dict().items()}
        try:
            net = build_variant(name, network, template)
        except ValueError as error:
            self.assertEqual((name, kind), ("vpt_shallow", "unetr"))
            self.assertIn("must have an encoder", str(error))
            return
        shared = {key: t.data_ptr() for key, t in net.state_dict().items() if key.startswith(("blocks", "vit", "dec"))}
        self.assertTrue(shared)
        for key, address in shared.items():
            if key in before:
                self.assertEqual(address, template.state_dict()[key].data_ptr(), key)
        trial = Trial(net, network, VARIANTS[name].cached)
        trial.step()
        self.assertTrue(all(parameter.grad is None for parameter in net.parameters()))
        for key, tensor in template.state_dict().items():
            if "running" not in key and "num_batches" not in key:
                self.assertTrue(torch.equal(tensor, before[key]), key)

    @parameterized.expand(TINY)
    def test_reference_is_dvpt_off(self, kind):
        network = TINY[kind]
        template = network.dvpt()
        answers = [
            Trial(build_variant(name, network, template).eval(), network).infer() for name in (REFERENCE, "linear")
        ]
        torch.testing.assert_close(*answers, rtol=0, atol=1e-5)


class TestMeasureCost(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        entered(cls, mock.patch("monai_dvpt.networks.blocks.dvpt_block.KEEP_FROM", 1))  # as with more tokens
        state = torch.get_rng_state()
        results, cls.left_out = measure_cost(TINY, rounds=2, peak_memory=False)
        cls.same_state = torch.equal(torch.get_rng_state(), state)
        cls.results = {(row["network"], row["method"]): row for row in results}

    def test_leaves_random_numbers_alone(self):
        self.assertTrue(self.same_state)

    @parameterized.expand(TINY)
    def test_reference(self, kind):
        reference = self.results[kind, REFERENCE]
        ratios = {key: value for key, value in reference.items() if "ratio" in key and not key.startswith("peak")}
        self.assertEqual(ratios, dict.fromkeys(ratios, 1))
        off = self.results[kind, "linear"]
        self.assertEqual(off["inference_flops_ratio"], 1)
        self.assertLess(off["step_flops"], reference["step_flops"])

    def test_all_measured(self):
        for (_, name), row in self.results.items():
            variant = VARIANTS[name]
            self.assertEqual(set(row), {"network", "method", "batch", *RESULTS})
            missing = {key for key in RESULTS if row[key] is None} - SLOW
            expected = set() if variant.cached else {"cached_bytes"}
            if not variant.infers:
                expected |= {key for key in RESULTS if key.startswith("inference")}
            self.assertEqual(missing, expected, name)
            for key in ("step_seconds_ratio", "inference_seconds_ratio"):
                if row[key] is not None:
                    self.assertLessEqual(row[f"{key}_min"], row[key])
                    self.assertLessEqual(row[key], row[f"{key}_max"])

    def test_left_out(self):
        self.assertNotIn(("unetr", "vpt_shallow"), self.results)
        (line,) = (line for line in self.left_out if "vpt_shallow" in line)
        self.assertTrue(line.startswith('unetr, vpt_shallow: the method "vpt_shallow" must have an encoder '), line)

    def test_without_peft(self):
        with mock.patch("benchmarks.cost.variants.optional_import", return_value=(None, False)):
            results, left_out = measure_cost({"vit": TINY["vit"]}, ["peft_lora"], rounds=1, peak_memory=False)
        self.assertEqual([row["method"] for row in results], [REFERENCE])
        self.assertEqual(len(left_out), 1)
        self.assertRegex(left_out[0], "^vit, peft_lora: .*the package peft must be installed.$")

    def test_less_work(self):
        """What the method promises, in numbers that no other load on the machine changes."""
        for kind in TINY:
            costs = {name: row for (network, name), row in self.results.items() if network == kind}
            for key in ("step_flops", "saved_bytes"):
                self.assertLess(costs["dvpt"][key], costs["full"][key])
                self.assertLess(costs["dvpt_half"][key], costs["dvpt"][key])
                self.assertLess(costs["dvpt_half_cached"][key], costs["dvpt"][key])
                self.assertLess(costs["dvpt_side"][key], costs["dvpt"][key])
            self.assertLess(costs["dvpt_half_cached"]["step_flops"], costs["dvpt_half"]["step_flops"])
            self.assertLess(costs["dvpt_checkpointed"]["saved_bytes"], costs["dvpt"]["saved_bytes"])
            self.assertGreater(costs["dvpt_checkpointed"]["step_flops"], costs["dvpt"]["step_flops"])

    def test_kept(self):
        costs = {name: row for (network, name), row in self.results.items() if network == "vit"}
        head, block = 24 * 3 + 3, 24 * 5 + 5 + 7 * 5 + 1 + 5 * 24 + 24
        self.assertEqual([costs["dvpt"][f"{part}_parameters"] for part in ("encoder", "head")], [2 * block, head])
        self.assertEqual([costs["linear"][f"{part}_parameters"] for part in ("encoder", "head")], [0, head])
        self.assertGreater(costs["dvpt"]["kept_bytes"], 4 * (2 * block + head))
        self.assertLess(costs["dvpt"]["kept_bytes"], costs["full"]["kept_bytes"])
        all_tensors = sum(tensor.numel() for tensor in TINY["vit"].plain().state_dict().values())
        for name in (REFERENCE, "full"):
            self.assertGreater(costs[name]["kept_bytes"], 4 * all_tensors)
            self.assertLess(costs[name]["encoder_parameters"], all_tensors - head)  # without norm_cross_attn

    def test_peak_memory(self):
        results, _ = measure_cost({"vit": TINY["vit"]}, [], rounds=1)
        self.assertEqual([row["method"] for row in results], [REFERENCE])
        self.assertGreaterEqual(results[0]["peak_bytes"], 0)


class TestTokens(unittest.TestCase):
    def test_exponent(self):
        self.assertAlmostEqual(fit_exponent([1, 10, 300], [7, 70, 2100]), 1)
        self.assertAlmostEqual(fit_exponent([2, 4, 16], [4, 16, 256]), 2)

    def test_saved_and_computed_grow_linearly(self):
        results, exponents = measure_tokens(partial(DVPTBlock, 24, 5, 7), (20, 50, 170), rounds=2)
        self.assertEqual([row["tokens"] for row in results], [20, 50, 170])
        self.assertAlmostEqual(exponents["flops"], 1, places=2)
        self.assertAlmostEqual(exponents["saved_bytes"], 1, delta=0.1)
        for row in results:
            self.assertLessEqual(row["seconds_min"], row["seconds"])
            self.assertAlmostEqual(row["saved_bytes_per_token"], row["saved_bytes"] / row["tokens"])


class TestCommand(unittest.TestCase):
    def setUp(self):
        networks = {name: lambda size=None, network=network: network for name, network in TINY.items()}
        patch = mock.patch.dict(NETWORKS, networks, clear=True)
        patch.start()
        self.addCleanup(patch.stop)
        self.folder = temporary_folder(self)

    def read_files(self, name, out):
        """The rows of the CSV, and the tables that were printed, their heads and rules included."""
        self.assertEqual((self.folder / f"{name}.png").read_bytes()[:4], b"\x89PNG")
        with open(self.folder / f"{name}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        return rows, [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line[:1] == "|"]

    def test_networks(self):
        argv = ["cost", "--methods", "vpt_shallow", "dvpt", "--rounds", 2, "--batch", 3, "--no-peak", "--device", "cpu"]
        status, out, err = call(main, *argv, "--output", self.folder)
        self.assertEqual(status, 0, err)
        self.assertIn("unetr: 100%", err)
        rows, table = self.read_files("cost", out)
        expected = [("vit", name, 3) for name in (REFERENCE, "dvpt", "vpt_shallow")]
        expected += [("unetr", name, 3) for name in (REFERENCE, "dvpt")]
        self.assertEqual([(row["network"], row["method"], int(row["batch"])) for row in rows], expected)
        names = [row[0] for row in table]
        self.assertEqual(names[2:5] + names[7:], [name for _, name, _ in expected])
        self.assertEqual(table[3][table[0].index("saved, MB")], f"{int(rows[1]['saved_bytes']) / 1e6:.1f}")
        self.assertEqual(rows[1]["peak_bytes"], "")
        self.assertRegex(table[2][2], r"^1.00 \(1.00 to 1.00\)$")
        self.assertIn("Left out: unetr, vpt_shallow: ", out)
        self.assertIn("of 2 rounds", out)
        self.assertEqual(rows[0]["precision"], "float32")

    def test_tokens(self):
        tiny = partial(measure_tokens, partial(DVPTBlock, 24, 5, 7), (20, 50, 170))
        with mock.patch("benchmarks.cost.measure_tokens", tiny):
            argv = ["cost", "--tokens", "--rounds", 1, "--amp", "--device", "cpu", "--output", self.folder]
            status, out, err = call(main, *argv)
        self.assertEqual(status, 0, err)
        rows, table = self.read_files("tokens", out)
        exponent = fit_exponent([20, 50, 170], [int(row["saved_bytes"]) for row in rows])
        self.assertIn(f"{exponent:.2f} (saved)", " ".join(out.split()))
        self.assertEqual([row["tokens"] for row in rows], ["20", "50", "170"])
        self.assertEqual([row[0] for row in table[2:]], ["20", "50", "170"])
        self.assertEqual(rows[0]["precision"], "bfloat16 autocast")

    @parameterized.expand(
        [
            (["--rounds", 0], "--rounds must be at least 1, got 0."),
            (["--batch", 0], "--batch must be at least 1, got 0."),
            (["--threads", -1], "--threads must be at least 1, got -1."),
            (["--size", 100], "--size must be a multiple of 32 and at least 64, got 100."),
            (["--size", 32], "--size must be a multiple of 32 and at least 64, got 32."),
            (["--device", "meta"], "--device must be cpu or cuda, got meta."),
        ]
    )
    def test_bad_arguments(self, argv, message):
        self.assertEqual(call(main, "cost", *argv), (1, "", f"error: {message}\n"))

    def test_unknown_names(self):
        status, _, err = call(main, "cost", "--device", "abacus")
        self.assertEqual(status, 1)
        self.assertRegex(err, r"^error: --device must be one of this machine, got abacus: [^\n]*\n$")
        for argv in (["--networks", "resnet"], ["--methods", "dvtp"]):
            with self.assertRaises(SystemExit):
                call(main, "cost", *argv)


class TestNetworks(unittest.TestCase):
    @parameterized.expand(NETWORKS)
    def test_plain_and_dvpt_have_the_same_tensors(self, name):
        network = NETWORKS[name](size=64)
        plain, dvpt = (
            {key: t.shape for key, t in build().state_dict().items()} for build in (network.plain, network.dvpt)
        )
        self.assertEqual(plain, {key: shape for key, shape in dvpt.items() if "dvpt" not in key.split(".")})


if __name__ == "__main__":
    unittest.main()
