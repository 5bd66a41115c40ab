"""How Sphinx builds this documentation."""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

project = "dtimer"
author = "dtimer contributors"
copyright = author

# Read the version as text, so that the pages also build if the package cannot be imported.
_found = re.search(
    r'^__version__(?:: \w+)? = "([^"]+)"',
    (ROOT / "dtimer/__init__.py").read_text("utf-8"),
    re.MULTILINE,
)
if _found is None:
    raise RuntimeError('dtimer/__init__.py has no line __version__ = "..."')
version = release = _found.group(1)

# For option_table.py, beside this file.
sys.path.insert(0, str(ROOT / "docs"))

extensions = [
    "option_table",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
# Docstrings write `name` for a nearby name.
default_role = "literal"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# Links to other projects' pages need the network, so they are optional: DOCS_INTERSPHINX=1.
if os.environ.get("DOCS_INTERSPHINX") == "1":
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "redis": ("https://redis.readthedocs.io/en/stable", None),
        "pyee": ("https://pyee.readthedocs.io/en/latest", None),
    }

html_theme = "furo"
html_title = f"dtimer {release}"
