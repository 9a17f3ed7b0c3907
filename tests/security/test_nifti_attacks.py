# SPDX-License-Identifier: Apache-2.0
"""NIfTI, NRRD and MetaImage files that are small and say, or become, much."""

from __future__ import annotations

import gzip
import json
import unittest

from utils_attack import attack
from utils_data import temporary_folder
from utils_headers import metaimage, nifti_1, nifti_2, nrrd

READ = """
import json

from monai_dvpt.transforms import LoadImage2D, LoadVolume

told = []
for path in arguments:
    for load in (LoadVolume(), LoadImage2D()):
        try:
            told.append(f"read {tuple(load(path).shape)}")
        except Exception as error:
            if not isinstance(root_cause(error), InputError):
                raise
            told.append(reason(error))
return json.dumps(told)
"""
SHAPE = (2, 3, 4)
ZEROS = gzip.compress(bytes(1 << 26), 9)
"""64 MiB in 64 KB; members of a compressed file follow each other."""
LARGE = "must take at most .* bytes of memory"
TRUNCATED = "is truncated or damaged"


class TestNiftiAttacks(unittest.TestCase):
    def test_small_files_that_grow(self):
        root = temporary_folder(self)
        start = gzip.compress(nifti_1(bytes(range(48)), SHAPE))
        attacks = {
            "grows": (start + ZEROS * 112, r"read \(1, 2, 3, 4\)", "two dimensions"),  # 7 GiB behind the values
            "says so": (gzip.compress(nifti_1(b"", (2000, 2000, 2000))) + ZEROS * 112, LARGE, LARGE),
            "says so, of double": (gzip.compress(nifti_1(b"", (800, 800, 800), 64)) + ZEROS, TRUNCATED, TRUNCATED),
            "says so, is empty": (nifti_1(b"", (32767,) * 7), LARGE, LARGE),
            "NIfTI-2": (gzip.compress(nifti_2(b"", (1 << 62,) * 7)) + ZEROS, LARGE, LARGE),
            "overflow": (nifti_2(b"", (1 << 32, 1 << 32, 1)), LARGE, LARGE),
            "below 0": (nifti_1(b"", (-1, -1, 4)), "size of at least 1", "size of at least 1"),
            "far": (gzip.compress(nifti_1(b"", SHAPE, offset=1e18)) + ZEROS, LARGE, LARGE),
            "far, NIfTI-2": (nifti_2(b"", SHAPE, offset=(1 << 63) - 1), "vox_offset must", "vox_offset must"),
            "before": (nifti_1(bytes(48), SHAPE, offset=-1), "vox_offset must", "vox_offset must"),
            "within the header": (nifti_1(bytes(48), SHAPE, offset=4), "vox_offset must", "vox_offset must"),
            "nowhere": (nifti_1(bytes(48), SHAPE, offset=float("nan")), "vox_offset must", "vox_offset must"),
            "cut": (gzip.compress(nifti_1(bytes(48), SHAPE), 0)[:-12], TRUNCATED, TRUNCATED),
            "NRRD": (nrrd(b"", sizes="20000 20000 20000"), LARGE, "is no PNG"),
            "MetaImage": (metaimage(b"", DimSize="20000 20000 20000"), LARGE, "is no PNG"),
            "dimensions": (metaimage(bytes(48), NDims="100000"), "NDims must be the number of sizes", "is no PNG"),
            "digits": (metaimage(b"", DimSize=f"{'9' * 5000} 1 1"), "must be whole numbers", "is no PNG"),
        }
        for name, (content, *_) in attacks.items():
            (root / name).write_bytes(content)
        told = attack(READ, *(root / name for name in attacks), memory_bytes=2 << 30, seconds=120)
        reasons = json.loads(told.removeprefix("read: "))
        expected = [why for _, *ways in attacks.values() for why in ways]
        for name, got, why in zip([name for name in attacks for _ in "VI"], reasons, expected, strict=True):
            with self.subTest(name):
                self.assertRegex(got, why)


if __name__ == "__main__":
    unittest.main()
