"""Fixtures that several test modules share."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: one thread each, set before NumPy and torch load
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import numpy as np
import pytest

from skclip import clear_backbones, clear_store
from skclip._backbones._device import PRECISIONS, _missing_devices, _slow_precisions
from skclip.utils._arrays import unit_rows


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


@pytest.fixture(autouse=True)
def no_device_is_known_to_be_missing():
    """What is said once per process is said once per test."""
    # not through `monkeypatch`, which would then outlive the fixtures of the folders
    _missing_devices.clear()


@pytest.fixture(autouse=True)
def slow_precisions_are_no_news():
    """Half precision may run on a CPU without instructions for it; tests of the warning clear this."""
    _slow_precisions.update(PRECISIONS)


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


@pytest.fixture(scope="session")
def real_features(realdata):
    """``real_features(name) -> dict of arrays``, float32, of a set of ``clip-vit-b-32-openai``; ImageNet has ``text``,
    the normalised sum of its two text classifiers."""

    def load(name: str, folder: str = "clip-vit-b-32-openai") -> dict[str, np.ndarray]:
        path = Path(realdata) / folder / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"no {path.name}")
        with np.load(path) as arrays:
            data = {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in arrays.items()}
        if "text_a" in data:
            data["text"] = unit_rows(unit_rows(data["text_a"]) + unit_rows(data["text_b"]))
        return data

    return load
