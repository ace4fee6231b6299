"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from skclip import clear_backbones, clear_store


def realdata_folder() -> Path:
    """Features and pictures of real data sets, kept beside the checkout."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("SKCLIP_REALDATA", default))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = not realdata_folder().is_dir()
    for item in items:
        if missing and item.get_closest_marker("realdata"):
            item.add_marker(pytest.mark.skip(reason="no folder of real data: set SKCLIP_REALDATA"))


@pytest.fixture(scope="session")
def realdata() -> Path:
    return realdata_folder()


@pytest.fixture
def empty_stores():
    """No features in memory before and after; the backbone cache is left alone."""
    clear_store()
    yield
    clear_store()


@pytest.fixture
def empty_caches(empty_stores):
    """Neither features nor backbones in memory before and after."""
    clear_backbones()
    yield
    clear_backbones()
