"""The code of the documentation runs: its pages, the docstrings and the README."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

from skclip.utils._discovery import public_modules

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("docs/*.rst"), *ROOT.glob("docs/user_guide/*.rst")])
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def documented():
    """Public objects with examples in their docstrings, under the names that users import."""
    modules = [*public_modules(), importlib.import_module("skclip.utils.estimator_checks")]
    found = {}
    for module in modules:
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if ">>>" in (getattr(value, "__doc__", None) or ""):
                found[f"{module.__name__}.{name}"] = value
    return found


def run(test):
    report = []
    outcome = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.append)
    assert not outcome.failed, "".join(report)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, empty_stores):
    """Pages write files where they run."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page):
    test = doctest.DocTestParser().get_doctest(page.read_text(encoding="utf-8"), {}, page.stem, str(page), 0)
    run(test)


@pytest.mark.parametrize("name", documented())
def test_docstring(name):
    value = documented()[name]
    for test in doctest.DocTestFinder(recurse=False).find(value, name, globs={}):
        run(test)


def test_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_readme_has_two_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"```bash\n(.*?)```", readme, flags=re.DOTALL)
    assert len(commands) == 2
    assert all(command.count("\n") == 1 for command in commands)
