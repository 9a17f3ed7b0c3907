# SPDX-License-Identifier: Apache-2.0
"""
3D SwinUNETRs pretrained by others, under the names that their repositories' code saves: outputs equal to those of
MONAI's network with the merging of MONAI 1.4, which all of them were trained with.
"""

from __future__ import annotations

import unittest
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import SwinUNETR
from monai.networks.nets.swin_unetr import PatchMergingV2
from parameterized import parameterized
from utils_data import temporary_folder
from utils_networks import DVPT_SIZES, SWIN_3D, randomise, small_image
from utils_sources import Filler, State, save

from monai_dvpt.networks.nets import DVPTSwinClassifier, DVPTSwinUNETR
from monai_dvpt.networks.parts import count_parameters, freeze_backbone
from monai_dvpt.networks.pretrained import load_pretrained
from monai_dvpt.utils import InputError

MERGING = "merging_before_1_5"
CLASSES = 3
TOLERANCE = {"rtol": 0, "atol": 5e-5}  # instance norm on few tokens magnifies rounding


class MergingOfMonai14(PatchMergingV2):
    """As MONAI 1.4 has it, line by line."""

    def forward(self, x):
        x = F.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        even, odd = slice(0, None, 2), slice(1, None, 2)
        x0 = x[:, even, even, even, :]
        x1 = x[:, odd, even, even, :]
        x2 = x[:, even, odd, even, :]
        x3 = x[:, even, even, odd, :]
        x4 = x[:, odd, even, odd, :]
        x7 = x[:, odd, odd, odd, :]
        return self.reduction(self.norm(torch.cat([x0, x1, x2, x3, x4, x2, x3, x7], -1)))


def released(use_v2: bool = False, out_channels: int = CLASSES) -> SwinUNETR:
    """The network that was trained, with random weights."""
    sizes = {name: value for name, value in SWIN_3D.items() if name not in DVPT_SIZES}
    plain = SwinUNETR(**sizes, out_channels=out_channels, use_v2=use_v2, downsample=MergingOfMonai14)
    return randomise(plain, seed=4).eval()


def ours(kind: Any = DVPTSwinUNETR, **arguments: Any) -> Any:
    """A network as its class makes it, so that its DVPT blocks change nothing."""
    torch.manual_seed(2)
    labels = {"num_classes": CLASSES} if kind is DVPTSwinClassifier else {"out_channels": CLASSES}
    return kind(**{**SWIN_3D, **labels, "downsample": MERGING, **arguments}).eval()


def under(root: str, state: State) -> State:
    return {root + name: tensor for name, tensor in state.items()}


def heads(**shapes: tuple[int, ...]) -> State:
    fill = Filler(3)
    return {name.replace("__", "."): fill(*shape) for name, shape in shapes.items()}


def training(net: torch.nn.Module) -> dict[str, Any]:
    """What a trainer saves beside the weights."""
    optimizer = torch.optim.AdamW(net.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    return {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "epoch": 800}


def suprem(plain: SwinUNETR) -> dict[str, Any]:
    """MrGiovanni/SuPreM, supervised_pretraining/train.py and Universal_model.py: the head makes its own weights."""
    own = heads(
        precls_conv__0__weight=(48,),
        precls_conv__2__weight=(8, 48, 1, 1, 1),
        GAP__3__weight=(256, 768, 1, 1, 1),
        controller__weight=(153, 512, 1, 1, 1),
        organ_embedding=(25, 512),
        text_to_vision__weight=(256, 512),
    )
    state = {name: tensor for name, tensor in plain.state_dict().items() if not name.startswith("out.")}
    return {"net": under("module.backbone.", state) | under("module.", own), **training(plain)}


def suprem_backbone(plain: SwinUNETR) -> dict[str, Any]:
    """The same repository, the file of the backbone alone."""
    return {"net": plain.state_dict(), **training(plain)}


def of_voco(plain: SwinUNETR) -> State:
    """VoCo's network: the transformer, and those blocks of the decoder that read only one resolution."""
    return {name: tensor for name, tensor in plain.state_dict().items() if not name.startswith(("decoder", "out."))}


def voco(plain: SwinUNETR) -> dict[str, Any]:
    """Luffy03/VoCo, Finetune/BTCV/main.py reads the names of the network itself."""
    return of_voco(plain) | heads(proj_head__layer1__0__weight=(20, 18), proj_head__layer3__0__bias=(20,))


def voco_training(plain: SwinUNETR) -> dict[str, Any]:
    """Luffy03/VoCo, models/voco_head.py: a student, and the average of its weights."""
    student = {name: torch.zeros_like(tensor) for name, tensor in of_voco(plain).items()}
    return {"state_dict": under("module.student.", student) | under("module.teacher.", of_voco(plain)), "epoch": 3}


def voco_large(plain: SwinUNETR) -> dict[str, Any]:
    """Luffy03/Large-Scale-Medical, Self-supervised/models/voco_head.py: student and teacher are projections only."""
    own = heads(student__layer1__0__weight=(20, 18), teacher__layer1__0__weight=(20, 18))
    state = under("module.backbone.", of_voco(plain)) | under("module.", own)
    return {"global_step": 20000, "state_dict": state}


def vocomni(plain: SwinUNETR) -> dict[str, Any]:
    """The same, after training with labels: a whole SwinUNETR, and its best score, a number of NumPy."""
    return {"epoch": 7, "best_acc": np.float64(0.5), "state_dict": plain.state_dict()}


def brainsegfounder(plain: SwinUNETR) -> dict[str, Any]:
    """lab-smile/BrainSegFounder, Downstream/ATLAS/models/ssl_head.py, trained on several GPUs."""
    own = heads(rotation_head__weight=(4, 192), contrastive_head__bias=(512,), conv__0__weight=(96, 192, 3, 3, 3))
    state = under("module.swinViT.", plain.swinViT.state_dict()) | under("module.", own)
    return {"epoch": 7, "state_dict": state, **training(plain)}


def brainsegfounder_finetuned(plain: SwinUNETR) -> dict[str, Any]:
    """The same repository, Downstream/BraTS/trainer.py."""
    return {"epoch": 7, "best_acc": np.mean(np.array([0.5, 0.75], np.float32)), "state_dict": plain.state_dict()}


def swin_bob(plain: SwinUNETR) -> dict[str, Any]:
    """The trainer of Swin-BOB: its arguments too, as a dictionary."""
    args = {"roi_x": 96, "logdir": "runs", "amp": True, "smooth_dr": 1e-6, "checkpoint": None}
    return {"epoch": 99, "best_acc": np.float64(0.5), "state_dict": plain.state_dict(), "args": args, **training(plain)}


WHOLE = (suprem_backbone, vocomni, brainsegfounder_finetuned, swin_bob)
ENCODERS = (voco, voco_training, voco_large, brainsegfounder)
OF_V2 = (voco, voco_training, voco_large, vocomni)


class TestReleases(unittest.TestCase):
    def setUp(self):
        self.path = temporary_folder(self) / "weights.pth"

    def load(self, source: Any, net: Any, plain: SwinUNETR) -> Any:
        torch.save(source(plain), self.path)  # the writer of all of them
        return load_pretrained(net, self.path, verbose=False)

    @parameterized.expand([(source.__name__, source) for source in WHOLE])
    def test_whole_networks(self, _, source):
        use_v2 = source in OF_V2
        plain, net = released(use_v2), ours(use_v2=use_v2, decoder_tuning="none")
        report = self.load(source, net, plain)
        self.assertEqual((report.initialised, report.unused, report.kind), ([], [], "MONAI SwinUNETR"))
        image = small_image(net)
        with torch.no_grad():
            torch.testing.assert_close(net(image), plain(image), **TOLERANCE)
        freeze_backbone(net)
        self.assertEqual(count_parameters(net)["decoder"]["total"], 0)  # it belongs to the frozen backbone

    @parameterized.expand([(True,), (False,)])
    def test_suprem_keeps_its_decoder(self, frozen):
        plain, net = released(out_channels=25), ours(decoder_tuning="none" if frozen else "all")
        report = self.load(suprem, net, plain)
        self.assertEqual(report.initialised, ["out.conv.conv.weight", "out.conv.conv.bias"])
        self.assertEqual(len(report.unused), 6)
        self.assertIn("module.controller.weight", report.unused)
        plain.out = net.out
        image = small_image(net)
        with torch.no_grad():
            torch.testing.assert_close(net(image), plain(image), **TOLERANCE)

    @parameterized.expand(
        [
            (f"{source.__name__}_{kind.__name__}", source, kind)
            for source in ENCODERS
            for kind in (DVPTSwinUNETR, DVPTSwinClassifier)
        ]
    )
    def test_encoders(self, _, source, kind):
        use_v2 = source in OF_V2
        plain, net = released(use_v2), ours(kind, use_v2=use_v2)
        report = self.load(source, net, plain)
        self.assertFalse([name for name in report.initialised if name.startswith("swinViT.")])
        image = small_image(net)
        with torch.no_grad():
            expected = plain.swinViT(image, normalize=False)
            for found, wanted in zip(net.swinViT.encode(image), expected, strict=True):
                torch.testing.assert_close(found, wanted, **TOLERANCE)

    def test_a_frozen_decoder_must_be_in_the_file(self):
        with self.assertRaisesRegex(InputError, r"at least 100 % .* missing \['encoder1\."):
            self.load(voco, ours(use_v2=True, decoder_tuning="none"), released(True))

    def test_monai_of_today_computes_otherwise(self):
        """The same weights, and so the reason for ``merging_before_1_5``; the report says it."""
        plain, net = released(), ours(downsample="merging")
        report = self.load(swin_bob, net, plain)
        self.assertRegex(report.facts[-1], "trained with MONAI before 1.5 need downsample merging_before_1_5")
        image = small_image(net)
        with torch.no_grad():
            self.assertGreater((net(image) - plain(image)).abs().max(), 0.01)
        self.assertNotRegex(str(self.load(swin_bob, ours(), plain)), "before 1.5")

    def test_odd_grids_and_2d(self):
        """Padding before the merging, and in 2D the merging that MONAI always had."""
        net, plain = ours(DVPTSwinClassifier, final_norm=True), MergingOfMonai14(12)
        merging = net.swinViT.layers1[0].downsample
        plain.load_state_dict(merging.state_dict())
        tokens = torch.randn(2, 5, 6, 7, 12, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(merging(tokens), plain(tokens), rtol=0, atol=1e-6)
        flat = {"spatial_dims": 2, "window_size": (3, 4)}
        one, other = ours(DVPTSwinClassifier, **flat), ours(DVPTSwinClassifier, downsample="mergingv2", **flat)
        image = small_image(one)
        with torch.no_grad():
            torch.testing.assert_close(one(image), other(image), rtol=0, atol=0)

    def test_numbers_as_earlier_numpy_wrote_them(self):
        torch.save(vocomni(released(True)), self.path, _use_new_zipfile_serialization=False)
        content = self.path.read_bytes()
        earlier = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")  # NumPy 1 writes it so
        self.assertIn(b"cnumpy.core.multiarray\nscalar\n", earlier)
        self.path.write_bytes(earlier)
        report = load_pretrained(ours(use_v2=True), self.path, verbose=False)
        self.assertEqual((report.initialised, report.unused), ([], []))

    def test_numbers_of_numpy_hide_no_tensors(self):
        """A checkpoint whose weights are NumPy's arrays has none, and an object that is no number stays refused."""
        for content, words in (
            ({"weights": {"a": np.float32(3)}, "best": np.float64(1)}, "must hold a dictionary of named tensors"),
            ({"weights": np.zeros(3)}, "must hold tensors only"),
        ):
            with self.assertRaisesRegex(InputError, words):
                load_pretrained(ours(), save(self.path, content))


if __name__ == "__main__":
    unittest.main()
