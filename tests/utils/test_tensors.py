# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest
import warnings

import torch
from parameterized import parameterized

from monai_dvpt.utils import InputError, check_finite, check_type

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch announces the end of some of these
    QUANTISED = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    CSR = torch.ones(2, 2).to_sparse_csr()


class TestType(unittest.TestCase):
    @parameterized.expand(
        [
            (torch.zeros(2, dtype=torch.complex64), "got complex64"),
            (torch.zeros(2, dtype=torch.bool), "got bool"),
            (torch.zeros(2).to(torch.float8_e4m3fn), "got float8_e4m3fn"),
            (torch.zeros(2).to(torch.float8_e5m2), "got float8_e5m2"),
            (torch.zeros(2, device="meta"), "a meta tensor"),
            (torch.eye(3).to_sparse(), "got torch.sparse_coo"),
            (CSR, "got torch.sparse_csr"),
            (torch.zeros(1).expand(3), "got an expanded one, 3 values in 4 bytes"),
            (torch.zeros(6).as_strided((4, 3), (1, 1)), "got an expanded one, 12 values in 24 bytes"),
            (QUANTISED, "got torch.strided, torch.qint8"),
        ]
    )
    def test_no_plain_numbers(self, tensor, words):
        for dtype in (None, torch.float32, torch.int64):
            with self.assertRaisesRegex(InputError, f"^a.pt: norm.bias must .*{words}"):
                check_type("a.pt: norm.bias", tensor, dtype)

    @parameterized.expand([(torch.float16,), (torch.bfloat16,), (torch.float32,), (torch.float64,)])
    def test_floats(self, dtype):
        for wanted in (None, torch.float16, torch.float32):
            check_type("a.pt: x", torch.zeros(2, dtype=dtype), wanted)
        with self.assertRaisesRegex(InputError, "uint8, int8, int16, int32, int64, got"):
            check_type("a.pt: x", torch.zeros(2, dtype=dtype), torch.int64)

    def test_integers(self):
        for wanted in (None, torch.int32, torch.int64):
            check_type("a.pt: x", torch.zeros(2, dtype=torch.int64), wanted)
        with self.assertRaisesRegex(InputError, "float16, bfloat16, float32, float64, got int8"):
            check_type("a.pt: x", torch.zeros(2, dtype=torch.int8), torch.float32)


class TestFinite(unittest.TestCase):
    @parameterized.expand(
        [
            (torch.float64, 1e300, torch.float32),
            (torch.float64, -1e39, torch.float32),
            (torch.float32, 70000.0, torch.float16),
            (torch.float32, torch.inf, torch.float32),
            (torch.float64, torch.nan, torch.float64),
            (torch.bfloat16, -torch.inf, torch.float32),
            (torch.float16, torch.nan, torch.float32),
        ]
    )
    def test_refused(self, dtype, value, wanted):
        tensor = torch.zeros(3, 5, dtype=dtype)
        tensor[1, 2] = value
        with self.assertRaisesRegex(InputError, f"^a.pt: x must be finite as {str(wanted)[6:]}"):
            check_finite("a.pt: x", tensor, wanted)

    @parameterized.expand(
        [
            (torch.float64, 3.4e38, torch.float32),
            (torch.float32, 3.4e38, torch.float32),
            (torch.float64, 1e300, torch.float64),
            (torch.bfloat16, 3e38, torch.float32),
            (torch.int64, 2**62, torch.float32),
        ]
    )
    def test_allowed(self, dtype, value, wanted):
        check_finite("a.pt: x", torch.tensor([[value, 0]], dtype=dtype), wanted)
        check_finite("a.pt: x", torch.empty(0, dtype=dtype), wanted)
        check_finite("a.pt: x", torch.tensor(value, dtype=dtype), wanted)

    def test_expanded(self):
        with self.assertRaisesRegex(InputError, "must be finite"):
            check_finite("a.pt: x", torch.tensor([1.0, torch.inf]).expand(2, 2), torch.float32)


if __name__ == "__main__":
    unittest.main()
