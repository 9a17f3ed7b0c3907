# SPDX-License-Identifier: Apache-2.0
"""No module of the package imports, by whatever way round, a module that imports it."""

from __future__ import annotations

import ast
import unittest
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from parameterized import parameterized
from utils_data import ROOT, temporary_folder

PACKAGE = "monai_dvpt"
KNOWN = {("monai_dvpt.utils.errors", "monai_dvpt.utils.typed")}  # inside a function, to be untied


def modules_of(root: Path, package: str) -> dict[str, Path]:
    """The files of a package by the names of its modules."""
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def import_statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All that a module imports, also inside functions, but for what only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for statement in child.orelse:
                yield from import_statements(ast.Module([statement], []))
        else:
            yield from import_statements(child)


def named_by(statement: ast.Import | ast.ImportFrom, module: str, is_package: bool) -> Iterator[str]:
    """Absolute names of what a statement of a module may import; of ``from a import b`` this is ``a.b``."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
        return
    parts = module.split(".")
    above = parts[: len(parts) - statement.level + is_package] if statement.level else []
    base = ".".join([*above, *([statement.module] if statement.module else [])])
    yield from (f"{base}.{alias.name}" for alias in statement.names)


def import_graph(root: Path, package: str) -> dict[str, set[str]]:
    """For every module of a package those that it imports, with the packages that they lie in and it does not."""
    modules = modules_of(root, package)
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        graph[module] = set()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for statement in import_statements(tree):
            for name in named_by(statement, module, path.name == "__init__.py"):
                if name not in modules:
                    name = name.rpartition(".")[0]  # what is imported is no module, but lies in one
                if name not in modules:
                    continue
                steps = name.split(".")
                packages = {".".join(steps[:depth]) for depth in range(1, len(steps))}
                graph[module] |= {name} | {each for each in packages if not f"{module}.".startswith(f"{each}.")}
    return graph


def cycle_of(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


class TestImports(unittest.TestCase):
    def test_no_circle(self):
        graph = import_graph(ROOT, PACKAGE)
        self.assertGreater(sum(map(len, graph.values())), 100)
        self.assertIn(f"{PACKAGE}.networks.encoders", graph[f"{PACKAGE}.networks.parts"])
        for module, other in KNOWN:
            graph[module].remove(other)
        self.assertEqual(cycle_of(graph), [])

    @parameterized.expand(
        [
            ("in a line", {"a": "from . import b", "b": "import os"}, False),
            ("each other", {"a": "from .b import x", "b": "from p import a"}, True),
            ("round three", {"a": "import p.b", "b": "from p.c import x", "c": "from .a import y"}, True),
            ("in a function", {"a": "from .b import x", "b": "def f():\n    from .a import y"}, True),
            ("itself", {"a": "from .a import x"}, True),
            ("through its package", {"__init__": "from .a import x", "a": "from p import x"}, True),
            ("through another", {"q/__init__": "from p.a import x", "a": "from p.q.b import y", "q/b": ""}, True),
            ("of a package", {"__init__": "from .a import x", "a": "from .b import x", "b": ""}, False),
            ("for types", {"a": "from .b import x", "b": "if TYPE_CHECKING:\n    from .a import y"}, False),
            ("else", {"a": "from .b import x", "b": "if TYPE_CHECKING:\n    pass\nelse:\n    from .a import y"}, True),
        ]
    )
    def test_the_walk_itself(self, _, files, circle):
        root = temporary_folder(self)
        for name, text in {"__init__": "", **files}.items():
            path = root / "p" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.assertEqual(bool(cycle_of(import_graph(root, "p"))), circle)


if __name__ == "__main__":
    unittest.main()
