"""Configuration of the documentation: ``sphinx-build -W --keep-going -b html docs docs/_build/html``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import skclip
from skclip.utils._discovery import public_modules

HERE = Path(__file__).parent

project = "skclip"
author = "The skclip developers"
copyright = author
version = release = skclip.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "tables", "generated/backreferences"]
default_role = "py:obj"

# Inventories of other projects need a network, which a local build may lack.
intersphinx_mapping: dict[str, tuple[str, None]] = {}
if os.environ.get("READTHEDOCS"):
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
    }

autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
toc_object_entries_show_parents = "hide"
numpydoc_show_class_members = False  # the templates list the methods that skclip defines itself

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    # The other scripts are commands, too long for a build of the documentation.
    "filename_pattern": r"[\\/]plot_",
    "ignore_pattern": r"(^|[\\/])(?!plot_)[^\\/]*\.py$",
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("skclip",),
    "reference_url": {"skclip": None},
    "abort_on_example_error": True,
    "download_all_examples": False,
    "write_computation_times": False,
    "min_reported_time": 3600,  # times of a shared machine tell nothing
    "remove_config_comments": True,
    "show_signature": False,
    "capture_repr": (),
    "thumbnail_size": (500, 350),
}

html_theme = "pydata_sphinx_theme"
html_title = "skclip"
html_static_path = ["_static"]
html_css_files = ["skclip.css"]
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "skclip"},
    "show_toc_level": 2,
    "header_links_before_dropdown": 5,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
}
html_sidebars = {"index": [], "getting_started": []}


def setup(app: Any) -> None:
    app.connect("builder-inited", _write_model_cards)
    app.connect("missing-reference", _find_by_public_name)


def _public_names() -> dict[str, str]:
    """Where the API reference documents each public name."""
    names = {}
    for module in public_modules():
        for name in getattr(module, "__all__", ()):
            names[name] = f"{module.__name__}.{name}"
    names.update({name: f"skclip.{name}" for name in ("clear_backbones", "clear_store", "get_card", "list_models")})
    return names


_NAMES = _public_names()


def _find_by_public_name(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Docstrings name things as users import them, `skclip.GDAClassifier`: link that to its page."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"].removeprefix("skclip.")
    owner, _, attribute = target.partition(".")
    if owner not in _NAMES:
        return None
    full = f"{_NAMES[owner]}.{attribute}" if attribute else _NAMES[owner]
    if full == node["reftarget"]:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", full, node, contnode)


def _write_model_cards(app: Any) -> None:
    """The bundled models' cards, which are Markdown, as one piece of reStructuredText to include."""
    cards = sorted(Path(skclip.__file__).parent.glob("_backbones/tiny/*.md"), key=lambda path: path.stem)
    target = HERE / "generated" / "model_cards.inc"
    target.parent.mkdir(exist_ok=True)
    target.write_text("\n\n".join(_to_rst(card.read_text(encoding="utf-8")) for card in cards), encoding="utf-8")


def _to_rst(markdown: str) -> str:
    """Headings, paragraphs, lists and tables of a model card; one level below the page's title."""
    blocks = re.split(r"\n{2,}", markdown.strip())
    return "\n\n".join(_block_to_rst(block) for block in blocks) + "\n"


def _block_to_rst(block: str) -> str:
    block = re.sub(r"(?<!`)`([^`\n]+)`(?!`)", r"``\1``", block)
    heading = re.fullmatch(r"(#+) (.+)", block)
    if heading:
        level, title = len(heading[1]), heading[2]
        return f"{title}\n{'-~^'[level - 1] * len(title)}"
    if not block.startswith("|"):
        return block
    head, _, *rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [head, *rows]:
        row += [""] * (len(head) - len(row))
        lines += [f"   {'* -' if i == 0 else '  -'} {cell}".rstrip() for i, cell in enumerate(row)]
    return "\n".join(lines)
