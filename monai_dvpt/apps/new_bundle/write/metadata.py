# SPDX-License-Identifier: Apache-2.0
"""``metadata.json`` of a bundle, by the schema of MONAI's model zoo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from monai_dvpt.data.dicom_writers import private_code

from ..model import Collection

__all__ = ["about", "metadata_of", "title_of"]

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
PACKAGES = (
    *("monai-dvpt", "nibabel", "itk", "pydicom", "pillow", "pytorch-ignite", "einops", "safetensors", "scipy"),
    *("fire", "matplotlib", "tensorboard"),
)
CATEGORY = ["91723000", "SCT", "Anatomical Structure"]
DVPT = (
    "He, A. et al. DVPT: Dynamic Visual Prompt Tuning of Large Pre-trained Models for Medical Image Analysis. "
    "arXiv 2307.09787"
)
REFERENCES = {
    "DVPTUNETR": "Hatamizadeh, A. et al. UNETR: Transformers for 3D Medical Image Segmentation. arXiv 2103.10504",
    "other": "Dosovitskiy, A. et al. An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale. "
    "arXiv 2010.11929",
}


def title_of(name: str) -> str:
    """Words from the name of a bundle's folder."""
    words = name.replace("_", " ").replace("-", " ").strip()
    return words[:1].upper() + words[1:]


def about(collection: Collection) -> str:
    """What a bundle does, in a few words."""
    images = _images(collection.spatial_dims)
    if collection.task == "segmentation":
        return f"Segmentation of {', '.join(collection.labels)} in {images}"
    return f"{'Grades' if collection.task == 'grading' else 'Classes'} of {', '.join(collection.outputs)} of {images}"


def _images(dims: int) -> str:
    return "volumes" if dims == 3 else "pictures"


def metadata_of(context: Mapping[str, Any]) -> dict[str, Any]:
    """
    Args:
        context: of the templates, see ``write.py``.
    """
    segmentation, dims = context["task"] == "segmentation", context["spatial_dims"]
    plan, names = context["plan"], context["names"]
    labels = names if segmentation else [f"{o} {grade}" for o in context["outputs"] for grade in context["grades"]]
    images = _images(dims)
    metadata: dict[str, Any] = {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "first version"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version(name) for name in PACKAGES},
        "name": context["title"],
        "task": context["about"],
        "description": f"{context['about']}, by a frozen vision transformer that dynamic visual prompt tuning adapts.",
        "authors": "not stated",
        "copyright": "not stated",
        "data_source": "a folder of images of the user of this bundle",
        "data_type": "NIfTI, NRRD, MetaImage or DICOM" if dims == 3 else "PNG, JPEG, DICOM or NIfTI",
        "image_classes": f"{images}{f', {m}' if (m := context['modality']) else ''}",
        "label_classes": _classes(segmentation, labels, context),
        "pred_classes": _predicted(segmentation, labels),
        "eval_metrics": {},
        "intended_use": "Research only. Not a medical device; not for diagnosis.",
        "references": [DVPT, REFERENCES.get(plan["network"], REFERENCES["other"])],
    }
    if segmentation and dims == 3:
        metadata["segment_codes"] = {
            name: {"category": CATEGORY, "type": list(private_code(name))} for name in names[1:]
        }
    return {**metadata, "network_data_format": _network(context, labels)}


def _classes(segmentation: bool, labels: Sequence[str], context: Mapping[str, Any]) -> str:
    if segmentation:
        return "single channel, " + ", ".join(f"{value} {name}" for value, name in enumerate(labels))
    last = len(context["grades"]) - 1
    return f"a whole number of each of {', '.join(context['outputs'])}, from 0 to {last}, -1 if it is not known"


def _predicted(segmentation: bool, labels: Sequence[str]) -> str:
    if segmentation:
        channels = ", ".join(f"channel {value} {name}" for value, name in enumerate(labels))
        return f"{len(labels)} channels OneHot data, {channels}"
    return f"{len(labels)} logits: {', '.join(labels)}"


def _network(context: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    plan, dims, segmentation = context["plan"], context["spatial_dims"], context["task"] == "segmentation"
    shape = plan["roi_size"] if dims == 3 else [plan["img_size"]] * 2
    windows = segmentation and dims == 3
    channels = (context["channels"] or ["image"]) if dims == 3 else ["red", "green", "blue"]
    rules = plan["intensity"].get("channels", {"": plan["intensity"]}).values()
    image = {
        "type": "image",
        "format": "hounsfield" if context["modality"] == "CT" else "magnitude",
        "modality": context["modality"] or "n/a",
        "num_channels": len(channels),
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": [0, 1] if dims == 3 and all(rule["rule"] == "range" for rule in rules) else [],
        "is_patch_data": windows,
        "channel_def": {str(number): name for number, name in enumerate(channels)},
    }
    pred = {
        "type": "image" if segmentation else "logits",
        "format": "segmentation" if segmentation else "classes",
        "num_channels": len(labels),
        "spatial_shape": shape if segmentation else [],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": windows,
        "channel_def": {str(value): name for value, name in enumerate(labels)},
    }
    return {"inputs": {"image": image}, "outputs": {"pred": pred}}
