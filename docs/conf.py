"""Configuration of Sphinx.

    sphinx-build -W --keep-going docs docs/_build/html            # -t offline: without links to other projects' pages

The pages are executed, on the suite of ``pythia-dyn demo``, which is trained by the first build and kept in
``docs/_build/demo``.
"""

import os
import subprocess
import sys
from pathlib import Path

from sphinx.application import Sphinx

import pythia_dynamics

DOCS = Path(__file__).parent
DEMO = DOCS / "_build" / "demo"

project = "pythia-dynamics"
author = "The pythia-dynamics developers"
copyright = author
version = release = pythia_dynamics.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_click",
    "sphinx_copybutton",
    "sphinx_llms_txt",
]
exclude_patterns = ["_build"]

# -- pages ------------------------------------------------------------------------------------------------------------

myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(DOCS / "_build" / "executed")
nb_execution_raise_on_error = False  # -W makes it an error, and other pages are still built
nb_execution_show_tb = True
nb_execution_timeout = 300
nb_execution_in_temp = False
nb_merge_streams = True

# -- the library's own text -------------------------------------------------------------------------------------------

default_role = "py:obj"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 88
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "numpy": ("https://numpy.org/doc/stable", None),
    "xarray": ("https://docs.xarray.dev/en/stable", None),
    "zarr": ("https://zarr.readthedocs.io/en/stable", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
    "matplotlib": ("https://matplotlib.org/stable", None),
}
if tags.has("offline"):  # noqa: F821  (Sphinx defines it)
    intersphinx_mapping = {}

# -- the site ---------------------------------------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = "pythia-dynamics"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options = {
    "show_toc_level": 2,
    "header_links_before_dropdown": 6,
    "navigation_with_keys": True,
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "secondary_sidebar_items": ["page-toc"],
}
html_show_sourcelink = False
llms_txt_title = "pythia-dynamics"
llms_txt_summary = (
    "A Python package and command line, pythia-dyn, that slices tensors out of the training checkpoints of language "
    "models by byte range, measures how the weights move, and tests published claims about it."
)


def make_demo(app: Sphinx) -> None:
    """Train and measure the suite of the demo, once, and let the pages find it."""
    os.environ["PYTHIA_DYN_CACHE"] = str(DEMO / "cache")
    os.environ["PYTHIA_DYN_RESULTS"] = str(DEMO / "results")
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["COLUMNS"] = "86"
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # of tqdm, about notebooks with widgets
    if not (DEMO / "results" / "demo" / "provenance.json").is_file():
        DEMO.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "pythia_dynamics", "demo"], check=True, cwd=DEMO)


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", make_demo)
