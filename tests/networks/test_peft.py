# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters of Hugging Face's peft, written and read by that library, on models of transformers."""

from __future__ import annotations

import json
import shutil
import unittest
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from parameterized import parameterized
from safetensors.torch import load_file, save_file
from utils_data import temporary_folder
from utils_networks import changed, copy_of_state, randomise, small_network

from monai_dvpt.networks.adapter import adapter_names, load_peft, save_adapter, save_peft, set_adapter
from monai_dvpt.networks.methods import LoRA
from monai_dvpt.networks.nets import DVPTUNETR, DVPTViT
from monai_dvpt.networks.parts import freeze_backbone, tune
from monai_dvpt.networks.pretrained import load_pretrained
from monai_dvpt.utils import InputError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModel,
        Dinov2Config,
        Dinov2Model,
        PreTrainedModel,
        ViTConfig,
        ViTForImageClassification,
        ViTModel,
    )

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 6, "patch_size": 16, "image_size": 48}
VIT = {"in_channels": 3, "img_size": 48, "patch_size": 16, "hidden_size": 24, "num_layers": 3, "num_heads": 6}
VIT |= {"spatial_dims": 2, "num_classes": 5}
MODELS = {
    "vit": (lambda: ViTModel(ViTConfig(**SIZES, intermediate_size=20)), "vit", "", 20),
    "classifier": (lambda: ViTForImageClassification(ViTConfig(**SIZES, intermediate_size=20)), "vit", "vit.", 20),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**SIZES, mlp_ratio=2)), "dinov2", "", 48),
    "clip": (lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES, intermediate_size=20)), "clip", None, 20),
}
TOLERANCE = {"rtol": 0, "atol": 1e-5}
IMAGE = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(11))


def query_and_value(model: PreTrainedModel) -> list[str]:
    """What this version of transformers calls these projections."""
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    return ["query", "value"] if "query" in names else ["q_proj", "v_proj"]


def layout_of(model: PreTrainedModel, layout: str) -> str:
    return "vit4" if "query" in query_and_value(model) else layout


def random_adapter(model: PreTrainedModel, rank: int = 3, **options: Any) -> peft.PeftModel:
    """``model`` with an adapter that changes its answers."""
    config = {"r": rank, "lora_alpha": 2 * rank, "target_modules": query_and_value(model), **options}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**config)).eval()
    generator = torch.Generator().manual_seed(4)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return wrapped


@torch.no_grad()
def tokens_of_model(model: Any) -> torch.Tensor:
    """The last tokens, normalised."""
    inner = model.base_model.model if isinstance(model, peft.PeftModel) else model
    if isinstance(inner, ViTForImageClassification):
        return inner.vit(IMAGE).last_hidden_state
    tokens = inner(IMAGE).last_hidden_state
    return getattr(inner, "vision_model", inner).post_layernorm(tokens) if "CLIP" in type(inner).__name__ else tokens


@torch.no_grad()
def tokens_of(net: DVPTViT) -> torch.Tensor:
    return net.eval().forward_features(IMAGE)[0]


class PeftTestCase(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)

    def both(self, kind: str, **arguments: Any) -> tuple[PreTrainedModel, DVPTViT, str, str]:
        """A model with random weights, a network with the same, and how the model names its layers."""
        make, layout, prefix, mlp_dim = MODELS[kind]
        model = randomise(make(), seed=6).eval()
        model.save_pretrained(self.folder / "model")
        torch.manual_seed(3)
        net = DVPTViT(**VIT, mlp_dim=mlp_dim, **(arguments or {"bottleneck_size": 5}))
        load_pretrained(net, self.folder / "model", verbose=False)
        if prefix is None:  # of CLIP, whose vision model is wrapped or not
            prefix = "vision_model." if hasattr(model, "vision_model") else ""
        return model, net, layout_of(model, layout), prefix


class TestOutputs(PeftTestCase):
    @parameterized.expand(MODELS)
    def test_of_peft_in_ours(self, kind):
        model, net, *_ = self.both(kind)
        plain = tokens_of(net)
        torch.testing.assert_close(plain, tokens_of_model(model), **TOLERANCE)
        wrapped = random_adapter(model)
        wrapped.save_pretrained(self.folder / "adapter")
        self.assertIs(load_peft(net, self.folder / "adapter"), net)
        expected = tokens_of_model(wrapped)
        self.assertGreater((expected - plain).abs().max(), 0.02)
        torch.testing.assert_close(tokens_of(net), expected, **TOLERANCE)
        self.assertEqual(net.method, LoRA(3, 6))

    @parameterized.expand(MODELS)
    def test_of_ours_in_peft(self, kind):
        model, net, layout, prefix = self.both(kind, method="lora", rank=4, alpha=2.5)
        for key in net.encoder().owned:
            torch.nn.init.normal_(net.encoder().get_parameter(key), std=0.25)
        self.assertEqual(save_peft(net, self.folder / "adapter", layout, prefix), self.folder / "adapter")
        plain = tokens_of_model(model)
        wrapped = peft.PeftModel.from_pretrained(model, str(self.folder / "adapter")).eval()  # missing keys would warn
        self.assertGreater((tokens_of_model(wrapped) - plain).abs().max(), 0.02)
        torch.testing.assert_close(tokens_of_model(wrapped), tokens_of(net), **TOLERANCE)
        again = load_peft(self.both(kind)[1], self.folder / "adapter")
        self.assertTrue(torch.equal(tokens_of(again), tokens_of(net)))
        self.assertEqual(again.method, LoRA(4, 2.5))

    def test_names_of_transformers_4(self):
        model, net, *_ = self.both("vit")
        wrapped = random_adapter(model)
        wrapped.save_pretrained(self.folder / "adapter")
        file = self.folder / "adapter" / "adapter_model.safetensors"
        old = {}
        for name, tensor in load_file(file).items():
            for one, other in (
                ("model.layers.", "model.encoder.layer."),
                ("attention.q_proj", "attention.attention.query"),
                ("attention.v_proj", "attention.attention.value"),
            ):
                name = name.replace(one, other)
            old[name] = tensor.clone()  # the file is overwritten
        self.assertIn("base_model.model.encoder.layer.0.attention.attention.query.lora_A.weight", old)
        save_file(old, file)
        torch.testing.assert_close(tokens_of(load_peft(net, file.parent)), tokens_of_model(wrapped), **TOLERANCE)
        save_peft(net, self.folder / "old", "vit4")
        written = load_file(self.folder / "old" / "adapter_model.safetensors")
        self.assertEqual(written.keys(), old.keys())
        self.assertTrue(all(torch.equal(written[key], old[key]) for key in old))

    def test_in_half_precision(self):
        model, net, *_ = self.both("vit")
        random_adapter(model).half().save_pretrained(self.folder / "adapter")
        load_peft(net, self.folder / "adapter")
        self.assertEqual({net.encoder().get_parameter(key).dtype for key in net.encoder().owned}, {torch.float32})

    def test_beside_others(self):
        model, net, *_ = self.both("vit")
        before = tokens_of(net)
        wrapped = random_adapter(model)
        wrapped.save_pretrained(self.folder / "adapter")
        load_peft(net, self.folder / "adapter", name="other")
        self.assertEqual(adapter_names(net), ["other", "default"])
        torch.testing.assert_close(tokens_of(net), tokens_of_model(wrapped), **TOLERANCE)
        save_adapter(net, self.folder / "ours.safetensors")
        set_adapter(net, "default")
        self.assertTrue(torch.equal(tokens_of(net), before))
        with self.assertRaisesRegex(ValueError, "name must be a new one"):
            load_peft(net, self.folder / "adapter", name="other")

    def test_what_is_trained(self):
        """As before: a frozen method stays frozen, the backbone always."""
        model, net, *_ = self.both("vit")
        random_adapter(model).save_pretrained(self.folder / "adapter")
        for train, expected in ((["method"], {"lora_a", "lora_b"}), (["head"], set())):
            load_peft(freeze_backbone(net, train), self.folder / "adapter")
            trained = {name.rpartition(".")[2] for name, p in net.encoder().named_parameters() if p.requires_grad}
            self.assertEqual(trained - {"weight", "bias"}, expected)
            self.assertEqual([p.requires_grad for p in net.classification_head.parameters()], [train == ["head"]] * 2)

    def test_in_a_unetr(self):
        """The same encoder inside a segmentation network."""
        net = randomise(tune(small_network("unetr_2d"), "lora", rank=2), seed=1)
        other = small_network("unetr_2d")
        save_peft(net, self.folder)
        self.assertIsInstance(load_peft(other, self.folder), DVPTUNETR)
        for key in net.encoder().owned:
            self.assertTrue(torch.equal(net.encoder().get_parameter(key), other.encoder().get_parameter(key)))


class TestRefusals(PeftTestCase):
    def setUp(self):
        super().setUp()
        model, self.net, *_ = self.both("vit")
        self.model, self.adapter = model, self.folder / "adapter"

    def assert_refused(self, message: str, net: Any = None) -> None:
        net = self.net if net is None else net
        before, names = copy_of_state(net), adapter_names(net)
        for name in (None, "new"):
            with self.assertRaisesRegex(InputError, message) as raised:
                load_peft(net, self.adapter, name=name)
            self.assertIn(str(self.adapter), str(raised.exception))
        self.assertEqual(changed(before, net), set())
        self.assertEqual(adapter_names(net), names)

    @parameterized.expand(
        [
            (
                "key",
                {"target_modules": ["q_proj", "k_proj", "v_proj"]},
                r"and nothing else; missing \[\], extra \['.*k_",
            ),
            ("query_alone", {"target_modules": ["q_proj"]}, r"missing \['.*v_proj.*extra \[\]"),
            (
                "some_layers",
                {"layers_to_transform": [0, 1], "layers_pattern": "layers"},
                r"in 3 layers, and nothing else; missing \['.*layers\.2\.",
            ),
            ("dora", {"use_dora": True}, r"adapter_config\.json: use_dora must be off, got True"),
            ("rslora", {"use_rslora": True}, "use_rslora must be off, got True"),
            ("bias", {"bias": "all"}, "bias must be none, got 'all'"),
            ("lora_bias", {"lora_bias": True}, "lora_bias must be off, got True"),
            ("saved", {"modules_to_save": ["layernorm"]}, r"modules_to_save must be off, got \['layernorm'\]"),
            ("ranks", {"rank_pattern": {"q_proj": 2}}, "rank_pattern must be off, got {'q_proj': 2}"),
            ("alphas", {"alpha_pattern": {"q_proj": 2}}, "alpha_pattern must be off, got {'q_proj': 2}"),
            ("pissa", {"init_lora_weights": "pissa"}, r"init_lora_weights must be one of \(.*, got 'pissa'"),
        ]
    )
    def test_what_peft_can_and_this_lora_cannot(self, _, options, message):
        if "query" in query_and_value(self.model):
            self.skipTest("the names are those of transformers 5")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft takes biases for parts of matrices
            random_adapter(self.model, **options).save_pretrained(self.adapter)
        self.assert_refused(message)

    def test_other_methods_of_peft(self):
        peft.get_peft_model(self.model, peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
        other = peft.IA3Config(target_modules=query_and_value(self.model), feedforward_modules=[])
        peft.get_peft_model(self.both("vit")[0], other).save_pretrained(self.adapter)
        self.assert_refused("peft_type must be LORA, got 'IA3'")

    @parameterized.expand(
        [
            ({"r": 2}, r"lora_A.weight must have shape \(2, 24\), got \(3, 24\)"),
            ({"r": 0}, r"r must be a whole number in \[1, 65536\], got 0"),
            ({"r": True}, r"r must be a whole number in \[1, 65536\], got True"),
            ({"r": 10**30}, "r must be a whole number in"),
            ({"lora_alpha": 0}, r"lora_alpha must be a number in \(0, 65536\], got 0"),
            ({"lora_alpha": float("nan")}, "lora_alpha must be a number in .*, got nan"),
            ({"lora_alpha": None}, "lora_alpha must be a number in .*, got None"),
            ({"lora_alpha": 10**400}, "lora_alpha must be a number in"),
            ({"peft_type": None}, "peft_type must be LORA, got None"),
            ({"init_lora_weights": [1]}, "init_lora_weights must be one of"),
            ({"of_the_future": {"a": 1}}, "of_the_future must be off, got {'a': 1}"),
        ]
    )
    def test_configurations(self, change, message):
        random_adapter(self.model).save_pretrained(self.adapter)
        config = self.adapter / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
        self.assert_refused(message)

    def test_files(self):
        self.adapter.mkdir()
        self.assert_refused(r"adapter_config\.json: must be an existing file")
        random_adapter(self.model).save_pretrained(self.adapter)
        config, weights = self.adapter / "adapter_config.json", self.adapter / "adapter_model.safetensors"
        text = config.read_text()
        good = {name: tensor.clone() for name, tensor in load_file(weights).items()}  # the file is overwritten
        for content, message in (
            ("[]", "must hold a JSON object"),
            ("{", "cannot be read as JSON"),
            (" " * (17 << 20), "must have at most"),
        ):
            config.write_text(content)
            self.assert_refused(message)
        config.write_text(text)
        first = next(iter(good))
        for tensors, message in (
            ({first: good[first]}, "missing"),
            ({"a": torch.ones(2)}, r"must hold tensors of a vision transformer, such as base_model.*, got \['a'\]"),
            ({**good, first: good[first].T.contiguous()}, "must have shape"),
            ({**good, first: good[first] * float("nan")}, "must be finite as float32"),
            ({**good, first: good[first].double() * 1e300}, "must be finite as float32"),
        ):
            save_file(tensors, weights)
            self.assert_refused(message)
        weights.write_bytes(weights.read_bytes()[:-5])
        self.assert_refused("cannot be read as weights")
        weights.unlink()
        self.assert_refused(r"adapter_model\.safetensors: must be an existing file")

    def test_deeper_networks(self):
        random_adapter(self.model).save_pretrained(self.adapter)
        self.assert_refused(
            "LoRA of query and value in 4 layers", DVPTViT(**{**VIT, "num_layers": 4}, mlp_dim=20, method="full")
        )
        self.assert_refused(
            "lora_A.weight must have shape", DVPTViT(**{**VIT, "hidden_size": 18}, mlp_dim=20, method="linear")
        )

    def test_networks(self):
        for call in (load_peft, save_peft):
            with self.assertRaisesRegex(ValueError, "net must have a vision transformer .*, got DVPTSwinClassifier"):
                call(small_network("swin_classifier_2d"), self.adapter)
        with self.assertRaisesRegex(ValueError, 'net must be tuned by the method "lora", got "dvpt"'):
            save_peft(self.net, self.adapter)
        with self.assertRaisesRegex(ValueError, "layout must be one of .*, got timm"):
            save_peft(tune(self.net, "lora"), self.adapter, "timm")
        self.net.encoder().get_parameter("blocks.1.attn.qkv.lora_b").data[1, 2, 0] = float("inf")
        with self.assertRaisesRegex(InputError, "blocks.1.attn.qkv.lora_b must be finite"):
            save_peft(self.net, self.adapter)
        self.assertFalse(self.adapter.exists())

    def test_what_cannot_be_written_leaves_the_old(self):
        save_peft(tune(self.net, "lora"), self.adapter)
        copy = shutil.copytree(self.adapter, self.folder / "copy")
        with mock.patch.object(Path, "write_text", side_effect=OSError("no space left")):
            with self.assertRaisesRegex(InputError, "cannot be written: no space left"):
                save_peft(tune(self.net, "lora", rank=2), self.adapter)
        self.assertEqual(
            {p.name: p.read_bytes() for p in self.adapter.iterdir()}, {p.name: p.read_bytes() for p in copy.iterdir()}
        )
