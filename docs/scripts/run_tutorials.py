# SPDX-License-Identifier: Apache-2.0
"""
Runs the notebooks of ``docs/tutorials`` and keeps their outputs in them, for pages that are built without the data:

    MONAI_DVPT_TEST_DATA=DIR python docs/scripts/run_tutorials.py [NAME...]

Each runs in a folder of its own, which is then removed. Not kept are warnings, times of execution, and what depends on
the machine. A notebook with a cell that fails stays as it is, and so does one whose outputs name a folder of this
machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parents[1] / "tutorials"
TIMEOUT = 900  # seconds for a cell


def run(path: Path) -> None:
    """Runs a notebook, and writes it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        options = {"timeout": TIMEOUT, "record_timing": False, "coalesce_streams": True}
        NotebookClient(notebook, resources={"metadata": {"path": folder}}, **options).execute()
    keep(notebook, path, folder)


def keep(notebook: nbformat.NotebookNode, path: Path, folder: str) -> None:
    """Writes a notebook that ran in a folder, without what depends on the machine."""
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    text = nbformat.writes(notebook)
    private = (folder, os.environ["MONAI_DVPT_TEST_DATA"], str(TUTORIALS.parents[1]), f"{Path.home()}{os.sep}")
    if named := [each for each in private if each in text]:
        raise SystemExit(f"{path}: outputs must not name a folder of this machine, got {named[0]}.")
    nbformat.validate(notebook)
    path.write_text(f"{text.rstrip()}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs the tutorials and keeps their outputs.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of notebooks, without .ipynb; all by default")
    names = parser.parse_args().names or sorted(path.stem for path in TUTORIALS.glob("*.ipynb"))
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cells call python
    for name in names:
        run(TUTORIALS / f"{name}.ipynb")


if __name__ == "__main__":
    main()
