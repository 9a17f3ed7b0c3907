# SPDX-License-Identifier: Apache-2.0
"""What is refused: an error that names the file and the reason, and a network of which no bit changed."""

from __future__ import annotations

import shutil
import unittest
import warnings
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import ViT
from parameterized import parameterized
from utils_data import temporary_folder
from utils_networks import UNETR_SIZES, changed, copy_of_state, randomise, small_unetr
from utils_sources import (
    HEADS,
    LAYERS,
    MLP,
    WIDTH,
    Filler,
    State,
    clip_state,
    google_arrays,
    noise,
    save,
    timm_state,
    vit,
)

from monai_dvpt.networks.pretrained import load_pretrained
from monai_dvpt.utils import InputError


class TouchesFile:
    """A pickle of it runs code when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class Refusals(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.net = vit()

    def check_refused(self, source: Path, *words: str, **options) -> None:
        before, arguments = copy_of_state(self.net), dict(self.net.arguments)
        with self.assertRaises(InputError) as caught:
            load_pretrained(self.net, source, **options)
        for word in (str(source), *words):
            self.assertIn(word, str(caught.exception))
        self.assertEqual(changed(before, self.net), set())
        self.assertEqual(self.net.arguments, arguments)
        self.assertIsNone(self.net.backbone_file)


def renamed(state: State, old: str, new: str) -> State:
    """``state`` with a part of its names replaced."""
    return {name.replace(old, new): tensor for name, tensor in state.items()}


class TestLayout(Refusals):
    @parameterized.expand(
        [
            ("learned rotary position embeddings", "rope.freqs"),
            ("beside learned positions", "rope_embed.periods"),
            ("a gate in its attention", "blocks.0.attn.gate.weight"),
            ("of the class token alone", "cls_norm.weight"),
            ("MONAI's ViT", "blocks.0.mlp.gate_proj.weight"),
            ("without a bias", "blocks.0.attn.q_norm.weight"),
            ("relative position bias", "blocks.0.attn.relative_position_bias_table"),
            ("relative position bias", "rel_pos_bias.relative_position_bias_table"),
            ("a distillation token", "dist_token"),
            ("a distillation token", "embeddings.distillation_token"),
            ("a convolutional stem", "patch_embed.backbone.stem.conv.weight"),
        ]
    )
    def test_what_the_encoder_cannot_represent(self, what, name):
        for prefix in ("", "module."):
            state = {prefix + key: tensor for key, tensor in (timm_state() | {name: noise(WIDTH)}).items()}
            self.check_refused(save(self.folder / "weights.pt", state), what, name, "cannot represent")

    def test_unknown_tensor_inside_a_block(self):
        state = timm_state() | {"blocks.1.attn.other.weight": noise(WIDTH)}
        self.check_refused(save(self.folder / "weights.pt", state), "blocks.1.attn.other.weight", "cannot represent")

    @parameterized.expand(
        [
            ({"blocks.1.attn.norm.weight": (WIDTH,)}, "blocks.1.attn.out_norm.weight", "encoder has none"),
            ({"blocks.0.attn.k_norm.weight": (4,)}, "blocks.0.attn.k_norm.weight", "encoder has none"),
            ({"blocks.0.mlp.w12.weight": (2 * MLP, WIDTH)}, "blocks.0.mlp.fc1.weight twice", "blocks.0.mlp.w12"),
            ({"reg_token": (1, 4, WIDTH + 1)}, "shapes", "no ViT"),
            ({"fc_norm.weight": (WIDTH,)}, "fc_norm.weight", "cannot represent"),
            ({"blocks.0.mlp.fc1_g.weight": (MLP, WIDTH)}, "blocks.0.mlp.linear1.weight", "another shape"),
        ]
    )
    def test_part_of_a_layout(self, shapes, *words):
        extra = {name: noise(*shape) for name, shape in shapes.items()}
        self.check_refused(save(self.folder / "weights.pt", timm_state() | extra), *words)

    def test_without_positions(self):
        state = timm_state()
        del state["pos_embed"]
        self.check_refused(save(self.folder / "weights.pt", state), "no position embeddings")

    @parameterized.expand(
        [
            ("norm.weight",),
            ("patch_embed.proj.weight",),
            ("blocks.1.attn.qkv.weight",),
            ("blocks.2.mlp.fc2.bias",),
            ("cls_token",),
            ("patch_embed.proj.bias",),
        ]
    )
    def test_missing_tensor(self, name):
        state = timm_state()
        del state[name]
        path = save(self.folder / "weights.pt", state)
        if name == "patch_embed.proj.bias":  # as CLIP has none
            report = load_pretrained(self.net, path, verbose=False)
            self.assertIn("zeros", report.converted["patch_embedding.patch_embeddings.bias"])
        else:
            self.check_refused(path)

    def test_query_without_key(self):
        arrays = google_arrays()
        del arrays["Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/kernel"]
        path = save(self.folder / "weights.npz", arrays)
        self.check_refused(path, "must have blocks.1.attn.key.weight", min_match=0.1)

    @parameterized.expand(
        [
            ({"conv1.weight": (8, 3, 7, 7), "layer1.0.conv1.weight": (8, 8, 3, 3)},),
            ({"weight": (3, 4)},),
        ]
    )
    def test_unknown(self, shapes):
        fill = Filler(1)
        state = {name: fill(*shape) for name, shape in shapes.items()}
        path = save(self.folder / "weights.pt", state)
        self.check_refused(path, "must hold weights of a ViT (timm, Hugging Face, MAE, CLIP", sorted(state)[0])

    def test_part_of_a_swin(self):
        state = {"layers.0.blocks.0.attn.qkv.weight": noise(36, 12), "patch_embed.proj.weight": noise(12, 3, 4, 4)}
        words = "must have layers1.0.blocks.0.attn.relative_position_bias_table, under its name in Swin transformer"
        self.check_refused(save(self.folder / "weights.pt", state), words)

    def test_adapter_file(self):
        state = {name: tensor for name, tensor in self.net.state_dict().items() if name.startswith("dvpt.")}
        self.check_refused(save(self.folder / "adapter.safetensors", state), "must hold weights of a ViT")

    @parameterized.expand(
        [
            ("pos_embed", (1, 10, WIDTH + 1)),
            ("cls_token", (1, 1, WIDTH + 1)),
            ("norm.weight", ()),
            ("blocks.0.attn.qkv.weight", (3 * WIDTH, WIDTH + 1)),
            ("blocks.1.mlp.fc2.weight", (WIDTH + 1, MLP)),
            ("blocks.2.norm2.bias", (WIDTH, 1)),
            ("patch_embed.proj.bias", (WIDTH + 1,)),
            ("blocks.0.mlp.fc1.weight", ()),
            ("patch_embed.proj.weight", (WIDTH, 3)),
        ]
    )
    def test_shapes(self, name, shape):
        state = timm_state() | {name: Filler(2)(*shape)}
        self.check_refused(save(self.folder / "weights.pt", state))

    @parameterized.expand(
        [
            ("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel", (WIDTH,)),
            ("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/out/kernel", (WIDTH,)),
            ("embedding/kernel", (16, 16, WIDTH)),
            ("Transformer/encoder_norm/scale", (WIDTH + 1,)),
        ]
    )
    def test_shapes_of_google(self, name, shape):
        arrays = google_arrays() | {name: Filler(2)(*shape).numpy()}
        self.check_refused(save(self.folder / "weights.npz", arrays))

    @parameterized.expand([(torch.nan,), (torch.inf,), (-torch.inf,)])
    def test_not_finite(self, value):
        state = timm_state()
        state["blocks.1.norm2.weight"][3] = value
        path = save(self.folder / "weights.pt", state)
        self.check_refused(path, "blocks.1.norm2.weight must be finite")


class TestSizes(Refusals):
    def check_sizes(self, source: Path, words: str, **arguments) -> None:
        self.net = vit(**arguments)
        self.check_refused(source, "does not fit the network's encoder", words)

    @parameterized.expand(
        [
            ({"hidden_size": 36}, f"hidden_size must be {WIDTH}, got 36"),
            ({"num_layers": 2}, f"num_layers must be {LAYERS}, got 2"),
            ({"num_layers": 5}, f"num_layers must be {LAYERS}, got 5"),
            ({"mlp_dim": 21}, f"mlp_dim must be {MLP}, got 21"),
            ({"qkv_bias": False}, "qkv_bias must be True, got False"),
            ({"mlp_dim": 21, "num_layers": 2}, f"mlp_dim must be {MLP}, got 21, num_layers must be {LAYERS}, got 2"),
        ]
    )
    def test_timm(self, arguments, words):
        self.check_sizes(save(self.folder / "weights.pt", timm_state()), words, **arguments)

    def test_heads_of_the_config(self):
        path = save(self.folder / "model.safetensors", timm_state(), {"num_attention_heads": HEADS})
        self.check_sizes(path, f"num_heads must be {HEADS}, got 3", num_heads=3)
        clip = {"model_type": "clip", "vision_config": {"num_attention_heads": HEADS}, "num_attention_heads": 3}
        path = save(self.folder / "model.safetensors", clip_state(), clip)
        self.check_sizes(path, f"num_heads must be {HEADS}, got 3", num_heads=3)

    def test_heads_of_google(self):
        path = save(self.folder / "weights.npz", google_arrays())
        self.check_sizes(path, f"num_heads must be {HEADS}, got 3", num_heads=3)

    def test_monai(self):
        sizes = {name: UNETR_SIZES[name] for name in ("in_channels", "hidden_size", "mlp_dim", "num_heads")}
        plain = randomise(ViT(**sizes, img_size=(32, 48), patch_size=16, spatial_dims=2, num_layers=11), seed=3)
        self.net = small_unetr()
        self.check_refused(save(self.folder / "weights.pt", plain.state_dict()), "num_layers must be 11, got 12")

    def test_share(self):
        state = timm_state()
        del state["blocks.2.norm1.weight"], state["blocks.2.norm1.bias"]
        path = save(self.folder / "weights.pt", state)
        backbone = {
            name: p.numel() for name, p in self.net.named_parameters() if name.startswith(("patch", "cls", "no"))
        }
        backbone |= {
            name: p.numel()
            for name, p in self.net.named_parameters()
            if name.startswith("blocks.") and "norm_cross_attn" not in name
        }
        share = 100 * (1 - 2 * WIDTH / sum(backbone.values()))
        missing = "missing ['blocks.2.norm1.weight', 'blocks.2.norm1.bias']"
        self.check_refused(path, f"at least 100 % of the backbone's values, gives {share:.2f} %", missing)
        self.check_refused(path, "at least 99.99 %", min_match=0.9999)
        report = load_pretrained(self.net, path, min_match=0.99, verbose=False)
        self.assertEqual(report.initialised, ["blocks.2.norm1.weight", "blocks.2.norm1.bias"])

    @parameterized.expand([(0.0,), (-1e-6,)])
    def test_layer_norm_eps(self, eps):
        path = save(self.folder / "weights.pt", timm_state())
        self.check_refused(path, f"layer_norm_eps must be positive, got {eps}", layer_norm_eps=eps)

    @parameterized.expand([("relu",), ("",)])
    def test_activation(self, activation):
        path = save(self.folder / "weights.pt", timm_state())
        self.check_refused(path, "activation must be one of ['gelu', 'gelu_pytorch_tanh'", activation=activation)


class TestFiles(Refusals):
    @parameterized.expand([("weights.pt",), ("weights.safetensors",), ("weights.npz",), ("weights",), ("a/b/c/d",)])
    def test_missing(self, name):
        self.check_refused(self.folder / name, "must be an existing file")

    def test_folder_without_weights(self):
        (self.folder / "config.json").write_text("{}", encoding="utf-8")
        self.check_refused(self.folder, "must hold one of", "model.safetensors", "pytorch_model.bin")

    def test_folder(self):
        save(self.folder / "pytorch_model.bin", clip_state())
        self.assertEqual(load_pretrained(self.net, self.folder, verbose=False).source, "pytorch_model.bin")
        save(self.folder / "model.safetensors", timm_state())
        self.assertEqual(load_pretrained(self.net, self.folder, verbose=False).source, "model.safetensors")

    def test_relative_path_like_a_repository(self):
        path = save(self.folder / "owner" / "name", timm_state())  # a torch file without a suffix
        self.assertEqual(load_pretrained(self.net, path, verbose=False).source, "name")

    @parameterized.expand([(".pt",), (".bin",), (".ckpt",), ("",)])
    def test_pickle_that_runs_code(self, suffix):
        touched = self.folder / "touched"
        path = save(self.folder / f"weights{suffix}", timm_state() | {"norm.bias": TouchesFile(touched)})
        self.check_refused(path, "it must hold tensors only")
        self.assertFalse(touched.exists())

    def test_array_that_runs_code(self):
        touched = self.folder / "touched"
        arrays = google_arrays() | {"head/bias": np.array([TouchesFile(touched)], dtype=object)}
        path = save(self.folder / "weights.npz", arrays)
        self.check_refused(path, "it must hold tensors only")
        self.assertFalse(touched.exists())

    def test_array_of_text(self):
        path = save(self.folder / "weights.npz", google_arrays() | {"name": np.array(["ViT"])})
        self.check_refused(path, "it must hold tensors only")

    @parameterized.expand([(torch.zeros(3),), ([torch.zeros(3)],), ({1: torch.zeros(3)},), ({"norm.bias": 1},), ({},)])
    def test_no_named_tensors(self, content):
        self.check_refused(save(self.folder / "weights.pt", content), "must hold a dictionary of named tensors")

    @parameterized.expand(
        [
            (suffix, content)
            for suffix in (".pt", ".pth", ".safetensors", ".npz")
            for content in (
                b"",
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
                b"hello there\n",
                b"\x00\xff",
                b"\x80",
                b"PK\x03\x04",
            )
        ]
    )
    def test_other_content(self, suffix, content):
        path = self.folder / f"weights{suffix}"
        path.write_bytes(content)
        self.check_refused(path, "cannot be read as weights")

    @parameterized.expand([(".safetensors",), (".pt",), (".npz",)])
    def test_truncated(self, suffix):
        path = save(self.folder / f"weights{suffix}", google_arrays() if suffix == ".npz" else timm_state())
        path.write_bytes(path.read_bytes()[:-1000])
        self.check_refused(path, "cannot be read as weights")

    @parameterized.expand([(".safetensors",), (".npz",)])
    def test_under_the_name_of_another_kind(self, suffix):
        path = self.folder / f"weights{suffix}"
        shutil.copy(save(self.folder / "weights.pt", timm_state()), path)
        self.check_refused(path, "cannot be read as weights")

    def test_torchscript(self):
        """As OpenAI publishes CLIP: it is a program, and so not run."""
        path = self.folder / "clip.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), path)
            self.check_refused(path, "cannot be read as weights")


if __name__ == "__main__":
    unittest.main()
