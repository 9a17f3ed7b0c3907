# SPDX-License-Identifier: Apache-2.0
"""One network in several files, and several networks in one file."""

from __future__ import annotations

import json
import unittest
from pathlib import Path
from unittest import mock

import huggingface_hub
import torch
from monai.networks.nets import ViT
from parameterized import parameterized
from utils_data import temporary_folder
from utils_networks import changed, copy_of_state
from utils_sources import (
    HEADS,
    LAYERS,
    MLP,
    PATCH,
    WIDTH,
    State,
    google_arrays,
    noise,
    save,
    timm_state,
    timm_tokens,
    tokens_of,
    vit,
)

from monai_dvpt.networks.adapter import merge_full, save_adapter
from monai_dvpt.networks.pretrained import PretrainedReport, load_pretrained
from monai_dvpt.utils import InputError

IMAGE = (2, 3, 48, 48)
INDEX = "model.safetensors.index.json"


def under(prefix: str, state: State) -> State:
    """``state`` with a prefix before its names."""
    return {prefix + name: tensor for name, tensor in state.items()}


def without_head(state: State) -> State:
    """``state`` without its classifier."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("head.")}


class Several(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.net = vit()

    def check_tokens(self, source: Path, state: State) -> PretrainedReport:
        report = load_pretrained(self.net, source, verbose=False)
        torch.testing.assert_close(
            tokens_of(self.net, noise(*IMAGE)), timm_tokens(state, noise(*IMAGE)), rtol=0, atol=1e-5
        )
        return report

    def check_refused(self, source: Path, *words: str) -> None:
        before = copy_of_state(self.net)
        with self.assertRaises(InputError) as caught:
            load_pretrained(self.net, source, verbose=False)
        for word in words:
            self.assertIn(word, str(caught.exception))
        self.assertNotIn("RoPE", str(caught.exception))
        self.assertEqual(changed(before, self.net), set())


class TestNetworks(Several):
    student, teacher = timm_state(seed=5), timm_state(seed=6)

    @parameterized.expand(
        [
            (first, outside, inside)
            for first in ("student", "teacher")
            for outside in ("", "module.")
            for inside in ("", "backbone.")
        ]
    )
    def test_teacher_by_prefix(self, first, outside, inside):
        states = {"student": self.student, "teacher": self.teacher}
        states = states if first == "student" else dict(reversed(states.items()))
        content: State = {}
        for name, state in states.items():
            content |= under(f"{outside}{name}.{inside}", without_head(state))
            content |= under(
                f"{outside}{name}.", {"dino_head.mlp.0.weight": noise(3, WIDTH), "head.weight": noise(5, 24)}
            )
        report = self.check_tokens(save(self.folder / "dino.pth", content), self.teacher)
        self.assertIn("the teacher of two networks", report.kind)
        left = {name for name in content if "student." in name}
        self.assertLessEqual(left, set(report.unused))

    @parameterized.expand([("student",), ("teacher",)])
    def test_teacher_by_dictionary(self, first):
        states = {"student": under("module.backbone.", self.student), "teacher": under("backbone.", self.teacher)}
        states = states if first == "student" else dict(reversed(states.items()))
        path = save(self.folder / "dino.pth", {"epoch": 3, **states, "optimizer": {"lr": torch.tensor(0.1)}})
        report = self.check_tokens(path, self.teacher)
        self.assertIn("student.module.backbone.norm.weight", report.unused)

    def test_head_of_the_student_is_not_the_teachers(self):
        content = under("student.", self.student) | under("teacher.", without_head(self.teacher))
        report = self.check_tokens(save(self.folder / "dino.pth", content), self.teacher)
        self.assertIn("classification_head.weight", report.initialised)

    @parameterized.expand(
        [
            ("encoder_q", "encoder_k"),
            ("model", "model_ema"),
            ("state_dict", "state_dict_ema"),
            ("student1", "student2"),
            ("teacher", "ema"),
            ("encoder", "target_encoder"),
        ]
    )
    def test_no_teacher(self, one, other):
        for first, second in ((one, other), (other, one)):
            flat = under(f"{first}.", self.student) | under(f"{second}.", self.teacher)
            self.check_refused(save(self.folder / "a.pth", flat), "must hold one network", one, other)
            nested = {first: self.student, second: self.teacher}
            self.check_refused(save(self.folder / "b.pth", nested), "must hold one network", one, other)
        flat = self.student | under(f"{other}.", self.teacher)
        self.check_refused(save(self.folder / "c.pth", flat), "must hold one network", "the top", other)

    def test_of_monai(self):
        sizes = {"in_channels": 3, "img_size": 48, "patch_size": PATCH, "hidden_size": WIDTH, "mlp_dim": MLP}
        sizes |= {"num_layers": LAYERS, "num_heads": HEADS, "spatial_dims": 2, "classification": True, "qkv_bias": True}
        student, teacher = (ViT(**sizes).state_dict() for _ in range(2))
        path = save(self.folder / "a.pth", {"student": student, "teacher": teacher})
        load_pretrained(self.net, path, verbose=False)
        self.assertTrue(
            torch.equal(self.net.state_dict()["blocks.1.attn.qkv.weight"], teacher["blocks.1.attn.qkv.weight"])
        )
        self.check_refused(save(self.folder / "b.pth", {"model": student, "ema": teacher}), "model, ema")

    def test_one_network_under_two_names(self):
        content = {"model": self.student, "state_dict": self.student}
        self.check_tokens(save(self.folder / "a.pth", content), self.student)

    @parameterized.expand([("decoder.",), ("predictor.",)])
    def test_decoder_is_no_second_network(self, prefix):
        content = under("encoder.", self.student) | under(prefix, self.teacher)
        report = self.check_tokens(save(self.folder / "a.pth", content), self.student)
        self.assertIn(prefix + "norm.weight", report.unused)

    def test_two_names_that_become_one(self):
        arrays = google_arrays()
        again = {"blocks.0.norm1.scale": noise(WIDTH).numpy()}
        self.check_refused(save(self.folder / "a.npz", arrays | again), "twice", "blocks.0.norm1.scale")

    @parameterized.expand([("pos_embed",), ("norm.weight",), ("blocks.2.norm1.weight",)])
    def test_names_of_which_some_have_a_prefix(self, name):
        state = under("module.", self.student)
        state[name] = state.pop("module." + name)
        if name.startswith("blocks"):  # which are layers that are missing
            self.check_refused(save(self.folder / "a.pth", state), "missing ['blocks.2.norm1.weight']")
        else:
            words = f"blocks.0.attn.qkv.weight has 'module.', {name} has none"
            self.check_refused(save(self.folder / "a.pth", state), "must have one root", words)
        state = dict(self.student)
        state["model.pos_embed"] = state.pop("pos_embed")
        self.check_refused(save(self.folder / "a.pth", state), "must have one root", "pos_embed has 'model.'")


class TestShards(Several):
    state = timm_state(seed=7)

    def shards(self, suffix: str = ".safetensors", stem: str = "model") -> dict[str, State]:
        names = sorted(self.state)
        parts = names[::3], names[1::3], names[2::3]
        return {
            f"{stem}-0000{i + 1}-of-00003{suffix}": {name: self.state[name] for name in part}
            for i, part in enumerate(parts)
        }

    def saved(self, suffix: str = ".safetensors", stem: str = "model") -> Path:
        """Shards and their index, as Hugging Face libraries write them; returns the index."""
        shards = self.shards(suffix, stem)
        for name, tensors in shards.items():
            save(self.folder / name, tensors)
        index = {name: shard for shard, tensors in shards.items() for name in tensors}
        path = self.folder / f"{stem}{suffix}.index.json"
        path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}), encoding="utf-8")
        return path

    @parameterized.expand([(".safetensors", "model"), (".bin", "pytorch_model")])
    def test_read_as_one(self, suffix, stem):
        path = self.saved(suffix, stem)
        for source in (path, self.folder):
            self.net = vit()
            report = self.check_tokens(source, self.state)
            self.assertEqual((report.source, report.initialised, report.unused), (path.name, [], []))

    def test_backbone_of_an_adapter(self):
        self.net = load_pretrained(vit(), self.saved(), verbose=False).network.eval()
        save_adapter(self.net, self.folder / "adapter.safetensors")
        merged = merge_full(self.folder / "adapter.safetensors")
        image = noise(*IMAGE)
        self.assertTrue(torch.equal(tokens_of(merged, image), tokens_of(self.net, image)))

    def test_config_beside_them(self):
        self.saved()
        (self.folder / "config.json").write_text(json.dumps({"num_attention_heads": 3}), encoding="utf-8")
        self.check_refused(self.folder, "num_heads must be 3, got 6")

    @parameterized.expand([(".safetensors", "model"), (".bin", "pytorch_model")])
    def test_one_of_them(self, suffix, stem):
        path = self.saved(suffix, stem)
        for number, shard in enumerate(self.shards(suffix, stem), start=1):
            self.check_refused(self.folder / shard, f"is shard {number} of 3 of a checkpoint", path.name, "the folder")

    def test_only_one(self):
        path = save(self.folder / "model-00001-of-00001.safetensors", self.state)
        self.check_tokens(path, self.state)

    def test_part_under_another_name(self):
        part = {name: tensor for name, tensor in self.state.items() if name != "pos_embed"}
        with self.assertRaisesRegex(
            InputError, "no position embeddings, so it is a part of a checkpoint, or of a kind"
        ):
            load_pretrained(self.net, save(self.folder / "part.safetensors", part))

    def test_missing_shard(self):
        path, shard = self.saved(), next(iter(self.shards()))
        (self.folder / shard).unlink()
        self.check_refused(path, f"{self.folder / shard}: must be an existing file")

    def test_shard_without_a_named_tensor(self):
        path, (shard, tensors) = self.saved(), next(iter(self.shards().items()))
        name, tensor = tensors.popitem()
        save(self.folder / shard, tensors)
        self.check_refused(path, f"{self.folder / shard}: must hold the tensors that {INDEX} names", name)
        save(self.folder / shard, tensors | {name: tensor, "extra": tensor.clone()})
        self.check_refused(path, "and no others", "['extra']")

    @parameterized.expand(
        [
            ("{}", "must hold a JSON object weight_map"),
            ('{"weight_map": []}', "must hold a JSON object weight_map"),
            ('{"weight_map": {}}', "must hold a JSON object weight_map"),
            ("[]", "must hold a JSON object, got list"),
            ("{", "cannot be read as JSON"),
        ]
    )
    def test_other_index(self, text, words):
        path = self.folder / INDEX
        path.write_text(text, encoding="utf-8")
        self.check_refused(path, str(path), words)
        self.check_refused(self.folder, str(path), words)

    def test_repository(self):
        self.saved()
        asked = []

        def download(repository, name, revision=None):
            asked.append(name)
            if not (self.folder / name).is_file():
                raise huggingface_hub.errors.EntryNotFoundError(f"no {name}")
            return str(self.folder / name)

        with mock.patch.object(huggingface_hub, "hf_hub_download", download):
            self.check_tokens(Path("owner/name"), self.state)
        self.assertEqual(asked, ["config.json", "preprocessor_config.json", "model.safetensors", INDEX, *self.shards()])


if __name__ == "__main__":
    unittest.main()
