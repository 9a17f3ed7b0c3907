# SPDX-License-Identifier: Apache-2.0
"""Weights of newer families in their authors' and timm's names: features equal those of plain functions."""

from __future__ import annotations

import itertools
import math
import unittest
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from parameterized import parameterized
from utils_data import temporary_folder
from utils_networks import DVPT_SIZES, changed, copy_of_state, randomise
from utils_sources import CLASSES, LAYERS, MLP, PATCH, WIDTH, Filler, State, noise, save, tokens_of, vit

from monai_dvpt.networks.adapter import disable_adapter, load_adapter, save_adapter
from monai_dvpt.networks.adapter.file import load_backbone
from monai_dvpt.networks.nets import DVPTUNETR, DVPTViT, DVPTViTSegmenter
from monai_dvpt.networks.parts import tune
from monai_dvpt.networks.pretrained import load_pretrained, read_backbone
from monai_dvpt.utils import InputError

HEADS = 2  # 12 channels wide, so that there are several frequencies in 2D and in 3D
TOLERANCE = {"rtol": 0, "atol": 1e-5}
# what each family has: registers, how its attention and feed-forward part are made, and how its tokens turn
FAMILIES: dict[str, dict[str, Any]] = {
    "dinov2_registers": {"registers": 4, "names": "register_tokens", "scale": True, "positions": "class"},
    "dinov2_giant": {"registers": 4, "names": "register_tokens", "scale": True, "positions": "class", "mlp": "w12"},
    "dinov3": {"registers": 4, "names": "storage_tokens", "scale": True, "rope": "dinov3", "mask": True, "eps": 1e-5},
    "dinov3_plus": {
        **{"registers": 4, "names": "storage_tokens", "scale": True, "rope": "dinov3", "mask": True, "eps": 1e-5},
        "mlp": "w1_w2",
    },
    "dinov3_timm": {"registers": 4, "gamma": True, "rope": "dinov3", "qkv": "none", "eps": 1e-5, "theta": 100},
    "uni2": {"registers": 8, "scale": True, "mlp": "packed", "positions": "image"},
    "virchow": {"scale": True, "mlp": "packed", "positions": "all"},
    "registers_with_positions": {"registers": 3, "positions": "all"},
    "normalised_queries": {"qk_norm": True, "positions": "all"},
    "eva01": {"qkv": "fused", "positions": "all"},
    "eva02_small": {"qkv": "fused", "mlp": "packed", "rope": "eva02", "positions": "all"},
    "eva02_base": {"qkv": "separate", "mlp": "fc1_g", "inner": True, "rope": "eva02", "positions": "all"},
    "eva02_authors": {
        **{"qkv": "separate_bias", "mlp": "w1_w2", "inner": True, "out_norm": True, "rope": "eva02"},
        **{"positions": "all", "buffers": True},
    },
    "fc_norm": {"pool": True, "positions": "all"},
}
PRIMUS = {"qkv": "separate", "mlp": "fc1_g", "inner": True, "rope": "eva02", "positions": "all", "eps": 1e-5}
GATED = {"packed": ("fc1", None, "fc2"), "w12": ("w12", None, "w3"), "w1_w2": ("w1", "w2", "w3")}
GATED |= {"fc1_g": ("fc1_g", "fc1_x", "fc2")}


def family_state(
    registers: int = 0,
    names: str = "reg_token",
    scale: bool = False,
    gamma: bool = False,
    positions: str | None = None,
    mlp: str | None = None,
    qkv: str | None = None,
    qk_norm: bool = False,
    out_norm: bool = False,
    inner: bool = False,
    mask: bool = False,
    rope: str | None = None,
    buffers: bool = False,
    pool: bool = False,
    class_token: bool = True,
    patch: Sequence[int] = (PATCH, PATCH),
    channels: int = 3,
    image_tokens: int = 9,
    **_: Any,
) -> State:
    """Random tensors under the names of a family."""
    fill, state = Filler(31), {}
    if class_token:
        state["cls_token"] = fill(1, 1, WIDTH)
    if registers:
        state[names] = fill(1, registers, WIDTH)
    counts = {"image": 0, "class": 1, "all": class_token + registers}
    if positions is not None:
        state["pos_embed"] = fill(1, image_tokens + counts[positions], WIDTH)
    fill.affine(state, "patch_embed.proj", WIDTH, channels, *patch)
    if rope == "dinov3" and mask:
        state["rope_embed.periods"] = 100 ** (torch.arange(3) / 3)
    if buffers:
        state["rope.freqs_cos"] = state["rope.freqs_sin"] = fill(9, 12)
    for block in (f"blocks.{layer}." for layer in range(LAYERS)):
        for name in ("norm1", "norm2", *(["mlp.ffn_ln" if buffers else "mlp.norm"] if inner else [])):
            width = MLP if "mlp" in name else WIDTH
            state[f"{block}{name}.weight"], state[f"{block}{name}.bias"] = 1 + fill(width), fill(width)
        if out_norm:
            fill.norm(state, block + "attn.inner_attn_ln")
        if qkv in ("separate", "separate_bias"):
            for part in "qkv":
                state[f"{block}attn.{part}_proj.weight"] = fill(WIDTH, WIDTH)
        else:
            state[f"{block}attn.qkv.weight"] = fill(3 * WIDTH, WIDTH)
        if qkv is None:
            state[f"{block}attn.qkv.bias"] = fill(3 * WIDTH)
        elif qkv != "none":
            for part in "qv":  # keys have no bias
                name = f"{part}_proj.bias" if qkv == "separate" else f"{part}_bias"
                state[f"{block}attn.{name}"] = fill(WIDTH)
        if mask:
            state[f"{block}attn.qkv.bias_mask"] = torch.ones(3, WIDTH).index_fill(0, torch.tensor([1]), 0).flatten()
        if qk_norm:
            for name in ("q_norm", "k_norm"):
                wide = WIDTH // HEADS
                state[f"{block}attn.{name}.weight"], state[f"{block}attn.{name}.bias"] = 1 + fill(wide), fill(wide)
        fill.affine(state, block + "attn.proj", WIDTH, WIDTH)
        first, second, last = GATED.get(mlp or "", ("fc1", None, "fc2"))
        fill.affine(state, f"{block}mlp.{first}", MLP * (1 + (mlp is not None and second is None)), WIDTH)
        if second:
            fill.affine(state, f"{block}mlp.{second}", MLP, WIDTH)
        fill.affine(state, f"{block}mlp.{last}", WIDTH, MLP)
        for name in ("ls1.gamma", "ls2.gamma") if scale else ("gamma_1", "gamma_2") if gamma else ():
            state[block + name] = fill(WIDTH)
    fill.norm(state, "fc_norm" if pool else "norm")
    fill.affine(state, "head", CLASSES, WIDTH)
    return state


def turned(x: torch.Tensor, grid: Sequence[int], rope: str, reference: Sequence[int]) -> torch.Tensor:
    """Tokens of shape (B, heads, N, d), each pair of channels as a complex number that its place turns."""
    count = x.shape[-1] // 2 // len(grid)
    places = []
    for place in itertools.product(*(range(side) for side in grid)):
        angles = []
        for index, side, of in zip(place, grid, reference, strict=True):
            for band in range(count):
                if rope == "dinov3":
                    angles.append(2 * math.pi * ((index + 0.5) / side * 2 - 1) / 100 ** (band / count))
                else:
                    angles.append(index / side * of / 10000 ** (band / count))
        places.append(angles)
    turns = torch.polar(torch.ones(()), torch.tensor(places))  # (N, d / 2)
    if rope == "dinov3":  # a pair is one channel of each half
        first, second = x.chunk(2, dim=-1)
        y = torch.complex(first.contiguous(), second.contiguous()) * turns
        return torch.cat([y.real, y.imag], dim=-1)
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turns).flatten(-2)


def family_tokens(state: State, image: torch.Tensor, reference: Sequence[int] = (16, 16), **family: Any) -> State:
    """The last tokens, normalised unless the pooled ones are, as the papers and timm compute them."""
    eps, rope, mlp = family.get("eps", 1e-6), family.get("rope"), family.get("mlp")

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    kernel = state["patch_embed.proj.weight"]
    convolve = F.conv2d if kernel.ndim == 4 else F.conv3d
    x = convolve(image, kernel, state["patch_embed.proj.bias"], stride=kernel.shape[2:])
    grid = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)
    first = [state[n].expand(len(x), -1, -1) for n in ("cls_token",) if n in state]
    last = [state[n] for n in ("reg_token", "register_tokens", "storage_tokens") if n in state]
    registers = [tensor.expand(len(x), -1, -1) for tensor in last]
    if family.get("positions") == "image":
        x = torch.cat([*first, *registers, x + state["pos_embed"]], dim=1)
    elif family.get("positions") == "class":
        x = torch.cat([*first, x], dim=1) + state["pos_embed"]
        x = torch.cat([x[:, :1], *registers, x[:, 1:]], dim=1)
    else:
        x = torch.cat([*first, *registers, x], dim=1) + state.get("pos_embed", 0)
    before = x.shape[1] - math.prod(grid)
    for block in (f"blocks.{layer}." for layer in range(LAYERS)):
        y = norm(x, block + "norm1")
        if f"{block}attn.q_proj.weight" in state:
            parts = [F.linear(y, state[f"{block}attn.{part}_proj.weight"]) for part in "qkv"]
        else:
            parts = list(F.linear(y, state[f"{block}attn.qkv.weight"]).chunk(3, dim=-1))
        bias = state.get(f"{block}attn.qkv.bias", torch.zeros(3 * WIDTH)).clone()
        bias = bias.view(3, WIDTH)
        if f"{block}attn.qkv.bias_mask" in state:
            bias[1] = 0
        for index, part in enumerate("qkv"):
            for name in (f"{block}attn.{part}_bias", f"{block}attn.{part}_proj.bias"):
                bias[index] += state.get(name, 0)
        q, k, v = (
            (part + shift).unflatten(2, (HEADS, -1)).transpose(1, 2) for part, shift in zip(parts, bias, strict=True)
        )
        if f"{block}attn.q_norm.weight" in state:
            q, k = norm(q, block + "attn.q_norm"), norm(k, block + "attn.k_norm")
        if rope:
            q, k = (
                torch.cat([each[:, :, :before], turned(each[:, :, before:], grid, rope, reference)], dim=2)
                for each in (q, k)
            )
        y = ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        if f"{block}attn.inner_attn_ln.weight" in state:
            y = norm(y, block + "attn.inner_attn_ln")
        x = x + linear(y, block + "attn.proj") * state.get(block + "ls1.gamma", state.get(block + "gamma_1", 1))
        y = norm(x, block + "norm2")
        one, two, three = (n and f"{block}mlp.{n}" for n in GATED.get(mlp or "", ("fc1", None, "fc2")))
        if mlp is None:
            y = F.gelu(linear(y, one))
        else:
            gate, value = (linear(y, one), linear(y, two)) if two else linear(y, one).chunk(2, dim=-1)
            y = gate * torch.sigmoid(gate) * value
        for name in ("mlp.norm", "mlp.ffn_ln"):
            if f"{block}{name}.weight" in state:
                y = norm(y, block + name)
        x = x + linear(y, three) * state.get(block + "ls2.gamma", state.get(block + "gamma_2", 1))
    return x if family.get("pool") else norm(x, "norm")


class TestFamilies(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)

    @parameterized.expand([(name,) for name in FAMILIES])
    def test_same(self, name):
        family = FAMILIES[name]
        state = family_state(**family)
        net = vit(num_heads=HEADS, pooling="mean")
        report = load_pretrained(net, save(self.folder / "weights.pt", state), verbose=False)
        image = noise(2, 3, 48, 48)
        want = family_tokens(state, image, **family)
        if family.get("pool"):  # timm's classifier normalises the mean
            mean = want[:, 1:].mean(dim=1)
            mean = F.layer_norm(mean, mean.shape[-1:], state["fc_norm.weight"], state["fc_norm.bias"], 1e-6)
            want, got = F.linear(mean, state["head.weight"], state["head.bias"]), net(image)
        else:
            got = tokens_of(net, image)
        torch.testing.assert_close(got, want, **TOLERANCE)
        self.assertTrue(all(each.startswith(net.HEAD) for each in report.initialised), report.initialised)
        self.assertEqual("rope_theta" in (net.arguments["layout"] or {}), "rope" in family)

    @parameterized.expand([("dinov3",), ("eva02_small",)])
    def test_other_image_sizes_turn_by_the_new_grid(self, name):
        family = {**FAMILIES[name], "positions": None}
        state = family_state(**family)
        if name == "eva02_small":
            state["pos_embed"] = torch.zeros(1, 10, WIDTH)
        net = vit(num_heads=HEADS, img_size=(32, 64))
        load_pretrained(net, save(self.folder / "weights.pt", state), verbose=False)
        image = noise(2, 3, 32, 64)
        state.pop("pos_embed", None)
        torch.testing.assert_close(tokens_of(net, image), family_tokens(state, image, **family), **TOLERANCE)

    @parameterized.expand([(0,), (2,)])
    def test_primus(self, registers):
        family = {**PRIMUS, "registers": registers, "class_token": False}
        state = family_state(**family, patch=(8, 8, 8), channels=1, image_tokens=27)
        stored = {}
        for key, value in state.items():
            if key.startswith("patch_embed.proj"):
                stored[key.replace("patch_embed", "down_projection")] = value
            elif key == "reg_token":
                stored["register_tokens"] = value
            elif not key.startswith("head"):
                stored["eva." + key] = value
        path = save(self.folder / "weights.pth", {"network_weights": stored, "current_epoch": 3})
        sizes = {"in_channels": 1, "img_size": 24, "patch_size": 8, "spatial_dims": 3, "class_token": False}
        net = vit(num_heads=HEADS, pooling="mean", **sizes)
        load_pretrained(net, path, verbose=False)
        image = noise(2, 1, 24, 24, 24)
        want = family_tokens(state, image, reference=(3, 3, 3), **family)
        torch.testing.assert_close(tokens_of(net, image), want, **TOLERANCE)
        self.assertEqual(read_backbone(path).img_size, 24)

    def test_volume_without_change_along_the_new_axis_is_seen_as_its_slice(self):
        state = family_state(**FAMILIES["dinov3"])
        path = save(self.folder / "weights.pt", state)
        sizes = {"spatial_dims": 3, "in_channels": 1, "patch_size": (16, 16, 1), "num_heads": HEADS}
        flat, deep = (vit(**sizes, img_size=(48, 48, depth)) for depth in (1, 3))
        plane = vit(num_heads=HEADS, in_channels=1)
        image = noise(1, 1, 48, 48)
        for net in (flat, deep, plane):
            load_pretrained(net, path, verbose=False)
        torch.testing.assert_close(tokens_of(flat, image[..., None]), tokens_of(plane, image), **TOLERANCE)
        tokens = tokens_of(deep, image[..., None].expand(-1, -1, -1, -1, 3))[:, 5:].unflatten(1, (3, 3, 3))
        torch.testing.assert_close(tokens[:, :, :, 0], tokens[:, :, :, 2], **TOLERANCE)

    def test_image_tower_of_a_text_and_image_model(self):
        """BiomedCLIP: timm's ViT under "visual.trunk.", beside a text model and projections."""
        own = family_state(positions="all")
        state = {f"visual.trunk.{name}": tensor for name, tensor in own.items() if not name.startswith("head")}
        others = {
            **{"logit_scale": noise(1)[0], "visual.head.proj.weight": noise(7, WIDTH)},
            **{"text.transformer.encoder.layer.0.attention.self.query.weight": noise(8, 8)},
        }
        net = vit(num_heads=HEADS)
        report = load_pretrained(net, save(self.folder / "weights.bin", state | others), verbose=False)
        image = noise(1, 3, 48, 48)
        torch.testing.assert_close(tokens_of(net, image), family_tokens(own, image, positions="all"), **TOLERANCE)
        self.assertEqual(set(report.unused), set(others))

    def test_what_dinov3_needs_for_training_alone(self):
        family = FAMILIES["dinov3"]
        state = family_state(**family)
        extra = {"local_cls_norm.weight": noise(WIDTH), "local_cls_norm.bias": noise(WIDTH), "mask_token": noise(WIDTH)}
        net = vit(num_heads=HEADS)
        report = load_pretrained(net, save(self.folder / "weights.pt", state | extra), verbose=False)
        image = noise(1, 3, 48, 48)
        torch.testing.assert_close(tokens_of(net, image), family_tokens(state, image, **family), **TOLERANCE)
        self.assertLessEqual(set(extra), set(report.unused))

    def test_family_and_sizes(self):
        path = save(self.folder / "weights.pt", family_state(**FAMILIES["dinov3"]))
        found = read_backbone(path)
        self.assertEqual(
            (found.family, found.mlp_dim, found.img_size, found.stated_heads), ("DINOv3", MLP, None, HEADS)
        )
        self.assertEqual(found.image_mean, [0.485, 0.456, 0.406])

    @parameterized.expand(
        [
            ("class token that the network's grid would count as the image's", 50, (5, 10), True, 0),
            ("registers without a class token", 12, None, False, 3),
        ]
    )
    def test_positions_of_a_square(self, _, positions, grid, class_token, registers):
        state = family_state(class_token=class_token, registers=registers, positions="image", image_tokens=positions)
        path = save(self.folder / "weights.pt", state)
        side = {50: 48, 12: 48}[positions] if grid is None else tuple(16 * each for each in grid)
        net = vit(num_heads=HEADS, class_token=class_token, pooling="mean", img_size=side)
        if grid is not None:  # 7 x 7 and the class token, or all 50
            with self.assertRaisesRegex(InputError, "50 positions, of 49 tokens in a square"):
                load_pretrained(net, path, verbose=False)
        else:  # 3 x 3 and 3 registers
            load_pretrained(net, path, verbose=False)
            own = {**state, "pos_embed": state["pos_embed"]}
            image = noise(1, 3, 48, 48)
            want = family_tokens(own, image, positions="all")
            torch.testing.assert_close(tokens_of(net, image), want, **TOLERANCE)

    @parameterized.expand(
        [
            ("vit_base_patch16_rope_ape_224", "cannot"),
            ("vit_base_patch16_rpn_224", "cannot"),
            ("vit_pe_core_base_patch16_224", "cannot"),
        ]
    )
    def test_architectures_that_tensors_do_not_tell(self, architecture, words):
        path = save(self.folder / "a" / "w.pt", family_state(positions="all"), {"architecture": architecture})
        with self.assertRaisesRegex(InputError, words):
            load_pretrained(vit(num_heads=HEADS), path, verbose=False)

    @parameterized.expand(
        [
            ("vit_so400m_patch16_siglip_384", "gelu_pytorch_tanh"),
            ("vit_base_patch16_siglip_224", "gelu"),
            ("vit_large_patch16_siglip_512", "gelu_pytorch_tanh"),
            ("vit_large_patch16_siglip_384", "gelu"),
        ]
    )
    def test_activation_of_an_architecture(self, architecture, activation):
        path = save(self.folder / "a" / "w.pt", family_state(positions="all"), {"architecture": architecture})
        net = vit(num_heads=HEADS)
        load_pretrained(net, path, verbose=False)
        self.assertEqual(net.arguments["activation"], activation)

    @parameterized.expand([("pos_embed",), ("blocks.0.mlp.w1.weight",), ("storage_tokens",)])
    def test_scalars(self, name):
        state = family_state(**FAMILIES["dinov3_plus"]) | {name: torch.ones(())}
        with self.assertRaises(InputError):
            load_pretrained(vit(num_heads=HEADS), save(self.folder / "weights.pt", state), verbose=False)

    @parameterized.expand(
        [
            ({"rope_theta": 100}, None),
            (None, {"rope_theta": 100}),
            ({"pool_norm": True}, None),
            ({"rope_theta": 100}, {"rope_theta": 50}),
        ]
    )
    def test_whole_network_of_another_layout(self, theirs, own):
        """Rotary positions and the place of a normalisation have no tensors that could tell."""
        path = save(self.folder / "network.pt", vit(num_heads=HEADS, layout=theirs).state_dict())
        with self.assertRaisesRegex(InputError, "must be of an encoder with the network's layout"):
            load_pretrained(vit(num_heads=HEADS, layout=own), path, verbose=False)
        net, source = (tune(vit(num_heads=HEADS, layout=theirs), "linear") for _ in range(2))
        load_pretrained(net, save(self.folder / "same.pt", randomise(source, seed=9).state_dict()), verbose=False)
        image = noise(1, 3, 48, 48)
        torch.testing.assert_close(tokens_of(net, image), tokens_of(source, image))

    def test_without_a_method(self):
        family, net = FAMILIES["dinov2_registers"], vit(num_heads=HEADS)
        state = family_state(**family)
        with disable_adapter(net):
            load_pretrained(net, save(self.folder / "weights.pt", state), verbose=False)
        image = noise(1, 3, 48, 48)
        torch.testing.assert_close(tokens_of(net, image), family_tokens(state, image, **family), **TOLERANCE)

    def test_an_optimiser_keeps_its_parameters(self):
        net = tune(vit(num_heads=HEADS), "lora")
        before = [id(parameter) for parameter in net.parameters() if parameter.requires_grad]
        path = save(self.folder / "weights.pt", family_state(**FAMILIES["dinov3_plus"]))
        load_pretrained(net, path, verbose=False)
        self.assertEqual([id(parameter) for parameter in net.parameters() if parameter.requires_grad], before)

    def test_failure_leaves_the_network_as_it_was(self):
        state = family_state(**FAMILIES["dinov3_plus"])
        del state["blocks.2.norm2.weight"]
        net = randomise(vit(num_heads=HEADS), seed=3)
        before, arguments, image = copy_of_state(net), dict(net.arguments), noise(1, 3, 48, 48)
        with torch.no_grad():
            out = net(image)
            with self.assertRaises(InputError):
                load_pretrained(net, save(self.folder / "weights.pt", state), verbose=False)
            torch.testing.assert_close(net(image), out, rtol=0, atol=0)
        self.assertEqual((changed(before, net), net.arguments), (set(), arguments))

    def test_a_plain_file_takes_the_layout_back(self):
        net = vit(num_heads=HEADS)
        for name in ("dinov3_plus", "virchow", "eva01"):
            family = FAMILIES[name]
            state = family_state(**family)
            load_pretrained(net, save(self.folder / f"{name}.pt", state), verbose=False)
            image = noise(1, 3, 48, 48)
            torch.testing.assert_close(tokens_of(net, image), family_tokens(state, image, **family), **TOLERANCE)
        self.assertIsNone(net.arguments["layout"])
        self.assertEqual(set(net.state_dict()), set(vit().state_dict()))

    @parameterized.expand(
        [(name, method) for name in ("dinov3_plus", "eva02_authors") for method in ("dvpt", "lora", "full", "ssf")]
    )
    def test_adapter_brings_the_layout(self, name, method):
        path = save(self.folder / "weights.pt", family_state(**FAMILIES[name]))
        net = vit(num_heads=HEADS)
        tune(net, method, **(DVPT_SIZES if method == "dvpt" else {}))
        load_pretrained(net, path, verbose=False)
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.01)
        adapter = save_adapter(net, self.folder / "adapter.safetensors")
        again = load_adapter(load_backbone(adapter, path), adapter).eval()
        image = noise(1, 3, 48, 48)
        with torch.no_grad():
            torch.testing.assert_close(again(image), net(image))
        self.assertEqual(again.encoder().layout, net.encoder().layout)

    @parameterized.expand([("dinov3",), ("uni2",)])
    def test_networks_that_segment(self, name):
        path = save(self.folder / "weights.pt", family_state(**FAMILIES[name]))
        sizes = {
            "hidden_size": WIDTH,
            "mlp_dim": MLP,
            "num_heads": HEADS,
            "spatial_dims": 2,
            "img_size": 48,
            **DVPT_SIZES,
        }
        net = DVPTViTSegmenter(3, 2, patch_size=16, num_layers=LAYERS, class_token=False, **sizes).eval()
        load_pretrained(net, path, verbose=False)
        inner = DVPTViT(3, patch_size=16, num_layers=LAYERS, class_token=False, pooling="mean", num_classes=0, **sizes)
        load_pretrained(inner.eval(), path, verbose=False)
        image = noise(1, 3, 48, 48)
        registers = net.vit.first_token
        tokens = tokens_of(inner, image)[:, registers:]
        want = F.interpolate(net.out(tokens.transpose(1, 2).unflatten(2, (3, 3))), size=48, mode="bilinear")
        with torch.no_grad():
            torch.testing.assert_close(net(image), want)
        self.assertGreater(registers, 0)

    def test_unetr_drops_registers(self):
        layout = {"num_registers": 4, "rope_theta": 100.0}
        net = DVPTUNETR(1, 2, (32, 48), 4, 24, 20, 2, spatial_dims=2, bottleneck_size=5, layout=layout).eval()
        plain = DVPTUNETR(
            1, 2, (32, 48), 4, 24, 20, 2, spatial_dims=2, bottleneck_size=5, layout={"rope_theta": 100.0}
        ).eval()
        image = noise(1, 1, 32, 48)
        own = copy_of_state(net)
        plain.load_state_dict({key: value for key, value in own.items() if key != "vit.register_tokens"})
        with torch.no_grad():
            self.assertEqual(net(image).shape, (1, 2, 32, 48))
            self.assertFalse(torch.equal(net(image), plain(image)))  # the registers are seen


class TestShare(unittest.TestCase):
    """What DVPT trains of an encoder of the size of ViT-B and above, without its weights in memory."""

    @parameterized.expand(
        [
            ("DINOv3-B", 768, 3072, 12, 12, {"num_registers": 4, "rope_theta": 100.0}),
            ("DINOv3-H+", 1280, 5120, 32, 20, {"num_registers": 4, "rope_theta": 100.0, "gated_mlp": True}),
            ("EVA-02-B", 768, 2048, 12, 12, {"gated_mlp": True, "mlp_norm": True, "rope_theta": 10000.0}),
            ("UNI", 1024, 4096, 24, 16, None),
            ("UNI2, Prov-GigaPath", 1536, 4096, 24, 24, {"num_registers": 8, "gated_mlp": True}),
            ("Virchow", 1280, 3416, 32, 16, {"gated_mlp": True}),
        ]
    )
    def test_at_most_half_a_percent(self, name, hidden_size, mlp_dim, num_layers, num_heads, layout):
        sizes = {"hidden_size": hidden_size, "mlp_dim": mlp_dim, "num_layers": num_layers, "num_heads": num_heads}
        with torch.device("meta"):
            net = DVPTViT(3, 224, 16, spatial_dims=2, num_classes=2, layout=layout, **sizes)
        trained = sum(parameter.numel() for key, parameter in net.named_parameters() if "dvpt" in key.split("."))
        whole = sum(parameter.numel() for key, parameter in net.named_parameters() if "cross_attn" not in key)
        self.assertLessEqual(trained, 0.005 * (whole - trained), name)
        self.assertGreater(trained, 0)


class TestArguments(unittest.TestCase):
    @parameterized.expand(
        [
            ({"registers": 4}, "layout must be a mapping of some of"),
            ([4], "layout must be a mapping"),
            ({"num_registers": -1}, "num_registers must be a whole number of at least 0"),
            ({"gated_mlp": 1}, "gated_mlp must be True or False, got 1"),
            ({"rope_theta": 1}, "rope_theta must be a number above 1"),
            ({"rope_axes": [0]}, "rope_theta must be given"),
            ({"rope_theta": 100, "rope_axes": [0, 2]}, "rope_axes must be different axes below 2"),
            ({"rope_theta": 100, "rope_axes": "xy"}, "rope_axes must be a list of numbers"),
            ({"rope_theta": 100, "rope_axes": []}, "rope_axes must be whole numbers, one or more"),
            ({"rope_theta": 100, "rope_axes": [1.0, 0.0]}, "rope_axes must be whole numbers"),
            ({"rope_theta": 100, "rope_reference": [16]}, "rope_reference must have 2 numbers"),
            ({"rope_theta": 100, "rope_reference": [16, 0]}, "rope_reference must have numbers above 0"),
        ]
    )
    def test_refused(self, layout, message):
        with self.assertRaisesRegex(ValueError, message):
            vit(num_heads=HEADS, layout=layout)

    @parameterized.expand(
        [
            ({}, None),
            ({"num_registers": 0}, None),
            ({"rope_theta": 100, "rope_axes": [0, 1]}, {"rope_theta": 100}),
            ({"rope_theta": 100, "rope_axes": (1,)}, {"rope_theta": 100, "rope_axes": [1]}),
        ]
    )
    def test_layouts_that_mean_the_same(self, layout, recorded):
        self.assertEqual(vit(num_heads=HEADS, layout=layout).arguments["layout"], recorded)

    def test_head_width(self):
        with self.assertRaisesRegex(ValueError, "must be a multiple of 4 .* got 3"):
            vit(num_heads=8, layout={"rope_theta": 100})

    def test_saved_attention(self):
        with self.assertRaisesRegex(ValueError, "save_attn must be False"):
            vit(num_heads=HEADS, save_attn=True, layout={"qk_norm": True})


if __name__ == "__main__":
    unittest.main()
