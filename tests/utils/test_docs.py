from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from sklearn.utils.metaestimators import available_if

import skclip
from skclip.utils._discovery import public_modules
from skclip.utils._docs import BLOCKS, fill_doc, filled


def public_docstrings():
    """Name and docstring of everything public, members that classes inherit included."""
    for module in public_modules():
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            yield f"{module.__name__}.{name}", getattr(value, "__doc__", None)
            if isinstance(value, type):
                for member, method in inspect.getmembers(value, callable):
                    yield f"{module.__name__}.{name}.{member}", method.__doc__


def test_no_placeholder_is_left():
    seen = 0
    for name, text in public_docstrings():
        seen += 1
        assert not re.search(r"%\(\w+\)s", text or ""), name
    assert seen > 500


def test_every_block_is_used_more_than_once():
    files = [path for path in Path(skclip.__file__).parent.rglob("*.py") if path.name != "_docs.py"]
    sources = [*BLOCKS.values(), *(path.read_text(encoding="utf-8") for path in files)]
    uses = Counter(name for source in sources for name in re.findall(r"^ *%\((\w+)\)s$", source, flags=re.MULTILINE))
    assert {name: uses[name] for name in BLOCKS if uses[name] < 2} == {}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_start_at_the_margin_and_fit_a_method(name):
    lines = BLOCKS[name].splitlines()
    assert lines[0] == lines[0].strip() != ""
    assert lines[-1].strip() != ""
    assert all(line == line.rstrip() and len(line) <= 112 for line in lines)


def test_blocks_are_as_far_indented_as_their_placeholder():
    @fill_doc
    class Estimator:
        """Takes {braces} and 5 % of %(what)s it gets.

        Attributes
        ----------
        %(classes_)s
            More about them.
        """

        def fit(self):
            """Fits.

            Parameters
            ----------
            %(X)s
            """

        @available_if(lambda self: True)
        def partial_fit(self):
            """Goes on.

            %(self)s
            """

        @staticmethod
        def static():
            """
            %(self)s"""

    assert inspect.getdoc(Estimator).splitlines() == [
        "Takes {braces} and 5 % of %(what)s it gets.",
        "",
        "Attributes",
        "----------",
        "classes_ : ndarray of shape (K,)",
        "    Labels of y, sorted.",
        "    More about them.",
    ]
    assert "\n            X : array-like of shape (n, d) or (n, V, d)\n                Image" in Estimator.fit.__doc__
    returned = "Returns\n-------\nself : object"
    assert inspect.getdoc(Estimator.partial_fit) == inspect.getdoc(Estimator().partial_fit) == f"Goes on.\n\n{returned}"
    assert inspect.getdoc(vars(Estimator)["partial_fit"]).endswith(returned)
    assert inspect.getdoc(Estimator.static) == returned


def test_blocks_in_blocks_add_their_indentation():
    lines = filled("    %(logits)s").splitlines()
    assert lines[:3] == ["    Parameters", "    ----------", "    X : array-like of shape (n, d) or (n, V, d)"]
    assert lines[4] == ""
    assert lines[-1].startswith("        Columns")


def test_what_a_class_inherits_is_left_to_its_owner():
    class Parent:
        def fit(self):
            """%(self)s"""

    @fill_doc
    class Child(Parent):
        pass

    assert Child.fit.__doc__ == "%(self)s"


def test_an_unknown_block_is_an_error():
    def function():
        """%(nothing)s"""

    with pytest.raises(ValueError, match="function asks for an unknown block, 'nothing'"):
        fill_doc(function)


def test_functions_without_a_docstring_are_left_alone():
    assert fill_doc(len) is len

    def function(): ...

    assert fill_doc(function).__doc__ is None


def test_imports_without_docstrings():
    code = "import skclip.adapters as a, skclip.metrics; assert a.GDAClassifier.__doc__ is None"
    subprocess.run([sys.executable, "-OO", "-c", code], check=True, cwd=Path(skclip.__file__).parents[1])
