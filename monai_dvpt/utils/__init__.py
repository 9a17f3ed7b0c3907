# SPDX-License-Identifier: Apache-2.0
from .checks import as_bool, check_counts
from .describe import describe
from .errors import InputError, reason, report_input_errors, root_cause
from .files import atomic_path, fingerprint, to_json
from .monai_label import served_model, training_folder

__all__ = [
    "InputError",
    "as_bool",
    "atomic_path",
    "check_counts",
    "describe",
    "fingerprint",
    "reason",
    "report_input_errors",
    "root_cause",
    "served_model",
    "to_json",
    "training_folder",
]
