# SPDX-License-Identifier: Apache-2.0
"""Inference over many inputs, some of which may be bad."""

from __future__ import annotations

import csv
import glob
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.data import DataLoader, Dataset
from monai.engines import Evaluator
from torch.utils.data import Subset

from monai_dvpt import __version__
from monai_dvpt.data.cases import SUMMARY
from monai_dvpt.networks.adapter import tensors_sha256
from monai_dvpt.utils import (
    InputError,
    describe,
    fingerprint,
    progress,
    reason,
    remove_leftovers,
    root_cause,
    write_csv,
)

__all__ = ["run_cases"]

logger = logging.getLogger(__name__)

COLUMNS = ("name", "status", "reason", "seconds", "series_uid", "files", "fingerprint")
Row = dict[str, str]


def run_cases(
    evaluator: Evaluator,
    dataset: Dataset,
    output_dir: str | os.PathLike,
    settings: Any = None,
    resume: bool = True,
) -> None:
    """
    Runs an evaluator on one case after the other; a case that fails does not stop the others. ``summary.csv`` in
    ``output_dir``, rewritten after every case, lists each with its status, "done" or "failed", and the reason. Cases of
    an earlier run with the same input, network and settings are skipped if their results are still there; before other
    cases run again, their old results are removed.

    Args:
        evaluator: evaluator whose handlers write the results, to files whose names begin with the case's. Its
            state has the names of skipped cases as "done_before".
        dataset: cases with a "name", and the transforms that load them; one with "refused" fails for that reason, and
            messages about a "private" one name no path.
        output_dir: folder for the summary.
        settings: what else results depend on besides image, network, loading transforms and inferer, such as
            handlers and transforms of the results; they are compared by their attributes.
        resume: whether to skip cases that are done.

    Raises:
        InputError: after the last case, if any failed; names each with its reason.
    """
    folder = Path(output_dir)
    remove_leftovers(folder)
    before = _read(folder / SUMMARY)
    network = [tensors_sha256(evaluator.network.state_dict()), repr(evaluator.network)]
    parts = [dataset.transform, getattr(evaluator, "inferer", None), settings]
    run = fingerprint([*network, __version__, describe(parts)])
    keys = {case["name"]: _fingerprint(case, run) for case in dataset.data}
    done = [name for name, key in keys.items() if resume and _is_done(before.get(name), key, folder)]
    rows = dict(before)
    evaluator.interrupt_resume_enabled = False  # ignite would resume a failed run where it stopped, and do nothing
    evaluator.state.epoch_length = 1  # else each case would run as often as there are cases
    evaluator.state.done_before = done
    noise, evaluator.logger.disabled = evaluator.logger.disabled, True  # it would log failures again
    if done:
        logger.info(f"{len(done)} of {len(keys)} are done already")
    try:
        left = [index for index, case in enumerate(dataset.data) if case["name"] not in done]
        for index in progress(left, "inference", done=len(done)):
            case = dataset.data[index]
            name, started = case["name"], time.monotonic()
            for path in _results(before.get(name), folder):
                path.unlink(missing_ok=True)
            there = _files(folder, name)
            why = _run_case(evaluator, dataset, index)
            rows[name] = {
                "name": name,
                "status": "failed" if why else "done",
                "reason": why,
                "seconds": f"{time.monotonic() - started:.1f}",
                "series_uid": case.get("series_uid", ""),
                "files": "/".join(sorted(file for file, at in _files(folder, name).items() if there.get(file) != at)),
                "fingerprint": keys[name],
            }
            rows = {**_read(folder / SUMMARY), **rows}  # another command may have added rows
            write_csv(folder / SUMMARY, COLUMNS, rows.values())
    finally:
        evaluator.logger.disabled = noise
    failed = [f"{name}: {rows[name]['reason']}" for name in keys if rows[name]["status"] == "failed"]
    logger.info(f"{len(keys) - len(failed)} of {len(keys)} are done")
    if failed:
        raise InputError(f"{len(failed)} of {len(keys)} inputs failed: " + "; ".join(failed))


def _run_case(evaluator: Evaluator, dataset: Dataset, index: int) -> str:
    """Runs a case; returns why it failed, or an empty text."""
    case = dataset.data[index]
    try:
        if "refused" in case:
            raise InputError(case["refused"])
        evaluator.data_loader = DataLoader(Subset(dataset, [index]), batch_size=1)
        evaluator.run()
        return ""
    except Exception as error:
        why, expected = reason(error), isinstance(root_cause(error), InputError)
        if case.get("private"):
            why, expected = _without_paths(why, case), True
        why = why.encode(errors="backslashreplace").decode()  # of file names that are not UTF-8
        logger.error(f"{case['name']}: failed: {why}", exc_info=not expected)
        return why


def _paths(case: Mapping[str, Any]) -> list[Path]:
    image = case["image"]
    return [Path(image)] if isinstance(image, (str, os.PathLike)) else [Path(path) for path in image]


def _without_paths(text: str, case: Mapping[str, Any]) -> str:
    """``text`` with the case's name instead of paths and file names, which could name the patient."""
    paths = _paths(case)
    for part in [*map(str, paths), *{str(path.parent) for path in paths}, *(path.name for path in paths)]:
        text = text.replace(part, case["name"])
    return text


def _read(summary: Path) -> dict[str, Row]:
    """Rows of earlier runs by name."""
    if not summary.is_file():
        return {}
    csv.field_size_limit(1 << 30)  # reasons may be long
    with open(summary, newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        return {row["name"]: row for row in reader} if tuple(reader.fieldnames or ()) == COLUMNS else {}


def _files(folder: Path, name: str) -> dict[str, int]:
    """Time of the last change of each file that may belong to a case."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob(f"{glob.escape(name)}_*")}


def _results(row: Row | None, folder: Path) -> list[Path]:
    """Files of the results of a row."""
    return [folder / name for name in filter(None, row["files"].split("/"))] if row else []


def _fingerprint(case: Mapping[str, Any], run: str) -> str:
    """Fingerprint of a case's files (name, size, time of change), its series, and the run."""
    paths = [path for path in _paths(case) if path.is_file()]
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return fingerprint([files, case.get("series_uid"), run])


def _is_done(row: Row | None, key: str, folder: Path) -> bool:
    """Whether a row says that the same case is done, and its results are still there."""
    same = row is not None and (row["status"], row["fingerprint"]) == ("done", key)
    return same and all(path.is_file() for path in _results(row, folder))
