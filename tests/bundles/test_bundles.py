# SPDX-License-Identifier: Apache-2.0
"""
Every config of every bundle, checked as MONAI's own tools check it; those of the bundles that segment volumes are
also run, on small ones. ``test_grading_bundles.py`` and ``test_picture_bundles.py`` run the others.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import torch
import yaml
from monai.bundle import ckpt_export
from monai.networks.nets import SwinUNETR
from parameterized import parameterized
from PIL import Image
from safetensors.torch import load_file
from utils_bundles import (
    BUNDLES,
    backbone_settings,
    check_files,
    check_labels,
    check_metadata,
    check_network,
    preparations,
    unused_keys,
    workflow,
)
from utils_data import save_dicom, temporary_folder

from monai_dvpt.networks.adapter import adapter_metadata, save_adapter
from monai_dvpt.utils import InputError, root_cause

PICTURES = "skin_lesion_dvpt_vit_segmentation"  # of which test_picture_bundles.py runs the configs
SEGMENTATION = [bundle for bundle in BUNDLES if bundle.name.endswith("_segmentation") and bundle.name != PICTURES]
EACH_BUNDLE = [(bundle.name, bundle) for bundle in BUNDLES]
EACH_SEGMENTATION = [(bundle.name, bundle) for bundle in SEGMENTATION]
EACH_OF_PICTURES = [(bundle.name, bundle) for bundle in BUNDLES if re.search("xray|skin|fundus", bundle.name)]
EACH_CONFIG = [
    (f"{bundle.name}_{config.stem}", config)
    for bundle in BUNDLES
    for config in sorted((bundle / "configs").glob("*.yaml"))
]
# an oblique, left-handed grid: 0.9 x 1.1 x 1.2 mm, turned by 0.2 rad about the patient's long axis
TURN = np.array([[np.cos(0.2), -np.sin(0.2), 0.0], [np.sin(0.2), np.cos(0.2), 0.0], [0.0, 0.0, 1.0]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = TURN @ np.diag([-0.9, 1.1, 1.2])
AFFINE[:3, 3] = [12.0, -34.0, 5.0]

# what makes the CT bundle small; its backbone, of MONAI's release in use, is written by the test
SMALL_CT = {
    "feature_size": 12,
    "method": {"name": "dvpt", "bottleneck_size": 8},
    "roi_size": [64, 32, 32],
    "spacing_mm": [1.0, 1.0, 1.0],
    "organs": {"first": [1], "second": [2]},
}

SPLIT = {"training": "a", "validation": "c"}


def write_cases(root: Path, names: list[str]) -> None:
    """Images of two bright ellipsoids on noise, with their labels 1 and 2, on the oblique grid."""
    generator = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.arange(side) for side in (44, 50, 36)), indexing="ij"), axis=-1)
    for index, name in enumerate(names):
        label = np.zeros(grid.shape[:3], np.uint8)
        for value, centre in ((1, (16 + index, 25, 18)), (2, (29, 22 + index, 17))):
            label[(((grid - centre) / (5, 9, 6)) ** 2).sum(axis=-1) < 1] = value
        image = 100 + 60.0 * label + generator.normal(0, 5, label.shape)
        for folder, volume in (("imagesTr", image.astype(np.float32)), ("labelsTr", label)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(volume, AFFINE), root / folder / f"{name}.nii.gz")


def is_ct(bundle: Path) -> bool:
    return bundle.name.startswith("ct_")


def write_ssl_release(path: Path) -> None:
    """Random weights under the names of the self-supervised release of SwinUNETR."""
    torch.manual_seed(0)
    state = SwinUNETR(1, 2, feature_size=SMALL_CT["feature_size"]).swinViT.state_dict()
    renamed = {f"module.{name.replace('mlp.linear', 'mlp.fc')}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": renamed}, path)


def settings_of(bundle: Path, data: Path) -> dict:
    """The settings that make a bundle quick to run."""
    return {**SMALL_CT, "backbone_path": str(data.parent / "swinvit.pt")} if is_ct(bundle) else {}


def training_data(bundle: Path, data: Path) -> dict:
    """The settings that make a bundle train on few crops of the cases in a folder."""
    crops = "crops_per_case" in (bundle / "configs" / "train.yaml").read_text()
    few = {"crops_per_case": 10 if is_ct(bundle) else 2} if crops else {}
    return {"dataset_dir": str(data), "datalist": "auto", **few, **settings_of(bundle, data)}


class TestBundleFiles(unittest.TestCase):
    @parameterized.expand(EACH_BUNDLE)
    def test_has_what_the_model_zoo_asks_for(self, _, bundle):
        check_files(self, bundle)

    @parameterized.expand(EACH_BUNDLE)
    def test_metadata_follows_the_schema(self, _, bundle):
        check_metadata(self, bundle)

    @parameterized.expand(EACH_OF_PICTURES)
    def test_evaluation_has_the_channels_of_the_adapter(self, _, bundle):
        """Without being told again: of an adapter trained on grey images, image and network have one channel."""
        root = temporary_folder(self)
        given = {**backbone_settings(bundle, root), "dataset_dir": str(root), "image_mean": 0.5, "image_std": 0.5}
        train = workflow(bundle, "train", "train", channels=1, img_size=32, **given).parser
        network, labels = (train.get_parsed_content(key) for key in ("network", "labels"))
        kept = {"value_range": [0, 255], "ben_graham": False, "image_mean": 0.5, "image_std": 0.5}
        adapter = save_adapter(network, root / "grey.safetensors", labels=labels, notes={"preparation": kept})
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)).save(root / "a.png")
        Image.fromarray(np.ones((40, 40), np.uint8)).save(root / "mask.png")
        evaluate = workflow(bundle, "evaluate", "train", adapter_path=str(adapter), **given).parser
        network, prepare = (evaluate.get_parsed_content(key) for key in ("network", "validate#preprocessing"))
        label = str(root / "mask.png") if "_segmentation" in bundle.name else [1]
        image = prepare({"image": str(root / "a.png"), "label": label})["image"]
        self.assertEqual(tuple(image.shape), (1, 32, 32))
        kernels = [tensor for name, tensor in network.state_dict().items() if name.endswith("patch_embeddings.weight")]
        self.assertEqual([kernel.shape[1] for kernel in kernels], [1])

    @parameterized.expand(EACH_CONFIG)
    def test_every_top_level_key_is_used(self, _, config):
        self.assertEqual(unused_keys(config), [])

    @parameterized.expand(EACH_BUNDLE)
    def test_labels_are_those_of_the_metadata(self, _, bundle):
        check_labels(self, bundle)

    @parameterized.expand(EACH_BUNDLE)
    def test_inference_prepares_images_as_training_does(self, _, bundle):
        self.assertEqual(*preparations(bundle))

    def test_bundles_of_pictures_differ_only_where_they_must(self):
        """
        Beside names, lists and preparation of images: what is stated in each of them is the same. Classes without an
        order have other metrics.
        """
        trains = {bundle: (bundle / "configs" / "train.yaml").read_text() for bundle in BUNDLES}
        pictures = [bundle for bundle in BUNDLES if "training_sampler" in trains[bundle]]
        for name in ("multi_gpu_train.yaml", "logging.conf"):
            self.assertEqual(len({(bundle / "configs" / name).read_text() for bundle in pictures}), 1, name)
        bundles = [bundle for bundle in pictures if "\ngrades:" in trains[bundle]]
        self.assertGreater(len(bundles), 2)
        texts: list[list] = [[] for _ in bundles]
        own = {"imports", "backbone_path", "columns", "image_path", "exclude", "outputs", "grades", "cases"}
        own |= {"preparation", "ben_graham"}
        # of an encoder that is tuned, and of one that is frozen and read by prompts
        own |= {"method", "pooling", "augment", "prefix_cache", "batch_size", "learning_rates"}
        for name in ("train", "evaluate", "inference"):
            for bundle, text in zip(bundles, texts, strict=True):
                config = yaml.safe_load((bundle / "configs" / f"{name}.yaml").read_text())
                config.get("train", {}).pop("deterministic_transforms", None)
                config.get("train", {}).pop("random_transforms", None)
                config.pop("preprocessing", None)
                text.append({key: value for key, value in config.items() if key not in own})
        for text in texts[1:]:
            self.assertEqual(text, texts[0])

    @parameterized.expand(EACH_BUNDLE)
    def test_the_network_is_that_of_the_metadata(self, _, bundle):
        check_network(bundle, temporary_folder(self))


class TestBundleRuns(unittest.TestCase):
    """Train for two epochs, evaluate, infer and export, in this order, as a user would."""

    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.root = Path(cls.temporary.name)
        cls.data = cls.root / "data"
        write_cases(cls.data, ["a", "b", "c"])
        write_ssl_release(cls.root / "swinvit.pt")
        cls.outputs = {}
        for bundle in SEGMENTATION:
            out = cls.root / bundle.name
            train = workflow(
                *(bundle, "train", "train"),
                output_dir=str(out),
                max_epochs=2,
                val_interval=1,
                **training_data(bundle, cls.data),
            )
            train.run()
            train.finalize()
            cls.outputs[bundle] = out

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    @parameterized.expand(EACH_SEGMENTATION)
    def test_training_writes_what_it_promises(self, _, bundle):
        out = self.outputs[bundle]
        for name in (
            "adapter_best.safetensors",
            "adapter_last.safetensors",
            "model.pt",
            "checkpoint.pt",
            "history.csv",
        ):
            self.assertTrue((out / name).is_file(), name)
        for curves in ("tensorboard", "tensorboard/validation"):
            self.assertEqual(len(list((out / curves).glob("events*"))), 1)
        report = json.loads((out / "report.json").read_text())
        parameters = report["parameters"]
        self.assertEqual(parameters["backbone"]["trainable"], 0)
        self.assertEqual(parameters["method"]["trainable"], parameters["method"]["total"])
        if not is_ct(bundle):  # of which the test has a smaller network
            self.assertLessEqual(report["method_percent_of_encoder"], 1.0)
        self.assertLessEqual(report["method_bytes"], 1_000_000)
        self.assertEqual(adapter_metadata(out / "adapter_best.safetensors")["notes"]["epoch"], report["best"]["epoch"])
        with open(out / "history.csv") as file:
            losses = [float(row["loss"]) for row in csv.DictReader(file)]
        self.assertEqual(len(losses), 2)
        self.assertLess(losses[1], losses[0])

    @parameterized.expand(EACH_SEGMENTATION)
    def test_evaluate_agrees_with_the_report(self, _, bundle):
        out = self.outputs[bundle]
        evaluate = workflow(
            *(bundle, "evaluate", "train"),
            dataset_dir=str(self.data),
            datalist="auto",
            **settings_of(bundle, self.data),
            output_dir=str(out / "evaluate"),
            adapter_path=str(out / "adapter_best.safetensors"),
        )
        evaluate.run()
        evaluate.finalize()
        with open(out / "evaluate" / "metrics.csv") as file:
            scores = dict(row for row in csv.reader(file) if len(row) == 2)
        best = json.loads((out / "report.json").read_text())["best"]["metrics"]["val_mean_dice"]
        # training validates on the 1 mm grid, evaluation on the grid of the file
        self.assertAlmostEqual(float(scores["val_mean_dice"]), best, delta=0.05)

    @parameterized.expand(EACH_SEGMENTATION)
    def test_inference_keeps_the_grid(self, _, bundle):
        out = self.outputs[bundle]
        infer = workflow(
            *(bundle, "inference", "infer"),
            dataset_dir=str(self.data / "imagesTr"),
            **settings_of(bundle, self.data),
            output_dir=str(out / "inference"),
            output_format="nifti,uncertainty",
            adapter_path=str(out / "adapter_best.safetensors"),
        )
        self.assertEqual(infer.check_properties(), [])
        infer.run()
        infer.finalize()
        for name in "abc":
            label_map = nib.load(out / "inference" / f"{name}_seg.nii.gz")
            self.assertEqual(label_map.shape, (44, 50, 36))
            self.assertEqual(label_map.get_data_dtype(), np.uint8)
            np.testing.assert_allclose(label_map.affine, AFFINE, atol=1e-5)
            uncertainty = nib.load(out / "inference" / f"{name}_uncertainty.nii.gz")
            self.assertEqual((uncertainty.shape, uncertainty.get_data_dtype()), (label_map.shape, np.float32))
            np.testing.assert_array_equal(uncertainty.affine, label_map.affine)
            values = uncertainty.get_fdata()
            self.assertTrue(((values >= 0) & (values <= 1)).all())
            self.assertGreater(np.ptp(values), 0.01)
            self.assertTrue((out / "inference" / f"{name}_overlay.png").read_bytes().startswith(b"\x89PNG"))
            volumes = json.loads((out / "inference" / f"{name}_volumes.json").read_text())["volumes_ml"]
            classes = np.asarray(label_map.dataobj)
            expected = [(classes == value).sum() * 0.9 * 1.1 * 1.2 / 1000 for value in (1, 2)]
            np.testing.assert_allclose(list(volumes.values()), expected, atol=1e-5)

    @parameterized.expand(EACH_SEGMENTATION)
    def test_inference_of_a_study(self, _, bundle):
        """The image of a case as DICOM: segments on its slices, with the codes of the bundle's metadata."""
        out, inputs = self.outputs[bundle] / "study", self.root / f"study_{bundle.name}"
        image = nib.load(self.data / "imagesTr" / "a.nii.gz")
        volume = np.asarray(image.dataobj).clip(0).round().astype(np.uint16)
        lps = np.diag([-1.0, -1, 1, 1]) @ image.affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        modality = "CT" if is_ct(bundle) else "MR"
        save_dicom(inputs / "a", volume, lps[:3, :3] / spacing, lps[:3, 3], tuple(spacing), modality=modality)
        infer = workflow(
            *(bundle, "inference", "infer"),
            dataset_dir=str(inputs),
            **settings_of(bundle, self.data),
            output_dir=str(out),
            output_format="nifti,dicom_seg",
            adapter_path=str(self.outputs[bundle] / "adapter_best.safetensors"),
        )
        infer.run()
        label_map = nib.load(out / "a_seg.nii.gz")
        # the third axis runs along the normal, which in this left-handed grid is from the last slice to the first
        canonical = (nib.as_closest_canonical(each).affine for each in (label_map, image))
        np.testing.assert_allclose(*canonical, atol=1e-4)
        segmentation = pydicom.dcmread(out / "a_seg.dcm")
        counts = np.zeros(len(segmentation.SegmentSequence) + 1, int)
        masks = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
        for mask, frame in zip(masks, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
            counts[frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber] += mask.sum()
        classes = np.asarray(label_map.dataobj)
        self.assertEqual(counts[1:].tolist(), [(classes == value).sum() for value in range(1, len(counts))])
        labels = infer.parser.get_parsed_content("labels")
        self.assertEqual([str(item.SegmentLabel) for item in segmentation.SegmentSequence], labels[1:])
        codes = infer.parser.get("_meta_")["segment_codes"] if not is_ct(bundle) else {}
        for item in segmentation.SegmentSequence:
            code = item.SegmentedPropertyTypeCodeSequence[0]
            expected = codes.get(item.SegmentLabel, {"type": [item.SegmentLabel, "99MONAIDVPT", item.SegmentLabel]})
            self.assertEqual([code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning], expected["type"])

    @parameterized.expand(EACH_SEGMENTATION)
    def test_monai_finds_what_it_requires(self, _, bundle):
        settings = training_data(bundle, self.data)
        train = workflow(bundle, "train", "train", output_dir=str(self.root / "unused"), **settings)
        self.assertEqual(train.check_properties(), [])

    @parameterized.expand(EACH_SEGMENTATION)
    def test_export_of_the_full_model_equals_it(self, _, bundle):
        out = self.outputs[bundle]
        config, metadata = (str(bundle / "configs" / name) for name in ("inference.yaml", "metadata.json"))
        exported = str(out / "model.ts")
        checkpoint, adapter = str(out / "model.pt"), str(out / "adapter_best.safetensors")
        settings = training_data(bundle, self.data)
        shape = [1, 1, *SMALL_CT["roi_size"]] if is_ct(bundle) else [1, 1, 40, 56, 40]
        options = {"ckpt_file": checkpoint, "meta_file": metadata, "config_file": config, "adapter_path": adapter}
        options |= {"use_trace": True, "input_shape": shape} if is_ct(bundle) else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of MONAI's Swin transformer
            ckpt_export("network_def", exported, **options)
        train = workflow(bundle, "train", "train", output_dir=str(self.root / "unused"), **settings)
        network = train.parser.get_parsed_content("network").cpu().eval()
        network.load_state_dict(torch.load(checkpoint, weights_only=True))
        torch.manual_seed(0)
        x = torch.randn(*shape)
        with torch.no_grad():
            torch.testing.assert_close(torch.jit.load(exported)(x), network(x), atol=1e-5, rtol=1e-5)

    @parameterized.expand(EACH_SEGMENTATION)
    def test_a_finished_run_goes_on_with_more_epochs(self, _, bundle):
        out = self.root / f"{bundle.name}_more"
        shutil.copytree(self.outputs[bundle], out)
        settings = training_data(bundle, self.data)
        # the last epoch is validated, though no interval ends there
        more = workflow(bundle, "train", "train", output_dir=str(out), max_epochs=3, val_interval=2, **settings)
        more.run()
        scheduler = more.parser.get_parsed_content("train#lr_scheduler")
        self.assertEqual((scheduler.t_total, scheduler.last_epoch), (3, 3))
        self.assertEqual({group["lr"] for group in scheduler.optimizer.param_groups}, {0.0})  # annealed to the end
        more.finalize()
        self.assertEqual(json.loads((out / "report.json").read_text())["last"]["epoch"], 3)
        other = workflow(
            *(bundle, "train", "train"), output_dir=str(out), max_epochs=3, batch_size=3, seed=1, **settings
        )
        with self.assertRaises(RuntimeError) as raised:
            other.run()
        self.assertRegex(
            str(raised.exception.__cause__), r"checkpoint\.pt: .*batch_size was \d, is 3; seed was 0, is 1"
        )
        with open(out / "history.csv") as file:
            self.assertEqual([row["epoch"] for row in csv.DictReader(file)], ["1", "2", "3"])

    @parameterized.expand(EACH_SEGMENTATION)
    def test_training_goes_on_from_an_adapter_with_cases_that_are_given(self, _, bundle):
        """As MONAI Label gives them: as lists, without a folder of data; and here none validates."""
        settings = training_data(bundle, self.data)
        cases = workflow(bundle, "train", "train", **settings).parser.get_parsed_content("cases")
        settings["dataset_dir"] = str(self.root / "nowhere")
        out, first = self.root / f"{bundle.name}_given", self.outputs[bundle] / "adapter_best.safetensors"
        more = workflow(
            *(bundle, "train", "train"),
            **{**settings, "train#dataset#data": cases["training"], "validate#dataset#data": []},
            **{"output_dir": str(out), "adapter_path": str(first), "trainable": ["method", "head"], "max_epochs": 1},
        )
        with self.assertWarnsRegex(UserWarning, "`dataloader` is empty"):
            more.run()
        more.finalize()
        self.assertEqual(json.loads((out / "report.json").read_text())["settings"]["cases"]["validation"], 0)
        before, after = (load_file(path) for path in (first, out / "adapter_best.safetensors"))
        changed = {name.split(".dvpt.")[0] for name in before if not torch.equal(before[name], after[name])}
        encoder = "swinViT" if is_ct(bundle) else "vit"
        self.assertEqual(changed, {encoder, *(name for name in before if name.startswith("out."))})

    @parameterized.expand(EACH_SEGMENTATION)
    def test_wrong_adapter_is_refused(self, _, bundle):
        other = self.root / "other.safetensors"
        other.write_bytes(b"not an adapter")
        method_alone = self.root / "method_alone.safetensors"
        train = workflow(
            *(bundle, "train", "train"), output_dir=str(self.root / "unused"), **training_data(bundle, self.data)
        )
        network, labels = (train.parser.get_parsed_content(key) for key in ("network", "labels"))
        save_adapter(network, method_alone, parts=["method"], labels=labels)
        refused = [(other, "cannot be read"), (method_alone, "parts must be")]
        for each in SEGMENTATION:
            if each != bundle:
                refused.append((self.outputs[each] / "adapter_best.safetensors", "labels must be"))
        for path, why in refused:
            settings = {"dataset_dir": str(self.data / "imagesTr"), "adapter_path": str(path)}
            settings |= settings_of(bundle, self.data)
            infer = workflow(bundle, "inference", "infer", **settings)
            with self.assertRaises(RuntimeError) as raised:
                infer.run()
            cause = root_cause(raised.exception)
            self.assertIsInstance(cause, InputError)
            self.assertIn(f"{path}: {why}", str(cause))

    def test_other_labels_are_one_edit(self):
        """Of a copy of a bundle: all else follows."""
        labels = ["background", "head", "body", "tail"]
        bundle = self.root / "copy_segmentation"
        shutil.copytree(SEGMENTATION[-1], bundle)
        config = bundle / "configs" / "train.yaml"
        text, edits = re.subn(r"(?m)^labels: .*$", f"labels: [{', '.join(labels)}]", config.read_text())
        self.assertEqual(edits, 1)
        config.write_text(text)
        data = {"dataset_dir": str(self.data), "datalist": "auto"}
        train = workflow(bundle, "train", "train", max_epochs=1, **data)
        train.run()
        train.finalize()
        adapter = str(bundle / "output" / "train" / "adapter_best.safetensors")
        self.assertEqual(adapter_metadata(adapter)["labels"], labels)
        evaluate = workflow(bundle, "evaluate", "train", adapter_path=adapter, **data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # numpy's on the label that no case has
            evaluate.run()
        evaluate.finalize()
        with open(bundle / "output" / "evaluate" / "val_dice_raw.csv") as file:
            self.assertEqual(len(next(csv.reader(file))), 1 + len(labels[1:]) + 1)  # file, classes, mean
        images = str(self.data / "imagesTr" / "a.nii.gz")
        infer = workflow(bundle, "inference", "infer", dataset_dir=images, adapter_path=adapter)
        infer.run()
        volumes = json.loads((bundle / "output" / "inference" / "a_volumes.json").read_text())["volumes_ml"]
        self.assertEqual(list(volumes), labels[1:])

    def test_two_processes(self):
        """Distributed training (gloo) of one epoch: both ranks end, and one writes."""
        bundle, out = SEGMENTATION[-1], self.root / "two"
        settings = {
            **training_data(bundle, self.data),
            "output_dir": out,
            "max_epochs": 1,
            "device": "$torch.device('cpu')",
        }
        run = subprocess.run(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc_per_node=2",
                "-m",
                "monai.bundle",
                "run",
            ]
            + ["--config_file", "['configs/train.yaml','configs/multi_gpu_train.yaml']"]
            + [part for key, value in settings.items() for part in (f"--{key}", str(value))],
            cwd=bundle,
            capture_output=True,
            text=True,
            timeout=300,
        )
        self.assertEqual(run.returncode, 0, run.stderr[-3000:])
        report = json.loads((out / "report.json").read_text())
        self.assertEqual((report["epochs"], report["last"]["epoch"]), (1, 1))
        curves = [path for path in (out / "tensorboard").rglob("events*") if "rank1" not in path.parts]
        self.assertEqual(len(curves), 2)  # loss and scores, of one rank

    def test_evaluate_reports_a_bad_label(self):
        bundle, data = SEGMENTATION[0], self.root / "bad_label"
        shutil.copytree(self.data, data)
        label = data / "labelsTr" / "c.nii.gz"
        nib.save(nib.Nifti1Image(np.full((44, 50, 36), 7, np.uint8), AFFINE), label)
        (data / "datalist.json").write_text(
            json.dumps(
                {k: [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"}] for k, n in SPLIT.items()}
            )
        )
        run = self.command_line(bundle, "evaluate", data, self.root / "bad_label_out")
        self.assertEqual(run.returncode, 1, run.stderr)
        self.assertNotIn("Traceback", run.stderr + run.stdout)
        last = run.stderr.strip().splitlines()[-1]
        self.assertEqual(last, f"error: {label}: labels must be whole numbers in [0, 3), got 7 to 7.")

    def command_line(
        self, bundle: Path, config: str, dataset_dir: Path, output_dir: Path
    ) -> subprocess.CompletedProcess:
        files = "['configs/train.yaml','configs/evaluate.yaml']" if config == "evaluate" else f"configs/{config}.yaml"
        return subprocess.run(
            [sys.executable, "-m", "monai.bundle", "run", "--config_file", files]
            + ["--dataset_dir", str(dataset_dir), "--output_dir", str(output_dir)]
            + ["--adapter_path", str(self.outputs[bundle] / "adapter_best.safetensors")],
            cwd=bundle,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def test_command_line_reports_bad_input_and_does_the_rest(self):
        bundle = SEGMENTATION[0]
        inputs, out = self.root / "mixed", self.root / "mixed_out"
        inputs.mkdir()
        shutil.copy(self.data / "imagesTr" / "a.nii.gz", inputs / "good.nii.gz")
        whole = (self.data / "imagesTr" / "b.nii.gz").read_bytes()
        (inputs / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
        nib.save(nib.Nifti1Image(np.zeros((40, 41, 42), np.float32), AFFINE), inputs / "zero.nii.gz")
        run = self.command_line(bundle, "inference", inputs, out)
        self.assertEqual(run.returncode, 1, run.stderr)
        last = run.stderr.strip().splitlines()[-1]
        self.assertRegex(
            last, r"^error: 2 of 3 inputs failed: cut: .*cut\.nii\.gz: cannot be read.*zero: .*must not be constant"
        )
        self.assertNotIn("Traceback", run.stderr)
        self.assertTrue((out / "good_seg.nii.gz").is_file())
        with open(out / "summary.csv") as file:
            self.assertEqual(
                {row["name"]: row["status"] for row in csv.DictReader(file)},
                {"cut": "failed", "good": "done", "zero": "failed"},
            )


if __name__ == "__main__":
    unittest.main()
