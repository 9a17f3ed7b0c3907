# SPDX-License-Identifier: Apache-2.0
from .errors import InputError, reason, report_input_errors
from .files import atomic_path

__all__ = ["InputError", "atomic_path", "reason", "report_input_errors"]
