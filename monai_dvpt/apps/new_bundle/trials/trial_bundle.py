# SPDX-License-Identifier: Apache-2.0
"""A bundle for trials, of training cases alone."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path

from ..model import Collection, Measurement
from ..plan import Plan
from ..split import groups_of, split_cases
from ..write import write_bundle

__all__ = ["inner_parts", "patients_of", "quiet", "trial_bundle"]


@contextmanager
def trial_bundle(
    collection: Collection,
    measured: Sequence[Measurement | None],
    parts: Mapping[str, Sequence[int]],
    plan: Plan,
) -> Iterator[Path]:
    """A bundle as the user's will be, of some cases alone, in a folder that is there for as long as the context."""
    with tempfile.TemporaryDirectory(prefix="monai_dvpt_trial_") as folder:
        bundle = Path(folder) / "trial"
        write_bundle(bundle, collection, measured, plan, parts)
        yield bundle


@contextmanager
def quiet() -> Iterator[None]:
    """Context without what a bundle prints and logs; the user's own training shows it."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def inner_parts(
    collection: Collection, measured: Sequence[Measurement | None], training: Sequence[int]
) -> dict[str, list[int]]:
    """The training cases alone, split by patient as :func:`split_cases` does, into "training" and "validation"."""
    cases = [replace(case, part="") for case in collection.cases]
    inside = set(training)
    known = [each if index in inside else None for index, each in enumerate(measured)]
    parts = split_cases(replace(collection, cases=cases), known)
    return {
        "training": sorted([*parts["training"], *parts.get("calibration", [])]),
        "validation": sorted(parts["validation"]),
    }


def patients_of(
    collection: Collection, measured: Sequence[Measurement | None], indices: Sequence[int]
) -> dict[int, int]:
    """A number for the patient of each case; copies of an image count as of one patient."""
    cases = [(index, collection.cases[index], each) for index in indices if (each := measured[index]) is not None]
    return {index: number for number, group in enumerate(groups_of(cases)) for index in group}
