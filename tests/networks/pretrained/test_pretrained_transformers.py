# SPDX-License-Identifier: Apache-2.0
"""Models of Hugging Face transformers, written by that library: features equal its own."""

from __future__ import annotations

import json
import unittest
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import huggingface_hub
import torch
from parameterized import parameterized
from utils_data import temporary_folder
from utils_networks import changed, copy_of_state, randomise
from utils_sources import CLASSES, HEADS, LAYERS, MLP, PATCH, WIDTH, noise, tokens_of, vit

from monai_dvpt.networks.nets import DVPTUNETR
from monai_dvpt.networks.pretrained import load_pretrained
from monai_dvpt.utils import InputError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPVisionConfig,
        CLIPVisionModel,
        DeiTConfig,
        DeiTModel,
        Dinov2Config,
        Dinov2ForImageClassification,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        DINOv3ViTConfig,
        DINOv3ViTModel,
        OwlViTVisionConfig,
        OwlViTVisionModel,
        PreTrainedModel,
        SiglipVisionConfig,
        SiglipVisionModel,
        ViTConfig,
        ViTForImageClassification,
        ViTMAEConfig,
        ViTMAEForPreTraining,
        ViTModel,
    )

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

SIZES = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "patch_size": PATCH}
SIZES |= {"image_size": 48, "intermediate_size": MLP}
DINO = {name: value for name, value in SIZES.items() if name != "intermediate_size"} | {"mlp_ratio": 2}
TEXT = {"hidden_size": 14, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 18, "vocab_size": 30}
DECODER = {"decoder_hidden_size": 12, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
TOLERANCE = {"rtol": 0, "atol": 1e-5}


def model(kind: str) -> PreTrainedModel:
    """A model with random weights, also where the library starts from zeros or ones."""
    made = {
        "vit": lambda: ViTModel(ViTConfig(**SIZES)),
        "vit_without_bias": lambda: ViTModel(ViTConfig(**SIZES, qkv_bias=False)),
        "vit_oblong": lambda: ViTModel(ViTConfig(**{**SIZES, "image_size": (32, 64)})),
        "vit_tanh": lambda: ViTModel(ViTConfig(**SIZES, hidden_act="gelu_pytorch_tanh", layer_norm_eps=0.02)),
        "vit_classifier": lambda: ViTForImageClassification(ViTConfig(**SIZES, num_labels=CLASSES)),
        "mae": lambda: ViTMAEForPreTraining(ViTMAEConfig(**SIZES, **DECODER, mask_ratio=0.0)),
        "clip_vision": lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES)),
        "clip_vision_gelu": lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES, hidden_act="gelu")),
        "clip": lambda: CLIPModel(CLIPConfig(vision_config=SIZES, text_config=TEXT, projection_dim=7)),
        "dinov2": lambda: Dinov2Model(Dinov2Config(**DINO)),
        "dinov2_classifier": lambda: Dinov2ForImageClassification(Dinov2Config(**DINO, num_labels=CLASSES)),
        "dinov2_swiglu": lambda: Dinov2Model(Dinov2Config(**DINO, use_swiglu_ffn=True)),
        "dinov2_registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**DINO)),
        "dinov2_registers_swiglu": lambda: Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**DINO, use_swiglu_ffn=True)
        ),
        "dinov3": lambda: DINOv3ViTModel(DINOv3ViTConfig(**SIZES, num_register_tokens=3)),
        "dinov3_gated": lambda: DINOv3ViTModel(
            DINOv3ViTConfig(**SIZES, num_register_tokens=4, use_gated_mlp=True, hidden_act="silu", rope_theta=50.0)
        ),
        "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**SIZES)),
        "deit": lambda: DeiTModel(DeiTConfig(**SIZES)),
    }[kind]()
    return randomise(made, seed=6).eval()


@torch.no_grad()
def tokens_of_model(source: PreTrainedModel, image: torch.Tensor) -> torch.Tensor:
    """The last tokens, normalised."""
    if isinstance(source, ViTMAEForPreTraining):  # which shuffles them, even where it masks none
        output = source.vit(image, noise=torch.arange(9.0)[None].expand(len(image), -1))
        return output.last_hidden_state
    if isinstance(source, (CLIPModel, CLIPVisionModel)):
        tower = source.vision_model if isinstance(source, CLIPModel) else source
        return tower.post_layernorm(tower(image).last_hidden_state)  # CLIP normalises its class token alone
    if isinstance(source, (ViTForImageClassification, Dinov2ForImageClassification)):
        source = source.base_model
    return source(image).last_hidden_state


def saved(source: PreTrainedModel, folder: Path, form: str) -> Path:
    """``source`` as a folder with or without its config.json, or a torch file of the names in memory."""
    if form == "memory":
        path = folder / "model.pt"
        torch.save(source.state_dict(), path)
        return path
    source.save_pretrained(folder)
    if form == "without_config":
        (folder / "config.json").unlink()
        return folder / "model.safetensors"
    return folder


FORMS = ("with_config", "without_config", "memory")
MODELS = ("vit", "vit_classifier", "mae", "clip_vision", "clip", "dinov2")
# what they have beyond MONAI's ViT, and the width of their feed-forward part
FAMILIES: dict[str, tuple[dict[str, Any], int]] = {
    "dinov2_registers": ({"num_registers": 4}, 2 * WIDTH),
    "dinov2_swiglu": ({"gated_mlp": True}, 32),
    "dinov2_registers_swiglu": ({"num_registers": 4, "gated_mlp": True}, 32),
    "dinov3": ({"num_registers": 3, "rope_theta": 100.0}, MLP),
    "dinov3_gated": ({"num_registers": 4, "gated_mlp": True, "rope_theta": 50.0}, MLP),
    "siglip": ({}, MLP),
}


class TestFeatures(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)

    def check(self, source: PreTrainedModel, form: str, **arguments):
        net = vit(**({"mlp_dim": 2 * WIDTH} if "Dinov2" in type(source).__name__ else {}), **arguments)
        report = load_pretrained(net, saved(source, self.folder, form), verbose=False)
        image = noise(2, 3, *net.img_size)
        torch.testing.assert_close(tokens_of(net, image), tokens_of_model(source, image), **TOLERANCE)
        self.assertTrue(all(name.startswith(net.HEAD) for name in report.initialised), report.initialised)
        return net, report

    @parameterized.expand([(kind, form) for kind in MODELS for form in FORMS])
    def test_same(self, kind, form):
        source = model(kind)
        net, report = self.check(source, form)
        self.assertEqual(any("num_heads" in fact for fact in report.facts), form != "with_config")
        own = getattr(source.config, "vision_config", source.config)
        self.assertEqual(net.arguments["layer_norm_eps"], own.layer_norm_eps)
        self.assertEqual(net.arguments["activation"], own.hidden_act)
        self.assertEqual(net.arguments["pre_norm"], "clip" in kind)
        self.assertEqual(report.initialised == [], kind == "vit_classifier")

    @parameterized.expand([(kind, side) for kind in FAMILIES for side in (48, 80)])
    def test_families(self, kind, side):
        source, (layout, mlp_dim) = model(kind), FAMILIES[kind]
        sizes = {"mlp_dim": mlp_dim, "class_token": kind != "siglip", "img_size": side}
        net = vit(**sizes, pooling="cls" if kind != "siglip" else "mean")
        report = load_pretrained(net, saved(source, self.folder, "with_config"), verbose=False)
        image = noise(2, 3, side, side)
        with torch.no_grad():
            interpolate = {} if side == 48 or kind.startswith("dinov") else {"interpolate_pos_encoding": True}
            want = source(pixel_values=image, **interpolate).last_hidden_state
        torch.testing.assert_close(tokens_of(net, image), want, **TOLERANCE)
        self.assertEqual(net.arguments["layout"] or {}, layout)
        self.assertEqual(set(report.initialised), {"classification_head.weight", "classification_head.bias"})

    def test_gates_of_dinov3_without_its_config(self):
        """All published ones are SwiGLU, with frequencies of base 100."""
        sizes = {**SIZES, "num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"}
        source, net = randomise(DINOv3ViTModel(DINOv3ViTConfig(**sizes)), seed=6).eval(), vit()
        load_pretrained(net, saved(source, self.folder, "without_config"), verbose=False)
        image = noise(2, 3, 48, 48)
        torch.testing.assert_close(tokens_of(net, image), tokens_of_model(source, image), **TOLERANCE)

    def test_pre_normalisation_under_its_right_name(self):
        """OWL-ViT is a CLIP that spells "pre_layernorm" so."""
        source, net = randomise(OwlViTVisionModel(OwlViTVisionConfig(**SIZES)), seed=6).eval(), vit()
        load_pretrained(net, saved(source, self.folder, "with_config"), verbose=False)
        image = noise(2, 3, 48, 48)
        with torch.no_grad():
            tower = getattr(source, "vision_model", source)
            want = tower.post_layernorm(source(pixel_values=image).last_hidden_state)
        torch.testing.assert_close(tokens_of(net, image), want, **TOLERANCE)

    def test_into_double_precision(self):
        source, net = model("clip_vision"), vit().double()
        load_pretrained(net, saved(source, self.folder, "with_config"), verbose=False)
        image = noise(2, 3, 48, 48)
        torch.testing.assert_close(tokens_of(net, image.double()).float(), tokens_of_model(source, image), **TOLERANCE)

    @parameterized.expand([("vit", 80), ("vit", 32), ("clip_vision", 80), ("dinov2", 32), ("dinov2_registers", 32)])
    def test_other_sizes_as_the_source_interpolates(self, kind, side):
        source, net = model(kind), vit(mlp_dim=2 * WIDTH if "dino" in kind else MLP, img_size=side)
        load_pretrained(net, saved(source, self.folder, "with_config"), verbose=False)
        image = noise(2, 3, side, side)
        interpolate = {} if "dino" in kind else {"interpolate_pos_encoding": True}
        with torch.no_grad():
            want = source(pixel_values=image, **interpolate).last_hidden_state
        if kind == "clip_vision":  # which normalises the class token alone
            want = source.post_layernorm(want).detach()
        torch.testing.assert_close(tokens_of(net, image), want, **TOLERANCE)

    @parameterized.expand([("vit_tanh", 0.02, "gelu_pytorch_tanh"), ("clip_vision_gelu", 1e-5, "gelu")])
    def test_config_decides(self, kind, eps, activation):
        net, _ = self.check(model(kind), "with_config")
        self.assertEqual((net.arguments["layer_norm_eps"], net.arguments["activation"]), (eps, activation))

    @parameterized.expand([(True,), (False,)])
    def test_without_bias(self, qkv_bias):
        self.check(model("vit_without_bias"), "with_config", qkv_bias=qkv_bias)

    def test_oblong(self):  # 8 tokens and a class token, which together could be a square
        self.check(model("vit_oblong"), "with_config", img_size=(32, 64))

    @parameterized.expand([("with_config",), ("memory",)])
    def test_classifier(self, form):
        source, net = model("vit_classifier"), vit()
        load_pretrained(net, saved(source, self.folder, form), verbose=False)
        image = noise(2, 3, 48, 48)
        with torch.no_grad():
            torch.testing.assert_close(net(image), source(image).logits, **TOLERANCE)

    def test_classifier_of_dinov2_sees_class_token_and_mean(self):
        source, net = model("dinov2_classifier"), vit(mlp_dim=2 * WIDTH, pooling="both")
        report = load_pretrained(net, saved(source, self.folder, "with_config"), verbose=False)
        self.assertEqual(report.initialised, [])
        image = noise(2, 3, 48, 48)
        with torch.no_grad():
            torch.testing.assert_close(net(image), source(image).logits, **TOLERANCE)

    def test_activation_that_is_not_known(self):
        source, net = ViTModel(ViTConfig(**SIZES, hidden_act="relu")), vit()
        before = copy_of_state(net)
        with self.assertRaisesRegex(InputError, r"model\.safetensors: activation must be one of .*, got relu"):
            load_pretrained(net, saved(source, self.folder, "with_config"))
        self.assertEqual(changed(before, net), set())

    def test_unetr(self):
        source = randomise(ViTModel(ViTConfig(**{**SIZES, "num_hidden_layers": 12})), seed=6).eval()
        sizes = {"feature_size": 4, "hidden_size": WIDTH, "mlp_dim": MLP, "num_heads": HEADS, "spatial_dims": 2}
        net = DVPTUNETR(3, 2, 48, **sizes, qkv_bias=True, bottleneck_size=5).eval()
        report = load_pretrained(net, saved(source, self.folder, "with_config"), verbose=False)
        self.assertIn("cls_token", report.unused)
        image = noise(2, 3, 48, 48)
        with torch.no_grad():
            x = source.embeddings(image)[:, 1:]  # a segmentation network has no class token
            for layer in source.layers:
                x = layer(x)
            torch.testing.assert_close(net.vit(image)[0], source.layernorm(x), **TOLERANCE)


class TestRefused(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.net = vit(mlp_dim=2 * WIDTH)

    def check_refused(self, source: Path | str, *words: str) -> None:
        before, arguments = copy_of_state(self.net), dict(self.net.arguments)
        with self.assertRaises(InputError) as caught:
            load_pretrained(self.net, source)
        for word in words:
            self.assertIn(word, str(caught.exception))
        self.assertEqual(changed(before, self.net), set())
        self.assertEqual(self.net.arguments, arguments)
        self.assertIsNone(self.net.backbone_file)

    @parameterized.expand(
        [
            (kind, form, reason)
            for kind, reason in (("deit", "a distillation token (embeddings.distillation_token)"),)
            for form in ("with_config", "memory")
        ]
    )
    def test_cannot_be_represented(self, kind, form, reason):
        path = saved(model(kind), self.folder, form)
        self.check_refused(path, str(path), reason, "cannot represent")

    @parameterized.expand([("with_config",), ("memory",)])
    def test_rotary_positions_without_register_tokens(self, form):
        source = model("dinov3")
        del source.embeddings.register_tokens
        path = saved(source, self.folder, form)
        self.check_refused(path, str(path))

    def test_heads_of_the_config(self):
        self.net = vit(num_heads=3)
        folder = saved(model("vit"), self.folder, "with_config")
        self.check_refused(folder, str(folder), f"num_heads must be {HEADS}, got 3")

    @parameterized.expand([("{",), ("[]",), ('{"layer_norm_eps": "small"}',), ('{"hidden_act": ["gelu"]}',)])
    def test_damaged_config(self, text):
        self.net = vit()
        folder = saved(model("vit"), self.folder, "with_config")
        (folder / "config.json").write_text(text, encoding="utf-8")
        self.check_refused(folder, "config.json", "must" if text != "{" else "JSON")

    @parameterized.expand([("num_attention_heads", "six"), ("layer_norm_eps", -1.0), ("layer_norm_eps", 0.0)])
    def test_config_out_of_range(self, name, value):
        self.net = vit()
        folder = saved(model("vit"), self.folder, "with_config")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(config | {name: value}), encoding="utf-8")
        self.check_refused(folder, name)


class TestRepository(unittest.TestCase):
    """Names of Hugging Face repositories; nothing is downloaded."""

    def setUp(self):
        self.folder = temporary_folder(self)
        self.net = vit()

    def test_found(self):
        source = model("vit")
        source.save_pretrained(self.folder)
        asked = []

        def download(repository, name, revision=None):
            asked.append((repository, name, revision))
            return str(self.folder / name)

        with mock.patch.object(huggingface_hub, "hf_hub_download", download):
            report = load_pretrained(self.net, "some-owner/some_model.v2@a1b2c3", verbose=False)
        repository = ("some-owner/some_model.v2",)
        files = ("config.json", "preprocessor_config.json", "model.safetensors")
        self.assertEqual(asked, [(*repository, name, "a1b2c3") for name in files])
        self.assertEqual(report.kind, "ViT (Hugging Face)")
        image = noise(1, 3, 48, 48)
        torch.testing.assert_close(tokens_of(self.net, image), tokens_of_model(source, image), **TOLERANCE)

    def test_older_file_and_no_config(self):
        source = model("vit")
        torch.save(source.state_dict(), self.folder / "pytorch_model.bin")

        def download(repository, name, revision=None):
            if not (self.folder / name).is_file():
                raise huggingface_hub.errors.EntryNotFoundError(f"no {name}")
            return str(self.folder / name)

        with mock.patch.object(huggingface_hub, "hf_hub_download", download):
            report = load_pretrained(self.net, "owner/name", verbose=False)
        self.assertEqual(report.source, "pytorch_model.bin")

    def check_refused(self, source: str, *words: str) -> None:
        before = copy_of_state(self.net)
        with self.assertRaises(InputError) as caught:
            load_pretrained(self.net, source)
        for word in (source, *words):
            self.assertIn(word, str(caught.exception))
        self.assertEqual(changed(before, self.net), set())

    def test_without_weights(self):
        def download(repository, name, revision=None):
            raise huggingface_hub.errors.EntryNotFoundError(f"no {name}")

        with mock.patch.object(huggingface_hub, "hf_hub_download", download):
            self.check_refused("owner/name", "must hold one of", "model.safetensors", "pytorch_model.bin")

    def test_offline(self):
        with (
            mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True),
            mock.patch.object(huggingface_hub.constants, "HF_HUB_CACHE", str(self.folder)),
            mock.patch("socket.socket.connect", side_effect=AssertionError("reached for the network")),
        ):
            self.check_refused(
                "owner/name",
                "cannot be downloaded",
                "fetch model.safetensors, config.json and preprocessor",
            )

    def test_refused_by_the_hub(self):
        def download(repository, name, revision=None):
            raise ConnectionError("proxy says no")

        with mock.patch.object(huggingface_hub, "hf_hub_download", download):
            self.check_refused("owner/name", "ConnectionError", "fetch model.safetensors, config.json and preprocessor")

    def test_without_the_library(self):
        with mock.patch("monai_dvpt.networks.pretrained.weight_files.optional_import", lambda name: (None, False)):
            self.check_refused("owner/name", "huggingface_hub is not installed", "fetch model.safetensors")


if __name__ == "__main__":
    unittest.main()
