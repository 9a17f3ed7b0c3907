# SPDX-License-Identifier: Apache-2.0
"""``python -m monai_dvpt new`` on hippocampi with a second channel: from the folder to an answer for a new case."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK
import yaml
from monai.bundle import ckpt_export
from safetensors.numpy import load_file
from utils_bundles import MODEL_ZOO_FILES, check_metadata, preparations, unused_keys, workflow
from utils_commands import call
from utils_data import ROOT, dice, shared_data, temporary_folder

from monai_dvpt.__main__ import main
from monai_dvpt.networks.pretrained import MRI_VIT_TINY

KERNEL = "patch_embedding.patch_embeddings.weight"
CASES = 6


def hippocampi() -> list[tuple[Path, Path]]:
    folder = shared_data("msd_hippocampus")
    images = sorted((folder / "imagesTr").glob("*.nii.gz"))[: CASES + 1]
    return [(path, folder / "labelsTr" / path.name) for path in images]


def inverted(path: Path) -> SimpleITK.Image:
    """A smoothed copy in which bright is dark."""
    image = SimpleITK.Cast(SimpleITK.ReadImage(str(path)), SimpleITK.sitkFloat32)
    smooth = SimpleITK.SmoothingRecursiveGaussian(image, 1.0)
    high = float(SimpleITK.GetArrayFromImage(smooth).max())
    return high - smooth + 5


def on_finer_grid(image: SimpleITK.Image) -> SimpleITK.Image:
    """The same on a grid of smaller voxels, shifted by a part of one, and larger than the image."""
    spacing = np.array([0.7, 0.8, 0.9])
    extent = np.array(image.GetSize()) * np.array(image.GetSpacing()) + 8
    grid = SimpleITK.Image((extent / spacing).astype(int).tolist(), SimpleITK.sitkFloat32)
    grid.SetSpacing(spacing.tolist())
    grid.SetDirection(image.GetDirection())
    direction = np.reshape(image.GetDirection(), (3, 3))
    grid.SetOrigin((np.array(image.GetOrigin()) - direction @ [3.7, 3.6, 3.5]).tolist())
    edge = float(SimpleITK.GetArrayFromImage(image).min())
    return SimpleITK.Resample(image, grid, SimpleITK.Transform(3, SimpleITK.sitkIdentity), SimpleITK.sitkLinear, edge)


def stacked(folder: Path) -> nib.Nifti1Image:
    channels = [nib.load(folder / f"{name}.nii.gz") for name in ("t1", "inverse")]
    values = np.stack([np.asarray(each.dataobj, np.float32) for each in channels], -1)
    return nib.Nifti1Image(values, channels[0].affine, None)


class TestChannels(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = temporary_folder(self)
        self.bundle = self.folder / "bundle"
        self.data = self.folder / "data"
        for index, (image, label) in enumerate(hippocampi()):
            case = (self.data if index < CASES else self.folder / "new") / f"case{index}"
            case.mkdir(parents=True)
            shutil.copy(image, case / "t1.nii.gz")
            second = inverted(image)
            SimpleITK.WriteImage(second if index % 2 == 0 else on_finer_grid(second), str(case / "inverse.nii.gz"))
            if index < CASES:
                shutil.copy(label, case / "seg.nii.gz")

    def new(self, *arguments) -> tuple[int, str, str]:
        return call(main, "new", *arguments)

    def written(self, *channels: str) -> str:
        status, out, err = self.new(self.data, "--output", self.bundle, "--channels", ",".join(channels))
        self.assertEqual(status, 0, out + err)
        return out

    def test_from_the_folder_to_an_answer(self):
        out = self.written("t1", "inverse")
        self.assertIn("channels    t1, inverse", out)
        self.assertRegex(out, "note +channel on another grid +inverse: in 3 of 6 cases it is resampled by its header")
        self.check_bundle()
        self.check_first_layer()
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/train.yaml"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        options = ["--max_epochs", "1", "--val_interval", "1"]
        run = subprocess.run([*command, *options], cwd=self.bundle, env=environment, capture_output=True, text=True)
        self.assertEqual(run.returncode, 0, run.stderr[-3000:])
        self.check_same_answer_in_all_layouts()
        workflow(self.bundle, "evaluate", "train").run()
        self.assertTrue((self.bundle / "output/evaluate/metrics.csv").is_file())
        self.assertTrue(list((self.bundle / "output/evaluate/pictures").glob("*.png")))
        self.check_export()
        self.check_update()

    def check_bundle(self) -> None:
        self.assertEqual([name for name in MODEL_ZOO_FILES if not (self.bundle / name).is_file()], [])
        self.assertEqual(*preparations(self.bundle))
        for config in sorted((self.bundle / "configs").glob("*.yaml")):
            self.assertEqual(unused_keys(config), [], config)
            self.assertNotRegex(config.read_text(), r"\{%|\{\{|\n\n\n| \n|^\n", config)
        image = json.loads((self.bundle / "configs/metadata.json").read_text())["network_data_format"]["inputs"][
            "image"
        ]
        self.assertEqual((image["num_channels"], image["channel_def"]), (2, {"0": "t1", "1": "inverse"}))
        self.assertEqual(image["modality"], "MR")
        settings = yaml.safe_load((self.bundle / "configs/train.yaml").read_text())
        self.assertEqual(settings["channels"], ["t1", "inverse"])
        lists = json.loads((self.bundle / "configs/datalist.json").read_text())
        listed = {case["image"][0][:5]: case["image"] for part in lists.values() for case in part}
        self.assertEqual(listed, {f"case{i}": [f"case{i}/t1.nii.gz", f"case{i}/inverse.nii.gz"] for i in range(CASES)})
        check_metadata(self, self.bundle)

    def check_first_layer(self) -> None:
        """The kernel of the weights for each channel, divided by their number."""
        network = workflow(self.bundle, "train", "train").parser.get_parsed_content("pretrained")
        kernel = network.state_dict()[f"vit.{KERNEL}"].numpy()
        given = load_file(MRI_VIT_TINY)[KERNEL]
        np.testing.assert_allclose(kernel, np.concatenate([given, given], 1) / 2, atol=1e-6)

    def check_same_answer_in_all_layouts(self) -> None:
        """A case as two files, in nnU-Net's names, with one more file, and as one file; and on two grids."""
        (case,) = (self.folder / "new").iterdir()
        inputs = self.folder / "inputs"
        shutil.copytree(case, inputs / "apart")
        for number, name in enumerate(("t1", "inverse")):
            shutil.copy(case / f"{name}.nii.gz", inputs / f"numbered_000{number}.nii.gz")
            (inputs / "flat").mkdir(exist_ok=True)
            shutil.copy(case / f"{name}.nii.gz", inputs / "flat" / f"x7_{name.upper()}.nii.gz")
        shutil.copy(case / "t1.nii.gz", inputs / "flat" / "x7_t2.nii.gz")
        nib.save(stacked(case), inputs / "stacked.nii.gz")
        shutil.copytree(case, inputs / "finer")
        finer = on_finer_grid(SimpleITK.ReadImage(str(case / "inverse.nii.gz")))
        SimpleITK.WriteImage(finer, str(inputs / "finer" / "inverse.nii.gz"))
        shutil.copytree(case, inputs / "swapped")
        os.rename(inputs / "swapped/t1.nii.gz", inputs / "swapped/x.nii.gz")
        os.rename(inputs / "swapped/inverse.nii.gz", inputs / "swapped/t1.nii.gz")
        os.rename(inputs / "swapped/x.nii.gz", inputs / "swapped/inverse.nii.gz")
        output = self.folder / "results"
        settings = {"dataset_dir": str(inputs), "output_dir": str(output), "output_format": "nifti,uncertainty"}
        workflow(self.bundle, "inference", "infer", **settings).run()
        answers = {path.name.split("_")[0]: nib.load(path) for path in output.glob("*_seg.nii.gz")}
        self.assertEqual(sorted(answers), ["apart", "finer", "flat", "numbered", "stacked", "swapped"])
        doubts = {path.name.split("_")[0]: nib.load(path).get_fdata() for path in output.glob("*_uncertainty.nii.gz")}
        self.assertGreater(np.ptp(doubts["apart"]), 0)
        for name in ("flat", "numbered", "stacked"):
            np.testing.assert_array_equal(answers[name].dataobj, answers["apart"].dataobj)
            np.testing.assert_array_equal(doubts[name], doubts["apart"])
        self.assertGreater(np.abs(doubts["swapped"] - doubts["apart"]).max(), 0.01)
        found = [np.asarray(answers[name].dataobj) for name in ("apart", "finer")]
        if (found[0] == 1).sum() > 100:
            self.assertGreater(dice(*found, 1), 0.95)
        self.assertLess(np.abs(doubts["finer"] - doubts["apart"]).mean(), 0.05)
        (inputs / "apart" / "inverse.nii.gz").unlink()
        settings["output_dir"] = str(self.folder / "others")
        with self.assertRaises(RuntimeError) as caught:  # as MONAI reports it
            workflow(self.bundle, "inference", "infer", **settings).run()
        self.assertRegex(str(caught.exception.__cause__), "1 of 6 inputs failed: apart: .*without inverse")

    def check_update(self) -> None:
        status, out, err = self.new("--update", self.bundle)
        self.assertEqual(status, 0, out + err)
        settings = (self.bundle / "configs/train.yaml").read_text()
        (self.bundle / "configs/train.yaml").write_text(settings.replace("[t1, inverse]", "[t1, other]"))
        status, _, err = self.new("--update", self.bundle)
        self.assertEqual(status, 1)
        self.assertIn("the channels must stay as they are, ['t1', 'other'], the data have ['t1', 'inverse']", err)

    def check_export(self) -> None:
        configs = self.bundle / "configs"
        ckpt_export(
            "network_def",
            filepath=str(self.folder / "model.ts"),
            ckpt_file=str(self.bundle / "output/train/model.pt"),
            meta_file=str(configs / "metadata.json"),
            config_file=str(configs / "inference.yaml"),
            bundle_root=str(self.bundle),
        )
        self.assertTrue((self.folder / "model.ts").is_file())

    def test_a_missing_channel(self):
        (self.data / "case1" / "inverse.nii.gz").unlink()
        arguments = (self.data, "--output", self.bundle, "--channels", "t1,inverse")
        status, out, err = self.new(*arguments)
        self.assertEqual((status, self.bundle.exists()), (1, False))
        errors = [line for line in out.splitlines() if line.startswith("error")]
        self.assertEqual(len(errors), 1, out)
        self.assertRegex(errors[0], "missing channel +case1/t1.nii.gz: .*without inverse.*--leave-out.*--channels t1")
        status, out, err = self.new(*arguments, "--leave-out")
        self.assertEqual(status, 0, err)
        lists = json.loads((self.bundle / "configs/datalist.json").read_text())
        self.assertEqual(sum(map(len, lists.values())), CASES - 1)
        self.assertNotIn("case1", str(lists))
        status, out, err = self.new(self.data, "--output", self.folder / "one", "--channels", "t1")
        self.assertEqual(status, 0, err)
        settings = yaml.safe_load((self.folder / "one/configs/train.yaml").read_text())
        self.assertEqual(settings["channels"], ["t1"])

    def test_without_channels(self):
        for case in self.data.iterdir():
            os.rename(case / "inverse.nii.gz", case / "flair.nii.gz")
        status, out, err = self.new(self.data, "--check")
        self.assertEqual(status, 1, out)
        self.assertIn("a label must be of one image, could be of 2", out)
        self.assertIn("--channels A,B", out)


if __name__ == "__main__":
    unittest.main()
