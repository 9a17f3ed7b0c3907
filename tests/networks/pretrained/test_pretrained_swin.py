# SPDX-License-Identifier: Apache-2.0
"""SwinUNETR and its self-supervised releases: everything that MONAI would load, and outputs equal to MONAI's."""

from __future__ import annotations

import unittest
from pathlib import Path

import torch
from monai.networks.nets import SwinUNETR
from monai.networks.nets.swin_unetr import filter_swinunetr
from monai.networks.utils import copy_model_state
from parameterized import parameterized
from utils_data import temporary_folder
from utils_networks import (
    AFFINE_NORM,
    DVPT_SIZES,
    SWIN_2D,
    SWIN_3D,
    changed,
    copy_of_state,
    randomise,
    small_image,
)
from utils_sources import noise, save, vit

from monai_dvpt.networks.adapter import disable_adapter
from monai_dvpt.networks.nets import DVPTSwinClassifier, DVPTSwinUNETR
from monai_dvpt.networks.pretrained import load_pretrained
from monai_dvpt.utils import InputError

TOLERANCE = {"rtol": 0, "atol": 5e-5}  # fused attention rounds otherwise, and instance norm on few tokens magnifies it


def monai_swin(seed: int = 4, **arguments) -> SwinUNETR:
    """MONAI's SwinUNETR with random weights, also in its integer buffers."""
    sizes = {name: value for name, value in {**SWIN_2D, **arguments}.items() if name not in DVPT_SIZES}
    return randomise(SwinUNETR(**{"out_channels": 3, **sizes}), seed=seed).eval()


def swin(kind=DVPTSwinUNETR, **arguments):
    """A network as its class makes it, so that its DVPT blocks change nothing."""
    torch.manual_seed(2)
    labels = {"num_classes": 3} if kind is DVPTSwinClassifier else {"out_channels": 3}
    return kind(**{**SWIN_2D, **labels, **arguments}).eval()


class TestSwin(unittest.TestCase):
    def setUp(self):
        self.path = temporary_folder(self) / "weights.pt"

    def check_encoder(self, net, plain: SwinUNETR) -> None:
        with disable_adapter(net):
            self.assertEqual(changed(copy_of_state(plain.swinViT), net.swinViT), set())

    @parameterized.expand(
        [
            ({},),
            ({**SWIN_3D},),
            ({"use_v2": True},),
            ({"decoder_tuning": "none"},),
            ({"decoder_tuning": "norm", "norm_name": AFFINE_NORM},),
            ({"downsample": "mergingv2", "patch_norm": True, "qkv_bias": False},),
        ]
    )
    def test_whole_network(self, arguments):
        plain = monai_swin(**{name: value for name, value in arguments.items() if name != "decoder_tuning"})
        net = swin(**arguments)
        report = load_pretrained(net, save(self.path, {"state_dict": plain.state_dict()}), verbose=False)
        image = small_image(net)
        with torch.no_grad():
            torch.testing.assert_close(net(image), plain(image), **TOLERANCE)
        self.assertEqual((report.initialised, report.unused, report.kind), ([], [], "MONAI SwinUNETR"))
        self.check_encoder(net, plain)

    @parameterized.expand([(SWIN_2D,), (SWIN_3D,)])
    def test_classifier(self, sizes):
        plain, net = monai_swin(**sizes), swin(DVPTSwinClassifier, **sizes)
        report = load_pretrained(net, save(self.path, plain.state_dict()), verbose=False)
        self.check_encoder(net, plain)
        self.assertEqual(report.initialised, ["classification_head.weight", "classification_head.bias"])
        self.assertEqual(set(report.unused), {name for name in plain.state_dict() if "swinViT" not in name})
        image = small_image(net)
        with torch.no_grad():
            expected = plain.swinViT(image, normalize=True)[-1].flatten(2).mean(-1)
            torch.testing.assert_close(net(image), net.classification_head(expected), **TOLERANCE)

    def as_load_from_takes(self, plain: SwinUNETR) -> Path:
        """The layout of the first self-supervised release, with a head of its pretext tasks."""
        state = {"module." + name: tensor for name, tensor in plain.swinViT.state_dict().items()}
        state = {name.replace("mlp.linear", "mlp.fc"): tensor for name, tensor in state.items()}
        state |= {"module.norm.weight": noise(192), "module.norm.bias": noise(192)}
        state |= {"module.rotation_head.weight": noise(4, 192), "module.convTrans3d.weight": noise(7, 5)}
        return save(self.path, {"state_dict": state, "epoch": torch.tensor(4)})

    def as_filter_takes(self, plain: SwinUNETR) -> Path:
        """The layout of the release of disruptive autoencoders."""
        state = {}
        for name, tensor in plain.swinViT.state_dict().items():
            stage, _, rest = name.partition(".0.")
            state[f"encoder.{stage}.0.0.{rest}" if stage.startswith("layers") else f"encoder.{name}"] = tensor
        state |= {
            "encoder.mask_token": noise(1, 12),
            "encoder.norm.weight": noise(192),
            "encoder.norm.bias": noise(192),
        }
        state |= {"out.conv.conv.weight": noise(1, 12, 1, 1), "out.conv.conv.bias": noise(1)}
        return save(self.path, {"model": state})

    @parameterized.expand([(SWIN_2D, DVPTSwinUNETR), (SWIN_3D, DVPTSwinUNETR), (SWIN_2D, DVPTSwinClassifier)])
    def test_self_supervised_as_load_from(self, sizes, kind):
        path = self.as_load_from_takes(monai_swin(**sizes))
        theirs = monai_swin(seed=9, **sizes)
        theirs.load_from(torch.load(path, weights_only=True))
        net = swin(kind, **sizes)
        before = copy_of_state(net)
        report = load_pretrained(net, path, verbose=False)
        self.check_encoder(net, theirs)
        self.assertTrue(all(name.startswith("swinViT.") for name in changed(before, net)))
        self.assertIn("module.rotation_head.weight", report.unused)
        self.assertIn("self-supervised", report.kind)
        image = small_image(net)
        with torch.no_grad():
            for ours, other in zip(net.encoder().encode(image), theirs.swinViT(image, normalize=False), strict=True):
                torch.testing.assert_close(ours, other, **TOLERANCE)

    @parameterized.expand([(SWIN_2D, DVPTSwinUNETR), (SWIN_3D, DVPTSwinUNETR), (SWIN_2D, DVPTSwinClassifier)])
    def test_self_supervised_as_filter_swinunetr(self, sizes, kind):
        path = self.as_filter_takes(monai_swin(**sizes))
        theirs = monai_swin(seed=9, **sizes)
        state = torch.load(path, weights_only=True)["model"]
        _, updated, _ = copy_model_state(theirs, state, filter_func=filter_swinunetr)
        self.assertEqual(set(updated), {f"swinViT.{name}" for name in theirs.swinViT.state_dict()})
        net = swin(kind, **sizes)
        report = load_pretrained(net, path, verbose=False)
        self.check_encoder(net, theirs)
        self.assertIn("encoder.mask_token", report.unused)
        self.assertIn("out.conv.conv.weight", report.unused)

    @parameterized.expand([(DVPTSwinUNETR,), (DVPTSwinClassifier,)])
    def test_convolutions_of_v2_are_missing(self, kind):
        path, net = self.as_load_from_takes(monai_swin()), swin(kind, use_v2=True)
        before = copy_of_state(net)
        with self.assertRaisesRegex(InputError, r"at least 100 % .*missing \['swinViT\.layers1c\."):
            load_pretrained(net, path)
        self.assertEqual(changed(before, net), set())
        report = load_pretrained(net, path, min_match=0.4, verbose=False)
        missing = {name for name in before if "c.0." in name and name.startswith("swinViT.layers")}
        self.assertTrue(missing)
        self.assertEqual({name for name in report.initialised if name.startswith("swinViT.")}, missing)
        self.assertFalse(missing & changed(before, net))

    def test_share_that_is_given(self):
        path, net = self.as_load_from_takes(monai_swin()), swin(use_v2=True)
        names = [name for name, _ in net.named_parameters() if name.startswith("swinViT.") and ".dvpt." not in name]
        backbone = {name: net.get_parameter(name).numel() for name in names}
        given = sum(size for name, size in backbone.items() if "c.0." not in name) / sum(backbone.values())
        with self.assertRaisesRegex(InputError, f"gives {100 * given:.2f} %"):
            load_pretrained(net, path, min_match=given + 1e-6)
        load_pretrained(net, path, min_match=given - 1e-6, verbose=False)

    @parameterized.expand(
        [
            ({"use_v2": True}, {}, "layers1c"),
            ({"depths": (2, 1, 5, 2)}, {}, r"layers3\.0\.blocks\.3"),
            ({"qkv_bias": True}, {"qkv_bias": False}, r"attn\.qkv\.bias"),
            ({"patch_norm": True}, {}, r"patch_embed\.norm"),
            ({}, {"window_size": (4, 5)}, "relative_position_bias_table"),
            ({}, {"num_heads": (6, 2, 6, 4)}, "relative_position_bias_table"),
            ({}, {"feature_size": 24}, r"patch_embed\.proj\.weight"),
            ({}, SWIN_3D, "relative_position_bias_table"),
            (SWIN_3D, {}, "spatial_dims must be 3, got 2"),
        ]
    )
    def test_other_encoder_is_refused(self, source, own, reason):
        path, net = save(self.path, monai_swin(**source).state_dict()), swin(**own)
        before = copy_of_state(net)
        with self.assertRaisesRegex(InputError, f"weights.pt: .*{reason}"):
            load_pretrained(net, path)
        self.assertEqual(changed(before, net), set())

    def test_other_channels(self):
        plain, net = monai_swin(), swin(in_channels=1)
        report = load_pretrained(net, save(self.path, plain.state_dict()), verbose=False)
        self.assertEqual(report.converted["swinViT.patch_embed.proj.weight"], "2 to 1 input channels")
        grey = noise(1, 1, 32, 96)
        with torch.no_grad():
            expected = plain.swinViT(grey.expand(-1, 2, -1, -1), normalize=False)
            for ours, other in zip(net.swinViT.encode(grey), expected, strict=True):
                torch.testing.assert_close(ours, other, **TOLERANCE)

    def test_is_no_vit(self):
        path = save(self.path, monai_swin().state_dict())
        with self.assertRaisesRegex(InputError, "MONAI SwinUNETR, which do not fit DVPTViT"):
            load_pretrained(vit(), path)
        path = save(self.path, vit().state_dict())
        with self.assertRaisesRegex(InputError, "MONAI ViT, which do not fit DVPTSwinUNETR"):
            load_pretrained(swin(), path)


if __name__ == "__main__":
    unittest.main()
