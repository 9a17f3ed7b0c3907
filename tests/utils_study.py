# SPDX-License-Identifier: Apache-2.0
"""A small network, and small pictures with grades, for studies."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from monai_dvpt.networks.nets import DVPTViT

BUNDLE = Path(__file__).parents[1] / "bundles" / "xray_dvpt_vit_classification"
NETWORK = {"hidden_size": 24, "mlp_dim": 32, "num_layers": 3, "num_heads": 2}
ENCODER = DVPTViT(3, 32, 16, spatial_dims=2, num_classes=0, bottleneck_size=5, **NETWORK)


def write_data(folder: Path) -> None:
    """Two pictures of each of 18 patients, graded by the brightness of a square, and random weights."""
    generator = np.random.default_rng(0)
    rows = [("image", "patient", "split", "A", "B")]
    for patient in range(18):
        split = "training" if patient < 10 else "validation" if patient < 14 else "test"
        for shot in range(2):
            grades = patient % 3, (patient + shot) % 3
            pixels = generator.integers(0, 40, (40, 36), dtype=np.uint8)
            pixels[8:30, 4:16] += np.uint8(70 * grades[0])
            pixels[8:30, 20:32] += np.uint8(70 * grades[1])
            Image.fromarray(pixels).save(folder / f"{patient:02}_{shot}.png")
            rows.append((f"{patient:02}_{shot}.png", f"p{patient}", split, *grades))
    with open(folder / "datalist.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    torch.manual_seed(0)
    encoder = {k: v for k, v in ENCODER.state_dict().items() if not k.startswith("dvpt")}
    torch.save({name: torch.randn_like(tensor) * 0.05 for name, tensor in encoder.items()}, folder / "encoder.pt")


def settings(folder: Path) -> dict:
    network = {f"network_def#{key}": value for key, value in NETWORK.items()}
    paths = {"dataset_dir": str(folder), "backbone_path": str(folder / "encoder.pt")}
    sizes = {"img_size": 32, "bottleneck_size": 5, "num_prompts": 3, "max_epochs": 2}
    return {**paths, **sizes, **network, "outputs": ["A", "B"], "grades": ["none", "some", "much"]}
