# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import unittest

from parameterized import parameterized

from monai_dvpt.utils import InputError, per_channel


class TestPerChannel(unittest.TestCase):
    @parameterized.expand(
        [(0.5, [0.5, 0.5, 0.5]), (0, [0, 0, 0]), ([1, 2, 3.5], [1, 2, 3.5]), ((-1, 0, 1), [-1, 0, 1])]
    )
    def test_numbers(self, value, expected):
        self.assertEqual(per_channel("image_mean", value, 3), expected)

    @parameterized.expand([([1, 2],), ("0.5",), (None,), (True,), ([1, 2, "3"],), (math.nan,), ([1, 2, math.inf],)])
    def test_anything_else(self, value):
        with self.assertRaisesRegex(InputError, "image_mean must be a number, or one for each of 3 channels, got"):
            per_channel("image_mean", value, 3)

    @parameterized.expand([(0,), ([1, 0, 1],), ([1, 1, -0.1],)])
    def test_too_small(self, value):
        with self.assertRaisesRegex(
            InputError, "image_std must be a number above 0, or one for each of 3 channels, got"
        ):
            per_channel("image_std", value, 3, above=0)


if __name__ == "__main__":
    unittest.main()
