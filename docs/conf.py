"""Sphinx settings. The sources' root is the checkout, so that proofs, figures and notebooks are read where they lie."""

import re
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import propagate  # noqa: E402
from docs import generate  # noqa: E402

project = "propagate"
version = release = propagate.__version__
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "proofs/rendered/*.md",
    "figures/*.md",
    "notebooks/*.ipynb",
    "benchmarks/README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]
exclude_patterns = [
    ".*",
    "build",
    "docs/recipes",
    "propagate",
    "tests",
]  # not walked: a virtual environment has 17 000 files
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]

nb_execution_mode = "off"  # the notebooks are committed as they were executed
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 90
napoleon_use_ivar = True
napoleon_use_rtype = False
# Types of other projects, whose pages lie on the network, and names inside this one that have no page.
nitpick_ignore_regex = [
    ("py:.*", r"(collections|concurrent|contextlib|matplotlib|nn|numpy|os|pathlib|sp|sympy|torch|xr)\..*"),
    (
        "py:.*",
        r"Axes|Blocks|Choice|Dataset|Executor|Figure|Floats|Ids|Loss|NDArray|np\.float64|Optimizer|Precision|Scalar|Tensor|Use"
        r"|Visible",
    ),
    ("py:.*", r"propagate\.(layers\.(D|Parts)|tracing\.growth\.N|corpora\.Fetched|theory\.reading\.blocks\.Call)"),
    ("py:.*", r"propagate\.placement\.S|propagate\.montecarlo\.(workers\.Numbers|backend\.Backend)"),
    ("py:.*", r"propagate\.montecarlo\.(samplers\.Sampler|normals\.Normals)"),
]

# One file of MathJax 3 (Apache-2.0), from a package: formulas are drawn without a network.
MATHJAX = Path(
    str(distribution("sphinx-mathjax-offline").locate_file("sphinx-mathjax-offline/static/mathjax/tex-svg.js"))
)

html_theme = "furo"
html_show_copyright = False
html_title = f"propagate {release}"
html_static_path = ["style.css", "sort.js", str(MATHJAX)]
html_js_files = ["sort.js"]
html_css_files = ["style.css"]
mathjax_path = MATHJAX.name


def setup(app: Any) -> None:
    app.connect("builder-inited", lambda _: generate.outline() if app.tags.has("outline") else generate.write())
    app.connect("source-read", _complete)
    app.connect("autodoc-process-docstring", _plain, priority=400)  # before napoleon
    app.connect("build-finished", _with_entrance)


def _complete(_: Any, page: str, content: list[str]) -> None:
    """A figure's caption begins with its picture; its title is what stands in bold behind. A README leads to the pages
    beside it."""
    if page in ("figures/README", "proofs/rendered/README"):
        content[0] += "\n```{toctree}\n:hidden:\n:glob:\n\n*\n```\n"
    found = re.search(r"\*\*(.+?)\.?\*\*", content[0], re.DOTALL)
    if page.startswith("figures/") and found and not content[0].startswith("#"):
        content[0] = f"# {found[1]}\n\n{content[0]}"


def _plain(*arguments: Any) -> None:
    """What docstrings write and reStructuredText would misread: |z|, and one line for several arguments."""
    lines: list[str] = arguments[-1]
    size = re.compile(r"(?<![\w`|])\|(\w[^|`]*)\|")  # as in |z| or |W - W_0|^2
    text = "\n".join(line if line.lstrip().startswith(">>>") else size.sub(r"\\|\1\\|", line) for line in lines)
    entry = re.compile(r"^( +)(\w+), (\w+(?:, \w+)*): (.*(?:\n\1 .*)*)$", re.MULTILINE)
    while entry.search(text):
        text = entry.sub(r"\1\2: \4\n\1\3: \4", text)
    lines[:] = text.split("\n")


def _with_entrance(app: Any, _: Any) -> None:
    """The first page lies in docs/; whoever opens the folder above is led there."""
    Path(app.outdir, "index.html").write_text('<meta http-equiv="refresh" content="0; url=docs/index.html">\n')
