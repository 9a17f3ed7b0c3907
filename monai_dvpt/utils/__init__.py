# SPDX-License-Identifier: Apache-2.0
from .atomic_files import atomic_path, file_sha256, fingerprint, remove_leftovers, to_json, write_csv
from .checks import as_bool, check_counts, is_number, per_channel
from .describe import describe
from .errors import InputError, naming, naming_argument, reason, root_cause
from .label_sets import labels_of_values
from .limits import (
    MAX_FRAMES,
    MAX_HEADER_BYTES,
    MAX_ITEMS,
    MAX_NAME,
    MAX_TENSORS,
    check_bytes,
    check_file_bytes,
    max_bytes,
)
from .locks import FolderLock
from .monai_label import inside_monai_label, served_model, training_folder
from .progress import TimeLeft, progress
from .tensor_files import open_safetensors, read_npz, read_safetensors, read_torch
from .tensors import check_finite, check_type
from .typed import check_typed_paths, is_path_key, path_for_config, report_input_errors, setting_for_config
from .typed_options import check_typed_options

__all__ = [
    "MAX_FRAMES",
    "MAX_HEADER_BYTES",
    "MAX_ITEMS",
    "MAX_NAME",
    "MAX_TENSORS",
    "FolderLock",
    "InputError",
    "TimeLeft",
    "as_bool",
    "atomic_path",
    "check_bytes",
    "check_counts",
    "check_file_bytes",
    "check_finite",
    "check_type",
    "check_typed_options",
    "check_typed_paths",
    "describe",
    "file_sha256",
    "fingerprint",
    "inside_monai_label",
    "is_number",
    "is_path_key",
    "labels_of_values",
    "max_bytes",
    "naming",
    "naming_argument",
    "open_safetensors",
    "read_npz",
    "read_safetensors",
    "read_torch",
    "path_for_config",
    "per_channel",
    "progress",
    "reason",
    "remove_leftovers",
    "report_input_errors",
    "root_cause",
    "served_model",
    "setting_for_config",
    "to_json",
    "training_folder",
    "write_csv",
]
