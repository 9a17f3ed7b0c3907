# SPDX-License-Identifier: Apache-2.0
"""Writes the files of a bundle."""

from .bundle import check_new, update_lists, write_bundle

__all__ = ["check_new", "update_lists", "write_bundle"]
