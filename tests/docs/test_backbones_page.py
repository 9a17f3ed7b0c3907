# SPDX-License-Identifier: Apache-2.0
"""The page of families of backbones: every row is whole, and the networks, arguments and tests that it names exist."""

from __future__ import annotations

import inspect
import re
import unittest
from typing import Any

from parameterized import parameterized
from utils_data import ROOT

from monai_dvpt.networks import nets

PAGE = (ROOT / "docs" / "reference" / "backbones.md").read_text(encoding="utf-8")
TESTS = "".join(
    path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests" / "networks" / "pretrained").glob("test_*.py"))
)
LINK = r"\]\(https://[^)]+\)"


def tables(head: str) -> list[dict[str, str]]:
    """The rows of all tables whose first column is ``head``, by the names of their columns."""
    found = []
    for block in PAGE.split("\n\n"):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        if rows and rows[0][0] == head:
            found += [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
    return found


KINDS = {row["in the tables"]: row["networks"] for row in tables("in the tables")}
FAMILIES = [(row["family"], row) for row in tables("family")]


def networks_in(text: str) -> list[Any]:
    return [getattr(nets, name) for name in re.findall(r"`(DVPT\w+)`", text)]


class TestFamilies(unittest.TestCase):
    def test_are_many_and_once(self):
        names = [family.split(" (")[0] for family, _ in FAMILIES]
        self.assertGreaterEqual(len(names), 29)
        self.assertEqual(len(names), len(set(names)))

    @parameterized.expand(FAMILIES)
    def test_row(self, _, row):
        for column in ("weights", "licence"):
            self.assertRegex(row[column], LINK)
        kind = row["network"].split(" with ")[0].split(":")[0]
        found = networks_in(KINDS[kind])
        self.assertEqual(found == [], kind == "refused")
        for name in re.findall(r"`(\w+)=", row["network"] + KINDS[kind]):
            known = [name in inspect.signature(network).parameters for network in found]
            self.assertTrue(any(known), f"{name} is no argument of {kind}")

    @parameterized.expand(FAMILIES)
    def test_what_was_compared_is_tested(self, _, row):
        cases = re.findall(r"`(\w+)`", row["compared"].replace("`dynamic_network_architectures`", ""))
        self.assertTrue(cases)
        for case in cases:
            self.assertRegex(TESTS, rf'"{case}"|(def|class) {case}\b')


class TestText(unittest.TestCase):
    def test_networks(self):
        self.assertGreaterEqual(len(set(networks_in(PAGE))), 7)

    def test_tests(self):
        for name in re.findall(r"`((?:test_|Test)\w+)`", PAGE):
            self.assertRegex(TESTS, rf"(def|class) {name}\b")


if __name__ == "__main__":
    unittest.main()
