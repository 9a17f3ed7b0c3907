# SPDX-License-Identifier: Apache-2.0
"""SAM's image encoder: features equal those of Hugging Face's, and in 3D those of the formulas."""

from __future__ import annotations

import itertools
import json
import math
import re
import unittest
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from parameterized import parameterized
from safetensors.torch import save_file
from utils_data import temporary_folder
from utils_networks import changed, copy_of_state, randomise
from utils_sources import noise, vit

from monai_dvpt.networks.adapter import merge_full, save_adapter
from monai_dvpt.networks.nets import DVPTSAMClassifier, DVPTSAMSegmenter
from monai_dvpt.networks.parts import count_parameters
from monai_dvpt.networks.pretrained import load_pretrained, read_backbone
from monai_dvpt.utils import InputError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers
    from transformers import SamConfig, SamModel, SamVisionConfig, SamVisionModel

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

WIDTH, MLP, LAYERS, HEADS, NECK, PATCH, WINDOW, GLOBAL = 32, 40, 4, 2, 12, 16, 4, [1, 3]
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "mlp_dim": MLP}
SIZES |= {"output_channels": NECK, "patch_size": PATCH, "window_size": WINDOW, "global_attn_indexes": GLOBAL}
PROMPTS = {"hidden_size": NECK, "image_size": 96, "image_embedding_size": 6}
DECODER = {"hidden_size": NECK, "num_attention_heads": 2, "mlp_dim": 8, "num_hidden_layers": 1}
DECODER |= {"iou_head_hidden_dim": 6, "iou_head_depth": 2}
TOLERANCE = {"rtol": 0, "atol": 1e-5}
OF_SAM = (  # SAM's names, by those of Hugging Face
    (r"vision_encoder\.layers", "image_encoder.blocks"),
    (r"(blocks\.\d+)\.layer_norm", r"\1.norm"),
    (r"patch_embed\.projection", "patch_embed.proj"),
    (r"vision_encoder\.", "image_encoder."),
    (r"neck\.conv1", "neck.0"),
    (r"neck\.layer_norm1", "neck.1"),
    (r"neck\.conv2", "neck.2"),
    (r"neck\.layer_norm2", "neck.3"),
)


def source_of(image_size: int = 96, **changes: Any) -> SamVisionModel:
    """An encoder of random weights, also where the library starts from zeros."""
    return randomise(SamVisionModel(SamVisionConfig(**{**SIZES, "image_size": image_size, **changes})), seed=6).eval()


def whole_sam() -> SamModel:
    vision = {**SIZES, "image_size": 96}
    config = SamConfig(vision_config=vision, prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER)
    return randomise(SamModel(config), seed=7).eval()


def features_of(source: SamModel | SamVisionModel, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return source.vision_encoder(image).last_hidden_state


def network(img_size: Any = 96, **changes: Any) -> DVPTSAMSegmenter:
    sizes = {"hidden_size": WIDTH, "mlp_dim": MLP, "num_layers": LAYERS, "num_heads": HEADS, "neck_size": NECK}
    sizes |= {"in_channels": 3, "out_channels": 2, "window_size": WINDOW, "global_layers": GLOBAL}
    torch.manual_seed(3)
    return DVPTSAMSegmenter(**{**sizes, "img_size": img_size, "bottleneck_size": 5, **changes}).eval()


def original(source: SamModel | SamVisionModel) -> dict[str, torch.Tensor]:
    """The tensors under SAM's own names."""
    state = {}
    for name, tensor in source.state_dict().items():
        for pattern, new in OF_SAM:
            name = re.sub(pattern, new, name)
        state[name] = tensor.clone()
    return state


def saved_original(path: Path, state: dict[str, torch.Tensor], form: str) -> Path:
    forms: dict[str, Any] = {
        "plain": lambda: state,
        "data_parallel": lambda: {f"module.{name}": tensor for name, tensor in state.items()},
        "training": lambda: {"model": state, "epoch": 3, "optimizer": {"state": {}}},
        "encoder_alone": lambda: {
            name.removeprefix("image_encoder."): t for name, t in state.items() if name.startswith("image_encoder.")
        },
    }
    torch.save(forms[form](), path)
    return path


class Base(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)

    def check(self, net: Any, found: torch.Tensor, expected: torch.Tensor, report: Any) -> None:
        self.assertGreater(expected.std(), 0.1)
        torch.testing.assert_close(found, expected, **TOLERANCE)
        self.assertTrue(all(name.startswith((net.HEAD, "decoder.")) for name in report.initialised), report.initialised)
        of_encoder = {n for n, _ in net.tensors(["backbone"])}
        self.assertEqual({*report.matched, *report.converted, *report.interpolated}, of_encoder)


class TestHuggingFace(Base):
    @parameterized.expand(
        [
            ("padded_windows", {}),
            ("whole_windows", {"image_size": 128}),
            ("windows_larger_than_the_grid", {"image_size": 64, "window_size": 7}),
            ("all_global", {"window_size": 4, "global_attn_indexes": [0, 1, 2, 3]}),
            ("no_bias", {"qkv_bias": False}),
            ("another_arithmetic", {"hidden_act": "quick_gelu", "layer_norm_eps": 0.02}),
            ("patch_8", {"patch_size": 8, "image_size": 48}),
        ]
    )
    def test_same(self, _, changes):
        source = source_of(**changes)
        source.save_pretrained(self.folder)
        own = {"window_size": "window_size", "patch_size": "patch_size", "global_attn_indexes": "global_layers"}
        own |= {"image_size": "img_size"}
        net = network(**{own[name]: value for name, value in changes.items() if name in own})
        report = load_pretrained(net, self.folder, verbose=False)
        image = noise(2, 3, *net.encoder().img_size)
        with torch.no_grad():
            self.check(net, net.image_encoder(image), features_of(source, image), report)
        self.assertEqual(net.arguments["layer_norm_eps"], source.config.layer_norm_eps)
        self.assertEqual(net.arguments["activation"], source.config.hidden_act)
        self.assertFalse(any("does not say it" in fact for fact in report.facts if "window" in fact))

    @parameterized.expand([("with_config",), ("without_config",)])
    def test_whole_sam(self, form):
        source = whole_sam()
        source.save_pretrained(self.folder)
        if form == "without_config":
            (self.folder / "config.json").unlink()
        net = network()
        report = load_pretrained(net, self.folder, verbose=False)
        image = noise(2, 3, 96, 96)
        with torch.no_grad():
            self.check(net, net.image_encoder(image), features_of(source, image), report)
        others = {name for name in source.state_dict() if not name.startswith("vision_encoder.")}
        self.assertTrue(others)
        self.assertTrue(set(report.unused) <= others)
        roots = {name.split(".")[0] for name in report.unused}
        self.assertLessEqual({"mask_decoder", "prompt_encoder"}, roots)

    def test_tokens_of_layers(self):
        source = source_of()
        source.save_pretrained(self.folder)
        net = network(outputs=(0, 1, 3))
        report = load_pretrained(net, self.folder, verbose=False)
        image = noise(2, 3, 96, 96)
        with torch.no_grad():
            hidden = source.vision_encoder(image, output_hidden_states=True).hidden_states
            states = net.image_encoder.encode(image)
            for layer in (0, 1, 3):
                self.check(net, states[layer], hidden[layer + 1], report)
            read = torch.cat([hidden[layer + 1] for layer in (0, 1, 3)], dim=-1).permute(0, 3, 1, 2)
            expected = F.interpolate(net.out(read), size=(96, 96), mode="bilinear")
            torch.testing.assert_close(net(image), expected, **TOLERANCE)
        self.assertEqual({name.split(".")[0] for name in report.unused}, {"neck"})

    def test_classifier(self):
        source = source_of()
        source.save_pretrained(self.folder)
        sizes = {name: network().arguments[name] for name in ("hidden_size", "mlp_dim", "num_layers", "num_heads")}
        net = DVPTSAMClassifier(
            3, 5, 96, **sizes, window_size=WINDOW, global_layers=GLOBAL, neck_size=NECK, bottleneck_size=5
        ).eval()
        load_pretrained(net, self.folder, verbose=False)
        image = noise(2, 3, 96, 96)
        with torch.no_grad():
            expected = net.classification_head(features_of(source, image).mean(dim=(2, 3)))
            torch.testing.assert_close(net(image), expected, **TOLERANCE)

    def test_file_does_not_tell_windows_as_large_as_the_grid(self):
        source = source_of(64)
        source.save_pretrained(self.folder)
        image = noise(2, 3, 64, 64)
        for config in (True, False):
            net = network(64)
            report = load_pretrained(net, self.folder, verbose=False)
            with torch.no_grad():
                self.check(net, net.image_encoder(image), features_of(source, image), report)
            facts = [fact for fact in report.facts if "window_size 4 as in the network" in fact]
            self.assertEqual(len(facts), int(not config))
            (self.folder / "config.json").unlink(missing_ok=True)


class TestOtherImages(Base):
    @parameterized.expand([((128, 128),), ((64, 64),), ((80, 112),)])
    def test_size(self, size):
        """Hugging Face's code interpolates tables of another length by itself; positions are given to it."""
        source = source_of()
        source.save_pretrained(self.folder)
        net = network(size)
        report = load_pretrained(net, self.folder, verbose=False)
        encoder = source.vision_encoder
        encoder.patch_embed.image_size = size
        positions = encoder.pos_embed.detach().permute(0, 3, 1, 2)
        grid = tuple(side // PATCH for side in size)
        positions = F.interpolate(positions, size=grid, mode="bicubic", antialias=True)
        encoder.pos_embed = torch.nn.Parameter(positions.permute(0, 2, 3, 1))
        image = noise(2, 3, *size)
        with torch.no_grad():
            self.check(net, net.image_encoder(image), features_of(source, image), report)
        tables = {f"image_encoder.blocks.{i}.attn.rel_pos_{axis}" for i in GLOBAL for axis in "hw"}
        self.assertEqual(report.interpolated.keys() - tables, {"image_encoder.patch_embedding.position_embeddings"})
        self.assertEqual(report.interpolated.keys() & tables, tables)

    def test_one_channel(self):
        source = source_of()
        source.save_pretrained(self.folder)
        net = network(in_channels=1)
        report = load_pretrained(net, self.folder, verbose=False)
        image = noise(2, 1, 96, 96)
        with torch.no_grad():
            self.check(net, net.image_encoder(image), features_of(source, image.expand(-1, 3, -1, -1)), report)
        self.assertEqual(report.converted.keys(), {"image_encoder.patch_embedding.patch_embeddings.weight"})


class TestOriginalNames(Base):
    @parameterized.expand([("plain",), ("data_parallel",), ("training",), ("encoder_alone",)])
    def test_same(self, form):
        source = whole_sam()
        path = saved_original(self.folder / "medsam_vit_b.pth", original(source), form)
        net = network()
        report = load_pretrained(net, path, verbose=False)
        image = noise(2, 3, 96, 96)
        with torch.no_grad():
            self.check(net, net.image_encoder(image), features_of(source, image), report)
        self.assertEqual(report.kind, "SAM")
        self.assertEqual(any("mask_decoder" in name for name in report.unused), form != "encoder_alone")
        self.assertFalse(any("image_encoder" in name for name in report.unused))

    def test_adapter_on_its_backbone(self):
        path = saved_original(self.folder / "sam.pth", original(whole_sam()), "plain")
        net, image = network(), noise(2, 3, 96, 96)
        load_pretrained(net, path, verbose=False)
        randomise(net.image_encoder.dvpt)
        adapter = save_adapter(net, self.folder / "adapter.safetensors")
        with torch.no_grad():
            expected = net(image)
            torch.testing.assert_close(merge_full(adapter, path)(image), expected, **TOLERANCE)

    def test_backbone(self):
        path = saved_original(self.folder / "sam.pth", original(whole_sam()), "plain")
        told = read_backbone(path)
        self.assertEqual((told.kind, told.spatial_dims, told.in_channels, told.patch_size), ("SAM", 2, 3, PATCH))
        self.assertEqual((told.img_size, told.hidden_size, told.mlp_dim), (96, WIDTH, MLP))
        self.assertEqual((told.num_layers, told.num_heads), (LAYERS, HEADS))
        self.assertIsNone(told.normalisation)  # SAM's and MedSAM's files are alike, their images are not
        numbers = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
        (self.folder / "preprocessor_config.json").write_text(json.dumps(numbers), encoding="utf-8")
        self.assertEqual(read_backbone(path).image_mean, numbers["image_mean"])


def attention_3d(state: dict[str, torch.Tensor], x: torch.Tensor, grid: tuple[int, ...], heads: int) -> torch.Tensor:
    """Attention of tokens of shape (N, C), pair by pair, as the paper writes it."""
    q, k, v = (x @ state["qkv.weight"].T + state["qkv.bias"]).reshape(len(x), 3, heads, -1).unbind(1)
    logits = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(q.shape[-1])
    places = list(itertools.product(*map(range, grid)))
    for (i, at), (j, to) in itertools.product(enumerate(places), repeat=2):
        for axis, name in enumerate("dhw"):
            logits[:, i, j] += q[i] @ state[f"rel_pos_{name}"][at[axis] - to[axis] + grid[axis] - 1]
    y = torch.einsum("hij,jhd->ihd", logits.softmax(-1), v).flatten(1)
    return y @ state["proj.weight"].T + state["proj.bias"]


def features_3d(state: dict[str, torch.Tensor], image: torch.Tensor, window: int, globals_: list[int]) -> torch.Tensor:
    """SAM-Med3D's features of one image, from the formulas."""

    def part(root: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(root): t for name, t in state.items() if name.startswith(root)}

    def norm(x: torch.Tensor, root: str) -> torch.Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
        return x * state[f"{root}.weight"] + state[f"{root}.bias"]

    weight = state["patch_embed.proj.weight"]
    x = F.conv3d(image, weight, state["patch_embed.proj.bias"], stride=weight.shape[-1]).movedim(1, -1)[0]
    x = x + state["pos_embed"][0]
    grid = x.shape[:3]
    for layer in range(LAYERS):
        root = f"blocks.{layer}."
        before, y = norm(x, root + "norm1"), torch.zeros_like(x)
        sizes = grid if layer in globals_ else (window,) * 3
        for start in itertools.product(*(range(0, side, size) for side, size in zip(grid, sizes, strict=True))):
            tokens = torch.zeros(*sizes, x.shape[-1])  # zeros beyond the grid
            ends = [min(side, first + size) for side, first, size in zip(grid, start, sizes, strict=True)]
            inside = tuple(slice(first, end) for first, end in zip(start, ends, strict=True))
            taken = tuple(slice(0, end - first) for first, end in zip(start, ends, strict=True))
            tokens[taken] = before[inside]
            answer = attention_3d(part(root + "attn."), tokens.flatten(0, 2), sizes, HEADS)
            y[inside] = answer.reshape(tokens.shape)[taken]
        x = x + y
        y = F.gelu(F.linear(norm(x, root + "norm2"), *(state[f"{root}mlp.lin1.{kind}"] for kind in ("weight", "bias"))))
        x = x + F.linear(y, *(state[f"{root}mlp.lin2.{kind}"] for kind in ("weight", "bias")))
    x = norm(F.linear(x, state["neck.0.weight"].flatten(1)), "neck.1")
    x = F.conv3d(x.movedim(-1, 0)[None], state["neck.2.weight"], padding=1).movedim(1, -1)
    return norm(x, "neck.3").movedim(-1, 1)


def state_3d(grid: int = 3, window: int = 2, patch: int = 8) -> dict[str, torch.Tensor]:
    """SAM-Med3D's names, in its order of axes."""
    shapes: dict[str, tuple[int, ...]] = {"pos_embed": (1, grid, grid, grid, WIDTH)}
    shapes |= {"patch_embed.proj.weight": (WIDTH, 1, patch, patch, patch), "patch_embed.proj.bias": (WIDTH,)}
    for layer in range(LAYERS):
        root, side = f"blocks.{layer}.", grid if layer in GLOBAL else window
        for name, out, into in (("attn.qkv", 3, 1), ("attn.proj", 1, 1)):
            shapes |= {f"{root}{name}.weight": (out * WIDTH, into * WIDTH), f"{root}{name}.bias": (out * WIDTH,)}
        shapes |= {f"{root}{norm}.{kind}": (WIDTH,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
        shapes |= {f"{root}mlp.lin1.weight": (MLP, WIDTH), f"{root}mlp.lin1.bias": (MLP,)}
        shapes |= {f"{root}mlp.lin2.weight": (WIDTH, MLP), f"{root}mlp.lin2.bias": (WIDTH,)}
        shapes |= {f"{root}attn.rel_pos_{axis}": (2 * side - 1, WIDTH // HEADS) for axis in "dhw"}
    shapes |= {"neck.0.weight": (NECK, WIDTH, 1, 1, 1), "neck.2.weight": (NECK, NECK, 3, 3, 3)}
    shapes |= {f"neck.{index}.{kind}": (NECK,) for index in (1, 3) for kind in ("weight", "bias")}
    return {name: noise(*shape, seed=seed) / 5 for seed, (name, shape) in enumerate(shapes.items())}


class TestSAMMed3D(Base):
    def test_same(self):
        state = state_3d()
        path = self.folder / "sam_med3d.pth"
        named = {f"image_encoder.{name}": tensor for name, tensor in state.items()}
        torch.save({"model_state_dict": {**named, "mask_decoder.iou_token.weight": noise(1, 4)}}, path)
        net = network(24, in_channels=1, patch_size=8, window_size=2, spatial_dims=3)
        report = load_pretrained(net, path, verbose=False)
        image = noise(1, 1, 24, 24, 24)
        with torch.no_grad():
            self.check(net, net.image_encoder(image), features_3d(state, image, 2, GLOBAL), report)
        self.assertEqual((report.kind, report.unused), ("SAM-Med3D", ["mask_decoder.iou_token.weight"]))
        self.assertEqual(report.backbone.spatial_dims, 3)

    def test_images_of_another_size(self):
        state = state_3d()
        torch.save(state, self.folder / "encoder.pth")
        net = network((16, 24, 40), in_channels=1, patch_size=8, window_size=2, spatial_dims=3)
        report = load_pretrained(net, self.folder / "encoder.pth", verbose=False)
        positions = F.interpolate(state["pos_embed"].movedim(-1, 1), size=(2, 3, 5), mode="trilinear")
        state["pos_embed"] = positions.movedim(1, -1)
        for layer, (axis, side) in itertools.product(GLOBAL, zip("dhw", (2, 3, 5), strict=True)):
            name = f"blocks.{layer}.attn.rel_pos_{axis}"
            state[name] = F.interpolate(state[name].T[None], size=2 * side - 1, mode="linear")[0].T
        image = noise(1, 1, 16, 24, 40)
        with torch.no_grad():
            self.check(net, net.image_encoder(image), features_3d(state, image, 2, GLOBAL), report)

    def test_not_from_2d(self):
        source_of().save_pretrained(self.folder)
        net = network(48, spatial_dims=3)
        with self.assertRaisesRegex(InputError, "spatial_dims must be 2, got 3"):
            load_pretrained(net, self.folder)


class TestRefused(Base):
    def check_refused(self, net: Any, source: Path, words: str) -> None:
        before, arguments = copy_of_state(net), dict(net.arguments)
        with self.assertRaisesRegex(InputError, words):
            load_pretrained(net, source)
        self.assertEqual(changed(before, net), set())
        self.assertEqual(net.arguments, arguments)
        self.assertIsNone(net.backbone_file)

    @parameterized.expand(
        [
            ({"window_size": 5}, "window_size must be 4, got 5"),
            ({"global_layers": [0, 3]}, r"global_layers must be \[1, 3\], got \[0, 3\]"),
            ({"global_layers": []}, r"global_layers must be \[1, 3\], got \[\]"),
            ({"num_heads": 4}, "num_heads must be 2, got 4"),
            ({"hidden_size": 48}, "hidden_size must be 32, got 48"),
            ({"mlp_dim": 44}, "mlp_dim must be 40, got 44"),
            ({"num_layers": 5}, "num_layers must be 4, got 5"),
            ({"neck_size": 8}, r"another shape.*neck\.0\.weight"),
        ]
    )
    def test_another_network(self, changes, words):
        source_of().save_pretrained(self.folder)
        (self.folder / "config.json").unlink()
        self.check_refused(network(**changes), self.folder, words)

    @parameterized.expand(
        [
            ({"window_size": 7}, "config.json must state window_size 4"),
            ({"global_attn_indexes": [2, 3]}, r"config.json must state global_layers \[1, 3\]"),
            ({"num_attention_heads": 4}, "config.json must state 2 heads"),
            ({"window_size": "x"}, "window_size and global_attn_indexes must be"),
            ({"hidden_act": "relu"}, "activation must be one of .*, got relu"),
        ]
    )
    def test_another_config(self, changes, words):
        source_of().save_pretrained(self.folder)
        path = self.folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}), encoding="utf-8")
        self.check_refused(network(), self.folder, words)

    @parameterized.expand(
        [
            ("an_adapter", {"blocks.0.MLP_Adapter.D_fc1.weight": (3, 4)}, r"has .*MLP_Adapter.*cannot represent"),
            ("no_neck", {"neck.0.weight": None}, r"must have neck\.0\.weight"),
            ("no_positions", {"pos_embed": None}, "must have patch_embedding.position_embeddings"),
            ("no_bias", {"blocks.2.norm1.bias": None}, r"missing .*blocks\.2\.norm1\.bias"),
            ("no_table", {"blocks.2.attn.rel_pos_w": None}, r"must have .*rel_pos_w.* of one odd length"),
            ("even_table", {"blocks.2.attn.rel_pos_w": (6, 16)}, "of one odd length"),
            ("three_sizes", {f"blocks.2.attn.rel_pos_{a}": (9, 16) for a in "hw"}, r"for \[4, 5, 6\]"),
            ("oblong", {"pos_embed": (1, 4, 9, WIDTH)}, r"a side for each of 2 axes, got \(1, 4, 9, 32\)"),
            ("flat", {"pos_embed": (1, 36, WIDTH)}, "a side for each of 2 axes"),
        ]
    )
    def test_another_file(self, _, changes, words):
        state = original(source_of())
        for name, shape in changes.items():
            state.pop(f"image_encoder.{name}", None)
            if shape is not None:
                state[f"image_encoder.{name}"] = noise(*shape)
        save_file(state, self.folder / "sam.safetensors")
        self.check_refused(network(), self.folder / "sam.safetensors", words)

    def test_another_kind_of_network(self):
        source_of().save_pretrained(self.folder)
        self.check_refused(vit(), self.folder, "holds weights of SAM .*, which do not fit DVPTViT")
        torch.save(vit().state_dict(), self.folder / "vit.pt")
        self.check_refused(network(), self.folder / "vit.pt", "MONAI ViT, which do not fit DVPTSAMSegmenter")

    @parameterized.expand(
        [
            ({"window_size": 0}, "window_size must be a whole number of at least 1, got 0"),
            ({"global_layers": [3, 1]}, r"global_layers must be ascending layers below num_layers=4, got \[3, 1\]"),
            ({"global_layers": [4]}, "global_layers must be ascending layers below num_layers=4"),
            ({"img_size": 100}, "img_size must be positive multiples of patch_size"),
            ({"outputs": [1]}, "outputs must be ascending layers up to the last, 3"),
            ({"decoder": "deep"}, "decoder must be one of"),
            ({"neck_size": 0}, "neck_size must be a whole number of at least 1"),
            ({"spatial_dims": 4}, "spatial_dims must be 2 or 3"),
            ({"activation": "relu"}, "activation must be one of"),
            ({"layer_norm_eps": 0}, "layer_norm_eps must be positive"),
        ]
    )
    def test_arguments(self, changes, words):
        with self.assertRaisesRegex(ValueError, words):
            network(**changes)

    def test_size_of_an_image(self):
        with self.assertRaisesRegex(ValueError, r"img_size=\[96, 96\], got \[80, 96\]"):
            network()(noise(1, 3, 80, 96))


class TestSizes(unittest.TestCase):
    def test_dvpt_is_half_a_percent_of_vit_b(self):
        with torch.device("meta"):
            net = DVPTSAMSegmenter(3, 2, 1024)
        counts = count_parameters(net)
        self.assertEqual(counts["backbone"]["total"], 89_670_912)  # of the image encoder of SAM ViT-B
        self.assertLess(counts["method"]["total"], 0.005 * counts["backbone"]["total"])


if __name__ == "__main__":
    unittest.main()
