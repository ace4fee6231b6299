import io
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skclip.datasets import make_picture_world
from skclip.features import _devices
from skclip.features._devices import DeviceError, encode_on_devices, local_devices
from skclip.features._extraction import Execution, encode_blocks

EXECUTION = Execution("skclip-tiny", "cpu", "auto", 16, None)
MISSING = ["missing.png"]  # for which no process loads a backbone
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs signals")


class There:
    """A picture that is the value of an expression in the process that it is sent to."""

    def __init__(self, expression: str) -> None:
        self.expression = expression

    def __reduce__(self):
        return eval, (self.expression,)


@pytest.fixture(scope="module")
def pictures():
    return make_picture_world(40, image_size=60).images


@pytest.fixture
def children(monkeypatch):
    """Processes that were started."""
    started = []
    original = subprocess.Popen

    def start(*args, **kwargs):
        started.append(original(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(_devices.subprocess, "Popen", start)
    yield started
    for child in started:
        if child.poll() is None:
            child.kill()
            child.wait()


def _png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def _sideways(pixels) -> Image.Image:
    """A TIFF whose orientation only the file tells."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(file, "tiff", exif=exif)
    return Image.open(file)


def test_rows_are_those_of_one_process_in_order(pictures, tmp_path, children, caplog):
    path = tmp_path / "0.png"
    path.write_bytes(_png(pictures[0]))
    cut_off = Image.open(io.BytesIO(_png(pictures[1])[:300]))
    blocks = [
        [path, str(path), _png(pictures[1]), memoryview(_png(pictures[2])), bytearray(_png(pictures[3]))],
        [tmp_path / "missing.png", cut_off, pictures[4], Image.fromarray(pictures[5]), _sideways(pictures[6])],
        pictures[7:8],
        pictures[8:23],
        *([picture] for picture in pictures[23:35]),
        [],
        list(pictures[35:]),
    ]
    expected = list(encode_blocks(blocks, [0, 2], EXECUTION, seed=3))
    blocks[2] = [
        There("(__import__('warnings').warn('from afar', RuntimeWarning), " + repr(_png(pictures[7])) + ")[1]")
    ]
    blocks[3] = [
        There("(__import__('logging').getLogger('skclip').info('told'), " + repr(_png(pictures[8])) + ")[1]"),
        *pictures[9:23],
    ]
    with caplog.at_level(logging.INFO, logger="skclip"), pytest.warns(RuntimeWarning, match="from afar"):
        found = list(encode_on_devices(blocks, [0, 2], [EXECUTION, EXECUTION], seed=3))
    assert "told" in caplog.messages
    assert [len(block.rows) for block in found] == [len(block) for block in blocks]
    for mine, one in zip(found, expected):
        assert mine.failures == one.failures
    rows, ones = (np.concatenate([block.rows for block in encoded]) for encoded in (found, expected))
    # Encoded bytes have another key than pixels, and with it other random views.
    same_views = np.r_[0 : len(rows)] < 10
    np.testing.assert_allclose(rows[:, 0], ones[:, 0], atol=1e-5)
    np.testing.assert_allclose(rows[same_views], ones[same_views], atol=1e-5)
    assert np.isnan(rows).any(axis=(1, 2)).nonzero()[0].tolist() == [5, 6]
    assert len(children) == 2
    assert all(child.returncode == 0 for child in children)


@pytest.mark.slow
def test_no_process_is_started_without_pictures_and_no_more_than_blocks(children):
    assert list(encode_on_devices(iter([]), [0], [EXECUTION] * 2, seed=0)) == []
    assert not children
    (block,) = encode_on_devices([MISSING], [0, 1], [EXECUTION] * 5, seed=0)
    assert block.rows.shape == (1, 2, 128)
    assert block.failures == [(0, "no such file")]
    assert len(children) == 1


def test_a_failure_names_the_device_and_shows_where(children):
    blocks = [[There("object()")], *[MISSING] * 9]
    with pytest.raises(DeviceError, match=r"(?s)Device 'cpu' \(process . of 1\), at work on .*0.* failed.*Traceback"):
        list(encode_on_devices(blocks, [0], [EXECUTION], seed=0))
    assert [child.returncode for child in children] == [1]


@POSIX
@pytest.mark.parametrize(
    ("deed", "what"),
    [
        ("__import__('os').kill(__import__('os').getpid(), 9)", "SIGKILL.*out of memory"),
        ("__import__('ctypes').string_at(0)", "SIGSEGV"),
    ],
)
def test_a_death_names_the_device_and_the_signal(deed, what, children):
    blocks = [[There(deed)], *[MISSING] * 9]
    with pytest.raises(DeviceError, match=rf"Device 'cpu' \(process 1 of 1\), at work on .*0.* died of {what}"):
        list(encode_on_devices(blocks, [0], [EXECUTION], seed=0))
    assert all(child.returncode is not None for child in children)


@POSIX
@pytest.mark.slow
def test_an_interrupt_ends_the_processes_and_so_does_closing(children):
    n_pulled = 0

    def endless():
        nonlocal n_pulled
        while True:
            n_pulled += 1
            yield MISSING

    encoded = encode_on_devices(endless(), [0], [EXECUTION] * 2, seed=0)
    for _ in range(3):
        next(encoded)
    encoded.close()
    assert n_pulled <= 3 + 2 * _devices._WINDOW + 1
    assert [child.poll() is not None for child in children] == [True, True]

    def interrupted():
        yield MISSING
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        list(encode_on_devices(interrupted(), [0], [EXECUTION], seed=0))
    assert children[2].poll() is not None


SCRIPT = """
import os, signal, sys
from skclip.features._devices import encode_on_devices
from skclip.features._extraction import Execution

class There:
    def __reduce__(self):
        return eval, (f"(open({sys.argv[1]!r}, 'w').write(str(__import__('os').getpid())), 'missing.png')[1]",)

def blocks():
    while True:
        yield [There()]

for block in encode_on_devices(blocks(), [0], [Execution("skclip-tiny", "cpu", "auto", 16, None)], seed=0):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@POSIX
@pytest.mark.slow
def test_processes_end_when_a_script_is_killed_which_has_no_main_guard(tmp_path):
    script, note = tmp_path / "script.py", tmp_path / "pid"
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(Path(_devices.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, script, note], env={**os.environ, "PYTHONPATH": path}, capture_output=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    pid = int(note.read_text())
    for _ in range(200):
        if not _is_running(pid):
            break
        time.sleep(0.05)
    assert not _is_running(pid)


def _is_running(pid: int) -> bool:
    """Whether there is such a process which has not ended; an orphan may wait for somebody to collect it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_pictures_that_cannot_travel_are_an_error(children):
    blocks = [[lambda: None]]
    with pytest.raises(TypeError, match="Block 0 holds what cannot be sent to another process"):
        list(encode_on_devices(blocks, [0], [EXECUTION], seed=0))
    assert all(child.poll() is not None for child in children)


def test_an_error_of_the_source_is_passed_on(children):
    def blocks():
        yield MISSING
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="the source is gone"):
        list(encode_on_devices(blocks(), [0], [EXECUTION], seed=0))
    assert all(child.poll() is not None for child in children)


def test_work_is_shared_out(monkeypatch):
    monkeypatch.setattr(_devices.joblib, "cpu_count", lambda: 24)
    for given, n, share in [(None, 2, 8), (None, 6, 4), (None, 40, 1), (12, 4, 3), (2, 4, 1)]:
        executions = [replace(EXECUTION, n_workers=given, store="memory", verbose=1)] * n
        shared = _devices._shared_out(executions)
        assert {e.n_workers for e in shared} == {share}
        assert {(e.store, e.verbose, e.precision) for e in shared} == {(None, 0, "float32")}
    assert _devices._shared_out([replace(EXECUTION, store="folder")])[0].store == "folder"
    with pytest.raises(ValueError, match="names no device"):
        _devices._shared_out([])


def test_one_precision_on_all_devices(monkeypatch):
    import torch

    monkeypatch.setattr(_devices, "resolve_device", torch.device)
    executions = [EXECUTION, replace(EXECUTION, device="cuda:1")]
    with pytest.raises(ValueError, match=r"'cpu' in float32, 'cuda:1' in fp16.*precision='float32'"):
        _devices._shared_out(executions)
    shared = _devices._shared_out([replace(execution, precision="bf16") for execution in executions])
    assert [(e.device, e.precision) for e in shared] == [("cpu", "bf16"), ("cuda:1", "bf16")]


def test_blocks_go_to_the_free_and_the_window_never_closes_to_the_one_all_wait_for():
    class Process:
        def __init__(self, *numbers):
            self.in_hand = set(numbers)

    window, in_hand = 2 * _devices._WINDOW, _devices._IN_HAND
    busy, idle = Process(0, 1), Process(2)
    assert _devices._next_free([busy, idle], 0, 3) is idle
    assert _devices._next_free([Process(*range(in_hand)), Process(*range(10, 10 + in_hand))], 0, 8) is None
    last, ahead = Process(5), Process()
    assert _devices._next_free([ahead, last], 5, 5 + window) is last
    assert _devices._next_free([ahead, last], 5, 4 + window) is ahead


def test_local_devices(monkeypatch):
    import torch

    assert local_devices(["cpu", "cpu"]) == ["cpu", "cpu"]
    assert local_devices("cpu") == ["cpu"]
    with pytest.raises(ValueError, match="devices=\\[\\] names no device"):
        local_devices([])
    with pytest.raises(ValueError, match="cuda:77"):
        local_devices(["cpu", "cuda:77"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert local_devices() == local_devices("auto") == ["cuda:0", "cuda:1", "cuda:2"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(_devices, "resolve_device", lambda device: torch.device({"auto": "mps"}[device]))
    assert local_devices() == ["mps"]


@pytest.mark.slow
def test_warnings_are_filtered_where_the_user_filters(recwarn):
    blocks = [[There("__import__('warnings').warn('odd', RuntimeWarning)")]]
    warnings.simplefilter("error")
    with pytest.raises(RuntimeWarning, match="odd"):
        list(encode_on_devices(blocks, [0], [EXECUTION], seed=0))
