"""Settings of the site, built by ``python -m sphinx -W vignettes build/site``.

Notebooks are shown with the outputs that they carry; `run.py` executes them. The reference comes from docstrings.
"""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from simulation_figures import coverage

project = "mixmoe"
author = copyright = "The mixmoe developers"
version = release = installed_version("mixmoe")
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
nitpicky = False

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

add_module_names = False
autodoc_typehints = "none"  # the docstrings give types and shapes
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = True
autosummary_generate = False
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
highlight_language = "text"  # equations of docstrings are no Python
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = "mixmoe"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}


def setup(app: Any) -> None:
    """Draw the figures of the simulation results from their tables."""
    here = Path(__file__).resolve().parent
    coverage(here.parent / "tests" / "simulation" / "COVERAGE.md", here / "_generated" / "coverage.png")
