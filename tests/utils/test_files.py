# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import stat
import unittest

import torch
from parameterized import parameterized
from safetensors.torch import save_file
from utils_data import temporary_folder
from utils_limits import file_size_limit

from monai_dvpt.utils import InputError, atomic_path, fingerprint

CONTENT = {"a": torch.arange(50_000.0)}


class TestAtomicPath(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.path = self.folder / "old.nii.gz"
        self.path.write_text("old")

    def check_untouched(self) -> None:
        self.assertEqual(self.path.read_text(), "old")
        self.assertEqual(list(self.folder.iterdir()), [self.path])

    def test_replaces_on_success(self):
        with atomic_path(self.path) as temporary:
            temporary.write_text("new")
            self.assertEqual(temporary.parent, self.folder)
            self.assertTrue(temporary.name.endswith(".nii.gz"))
            self.assertEqual(self.path.read_text(), "old")
        self.assertEqual(self.path.read_text(), "new")
        self.assertEqual(list(self.folder.iterdir()), [self.path])

    def test_makes_folders(self):
        path = self.folder / "a" / "b" / "new.json"
        with atomic_path(str(path)) as temporary:
            temporary.write_text("{}")
        self.assertEqual(path.read_text(), "{}")

    @parameterized.expand([(0o022,), (0o077,), (0o002,)])
    def test_permissions_follow_umask(self, umask):
        self.addCleanup(os.umask, os.umask(umask))
        with atomic_path(self.path) as temporary:
            temporary.write_text("new")
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o666 & ~umask)
        self.assertEqual(os.umask(umask), umask)

    @parameterized.expand([(KeyError("a"),), (RuntimeError("b"),), (KeyboardInterrupt(),), (InputError("c"),)])
    def test_error_of_the_body_passes(self, error):
        with self.assertRaises(type(error)) as caught, atomic_path(self.path) as temporary:
            temporary.write_text("half")
            raise error
        self.assertIs(caught.exception, error)
        self.check_untouched()

    @parameterized.expand(
        [
            ("write", lambda path: path.write_bytes(bytes(200_000))),
            ("safetensors", lambda path: save_file(CONTENT, path)),
            ("torch", lambda path: torch.save(CONTENT, path)),
        ]
    )
    def test_full_disk(self, _, write):
        with self.assertRaises(InputError) as caught, file_size_limit(10_000), atomic_path(self.path) as temporary:
            write(temporary)
        self.assertTrue(str(caught.exception).startswith(f"{self.path}: cannot be written: "), caught.exception)
        self.check_untouched()

    def test_folder_that_is_a_file(self):
        path = self.path / "new.json"
        with self.assertRaisesRegex(InputError, f"^{path}: cannot be written: "), atomic_path(path):
            self.fail("the body must not run.")
        self.check_untouched()

    def test_file_that_is_a_folder(self):
        path = self.folder / "folder.json"
        (path / "kept").mkdir(parents=True)
        with self.assertRaisesRegex(InputError, f"^{path}: cannot be written: "), atomic_path(path) as temporary:
            temporary.write_text("{}")
        self.assertEqual(sorted(self.folder.iterdir()), sorted([self.path, path]))
        self.assertTrue((path / "kept").is_dir())

    def test_two_at_once(self):
        with atomic_path(self.path) as first, atomic_path(self.path) as second:
            first.write_text("first")
            second.write_text("second")
        self.assertEqual(self.path.read_text(), "first")  # the outer one ends last
        self.assertEqual(list(self.folder.iterdir()), [self.path])


class TestFingerprint(unittest.TestCase):
    def test_says_what_is_the_same(self):
        cases = [{"image": "/data/a.png", "label": [1, 2]}, {"image": "/data/b.png", "label": [0, 2]}]
        same = [{"label": [1, 2], "image": "/data/a.png"}, cases[1]]
        moved = [{**case, "image": case["image"].replace("/data", "/elsewhere/data")} for case in cases]
        self.assertEqual(fingerprint(cases), fingerprint(same))
        self.assertNotEqual(fingerprint(cases), fingerprint(moved))
        self.assertEqual(fingerprint(cases, "/data"), fingerprint(moved, "/elsewhere/data"))
        self.assertNotEqual(fingerprint(cases), fingerprint([cases[0], {**cases[1], "label": [0, 1]}]))


if __name__ == "__main__":
    unittest.main()
