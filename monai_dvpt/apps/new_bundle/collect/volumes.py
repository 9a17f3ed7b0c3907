# SPDX-License-Identifier: Apache-2.0
"""Volumes with segmentations, in a folder of any shape."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from monai_dvpt.data import DicomSeries
from monai_dvpt.data.cases import unique_names
from monai_dvpt.data.dicom.geometry import RAS_TO_LPS
from monai_dvpt.data.dicom.privacy import names_patient
from monai_dvpt.data.dicom.series import VOLUMES
from monai_dvpt.data.dicom_rtstruct import STORAGE as RTSTRUCT
from monai_dvpt.data.dicom_rtstruct import describe_rtstruct
from monai_dvpt.data.dicom_segmentation import STORAGE as SEG
from monai_dvpt.data.dicom_segmentation import describe_dicom_seg
from monai_dvpt.data.gradelist import match_patient, patient_regex
from monai_dvpt.data.slicer_segmentation import slicer_segments, whole_steps
from monai_dvpt.utils import InputError, reason

from ..model import IGNORED, Case, Collection, Finding, Options
from .volume_files import Folder, header_grid, label_values, patient_identifier, scan, series_place
from .volume_labels import LabelFile, label_reader, names_of
from .volume_lists import DataList, read_lists
from .volume_names import ImageIndex, PathWords

__all__ = ["collect_volumes"]


@dataclass(eq=False)
class _Image:
    """A volume, with the labels that were found for it."""

    place: Path
    words: PathWords
    series: DicomSeries | None = None
    labels: list[LabelFile] = field(default_factory=list)
    part: str = ""
    modality: str = ""
    left_out: bool = False  # a finding says why


@dataclass(eq=False)
class _Label:
    """A file with labels, before its image is known."""

    path: Path
    words: PathWords
    segments: dict[int, str] = field(default_factory=dict)  # of 3D Slicer
    values: list[int] | None = None  # of a map
    problem: str = ""  # why it is no label map
    name: str = ""  # where its path names a label
    of_folder: bool = False  # whether a folder around all cases has that name


def collect_volumes(root: Path, options: Options) -> Collection | None:
    """
    Finds the volumes of a folder and their segmentations, and pairs them by a list of the Decathlon, by the series that
    a DICOM object refers to, or by the words of their paths. Where two images or two labels fit, a finding names them.

    Args:
        root: the folder.
        options: what the user says about it.

    Returns:
        the cases; None if the folder holds no segmentation of a volume.

    Raises:
        InputError: if the pattern of patients is no regular expression.
    """
    return _Collector(Path(root), options).collect()


class _Collector:
    def __init__(self, root: Path, options: Options) -> None:
        self.root, self.options = root, options
        self.pattern = patient_regex(options.patient_pattern) if options.patient_pattern else None
        self.images: list[_Image] = []
        self.findings: list[Finding] = []
        self.segmented = False

    def collect(self) -> Collection | None:
        folder = scan(self.root)
        self.identifiers = frozenset().union(*(series.identifiers for series in folder.series))
        self.lists, problems = read_lists(self.root, folder.files)
        self.findings += problems
        for path, problem in folder.problems:
            self._find("cannot be read", path, problem)
        self._ignore("files", folder.ignored)
        listed = self._add_listed(folder)
        self._add_series(folder.series)
        self._add_objects(folder.series)
        self._pair_files([path for path in folder.volumes if path not in listed])
        if not self.segmented:
            return None
        self._leave_out_series()
        cases = self._cases()
        return Collection("segmentation", 3, self.root, cases, self._labels(), findings=self.findings)

    def _find(self, rule: str, paths: Path | Sequence[Path], message: str, error: bool = True) -> None:
        """Adds a finding about files; the first says where, and all are named."""
        paths = [paths] if isinstance(paths, Path) else list(paths)
        for path in paths:
            message = message.replace(f"{path}: ", "").replace(str(path), self._shown(path))
        more = f" Files: {', '.join(map(self._shown, paths))}." if len(paths) > 1 else ""
        self.findings.append(Finding(rule, self._shown(paths[0]), message + more, error, dropped=error))

    def _ignore(self, what: str, counts: Counter[str]) -> None:
        if counts:
            listed = ", ".join(f"{count} {name}" for name, count in counts.most_common(8))
            self.findings.append(Finding("ignored files", "", f"{what} that are no volumes are ignored: {listed}."))

    def _shown(self, path: Path) -> str:
        text = os.path.relpath(path, self.root)
        return f"file {_hash(text)}" if names_patient(text, self.identifiers) else text

    # lists

    def _add_listed(self, folder: Folder) -> set[Path]:
        """The cases of the lists; returns the files that are not to be paired by their names."""
        done: set[Path] = set()
        volumes = set(folder.volumes)
        for lists in self.lists:
            if lists.pairs is None:
                continue
            below = {path for path in volumes if path.is_relative_to(lists.folder)} - done
            named = set()
            labels: list[tuple[_Image, Path]] = []
            self.segmented |= any(lists.pairs.values())
            for place, label in lists.pairs.items():
                named |= {place, label or place}
                odd = [path for path in (place, label or place) if path.exists() and path not in volumes]
                if odd and {finding.where for finding in self.findings} >= set(map(self._shown, odd)):
                    continue  # for the reason that is found already
                if odd:
                    self._find("listed file", place, "a list names it or its label, but one of them is no volume.")
                elif place in volumes:
                    image = _Image(place, self._words(place), part=lists.parts[place])
                    self.images.append(image)
                    if label is not None and label in volumes:
                        labels.append((image, label))
            self._add_maps(labels)
            if unlisted := below - named:
                message = f"{len(unlisted)} volumes that the list of this folder does not name are left out."
                self._find("not listed", lists.folder, message, error=False)
            done |= below
        return done

    def _add_maps(self, labels: Sequence[tuple[_Image, Path]]) -> None:
        pairs = [(image, _Label(path, self._words(path), _segments(path))) for image, path in labels]
        self._read_values([label for _, label in pairs])
        for image, label in pairs:
            self._attach([label], image)

    def _words(self, path: Path) -> PathWords:
        return PathWords.of(path, self.root)

    def _list_of(self, path: Path) -> DataList:
        return next((lists for lists in self.lists if path.is_relative_to(lists.folder)), DataList(self.root))

    # DICOM

    def _add_series(self, found: Sequence[DicomSeries]) -> None:
        others: Counter[str] = Counter()
        for series in found:
            if series.is_image and series.verdict in VOLUMES:
                place = series_place(series)
                self.images.append(_Image(place, self._words(place), series, modality=series.modality))
            elif not series.headers:
                self._find("cannot be read", series.files[0], series.reason)
            elif series.headers[0].sop_class not in (*SEG, RTSTRUCT):
                others[series.modality or "no modality"] += 1
        self._ignore("DICOM series", others)

    def _add_objects(self, found: Sequence[DicomSeries]) -> None:
        """Segmentations and structure sets, each with the series that it refers to."""
        for header in (header for series in found for header in series.headers):
            if header.sop_class not in (*SEG, RTSTRUCT):
                continue
            self.segmented, path = True, header.path
            kind = "SEG" if header.sop_class in SEG else "RTSTRUCT"
            try:
                referred, names = (describe_dicom_seg if kind == "SEG" else describe_rtstruct)(path)
            except InputError as error:
                self._find("label cannot be read", path, reason(error))
                continue
            images = [image for image in self.images if image.series and image.series.series_uid in referred]
            if not images:
                listed = ", ".join(sorted(referred)) or "none"
                message = f"the series that it refers to must be in the folder, is not: {listed}."
                self._find("label without image", path, message, error=False)
            elif len(images) > 1:
                self._find("several series", [path, *(image.place for image in images)], "it refers to several series.")
                _leave_out(images)
            else:
                images[0].labels.append(LabelFile(path, kind, names, ignored=tuple(self.options.ignored)))

    def _leave_out_series(self) -> None:
        """Series beside those with labels, series that cannot be read, and studies without a label."""
        studies: dict[str, list[_Image]] = {}
        for image in self.images:
            if image.series is not None and not image.left_out:
                studies.setdefault(image.series.study_uid or str(image.place), []).append(image)
        for images in studies.values():
            labelled = [image for image in images if image.labels]
            others = [image for image in images if not image.labels] if labelled or len(images) > 1 else []
            if others:
                what = "no label is of them" if labelled else "no label says which is meant"
                message = f"{len(others)} series of a study are left out: {what}."
                self._find("series without label", others[0].place, message, error=False)
                _leave_out(others)
            for image in images:
                if not image.left_out and image.series is not None and image.series.verdict != "ok":
                    self._find("cannot be read", image.place, f"{image.series}.", error=bool(image.labels))
                    image.left_out = True

    # files

    def _pair_files(self, paths: Sequence[Path]) -> None:
        """Pairs label maps and images by their paths, and by their content where a path says nothing."""
        labels, others = [], []
        for path in paths:
            words, segments = self._words(path), _segments(path)
            if segments or words.role == "label":
                labels.append(_Label(path, words, segments))
            else:
                others.append(_Image(path, words))
        self._read_values(labels)
        named = [*self.images, *others]
        index = ImageIndex([image.words for image in named])
        taken = {image for label in labels for image in _fitting(label, named, index)}
        unclear = [image for image in others if image.words.role == "" and image not in taken]
        for image, values in zip(unclear, label_values([image.place for image in unclear]), strict=True):
            if isinstance(values, list):
                labels.append(_Label(image.place, image.words, values=values))
        maps = {label.path for label in labels}
        self.images += [image for image in others if image.place not in maps]
        index = ImageIndex([image.words for image in self.images])
        of_image: dict[_Image, list[_Label]] = {}
        for label in labels:
            images = _fitting(label, self.images, index)
            self.segmented |= bool(images)
            if len(images) == 1:
                of_image.setdefault(images[0], []).append(label)
            elif not images and label.problem:
                self._find("no label map", label.path, f"{label.problem} It is left out.", error=False)
            elif not images:
                message = "its path must have the words of that of an image, and no image has them; it is left out."
                self._find("label without image", label.path, message, error=False)
            else:
                channels = {image.words.channel for image in images}
                if "" not in channels and len(channels) == len(images):
                    message = f"an image must have one channel, its has {len(images)}."
                    self._find("several channels", [label.path, *(image.place for image in images)], message)
                else:
                    rule = "several series" if all(image.series for image in images) else "several images"
                    message = f"a label must be of one image, could be of {len(images)}."
                    self._find(rule, [label.path, *(image.place for image in images)], message)
                _leave_out(images)
        for image, found in of_image.items():
            self._attach(found, image)

    def _read_values(self, labels: Sequence[_Label]) -> None:
        """The values of label maps, or why a file is none."""
        maps = [label for label in labels if not label.segments]
        for label, values in zip(maps, label_values([label.path for label in maps]), strict=True):
            if isinstance(values, InputError):
                label.problem = reason(values)
            else:
                label.values = values

    def _attach(self, labels: Sequence[_Label], image: _Image) -> None:
        ignored = tuple(self.options.ignored)
        for label in labels:
            image.part = image.part or label.words.part
            if label.segments:
                image.labels.append(LabelFile(label.path, "Slicer", label.segments, ignored=ignored))
            elif label.values is None:
                self._find("no label map", label.path, label.problem)
                image.left_out = True
            elif label.name and len(label.values) <= 1 and not (label.of_folder and len(labels) == 1):
                names = {next(iter(label.values), 1): label.name}
                image.labels.append(LabelFile(label.path, "map", names, ignored=ignored))
            else:
                listed = self._list_of(label.path).names
                names = dict(listed) or names_of(label.values, self.options.label_names)  # a list names all values
                image.labels.append(LabelFile(label.path, "map", names, declared=False, ignored=ignored))

    # cases

    def _cases(self) -> list[Case]:
        self.images.sort(key=lambda image: image.place)
        for image in self.images:
            if image.left_out:
                continue
            self._check_labels(image)
            if not image.labels and image.series is None and not self._is_volume(image):
                image.left_out = True
        kept = [image for image in self.images if not image.left_out]
        names = unique_names(self.root, [image.place for image in kept])
        return [self._case(image, name) for image, name in zip(kept, names, strict=True)]

    def _is_volume(self, image: _Image) -> bool:
        grid = header_grid(image.place)
        if grid is None or len(grid[0]) == 3:
            return True
        message = f"it has no label and {len(grid[0])} dimensions, and is left out."
        self._find("no volume", image.place, message, error=False)
        return False

    def _check_labels(self, image: _Image) -> None:
        counts = Counter(name for file in image.labels for name in set(file.labels.values()) - {IGNORED})
        twice = sorted(name for name, count in counts.items() if count > 1)
        if len(image.labels) > 1 and (twice or not all(file.declared for file in image.labels)):
            which = f" of {', '.join(twice)}" if twice else ""
            message = f"an image must have one label{which}, has {len(image.labels)}."
            self._find("two labels", [image.place, *(file.path for file in image.labels)], message)
            image.left_out = True

    def _case(self, image: _Image, name: str) -> Case:
        series, hidden = image.series, ""
        paths = [image.place, *(file.path for file in image.labels)]
        if series is not None:
            if names_patient(os.path.relpath(image.place, self.root), series.identifiers):
                name = f"study_{_hash(series.series_uid)}"
            hidden = name if names_patient("\n".join(map(str, paths)), series.identifiers) else ""
        wanted = [*self.options.labels]
        drawn = [label for file in image.labels for label in file.labels.values() if label != IGNORED]
        declared = image.labels and all(file.declared for file in image.labels)
        return Case(
            name,
            str(image.place) if series is None else sorted(map(str, series.files)),
            label_reader(image.labels, wanted, hidden) if image.labels else None,
            [label for label in dict.fromkeys(drawn) if not wanted or label in wanted] if declared else None,
            patient=self._patient(image),
            part=image.part or image.words.part,
            modality=image.modality or self._list_of(image.place).modality,
            series=series,
        )

    def _patient(self, image: _Image) -> str:
        if self.pattern is not None:
            if found := match_patient(self.pattern, image.place.relative_to(self.root).as_posix()):
                return self.options.patient(found)
            if image.series is None:
                message = "the pattern of patients finds none in the path; the case counts as a patient of its own."
                self._find("no patient", image.place, message, error=False)
        return "" if image.series is None else self.options.patient(patient_identifier(image.series))

    def _labels(self) -> list[str]:
        """Names of the labels, by value where maps have values, then in the order of the cases."""
        if self.options.labels:
            return list(self.options.labels)
        values: dict[str, int] = {}
        others: dict[str, None] = {}
        for file in (file for image in self.images if not image.left_out for file in image.labels):
            for value, name in sorted(file.labels.items()):
                if file.declared:
                    others[name] = None
                else:
                    values[name] = min(value, values.get(name, value))
        names = dict.fromkeys([*sorted(values, key=lambda name: values[name]), *others])
        return [name for name in names if name != IGNORED]


def _leave_out(images: Iterable[_Image]) -> None:
    for image in images:
        image.left_out = True


def _segments(path: Path) -> dict[int, str]:
    return {number: name for number, (_, _, name) in enumerate(slicer_segments(path), 1)}


def _fitting(label: _Label, images: Sequence[_Image], index: ImageIndex) -> list[_Image]:
    """The images that a label could be of by their paths and, where there are several, by their grids."""
    match = index.match(label.words)
    label.name, label.of_folder = match.name, match.of_folder
    found = [images[number] for number in match.images]
    if len(found) > 1 and len(fitting := [image for image in found if _fits(label, image)]) == 1:
        return fitting
    return found


def _fits(label: _Label, image: _Image) -> bool:
    """Whether the voxels of a label are those of the image, or with 3D Slicer's names some of them."""
    grid = header_grid(label.path)
    if image.series is None:
        of_image = header_grid(image.place)
    else:
        volume = next(iter(image.series.volumes.values()), None)
        of_image = None if volume is None else (volume.size, RAS_TO_LPS @ volume.grid.affine_lps)
    if grid is None or of_image is None or len(of_image[0]) != 3 or len(grid[0]) != 3:
        return False
    try:
        steps = whole_steps(grid[1], grid[0], of_image[1])
    except InputError:
        return False
    ends = np.abs(steps[:3, :3] @ np.array(grid[0]))
    return bool(label.segments) or ends.tolist() == list(of_image[0])


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]
