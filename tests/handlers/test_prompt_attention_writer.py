# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel as nib
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.image import imread
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Resized, ScaleIntensityd
from nibabel.affines import apply_affine, from_matvec
from nibabel.orientations import apply_orientation, inv_ornt_aff
from parameterized import parameterized
from PIL import Image
from scipy.spatial.transform import Rotation
from utils_data import AFFINE_RAS, ROOT, save_nifti, temporary_folder
from utils_networks import changed, copy_of_state, new_network, small_unetr

from monai_dvpt.handlers import PromptAttentionWriter
from monai_dvpt.networks.blocks import DVPTBlock, DVPTList
from monai_dvpt.transforms import LoadVolume

BUNDLES = [ROOT / "bundles" / f"{name}_mri_dvpt_unetr_segmentation" for name in ("brain", "hippocampus")]
PLOT = "monai_dvpt.handlers.prompt_attention_writer.plot_prompt_attention"
BLOB_RAS = np.array((11.0, -19.0, 33.0))
SIGMA_MM = 3.0
ORIENTATIONS = [
    np.array([(axis, flip) for axis, flip in zip(axes, flips, strict=True)])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


class FollowsIntensity(DVPTBlock):
    """Its first prompt looks at bright tokens, its second at dark ones."""

    def __init__(self) -> None:
        super().__init__(hidden_size=2, bottleneck_size=1, num_prompts=2)
        self.prompts.data = torch.tensor([[0.2], [-0.2]])  # weak enough that many tokens are looked at

    def bottleneck(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., :1]


class BrightTokens(nn.Module):
    """A network of one layer, whose tokens are the means of cubes of two voxels."""

    def __init__(self) -> None:
        super().__init__()
        self.dvpt = DVPTList([2], bottleneck_size=1)
        self.dvpt[0] = FollowsIntensity()
        self.dvpt_of_layer = [0]

    def encoder(self) -> nn.Module:
        return self

    def token_size(self, layer: int) -> list[int]:
        return [2, 2, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = F.avg_pool3d(x, 2).flatten(2).transpose(1, 2)  # (B, N, 1)
        self.dvpt[0](torch.cat((tokens, -tokens), dim=-1))
        return torch.cat((x, -x, x), dim=1)


def run_config(bundle: Path, dataset_dir: Path, output_dir: Path, network: nn.Module, **settings: Any) -> None:
    """Runs a bundle's inference with another network."""
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.yaml")
    parser.update({"dataset_dir": str(dataset_dir), "output_dir": str(output_dir), "network": network})
    parser.update({"device": "$torch.device('cpu')", "bundle_root": str(bundle), "roi_size": [24, 28, 24], **settings})
    with mock.patch("monai_dvpt.handlers.case_writer.plot_overlay", return_value=Figure(figsize=(0.1, 0.1))):
        parser.get_parsed_content("run")


def check_picture(image: MetaTensor, maps: MetaTensor, title: str) -> Figure:
    """In the place of the picture, which takes long: what is drawn is the image as it was loaded, and its maps."""
    loaded = LoadVolume()(image.meta["filename_or_obj"])
    np.testing.assert_array_equal(image.affine.numpy(), maps.affine.numpy())
    np.testing.assert_allclose(image.affine.numpy(), loaded.affine.numpy(), atol=1e-6)
    assert tuple(maps.shape) == (2, *loaded.shape[1:]) and image.shape == loaded.shape
    assert np.corrcoef(image.numpy().ravel(), loaded.numpy().ravel())[0, 1] > 0.99
    return Figure(figsize=(0.1, 0.1))


def blob(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """A bright spot of Gaussian profile at a known point in the patient, on noise."""
    points = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    spot = np.exp(-(((points - BLOB_RAS) / SIGMA_MM) ** 2).sum(axis=-1) / 2)
    return (100 + 200 * spot + np.random.default_rng(0).normal(0, 0.5, shape)).astype(np.float32)


def oblique_grid(spacing_mm: tuple[float, ...], degrees: float) -> tuple[tuple[int, ...], np.ndarray]:
    """Size and affine of a grid with the blob off its middle."""
    shape = tuple(np.ceil(np.array((44, 40, 32)) / spacing_mm).astype(int).tolist())
    axes = Rotation.from_euler("zyx", (degrees, degrees / 2, -degrees), degrees=True).as_matrix() * spacing_mm
    return shape, from_matvec(axes, BLOB_RAS + (5, -4, 3) - axes @ ((np.array(shape) - 1) / 2))


class TestGeometry(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)

    @parameterized.expand(
        [
            ("isotropic", (1.0, 1.0, 1.0), 0),
            ("anisotropic", (0.7, 0.9, 1.6), 0),
            ("oblique", (0.8, 0.8, 0.8), 20),
            ("oblique, anisotropic", (0.7, 0.9, 1.6), 30),
        ]
    )
    def test_attention_lies_where_the_blob_lies(self, _, spacing_mm, degrees):
        """In several axis orders and flips, both handed, of the same scan: RAS, LPS, LAS and others."""
        shape, affine = oblique_grid(spacing_mm, degrees)
        volume = blob(shape, affine)
        for index in (0, 6, 4, 13, 30, 47):
            turned = affine @ inv_ornt_aff(ORIENTATIONS[index], shape)
            save_nifti(self.root / "in" / f"{index}.nii.gz", apply_orientation(volume, ORIENTATIONS[index]), turned)
        with mock.patch(PLOT, side_effect=check_picture) as plot:
            run_config(BUNDLES[1], self.root / "in", self.root / "out", BrightTokens(), prompt_maps=True)
        self.assertEqual(plot.call_count, 6)
        canonical = []
        for path in sorted((self.root / "in").iterdir()):
            source, name = nib.load(path), path.name.removesuffix(".nii.gz")
            self.assertTrue((self.root / "out" / f"{name}_prompts.png").is_file())
            found = nib.load(self.root / "out" / f"{name}_prompts.nii.gz")
            self.assertEqual((found.shape, found.get_data_dtype()), ((*source.shape, 2), np.float32))
            np.testing.assert_array_equal(found.affine, source.affine)
            self.assertEqual(found.header.get_xyzt_units()[0], "mm")
            bright, dark = np.moveaxis(found.get_fdata(), -1, 0)
            points = apply_affine(found.affine, np.moveaxis(np.indices(bright.shape), 0, -1))
            weights = np.clip(bright - bright.max() / 4, 0, None)
            centre = (points * weights[..., None]).sum(axis=(0, 1, 2)) / weights.sum()
            self.assertLess(np.linalg.norm(centre - BLOB_RAS), 0.1)  # mm
            self.assertGreater(bright.max(), 10)
            self.assertLess(np.linalg.norm(points[np.unravel_index(bright.argmax(), bright.shape)] - BLOB_RAS), 2.5)
            self.assertLess(dark[bright > bright.max() / 2].max(), 0.7)
            canonical.append(nib.as_closest_canonical(found))
        for other in canonical[1:]:
            np.testing.assert_allclose(other.affine, canonical[0].affine, atol=1e-5)
            np.testing.assert_allclose(other.dataobj, canonical[0].dataobj, atol=0.01)


class TestOption(unittest.TestCase):
    @parameterized.expand([(bundle.name, bundle) for bundle in BUNDLES])
    def test_switch(self, _, bundle):
        """A command line gives text; nothing but the maps depends on the option."""
        root = temporary_folder(self)
        save_nifti(root / "in" / "case.nii.gz", blob(*oblique_grid((1.0, 1.1, 1.2), 10)), AFFINE_RAS)
        label_maps = []
        for index, (given, written) in enumerate(((None, 0), (False, 0), ("false", 0), (True, 1), ("true", 1))):
            settings = {} if given is None else {"prompt_maps": given}
            out = root / str(index)
            with mock.patch(PLOT, side_effect=check_picture):
                run_config(bundle, root / "in" / "case.nii.gz", out, BrightTokens(), **settings)
            self.assertEqual(len(list(out.glob("*_prompts.nii.gz"))), written)
            self.assertEqual(len(list(out.glob("*_prompts.png"))), written)
            label_maps.append(np.asarray(nib.load(out / "case_seg.nii.gz").dataobj))
        for label_map in label_maps[1:]:
            np.testing.assert_array_equal(label_map, label_maps[0])


class TestPromptAttentionWriter(unittest.TestCase):
    def test_trained_network_and_picture(self):
        """A real network, in windows and with bfloat16, and a real picture."""
        root, network = temporary_folder(self), new_network("unetr_3d_patch_8", in_channels=1).eval()
        affine = np.diag((-1, 1, 1, 1.0))
        save_nifti(root / "in" / "scan_$x^$.nii.gz", blob((20, 30, 24), affine), affine)
        state = copy_of_state(network)
        run_config(BUNDLES[1], root / "in", root / "out", network, prompt_maps=True, amp=True, roi_size=[8, 24, 16])
        self.assertEqual(changed(state, network), set())
        maps = nib.load(root / "out" / "scan_$x^$_prompts.nii.gz")
        self.assertEqual(maps.shape, (20, 30, 24, 7))
        self.assertTrue((np.asarray(maps.dataobj) >= 0).all())
        picture = imread(root / "out" / "scan_$x^$_prompts.png")
        self.assertGreater(min(picture.shape[:2]), 300)
        self.assertGreater(len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)), 10)

    def test_pictures_of_several_cases_in_a_batch(self):
        """2D: a picture for each case, in the size of its file, and no NIfTI."""
        root, sizes = temporary_folder(self), [(40, 30), (50, 60)]
        data = []
        for index, (width, height) in enumerate(sizes):
            pixels = np.random.default_rng(index).integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"{index}.png")
            data.append({"image": str(root / f"{index}.png"), "name": f"case_{index}"})
        preprocessing = Compose(
            [
                LoadImaged("image"),
                EnsureChannelFirstd("image", channel_dim=-1),
                ScaleIntensityd("image"),
                Resized("image", (32, 48)),
            ]
        )
        network = small_unetr(in_channels=3)
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset(data, preprocessing), batch_size=2),
            network=network,
            val_handlers=[PromptAttentionWriter(root / "out", network, SimpleInferer(), preprocessing, layer=3)],
        )
        drawn = []
        with mock.patch(PLOT, side_effect=lambda *args: drawn.append(args) or Figure(figsize=(0.1, 0.1))):
            evaluator.run()
        names = sorted(path.name for path in (root / "out").iterdir())
        self.assertEqual(names, ["case_0_prompts.png", "case_1_prompts.png"])
        for index, (image, maps, title) in enumerate(drawn):
            self.assertEqual((tuple(image.shape), tuple(maps.shape)), ((3, *sizes[index]), (7, *sizes[index])))
            self.assertIn(f"case_{index}", title)
            self.assertGreater(float(maps.std()), 0.001)

    def test_a_case_that_cannot_be_written_is_reported(self):
        root = temporary_folder(self)
        save_nifti(root / "in" / "case.nii.gz", blob((20, 18, 16), AFFINE_RAS), AFFINE_RAS)
        (root / "out" / "case_prompts.nii.gz").mkdir(parents=True)
        with mock.patch(PLOT, side_effect=check_picture), self.assertRaisesRegex(RuntimeError, "run") as raised:
            run_config(BUNDLES[1], root / "in", root / "out", BrightTokens(), prompt_maps=True)
        self.assertRegex(str(raised.exception.__cause__), r"case_prompts\.nii\.gz: cannot be written")
        self.assertEqual(sorted(path.name for path in (root / "out").glob(".*")), [])

    def test_refused_before_the_first_case(self):
        for prompts, layer, message in ((7, 12, "layer must be in"), (0, -1, "num_prompts must be")):
            with self.assertRaisesRegex(ValueError, message):
                PromptAttentionWriter("out", small_unetr(num_prompts=prompts), SimpleInferer(), Compose([]), layer)


if __name__ == "__main__":
    unittest.main()
