# SPDX-License-Identifier: Apache-2.0
"""Inference over many inputs, of which some may be bad."""

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
from tqdm import tqdm

from monai_dvpt import __version__
from monai_dvpt.data.cases import SUMMARY
from monai_dvpt.networks.adapter import tensors_sha256
from monai_dvpt.utils import InputError, atomic_path, describe, fingerprint, reason, remove_leftovers, root_cause

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
    Runs an evaluator on one case after the other. A case that fails is reported and the others go on; ``summary.csv``
    in ``output_dir``, written anew after every case, lists each with its status, "done" or "failed", and the reason.
    What an earlier run there has done with the same input, network and settings is not done again, if its results are
    still there; before a case is done again, they are removed.

    Args:
        evaluator: evaluator whose handlers write the results, in files whose names begin with that of the case. Its
            state has, as "done_before", the names of what is left out.
        dataset: cases with a "name", and the transforms that load them; one with a "refused" fails for that reason,
            and of one that is "private" no path is told.
        output_dir: folder for the summary.
        settings: what results depend on besides image, network, the transforms that load and the inferer: transforms of
            the results and handlers, for instance, which are told by their attributes.
        resume: whether to leave out what is done.

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
    rows = {**before, **{name: before[name] for name in done}}
    evaluator.interrupt_resume_enabled = False  # ignite would take up a failed run where it stopped, and do nothing
    evaluator.state.epoch_length = 1  # as built it is the number of cases, and each case would run that often
    evaluator.state.done_before = done
    noise, evaluator.logger.disabled = evaluator.logger.disabled, True  # it would log every failure as well
    if done:
        logger.info(f"{len(done)} of {len(keys)} are done already")
    try:
        left = [index for index, case in enumerate(dataset.data) if case["name"] not in done]
        for count, index in enumerate(tqdm(left, desc="cases", initial=len(done), total=len(keys), disable=None), 1):
            case = dataset.data[index]
            name, started = case["name"], time.monotonic()
            _remove(before.get(name), folder)
            there = _files(folder, name)
            why = _run_case(evaluator, dataset, index)
            if not why:
                logger.info(f"{name}: done ({len(done) + count} of {len(keys)})")
            rows[name] = {
                "name": name,
                "status": "failed" if why else "done",
                "reason": why,
                "seconds": f"{time.monotonic() - started:.1f}",
                "series_uid": case.get("series_uid", ""),
                "files": "/".join(sorted(file for file, at in _files(folder, name).items() if there.get(file) != at)),
                "fingerprint": keys[name],
            }
            rows = {**_read(folder / SUMMARY), **rows}  # another command may have added some
            _write(folder / SUMMARY, list(rows.values()))
    finally:
        evaluator.logger.disabled = noise
    failed = [f"{name}: {rows[name]['reason']}" for name in keys if rows[name]["status"] == "failed"]
    if failed:
        raise InputError(f"{len(failed)} of {len(keys)} inputs failed: " + "; ".join(failed))


def _run_case(evaluator: Evaluator, dataset: Dataset, index: int) -> str:
    """Why a case failed, or nothing."""
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
        why = why.encode(errors="backslashreplace").decode()  # of names of files that are not UTF-8
        logger.error(f"{case['name']}: failed: {why}", exc_info=not expected)
        return why


def _paths(case: Mapping[str, Any]) -> list[Path]:
    image = case["image"]
    return [Path(image)] if isinstance(image, (str, os.PathLike)) else [Path(path) for path in image]


def _without_paths(text: str, case: Mapping[str, Any]) -> str:
    """``text`` with the case's name for every path and every name of a file that could name the patient."""
    paths = _paths(case)
    for part in [*map(str, paths), *{str(path.parent) for path in paths}, *(path.name for path in paths)]:
        text = text.replace(part, case["name"])
    return text


def _read(summary: Path) -> dict[str, Row]:
    """The rows of earlier runs, or nothing."""
    if not summary.is_file():
        return {}
    csv.field_size_limit(1 << 30)  # reasons may be long
    with open(summary, newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        return {row["name"]: row for row in reader} if tuple(reader.fieldnames or ()) == COLUMNS else {}


def _write(summary: Path, rows: list[Row]) -> None:
    with atomic_path(summary) as path, open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _files(folder: Path, name: str) -> dict[str, int]:
    """When each file that could be of a case was changed last."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob(f"{glob.escape(name)}_*")}


def _remove(row: Row | None, folder: Path) -> None:
    """The results of a row, which are not those of what is done next."""
    for name in filter(None, row["files"].split("/") if row else ()):
        (folder / name).unlink(missing_ok=True)


def _fingerprint(case: Mapping[str, Any], run: str) -> str:
    """Of a case's files, by name, size and time of change, of its series, and of the run."""
    paths = [path for path in _paths(case) if path.is_file()]
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return fingerprint([files, case.get("series_uid"), run])


def _is_done(row: Row | None, key: str, folder: Path) -> bool:
    """Whether a row says that the same was done, and its results are still there."""
    if row is None or row["status"] != "done" or row["fingerprint"] != key:
        return False
    return all((folder / name).is_file() for name in filter(None, row["files"].split("/")))
