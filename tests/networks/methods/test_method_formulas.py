# SPDX-License-Identifier: Apache-2.0
"""Every method against its equations, written plainly, on random values; and merged against unmerged."""

from __future__ import annotations

import copy
import math
import unittest
import warnings
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.blocks import MLPBlock
from parameterized import parameterized
from utils_networks import small_image, small_network

from monai_dvpt.networks.adapter import disable_adapter, merge
from monai_dvpt.networks.parts import tune

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of packages that it imports
        import peft
except ImportError:
    peft = None

HEADS = 6  # of the small networks
METHODS_OF_VPT = ("vpt_shallow", "vpt_deep")
MERGED = [
    (method, case)
    for method in ("lora", "ssf")
    for case in ("vit_cls_2d", "vit_mean_3d", "unetr_2d", "unetr_3d_patch_8", "swin_unetr_2d", "swin_classifier_3d")
]


def random_double(net: nn.Module, seed: int = 7) -> Any:
    """The network in double precision, what is trained of it at random values."""
    net.double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.double) / 3)
    return net


def tokens_of(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(11), dtype=torch.double)


def attention(qkv: torch.Tensor) -> torch.Tensor:
    """Multi-head attention of projected tokens of shape (B, N, 3 C)."""
    query, key, value = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class TestVPT(unittest.TestCase):
    def forward(self, net: Any, prompts: list[torch.Tensor], image: torch.Tensor, deep: bool) -> torch.Tensor:
        """The plain network's pooled feature with prompts behind the class token, as in the paper."""
        x = net.patch_embedding(image)
        x = torch.cat((net.cls_token.expand(len(x), -1, -1), x), dim=1)
        for layer, block in enumerate(net.blocks):
            if deep or layer == 0:
                rest = x[:, 1:] if layer == 0 else x[:, 1 + len(prompts[0]) :]
                new = prompts[layer].expand(len(x), -1, -1)
                x = torch.cat((x[:, :1], new, rest), dim=1)
            x = block(x)
        x = net.norm(x)
        mean = x[:, 1 + len(prompts[0]) :].mean(dim=1)
        return net.classification_head(torch.cat((x[:, 0], mean), dim=1))

    @parameterized.expand([("vpt_shallow", 1), ("vpt_deep", 5)])
    def test_forward(self, method, layers):
        plain = small_network("vit_both_2d").double().eval()
        net = tune(copy.deepcopy(plain), method, num_prompts=4)
        prompts = [block.prompts for block in net.blocks[:layers]]
        image = small_image(plain, batch=2).double()
        expected = self.forward(plain, prompts, image, deep=method == "vpt_deep")
        torch.testing.assert_close(net(image), expected)
        with disable_adapter(net):
            frozen = net(image)
        self.assertGreater((net(image) - frozen).abs().max(), 1e-3)

    def test_one_layer(self):
        nets = [tune(small_network("vit_cls_2d", num_layers=1).eval(), m, num_prompts=4) for m in METHODS_OF_VPT]
        nets[1].load_state_dict(nets[0].state_dict())
        image = small_image(nets[0])
        self.assertTrue(torch.equal(nets[0](image), nets[1](image)))

    def test_start(self):
        for case, kind in (("vit_cls_2d", "conv"), ("vit_cls_2d", "perceptron"), ("unetr_2d", "conv")):
            torch.manual_seed(0)
            net = tune(small_network(case, proj_type=kind), "vpt_deep", num_prompts=200)
            limit = math.sqrt(6 / (2 * 16 * 16 + 24))  # channels, patch, width
            for block in net.encoder().blocks:
                self.assertLessEqual(block.prompts.abs().max(), limit)
                self.assertAlmostEqual(block.prompts.std().item(), limit / math.sqrt(3), delta=0.03 * limit)
                self.assertAlmostEqual(block.prompts.mean().item(), 0, delta=0.05 * limit)

    def test_unetr(self):
        net = random_double(tune(small_network("unetr_2d"), "vpt_deep", num_prompts=4))
        x = tokens_of(2, 6, 24)
        block = net.vit.blocks[5]
        plain = copy.deepcopy(block)
        plain.give_back()
        expected = plain(torch.cat((block.prompts.expand(2, -1, -1), x), dim=1))[:, 4:]
        torch.testing.assert_close(block(x), expected)


class TestAdaptFormer(unittest.TestCase):
    def test_block(self):
        plain = small_network("vit_cls_2d").double().eval().blocks[1]
        net = random_double(tune(small_network("vit_cls_2d"), "adaptformer", bottleneck_size=9, scale=0.3))
        block = net.blocks[1]
        x = tokens_of(2, 5, 24)
        middle = x + plain.attn(plain.norm1(x))
        normed = plain.norm2(middle)
        branch = torch.relu(normed @ block.mlp.adapter_down.weight.T + block.mlp.adapter_down.bias)
        branch = branch @ block.mlp.adapter_up.weight.T + block.mlp.adapter_up.bias
        torch.testing.assert_close(block(x), middle + plain.mlp(normed) + 0.3 * branch)

    def test_every_mlp_and_default_scale(self):
        for case, mlps in (("unetr_2d", 12), ("swin_unetr_2d", 8)):
            net = tune(small_network(case), "adaptformer")
            found = [module for module in net.modules() if isinstance(module, MLPBlock)]
            self.assertEqual(len(found), mlps)
            self.assertTrue(all(module.adapter_scale == 0.1 for module in found))
            self.assertTrue(all(module.adapter_down.out_features == 64 for module in found))


class TestLoRA(unittest.TestCase):
    @parameterized.expand([("vit", "vit_cls_2d"), ("no_bias", "unetr_2d"), ("swin", "swin_unetr_2d")])
    def test_projection(self, _, case):
        net = random_double(tune(small_network(case), "lora", rank=3, alpha=7))
        qkv = next(module for name, module in net.named_modules() if name.endswith(".qkv"))
        width = qkv.in_features
        x = tokens_of(2, 5, width)
        change = torch.zeros(3 * width, width, dtype=torch.double)
        change[:width] = 7 / 3 * qkv.lora_b[0] @ qkv.lora_a[0]
        change[2 * width :] = 7 / 3 * qkv.lora_b[1] @ qkv.lora_a[1]
        expected = x @ (qkv.weight + change).T + (0 if qkv.bias is None else qkv.bias)
        torch.testing.assert_close(qkv(x), expected)

    def test_default_scaling(self):
        net = tune(small_network("vit_cls_2d"), "lora", rank=3)
        self.assertTrue(all(block.attn.qkv.scaling == 1 for block in net.blocks))
        self.assertTrue(all(block.attn.qkv.lora_a.shape == (2, 3, 24) for block in net.blocks))

    @unittest.skipIf(peft is None, "needs peft")
    def test_peft(self):
        net = random_double(tune(small_network("vit_cls_2d"), "lora", rank=3, alpha=7))
        qkv = net.blocks[2].attn.qkv
        other = nn.ModuleDict({name: nn.Linear(24, 24).double() for name in ("query", "key", "value")})
        for layer, weight, bias in zip(other.values(), qkv.weight.chunk(3), qkv.bias.chunk(3), strict=True):
            layer.load_state_dict({"weight": weight, "bias": bias})
        config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=["query", "value"], lora_dropout=0.0)
        found = peft.get_peft_model(other, config).base_model.model.double().eval()
        with torch.no_grad():
            for index, name in ((0, "query"), (1, "value")):
                found[name].lora_A["default"].weight.copy_(qkv.lora_a[index])
                found[name].lora_B["default"].weight.copy_(qkv.lora_b[index])
        ours, theirs = ([p for p in m.parameters() if p.requires_grad] for m in (qkv, found))
        self.assertEqual(sum(p.numel() for p in ours), sum(p.numel() for p in theirs))
        x = tokens_of(2, 5, 24)
        torch.testing.assert_close(qkv(x), torch.cat([layer(x) for layer in found.values()], dim=-1))


class TestSSF(unittest.TestCase):
    def test_network(self):
        plain = small_network("vit_cls_2d", num_layers=2).double().eval()
        net = random_double(tune(copy.deepcopy(plain), "ssf"))
        image = small_image(plain, batch=2).double()

        def after(y: torch.Tensor, name: str) -> torch.Tensor:
            module = net.get_submodule(name)
            return y * module.ssf_scale + module.ssf_shift

        def linear(x: torch.Tensor, name: str) -> torch.Tensor:
            module = plain.get_submodule(name)
            return after(x @ module.weight.T + module.bias, name)

        def norm(x: torch.Tensor, name: str) -> torch.Tensor:
            module = plain.get_submodule(name)
            return after(F.layer_norm(x, (24,), module.weight, module.bias), name)

        embedding = plain.patch_embedding
        x = embedding.patch_embeddings(image).flatten(2).transpose(1, 2)
        x = after(x, "patch_embedding.patch_embeddings") + embedding.position_embeddings
        x = torch.cat((plain.cls_token.expand(2, -1, -1), x), dim=1)
        for layer in ("blocks.0.", "blocks.1."):
            y = attention(linear(norm(x, f"{layer}norm1"), f"{layer}attn.qkv"))
            x = x + linear(y, f"{layer}attn.out_proj")
            y = F.gelu(linear(norm(x, f"{layer}norm2"), f"{layer}mlp.linear1"))
            x = x + linear(y, f"{layer}mlp.linear2")
        features = norm(x, "norm")
        head = net.classification_head
        torch.testing.assert_close(net(image), features[:, 0] @ head.weight.T + head.bias)

    def test_where(self):
        for case, changes in (("vit_cls_2d", {"pre_norm": True}), ("swin_unetr_3d_v2", {"patch_norm": True})):
            net = tune(small_network(case, **changes), "ssf")
            found = {name.removesuffix(".ssf_scale") for name in net.state_dict() if name.endswith(".ssf_scale")}
            kinds = (nn.Linear, nn.LayerNorm)
            expected = {
                name
                for name, module in net.encoder().named_modules(prefix=net.ENCODER.removesuffix("."))
                if isinstance(module, kinds) and "head" not in name and "norm_cross_attn" not in name
            }
            conv = "patch_embedding.patch_embeddings" if "vit" in case else "swinViT.patch_embed.proj"
            self.assertEqual(found, expected | {conv})


class TestMerge(unittest.TestCase):
    @parameterized.expand(MERGED)
    def test_merge(self, method, case):
        net = tune(small_network(case).double().eval(), method)
        image = small_image(net).double()
        optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.05)
        before = net(image).detach()
        for _ in range(2):  # after the first, the product of LoRA is not zero any more
            optimiser.zero_grad()
            net(image).square().mean().backward()
            optimiser.step()
        expected = net(image).detach()
        self.assertGreater((expected - before).abs().max(), 1e-3)
        self.assertIs(merge(net), net)
        torch.testing.assert_close(net(image), expected, rtol=1e-9, atol=1e-9)
        # a network of MONAI's names and modules again, which another one takes strictly
        plain = type(net)(**net.arguments, method="linear").double().eval()
        added = {k for k in net.state_dict() if method == "ssf" and k.endswith("downsample.reduction.bias")}
        self.assertEqual(net.state_dict().keys() - added, plain.state_dict().keys())
        self.assertEqual(bool(added), method == "ssf" and "swin" in case)
        self.assertEqual([type(m) for m in net.modules()], [type(m) for m in plain.modules()])
        if not added:
            plain.load_state_dict(net.state_dict())
            torch.testing.assert_close(plain(image), expected, rtol=1e-9, atol=1e-9)
        self.assertFalse(any(p.requires_grad for name, p in net.named_parameters() if net.part_of(name) == "backbone"))

    @parameterized.expand([("lora",), ("ssf",)])
    def test_single_precision(self, method):
        net = random_double(tune(small_network("unetr_2d"), method)).float()
        image = small_image(net)
        expected = net(image)
        torch.testing.assert_close(merge(net)(image), expected, rtol=1e-5, atol=1e-5)

    def test_may_be_tuned_again(self):
        net = tune(merge(tune(small_network("vit_cls_2d"), "lora")), "ssf")
        self.assertTrue(net.blocks[0].attn.qkv.ssf_scale.requires_grad)


if __name__ == "__main__":
    unittest.main()
