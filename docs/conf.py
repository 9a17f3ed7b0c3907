# SPDX-License-Identifier: Apache-2.0
"""Settings of the Sphinx build: ``sphinx-build -W -b html docs docs/_build/html``."""

import os
import re
import sys
from functools import partialmethod
from pathlib import Path

from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

project = "monai_dvpt"
author = "monai_dvpt contributors"
copyright = author
release = re.search(r'^__version__ = "([^"]+)"$', (ROOT / project / "__init__.py").read_text(), re.MULTILINE)[1]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {release}"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# The tutorials run where the shared data are; elsewhere the pages show the outputs that are kept in the notebooks.
SHARED_DATA = ROOT.parent / "shared" / "data"
if SHARED_DATA.is_dir():
    os.environ.setdefault("MONAI_DVPT_TEST_DATA", str(SHARED_DATA))
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cells call python
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
nb_execution_mode = "force" if os.environ.get("MONAI_DVPT_TEST_DATA") else "off"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 900  # seconds for a cell
# What a shell prints comes in pieces of 100 bytes; myst_nb would end a line after each, nbclient joins them.
NotebookClient.__init__ = partialmethod(NotebookClient.__init__, coalesce_streams=True)
nb_output_stderr = "remove"  # libraries warn there; what fails raises

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
