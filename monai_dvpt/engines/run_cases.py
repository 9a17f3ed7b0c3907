# SPDX-License-Identifier: Apache-2.0
"""Inference over many inputs, of which some may be bad."""

from __future__ import annotations

import csv
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
from monai_dvpt.networks.adapter.file import tensors_sha256
from monai_dvpt.utils import InputError, atomic_path, fingerprint, reason, root_cause

__all__ = ["run_cases"]

logger = logging.getLogger(__name__)

COLUMNS = ("name", "status", "reason", "seconds", "series_uid", "fingerprint")


def run_cases(
    evaluator: Evaluator, dataset: Dataset, output_dir: str | os.PathLike, settings: Any = None, resume: bool = True
) -> None:
    """
    Runs an evaluator on one case after the other. A case that fails is reported and the others go on; ``summary.csv``
    in ``output_dir``, written anew after every case, lists each with its status, "done" or "failed", and the reason.
    What an earlier run there has done with the same input, network and settings is not done again.

    Args:
        evaluator: evaluator whose handlers write the results, in files whose names begin with that of the case. Its
            state has, as "done_before", the names of what is left out.
        dataset: cases with a "name", and the transforms that load them; one with a "refused" fails for that reason,
            and of one that is "private" the path is not told.
        output_dir: folder for the summary.
        settings: JSON-serialisable, all that the results depend on besides the image and the network's weights.
        resume: whether to leave out what is done.

    Raises:
        InputError: after the last case, if any failed; names each with its reason.
    """
    summary = Path(output_dir) / "summary.csv"
    before = _read(summary) if resume else {}
    run = fingerprint([tensors_sha256(evaluator.network.state_dict()), repr(evaluator.network), __version__, settings])
    keys = {case["name"]: _fingerprint(case, run) for case in dataset.data}
    rows = {name: before[name] for name, key in keys.items() if _is_done(before.get(name), key, summary.parent)}
    evaluator.interrupt_resume_enabled = False  # ignite would take up a failed run where it stopped, and do nothing
    evaluator.state.epoch_length = 1  # as built it is the number of cases, and each case would run that often
    noise, evaluator.logger.disabled = evaluator.logger.disabled, True  # it would log every failure as well
    evaluator.state.done_before = list(rows)
    if rows:
        logger.info(f"{len(rows)} of {len(keys)} are done already")
    try:
        left = [index for index, case in enumerate(dataset.data) if case["name"] not in rows]
        for index in tqdm(left, desc="cases", initial=len(rows), total=len(keys), disable=None):
            case = dataset.data[index]
            status, why, started = "done", "", time.monotonic()
            try:
                if "refused" in case:
                    raise InputError(case["refused"])
                evaluator.data_loader = DataLoader(Subset(dataset, [index]), batch_size=1)
                evaluator.run()
                logger.info(f"{case['name']}: done ({len(rows) + 1} of {len(keys)})")
            except Exception as error:
                status, why = "failed", reason(error)
                expected = isinstance(root_cause(error), InputError)
                if case.get("private"):  # its path names the patient
                    why, expected = why.replace(str(case["image"]), case["name"]), True
                logger.error(f"{case['name']}: failed: {why}", exc_info=not expected)
            seconds = f"{time.monotonic() - started:.1f}"
            cells = (case["name"], status, why, seconds, case.get("series_uid", ""), keys[case["name"]])
            rows[case["name"]] = dict(zip(COLUMNS, cells, strict=True))
            _write(summary, [rows[name] for name in keys if name in rows])
    finally:
        evaluator.logger.disabled = noise
    failed = [f"{name}: {row['reason']}" for name, row in rows.items() if row["status"] == "failed"]
    if failed:
        raise InputError(f"{len(failed)} of {len(rows)} inputs failed: " + "; ".join(failed))


def _read(summary: Path) -> dict[str, dict[str, str]]:
    """The rows of an earlier run, or nothing."""
    if not summary.is_file():
        return {}
    with open(summary, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return {row["name"]: row for row in reader} if tuple(reader.fieldnames or ()) == COLUMNS else {}


def _write(summary: Path, rows: list[dict[str, str]]) -> None:
    with atomic_path(summary) as path, open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _fingerprint(case: Mapping[str, Any], run: str) -> str:
    """Of a case's files, by name, size and time of change, and of the run."""
    image = case["image"]
    paths = [Path(image)] if isinstance(image, (str, os.PathLike)) else [Path(path) for path in image]
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file()]
    return fingerprint([files, run])


def _is_done(row: Mapping[str, str] | None, key: str, folder: Path) -> bool:
    """Whether a row says that the same was done, and its results are still there."""
    if row is None or row["status"] != "done" or row["fingerprint"] != key:
        return False
    return any(path.name.startswith(f"{row['name']}_") for path in folder.iterdir())
