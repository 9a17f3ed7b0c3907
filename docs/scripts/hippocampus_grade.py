# SPDX-License-Identifier: Apache-2.0
"""
Scores the grade of hippocampal volume beside what else could tell it, both tasks on one backbone in memory:

    python docs/scripts/hippocampus_grade.py --data DIR

``DIR`` is Task04_Hippocampus of the Decathlon. It needs the repository, for the bundles. Printed are quadratic kappa
and its 95 % interval over the validation cases of four ways to find the quartile: the grading adapter; the grading
adapter on images cropped anew around the mask, so that their size tells nothing; the volume that the segmentation
adapter finds; and the size of the image alone, by linear regression on the training cases.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, SpatialCrop
from tqdm import tqdm

from monai_dvpt.metrics import kappa_interval
from monai_dvpt.networks.adapter import load_adapter, share_backbone
from monai_dvpt.networks.parts import freeze_backbone
from monai_dvpt.transforms import LoadVolume, VolumeGrade

BUNDLES = Path(__file__).parents[2] / "bundles"
MARGIN = 6  # voxels left around a mask


def bundle(name: str, configs: list[str], data: Path) -> ConfigParser:
    root = BUNDLES / name
    parser = ConfigParser()
    parser.read_config([root / "configs" / f"{config}.yaml" for config in configs])
    parser.update({"bundle_root": str(root), "dataset_dir": str(data), "amp": False})
    return parser


def around(mask: Any) -> SpatialCrop:
    """A crop to the mask and a margin."""
    inside = mask[0].nonzero()
    low, high = inside.min(dim=0).values - MARGIN, inside.max(dim=0).values + 1 + MARGIN
    return SpatialCrop(roi_start=low.clamp(min=0), roi_end=high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    grading = bundle("hippocampus_mri_dvpt_vit_classification", ["train", "evaluate"], data)
    segmenting = bundle("hippocampus_mri_dvpt_unetr_segmentation", ["inference"], data)
    segmenter = freeze_backbone(segmenting.get_parsed_content("network")).eval()
    grader = share_backbone(grading.get_parsed_content("network_def"), segmenter)
    load_adapter(grader, grading.get_parsed_content("adapter_path"), labels=grading.get_parsed_content("labels")).eval()
    same = dict(segmenter.vit.named_parameters())
    shared = sum(p.numel() for name, p in grader.named_parameters() if p is same.get(name))
    print(f"{shared:,} parameters of the two networks are the same tensors")

    cases, thresholds = (grading.get_parsed_content(key) for key in ("cases", "thresholds_ml"))
    loaded = {part: [(LoadVolume()(c["image"]), LoadVolume(3)(c["label"])) for c in cases[part]] for part in cases}
    truth = {part: torch.cat([VolumeGrade(thresholds)(mask) for _, mask in pairs]) for part, pairs in loaded.items()}
    sizes = {part: np.array([[*image.shape[1:], 1.0] for image, _ in pairs]) for part, pairs in loaded.items()}
    volumes = [
        float((mask > 0).sum()) * abs(float(torch.linalg.det(mask.affine[:3, :3]))) / 1000
        for _, mask in loaded["training"]
    ]
    weights = np.linalg.lstsq(sizes["training"], np.array(volumes), rcond=None)[0]
    found: dict[str, Any] = {
        "image size alone": np.searchsorted(thresholds, sizes["validation"] @ weights, side="right")
    }

    prepare = Compose(grading.get_parsed_content("validate#preprocessing").transforms[1:])
    decide = grading.get_parsed_content("validate#postprocessing")
    inferer = segmenting.get_parsed_content("inferer")
    steps = Compose(segmenting.get_parsed_content("preprocessing").transforms[1:])
    grades: dict[str, list] = {"grading adapter": [], "grading adapter, cropped anew": [], "segmentation adapter": []}
    with torch.inference_mode():
        for image, mask in tqdm(loaded["validation"]):
            for name, picture in (("grading adapter", image), ("grading adapter, cropped anew", around(mask)(image))):
                prepared = prepare({"image": picture, "label": mask})["image"]
                grades[name].append(int(decide({"pred": grader(prepared[None])[0]})["grade"]))
            pred = inferer(steps({"image": image})["image"][None], segmenter)[0].argmax(dim=0, keepdim=True)
            millilitres = float((pred > 0).sum()) / 1000  # on the grid of 1 mm
            grades["segmentation adapter"].append(int(np.searchsorted(thresholds, millilitres, side="right")))
    for name, values in {**grades, **found}.items():
        result = kappa_interval(torch.as_tensor(np.asarray(values)), truth["validation"], len(thresholds) + 1)
        print(f"{name:<30} {result.kappa:.3f} ({result.low:.3f} to {result.high:.3f})")


if __name__ == "__main__":
    main()
