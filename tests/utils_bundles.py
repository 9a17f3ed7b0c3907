# SPDX-License-Identifier: Apache-2.0
"""The bundles, and their workflows as the command line makes them."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import tempfile
import unittest
from pathlib import Path

import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata, verify_net_in_out
from monai.networks.nets import ViT

from monai_dvpt.networks.adapter import save_adapter
from monai_dvpt.utils import InputError, root_cause

REPOSITORY = Path(__file__).parents[1]
BUNDLES = sorted((REPOSITORY / "bundles").iterdir())


OVERLAYS = ("evaluate", "multi_gpu_train")
SHARED = Path(os.environ.get("MONAI_DVPT_TEST_DATA", REPOSITORY.parent / "shared" / "data")).parent
SCHEMA = SHARED / "schema" / "meta_schema_20240725.json"
SCHEMA_MD5 = "06954cad2cc5d3784e72077ac76f0fc8"
MODEL_ZOO_FILES = [
    "LICENSE",
    "docs/README.md",
    "docs/data_license.txt",
    *(f"configs/{name}" for name in ("metadata.json", "logging.conf")),
    *(f"configs/{name}.yaml" for name in ("train", "evaluate", "inference", "multi_gpu_train")),
]


def config_files(bundle: Path, config: str) -> list[str]:
    """The config, behind the one that it changes."""
    names = ["train", config] if config in OVERLAYS else [config]
    return [str(bundle / "configs" / f"{name}.yaml") for name in names]


def workflow(bundle: Path, config: str, kind: str, **overrides) -> ConfigWorkflow:
    """A bundle's workflow as ``python -m monai.bundle run`` makes it, initialised."""
    made = ConfigWorkflow(
        config_file=config_files(bundle, config),
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(bundle),
        **overrides,
    )
    made.initialize()
    return made


def backbone_settings(bundle: Path, folder: Path) -> dict[str, str]:
    """A file of random weights, of the width of ViT-Ti, for a bundle that takes the sizes of its network from one."""
    if "read_backbone" not in (bundle / "configs" / "train.yaml").read_text():
        return {}
    net = ViT(3, 224, 16, 192, 768, num_layers=1, num_heads=3, classification=True, spatial_dims=2, qkv_bias=True)
    torch.save(net.state_dict(), folder / "vit.pt")
    return {"backbone_path": str(folder / "vit.pt")}


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def read_metrics(path: Path) -> dict[str, str]:
    with open(path) as file:
        return dict(row for row in csv.reader(file) if len(row) == 2)


def check_metadata(test: unittest.TestCase, bundle: Path) -> None:
    """Checks a bundle's metadata by the zoo's schema."""
    if not SCHEMA.is_file():
        test.skipTest(f"the schema is not at {SCHEMA}")
    with tempfile.TemporaryDirectory() as folder:
        schema = shutil.copy(SCHEMA, folder)  # MONAI downloads it where it is not there
        metadata = str(bundle / "configs" / "metadata.json")
        verify_metadata(meta_file=metadata, filepath=schema, hash_val=SCHEMA_MD5, hash_type="md5")


def check_files(test: unittest.TestCase, bundle: Path) -> None:
    """A bundle has the files that the zoo asks for, no Python, and its version in its changelog."""
    test.assertEqual([name for name in MODEL_ZOO_FILES if not (bundle / name).is_file()], [])
    test.assertEqual(list(bundle.rglob("*.py")), [])
    metadata = read_metadata(bundle)
    test.assertIn(metadata["version"], metadata["changelog"])


def check_labels(test: unittest.TestCase, bundle: Path) -> None:
    """The labels of a bundle are those of its metadata."""
    pred = read_metadata(bundle)["network_data_format"]["outputs"]["pred"]
    labels = workflow(bundle, "train", "train").parser.get_parsed_content("labels")
    test.assertEqual(pred["channel_def"], {str(value): label for value, label in enumerate(labels)})
    test.assertEqual(pred["num_channels"], len(labels))


def check_network(bundle: Path, folder: Path) -> Path:
    """
    Checks that the network is that of the metadata, as the zoo does, by an adapter that need not be trained.

    Returns:
        the adapter, which is written to ``folder``.
    """
    adapter = folder / "untrained.safetensors"
    parser = workflow(bundle, "train", "train", **backbone_settings(bundle, folder)).parser
    network, labels = (parser.get_parsed_content(key) for key in ("network_def", "labels"))
    save_adapter(network, adapter, labels=labels)
    config, metadata = (str(bundle / "configs" / name) for name in ("inference.yaml", "metadata.json"))
    verify_net_in_out("network_def", meta_file=metadata, config_file=config, adapter_path=str(adapter))
    return adapter


def read_metadata(bundle: Path) -> dict:
    return json.loads((bundle / "configs" / "metadata.json").read_text())


def unused_keys(config: Path) -> list[str]:
    """Top-level keys of a config that nothing in it uses."""
    text, train = config.read_text(), ConfigParser({})
    keys = {key.removeprefix("+") for key in yaml.safe_load(text)} - {"imports", "initialize", "run"}
    if config.stem in OVERLAYS:
        below = config.with_name("train.yaml").read_text()
        text, train = text + below, ConfigParser(yaml.safe_load(below))
    if config.stem == "inference":
        keys.remove("network_def")  # which MONAI's tools ask for
    nested = {key for key in keys if "#" in key}
    nested = {key for key in nested if key in train or f"{key.rpartition('#')[0]}#_target_" in train}
    return [key for key in keys - nested if not re.search(rf"@{re.escape(key)}\b", text)]


def preparations(bundle: Path) -> list[list[dict]]:
    """How training and inference prepare an image, without what is of a label beside it, or of a reader."""
    train, infer = (yaml.safe_load((bundle / "configs" / f"{n}.yaml").read_text()) for n in ("train", "inference"))
    own = ("keys", "mode", "num_classes", "dicom_reader", "channels", "anti_aliasing")
    steps = []
    for transforms in (train["train"]["deterministic_transforms"], infer["preprocessing"]["transforms"]):
        of_image = [step for step in transforms if step["keys"] != "label" and step["_target_"] != "ToDeviced"]
        steps.append([{key: value for key, value in step.items() if key not in own} for step in of_image])
    return steps


class BundleTestCase(unittest.TestCase):
    def assert_refused(self, flow, why: str) -> None:
        with self.assertRaises(RuntimeError) as raised:
            flow.run()
        cause = root_cause(raised.exception)
        self.assertIsInstance(cause, InputError)
        self.assertRegex(str(cause), why)
