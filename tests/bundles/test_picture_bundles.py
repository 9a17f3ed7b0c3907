# SPDX-License-Identifier: Apache-2.0
"""The bundle that segments pictures as a user runs it: on small pictures of several sizes with a small network."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ckpt_export
from monai.networks.nets import ViT
from parameterized import parameterized
from PIL import Image
from utils_bundles import BUNDLES, workflow

from monai_dvpt.networks.adapter import adapter_metadata
from monai_dvpt.utils import InputError, root_cause

(BUNDLE,) = (bundle for bundle in BUNDLES if bundle.name == "skin_lesion_dvpt_vit_segmentation")
SIZES = {"hidden_size": 24, "mlp_dim": 32, "num_layers": 3, "num_heads": 3}
METHOD = {"name": "dvpt", "bottleneck_size": 5, "num_prompts": 3, "share_every": 1}
RATES = {"method": 1e-2, "decoder": 1e-2, "head": 5e-2}
SHAPES = [(37, 44), (61, 40), (56, 56), (20, 31)]  # rows, columns; larger and smaller than the network's 56 x 56


def write_pictures(folder: Path, count: int) -> None:
    """Skin with one dark ellipse on each picture, its mask and the list; two pictures of each lesion."""
    generator = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    lines = ["image,mask,lesion_id,dx"]
    for index in range(count):
        rows, columns = SHAPES[index % len(SHAPES)]
        y, x = np.mgrid[:rows, :columns]
        centre = generator.uniform(0.35, 0.65, 2) * (rows, columns)
        inside = ((y - centre[0]) / (0.22 * rows)) ** 2 + ((x - centre[1]) / (0.28 * columns)) ** 2 < 1
        pixels = np.array([210, 150, 130]) - 110 * inside[..., None] + generator.normal(0, 8, (rows, columns, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{index}.png")
        Image.fromarray(inside).save(folder / "masks" / f"{index}.png")
        lines.append(f"images/{index}.png,masks/{index}.png,L{index // 2},nv")
    (folder / "labels.csv").write_text("\n".join(lines))


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


class TestPictureRuns(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.root = Path(temporary.name)
        cls.data, cls.out = cls.root / "data", cls.root / "out"
        write_pictures(cls.data, 20)
        torch.manual_seed(0)
        vit = ViT(3, 56, 14, classification=True, spatial_dims=2, qkv_bias=True, **SIZES)
        torch.save(vit.state_dict(), cls.root / "vit.pt")
        cls.settings = {"network_def#num_heads": 3, "image_mean": [0.4, 0.5, 0.6], "image_std": 0.25}
        cls.settings |= {"img_size": 56, "method": METHOD, "backbone_path": str(cls.root / "vit.pt")}
        cls.train(cls.out, decoder="conv", max_epochs=6)
        cls.adapter = str(cls.out / "adapter_best.safetensors")

    @classmethod
    def train(cls, out: Path, **settings) -> None:
        settings = {"batch_size": 4, "amp": False, "learning_rates": RATES, **settings}
        train = cls.workflow("train", output_dir=str(out), **settings)
        train.run()
        train.finalize()

    @classmethod
    def workflow(cls, config: str, **settings):
        settings = {"dataset_dir": str(cls.data), **cls.settings, **settings}
        if config == "inference":  # which takes the network from the adapter
            settings = {key: value for key, value in settings.items() if not key.startswith("network_def#")}
        return workflow(BUNDLE, config, "infer" if config == "inference" else "train", **settings)

    def history(self, out: Path) -> list[float]:
        with open(out / "history.csv") as file:
            return [float(row["loss"]) for row in csv.DictReader(file)]

    def test_training_writes_what_it_promises(self):
        for name in ("adapter_last.safetensors", "model.pt", "checkpoint.pt", "history.png"):
            self.assertTrue((self.out / name).is_file(), name)
        report = json.loads((self.out / "report.json").read_text())
        parts = report["parameters"]
        self.assertEqual(parts["backbone"]["trainable"], 0)
        self.assertTrue(
            all(parts[part]["trainable"] == parts[part]["total"] > 0 for part in ("method", "decoder", "head"))
        )
        self.assertEqual(set(report["best"]["metrics"]), {"val_mean_dice", "val_dice", "val_hd95_pixels"})
        self.assertGreater(report["best"]["metrics"]["val_mean_dice"], 0.7)
        self.assertEqual(report["settings"]["cases"]["training"], 16)
        self.assertEqual(adapter_metadata(self.adapter)["labels"], ["background", "lesion"])
        losses = self.history(self.out)
        self.assertLess(losses[-1], losses[0])

    def test_evaluation_and_inference_are_on_the_pixels_of_the_file(self):
        """Scores of the one are those of the masks of the other, judged in NumPy; each mask is as large as its file."""
        scores, masks = self.root / "scores", self.root / "masks"
        evaluate = self.workflow("evaluate", output_dir=str(scores), adapter_path=self.adapter)
        evaluate.run()
        evaluate.finalize()
        images = str(self.data / "images")
        infer = self.workflow("inference", dataset_dir=images, output_dir=str(masks), adapter_path=self.adapter)
        self.assertEqual(infer.check_properties(), [])
        infer.run()
        infer.finalize()
        self.assertEqual(len(list(masks.glob("*_seg.png"))), 20)
        found = {}
        for index in range(20):
            mask = pixels_of(masks / f"{index}_seg.png")
            self.assertEqual(mask.shape, SHAPES[index % len(SHAPES)])
            self.assertLessEqual(set(np.unique(mask)), {0, 255})
            found[f"{index}.png"] = dice(mask > 0, pixels_of(self.data / "masks" / f"{index}.png"))
            areas = json.loads((masks / f"{index}_areas.json").read_text())
            self.assertEqual(areas["areas_pixels"], {"lesion": int((mask > 0).sum())})
        with open(scores / "val_dice_raw.csv") as file:
            rows = {Path(row["filename"]).name: float(row["class0"]) for row in csv.DictReader(file)}
        self.assertEqual(len(rows), 4)
        for name, score in rows.items():
            self.assertAlmostEqual(score, found[name], places=4)
        with open(scores / "metrics.csv") as file:
            metrics = dict(row for row in csv.reader(file) if len(row) == 2)
        self.assertAlmostEqual(float(metrics["val_mean_dice"]), np.mean(list(rows.values())), places=4)
        best = json.loads((self.out / "report.json").read_text())["best"]["metrics"]
        self.assertAlmostEqual(float(metrics["val_mean_dice"]), best["val_mean_dice"], delta=0.05)
        self.assertAlmostEqual(float(metrics["val_hd95_pixels"]), best["val_hd95_pixels"], delta=2)

    def test_mixed_files(self):
        """A photograph, the same grey as NIfTI, and a broken file."""
        folder, out = self.root / "mixed", self.root / "mixed_out"
        folder.mkdir()
        pixels = pixels_of(self.data / "images" / "1.png")
        grey = np.ascontiguousarray(pixels[..., 0])
        Image.fromarray(grey).save(folder / "photo.png")
        affine = np.array([[-1.0, 0, 0, 3], [0, -1, 0, 5], [0, 0, 1, 0], [0, 0, 0, 1]])
        nib.save(nib.Nifti1Image(grey.T[..., None], affine), folder / "slice.nii.gz")
        (folder / "bad.png").write_bytes((self.data / "images" / "1.png").read_bytes()[:200])
        infer = self.workflow("inference", dataset_dir=str(folder), output_dir=str(out), adapter_path=self.adapter)
        with self.assertRaises(RuntimeError) as raised:
            infer.run()
        cause = root_cause(raised.exception)
        self.assertIsInstance(cause, InputError)
        self.assertRegex(str(cause), r"^1 of 3 inputs failed: bad: .*bad\.png: cannot be read")
        names = {f"{name}_{kind}" for name in ("photo", "slice") for kind in ("areas.json", "overlay.png", "seg.png")}
        self.assertEqual({path.name for path in out.iterdir()}, {*names, "slice_seg.nii.gz", "summary.csv"})
        written = nib.load(out / "slice_seg.nii.gz")
        np.testing.assert_allclose(written.affine, affine)
        mask = pixels_of(out / "photo_seg.png") > 0
        np.testing.assert_array_equal(np.asarray(written.dataobj)[..., 0].T, mask)
        np.testing.assert_array_equal(pixels_of(out / "slice_seg.png") > 0, mask)

    @parameterized.expand([("linear",), ("conv",)])
    def test_frozen_layers_run_once(self, decoder):
        settings = {"augment": "false", "method": "linear", "decoder": decoder, "max_epochs": 2}
        settings["network_def#outputs"] = [0, 2]
        losses = []
        for cache in (None, "memory"):
            out = self.root / f"{decoder}_{cache}"
            self.train(out, prefix_cache=cache, **settings)
            losses.append(self.history(out))
        np.testing.assert_allclose(*losses, rtol=1e-4)
        arguments = adapter_metadata(out / "adapter_last.safetensors")["arguments"]
        self.assertEqual((arguments["decoder"], arguments["outputs"]), (decoder, [0, 2]))

    def test_export_of_the_full_model_equals_it(self):
        exported, checkpoint = str(self.root / "model.ts"), str(self.out / "model.pt")
        config, metadata = (str(BUNDLE / "configs" / name) for name in ("inference.yaml", "metadata.json"))
        files = {"ckpt_file": checkpoint, "meta_file": metadata, "config_file": config, "adapter_path": self.adapter}
        ckpt_export("network_def", exported, input_shape=[1, 3, 56, 56], **files)
        train = self.workflow("train", output_dir=str(self.root / "unused"), decoder="conv")
        self.assertEqual(train.check_properties(), [])
        network = train.parser.get_parsed_content("network").cpu().eval()
        network.load_state_dict(torch.load(checkpoint, weights_only=True))
        x = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(torch.jit.load(exported)(x), network(x), atol=1e-5, rtol=1e-5)

    def test_bad_mask_is_named(self):
        list_path = self.root / "bad.csv"
        Image.fromarray(np.full((37, 44), 100, np.uint8)).save(self.data / "masks" / "bad.png")
        list_path.write_text((self.data / "labels.csv").read_text().replace("masks/0.png", "masks/bad.png"))
        out = str(self.root / "unused")
        train = self.workflow("train", output_dir=out, datalist=str(list_path), max_epochs=1, decoder="conv")
        with self.assertRaises(RuntimeError) as raised:
            train.run()
        words = r"bad\.png: labels must be whole numbers in \[0, 2\) or 255 for 1, got 100\.$"
        self.assertRegex(str(root_cause(raised.exception)), words)

    def test_two_processes(self):
        """Distributed training (gloo) of one epoch from the command line: both ranks end, and one writes."""
        out = self.root / "two"
        settings = {**self.settings, "dataset_dir": self.data, "output_dir": out, "max_epochs": 1, "batch_size": 4}
        settings |= {"device": "$torch.device('cpu')", "decoder": "conv"}
        launch = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle", "run"]
        run = subprocess.run(
            [sys.executable, "-m", *launch]
            + ["--config_file", "['configs/train.yaml','configs/multi_gpu_train.yaml']"]
            + [part for key, value in settings.items() for part in (f"--{key}", str(value))],
            cwd=BUNDLE,
            capture_output=True,
            text=True,
            timeout=300,
        )
        self.assertEqual(run.returncode, 0, run.stderr[-3000:])
        self.assertEqual(json.loads((out / "report.json").read_text())["last"]["epoch"], 1)


if __name__ == "__main__":
    unittest.main()
