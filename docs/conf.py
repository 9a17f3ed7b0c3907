# SPDX-License-Identifier: Apache-2.0
"""Settings of the Sphinx build: ``sphinx-build -W -b html docs docs/_build/html``."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

project = "monai_dvpt"
author = "monai_dvpt contributors"
copyright = author
release = re.search(r'^__version__ = "([^"]+)"$', (ROOT / project / "__init__.py").read_text(), re.MULTILINE)[1]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {release}"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
