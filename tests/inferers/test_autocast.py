# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import platform
import unittest
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn as nn
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer
from parameterized import parameterized

from monai_dvpt.inferers import AutocastInferer, bfloat16_is_fast

CPUINFO = Path("/proc/cpuinfo")


class RecordsType(nn.Module):
    """A convolution that keeps the type of its output, and scales by an argument of ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(2, 3, kernel_size=3, padding=1)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        y = self.conv(x)
        self.dtype = y.dtype
        return y * scale


class TestAutocastInferer(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(1)
        self.net, self.image = RecordsType(), torch.randn(1, 2, 5, 6, 7)
        self.sliding = SlidingWindowInferer(roi_size=(3, 4, 5), sw_batch_size=2)

    @parameterized.expand([("simple",), ("sliding",)])
    def test_enabled(self, kind):
        inferer = SimpleInferer() if kind == "simple" else self.sliding
        with torch.no_grad():
            y = AutocastInferer(inferer)(self.image, self.net)
            self.assertEqual(self.net.dtype, torch.bfloat16)
            expected = inferer(self.image, self.net)
        self.assertEqual(y.dtype, torch.float32)
        self.assertFalse(torch.equal(y, expected))
        torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)

    @parameterized.expand([("simple",), ("sliding",)])
    def test_disabled_is_the_inferer_itself(self, kind):
        inferer = SimpleInferer() if kind == "simple" else self.sliding
        with torch.no_grad():
            y = AutocastInferer(inferer, enabled=False)(self.image, self.net)
            self.assertEqual(self.net.dtype, torch.float32)
            self.assertTrue(torch.equal(y, inferer(self.image, self.net)))

    @parameterized.expand([(True,), (False,)])
    def test_passes_arguments_on(self, enabled):
        inferer = AutocastInferer(SimpleInferer(), enabled)
        with torch.no_grad():
            expected = 4 * inferer(self.image, self.net)
            self.assertTrue(torch.equal(inferer(self.image, self.net, 4.0), expected))
            self.assertTrue(torch.equal(inferer(self.image, self.net, scale=4.0), expected))

    @parameterized.expand([("simple",), ("sliding",)])
    def test_metadata_comes_back_and_the_network_sees_a_plain_tensor(self, kind):
        inferer = SimpleInferer() if kind == "simple" else self.sliding
        image = MetaTensor(self.image, affine=2 * torch.eye(4), applied_operations=[{"class": "Flip"}])
        image.is_batch = True
        seen = []
        self.net.register_forward_pre_hook(lambda _, inputs: seen.append(type(inputs[0])))
        with torch.no_grad():
            y = AutocastInferer(inferer)(image, self.net)
            expected = AutocastInferer(inferer)(self.image, self.net)
        self.assertEqual(set(seen), {torch.Tensor})
        self.assertIs(type(expected), torch.Tensor)
        self.assertIsInstance(y, MetaTensor)
        self.assertTrue(torch.equal(y.as_tensor(), expected))
        self.assertTrue(torch.equal(y.affine, image.affine))
        self.assertEqual((y.applied_operations, y.is_batch), (image.applied_operations, True))

    @parameterized.expand([("true", True), ("False", False), ("false", False)])
    def test_text_of_a_command_line(self, text, enabled):
        self.assertIs(AutocastInferer(SimpleInferer(), text).enabled, enabled)

    def test_other_text(self):
        with self.assertRaisesRegex(ValueError, "^enabled must be true or false, got 'yes'.$"):
            AutocastInferer(SimpleInferer(), "yes")

    def test_leaves_autocast_as_it_was(self):
        AutocastInferer(SimpleInferer())(self.image, self.net)
        self.assertFalse(torch.is_autocast_enabled("cpu"))

    def test_gradients(self):
        AutocastInferer(SimpleInferer())(self.image, self.net).square().mean().backward()
        self.assertEqual(self.net.conv.weight.grad.dtype, torch.float32)
        self.assertTrue(torch.isfinite(self.net.conv.weight.grad).all())


class TestBfloat16IsFast(unittest.TestCase):
    @parameterized.expand([((7, 5), False), ((8, 0), True), ((9, 0), True)])
    def test_cuda(self, capability, expected):
        with patch("torch.cuda.get_device_capability", return_value=capability):
            self.assertIs(bfloat16_is_fast("cuda:0"), expected)
            self.assertIs(bfloat16_is_fast(torch.device("cuda")), expected)

    @unittest.skipUnless(CPUINFO.is_file() and platform.machine() == "x86_64", "needs Linux's list of CPU flags.")
    def test_cpu(self):
        self.assertIs(bfloat16_is_fast("cpu"), "amx_bf16" in CPUINFO.read_text().split())

    def test_other_device(self):
        self.assertIs(bfloat16_is_fast("meta"), False)


if __name__ == "__main__":
    unittest.main()
