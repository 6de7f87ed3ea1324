"""How Sphinx builds the site: `make docs`."""

import os
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
from measured import OPTIONAL, present  # noqa: E402

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

project = "keyfilters"
author = "The keyfilters developers"
copyright = "the keyfilters developers, Apache-2.0"
release = version = installed_version("keyfilters")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "matplotlib.sphinxext.plot_directive",
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
    "filled_pages",
]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
exclude_patterns += [f"results/{page}.md" for page in OPTIONAL if not present(page)]
suppress_warnings = ["config.cache"]

# Pages.
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

# Figures are drawn when the site is built; nothing of them is in the repository.
plot_html_show_source_link = False
plot_html_show_formats = False
plot_include_source = False
plot_formats = [("png", 150)]
plot_rcparams = {"font.family": "DejaVu Sans", "figure.autolayout": False}

# Reference.
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 80
maximum_signature_line_length = 80
add_module_names = False

# Look. No font, script or style comes from the network, so that the site works from a folder.
html_math_renderer = "mathml"
smartquotes = False  # they would turn --out into –out
html_theme = "furo"
html_title = "keyfilters"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
templates_path = []
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
linkcheck_ignore = [r"https?://.*"]  # local links only: builds must not need a network
default_role = "py:obj"  # names in single backticks in docstrings
