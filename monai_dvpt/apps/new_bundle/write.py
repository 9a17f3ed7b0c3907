# SPDX-License-Identifier: Apache-2.0
"""Writes the files of a new bundle."""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from importlib import metadata as versions
from importlib.resources import files
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from monai_dvpt import __version__
from monai_dvpt.data.dicom_writers.codes import private_code
from monai_dvpt.utils import InputError, to_json

from .measure import load_image
from .model import IGNORED, Case, Collection, Finding, Measurement
from .plan import Plan

__all__ = ["write_bundle", "write_lists"]

CONFIGS = ("train.yaml", "evaluate.yaml", "inference.yaml", "multi_gpu_train.yaml")
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
REQUIRED = ("nibabel", "itk", "pydicom", "pillow", "pytorch-ignite", "einops", "safetensors", "scipy", "fire")
"""Packages beside MONAI, torch, numpy and this one that a bundle needs, as ``metadata.json`` states them."""


def write_bundle(
    output: Path,
    collection: Collection,
    measured: Sequence[Measurement | None],
    plan: Plan,
    parts: Mapping[str, Sequence[int]],
    findings: Sequence[Finding],
) -> None:
    """
    Writes a bundle, whole or not at all: configs, list of cases, label maps, plan, findings, README.

    Args:
        output: folder that does not exist.
        collection: the cases.
        measured: one entry for each case.
        plan: the settings.
        parts: indices of the cases by part.
        findings: what is odd about the data.

    Raises:
        InputError: if ``output`` exists.
    """
    if output.exists():
        raise InputError(f"{output}: must not exist; a bundle is brought up to date with --update.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".new-") as temporary:
        folder = Path(temporary) / "bundle"
        for name in ("configs", "docs", "models"):
            (folder / name).mkdir(parents=True)
        _render(folder, collection, plan)
        write_lists(folder, collection, measured, parts, findings)
        (folder / "configs" / "plan.json").write_text(to_json(plan.as_json()), encoding="utf-8")
        os.rename(folder, output)


def write_lists(
    bundle: Path,
    collection: Collection,
    measured: Sequence[Measurement | None],
    parts: Mapping[str, Sequence[int]],
    findings: Sequence[Finding],
) -> None:
    """Writes into a bundle what follows from the cases alone: the list, the label maps, and ``check.json``."""
    labels = bundle / "labels"
    written: dict[int, str] = {}
    if collection.task == "segmentation":
        labels.mkdir(exist_ok=True)
        for indices in parts.values():
            for index in indices:
                written[index] = _write_label(collection, collection.cases[index], labels)
    if collection.task == "segmentation" and collection.spatial_dims == 3:
        sections = {
            part: [{"image": _below(collection, i), "label": written[i]} for i in indices]
            for part, indices in parts.items()
        }
        (bundle / "configs" / "datalist.json").write_text(to_json(sections), encoding="utf-8")
    else:
        _write_table(bundle / "configs" / "datalist.csv", collection, parts, written)
    (bundle / "configs" / "check.json").write_text(to_json(_check(collection, measured, parts, findings)), "utf-8")


def _below(collection: Collection, index: int) -> Any:
    """The path of an image relative to the folder of data; of a series its folder, or its files if it has others."""
    image, root = collection.cases[index].image, os.path.abspath(collection.root)
    if not isinstance(image, str):
        folder = os.path.dirname(image[0])
        if sorted(entry.path for entry in os.scandir(folder)) != sorted(image):
            return [os.path.relpath(os.path.abspath(path), root) for path in image]
        image = folder
    return os.path.relpath(os.path.abspath(image), root)


def _write_label(collection: Collection, case: Case, folder: Path) -> str:
    """Writes the label map of a case with the values of the collection's labels; returns the name of the file."""
    image = load_image(case, collection.spatial_dims)
    assert case.read_label is not None
    label, names = case.read_label(image)
    value_of = {name: value for value, name in enumerate(collection.labels, start=1)}
    value_of[IGNORED] = len(collection.labels) + 1  # the set of all labels
    mapped = np.zeros(label.shape, np.uint8)
    for value, name in names.items():
        mapped[label == value] = value_of.get(name, 0)
    if collection.spatial_dims == 2:
        name = f"{case.name}.png"
        Image.fromarray(mapped).save(folder / name)
        return name
    name = f"{case.name}.nii.gz"
    volume = nib.Nifti1Image(mapped, image.affine.numpy())
    volume.header.set_xyzt_units("mm")
    nib.save(volume, folder / name)
    return name


def _write_table(
    file: Path, collection: Collection, parts: Mapping[str, Sequence[int]], masks: Mapping[int, str]
) -> None:
    segments = collection.task == "segmentation"
    columns = ["image", *(["mask"] if segments else collection.outputs), "patient", "split"]
    with open(file, "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(columns)
        for part, indices in parts.items():
            for index in indices:
                case = collection.cases[index]
                cells = [masks[index]] if segments else [case.grades.get(output, "") for output in collection.outputs]
                table.writerow([_below(collection, index), *cells, case.patient, part])


def _check(
    collection: Collection,
    measured: Sequence[Measurement | None],
    parts: Mapping[str, Sequence[int]],
    findings: Sequence[Finding],
) -> dict[str, Any]:
    """The fingerprint and the findings, for the report."""
    cases = {}
    for part, indices in parts.items():
        for index in indices:
            each, case = measured[index], collection.cases[index]
            assert each is not None
            facts = {"part": part, "size": each.size, "spacing_mm": each.spacing_mm, "range": each.range}
            cases[case.name] = {**facts, "voxels": each.voxels, "grades": case.grades}
    return {
        "task": collection.task,
        "spatial_dims": collection.spatial_dims,
        "labels": collection.labels,
        "outputs": collection.outputs,
        "findings": [vars(finding) for finding in findings],
        "cases": cases,
    }


def _render(folder: Path, collection: Collection, plan: Plan) -> None:
    """The configs, the README, and the licence."""
    environment = Environment(
        loader=PackageLoader("monai_dvpt.apps.new_bundle"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters["yaml"] = _flow
    facts = {
        "data": os.path.abspath(collection.root),
        "task": collection.task,
        "spatial_dims": collection.spatial_dims,
        "outputs": collection.outputs,
        "classes": collection.labels,
        "title": folder_title(collection),
        "choices": plan.choices,
        "datalist": "datalist.json" if plan.template == "volume_segmentation" else "datalist.csv",
        **plan.values(),
    }
    for name in CONFIGS:
        text = environment.get_template(f"{plan.template}/{name}.j2").render(facts)
        (folder / "configs" / name).write_text(text, encoding="utf-8")
    (folder / "docs" / "README.md").write_text(environment.get_template("README.md.j2").render(facts), "utf-8")
    for source, target in (("logging.conf", "configs"), ("data_license.txt", "docs"), ("LICENSE", ".")):
        shutil.copyfile(str(files("monai_dvpt.apps.new_bundle") / "templates" / source), folder / target / source)
    (folder / "configs" / "metadata.json").write_text(to_json(_metadata(collection, plan)) + "\n", encoding="utf-8")


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()


def folder_title(collection: Collection) -> str:
    """A name for the bundle, by what it does."""
    what = ", ".join(collection.outputs or collection.labels)
    verb = {"segmentation": "Segmentation of", "grading": "Grades of", "classification": "Classes of"}
    return f"{verb[collection.task]} {what} by a DVPT-tuned vision transformer"


def _metadata(collection: Collection, plan: Plan) -> dict[str, Any]:
    """``metadata.json`` as MONAI's schema asks for it."""
    values = plan.values()
    volume = plan.template == "volume_segmentation"
    segments = collection.task == "segmentation"
    shape = list(values["roi_size"]) if "roi_size" in values else [values["img_size"]] * 2
    channels = 1 if collection.spatial_dims == 3 else 3
    if segments:
        names = ["background", *collection.labels]
    else:
        names = [f"{output} {grade}" for output in collection.outputs for grade in collection.labels]
    kind = {"type": "image", "format": "segmentation"} if segments else {"type": "logits", "format": "classes"}
    colours = ["image"] if channels == 1 else ["red", "green", "blue"]
    given = {"monai_dvpt": "monai-dvpt"}
    described = {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"written by monai_dvpt {__version__} on {date.today().isoformat()}"},
        "monai_version": versions.version("monai"),
        "pytorch_version": versions.version("torch").split("+")[0],
        "numpy_version": versions.version("numpy"),
        "required_packages_version": {
            given["monai_dvpt"]: __version__,
            **{name: versions.version(name) for name in REQUIRED},
        },
        "name": folder_title(collection),
        "task": f"{collection.task.capitalize()} of {'volumes' if collection.spatial_dims == 3 else 'pictures'}",
        "description": "A frozen vision transformer, adapted by dynamic visual prompt tuning. Written from a folder of "
        "data by the command new.",
        "authors": "the owner of the data",
        "copyright": "the owner of the data",
        "data_source": "a folder of the owner's data, which is not part of the bundle",
        "data_type": "NIfTI, NRRD, MetaImage or DICOM" if channels == 1 else "PNG, JPEG, DICOM or NIfTI",
        "image_classes": "single channel" if channels == 1 else "three channels, equal in grey images",
        "label_classes": ", ".join(f"{value} {name}" for value, name in enumerate(names))
        if segments
        else f"for each of {', '.join(collection.outputs)} one of {', '.join(collection.labels)}",
        "pred_classes": f"{len(names)} channels, one for each: {', '.join(names)}",
        "eval_metrics": {},
        "intended_use": "Research only. Not a medical device; not for diagnosis.",
        "references": [
            "He, A. et al. DVPT: Dynamic Visual Prompt Tuning of Large Pre-trained Models for Medical Image Analysis. "
            "arXiv 2307.09787"
        ],
    }
    if volume:
        described["segment_codes"] = {name: {"type": list(private_code(name))} for name in collection.labels}
    image = {
        "type": "image",
        "format": "hounsfield" if values.get("modality") == "CT" else "magnitude",
        "num_channels": channels,
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": volume,
        "channel_def": {str(index): name for index, name in enumerate(colours)},
    }
    if values.get("modality"):
        image["modality"] = values["modality"]
    answer = {
        **kind,
        "num_channels": len(names),
        "spatial_shape": shape if segments else [],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": volume,
        "channel_def": {str(index): name for index, name in enumerate(names)},
    }
    return {**described, "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": answer}}}
