"""Settings of the API reference: pages from docstrings, built by `sphinx-build -W vignettes/reference OUT`."""

from importlib.metadata import version as installed_version

project = "mixmoe"
author = "The mixmoe developers"
version = release = installed_version("mixmoe")
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
autodoc_typehints = "none"  # the docstrings give types and shapes
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
highlight_language = "text"  # equations are no Python
html_theme = "alabaster"
html_theme_options = {"description": "Mixtures of experts", "fixed_sidebar": True, "page_width": "1080px"}
html_show_sourcelink = False
html_copy_source = False
