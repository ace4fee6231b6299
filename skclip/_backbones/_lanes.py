"""Lanes: threads that each run their own forward pass on one core, where torch would share every pass among all.

Two forward passes side by side have no barrier after each operation, at which every core waits for the slowest:
a thread that decodes pictures meanwhile delays one lane instead of all of them.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

_pools: dict[int, ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()
# OpenMP's threads do not survive a fork, and what counts on them crashes or hangs: there all work is done in lanes.
_is_forked = False


def n_lanes() -> int:
    """As many lanes as the calling thread's torch operations would use threads."""
    import torch

    return torch.get_num_threads()


def work_off(work: Callable[[int], None], n: int, lanes: int) -> None:
    """Call ``work(0)`` to ``work(n - 1)``, each once; lanes take the next as they become free.

    One lane is the calling thread itself, except in a forked process. Otherwise each lane is a thread in which torch's
    operations use one core; lanes are kept between calls, and calls from several threads share them. When this returns
    or raises, no lane is at work on this call any more.

    Raises
    ------
    BaseException
        What `work` raised; what has not begun by then is not begun.
    """
    waiting = deque(range(n))

    def lane() -> None:
        import torch

        with torch.inference_mode():
            while True:
                try:
                    i = waiting.popleft()
                except IndexError:
                    return
                try:
                    work(i)
                except BaseException:
                    waiting.clear()
                    raise

    if (lanes == 1 or n < 2) and not _is_forked:
        lane()
        return
    pool = _pool(lanes)
    running = [pool.submit(lane) for _ in range(min(lanes, n))]
    try:
        while wait(running, timeout=1).not_done:  # on Windows Ctrl-C is heard only between two waits
            pass
    finally:
        waiting.clear()
        wait([future for future in running if not future.cancel()])
    for future in running:
        future.result()


def _pool(lanes: int) -> ThreadPoolExecutor:
    with _pools_lock:
        if lanes not in _pools:
            _pools[lanes] = ThreadPoolExecutor(lanes, thread_name_prefix="skclip-lane", initializer=_enter_lane)
        return _pools[lanes]


def _enter_lane() -> None:
    """From here on the operations of this thread use one core; other threads keep theirs."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.get_num_threads()  # torch sets up each thread at its first use, which would undo what follows
    threadpool_limits(1, user_api="openmp")
    # Once `torch.set_num_threads` was called, MKL follows that call in every thread and not OpenMP.
    names = {"linux": "libtorch_cpu.so", "win32": "torch_cpu.dll"}
    with suppress(KeyError, OSError, AttributeError):  # no MKL, or one that keeps its functions to itself
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / names[sys.platform]))
        library.MKL_Set_Num_Threads_Local(1)


def _forget_pools() -> None:
    """Threads do not survive a fork: the child starts its own."""
    global _pools_lock, _is_forked
    _is_forked = True
    _pools.clear()
    _pools_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)
