from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from skclip._backbones._lanes import work_off


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("n", [0, 1, 2, 7, 50])
def test_each_piece_is_done_once(n, lanes):
    done = []
    work_off(done.append, n, lanes)
    assert sorted(done) == list(range(n))


def test_lanes_work_side_by_side():
    meeting = threading.Barrier(3)
    work_off(lambda i: meeting.wait(30), 6, 3)


def test_a_slow_piece_holds_up_its_own_lane_alone():
    others_done = threading.Event()
    done = []

    def work(i):
        if i == 0:
            assert others_done.wait(30)
        done.append(i)
        if len(done) == 9:
            others_done.set()

    work_off(work, 10, 2)
    assert done == [*range(1, 10), 0]


def test_lanes_are_kept_between_calls():
    seen = set()
    for _ in range(5):
        work_off(lambda i: seen.add(threading.get_ident()), 8, 2)
    assert len(seen) <= 2
    assert threading.get_ident() not in seen


def test_one_core_and_no_gradients_in_a_lane_alone():
    before, seen = torch.get_num_threads(), []
    work_off(lambda i: seen.append((torch.get_num_threads(), torch.is_inference_mode_enabled())), 4, 2)
    assert seen == [(1, True)] * 4
    assert torch.get_num_threads() == before
    assert not torch.is_inference_mode_enabled()
    others = []
    thread = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert others == [before]


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("error", [ValueError, MemoryError, KeyboardInterrupt])
def test_errors_surface_and_stop_the_rest(error, lanes):
    at_work, done = [], []

    def work(i):
        at_work.append(i)
        if i == 2:
            raise error("here")
        time.sleep(0.01)
        done.append(at_work.pop(at_work.index(i)))

    with pytest.raises(error, match="here"):
        work_off(work, 1000, lanes)
    assert at_work == [2]
    assert len(done) < 10
    work_off(done.append, 3, lanes)  # the lanes are as good as new


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads")
def test_an_interrupted_caller_leaves_no_lane_at_work():
    at_work, done = [], []

    def work(i):
        at_work.append(i)
        if i == 2:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.05)
        done.append(at_work.pop(at_work.index(i)))

    with pytest.raises(KeyboardInterrupt):
        work_off(work, 100, 2)
    assert at_work == []
    assert len(done) < 20


def test_two_callers_share_the_lanes():
    done, callers = {0: [], 1: []}, []
    for key in done:
        callers.append(threading.Thread(target=work_off, args=(done[key].append, 100, 2)))
        callers[-1].start()
    for caller in callers:
        caller.join(30)
    assert [sorted(found) for found in done.values()] == [list(range(100))] * 2


_PROCESS = """
import os, sys, threading
import torch
from skclip._backbones._lanes import work_off

torch.set_num_threads(2)  # from here on MKL asks torch and not OpenMP, in every thread
a, images, convolution = torch.randn(600, 600), torch.randn(8, 32, 40, 40), torch.nn.Conv2d(32, 32, 3)
work_off(lambda i: None, 4, 2)

def n_threads():
    return len(os.listdir("/proc/self/task"))

before = n_threads()
work_off(lambda i: (a @ a, convolution(images), torch.nn.functional.gelu(a)), 4, 2)
assert n_threads() == before, "operations in lanes start threads of their own"
assert torch.get_num_threads() == 2

child = os.fork()
if child == 0:
    done = []
    work_off(done.append, 4, 2)
    os._exit(0 if sorted(done) == [0, 1, 2, 3] else 1)
assert os.waitpid(child, 0)[1] == 0, "lanes after a fork"
print("at the end", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads by /proc")
def test_a_process_of_its_own():
    """Its operations keep to their lanes, its child has lanes of its own, and it ends although lanes are there."""
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    run = subprocess.run([sys.executable, "-c", _PROCESS], capture_output=True, text=True, timeout=120, env=env)
    assert (run.returncode, run.stdout) == (0, "at the end\n"), run.stderr


_FORK = """
import os, signal
import numpy as np
from skclip._backbones import load_backbone

backbone, picture = load_backbone("skclip-tiny", device="cpu"), np.zeros((1, 48, 48, 3), np.uint8)
backbone.encode_images(picture)  # by all cores, whose threads no fork copies
child = os.fork()
if child == 0:
    signal.alarm(20)
    backbone.encode_images(picture)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="torch's threads and fork agree nowhere else either")
@pytest.mark.slow
def test_one_picture_in_a_forked_process():
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    run = subprocess.run([sys.executable, "-c", _FORK], capture_output=True, text=True, timeout=120, env=env)
    assert run.returncode == 0, run.stderr
