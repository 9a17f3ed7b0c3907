# SPDX-License-Identifier: Apache-2.0
from .checks import as_bool, check_counts
from .describe import describe
from .errors import InputError, reason, report_input_errors, root_cause
from .files import atomic_path, fingerprint, to_json
from .limits import MAX_FRAMES, MAX_HEADER_BYTES, MAX_ITEMS, MAX_NAME, MAX_TENSORS, check_bytes, max_bytes
from .monai_label import served_model, training_folder
from .tensor_files import open_safetensors, read_npz, read_safetensors, read_torch
from .tensors import check_finite, check_type

__all__ = [
    "MAX_FRAMES",
    "MAX_HEADER_BYTES",
    "MAX_ITEMS",
    "MAX_NAME",
    "MAX_TENSORS",
    "InputError",
    "as_bool",
    "atomic_path",
    "check_bytes",
    "check_counts",
    "check_finite",
    "check_type",
    "describe",
    "fingerprint",
    "max_bytes",
    "open_safetensors",
    "read_npz",
    "read_safetensors",
    "read_torch",
    "reason",
    "report_input_errors",
    "root_cause",
    "served_model",
    "to_json",
    "training_folder",
]
