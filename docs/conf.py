"""How the pages are built: `make docs`, with warnings as errors."""

import simvm

project = "simvm"
author = "The simvm authors"
project_copyright = author
version = release = simvm.__version__

extensions = ["myst_nb"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# Pages that hold examples run them; one that fails, fails the build.
nb_execution_mode = "auto"
nb_execution_raise_on_error = True
nb_execution_timeout = 120

nitpicky = True
html_theme = "furo"
html_title = f"simvm {version}"
