# SPDX-License-Identifier: Apache-2.0
"""What a file of tensors does not say, and what must not be guessed in silence."""

from __future__ import annotations

import json
import unittest

import torch
from monai.networks.nets import UNETR
from parameterized import parameterized
from safetensors.torch import save_file
from transformers import ViTConfig, ViTModel
from utils_data import temporary_folder
from utils_networks import UNETR_SIZES, changed, copy_of_state, randomise, small_unetr
from utils_sources import save, timm_state

from monai_dvpt.networks.adapter import add_adapter, save_adapter
from monai_dvpt.networks.nets import DVPTSwinUNETR, DVPTViT
from monai_dvpt.networks.pretrained import load_pretrained
from monai_dvpt.utils import InputError

SIZES = {"hidden_size": 24, "mlp_dim": 20, "num_layers": 2, "num_heads": 3, "bottleneck_size": 5, "spatial_dims": 2}


class TestAssumptions(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)

    @parameterized.expand([("batch",), (("group", {"num_groups": 2}),)])
    def test_decoder_of_another_normalisation(self, norm_name):
        plain = randomise(UNETR(**UNETR_SIZES, img_size=(32, 48), spatial_dims=2))
        net = small_unetr(norm_name=norm_name, decoder_tuning="none")
        before = copy_of_state(net)
        with self.assertRaisesRegex(InputError, "must give at least 100 %"):
            load_pretrained(net, save(self.folder / "unetr.pt", plain.state_dict()))
        self.assertEqual(changed(before, net), set())

    @parameterized.expand(
        [
            ("encoder.layer.0.attention.attention.extra_gate",),
            ("encoder.mid_position_embeddings",),
            ("embeddings.patch_embeddings.backbone.weight",),
        ]
    )
    def test_unknown_tensor_of_an_encoder(self, name):
        sizes = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3}
        model = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16))
        state = {**model.state_dict(), name: torch.zeros(3)}
        with self.assertRaisesRegex(InputError, f"{name}.*, which MONAI's ViT cannot represent"):
            load_pretrained(DVPTViT(3, 32, 16, **SIZES), save(self.folder / "vit.pt", state))

    @parameterized.expand(
        [("vit_base_patch16_clip_224", "gelu"), ("vit_base_patch16_clip_quickgelu_224", "quick_gelu")]
    )
    def test_clip_of_timm(self, architecture, activation):
        save_file(timm_state(norm_pre=True), self.folder / "model.safetensors")
        (self.folder / "config.json").write_text(json.dumps({"architecture": architecture}))
        state = timm_state()
        depth = len([name for name in state if name.endswith("attn.proj.bias")])
        width, mlp = state["norm.weight"].numel(), state["blocks.0.mlp.fc1.bias"].numel()
        side = 16 * round((state["pos_embed"].shape[1] - 1) ** 0.5)
        net = DVPTViT(3, side, 16, width, mlp, depth, 3, num_classes=0, spatial_dims=2, bottleneck_size=5)
        load_pretrained(net, self.folder, verbose=False)
        self.assertEqual((net.arguments["layer_norm_eps"], net.arguments["activation"]), (1e-5, activation))

    def test_grid_that_the_file_does_not_say(self):
        source = DVPTViT(1, (32, 48), 16, **SIZES)
        path = save(self.folder / "vit.pt", source.state_dict())
        report = load_pretrained(DVPTViT(1, (48, 32), 16, **SIZES), path, verbose=False)
        self.assertIn("grid of 3x2 tokens as in the network; the file does not say it", report.facts)

    @parameterized.expand([("cls",), ("mean",), ("both",)])
    def test_classifier_of_an_own_network(self, pooling):
        source = randomise(DVPTViT(1, 32, 16, **SIZES, pooling=pooling))
        net = DVPTViT(1, 32, 16, **SIZES, pooling=pooling)
        report = load_pretrained(net, save(self.folder / "vit.pt", source.state_dict()), verbose=False)
        self.assertTrue(torch.equal(net.classification_head.weight, source.classification_head.weight))
        self.assertIn(f"pooling {pooling} as in the network; the file does not say it", report.facts)

    def test_swin(self):
        net = DVPTSwinUNETR(1, 2, feature_size=12, bottleneck_size=5, spatial_dims=2)
        report = load_pretrained(net, save(self.folder / "swin.pt", net.state_dict()), verbose=False)
        self.assertRegex(report.facts[0], "downsample merging, normalize True as in the network; the file does not")

    def test_other_adapters_are_not_left_behind(self):
        net = add_adapter(DVPTViT(1, 32, 16, **SIZES), "second")
        path = save(self.folder / "vit.pt", net.state_dict())
        with self.assertRaisesRegex(ValueError, r"^net must have one adapter .*, got \['second', 'default'\]\.$"):
            load_pretrained(net, path)

    def test_a_part_of_the_backbone_that_no_file_has(self):
        plain = DVPTSwinUNETR(1, 2, feature_size=12, bottleneck_size=5, spatial_dims=2)
        net = DVPTSwinUNETR(1, 2, feature_size=12, bottleneck_size=5, spatial_dims=2, use_v2=True)
        path = save(self.folder / "swin.pt", plain.state_dict())
        with self.assertLogs("monai_dvpt.networks.pretrained.load", "WARNING") as logs:
            load_pretrained(net, path, min_match=0.2, verbose=False)
        self.assertIn("no file can restore this backbone", logs.output[0])
        self.assertIsNone(net.backbone_file)

    def test_adapter_of_a_trained_backbone(self):
        net = DVPTViT(1, 32, 16, **SIZES)  # nothing of it is frozen
        with self.assertLogs("monai_dvpt.networks.adapter.file", "WARNING") as logs:
            save_adapter(net, self.folder / "adapter.safetensors")
        self.assertIn("the backbone is not frozen", logs.output[0])

    def test_checkpoint_that_holds_itself(self):
        checkpoint: dict = {}
        checkpoint["model"] = checkpoint
        torch.save(checkpoint, self.folder / "loop.pt")
        with self.assertRaisesRegex(InputError, "must hold a dictionary of named tensors"):
            load_pretrained(DVPTViT(1, 32, 16, **SIZES), self.folder / "loop.pt")


if __name__ == "__main__":
    unittest.main()
