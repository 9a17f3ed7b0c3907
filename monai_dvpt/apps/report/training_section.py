# SPDX-License-Identifier: Apache-2.0
"""How a training went, and what it cost."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai_dvpt.utils import is_number

from .charts import curve
from .files import Reader
from .model import Gallery, Picture, Section, Table, in_words, megabytes, number, seconds

__all__ = ["METRICS", "cost_section", "metric_in_words", "training_section"]

METRICS = {
    "val_mean_dice": "mean Dice",
    "val_dice": "Dice",
    "val_hd95_mm": "HD95, mm",
    "val_hd95_pixels": "HD95, pixels",
    "val_kappa": "quadratic kappa",
    "val_kappa_per_output": "quadratic kappa of each output",
    "val_accuracy": "accuracy",
    "val_ece": "expected calibration error",
    "val_adaptive_ece": "adaptive calibration error",
    "val_brier": "Brier score",
}
MAX_CURVES = 6
FULL_MODEL, ADAPTER = "model.pt", "adapter_best.safetensors"


def metric_in_words(name: str) -> str:
    return METRICS.get(name, name.removeprefix("val_").replace("_", " "))


def training_section(folder: Path, reader: Reader) -> Section:
    """From ``report.json``, ``history.csv`` and the TensorBoard files of a training; without blocks where none are."""
    section = Section("Training")
    report = reader.json(folder / "report.json")
    if rows := list(_scores(report)):
        epochs = [f"{word} epoch ({_at(report, word, 'epoch')})" for word in ("best", "last")]
        section.blocks.append(Table("Scores of the validation cases", ["metric", *epochs], rows))
    pictures = list(_curves(folder, reader))
    if pictures:
        section.blocks.append(Gallery("Curves", pictures))
    settings = report.get("settings")
    if isinstance(settings, Mapping):
        left_out = ("cases", "adapter_sha256", "list_sha256")  # numbers that say nothing to people
        rows = [[key, in_words(value)] for key, value in settings.items() if key not in left_out]
        cases = settings.get("cases")
        if isinstance(cases, Mapping):
            rows += [[f"{part} cases", cases[part]] for part in ("training", "validation") if part in cases]
        section.blocks.append(Table("Settings", ["setting", "value"], rows, folded=True))
    return section


def cost_section(train: Path, inference: Path, reader: Reader) -> Section:
    """Time, memory, parameters and sizes of files."""
    section = Section("What it cost")
    report = reader.json(train / "report.json")
    rows: list[list[str]] = []
    if is_number(took := report.get("seconds")):
        rows.append(["training", f"{seconds(took)}, {number(report.get('epochs'))} epochs"])
        section.key_facts.append(("training time", seconds(took), ""))
    if is_number(memory := report.get("peak_memory_mib")):
        rows.append(["peak memory of the training", f"{memory:,.0f} MiB"])
    network = _mapping(_mapping(report.get("parameters")).get("network"))
    if is_number(total := network.get("total")) and is_number(trained := network.get("trainable")):
        share = 100 * trained / max(1, total)
        rows.append(["trained parameters", f"{number(trained)} of {number(total)} ({share:.2f} %)"])
    sizes = _mapping(report.get("file_bytes"))
    adapter, full = sizes.get(ADAPTER), sizes.get(FULL_MODEL)
    if is_number(adapter):
        rows.append(["adapter", f"{megabytes(adapter)} ({number(adapter)} bytes)"])
        section.key_facts.append(("adapter", megabytes(adapter), ""))
    if is_number(full):
        times = f", {full / adapter:.0f} times the adapter" if is_number(adapter) and adapter else ""
        rows.append(["full model", f"{megabytes(full)} ({number(full)} bytes){times}"])
    done = [row for row in reader.table(inference / "summary.csv") if row.get("status") == "done"]
    if times_of := [float(row["seconds"]) for row in done if _is_decimal(row.get("seconds", ""))]:
        rows.append(["inference, per case", f"{statistics.median(times_of):.1f} s (median of {len(times_of)})"])
    if rows:
        section.blocks.append(Table("Time, memory and size", ["of", "cost"], rows))
    parts = [
        [part, count.get("trainable"), count.get("total")]
        for part, count in _mapping(report.get("parameters")).items()
        if isinstance(count, Mapping)
    ]
    if parts:
        shown = [[part, number(trained), number(total)] for part, trained, total in parts]
        section.blocks.append(Table("Parameters of each part", ["part", "trained", "all"], shown))
    return section


def _scores(report: Mapping[str, Any]) -> Iterator[list[str]]:
    best, last = (_mapping(_mapping(report.get(word)).get("metrics")) for word in ("best", "last"))
    for name in last or best:
        pair = [metrics.get(name) for metrics in (best, last)]
        if isinstance(pair[0], Mapping) or isinstance(pair[1], Mapping):
            for label in _mapping(pair[1]) or _mapping(pair[0]):
                values = [number(_mapping(value).get(label), 4) for value in pair]
                yield [f"{metric_in_words(name)}: {label}", *values]
        else:
            yield [metric_in_words(name), *(number(value, 4) for value in pair)]


def _curves(folder: Path, reader: Reader) -> Iterator[Picture]:
    rows = reader.table(folder / "history.csv", "epoch", "loss")
    losses = [(float(r["epoch"]), float(r["loss"])) for r in rows if _is_decimal(r["epoch"]) and _is_decimal(r["loss"])]
    if losses:
        yield _curve(losses, "training loss")
    for name, points in list(_logged(folder / "tensorboard" / "validation").items())[:MAX_CURVES]:
        yield _curve(points, metric_in_words(name))


def _curve(points: list[tuple[float, float]], name: str) -> Picture:
    (_, first), (last_epoch, last) = points[0], points[-1]
    alt = f"Curve of the {name} over {len(points)} epochs, from {first:.4g} to {last:.4g} in epoch {last_epoch:.0f}."
    return Picture(curve(points, name), alt, f"{name[:1].upper()}{name[1:]} by epoch")


def _logged(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """The scalars of TensorBoard files by name, with the last value of each epoch."""
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # takes a second to import

    logger = logging.getLogger("tensorboard")
    level = logger.level
    logger.setLevel(logging.WARNING)  # it tells of every file
    try:
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    finally:
        logger.setLevel(level)
    curves = {}
    for name in events.Tags()["scalars"]:
        values = {float(event.step): float(event.value) for event in events.Scalars(name)}
        points = [(step, value) for step, value in sorted(values.items()) if is_number(value)]
        if points:
            curves[name] = points
    if "val_kappa_per_output" in curves and "val_kappa" in curves:
        curves.pop("val_kappa_per_output")  # the same, where there is one output
    return curves


def _at(report: Mapping[str, Any], *keys: str) -> Any:
    value: Any = report
    for key in keys:
        value = _mapping(value).get(key)
    return number(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_decimal(text: str) -> bool:
    try:
        return is_number(float(text))
    except ValueError:
        return False
