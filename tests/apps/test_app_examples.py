# SPDX-License-Identifier: Apache-2.0
"""The examples in the docstrings of the app, which are not collected where MONAI Label is missing."""

from __future__ import annotations

import doctest
import importlib
import unittest

from parameterized import parameterized
from utils_server import require_monai_label


class TestExamples(unittest.TestCase):
    @parameterized.expand([("labels", False), ("scoring", True)])
    def test_module(self, name, needs_monai_label):
        if needs_monai_label:
            require_monai_label()
        result = doctest.testmod(importlib.import_module(f"monai_dvpt.apps.monailabel.{name}"))
        self.assertGreater(result.attempted, 0)
        self.assertEqual(result.failed, 0)
