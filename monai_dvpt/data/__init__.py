# SPDX-License-Identifier: Apache-2.0
from .cases import find_cases
from .datalist import describe_cases, images_sha256, list_sha256, load_datalist
from .dicom import DicomSeries, DicomSeriesReader, SeriesGrid, choose_series, find_series
from .gradelist import load_gradelist, select_part
from .masklist import load_masklist
from .mni152 import make_mni152_dataset
from .prefix_cache import PrefixCacheDataset
from .quiet_cache import QuietCacheDataset
from .sampling import balanced_weights, training_sampler

__all__ = [
    "DicomSeries",
    "DicomSeriesReader",
    "PrefixCacheDataset",
    "QuietCacheDataset",
    "SeriesGrid",
    "balanced_weights",
    "choose_series",
    "describe_cases",
    "find_cases",
    "find_series",
    "images_sha256",
    "list_sha256",
    "load_datalist",
    "load_gradelist",
    "load_masklist",
    "make_mni152_dataset",
    "select_part",
    "training_sampler",
]
