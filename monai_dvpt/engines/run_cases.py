# SPDX-License-Identifier: Apache-2.0
"""Inference over many inputs, of which some may be bad."""

from __future__ import annotations

import csv
import logging
import os
from pathlib import Path

from monai.data import DataLoader, Dataset
from monai.engines import Evaluator
from torch.utils.data import Subset
from tqdm import tqdm

from monai_dvpt.utils import InputError, atomic_path, reason, root_cause

__all__ = ["run_cases"]

logger = logging.getLogger(__name__)


def run_cases(evaluator: Evaluator, dataset: Dataset, output_dir: str | os.PathLike) -> None:
    """
    Runs an evaluator on one case after the other. A case that fails is reported and the others go on;
    ``summary.csv`` in ``output_dir`` lists every case with its status, "done" or "failed", and the reason.

    Args:
        evaluator: evaluator whose handlers write the results.
        dataset: cases with a "name", and the transforms that load them.
        output_dir: folder for the summary.

    Raises:
        InputError: after the last case, if any failed; names each with its reason.
    """
    rows = []
    evaluator.interrupt_resume_enabled = False  # ignite would take up a failed run where it stopped, and do nothing
    evaluator.state.epoch_length = 1  # as built it is the number of cases, and each case would run that often
    noise, evaluator.logger.disabled = evaluator.logger.disabled, True  # it would log every failure as well
    try:
        for index in tqdm(range(len(dataset)), desc="cases", disable=None):
            name = dataset.data[index]["name"]
            evaluator.data_loader = DataLoader(Subset(dataset, [index]), batch_size=1)
            try:
                evaluator.run()
                rows.append((name, "done", ""))
                logger.info(f"{name}: done ({index + 1} of {len(dataset)})")
            except Exception as error:
                rows.append((name, "failed", reason(error)))
                expected = isinstance(root_cause(error), InputError)
                logger.error(f"{name}: failed: {reason(error)}", exc_info=not expected)
    finally:
        evaluator.logger.disabled = noise
    with atomic_path(Path(output_dir) / "summary.csv") as path, open(path, "w", newline="") as file:
        csv.writer(file).writerows([("name", "status", "reason"), *rows])
    failed = [f"{name}: {why}" for name, status, why in rows if status == "failed"]
    if failed:
        raise InputError(f"{len(failed)} of {len(rows)} inputs failed: " + "; ".join(failed))
