# SPDX-License-Identifier: Apache-2.0
"""Lies here so that pytest puts this folder on the path, and every test can import the helpers beside it."""

from __future__ import annotations

import os

import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # one of as many processes as there are cores
    torch.set_num_threads(1)
