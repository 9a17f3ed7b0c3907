# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest

from parameterized import parameterized

from monai_dvpt.utils import as_bool


class TestAsBool(unittest.TestCase):
    @parameterized.expand([(True, True), (False, False), ("true", True), ("False", False), ("TRUE", True)])
    def test_values(self, value, expected):
        self.assertIs(as_bool("amp", value), expected)

    @parameterized.expand([(1,), ("yes",), (None,), ("",)])
    def test_refuses(self, value):
        with self.assertRaisesRegex(ValueError, "^amp must be true or false, got"):
            as_bool("amp", value)


if __name__ == "__main__":
    unittest.main()
