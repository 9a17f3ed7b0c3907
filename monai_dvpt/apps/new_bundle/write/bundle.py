# SPDX-License-Identifier: Apache-2.0
"""Writes a bundle: its configs from templates, its label maps and its list."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from monai_dvpt.data.datalist import CHECK
from monai_dvpt.utils import InputError, atomic_path, file_sha256, fingerprint, naming, progress, to_json
from monai_dvpt.utils.typed import path_for_config

from ..check.rules import name_problem
from ..model import Collection, Finding, Measurement
from ..plan.make_plan import Plan
from ..plan.planning import Data
from .labels import LabelValues, write_label_maps
from .lists import write_grade_list, write_mask_list, write_volume_list
from .metadata import about, metadata_of, title_of

__all__ = ["check_new", "update_lists", "write_bundle"]

CONFIGS = ("train.yaml", "evaluate.yaml", "inference.yaml")


def write_bundle(
    output: str | os.PathLike,
    collection: Collection,
    measurements: Sequence[Measurement | None],
    plan: Plan,
    parts: Mapping[str, Sequence[int]],
    findings: Sequence[Finding] = (),
    finish: Callable[[Path], Any] = lambda _: None,
) -> None:
    """
    Writes a bundle that ``python -m monai.bundle run`` trains. The images stay where they are; the label maps are
    written to its folder ``labels``. The folder is there as a whole or not at all.

    Args:
        output: folder that does not exist.
        collection: the cases.
        measurements: one for each case; None for a case that is in no part.
        plan: of these cases.
        parts: indices of the cases by part.
        findings: what was odd, for the README.
        finish: writes more into the folder before it gets its name.

    Raises:
        InputError: if ``output`` exists or cannot be written, a label map cannot be read, or a name cannot stand in a
            config; names what and why.
    """
    output = Path(output)
    _check_names(collection)
    with _whole_folder(output) as folder:
        labels = LabelValues(collection.labels)
        lists = _write_lists(folder, collection, parts, labels)
        _write_check(lists, collection, measurements, parts, findings)
        training = [(collection.cases[index], each) for index in parts["training"] if (each := measurements[index])]
        context = _context(output, Data(collection, training, plan.backbone), plan, parts, labels, findings)
        _write_texts(folder, context)
        _write(folder / "configs" / "metadata.json", to_json(metadata_of(context)) + "\n")
        _write(folder / "configs" / "plan.json", to_json(plan.as_json()) + "\n")
        finish(folder)


def update_lists(
    bundle: str | os.PathLike,
    collection: Collection,
    measurements: Sequence[Measurement | None],
    parts: Mapping[str, Sequence[int]],
    findings: Sequence[Finding] = (),
) -> None:
    """
    Writes the label maps and the list of a bundle anew, as its folder of data is now; settings and adapters stay.

    Raises:
        InputError: if the labels or grades are not those of the bundle, which needs another network then.
    """
    config = _settings(Path(bundle) / "configs" / "train.yaml")
    labels = LabelValues(collection.labels, config.get("label_sets", ()))
    kind = "labels" if collection.task == "segmentation" else "grades" if collection.task == "grading" else "classes"
    if collection.channels != [str(name) for name in config.get("channels", ())]:
        stay = f"must stay as they are, {config.get('channels', [])}"
        raise InputError(f"{bundle}: the channels {stay}, the data have {collection.channels}.")
    inside = [str(name) for name in config.get("file_channels", config.get("channels", ()))]
    if collection.file_channels != inside:
        raise InputError(
            f"{bundle}: the order of channels inside files must stay as it is, {inside}, the data have "
            f"{collection.file_channels}."
        )
    found = labels.names if kind == "labels" else collection.labels
    if found != [str(name) for name in config.get(kind, ())]:
        raise InputError(f"{bundle}: the {kind} must stay as they are, {config.get(kind)}, the data have {found}.")
    known = len(labels.label_sets)
    for indices in parts.values():
        for index in indices:
            labels.prepare(collection.cases[index].labelled, measurements[index])
    if len(labels.label_sets) > known:
        rule = "must be whole, or drawn in part as before"
        raise InputError(f"{bundle}: label maps {rule}, some are of {labels.label_sets[known:]}; write a new bundle.")
    folder = Path(bundle) / "labels"
    before = set(folder.iterdir()) if folder.is_dir() else set()
    numbers = [int(path.name) for path in before if path.name.isdecimal()]
    lists = _write_lists(Path(bundle), collection, parts, labels, str(max(numbers, default=1) + 1))
    for path in before:  # the list, which is replaced as one, no longer names them
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    _write_check(lists, collection, measurements, parts, findings)


def _settings(path: Path) -> dict[str, Any]:
    """The settings in a config; an InputError if it cannot be read."""
    with naming(path):
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise InputError(f"cannot be read: {error}") from error
        if not isinstance(config, dict):
            raise InputError(f"must hold settings by name, holds {type(config).__name__}.")
        return config


def _check_names(collection: Collection) -> None:
    for kind, names in collection.kinds_of_names():
        for name in names:
            if problem := name_problem(name):
                raise InputError(f"{collection.root}: the name of a {kind} {problem}, got {name!r}.")


def check_new(output: Path) -> None:
    """
    Raises:
        InputError: if there is something of this name already.
    """
    if os.path.lexists(output):
        hint = "a bundle is written to a new folder; --update brings one up to date with its data"
        raise InputError(f"{output}: must not exist: {hint}.")


@contextmanager
def _whole_folder(output: Path) -> Iterator[Path]:
    """A temporary folder beside ``output`` that is renamed to it in the end, or removed after an error."""
    check_new(output)
    with naming(output):
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-", suffix=".part"))
        except OSError as error:
            raise InputError(f"cannot be written: {error}") from error
    try:
        yield folder
        os.umask(umask := os.umask(0))
        folder.chmod(0o777 & ~umask)  # mkdtemp allows only the owner
        os.rename(folder, output)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise InputError(f"{output}: cannot be written: {error}") from error
        raise


def _write_lists(
    folder: Path, collection: Collection, parts: Mapping[str, Sequence[int]], labels: LabelValues, below: str = ""
) -> Path:
    """
    Writes the list, and before it for segmentation the label maps, in a folder of ``labels`` if ``below`` names one, so
    that maps that an earlier list names stay until this list is there. Returns the list.
    """
    configs = folder / "configs"
    if collection.task != "segmentation":
        return write_grade_list(configs, collection, parts)
    indices = sorted(index for section in parts.values() for index in section)
    (folder / "labels" / below).mkdir(parents=True, exist_ok=True)
    shown = progress(indices, "write the label maps")
    written = write_label_maps(folder / "labels" / below, collection, shown, labels)
    files = {index: f"{below}/{name}" if below else name for index, name in written}
    if collection.spatial_dims == 3:
        return write_volume_list(configs, collection, parts, files)
    return write_mask_list(configs, collection, parts, files)


def _write_check(
    datalist: Path,
    collection: Collection,
    measurements: Sequence[Measurement | None],
    parts: Mapping[str, Sequence[int]],
    findings: Sequence[Finding],
) -> None:
    """``check.json``: what was measured of each case, what was odd, and which list this is of; for the report."""
    cases, contents = {}, []
    for part, indices in parts.items():
        for index in indices:
            if (each := measurements[index]) is not None:
                facts = {"part": part, "size": each.size, "spacing_mm": each.spacing_mm, "range": each.range}
                case = collection.cases[index]
                cases[case.name] = {**facts, "voxels": dict(each.voxels), "grades": dict(case.grades)}
                label = [each.label_content, case.labelled, dict(case.grades)]
                contents.append([part, case.name, case.patient, each.content, *label])
    check = {
        "task": collection.task,
        "spatial_dims": collection.spatial_dims,
        "labels": collection.labels,
        "outputs": collection.outputs,
        "findings": [asdict(finding) for finding in findings],
        "cases": cases,
        "list": {
            "sha256": fingerprint(sorted(contents, key=str)),
            "file_sha256": file_sha256(datalist),
        },
    }
    _write(datalist.parent / CHECK, to_json(check) + "\n")


def _context(
    output: Path,
    data: Data,
    plan: Plan,
    parts: Mapping[str, Sequence[int]],
    labels: LabelValues,
    findings: Sequence[Finding],
) -> dict[str, Any]:
    """What the templates may use."""
    collection = data.collection
    segmentation = collection.task == "segmentation"
    return {
        "title": title_of(output.name),
        "about": about(collection),
        "task": collection.task,
        "spatial_dims": collection.spatial_dims,
        "ordered": collection.task == "grading",
        "data": path_for_config(os.path.abspath(collection.root)),
        "backbone": None if plan.backbone is None else path_for_config(plan.backbone),
        "vit": data.vit,
        "plan": plan.values,
        "reasons": plan.choices,
        "modality": data.modality,
        "channels": collection.channels,
        "file_channels": collection.file_channels,
        "names": labels.names if segmentation else [],
        "label_sets": labels.label_sets,
        "outputs": collection.outputs,
        "grades": collection.labels,
        "names_key": "grades" if collection.task == "grading" else "classes",
        "counts": {part: len(indices) for part, indices in parts.items() if indices},
        "findings": findings,
    }


def _write_texts(folder: Path, context: Mapping[str, Any]) -> None:
    family = "classification"
    if context["task"] == "segmentation":
        family = "volume_segmentation" if context["spatial_dims"] == 3 else "picture_segmentation"
    templates = Environment(
        loader=PackageLoader(__package__ or "", "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=False,  # no HTML
    )
    templates.filters["yaml"] = _yaml
    files = {f"configs/{name}": f"{family}/{name}" for name in CONFIGS}
    common = (
        "configs/multi_gpu_train.yaml",
        "configs/logging.conf",
        "docs/README.md",
        "docs/data_license.txt",
        "LICENSE",
    )
    files |= {name: f"common/{Path(name).name}" for name in common}
    for name, template in files.items():
        _write(folder / name, templates.get_template(template).render(context))


def _yaml(value: Any) -> str:
    """A value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")
