# SPDX-License-Identifier: Apache-2.0
"""The bundles, and their workflows as the command line makes them."""

from __future__ import annotations

from pathlib import Path

import torch
from monai.bundle import ConfigWorkflow
from monai.networks.nets import ViT

REPOSITORY = Path(__file__).parents[1]
BUNDLES = sorted((REPOSITORY / "bundles").iterdir())


OVERLAYS = ("evaluate", "multi_gpu_train")


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
