# SPDX-License-Identifier: Apache-2.0
from .checks import as_bool, check_counts
from .command_line import check_command_line, parse_setting
from .describe import describe
from .errors import InputError, reason, report_input_errors, root_cause
from .files import atomic_path, fingerprint, remove_leftovers, to_json
from .limits import MAX_FRAMES, MAX_ITEMS, MAX_TENSORS, check_bytes, max_bytes
from .locks import lock_folder
from .monai_label import served_model, training_folder
from .runs import prepare_run

__all__ = [
    "MAX_FRAMES",
    "MAX_ITEMS",
    "MAX_TENSORS",
    "InputError",
    "as_bool",
    "atomic_path",
    "check_bytes",
    "check_command_line",
    "check_counts",
    "describe",
    "fingerprint",
    "lock_folder",
    "max_bytes",
    "parse_setting",
    "prepare_run",
    "reason",
    "remove_leftovers",
    "report_input_errors",
    "root_cause",
    "served_model",
    "to_json",
    "training_folder",
]
