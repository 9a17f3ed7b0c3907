# SPDX-License-Identifier: Apache-2.0
"""Writes the files of a bundle."""

from .bundle import update_lists, write_bundle

__all__ = ["update_lists", "write_bundle"]
