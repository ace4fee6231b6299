"""Several devices of one machine: a process each, over one stream of pictures, rows in order.

The processes are started as plain commands that talk over their standard streams, not through `multiprocessing`: so
they never import the user's script again (one without ``if __name__ == "__main__"`` works, and so do notebooks and
scripts on a pipe), they may have processes of their own that read pictures, and the end of a pipe tells either side
that the other is gone, however it went.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, islice
from typing import Any, BinaryIO, cast

import joblib
import numpy as np
from PIL import Image

from skclip._backbones import resolve_device, resolve_precision
from skclip._media import MissingPicture, PictureError, read_picture
from skclip.features._extraction import EncodedBlock, Execution, encode_blocks
from skclip.features._readings import WHOLE, Reading

# Per process: one block being encoded, two read ahead, one on its way; and as many that wait for those before them.
_IN_HAND = 4
_WINDOW = 8
_MOST_READERS = 8
_IDLE = 0.5  # seconds
# Seconds that a process gets to end by itself: when all is done, and when nobody wants its answers any more.
_PATIENCE, _IMPATIENCE = 10.0, 0.5

_BOOT = (
    "import json, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path[:] = json.loads(sys.argv[1]); "
    "from skclip.features._devices import work; work()"
)


class DeviceError(RuntimeError):
    """The process of one of several devices failed or died; the message names the device and has its traceback."""


def local_devices(devices: str | Sequence[str] | None = None) -> list[str]:
    """The devices of this machine that share the work.

    Parameters
    ----------
    devices : sequence of str, str or None, default=None
        None or "auto" are all CUDA devices or, where there is none, the one device that "auto" is elsewhere. Others
        are taken as they are: one device, or several, each of which gets a process.

    Returns
    -------
    devices : list of str

    Raises
    ------
    ValueError
        An empty list, or a device that this machine lacks.
    """
    if devices is None or devices == "auto":
        import torch

        if torch.cuda.is_available():
            return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        return [str(resolve_device("auto"))]
    listed = [devices] if isinstance(devices, str) else list(devices)
    if not listed:
        raise ValueError("devices=[] names no device; None takes all accelerators of this machine.")
    for device in listed:
        resolve_device(device)
    return listed


def encode_on_devices(
    blocks: Iterable[Sequence[Any]],
    views: Sequence[int],
    executions: Sequence[Execution],
    *,
    seed: int,
    reading: Reading = WHOLE,
) -> Generator[EncodedBlock]:
    """Raw projections of a stream of pictures, by one process per device.

    Each block goes to a process that has fewest in hand, and comes back in its place. Its rows are those that
    `encode_blocks` gives, whichever device made them: all work in one precision. A few blocks per process are under
    way at any time. Nothing is started before the first block is there, and no more processes than blocks.

    Parameters
    ----------
    blocks : iterable of sequences of pictures
        Paths, encoded bytes, PIL images, uint8 arrays or whatever else a reader takes and pickle carries. Read in the
        calling thread.
    views : sequence of int
    executions : sequence of Execution
        One per device; a device may be there several times. Readers (`n_workers`, None being one per core) and the
        threads of the CPU are shared out among the processes. Rows are not kept in the memory of processes that end
        with the stream: the store is a folder or none.
    seed, reading
        See `encode_blocks`.

    Yields
    ------
    EncodedBlock
        In the order of `blocks`. Closing the generator ends the processes.

    Raises
    ------
    DeviceError
        A process failed or died. The others are ended.
    ValueError
        Devices in different precisions.
    """
    executions = _shared_out(executions)
    source = iter(blocks)
    first = list(islice(source, len(executions)))
    if not first:
        return
    inbox: queue.SimpleQueue[tuple[_Process, bytes | None]] = queue.SimpleQueue()
    seen_warnings: dict[Any, Any] = {}
    team = [_Process(executions[k], k, len(executions), inbox, seen_warnings) for k in range(len(first))]
    coming = enumerate(chain(first, source))
    finished: dict[int, EncodedBlock] = {}
    n_sent = n_yielded = 0
    is_exhausted = False
    try:
        for process in team:
            process.start(list(views), seed, reading)
        while not (is_exhausted and n_yielded == n_sent):
            free = None if is_exhausted else _next_free(team, n_yielded, n_sent)
            if free is not None:
                number, block = next(coming, (n_sent, None))
                if block is None:
                    is_exhausted = True
                    for process in team:
                        process.finish()
                else:
                    free.send_block(number, block)
                    n_sent += 1
            for process, answer in _answers(inbox, wait=free is None):
                finished.update(process.receive(answer))
            while n_yielded in finished:
                yield finished.pop(n_yielded)
                n_yielded += 1
        for process in team:
            process.end(_PATIENCE)
    finally:
        for process in team:
            process.hang_up()
        for process in team:
            process.end(_IMPATIENCE)


def _shared_out(executions: Sequence[Execution]) -> list[Execution]:
    """Executions as the processes get them: one precision for all, a share of the readers each."""
    if not executions:
        raise ValueError("executions=[] names no device.")
    precisions = {e.device: resolve_precision(e.precision, resolve_device(e.device)) for e in executions}
    if len(set(precisions.values())) > 1:
        told = ", ".join(f"{device!r} in {precision}" for device, precision in precisions.items())
        raise ValueError(
            f"Rows would depend on the device that made them: {told}. "
            "Give one precision for all, such as precision='float32'."
        )
    return [
        replace(
            execution,
            precision=precisions[execution.device],
            store=None if execution.store == "memory" else execution.store,
            n_workers=_share(execution.n_workers, len(executions)),
            verbose=0,
        )
        for execution in executions
    ]


def _share(n_workers: int | None, n_processes: int) -> int:
    most = min(_MOST_READERS, joblib.cpu_count() // n_processes) if n_workers is None else n_workers // n_processes
    return max(1, most)


def _next_free(team: list[_Process], n_yielded: int, n_sent: int) -> _Process | None:
    """The process that gets the next block, if any may have one.

    The window is open to the process that all others wait for: it may want more blocks before it answers.
    """
    is_open = n_sent - n_yielded < _WINDOW * len(team)
    free = [p for p in team if len(p.in_hand) < _IN_HAND and (is_open or n_yielded in p.in_hand)]
    return min(free, key=lambda p: len(p.in_hand), default=None)


def _answers(
    inbox: queue.SimpleQueue[tuple[_Process, bytes | None]], *, wait: bool
) -> Iterator[tuple[_Process, bytes | None]]:
    """What has come from the processes; at least one answer where it is worth a wait."""
    while True:
        try:
            # On Windows a wait without end could not be interrupted.
            yield inbox.get(wait, _IDLE)
            wait = False
        except queue.Empty:
            if not wait:
                return


class _Process:
    """The process of one device, as the parent sees it."""

    def __init__(
        self,
        execution: Execution,
        k: int,
        n_processes: int,
        inbox: queue.SimpleQueue[tuple[_Process, bytes | None]],
        seen_warnings: dict[Any, Any],
    ) -> None:
        self.name = f"Device {execution.device!r} (process {k + 1} of {n_processes})"
        self.in_hand: set[int] = set()  # numbers of blocks
        self._execution = execution
        self._n_processes = n_processes
        self._inbox = inbox
        self._seen_warnings = seen_warnings
        self._is_last_sent = False
        self._child: subprocess.Popen[bytes] | None = None
        self._to_child: BinaryIO | None = None

    def start(self, views: list[int], seed: int, reading: Reading) -> None:
        # As joblib does: without it each process would start a thread per core.
        threads = str(max(1, joblib.cpu_count() // self._n_processes))
        self._child = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps([os.fspath(path) for path in sys.path])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"OMP_NUM_THREADS": threads, **os.environ},
        )
        self._to_child = cast(BinaryIO, self._child.stdin)
        threading.Thread(target=self._listen, args=(self._child.stdout,), daemon=True).start()
        level = logging.getLogger("skclip").getEffectiveLevel()
        self.send((views, self._execution, seed, reading, level))

    def send(self, message: Any) -> None:
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with suppress(OSError):  # where it has died its answers end, and that is dealt with where they are read
            _write(cast(BinaryIO, self._to_child), data)

    def send_block(self, number: int, block: Sequence[Any]) -> None:
        self.in_hand.add(number)
        try:
            self.send((number, _portable(block)))
        except Exception as error:
            raise TypeError(f"Block {number} holds what cannot be sent to another process: {error}") from error

    def finish(self) -> None:
        """Say that there are no more blocks."""
        self._is_last_sent = True
        self.send(None)

    def receive(self, answer: bytes | None) -> dict[int, EncodedBlock]:
        """The block that an answer holds, under its number, if it holds one."""
        if answer is None:
            if self._is_last_sent and not self.in_hand:
                return {}
            raise DeviceError(f"{self.name}, at work on {self._work()}, died {self._death()}.")
        kind, content = pickle.loads(answer)
        if kind == "block":
            number, block = content
            self.in_hand.remove(number)
            return {number: block}
        if kind == "error":
            raise DeviceError(f"{self.name}, at work on {self._work()}, failed:\n\n{content}")
        if kind == "warning":
            message, category, filename, lineno = content
            warnings.warn_explicit(message, category, filename, lineno, registry=self._seen_warnings)
        if kind == "log":
            logging.getLogger(content.name).handle(content)
        return {}

    def hang_up(self) -> None:
        """Let the process know that nobody waits for it any more."""
        if self._to_child is not None:
            with suppress(OSError):  # it was faster
                self._to_child.close()

    def end(self, patience: float) -> None:
        """Return when the process has ended, by itself or not."""
        if self._child is None:
            return
        try:
            self._child.wait(patience)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _listen(self, answers: BinaryIO) -> None:
        with answers:
            for answer in _messages(answers):
                self._inbox.put((self, answer))
        self._inbox.put((self, None))

    def _work(self) -> str:
        if not self.in_hand:
            return "no block"
        blocks = sorted(self.in_hand)
        return f"block {blocks[0]}" if len(blocks) == 1 else f"blocks {', '.join(map(str, blocks))}"

    def _death(self) -> str:
        code = cast("subprocess.Popen[bytes]", self._child).wait()
        if code >= 0:
            return f"with exit code {code}; what it wrote on standard error may say why"
        name = signal.Signals(-code).name
        hint = "; SIGKILL is what a machine out of memory sends" if name == "SIGKILL" else ""
        return f"of {name}{hint}"


def _portable(block: Sequence[Any]) -> Sequence[Any]:
    """A block that pickle carries whole.

    PIL images travel as their upright pixels, which have the same key: pickle would leave behind what only their file
    says.
    """
    return block if isinstance(block, np.ndarray) else [_portable_picture(picture) for picture in block]


def _portable_picture(picture: Any) -> Any:
    if isinstance(picture, memoryview):
        return bytes(picture)
    if not isinstance(picture, Image.Image):
        return picture
    try:
        return np.asarray(read_picture(picture))
    except PictureError as error:
        return MissingPicture(str(error))


def _write(file: BinaryIO, message: bytes) -> None:
    file.write(struct.pack("<Q", len(message)))
    file.write(message)
    file.flush()


def _messages(file: BinaryIO) -> Iterator[bytes]:
    """Messages until the other side is gone, whole ones only."""
    while len(head := file.read(8)) == 8:
        (size,) = struct.unpack("<Q", head)
        message = file.read(size)
        if len(message) < size:
            return
        yield message


def work() -> None:
    """What the process of a device does: encode the blocks that come in, until the parent says or is gone."""
    orders, answers = _take_streams()
    lock = threading.Lock()

    def answer(kind: str, content: Any) -> None:
        message = pickle.dumps((kind, content), pickle.HIGHEST_PROTOCOL)
        try:
            with lock:
                _write(answers, message)
        except OSError:
            os._exit(1)  # nobody listens

    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        for message in _messages(orders):
            inbox.put(message)
        os._exit(1)  # in the middle of whatever is being done: nobody waits for it

    threading.Thread(target=listen, daemon=True).start()
    try:
        views, execution, seed, reading, level = pickle.loads(inbox.get())
        _report_to(answer, level)
        numbers: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        blocks = _incoming(inbox, numbers)
        for block in encode_blocks(blocks, views, execution, seed=seed, reading=reading):
            number = numbers.get()
            if number is not None:
                answer("block", (number, block))
    except BaseException:
        answer("error", traceback.format_exc())
        sys.exit(1)


def _take_streams() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output for ourselves: what libraries print goes to standard error, what they read is empty."""
    orders, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return orders, answers


def _incoming(inbox: queue.SimpleQueue[bytes], numbers: queue.SimpleQueue[int | None]) -> Iterator[Sequence[Any]]:
    """Blocks as they come, their numbers put aside.

    Where none comes an empty one is given now and then: one who waits for the next block could not be told to stop.
    """
    while True:
        try:
            message = pickle.loads(inbox.get(timeout=_IDLE))
        except queue.Empty:
            message = (None, [])
        if message is None:
            return
        number, block = message
        numbers.put(number)
        yield block


def _report_to(answer: Callable[[str, Any], None], level: int) -> None:
    """Warnings and log records of this process go to the parent, whose filters apply."""

    class Forward(logging.handlers.QueueHandler):
        def enqueue(self, record: logging.LogRecord) -> None:
            answer("log", record)

    def forward(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        answer("warning", (str(message), category, filename, lineno))

    logger = logging.getLogger("skclip")
    logger.addHandler(Forward(None))  # type: ignore[arg-type]
    logger.setLevel(level)
    logger.propagate = False
    warnings.simplefilter("always")
    warnings.showwarning = forward
