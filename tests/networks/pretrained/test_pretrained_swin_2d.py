# SPDX-License-Identifier: Apache-2.0
"""Swin transformers of photographs, in the layouts of Hugging Face, timm and the original release: equal features."""

from __future__ import annotations

import itertools
import re
import unittest
from typing import Any

import torch
import torch.nn.functional as F
from parameterized import parameterized
from transformers import SwinConfig, SwinForImageClassification, SwinModel, Swinv2Config, Swinv2Model
from utils_data import temporary_folder
from utils_networks import DVPT_SIZES, changed, copy_of_state, randomise
from utils_sources import Filler, State, encoder_and_rest, noise, save, vit

from monai_dvpt.networks.adapter import disable_adapter, merge_full, save_adapter
from monai_dvpt.networks.nets import DVPTSwinClassifier, DVPTSwinUNETR
from monai_dvpt.networks.parts import freeze_backbone
from monai_dvpt.networks.pretrained import load_pretrained
from monai_dvpt.utils import InputError

WIDTH, DEPTHS, HEADS, WINDOW, CLASSES = 12, (2, 1, 3, 2), (1, 2, 3, 6), 3, 5
TOLERANCE = {"rtol": 0, "atol": 1e-5}
# of the source, larger, of sides that need padding everywhere, and one whose last stage is one window high
SIZES = ((96, 96), (128, 160), (101, 131), (70, 200))


def swin(**arguments: Any) -> DVPTSwinClassifier:
    """A network as its class makes it, so that its DVPT blocks change nothing."""
    torch.manual_seed(3)
    sizes = {"patch_size": 4, "depths": DEPTHS, "num_heads": HEADS, "window_size": WINDOW, "feature_size": WIDTH}
    options = {"patch_norm": True, "final_norm": True, "spatial_dims": 2, **DVPT_SIZES}
    return DVPTSwinClassifier(**{"in_channels": 3, "num_classes": CLASSES, **sizes, **options, **arguments}).eval()


def of_hugging_face(kind: Any = SwinForImageClassification, seed: int = 7, **config: Any) -> Any:
    sizes = {"image_size": 96, "embed_dim": WIDTH, "depths": list(DEPTHS), "num_heads": list(HEADS)}
    options = {"window_size": WINDOW, "num_labels": CLASSES, **config}
    return randomise(kind(SwinConfig(**sizes, **options)), seed).eval()


def original_state(timm: bool = False, old: bool = False, seed: int = 4) -> State:
    """
    Random weights under the names of the original release, or with ``timm`` those of timm's present one. ``old`` adds
    the constants that older files have.
    """
    fill, state = Filler(seed), {}

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + fill(width), fill(width)

    fill.affine(state, "patch_embed.proj", WIDTH, 3, 4, 4)
    norm("patch_embed.norm", WIDTH)
    for stage, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        width = WIDTH * 2**stage
        for layer in range(depth):
            block = f"layers.{stage}.blocks.{layer}."
            norm(block + "norm1", width)
            state[block + "attn.relative_position_bias_table"] = fill((2 * WINDOW - 1) ** 2, heads)
            if old:
                state[block + "attn.relative_position_index"] = index_of_window()
                state[block + "attn_mask"] = fill(4, 9, 9)
            fill.affine(state, block + "attn.qkv", 3 * width, width)
            fill.affine(state, block + "attn.proj", width, width)
            norm(block + "norm2", width)
            fill.affine(state, block + "mlp.fc1", 4 * width, width)
            fill.affine(state, block + "mlp.fc2", width, 4 * width)
        if stage < 3:
            merging = f"layers.{stage + timm}.downsample."
            norm(merging + "norm", 4 * width)
            state[merging + "reduction.weight"] = fill(2 * width, 4 * width)
    norm("norm", 8 * WIDTH)
    fill.affine(state, "head.fc" if timm else "head", CLASSES, 8 * WIDTH)
    return state


def index_of_window() -> torch.Tensor:
    """Row of the bias table for each pair of tokens of a window."""
    places = list(itertools.product(range(WINDOW), repeat=2))
    rows = [[(a - c + WINDOW - 1) * (2 * WINDOW - 1) + b - d + WINDOW - 1 for c, d in places] for a, b in places]
    return torch.tensor(rows)


def original_features(state: State, image: torch.Tensor, timm: bool) -> torch.Tensor:
    """
    The pooled features as the paper describes them: each token attends to those of its shifted window that were its
    neighbours before the shift. A grid is padded to whole windows with zeros, with ``timm`` after the shift.
    """

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], state[name + ".weight"], state[name + ".bias"])

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, state[name + ".weight"], state.get(name + ".bias"))

    def places(side: int, shift: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Where tokens of an axis lie after the shift, their indices before, and the length with padding."""
        whole = -(-side // WINDOW) * WINDOW
        before = [(place + shift) % side if timm else (place + shift) % whole for place in range(whole)]
        kept = [place for place in range(whole) if before[place] < side and (place < side or not timm)]
        return torch.tensor(kept), torch.tensor([before[place] for place in kept]), whole

    def attention(x: torch.Tensor, name: str, heads: int, shift: tuple[int, int]) -> torch.Tensor:
        (down, from_down, height), (right, from_right, width) = map(places, x.shape[1:3], shift)
        moved = x.new_zeros(len(x), height, width, x.shape[3])
        moved[:, down[:, None], right] = x[:, from_down[:, None], from_right]
        q, k, v = (t.unflatten(-1, (heads, -1)) for t in linear(moved, name + "qkv").chunk(3, dim=-1))
        out = torch.zeros_like(moved)
        table = state[name + "relative_position_bias_table"]
        groups: dict[tuple, list[tuple[int, int]]] = {}
        for i, j in itertools.product(range(height), range(width)):
            # what came from the other side is no neighbour
            key = (i // WINDOW, j // WINDOW, i >= height - shift[0], j >= width - shift[1])
            groups.setdefault(key, []).append((i, j))
        for members in groups.values():
            rows, columns = map(torch.tensor, zip(*members, strict=True))
            apart = (rows[:, None] - rows + WINDOW - 1) * (2 * WINDOW - 1) + columns[:, None] - columns + WINDOW - 1
            logits = torch.einsum("bnhd,bmhd->bhnm", q[:, rows, columns], k[:, rows, columns])
            logits = logits / q.shape[-1] ** 0.5 + table[apart].permute(2, 0, 1)
            out[:, rows, columns] = torch.einsum("bhnm,bmhd->bnhd", logits.softmax(-1), v[:, rows, columns]).flatten(2)
        back = torch.zeros_like(x)
        back[:, from_down[:, None], from_right] = out[:, down[:, None], right]
        return linear(back, name + "proj")

    image = F.pad(image, (0, -image.shape[3] % 4, 0, -image.shape[2] % 4))
    x = F.conv2d(image, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=4)
    x = norm(x.permute(0, 2, 3, 1), "patch_embed.norm")
    for stage, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        one = [side <= WINDOW for side in x.shape[1:3]]
        for layer in range(depth):
            block = f"layers.{stage}.blocks.{layer}."
            still = one if timm else [any(one)] * 2
            shift = tuple(WINDOW // 2 if layer % 2 and not stays else 0 for stays in still)
            x = x + attention(norm(x, block + "norm1"), block + "attn.", heads, shift)
            x = x + linear(F.gelu(linear(norm(x, block + "norm2"), block + "mlp.fc1")), block + "mlp.fc2")
        if stage < 3:
            merging = f"layers.{stage + timm}.downsample."
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
            x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], dim=-1)
            x = linear(norm(x, merging + "norm"), merging + "reduction")
    return norm(x, "norm").mean(dim=(1, 2))


class TestSwin2D(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)

    @parameterized.expand(SIZES)
    def test_hugging_face_classifier(self, height, width):
        source, net = of_hugging_face(), swin()
        source.save_pretrained(self.folder)
        report = load_pretrained(net, self.folder, verbose=False)
        image = noise(2, 3, height, width)
        with torch.no_grad():
            torch.testing.assert_close(net(image), source(image).logits, **TOLERANCE)
        self.assertEqual((report.initialised, report.unused), ([], []))
        self.assertEqual(report.kind, "Swin transformer (Hugging Face)")
        self.assertEqual(set(report.matched) | set(report.converted), encoder_and_rest(net))
        self.assertEqual(
            report.converted["swinViT.layers3.0.blocks.2.attn.qkv.bias"], "joined from query, key and value"
        )
        self.assertEqual(report.facts, ["layer_norm_eps 1e-05, activation gelu, window_shift original"])

    @parameterized.expand([(True,), (False,)])
    def test_hugging_face_features(self, qkv_bias):
        source = of_hugging_face(SwinModel, qkv_bias=qkv_bias)
        net = swin(num_classes=0, qkv_bias=qkv_bias)
        source.save_pretrained(self.folder)
        load_pretrained(net, self.folder, verbose=False)
        image = noise(2, 3, 96, 128)
        with torch.no_grad():
            torch.testing.assert_close(net(image), source(image).pooler_output, **TOLERANCE)
            last = source(image).last_hidden_state.transpose(1, 2)
            torch.testing.assert_close(net.encoder().last(image).flatten(2), last, **TOLERANCE)

    def test_names_of_its_modules(self):
        """Those of a running model, which its library renames when it saves one."""
        source, net = of_hugging_face(), swin()
        load_pretrained(net, save(self.folder / "weights.pt", source.state_dict()), verbose=False)
        image = noise(1, 3, 96, 96)
        with torch.no_grad():
            torch.testing.assert_close(net(image), source(image).logits, **TOLERANCE)

    @parameterized.expand(
        [(size, timm, old) for size in SIZES for timm, old in ((False, False), (False, True), (True, False))]
    )
    def test_original_and_timm(self, size, timm, old):
        state, net = original_state(timm, old), swin()
        path = save(self.folder / "weights.pth", {"model": {"module." + name: each for name, each in state.items()}})
        report = load_pretrained(net, path, verbose=False)
        image = noise(2, 3, *size)
        with torch.no_grad():
            head = "head.fc." if timm else "head."
            expected = F.linear(original_features(state, image, timm), state[head + "weight"], state[head + "bias"])
            torch.testing.assert_close(net(image), expected, rtol=0, atol=3e-5)
        self.assertEqual(report.kind, "Swin transformer (original, timm)")
        self.assertEqual(report.initialised, [])
        self.assertEqual(set(report.unused), {f"module.{name}" for name in state if name.endswith("attn_mask")})
        self.assertEqual(net.arguments["window_shift"], "timm" if timm else "original")

    def test_the_reference_agrees_with_hugging_face(self):
        """The function that judges timm's layout and the library that judges its own compute the same."""
        source, state = of_hugging_face(), {}
        for name, tensor in swin_of(source).items():
            state[name] = tensor
        for size in SIZES:
            image = noise(1, 3, *size)
            with torch.no_grad():
                expected = of_hugging_face()(image).logits
                features = original_features(state, image, timm=False)
                logits = F.linear(features, source.classifier.weight, source.classifier.bias)
                torch.testing.assert_close(logits, expected, **TOLERANCE)

    def test_classifier_of_other_classes(self):
        source, net = of_hugging_face(), swin(num_classes=2)
        source.save_pretrained(self.folder)
        report = load_pretrained(net, self.folder, verbose=False)
        self.assertEqual(report.initialised, ["classification_head.weight", "classification_head.bias"])
        self.assertEqual(set(report.unused), {"classifier.weight", "classifier.bias"})

    def test_one_channel(self):
        state, net = original_state(), swin(in_channels=1)
        report = load_pretrained(net, save(self.folder / "weights.pth", state), verbose=False)
        self.assertEqual(report.converted["swinViT.patch_embed.proj.weight"], "3 to 1 input channels")
        grey = noise(1, 1, 96, 96)
        with torch.no_grad():
            features = original_features(state, grey.expand(-1, 3, -1, -1), timm=False)
            expected = F.linear(features, state["head.weight"], state["head.bias"])
            torch.testing.assert_close(net(grey), expected, rtol=0, atol=3e-5)

    def test_adapter_on_the_backbone(self):
        """A file of an adapter, and the one of the backbone, restore the network, with the way it shifts windows."""
        source = of_hugging_face()
        source.save_pretrained(self.folder)
        net = swin()
        load_pretrained(net, self.folder, verbose=False)
        freeze_backbone(net)
        randomise(net.encoder().dvpt, seed=9)
        image = noise(1, 3, 70, 200)
        save_adapter(net, self.folder / "adapter.safetensors")
        again = merge_full(self.folder / "adapter.safetensors", self.folder / "model.safetensors")
        with torch.no_grad():
            torch.testing.assert_close(again(image), net(image), rtol=0, atol=0)
            with disable_adapter(again):
                torch.testing.assert_close(again(image), source(image).logits, **TOLERANCE)
            self.assertGreater((again(image) - source(image).logits).abs().max(), 0.01)

    def test_its_own_state(self):
        """A network of this kind as it was saved; the report says what the file does not tell."""
        net, again = randomise(swin(window_shift="timm"), 5), swin(window_shift="timm")
        report = load_pretrained(again, save(self.folder / "own.pt", net.state_dict()), verbose=False)
        self.assertEqual(report.initialised, [])
        self.assertRegex(report.facts[0], "downsample merging, window_shift timm as in the network; the file does not")
        image = noise(1, 3, 70, 200)
        with torch.no_grad(), disable_adapter(net), disable_adapter(again):
            torch.testing.assert_close(again(image), net(image), rtol=0, atol=0)

    def test_prefix(self):
        """Images whose sides no merging halves evenly have prefixes too."""
        net = swin(start_layer=4)
        freeze_backbone(net)
        randomise(net.encoder().dvpt, seed=9)
        for size in SIZES:
            image = noise(2, 3, *size)
            with torch.no_grad():
                torch.testing.assert_close(net(image, net.forward_prefix(image)), net(image), rtol=0, atol=0)


def swin_of(source: Any) -> State:
    """The weights of a model of Hugging Face under the original names, module by module."""
    state: State = {}

    def put(name: str, module: Any) -> None:
        state.update({f"{name}.{kind}": tensor for kind, tensor in module.state_dict().items()})

    put("patch_embed.proj", source.swin.embeddings.patch_embeddings.projection)
    put("patch_embed.norm", source.swin.embeddings.norm)
    put("norm", source.swin.layernorm)
    for index, stage in enumerate(source.swin.encoder.layers):
        for number, layer in enumerate(stage.blocks):
            block = f"layers.{index}.blocks.{number}."
            own = layer.attention
            put(block + "norm1", layer.layernorm_before)
            put(block + "norm2", layer.layernorm_after)
            put(block + "mlp.fc1", layer.mlp.fc1)
            put(block + "mlp.fc2", layer.mlp.fc2)
            put(block + "attn.proj", own.o_proj)
            for kind in ("weight", "bias"):
                parts = [getattr(part, kind) for part in (own.q_proj, own.k_proj, own.v_proj)]
                state[f"{block}attn.qkv.{kind}"] = torch.cat(parts).detach()
            table = own.relative_position_bias.relative_position_bias_table
            state[block + "attn.relative_position_bias_table"] = table.detach()
        if stage.downsample is not None:
            put(f"layers.{index}.downsample.norm", stage.downsample.norm)
            put(f"layers.{index}.downsample.reduction", stage.downsample.reduction)
    return state


class TestRefusals(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)

    def check_refused(self, net: Any, state: State, reason: str, config: Any = None, **options: Any) -> None:
        path = save(self.folder / "weights.pt", state, config)
        before = copy_of_state(net)
        with self.assertRaisesRegex(InputError, f"weights.pt: .*{reason}"):
            load_pretrained(net, path, **options)
        self.assertEqual(changed(before, net), set())

    @parameterized.expand(
        [
            ({"feature_size": 24}, r"feature_size must be 12, got 24"),
            ({"depths": (2, 1, 2, 2)}, r"depths must be \[2, 1, 3, 2\], got \[2, 1, 2, 2\]"),
            ({"num_heads": (1, 2, 6, 6)}, r"num_heads must be \[1, 2, 3, 6\], got \[1, 2, 6, 6\]"),
            ({"window_size": 2}, r"window_size must be \[3, 3\], got \[2, 2\]"),
            ({"window_size": (3, 2)}, r"window_size must be \[3, 3\], got \[3, 2\]"),
            ({"mlp_ratio": 2.0}, r"mlp_ratio must be 4.0, got 2.0"),
            ({"patch_norm": False}, "patch_norm must be True, got False"),
            ({"final_norm": False}, "final_norm must be True, got False"),
            ({"qkv_bias": False}, r"has layers1\.0\.blocks\.0\.attn\.qkv\.bias in its encoder"),
            ({"spatial_dims": 3}, "spatial_dims must be 2, got 3"),
            ({"use_v2": True}, "layers1c"),
        ]
    )
    def test_other_sizes(self, arguments, reason):
        self.check_refused(swin(**arguments), original_state(), reason)

    def test_other_networks(self):
        unetr = DVPTSwinUNETR(3, 2, patch_size=2, feature_size=WIDTH, spatial_dims=2, **DVPT_SIZES)
        self.check_refused(unetr, original_state(), "do not fit DVPTSwinUNETR: they merge no tokens after the last")
        self.check_refused(vit(), original_state(), "do not fit DVPTViT")

    @parameterized.expand(
        [
            ("layers.1.blocks.0.attn.logit_scale", "SwinV2's cosine attention"),
            ("layers.0.blocks.0.attn.cpb_mlp.0.weight", "SwinV2's cosine attention"),
            ("absolute_pos_embed", "absolute position embeddings"),
            ("layers.2.blocks.1.attn.gate.weight", "layers.2.blocks.1.attn.gate.weight"),
            ("layers.4.blocks.0.norm1.weight", "layers.4.blocks.0.norm1.weight"),
        ]
    )
    def test_what_cannot_be_represented(self, name, reason):
        self.check_refused(swin(), original_state() | {name: noise(WIDTH)}, f"{reason}.*cannot represent")

    def test_swin_v2_of_hugging_face(self):
        sizes = {"image_size": 96, "embed_dim": WIDTH, "depths": list(DEPTHS), "num_heads": list(HEADS)}
        source = Swinv2Model(Swinv2Config(**sizes, window_size=WINDOW))
        source.save_pretrained(self.folder)
        with self.assertRaisesRegex(InputError, "model.safetensors: has SwinV2's cosine attention .* cannot represent"):
            load_pretrained(swin(), self.folder)

    @parameterized.expand(
        [
            ({"layer_norm_eps": 1e-6}, {}, "layer_norm_eps of a Swin transformer must be 1e-05, got 1e-06"),
            ({"hidden_act": "relu"}, {}, "activation of a Swin transformer must be gelu, got relu"),
            ({}, {"layer_norm_eps": 1e-6}, "layer_norm_eps of a Swin transformer must be 1e-05, got 1e-06"),
            ({}, {"activation": "quick_gelu"}, "activation of a Swin transformer must be gelu, got quick_gelu"),
        ]
    )
    def test_other_arithmetic(self, config, options, reason):
        state = of_hugging_face().state_dict()
        self.check_refused(swin(), state, reason, config, **options)

    @parameterized.expand(
        [
            ("norm.weight", r"missing \['swinViT\.norm\.weight'\]"),
            ("layers.1.blocks.0.attn.relative_position_bias_table", "must have layers2.0.blocks.0.attn.relative"),
            ("patch_embed.proj.weight", "must have patch_embed.proj.weight, under its name in Swin transformer"),
            ("layers.2.blocks.1.mlp.fc2.bias", r"missing \['swinViT\.layers3\.0\.blocks\.1\.mlp\.linear2\.bias'\]"),
        ]
    )
    def test_missing(self, name, reason):
        state = original_state()
        del state[name]
        self.check_refused(swin(), state, reason)

    @parameterized.expand([("k_proj", "key"), ("q_proj", "query")])
    def test_query_without_key(self, part, missing):
        state = {name: tensor for name, tensor in of_hugging_face().state_dict().items() if part not in name}
        self.check_refused(swin(), state, rf"must have layers1\.0\.blocks\.0\.attn\.{missing}\.weight", min_match=0.1)

    def test_two_names_for_one_tensor(self):
        state = of_hugging_face().state_dict()
        block = "swin.encoder.layers.0.blocks.1."
        state[block + "intermediate.dense.bias"] = noise(4 * WIDTH)
        self.check_refused(swin(), state, f"has layers1.0.blocks.1.mlp.linear1.bias twice, .* {block}intermediate")

    @parameterized.expand(
        [
            ("layers.0.blocks.0.attn.relative_position_bias_table", (24, 1), "one square window in all stages"),
            ("layers.3.blocks.0.attn.relative_position_bias_table", (9, 6), "one square window in all stages"),
            ("layers.3.blocks.0.attn.relative_position_bias_table", (), "shapes that no"),
            ("layers.1.blocks.0.attn.qkv.weight", (3, 4), "tensors of another shape"),
            ("patch_embed.proj.weight", (), "shapes that no"),
            ("layers.0.blocks.0.mlp.fc1.weight", (), "shapes that no"),
        ]
    )
    def test_shapes(self, name, shape, reason):
        self.check_refused(swin(), original_state() | {name: Filler(2)(*shape)}, reason)

    def test_index_of_another_window(self):
        state = original_state(old=True)
        state["layers.1.blocks.0.attn.relative_position_index"] = index_of_window().T.contiguous()
        self.check_refused(swin(), state, "must be that of the network's windows")

    def test_images(self):
        net = swin()
        for size in ((64, 96), (96, 64)):
            with self.assertRaisesRegex(ValueError, re.escape("must be at least [65, 65]")):
                net(noise(1, 3, *size))
        self.assertEqual(net(noise(1, 3, 65, 65)).shape, (1, CLASSES))
        with self.assertRaisesRegex(ValueError, "must have 2 sides"):
            net(noise(1, 3, 65, 65, 65))

    def test_the_decoder_of_swin_unetr_needs_tokens_of_two_pixels(self):
        with self.assertRaisesRegex(ValueError, "patch_size must be 2, as the decoder doubles .* got 4"):
            DVPTSwinUNETR(3, 2, patch_size=4, feature_size=WIDTH, spatial_dims=2, **DVPT_SIZES)

    def test_window_shift(self):
        with self.assertRaisesRegex(ValueError, r"must be one of \['monai'\] without final_norm, got timm"):
            swin(final_norm=False, window_shift="timm")
        with self.assertRaisesRegex(ValueError, r"must be one of \['monai', 'original', 'timm'\], got swin"):
            swin(window_shift="swin")


if __name__ == "__main__":
    unittest.main()
