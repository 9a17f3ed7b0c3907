# SPDX-License-Identifier: Apache-2.0
"""What is odd about measured cases; each rule is a function."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..listed_images import ListedImages
from ..modalities import modality_of
from ..model import IGNORED, Collection, Finding, Measurement
from .sides import sides_of_one_patient

__all__ = ["OWN_FOLDER", "RULES", "apply_rules", "name_problem"]

FEW_CASES = 10
FEW_OF_LABEL = 3
FAR = 2.0
"""Factor from which a spacing or a size differs much from the median."""
SPECIAL = ("$", "@", "%")
"""First characters with which a text means something else in a config of MONAI."""
REFERENCE = re.compile("#|[@%]::")
RESERVED = {"image", "patient", "split"}
SHARE_OF_IMAGE = 0.99
"""Share of an image from which a label that covers it is odd."""

OWN_FOLDER = "a DICOM series that is graded must have a folder of its own, shares one with other files."

Measured = Sequence[Measurement | None]
Rule = Callable[[Collection, Measured], Iterator[Finding]]


def apply_rules(collection: Collection, measured: Measured) -> list[Finding]:
    """The findings of all rules; ``measured`` has an entry for each case, None for one that cannot be read."""
    return [finding for rule in RULES for finding in rule(collection, measured)]


def _number_of_cases(collection: Collection, measured: Measured) -> Iterator[Finding]:
    usable = [
        case
        for case, each in zip(collection.cases, measured, strict=True)
        if each is not None and (case.read_label is not None or case.grades)
    ]
    patients = {case.patient or case.name for case in usable}
    failed = None in measured or any(finding.error for finding in collection.findings)
    if len(patients) < 2 and failed:
        return  # for that reason
    if len(patients) < 2:
        rule = "labelled cases of at least 2 patients must be there, one to train and one to validate"
        yield Finding("too few cases", "", f"{rule}, got {len(patients)}.", error=True)
    elif len(usable) < FEW_CASES:
        yield Finding("few cases", "", f"{len(usable)} labelled cases: scores of so few cases vary by chance.")


def _unlabelled(collection: Collection, measured: Measured) -> Iterator[Finding]:
    for case in collection.cases:
        if case.read_label is None and not case.grades:
            yield Finding("no label", case.name, "the image has no label; the case is left out.")


def _empty_label(collection: Collection, measured: Measured) -> Iterator[Finding]:
    for case, each in zip(collection.cases, measured, strict=True):
        if each is None or case.read_label is None:
            continue
        drawn = {name: count for name, count in each.voxels.items() if name in collection.labels}
        if not any(drawn.values()) and not each.voxels.get(IGNORED):
            yield Finding("empty label", case.name, "no voxel has a label; it counts as a case without any structure.")
        elif sum(drawn.values()) >= SHARE_OF_IMAGE * np.prod(each.size):
            share = 100 * sum(drawn.values()) / np.prod(each.size)
            yield Finding("label covers the image", case.name, f"labels cover {share:.0f} % of the image.")


def _nothing_drawn(collection: Collection, measured: Measured) -> Iterator[Finding]:
    for case, each in zip(collection.cases, measured, strict=True):
        if each is not None and each.voxels.get(IGNORED, 0) == np.prod(each.size):
            yield Finding("nothing drawn", case.name, "every voxel is ignored, so the case trains nothing.", error=True)


def _labels_in_few_cases(collection: Collection, measured: Measured) -> Iterator[Finding]:
    if collection.task != "segmentation":
        return
    counts = Counter(name for each in measured if each is not None for name, count in each.voxels.items() if count)
    for name in collection.labels:
        if not counts[name] and None not in measured:
            have = f"; the data have {', '.join(sorted(counts))}" if counts else ""
            message = f"no case has a voxel of this label{have}; choose with --labels, name values with --label-names."
            yield Finding("label without voxels", name, message, error=True)
        elif (counts[name] or None not in measured) and counts[name] < min(FEW_OF_LABEL, len(measured)):
            yield Finding("label in few cases", name, f"{counts[name]} of {len(measured)} cases have this label.")
    if unknown := sorted(set(counts) - set(collection.labels) - {IGNORED}):
        yield Finding("label left out", "", f"voxels of {', '.join(unknown)} become background.")


def _grades_in_few_cases(collection: Collection, measured: Measured) -> Iterator[Finding]:
    for output in collection.outputs:
        counts = Counter(case.grades[output] for case in collection.cases if output in case.grades)
        for name in collection.labels:
            if not counts[name]:
                yield Finding("grade without cases", f"{output} {name}", "no case has it; it cannot be learned.")
            elif counts[name] < FEW_OF_LABEL:
                yield Finding("grade in few cases", f"{output} {name}", f"{counts[name]} cases have it.")


def name_problem(name: str) -> str:
    """Why a name cannot stand in a config; "" if it can."""
    if not name.strip() or name.startswith(SPECIAL) or REFERENCE.search(name) or not name.isprintable():
        return f"must be printable, not begin with one of {' '.join(SPECIAL)}, and have no #, @:: or %::"
    return ""


def _one_grade(collection: Collection, measured: Measured) -> Iterator[Finding]:
    if collection.task != "segmentation" and collection.cases and len(collection.labels) < 2:
        message = f"there must be two grades or classes or more, got {', '.join(collection.labels) or 'none'}."
        yield Finding("one grade", "", message, error=True)


def _shared_folders(collection: Collection, measured: Measured) -> Iterator[Finding]:
    """The list of graded images has a cell for each, which names a file or a folder."""
    if collection.task == "segmentation":
        return
    images = ListedImages(collection.root)
    for case in collection.cases:
        if case.grades and isinstance(images.path_of(case), list):
            yield Finding("series shares a folder", case.name, OWN_FOLDER, error=True)


def _names(collection: Collection, measured: Measured) -> Iterator[Finding]:
    for kind, names in collection.kinds_of_names():
        taken = {"background"} if kind == "label" and collection.task == "segmentation" else set()
        taken = RESERVED if kind == "output" else taken
        for name in names:
            problem = name_problem(name)
            if name.casefold() in taken:
                problem = "must be another than those of the other labels and columns, and than background"
            taken = taken | {name.casefold()}
            if problem:
                yield Finding(f"name of a {kind}", "", f"the name of a {kind} {problem}, got {name!r}.", error=True)


def _copies(collection: Collection, measured: Measured) -> Iterator[Finding]:
    seen: dict[str, int] = {}
    labelled = [case.read_label is not None or bool(case.grades) for case in collection.cases]
    for index in sorted(range(len(measured)), key=lambda index: not labelled[index]):  # those without a label last
        if (each := measured[index]) is None:
            continue
        first = seen.setdefault(each.content, index)
        if first == index:
            continue
        case, other = collection.cases[index], collection.cases[first]
        if not labelled[index]:
            continue  # it is left out anyway
        if case.grades != other.grades or each.label_content != measured[first].label_content:  # type: ignore[union-attr]
            message = f"the image equals that of {other.name}, but the label differs; keep one of them."
            yield Finding("copies differ", case.name, message, error=True)
        else:
            message = f"the image equals that of {other.name}; both stay in one part."
            yield Finding("copy", case.name, message)


def _spacing(collection: Collection, measured: Measured) -> Iterator[Finding]:
    yield from _far(collection, measured, "spacing", "mm", lambda each: each.spacing_mm)


def _size(collection: Collection, measured: Measured) -> Iterator[Finding]:
    yield from _far(collection, measured, "size", "", lambda each: each.size)


def _far(
    collection: Collection, measured: Measured, what: str, unit: str, of: Callable[[Measurement], Sequence | None]
) -> Iterator[Finding]:
    """Cases for which a property differs much from the median along an axis."""
    known = [of(each) for each in measured if each is not None and of(each) is not None]
    if not known:
        return
    middle = np.median(np.array(known, float), axis=0)
    for case, each in zip(collection.cases, measured, strict=True):
        if each is None or of(each) is None:
            continue
        ratio = np.array(of(each), float) / middle
        if (np.maximum(ratio, 1 / ratio) > FAR).any():
            text = f"{what} {_times(of(each))} {unit}".rstrip()  # type: ignore[arg-type]
            yield Finding(f"unusual {what}", case.name, f"{text}, the median is {_times(middle)}.")


def _intensity(collection: Collection, measured: Measured) -> Iterator[Finding]:
    """CT must be in Hounsfield units, where air is about -1000 and nothing is far below."""
    for case, each in zip(collection.cases, measured, strict=True):
        if each is None:
            continue
        modalities = [modality_of(name) for name in collection.channels] if each.by_channel else [case.modality]
        for modality, values in zip(modalities, each.by_channel or [each], strict=True):
            if modality == "CT" and (low := values.range[0]) >= 0:
                message = f"CT must be in Hounsfield units, with air at about -1000; the smallest value is {low:g}."
                yield Finding("no Hounsfield units", case.name, message)


def _colours(collection: Collection, measured: Measured) -> Iterator[Finding]:
    counts = Counter(each.channels for each in measured if each is not None)
    if len(counts) > 1:
        yield Finding("grey and coloured", "", f"{counts[3]} images are coloured, {counts[1]} are grey.")


def _modalities(collection: Collection, measured: Measured) -> Iterator[Finding]:
    counts = Counter(case.modality for case in collection.cases if case.modality)
    if len(counts) > 1:
        found = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        message = f"images must be of one modality, got {found}; keep one kind in the folder."
        yield Finding("several modalities", "", message, error=True)


def _channels_on_other_grids(collection: Collection, measured: Measured) -> Iterator[Finding]:
    known = [each for each in measured if each is not None and each.resampled_channels]
    for number, name in enumerate(collection.channels):
        if cover := [each.covered_channels[number] for each in known if each.resampled_channels[number]]:
            first = collection.channels[0]
            message = f"in {len(cover)} of {len(measured)} cases it is resampled by its header to the grid of {first}"
            if (less := min(cover)) < 1:
                short = sum(share < 1 for share in cover)
                message += (
                    f"; in {short} it does not cover all of it, at least {less:.0%}, and the rest gets its minimum"
                )
            yield Finding("channel on another grid", name, f"{message}.")


def _patients_in_two_parts(collection: Collection, measured: Measured) -> Iterator[Finding]:
    parts: dict[str, str] = {}
    for case in collection.cases:
        if case.patient and case.part and parts.setdefault(case.patient, case.part) != case.part:
            message = f"cases of one patient must be in one part, got {parts[case.patient]} and {case.part}."
            yield Finding("patient in two parts", case.name, message, error=True)


def _sides(collection: Collection, measured: Measured) -> Iterator[Finding]:
    if finding := sides_of_one_patient(collection):
        yield finding


def _times(sides: Sequence) -> str:
    return " × ".join(f"{float(side):.4g}" for side in sides)


RULES: tuple[Rule, ...] = (
    _number_of_cases,
    _unlabelled,
    _empty_label,
    _nothing_drawn,
    _labels_in_few_cases,
    _grades_in_few_cases,
    _copies,
    _one_grade,
    _shared_folders,
    _spacing,
    _size,
    _intensity,
    _colours,
    _names,
    _modalities,
    _channels_on_other_grids,
    _patients_in_two_parts,
    _sides,
)
