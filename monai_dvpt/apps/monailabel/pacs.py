# SPDX-License-Identifier: Apache-2.0
"""The series of a PACS, by DICOMweb (DICOM PS3.18). Reads and logs nothing that names a patient."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import requests
from monailabel.datastore.utils.dicom import dicom_web_download_series
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.datadict import tag_for_keyword

from monai_dvpt.utils import InputError

__all__ = ["Pacs", "Segmentation"]

logger = logging.getLogger(__name__)

SEGMENT_SEQUENCE = f"{tag_for_keyword('SegmentSequence'):08X}"
SERIES = ("SeriesInstanceUID", "StudyInstanceUID", "Modality", "NumberOfSeriesRelatedInstances")


class Segmentation(NamedTuple):
    """
    A series with a DICOM Segmentation; the newest sorts last.

    Attributes:
        when: its date and time, as in DICOM.
        uid: its Series Instance UID.
        study: its Study Instance UID.
        image: UID of the series that it segments.
        names: names of its segments.
    """

    when: tuple[str, str]
    uid: str
    study: str
    image: str
    names: tuple[str, ...]


class Pacs:
    """A PACS, by a ``DICOMwebClient``."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._seen: dict[str, Segmentation | None] = {}  # a series does not change

    def list_series(self, search_filter: Mapping[str, Any]) -> list[str]:
        """UIDs of the series that pass a filter."""
        return [series["SeriesInstanceUID"] for series in self._search(search_filter)]

    def find(self, uid: str) -> dict[str, Any]:
        """
        The facts of a series, by the keywords of ``SERIES``.

        Raises:
            InputError: if the PACS lacks it.
        """
        for series in self._search({"SeriesInstanceUID": uid}):
            if series["SeriesInstanceUID"] == uid:
                return series
        raise InputError(f"series {uid}: is not in the PACS.")

    def list_segmentations(self) -> list[Segmentation]:
        """All that name the series they segment; warns of the others."""
        found = []
        for series in self._search({"Modality": "SEG"}):
            uid, study = series["SeriesInstanceUID"], series["StudyInstanceUID"]
            if uid not in self._seen:
                try:
                    header = self.client.retrieve_series_metadata(study, uid)[0]
                except (requests.RequestException, IndexError) as error:
                    why = type(error).__name__
                    logger.warning("DICOM SEG %s is left out: the PACS does not describe it: %s", uid, why)
                    continue
                image = _value(_value(header, "ReferencedSeriesSequence") or {}, "SeriesInstanceUID")
                date, time = (
                    str(_value(header, f"Content{part}") or _value(header, f"Series{part}") or "")
                    for part in ("Date", "Time")
                )
                segments = (header.get(SEGMENT_SEQUENCE) or {}).get("Value") or []
                names = tuple(str(_value(segment, "SegmentLabel") or "") for segment in segments)
                self._seen[uid] = Segmentation((date, time), uid, study, str(image), names) if image else None
                if not image:
                    logger.warning("DICOM SEG %s is left out: it does not name the series it segments.", uid)
            if (seg := self._seen[uid]) is not None:
                found.append(seg)
        return found

    def fetch(self, study: str, uid: str, folder: Path, by_frame: bool = False) -> None:
        """Downloads the files of a series into a new folder."""
        with disable_value_validation():  # whose warnings quote values
            dicom_web_download_series(study, uid, str(folder), self.client, by_frame)

    def store(self, path: str | os.PathLike, image: str) -> str:
        """
        Stores a DICOM Segmentation; returns the UID of its series.

        Args:
            path: its file.
            image: UID of the series that it segments.

        Raises:
            InputError: if the PACS does not confirm it.
        """
        with disable_value_validation():
            seg = dcmread(path)
            try:
                answer = self.client.store_instances([seg])
            except requests.HTTPError as error:
                why = f"HTTP {getattr(error.response, 'status_code', 'error')}"
            else:
                stored = [item.ReferencedSOPInstanceUID for item in answer.get("ReferencedSOPSequence") or []]
                if seg.SOPInstanceUID in stored:
                    return str(seg.SeriesInstanceUID)
                why = f"reason {(answer.get('FailedSOPSequence') or [answer])[0].get('FailureReason')}"
        raise InputError(f"series {image}: the PACS must take its DICOM SEG, refused it: {why}.")

    def _search(self, search_filter: Mapping[str, Any]) -> list[dict[str, Any]]:
        found = self.client.search_for_series(search_filters=dict(search_filter))
        return [{keyword: _value(series, keyword) for keyword in SERIES} for series in found]


def _value(found: Mapping[str, Any], keyword: str) -> Any:
    """First value of an element of DICOM JSON; None if it has none."""
    return ((found.get(f"{tag_for_keyword(keyword):08X}") or {}).get("Value") or [None])[0]
