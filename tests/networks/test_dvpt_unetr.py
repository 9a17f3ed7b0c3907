# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import unittest

import torch
from monai.networks.nets import UNETR
from parameterized import parameterized
from utils_networks import DVPT_SIZES, IMG_SIZE, UNETR_SIZES, randomise, small_image, small_unetr

from monai_dvpt.networks.adapter import freeze_backbone
from monai_dvpt.networks.nets import DVPTUNETR

DIMS = [(2,), (3,)]


def small_monai_unetr(spatial_dims: int) -> UNETR:
    net = UNETR(**UNETR_SIZES, img_size=IMG_SIZE[spatial_dims], spatial_dims=spatial_dims)
    return randomise(net, seed=5).eval()


class TestEqualsMonai(unittest.TestCase):
    @parameterized.expand(DIMS)
    def test_with_dvpt_off(self, spatial_dims):
        plain, net = small_monai_unetr(spatial_dims), small_unetr(spatial_dims=spatial_dims).eval()
        report = net.load_state_dict(plain.state_dict(), strict=False)
        self.assertEqual(report.unexpected_keys, [])
        self.assertEqual(set(report.missing_keys), {f"dvpt.{name}" for name in net.dvpt.state_dict()})
        image = small_image(net, batch=2)
        with torch.no_grad():
            expected = plain(image)
            self.assertFalse(torch.equal(net(image), expected))
            net.dvpt_enabled = False
            self.assertTrue(torch.equal(net(image), expected))
            randomise(net.dvpt, seed=6)
            self.assertTrue(torch.equal(net(image), expected))

    @parameterized.expand(DIMS)
    def test_at_initialisation(self, spatial_dims):
        plain = small_monai_unetr(spatial_dims)
        arguments = {**UNETR_SIZES, **DVPT_SIZES, "img_size": IMG_SIZE[spatial_dims], "spatial_dims": spatial_dims}
        net = DVPTUNETR(**arguments).eval()
        net.load_state_dict(plain.state_dict(), strict=False)
        with torch.no_grad():
            self.assertTrue(torch.equal(net(small_image(net)), plain(small_image(net))))

    @parameterized.expand(DIMS)
    def test_names_and_shapes(self, spatial_dims):
        def shapes(net):
            return {name: tensor.shape for name, tensor in net.state_dict().items() if not name.startswith("dvpt.")}

        self.assertEqual(shapes(small_unetr(spatial_dims=spatial_dims)), shapes(small_monai_unetr(spatial_dims)))


class TestSharing(unittest.TestCase):
    @parameterized.expand(
        [
            (1, 0, list(range(12))),
            (3, 0, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]),
            (5, 0, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2]),
            (3, 4, [-1, -1, -1, -1, 0, 0, 0, 1, 1, 1, 2, 2]),
            (12, 11, [-1] * 11 + [0]),
        ]
    )
    def test_block_after_each_layer(self, share_every, start_layer, mapping):
        net = small_unetr(share_every=share_every, start_layer=start_layer)
        self.assertEqual(len(net.dvpt), max(mapping) + 1)
        self.assertEqual(len(net.dvpt.state_dict()), 6 * len(net.dvpt))
        called = []
        for name, module in [*net.vit.blocks.named_children(), *net.dvpt.named_children()]:
            kind = "dvpt" if module in list(net.dvpt) else "layer"
            module.register_forward_hook(lambda *_, entry=(kind, int(name)): called.append(entry))
        net(small_image(net))
        expected = [[("layer", layer), ("dvpt", index)][: 1 + (index >= 0)] for layer, index in enumerate(mapping)]
        self.assertEqual(called, sum(expected, []))

    def test_shared_block_is_saved_once(self):
        net = small_unetr(share_every=3)
        tensors = [tensor for name, tensor in net.state_dict().items() if "dvpt" in name]
        self.assertEqual(len({tensor.data_ptr() for tensor in tensors}), 4 * 6)
        self.assertEqual(len(tensors), 4 * 6)
        self.assertEqual(len([module for module in net.modules() if type(module).__name__ == "DVPTBlock"]), 4)

    def test_frozen_layers_before_start_layer_have_no_graph(self):
        net = freeze_backbone(small_unetr(start_layer=5))
        graph = {}
        for name, module in [("embedding", net.vit.patch_embedding), *enumerate(net.vit.blocks)]:
            module.register_forward_hook(lambda *args, name=name: graph.update({name: args[-1].requires_grad}))
        net(small_image(net)).sum().backward()
        # layer 5 itself still runs without one; the block after it starts the graph
        self.assertEqual(graph, {"embedding": False, **{layer: layer > 5 for layer in range(12)}})
        for name, parameter in net.named_parameters():
            self.assertEqual(parameter.grad is not None, not name.startswith("vit."), name)


class TestDVPTUNETR(unittest.TestCase):
    @parameterized.expand([(2, (24, 40), (3, 5)), (3, (8, 24, 16), (1, 3, 2))])
    def test_patch_size_8(self, spatial_dims, img_size, grid):
        net = small_unetr(spatial_dims=spatial_dims, img_size=img_size, patch_size=8)
        self.assertEqual(net(small_image(net, batch=2)).shape, (2, 3, *img_size))
        self.assertEqual(net.vit.patch_embedding(small_image(net)).shape, (1, torch.tensor(grid).prod(), 24))
        self.assertEqual(tuple(net.feat_size), grid)
        net(small_image(net)).sum().backward()
        unused = {name for name, parameter in net.named_parameters() if parameter.grad is None}
        self.assertTrue(all("norm_cross_attn" in name for name in unused), unused)

    @parameterized.expand([(2, (24, 40)), (3, (8, 24, 16))])
    def test_patch_size_8_token_sees_its_own_voxels(self, spatial_dims, img_size):
        net = small_unetr(spatial_dims=spatial_dims, img_size=img_size, patch_size=8)
        image = small_image(net)
        moved = image.clone()
        moved[..., 8:16] += 1  # the second token along the last axis
        before, after = (net.proj_feat(net.vit.patch_embedding(x)) for x in (image, moved))
        differs = (before != after).flatten(0, -2).any(dim=0)
        self.assertEqual(differs.nonzero().flatten().tolist(), [1])

    @parameterized.expand([(2, 16), (3, 16), (2, 8), (3, 8)])
    def test_torchscript(self, spatial_dims, patch_size):
        net = small_unetr(spatial_dims=spatial_dims, patch_size=patch_size, start_layer=2).eval()
        image, outputs = small_image(net), []
        with torch.no_grad():
            for enabled in (True, False):
                net.dvpt_enabled = enabled
                outputs.append(net(image))
                self.assertTrue(torch.equal(torch.jit.script(net)(image), outputs[-1]))
        self.assertFalse(torch.equal(*outputs))

    def test_deepcopy(self):
        net = freeze_backbone(small_unetr()).eval()
        twin, image = copy.deepcopy(net), small_image(net)
        with torch.no_grad():
            expected = net(image)
            self.assertTrue(torch.equal(twin(image), expected))
            randomise(twin.dvpt, seed=8)
            self.assertFalse(torch.equal(twin(image), expected))
            self.assertTrue(torch.equal(net(image), expected))
        frozen = {name for name, parameter in twin.named_parameters() if not parameter.requires_grad}
        self.assertEqual(frozen, {f"vit.{name}" for name, _ in net.vit.named_parameters()})

    @parameterized.expand([(2, 16), (3, 8)])
    def test_parts_hold_every_parameter_once(self, spatial_dims, patch_size):
        net = small_unetr(spatial_dims=spatial_dims, patch_size=patch_size)
        owned = [id(parameter) for part in net.parts().values() for module in part for parameter in module.parameters()]
        self.assertEqual(len(owned), len(set(owned)))
        self.assertEqual(set(owned), {id(parameter) for parameter in net.parameters()})
        self.assertEqual(list(net.parts()), ["backbone", "dvpt", "decoder", "head"])

    def test_frozen_dropout_is_off(self):
        net = small_unetr(dropout_rate=0.5)
        image = small_image(net)
        freeze_backbone(net).train()
        self.assertTrue(net.decoder2.training and net.dvpt.training)
        self.assertFalse(any(module.training for module in net.vit.modules()))
        self.assertTrue(torch.equal(net(image), net(image)))
        freeze_backbone(net, ("backbone",)).train()
        self.assertTrue(all(module.training for module in net.vit.modules()))
        self.assertFalse(torch.equal(net(image), net(image)))

    @parameterized.expand([(("dvpt", "decoder", "head"),), (("backbone", "dvpt"),)])
    def test_eval_is_deterministic(self, train):
        net = freeze_backbone(small_unetr(dropout_rate=0.5), train).eval()
        self.assertFalse(any(module.training for module in net.modules()))
        self.assertTrue(torch.equal(net(small_image(net)), net(small_image(net))))

    def test_samples_do_not_mix(self):
        net = small_unetr().eval()
        image = small_image(net, batch=3)
        with torch.no_grad():
            torch.testing.assert_close(net(image)[1:2], net(image[1:2]), rtol=1e-4, atol=1e-4)

    @parameterized.expand(
        [
            ("img_size", "(32, 40)", {"img_size": (32, 40)}),
            ("img_size", "(32, 0)", {"img_size": (32, 0)}),
            ("img_size", "(24, 20)", {"img_size": (24, 20), "patch_size": 8}),
            ("patch_size", "4", {"patch_size": 4}),
            ("spatial_dims", "4", {"spatial_dims": 4}),
            ("spatial_dims", "1", {"spatial_dims": 1}),
            ("start_layer", "12", {"start_layer": 12}),
            ("start_layer", "-1", {"start_layer": -1}),
            ("share_every", "0", {"share_every": 0}),
            ("bottleneck_size", "24", {"bottleneck_size": 24}),
            ("bottleneck_size", "0", {"bottleneck_size": 0}),
            ("num_prompts", "-2", {"num_prompts": -2}),
        ]
    )
    def test_bad_argument(self, name, value, changes):
        arguments = {**UNETR_SIZES, **DVPT_SIZES, "img_size": (32, 48), "spatial_dims": 2}
        with self.assertRaises(ValueError) as caught:
            DVPTUNETR(**{**arguments, **changes})
        self.assertTrue(str(caught.exception).startswith(f"{name} must "), caught.exception)
        self.assertTrue(str(caught.exception).endswith(f"got {value}."), caught.exception)

    @parameterized.expand([((48, 32),), ((32, 64),), ((16, 48),)])
    def test_bad_input_size(self, size):
        net = small_unetr()
        with self.assertRaisesRegex(ValueError, rf"img_size=\[32, 48\], got \[{size[0]}, {size[1]}\]"):
            net(torch.zeros(1, 2, *size))

    @parameterized.expand(DIMS)
    def test_bfloat16_autocast_step(self, spatial_dims):
        net = freeze_backbone(small_unetr(spatial_dims=spatial_dims)).train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = net(small_image(net))
        self.assertEqual(logits.dtype, torch.bfloat16)
        logits.float().square().mean().backward()
        for name, parameter in net.named_parameters():
            self.assertEqual(parameter.grad is not None, parameter.requires_grad, name)
            if parameter.grad is not None:
                self.assertTrue(torch.isfinite(parameter.grad).all(), name)


if __name__ == "__main__":
    unittest.main()
