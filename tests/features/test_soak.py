"""Extraction of many pictures, some of them damaged, killed again and again and resumed."""

from __future__ import annotations

import io
import os
import random
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skclip.features import open_extraction

_COMMAND = """
import sys
from skclip.features import CLIPFeatures, extract
extract(sys.argv[1], sys.argv[2], CLIPFeatures("skclip-tiny"), verbose=0)
"""
_FILES = ("features.npy", "manifest.jsonl", "failures.jsonl", "extraction.json")


def _jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return file.getvalue()


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _png_of_size(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def _float_tiff(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0].astype(np.float32)).save(file, "TIFF")
    return file.getvalue()


def _with_bad_checksum(png: bytes) -> bytes:
    place = png.index(b"IDAT") + 12
    return png[:place] + bytes([png[place] ^ 0xFF]) + png[place + 1 :]


DAMAGE = {
    "empty": lambda pixels, rng: b"",
    "cut off": lambda pixels, rng: _jpeg(pixels)[: rng.randrange(400, 700)],
    "header alone": lambda pixels, rng: _jpeg(pixels)[:20],
    "noise": lambda pixels, rng: rng.randbytes(900),
    "a page": lambda pixels, rng: b"<!DOCTYPE html><html><body>404</body></html>",
    "png of a wrong checksum": lambda pixels, rng: _with_bad_checksum(_png(pixels)),
    "png cut off": lambda pixels, rng: _png(pixels)[:200],
    "too many pixels": lambda pixels, rng: _png_of_size(60_000, 60_000),
    "no scale of white": lambda pixels, rng: _float_tiff(pixels),
    "a link to nothing": None,
}


def _make_pictures(folder: Path, n: int, seed: int) -> dict[str, str]:
    """Write n pictures, one in a hundred damaged; the damaged ones and their kind."""
    rng = random.Random(seed)
    noise = np.random.default_rng(seed)
    kinds = [*DAMAGE]
    damaged: dict[str, str] = {}
    for i in range(n):
        name = f"{i // 1000:03d}/{i:06d}.jpg"
        path = folder / name
        if i % 1000 == 0:
            path.parent.mkdir(parents=True)
        pixels = np.kron(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8), np.ones((8, 8, 1), dtype=np.uint8))
        if i % 100 != 37:
            path.write_bytes(_jpeg(pixels))
            continue
        damaged[name] = kinds[len(damaged) % len(kinds)]
        make = DAMAGE[damaged[name]]
        if make is None:
            path.symlink_to("nowhere")
        else:
            path.write_bytes(make(pixels, rng))
    return damaged


def _start(pictures: Path, out: Path) -> subprocess.Popen:
    # In a group of its own, so that nothing it started outlives the kill.
    return subprocess.Popen([sys.executable, "-c", _COMMAND, str(pictures), str(out)], start_new_session=True)


def _soak(tmp_path: Path, *, n: int, n_kills: int, longest: float) -> None:
    pictures = tmp_path / "pictures"
    damaged = _make_pictures(pictures, n, seed=0)
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    assert _start(pictures, undisturbed).wait() == 0

    rng = random.Random(1)
    kills = 0
    while kills < n_kills:
        process = _start(pictures, disturbed)
        deadline = time.monotonic() + 120
        while not list(disturbed.glob("*.part")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, longest))
        assert process.poll() is None, f"over after {kills} kills: {longest} s are too long for {n} pictures"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert not (disturbed / "extraction.json").exists()
    assert _start(pictures, disturbed).wait() == 0

    assert sorted(path.name for path in disturbed.iterdir()) == sorted(path.name for path in undisturbed.iterdir())
    for name in _FILES:
        assert (disturbed / name).read_bytes() == (undisturbed / name).read_bytes(), name
    done = open_extraction(disturbed)
    assert done.n_rows == n
    assert {name for _, name, _ in done.failures} == set(damaged)
    assert len({reason for _, _, reason in done.failures}) >= 6
    unreadable = np.isnan(done.features).any(axis=1)
    assert [done.names[i] for i in np.flatnonzero(unreadable)] == sorted(damaged)
    np.testing.assert_allclose(np.linalg.norm(done.features[~unreadable], axis=1), 1, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills process groups")
def test_a_killed_extraction_is_resumed_to_the_same_bytes(tmp_path):
    _soak(tmp_path, n=6000, n_kills=2, longest=0.5)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills process groups")
def test_soak_of_fifty_thousand_pictures_killed_ten_times(tmp_path):
    _soak(tmp_path, n=50_000, n_kills=10, longest=2.0)
