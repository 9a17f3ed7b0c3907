# SPDX-License-Identifier: Apache-2.0
"""Lies here so that pytest puts this folder on the path, and every test can import the helpers beside it."""
