# SPDX-License-Identifier: Apache-2.0
"""
Every network as TorchScript, ONNX and exported program. Each is made with one image and compared with the network on
another, so values of the first that were kept as constants are noticed. ONNX, and tracing in 3D, is tried with some of
the networks, and with all of them, DVPT on and off, where MONAI_DVPT_TEST_EVERY_EXPORT is 1.
"""

from __future__ import annotations

import io
import os
import tempfile
import unittest
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from monai.networks.utils import convert_to_onnx
from monai.utils import optional_import
from parameterized import parameterized
from utils_networks import small_image, small_network, tuned_network

from monai_dvpt.networks.adapter import disable_adapter, merge

onnxruntime, has_onnxruntime = optional_import("onnxruntime")
_, has_onnxscript = optional_import("onnxscript")

# on few tokens instance normalisation divides by a small deviation, which magnifies rounding
GROUP_NORM = ("group", {"num_groups": 4})
SWIN = {"depths": (2, 1, 1, 1)}  # the second layer has shifted windows
SWIN_UNETR = {**SWIN, "norm_name": GROUP_NORM}
VIT = {"num_layers": 3}

VITS = [
    ("vit_2d_cls", "vit_cls_2d", VIT),
    ("vit_2d_mean", "vit_cls_2d", {**VIT, "pooling": "mean"}),
    ("vit_2d_both", "vit_both_2d", {**VIT, "use_checkpoint": True}),
    ("vit_3d_cls", "vit_mean_3d", {**VIT, "pooling": "cls", "class_token": True}),
    ("vit_3d_mean_without_class_token", "vit_mean_3d", VIT),
    ("vit_3d_both", "vit_mean_3d", {**VIT, "pooling": "both", "class_token": True}),
]
UNETRS = [
    ("unetr_2d_patch_16", "unetr_2d", {}),
    ("unetr_2d_patch_8", "unetr_2d", {"img_size": (24, 40), "patch_size": 8}),
    ("unetr_3d_patch_16", "unetr_2d", {"img_size": (16, 32, 48), "spatial_dims": 3}),
    ("unetr_3d_patch_8", "unetr_3d_patch_8", {}),
]
SEGMENTERS = [
    ("segmenter_2d_linear", "segmenter_2d", {}),
    ("segmenter_2d_conv", "segmenter_2d_conv", {"norm_name": GROUP_NORM}),
    ("segmenter_3d_linear", "segmenter_3d", {}),
    ("segmenter_3d_conv", "segmenter_3d_conv", {"norm_name": GROUP_NORM}),
]
SAMS = [
    ("sam_2d", "sam_2d", {}),
    ("sam_2d_layers", "sam_2d_layers", {"norm_name": GROUP_NORM}),
    ("sam_3d", "sam_3d", {}),
    ("sam_classifier_2d", "sam_classifier_2d", {"use_checkpoint": True}),
    ("tiny_vit_2d", "tiny_vit_2d", {}),
]
SWINS = [
    ("swin_unetr_2d", "swin_unetr_2d", {**SWIN, "norm_name": "instance"}),
    ("swin_unetr_2d_v2", "swin_unetr_2d", {**SWIN_UNETR, "use_v2": True}),
    ("swin_unetr_3d", "swin_unetr_3d", SWIN_UNETR),
    ("swin_unetr_3d_v2", "swin_unetr_3d_v2", SWIN_UNETR),
    ("swin_classifier_2d", "swin_classifier_2d", {**SWIN, "use_checkpoint": True}),
    ("swin_classifier_3d", "swin_classifier_3d", SWIN),
]
# A Swin network takes the tracer and the ONNX exporter up to half a minute: its masks are over a thousand nodes.
EVERY_EXPORT = os.environ.get("MONAI_DVPT_TEST_EVERY_EXPORT") == "1"
QUICK = ("vit_2d_cls", "vit_3d_mean_without_class_token", "vit_3d_both", "unetr_2d_patch_16", "unetr_3d_patch_8")
QUICK += ("segmenter_2d_linear", "segmenter_3d_conv", "sam_2d", "swin_unetr_3d")
QUICK_OFF = ("vit_2d_cls", "unetr_2d_patch_16", "swin_classifier_2d")
ON_AND_OFF = [
    (f"{name}_{'on' if enabled else 'off'}", case, arguments, enabled)
    for name, case, arguments in VITS + UNETRS + SEGMENTERS + SAMS + SWINS
    for enabled in (True, False)
    if EVERY_EXPORT or name in (QUICK if enabled else QUICK_OFF)
]
TRACED = [each for each in SWINS if EVERY_EXPORT or each[0] not in ("swin_unetr_3d_v2", "swin_classifier_3d")]
ONNX_OPTIONS = {"input_names": ["image"], "output_names": ["pred"], "external_data": False, "dynamo": True}


def network_and_images(case: str, arguments: dict) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """A network in eval mode with random weights, an image to export it with and another to run it on."""
    net = small_network(case, **arguments).eval()
    image = small_image(net)
    return net, image, 0.5 - 2 * image.flip(-1)


def switched(net: torch.nn.Module, enabled: bool) -> AbstractContextManager:
    """Within the context DVPT is on or off."""
    return nullcontext() if enabled else disable_adapter(net)


def outputs(net: torch.nn.Module, image: torch.Tensor) -> dict[bool, torch.Tensor]:
    """Output of a network with DVPT on and off."""
    values = {}
    with torch.no_grad():
        for enabled in (False, True):
            with switched(net, enabled):
                values[enabled] = net(image)
    return values


def reloaded(script: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    buffer = io.BytesIO()
    torch.jit.save(script, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def run_onnx(path: Path, image: torch.Tensor) -> torch.Tensor:
    """Output of an ONNX file under ONNX Runtime on the CPU."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["pred"], {"image": image.numpy()})[0])


class TestTorchScript(unittest.TestCase):
    def check(self, convert, case, arguments):
        net, example, image = network_and_images(case, arguments)
        expected = outputs(net, image)
        self.assertGreater((expected[True] - expected[False]).abs().max(), 1e-3)
        for enabled in (True, False):
            with switched(net, enabled):
                script = reloaded(convert(net, example))
            with torch.no_grad():
                torch.testing.assert_close(script(image), expected[enabled], rtol=1e-5, atol=1e-6)

    @parameterized.expand(VITS + UNETRS + SEGMENTERS + SAMS)
    def test_script(self, _, case, arguments):
        self.check(lambda net, example: torch.jit.script(net), case, arguments)

    @parameterized.expand(TRACED)
    def test_trace(self, _, case, arguments):
        def trace(net, example):
            with warnings.catch_warnings():  # the sizes of the image become constants
                warnings.simplefilter("ignore", torch.jit.TracerWarning)
                with torch.no_grad():  # else a table that could be trained is traced as in training
                    return torch.jit.trace(net, example, check_trace=False)  # checked below

        self.check(trace, case, arguments)

    @parameterized.expand(
        [
            (f"{case}_{method}", case, method)
            for case in ("vit_cls_2d", "unetr_2d", "segmenter_2d_conv", "sam_2d")
            for method in ("linear", "full", "lora", "adaptformer", "vpt_deep", "bottleneck")
            if (case, method) != ("sam_2d", "vpt_deep")
        ]
    )
    def test_script_of_other_methods(self, _, case, method):
        net = tuned_network(case, method).eval()
        image = small_image(net, batch=2)
        script = reloaded(torch.jit.script(net))
        with torch.no_grad():
            torch.testing.assert_close(script(image), net(image), rtol=1e-5, atol=1e-6)

    @parameterized.expand([("vit_cls_2d", "ssf"), ("unetr_2d", "ssf"), ("vit_cls_2d", "lora"), ("unetr_2d", "lora")])
    def test_script_after_merging(self, case, method):
        net = tuned_network(case, method).eval()
        image = small_image(net, batch=2)
        with torch.no_grad():
            expected = net(image)
            script = reloaded(torch.jit.script(merge(net)))
            torch.testing.assert_close(script(image), expected, rtol=1e-4, atol=1e-5)

    @parameterized.expand([("vit_2d", "vit_both_2d", VIT), ("unetr_2d", "unetr_2d", {})])
    def test_trace_with_checkpoints(self, _, case, arguments):
        """Checkpoints have no place in a file, also where the trace is made without ``torch.no_grad``."""
        net, example, image = network_and_images(case, {**arguments, "use_checkpoint": True})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            script = reloaded(torch.jit.trace(net, example, check_trace=False))
        torch.testing.assert_close(script(image), net(image), rtol=1e-5, atol=1e-6)


@unittest.skipUnless(has_onnxruntime and has_onnxscript, "needs the packages of the extra onnx")
class TestExportedProgramAndOnnx(unittest.TestCase):
    @parameterized.expand(ON_AND_OFF)
    def test_equals_the_network(self, _, case, arguments, enabled):
        net, example, image = network_and_images(case, arguments)
        expected = outputs(net, image)[enabled]
        with tempfile.TemporaryDirectory() as folder, torch.no_grad(), switched(net, enabled):
            program, path = torch.export.export(net, (example,)), Path(folder) / "model"
            torch.export.save(program, path.with_suffix(".pt2"))
            for each in (program, torch.export.load(path.with_suffix(".pt2"))):
                torch.testing.assert_close(each.module()(image), expected, rtol=1e-5, atol=1e-6)
            torch.onnx.export(program, f=path.with_suffix(".onnx"), **ONNX_OPTIONS)
            pred = run_onnx(path.with_suffix(".onnx"), image)
        torch.testing.assert_close(pred, expected, rtol=1e-4, atol=2e-5)

    @parameterized.expand([("vit_2d_cls", "vit_cls_2d", VIT), ("swin_classifier_2d", "swin_classifier_2d", SWIN)])
    def test_any_batch_size(self, _, case, arguments):
        """Through MONAI's converter, as ``python -m monai.bundle onnx_export`` calls it."""
        net, example, image = network_and_images(case, arguments)
        images = torch.cat([image, image + 1, -image])
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            path = Path(folder) / "model.onnx"
            dynamic_shapes = ({0: "batch"},)
            convert_to_onnx(
                net, [torch.cat([example, example])], filename=path, dynamic_shapes=dynamic_shapes, **ONNX_OPTIONS
            )
            torch.testing.assert_close(run_onnx(path, images), net(images), rtol=1e-4, atol=2e-5)


if __name__ == "__main__":
    unittest.main()
