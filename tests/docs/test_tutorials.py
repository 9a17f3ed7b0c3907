# SPDX-License-Identifier: Apache-2.0
"""The notebooks of the documentation: what is kept in them, what they name, and when the build runs them."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import re
import runpy
import shlex
import sys
import unittest
from collections.abc import Iterator
from unittest.mock import patch

import nbformat
from parameterized import parameterized
from utils_data import ROOT, VARIABLE, temporary_folder

from monai_dvpt.__main__ import COMMANDS

TUTORIALS = ROOT / "docs" / "tutorials"
TEMPLATES = ROOT / "monai_dvpt" / "apps" / "new_bundle" / "write" / "templates"
PICTURES = {"knee_grades": 1, "organs_from_dicom": 1, "correct_and_train_again": 0}  # at least
KINDS = {name: "classification" if name == "knee_grades" else "volume_segmentation" for name in PICTURES}
EACH = [(name,) for name in PICTURES]
LARGEST = 300_000  # bytes
MACHINE = r"(?<![\w.])/(?:tmp|home|root|work|Users|usr|opt|var|mnt|private|builds?)/|[A-Z]:\\\\|site-packages"
STRICT = "set -eo pipefail\n"


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4)


def cells_of(name: str, kind: str = "code") -> list[nbformat.NotebookNode]:
    return [cell for cell in read(name).cells if cell.cell_type == kind]


def texts_of(cell: nbformat.NotebookNode) -> Iterator[str]:
    """What the outputs of a cell say, without pictures."""
    for output in cell.outputs:
        yield output.get("text", "")
        yield from (value for kind, value in output.get("data", {}).items() if not kind.startswith("image/"))


def commands_of(name: str) -> list[list[str]]:
    """Words of each call of Python in the shell, in cells and in the text."""
    scripts = [cell.source for cell in cells_of(name) if cell.source.startswith("%%bash")]
    for cell in cells_of(name, "markdown"):
        scripts += re.findall(r"```bash\n(.*?)```", cell.source, re.DOTALL)
    lines = "\n".join(scripts).replace("\\\n", " ").splitlines()
    found = [re.search(r"python -m (.*?)(?: \| | && |$)", line) for line in lines]
    return [shlex.split(match[1]) for match in found if match]


class TestKeptOutputs(unittest.TestCase):
    def test_all_are_listed(self):
        self.assertEqual(sorted(path.stem for path in TUTORIALS.glob("*.ipynb")), sorted(PICTURES))
        index = (TUTORIALS / "index.md").read_text(encoding="utf-8")
        for name in PICTURES:
            self.assertIn(f"({name}.ipynb)", index)
            self.assertIn(f"{{download}}`{name}.ipynb`", index)
            self.assertRegex(index, rf"(?m)^{name}$")

    @parameterized.expand(EACH)
    def test_are_there_and_clean(self, name):
        self.assertLess((TUTORIALS / f"{name}.ipynb").stat().st_size, LARGEST)
        nbformat.validate(json.loads((TUTORIALS / f"{name}.ipynb").read_text(encoding="utf-8")))
        code, pictures = cells_of(name), 0
        self.assertEqual([cell.execution_count for cell in code], list(range(1, len(code) + 1)))
        for cell in code:
            self.assertEqual(cell.metadata, {})
            self.assertFalse(cell.source.startswith("%%bash") and not any(texts_of(cell)), cell.source)
            for output in cell.outputs:
                self.assertNotEqual(output.output_type, "error")
                self.assertNotEqual(output.get("name"), "stderr")
                pictures += "image/png" in output.get("data", {})
            for text in texts_of(cell):
                self.assertNotRegex(text, MACHINE)
                self.assertNotRegex(text, r"Warning|Traceback")
        self.assertGreaterEqual(pictures, PICTURES[name])

    @parameterized.expand(EACH)
    def test_of_data_that_may_be_shown(self, name):
        text = "\n".join(cell.source for cell in read(name).cells)
        self.assertRegex(text, r"CC BY(-SA)? 4\.0")
        self.assertNotRegex(text, "(?i)brixia|skin_lesions|dr_fundus|CC BY-NC")


class TestWhatTheyName(unittest.TestCase):
    @parameterized.expand(EACH)
    def test_imports(self, name):
        for cell in cells_of(name):
            if cell.source.startswith("%%"):
                continue
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Import):
                    for alias in node.names:
                        importlib.import_module(alias.name)
                elif isinstance(node, ast.ImportFrom):
                    module = importlib.import_module(str(node.module))
                    ours = str(node.module).startswith("monai_dvpt")
                    for alias in node.names:
                        known = module.__all__ if ours else dir(module)
                        self.assertIn(alias.name, known, node.module)

    @parameterized.expand(EACH)
    def test_commands_of_this_package(self, name):
        parser = argparse.ArgumentParser(exit_on_error=False)
        commands = parser.add_subparsers()
        for module in COMMANDS:
            module.add_parser(commands)
        ours = [words[1:] for words in commands_of(name) if words[0] == "monai_dvpt"]
        self.assertGreaterEqual(len(ours), 2)
        for words in ours:
            self.assertTrue(callable(parser.parse_args(words).run), words)

    @parameterized.expand(EACH)
    def test_settings_of_the_bundle(self, name):
        runs = [words[2:] for words in commands_of(name) if words[:2] == ["monai.bundle", "run"]]
        self.assertGreaterEqual(len(runs), 3)
        for options in runs:
            self.assertEqual(options[0], "--config_file")
            configs = re.findall(r"configs/(\w+\.yaml)", options[1])
            texts = [(TEMPLATES / KINDS[name] / config).read_text(encoding="utf-8") for config in configs]
            self.assertTrue(texts)
            for option in options[2::2]:
                self.assertRegex("\n".join(texts), rf"(?m)^{option.removeprefix('--')}:")


class TestBuild(unittest.TestCase):
    @parameterized.expand(EACH)
    def test_cells_that_fail_raise(self, name):
        for cell in cells_of(name):
            self.assertNotRegex(cell.source, r"(?m)^\s*!|--no-raise-error")  # IPython goes on after these
            lines = cell.source.replace("\\\n", " ").splitlines()
            if lines[0].startswith("%%bash") and (len(lines) > 2 or "|" in cell.source):
                self.assertTrue(cell.source.partition("\n")[2].startswith(STRICT), cell.source)

    @parameterized.expand([("without data", False), ("with data", True)])
    def test_runs_them_where_the_data_are(self, _, there):
        root = temporary_folder(self)
        conf = root / "clone" / "docs" / "conf.py"
        (root / "clone" / "monai_dvpt").mkdir(parents=True)
        conf.parent.mkdir()
        conf.write_text((ROOT / "docs" / "conf.py").read_text(encoding="utf-8"), encoding="utf-8")
        (conf.parents[1] / "monai_dvpt" / "__init__.py").write_text('__version__ = "1.2.3"\n')
        if there:
            (root / "shared" / "data").mkdir(parents=True)
        with patch.dict(os.environ), patch.object(sys, "path", list(sys.path)):
            os.environ.pop(VARIABLE, None)
            settings = runpy.run_path(str(conf))
            found = os.environ.get(VARIABLE)
        self.assertEqual(settings["nb_execution_mode"], "force" if there else "off")
        self.assertEqual(found, str(root / "shared" / "data") if there else None)
        self.assertTrue(settings["nb_execution_raise_on_error"])


if __name__ == "__main__":
    unittest.main()
