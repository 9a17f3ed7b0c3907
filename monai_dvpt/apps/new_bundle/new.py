# SPDX-License-Identifier: Apache-2.0
"""From a folder of data to a bundle."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from monai_dvpt.apps.report import write_report
from monai_dvpt.networks.pretrained import read_backbone
from monai_dvpt.utils import InputError, progress

from .check import apply_rules, measure_cases
from .collect import collect
from .drawn import as_drawn, ask_what_is_drawn, mark_labels
from .model import Collection, Finding, Measurement, Options
from .plan import TIMEOUT, Plan, check_backbones, make_plan
from .split import ENOUGH_TO_CALIBRATE, split_cases
from .state import read_state, state_of, write_secret, write_state
from .trials import backbone_names, choose_file, count_drawn, search_rates
from .write import update_lists, write_bundle

__all__ = ["NewBundle", "update_bundle"]


class NewBundle:
    """
    Looks at a folder of data, then writes a bundle for it.

    Args:
        data: the folder.
        options: what the user says about it.
        backbone: file of pretrained weights; None for those of the package, which are for volumes; or several of these,
            of which linear probes choose one.
        before: parts of an earlier split, see :func:`split_cases`.
        bundle: an earlier bundle of the data, to be brought up to date.
        search_minutes: how long to search the rates on the training cases; None for those of the plan.
    """

    collection: Collection
    measured: list[Measurement | None]
    findings: list[Finding]
    parts: dict[str, list[int]]

    def __init__(
        self,
        data: str | os.PathLike,
        options: Options,
        backbone: str | os.PathLike | Sequence[str | os.PathLike | None] | None = None,
        before: Mapping[str, str] | None = None,
        bundle: Path | None = None,
        search_minutes: float | None = None,
    ) -> None:
        self.data = Path(os.path.abspath(data))  # itk changes the working folder for a moment when it loads a part
        self.options = options
        several = isinstance(backbone, Sequence) and not isinstance(backbone, str)
        self.backbones: list[str | os.PathLike | None] = list(backbone) if several else [backbone]  # type: ignore
        backbone_names(self.backbones)  # refuses a file that is there twice
        self.search_minutes = search_minutes
        self.before = before
        self.bundle = bundle

    def look(self, leave_out: bool = False, to_write: bool = False) -> None:
        """
        Finds the cases, measures them, applies the rules, and splits them by patient.

        Args:
            leave_out: whether to leave out cases with errors; the findings then say so.
            to_write: whether a bundle is to be written, so that there must be weights for it.

        Raises:
            InputError: if the folder or the task is not clear, or a file of weights cannot be used, before an image is
                read; what is wrong with a case is a finding.
        """
        if self.bundle is None:
            for file in self.backbones:
                if file is not None and not (backbone := read_backbone(file)).is_vit:
                    raise InputError(f"{file}: holds a {backbone.kind}, and a bundle is planned for a ViT alone.")
        self.collection = as_drawn(collect(self.data, self.options), self.options.drawn)
        if to_write:
            check_backbones(self.collection, self.backbones)
        total = len(self.collection.cases)
        self.measured, found = measure_cases(
            self.collection, lambda cases: progress(cases, "look at the cases", total=total, unit="case")
        )
        mark_labels(self.collection, self.measured, self.options.drawn)
        self.findings = [*self.collection.findings, *found, *self._rules()]
        if leave_out:
            self._leave_out()
        self.parts = split_cases(self.collection, self.measured, self.before)
        if not all(self.parts[part] for part in ("training", "validation")):
            if not any(finding.error for finding in self.findings):
                counts = {part: len(indices) for part, indices in self.parts.items()}
                message = f"there must be cases to train and cases to validate, got {counts}."
                self.findings.append(Finding("too few cases", "", message, error=True))
        if self.collection.task == "grading" and "calibration" not in self.parts and all(self.parts.values()):
            rule = f"below {ENOUGH_TO_CALIBRATE} graded cases none is set apart to calibrate prediction sets"
            message = f"{rule}; a column of the table with the parts, calibration among them, sets some apart."
            self.findings.append(Finding("no prediction sets", "", message))

    def can_leave_out(self) -> bool:
        """Whether an error is of a case, so that the others can be used without it."""
        names = {case.name for case in self.collection.cases}
        return any(each.error and (each.where in names or each.dropped) for each in self.findings)

    def _leave_out(self) -> None:
        """Leaves out the cases with errors, and applies the rules to the others."""
        names = {case.name for case in self.collection.cases}
        bad = {each.where for each in self.findings if each.error and each.where in names}
        kept = [index for index, case in enumerate(self.collection.cases) if case.name not in bad]
        self.collection.cases = [self.collection.cases[index] for index in kept]
        self.measured = [self.measured[index] for index in kept]
        left_out = [
            Finding(finding.rule, finding.where, f"left out: {finding.message}")
            for finding in self.findings
            if finding.error and (finding.where in bad or finding.dropped)
        ]
        kept_findings = (each for each in self.collection.findings if not each.dropped)
        others = [finding for finding in kept_findings if finding.where not in bad]
        self.collection.findings = [*others, *left_out]
        self.findings = [*self.collection.findings, *self._rules()]

    def _rules(self) -> list[Finding]:
        said = (self.options.drawn, self.options.ignored)
        return [*apply_rules(self.collection, self.measured), *ask_what_is_drawn(self.collection, self.measured, *said)]

    def summary(self) -> Iterator[str]:
        """The fingerprint of the data in a few lines."""
        collection, measured = self.collection, [each for each in self.measured if each is not None]
        kind = "volumes" if collection.spatial_dims == 3 else "pictures"
        patients = len({case.patient for case in collection.cases if case.patient})
        known = f" of {patients} patients" if patients else ", patients unknown: each case counts as one"
        if not collection.cases:
            yield f"{collection.task}: no case can be used"
            return
        yield f"{collection.task} of {len(collection.cases)} {kind}{known}"
        if measured:
            yield f"size        {_range([each.size for each in measured])}"
            if all(each.spacing_mm is not None for each in measured):
                yield f"spacing     {_range([each.spacing_mm for each in measured])} mm"  # type: ignore[misc]
        for output in collection.outputs:
            counts = Counter(case.grades[output] for case in collection.cases if output in case.grades)
            yield f"{output:<11} " + ", ".join(f"{name}: {counts[name]}" for name in collection.labels)
        if collection.channels:
            yield f"channels    {', '.join(collection.channels)}"
        if collection.task == "segmentation":
            counts = Counter(name for each in measured for name, count in each.voxels.items() if count)
            yield "labels      " + ", ".join(f"{name} in {counts[name]}" for name in collection.labels)
        yield "parts       " + ", ".join(f"{len(indices)} {part}" for part, indices in self.parts.items())

    def write(self, output: str | os.PathLike) -> Iterator[str]:
        """
        Plans, and writes the bundle; or brings an earlier one up to date.

        Args:
            output: folder that does not exist, or that of the earlier bundle.

        Yields:
            what takes minutes, before it begins; the plan and what to do next, line by line.

        Raises:
            InputError: if there is an error in the data, or ``output`` exists.
        """
        if any(finding.error for finding in self.findings):
            raise InputError(f"{self.data}: the data must be without errors; nothing is written.")
        output = Path(output)
        facts = (self.parts, self.findings)
        if self.bundle is None:
            if output.resolve().is_relative_to(self.data.resolve()):
                raise InputError(f"{output}: must not lie in the folder of data, {self.data}.")
            plan = yield from self._plan()
            write_bundle(output, self.collection, self.measured, plan, *facts, finish=self._finish)
            yield from plan.lines()
        else:
            update_lists(output, self.collection, self.measured, *facts)
            self._finish(output)
        yield f"written: {output}, with report.html"
        yield f"next: cd {output} && python -m monai.bundle run --config_file configs/train.yaml{_going_on(output)}"

    def _plan(self) -> Generator[str, None, Plan]:
        """The plan, with what trials on the training cases chose of it; yields a line before what takes minutes."""
        if self.collection.task == "segmentation" and self.collection.spatial_dims == 3:
            yield f"measure training steps on this machine: for {TIMEOUT // 60} minutes at most"
        cases = (self.collection, self.measured, self.parts)
        if len(self.backbones) == 1:
            plan = make_plan(*cases, self.backbones[0])
        else:
            count = count_drawn(self.collection, self.parts["training"])
            yield f"compare backbones: by linear probes on {count} training cases"
            file, comparison = choose_file(*cases, self.backbones)
            plan = make_plan(*cases, file)
            self.backbones = [file]
            plan.choose("backbone", plan["backbone"], comparison.reason())
            plan.choose("backbone_scores", comparison.as_json(), f"{comparison.metric} of the linear probes.")
        if self.search_minutes is not None:
            count = len(self.parts["training"])
            yield f"search of rates: {self.search_minutes:g} minutes at most, on {count} training cases"
            search_rates(plan, *cases, self.search_minutes)
        return plan

    def _finish(self, bundle: Path) -> None:
        """What a later update needs, and the report."""
        if self.bundle is None:
            write_secret(bundle, self.options.secret)
        backbone = None if self.backbones[0] is None else os.path.abspath(self.backbones[0])
        write_state(bundle, state_of(self.options, self.collection, self.measured, self.parts, backbone))
        write_report(bundle)


def _going_on(bundle: Path) -> str:
    """Arguments with which a training goes on from the adapter of an earlier one, in a folder of its own."""
    adapter = Path("output", "train", "adapter_best.safetensors")
    if not (bundle / adapter).is_file():
        return ""
    folder = next(name for number in itertools.count(2) if not (bundle / (name := f"output/train_{number}")).exists())
    return f" --output_dir {folder} --adapter_path {adapter.as_posix()}"


def update_bundle(bundle: str | os.PathLike) -> NewBundle:
    """Looks again at the data of a bundle; patients and images of before keep their part."""
    options, state = read_state(Path(bundle))
    return NewBundle(state["data"], options, state["backbone"], state["parts"], Path(bundle))


def _range(rows: Sequence[Sequence[float]]) -> str:
    """The median along each axis, and the smallest and the largest row where they differ."""
    table = np.array(rows, float)
    texts = [" × ".join(f"{side:.4g}" for side in row) for row in (np.median(table, 0), table.min(0), table.max(0))]
    return texts[0] + ("" if texts[1] == texts[2] else f" (from {texts[1]} to {texts[2]})")
