"""Sphinx: the documentation is the Markdown of this folder."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
from command_reference import write_command_reference  # noqa: E402

from backends import __version__  # noqa: E402

project = "sscn-bench"
author = "The sscn-bench developers"
copyright = author
release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "numpydoc"]
exclude_patterns: list[str] = []
myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 3
os.environ["PLOTLY_RENDERER"] = "notebook"  # figures as HTML, which needs no network
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_timeout = 600

autodoc_typehints = "none"
numpydoc_show_class_members = False

linkcheck_timeout = 20
linkcheck_retries = 3
linkcheck_workers = 2  # servers refuse many requests at once
linkcheck_anchors_ignore_for_url = [r"https://github\.com/"]  # its pages make anchors by script

write_command_reference(HERE / "commands.md")

html_theme = "furo"
html_title = "sscn-bench"
html_static_path: list[str] = []
if tags.has("site"):  # type: ignore[name-defined]  # noqa: F821  # Sphinx defines it
    # Beside the rankings: `make site` puts the documentation into a folder of the site.
    templates_path = ["templates"]
    html_sidebars = {
        "**": [
            "sidebar/brand.html",
            "sidebar/search.html",
            "sidebar/scroll-start.html",
            "rankings.html",
            "sidebar/navigation.html",
            "sidebar/scroll-end.html",
        ]
    }
