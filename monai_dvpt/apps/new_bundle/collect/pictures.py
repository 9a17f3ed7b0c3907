# SPDX-License-Identifier: Apache-2.0
"""Pictures with masks."""

from __future__ import annotations

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from monai_dvpt.data.folders import walk_files

from ..model import IGNORED, Case, Collection, Finding, Options
from .columns import Columns, find_mask_column, is_pattern, part_of, read_columns
from .images import FoundImage, ImageIndex, Patients, find_images, in_mask_folder, is_picture, some, without_masks
from .masks import MaskFile, MaskReader, find_scheme, is_turned
from .pairs import Pair, is_observer, pair_by_name
from .rows import find_lists, read_rows

__all__ = ["collect_pictures"]

FACT_RULES = ("unknown part", "patient missing")
"""Findings about rows that say something about patients and parts."""
Facts = Mapping[int, tuple[str, str]]
"""What a table says of a picture: its patient, and its part."""


@dataclass
class _Paired:
    """Pictures with masks."""

    pairs: list[Pair]
    facts: Facts = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def note(self, rule: str, where: str, message: str, error: bool = False) -> None:
        self.findings.append(Finding(rule, where, message, error))


def collect_pictures(root: Path, options: Options) -> Collection | None:
    """
    The cases of a folder of pictures, as :class:`monai_dvpt.transforms.LoadImage2D` reads them, with masks in PNG, JPEG
    or NIfTI.

    They are paired by a table with a column of images and one of masks; by sibling folders such as images and masks,
    where a folder inside may hold the masks of one label; or by names in one folder such as a.jpg and a_mask.png.
    Where a picture has several masks, ``options.columns["mask"]`` chooses by a pattern such as "\\*_1stHO.png", or
    ``options.labels`` says that the names' ends are labels. A mask holds a palette's indices, grey values or colours;
    0, or black, is the background.

    Args:
        root: folder of data.
        options: what the user says about it.

    Returns:
        None without masks. Where what is meant is not clear, a collection without cases whose findings say why.

    Raises:
        InputError: if ``options`` name a table or column that is not there, or a pattern that is no regular expression.
    """
    files = [path for path in walk_files(root) if is_picture(path)]
    if not files:
        return None  # without a look into every DICOM file
    images = [image for image in find_images(root) if image.spatial_dims == 2]
    paired = _by_table(root, images, files, options) or _by_name(root, images, files, options)
    if paired is None:
        return None
    if any(finding.error for finding in paired.findings) and not paired.pairs:
        return Collection("segmentation", 2, root, [], [], [], paired.findings)
    return _collection(root, images, paired, options)


def _by_table(root: Path, images: Sequence[FoundImage], files: Sequence[Path], options: Options) -> _Paired | None:
    """Pictures and masks that a table lists; None without a table that names masks."""
    shown = without_masks(images, root)
    place = {image.name: at for at, image in enumerate(images)}
    index = ImageIndex(root, shown)
    tables, unread = find_lists(root, index, options)
    paired = _Paired([], findings=[replace(finding, error=False) for finding in unread])
    listed = []
    for table, column in tables:
        named = {shown[each].path for cell in table.values(column) for each in index.find(cell, table.path.parent)}
        masks = [path for path in files if path not in named]
        mask_index = ImageIndex(root, [FoundImage("", str(path), 2) for path in masks])
        if mask := find_mask_column(table, root, column, mask_index, options):
            listed.append((table, column, mask, masks, mask_index))
    if not listed:
        return None
    if len(listed) > 1:
        names = some(table.path.relative_to(root) for table, *_ in listed)
        paired.note("several tables", "", f"the table of masks must be clear, could be {names}; pass --table.", True)
        return paired
    table, column, mask, masks, mask_index = listed[0]
    columns = read_columns(table, root, column, replace(options, outputs=()))
    columns.outputs = [mask]
    rows = read_rows(table, columns, index)
    paired.findings += [*table.findings, *_of_facts(columns), *rows.findings]
    missing: list[str] = []
    several: list[str] = []
    masks_of: dict[int, tuple[Path, str]] = {}
    for entry in rows.entries:
        found = mask_index.find(entry.cells[mask], table.path.parent)
        if len(found) == 1:
            path, name = masks[found[0]], shown[entry.index].name
            if (first := masks_of.setdefault(place[name], (path, entry.place)))[1] == entry.place:
                continue
            if first[0] == path:
                paired.note("listed twice", name, f"is in {entry.place} again, with the same mask; counts once.")
            else:
                message = f"an image must have one mask, got another in {entry.place}; keep one of the rows."
                paired.note("listed with different masks", name, message, error=True)
        elif entry.cells[mask]:
            (several if found else missing).append(entry.place)
    paired.pairs = [Pair(each, path) for each, (path, _) in masks_of.items()]
    if missing:
        paired.note(
            "mask missing", table.path.name, f"{len(missing)} rows name no mask below the folder: {some(missing)}."
        )
    if several:
        message = (
            f"every row must name one mask; {len(several)} could mean several: {some(several)}; write their paths."
        )
        paired.note("several masks", table.path.name, message, error=True)
    paired.facts = {place[shown[entry.index].name]: (entry.patient, entry.part) for entry in rows.entries}
    return paired


def _of_facts(columns: Columns) -> list[Finding]:
    """What was odd about the columns, but those with what is graded."""
    return [finding for finding in columns.findings if not finding.error]


def _by_name(root: Path, images: Sequence[FoundImage], files: Sequence[Path], options: Options) -> _Paired | None:
    """Pictures and masks by the names of files; a table may tell patients and parts."""
    pairs, alone = pair_by_name(root, images, files)
    if not pairs:
        return None
    paired = _Paired(pairs)
    if alone:
        names = some(os.path.relpath(path, root) for path in alone) if not any(each.private for each in images) else ""
        message = (
            f"{len(alone)} masks belong to no picture, or to several{': ' * bool(names)}{names}; they are left out."
        )
        paired.note("mask without picture", "", message)
    paths = {pair.path for pair in pairs} | set(alone)
    shown = [image for image in images if image.path not in paths]
    index = ImageIndex(root, shown)
    tables, unread = find_lists(root, index, options)
    paired.findings += [replace(finding, error=False) for finding in unread]
    if len(tables) == 1:
        table, column = tables[0]
        columns = read_columns(table, root, column, replace(options, outputs=()))
        columns.outputs = []
        rows = read_rows(table, columns, index)
        place = {image.name: at for at, image in enumerate(images)}
        paired.facts = {place[shown[entry.index].name]: (entry.patient, entry.part) for entry in rows.entries}
        paired.findings += [*_of_facts(columns), *(each for each in rows.findings if each.rule in FACT_RULES)]
    return paired


def _chosen(root: Path, images: Sequence[FoundImage], paired: _Paired, options: Options) -> tuple[list[Pair], bool]:
    """The masks to take, and whether each is of one label; none, and a finding, where that is not clear."""
    pairs, pattern = paired.pairs, options.columns.get("mask", "")
    if is_pattern(pattern):
        pairs = [pair for pair in pairs if _matches(pair.path, root, pattern)]
        if not pairs:
            paired.note(
                "no mask", "", f"columns mask must match the names of masks, none matches {pattern!r}.", error=True
            )
    counts = Counter(pair.index for pair in pairs)
    variants = sorted({pair.variant for pair in pairs})
    wanted = {label.casefold() for label in options.labels}
    observers = all(map(is_observer, variants))
    by_folder = any(pair.by_folder for pair in pairs) and not observers and not any(map(part_of, variants))
    if len(variants) > 1 and (by_folder or set(variants) <= wanted):
        return pairs, True
    if max(counts.values(), default=1) > 1:
        which = sum(count > 1 for count in counts.values())
        examples = sorted({_pattern_of(pair) for pair in pairs})
        kind = "masks by several observers" if observers and len(variants) > 1 else "several masks"
        message = f"{which} pictures have {kind}, {some(examples)}; choose with --columns mask={examples[0]}"
        if not observers and "" not in variants:
            message += f", or, if each is a label of its own, pass --labels {','.join(variants)}"
        paired.note("several masks", "", f"{message}.", error=True)
        return [], False
    return pairs, False


def _matches(path: Path, root: Path, pattern: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for name in (path.name, os.path.relpath(path, root)))


def _pattern_of(pair: Pair) -> str:
    """A pattern that tells a mask from others of its picture."""
    if pair.by_folder or not pair.variant:
        return f"{pair.path.parent.name}/*" if pair.by_folder else f"*{pair.path.suffix}"
    end = re.search(re.escape(pair.variant).replace("_", "_?"), pair.path.name, re.IGNORECASE)
    return f"*{pair.path.name[end.start() - 1 :]}" if end else f"*{pair.path.name}"


def _collection(root: Path, images: Sequence[FoundImage], paired: _Paired, options: Options) -> Collection:
    pairs, by_label = _chosen(root, images, paired, options)
    if not pairs:
        return Collection("segmentation", 2, root, [], [], [], paired.findings)
    patients = Patients(root, options)
    masks: dict[int, list[MaskFile]] = {}
    for pair in pairs:
        shown = os.path.relpath(pair.path, root) if not images[pair.index].private else "its mask"
        label = _spelled(pair.variant, options) if by_label else ""
        masks.setdefault(pair.index, []).append(MaskFile(pair.path, shown, label))
    variants = {pair.variant for pair in pairs}
    single = next(iter(variants)) if len(variants) == 1 and not any(map(is_observer, variants)) else ""
    scheme, findings = find_scheme([file for files in masks.values() for file in files], options, single)
    paired.findings += findings
    names = list(dict.fromkeys(name for name in scheme.names.values() if name != IGNORED))
    _check_labels(names, masks, images, paired, options)
    used = {pair.path for pair in paired.pairs}
    cases = []
    for index, image in enumerate(images):
        if image.path in used or index not in masks and in_mask_folder(image.path, root):
            continue
        patient, part = paired.facts.get(index, ("", ""))
        case = Case(image.name, image.image, patient=patients.of(image, patient), part=part, modality=image.modality)
        if index in masks:
            case.read_label = MaskReader(tuple(masks[index]), scheme, tuple(options.labels))
            drawn = [file.label for file in masks[index]]
            case.labelled = None if not by_label or len(drawn) == len(scheme.names) else sorted(drawn)
        cases.append(case)
    paired.findings += patients.findings()
    if turned := [images[index].name for index in sorted(masks) if is_turned(images[index].path)]:
        message = (
            f"{len(turned)} pictures are turned by their EXIF data: {some(turned)}; their masks must be drawn as shown."
        )
        paired.note("turned pictures", "", message)
    return Collection("segmentation", 2, root, cases, list(options.labels) or names, [], paired.findings)


def _spelled(variant: str, options: Options) -> str:
    """A label as the user spells it."""
    return next((label for label in options.labels if label.casefold() == variant), variant)


def _check_labels(
    names: Sequence[str],
    masks: Mapping[int, Sequence[MaskFile]],
    images: Sequence[FoundImage],
    paired: _Paired,
    options: Options,
) -> None:
    if not names:
        paired.note("no labels", "", "no mask has a value but 0 that can be read.", error=True)
    elif unknown := [label for label in options.labels if label not in names]:
        paired.note("no such label", "", f"labels must be some of {some(names)}, got {some(unknown)}.", error=True)
    labels = sorted({file.label for files in masks.values() for file in files} - {""})
    for label in labels:
        lack = [images[index].name for index, files in sorted(masks.items()) if label not in {f.label for f in files}]
        if lack:
            message = f"{len(lack)} pictures have no mask of {label}, and count as not drawn: {some(lack)}."
            paired.note("label not drawn", "", message)
    for index, files in masks.items():
        if (count := len(files)) > len({file.label for file in files}):
            message = f"a picture must have one mask of {files[0].label or 'its own'}, got {count}."
            paired.note("several masks", images[index].name, message, error=True)
