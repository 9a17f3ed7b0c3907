# SPDX-License-Identifier: Apache-2.0
"""DICOM series in: found, judged, chosen and read, right to 0.1 mm or refused with a reason."""

from .grid import SeriesGrid
from .reader import DicomSeriesReader
from .series import DicomSeries, choose_series, find_series
from .volumes import DicomVolume

__all__ = ["DicomSeries", "DicomSeriesReader", "DicomVolume", "SeriesGrid", "choose_series", "find_series"]
