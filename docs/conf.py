"""Sphinx: the documentation is the Markdown of this folder."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from backends import __version__

project = "sscn-bench"
author = "The sscn-bench developers"
copyright = author
release = __version__

extensions = ["myst_nb"]
exclude_patterns: list[str] = []
myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 3
os.environ["PLOTLY_RENDERER"] = "notebook"  # figures as HTML, which needs no network
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_timeout = 600

html_theme = "furo"
html_title = "sscn-bench"
html_static_path: list[str] = []
