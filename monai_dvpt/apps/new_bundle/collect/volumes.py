# SPDX-License-Identifier: Apache-2.0
"""Volumes with segmentations, in a folder of any shape."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from monai_dvpt.data import DicomSeries
from monai_dvpt.data.cases import NO_SERIES, unique_names
from monai_dvpt.data.dicom.privacy import names_patient
from monai_dvpt.data.dicom.series import VOLUMES
from monai_dvpt.data.dicom_rtstruct import STORAGE as RTSTRUCT
from monai_dvpt.data.dicom_rtstruct import describe_rtstruct
from monai_dvpt.data.dicom_segmentation import STORAGE as SEG
from monai_dvpt.data.dicom_segmentation import describe_dicom_seg
from monai_dvpt.data.gradelist import match_patient, patient_regex
from monai_dvpt.utils import InputError, reason

from ..model import IGNORED, Case, Collection, Finding, Options
from .volume_channels import HINT, choose_channels
from .volume_files import Folder, header_grid, label_values, patient_identifier, scan, series_place
from .volume_images import VolumeImage, VolumeLabel, fitting_images, leave_out, volume_label
from .volume_labels import LabelFile, label_reader, names_of
from .volume_lists import DataList, read_lists
from .volume_names import ImageIndex, PathWords

__all__ = ["collect_volumes"]


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
        self.images: list[VolumeImage] = []
        self.findings: list[Finding] = []
        self.segmented = False

    def collect(self) -> Collection | None:
        folder = scan(self.root)
        self.identifiers = frozenset().union(*(series.identifiers for series in folder.series))
        self.lists, problems = read_lists(self.root, folder.files, bool(self.options.channels))
        self.channels = choose_channels(self.options.channels, self.lists)
        if self.channels.names and not any(finding.error for finding in problems):
            files = [volume_label(path, self._words(path)) for path in folder.volumes]
            self.channels.find_files([file.path for file in files if not file.is_label()])
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
        collection = Collection("segmentation", 3, self.root, cases, self._labels(), findings=self.findings)
        collection.channels, collection.file_channels = self.channels.names, self.channels.of_files
        return collection

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
            labels: list[tuple[VolumeImage, Path]] = []
            self.segmented |= any(lists.pairs.values())
            for place, label in lists.pairs.items():
                image = self._image(place)
                named |= {place, label or place, *image.channels}
                odd = [path for path in (place, label or place) if path.exists() and path not in volumes]
                if odd and {finding.where for finding in self.findings} >= set(map(self._shown, odd)):
                    continue  # for the reason that is found already
                if odd:
                    self._find("listed file", place, "a list names it or its label, but one of them is no volume.")
                elif place in volumes:
                    image.part = lists.parts[place]
                    self.images.append(image)
                    if label is not None and label in volumes:
                        labels.append((image, label))
            self._add_maps(labels)
            if unlisted := below - named:
                message = f"{len(unlisted)} volumes that the list of this folder does not name are left out."
                self._find("not listed", lists.folder, message, error=False)
            done |= below
        return done

    def _add_maps(self, labels: Sequence[tuple[VolumeImage, Path]]) -> None:
        pairs = [(image, volume_label(path, self._words(path))) for image, path in labels]
        self._read_values([label for _, label in pairs])
        for image, label in pairs:
            self._attach([label], image)

    def _words(self, path: Path) -> PathWords:
        return PathWords.of(path, self.root)

    def _image(self, path: Path) -> VolumeImage:
        """The image that a file is, or is a channel of."""
        files, problem = self.channels.files_of(path)
        if not files:
            return VolumeImage(path, self._words(path))
        place = self.channels.groups[path].place
        words = self._words(place / "image.nii.gz" if place.is_dir() else place)  # that it is an image is known
        return VolumeImage(files[0], words, channels=files, named_after=place, problem=problem)

    def _list_of(self, path: Path) -> DataList:
        return next((lists for lists in self.lists if path.is_relative_to(lists.folder)), DataList(self.root))

    # DICOM

    def _add_series(self, found: Sequence[DicomSeries]) -> None:
        others: Counter[str] = Counter()
        for series in found:
            if series.is_image and series.verdict in VOLUMES:
                place = series_place(series)
                self.images.append(VolumeImage(place, self._words(place), series, modality=series.modality))
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
                leave_out(images)
            else:
                images[0].labels.append(LabelFile(path, kind, names, ignored=tuple(self.options.ignored)))

    def _leave_out_series(self) -> None:
        """Series beside those with labels, series that cannot be read, and studies without a label."""
        studies: dict[str, list[VolumeImage]] = {}
        labelled = [image for image in self.images if image.series is not None and image.labels]
        if labelled and self.channels.names:
            self._find("series are no channels", labelled[0].place, f"{NO_SERIES}; got {len(labelled)} series.")
            leave_out(image for image in self.images if image.series is not None)
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
                leave_out(others)
            for image in images:
                if not image.left_out and image.series is not None and image.series.verdict != "ok":
                    self._find("cannot be read", image.place, f"{image.series}.", error=bool(image.labels))
                    image.left_out = True

    # files

    def _pair_files(self, paths: Sequence[Path]) -> None:
        """Pairs label maps and images by their paths, and by their content where a path says nothing."""
        labels, others = [], []
        of_cases: set[Path] = set()
        for path in paths:
            label = volume_label(path, self._words(path))
            if label.is_label():
                labels.append(label)
            elif path not in of_cases:
                others.append(self._image(path))
                of_cases.update(others[-1].channels)
        self._read_values(labels)
        named = [*self.images, *others]
        index = ImageIndex([image.words for image in named])
        taken = {image for label in labels for image in fitting_images(label, named, index)}
        unclear = [image for image in others if not image.channels and not image.words.role and image not in taken]
        for image, values in zip(unclear, label_values([image.place for image in unclear]), strict=True):
            if isinstance(values, list):
                labels.append(VolumeLabel(image.place, image.words, values=values))
        maps = {label.path for label in labels}
        self.images += [image for image in others if image.place not in maps]
        index = ImageIndex([image.words for image in self.images])
        of_image: dict[VolumeImage, list[VolumeLabel]] = {}
        for label in labels:
            images = fitting_images(label, self.images, index)
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
                    message = f"an image must have one channel, its has {len(images)}; {HINT}."
                    self._find("several channels", [label.path, *(image.place for image in images)], message)
                else:
                    rule = "several series" if all(image.series for image in images) else "several images"
                    message = f"a label must be of one image, could be of {len(images)}; {HINT}."
                    self._find(rule, [label.path, *(image.place for image in images)], message)
                leave_out(images)
        for image, found in of_image.items():
            self._attach(found, image)

    def _read_values(self, labels: Sequence[VolumeLabel]) -> None:
        """The values of label maps, or why a file is none."""
        maps = [label for label in labels if not label.segments and not label.problem]
        for label, values in zip(maps, label_values([label.path for label in maps]), strict=True):
            if isinstance(values, InputError):
                label.problem = reason(values)
            else:
                label.values = values

    def _attach(self, labels: Sequence[VolumeLabel], image: VolumeImage) -> None:
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
        if others := [image for image in self.images if image.place in self.channels.others and not image.labels]:
            message = f"{len(others)} volumes beside the channels that are taken are left out."
            self._find("other channels", others[0].place, message, error=False)
            leave_out(others)
        for image in self.images:
            if image.left_out:
                continue
            self._check_labels(image)
            self._check_channels(image)
            if not image.labels and not image.channels and image.series is None and not self._is_volume(image):
                image.left_out = True
        kept = [image for image in self.images if not image.left_out]
        names = unique_names(self.root, [image.named_after or image.place for image in kept])
        return [self._case(image, name) for image, name in zip(kept, names, strict=True)]

    def _check_channels(self, image: VolumeImage) -> None:
        if image.series is None and not image.channels:
            image.problem = self.channels.problem_of(image.place)
        if not image.problem or image.left_out or not (image.labels or self.channels.names):
            return
        message = image.problem if image.labels else f"{image.problem} It has no label and is left out."
        rule = "several channels" if not self.channels.names else "missing channel"
        self._find(rule, image.place, message, error=bool(image.labels))
        image.left_out = True

    def _is_volume(self, image: VolumeImage) -> bool:
        if self.channels.names:
            return True
        grid = header_grid(image.place)
        if grid is None or len(grid[0]) == 3:
            return True
        message = f"it has no label and {len(grid[0])} dimensions, and is left out."
        self._find("no volume", image.place, message, error=False)
        return False

    def _check_labels(self, image: VolumeImage) -> None:
        counts = Counter(name for file in image.labels for name in set(file.labels.values()) - {IGNORED})
        twice = sorted(name for name, count in counts.items() if count > 1)
        if len(image.labels) > 1 and (twice or not all(file.declared for file in image.labels)):
            which = f" of {', '.join(twice)}" if twice else ""
            message = f"an image must have one label{which}, has {len(image.labels)}."
            self._find("two labels", [image.place, *(file.path for file in image.labels)], message)
            image.left_out = True

    def _case(self, image: VolumeImage, name: str) -> Case:
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
            self._paths(image),
            label_reader(image.labels, wanted, hidden) if image.labels else None,
            [label for label in dict.fromkeys(drawn) if not wanted or label in wanted] if declared else None,
            patient=self._patient(image),
            part=image.part or image.words.part,
            modality=image.modality or self.channels.modality or self._list_of(image.place).modality,
            series=series,
        )

    def _paths(self, image: VolumeImage) -> str | list[str]:
        if image.channels:
            return [str(path) for path in image.channels]
        return str(image.place) if image.series is None else sorted(map(str, image.series.files))

    def _patient(self, image: VolumeImage) -> str:
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


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]
