"""The command ``skclip``: extract features, list models, say what is on this machine.

Parsing needs the standard library alone; each command imports what it runs.
"""

from __future__ import annotations

import argparse
import errno
import importlib.metadata
import io
import json
import logging
import os
import platform
import queue
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, redirect_stdout, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn, Self, TextIO

from skclip import __version__

DONE, FAILED, WRONG_USAGE, UNREADABLE, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 3, 130, 141

_EXIT_CODES = """\
exit codes:
    0  done
    1  failed: one line on standard error says why
    2  wrong usage: nothing was begun
    3  done, but some pictures could not be read: their rows are NaN, and
       failures.jsonl lists them with reasons
  130  interrupted (Ctrl-C); what was committed stays
  141  whoever read standard output has closed it
"""

_DESCRIPTION = """\
Features of pictures by CLIP models, from the command line.

examples:
  skclip extract photos/ features/
  skclip models "ViT-B*"
  skclip info
"""

_EXTRACT_DESCRIPTION = """\
Encode every picture of SOURCE into the folder OUT, one row per picture, in
order. A run that was stopped, even by kill -9, is resumed by the same command.

SOURCE is a folder (read with its subfolders); a table (.csv, .tsv, .jsonl or
.parquet) with a column of paths or URLs; webdataset shards
("train-{000..099}.tar"); a URL that fsspec reads; or "-": paths or URLs on
standard input, one per line. OUT "-" writes no folder but one JSON line per
picture to standard output:
  {"name": "a.jpg", "features": [0.01, ...], "error": null}

examples:
  skclip extract photos/ features/ --model ViT-B-16-quickgelu/openai
  find . -name '*.jpg' -print0 | skclip extract - features/ --null
  skclip extract table.csv features/ --column path --format parquet
  skclip extract photos/ - --model skclip-tiny | head -n 1
  skclip extract photos/ features/ --shard $SLURM_ARRAY_TASK_ID/10
"""

_MODELS_DESCRIPTION = """\
List the models whose names contain PATTERN, or match it where it holds *, ?
or [. Capitals do not matter. Nothing is downloaded.

examples:
  skclip models
  skclip models laion
  skclip models "*/openai" --json
"""

_INFO_DESCRIPTION = """\
Without SUBJECT: versions, devices and defaults, as a bug report needs them.
Of a model: what is known without downloading it. Of a folder that extract has
written: what is in it, and how far it got.

examples:
  skclip info
  skclip info ViT-B-32/datacomp_xl_s13b_b90k
  skclip info features/ --json
"""

_REPORTED_PACKAGES = (
    "torch",
    "open_clip_torch",
    "scikit-learn",
    "numpy",
    "scipy",
    "Pillow",
    "timm",
    "transformers",
    "huggingface_hub",
    "fsspec",
    "pyarrow",
    "webdataset",
    "datasets",
    "ray",
)

# Parameters of `CLIPFeatures` that are options of the same name.
_FEATURE_OPTIONS = ("model", "precision", "batch_size", "workers", "n_workers", "decode", "compile", "normalize")

_SECONDS_BETWEEN_EVENTS = 1.0
_READ_BYTES = 1 << 16
_ITEMS_AHEAD = 4096
_PATIENCE = 0.05  # seconds that a block waits for the picture to come
_POLL = 0.1  # seconds until somebody who waits notices that nothing will come


class UsageError(Exception):
    """The command line cannot be meant as it stands."""


class CommandError(Exception):
    """A command cannot do what it is asked for; the message is all that there is to say."""


class _PipeClosed(Exception):
    """Whoever read standard output has closed it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str or None, default=None
        Arguments after the name of the program; None takes those of the process.

    Returns
    -------
    int
        The exit code, as ``skclip --help`` lists them.
    """
    try:
        options = build_parser().parse_args(argv)
    except SystemExit as end:  # after --help, --version, or the message about wrong usage
        return int(end.code or 0)
    output = _Output(sys.stdout)
    try:
        with _reporting(options.verbose):
            code = options.run(options, output)
            output.flush()
        return code
    except _PipeClosed:
        output.discard()
        return PIPE_CLOSED
    except KeyboardInterrupt:
        _tell(f"skclip: interrupted{options.when_interrupted(options)}")
        return INTERRUPTED
    except UsageError as error:
        _tell_error(error, options)
        return WRONG_USAGE
    except Exception as error:
        _tell_error(error, options)
        return FAILED


def build_parser() -> argparse.ArgumentParser:
    """The grammar of the command line, with all help texts."""
    parser = _Parser("skclip", description=_DESCRIPTION, epilog=_EXIT_CODES, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"skclip {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    common = _Parser(add_help=False)
    common.add_argument("-v", "--verbose", action="store_true", help="show log messages on standard error")
    common.add_argument("--traceback", action="store_true", help="show where an error arose (or SKCLIP_TRACEBACK=1)")
    _add_extract(commands, common)
    _add_models(commands, common)
    _add_info(commands, common)
    return parser


class _Parser(argparse.ArgumentParser):
    """Help texts are laid out by hand, and an error is one line."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **{"formatter_class": argparse.RawDescriptionHelpFormatter, **more})

    def error(self, message: str) -> NoReturn:
        _tell(f"skclip: error: {_one_line(message)} (see: {self.prog} --help)")
        raise SystemExit(WRONG_USAGE)


def _command(commands: Any, common: argparse.ArgumentParser, name: str, summary: str, description: str) -> Any:
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog="exit codes: see skclip --help",
        parents=[common],
        allow_abbrev=False,
    )
    parser.set_defaults(when_interrupted=lambda options: "")
    return parser


def _add_extract(commands: Any, common: argparse.ArgumentParser) -> None:
    summary = "encode pictures into a folder or onto standard output"
    parser = _command(commands, common, "extract", summary, _EXTRACT_DESCRIPTION)
    parser.set_defaults(run=_extract, when_interrupted=_how_to_resume)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="where the pictures are, or - for names on standard input")
    add("out", metavar="OUT", help="folder for the features, or - for JSON lines on standard output")

    group = parser.add_argument_group("what is encoded")
    add = group.add_argument
    add("--model", metavar="M", help="default: ViT-B-32/datacomp_xl_s13b_b90k; see skclip models")
    add("--column", metavar="C", help="column of a table or data set that holds the pictures")
    add("-0", "--null", action="store_true", help="names on standard input end in NUL, as find -print0 writes them")
    add(
        "--shard",
        metavar="I/N",
        type=_shard,
        help="part I of N, counted from 0 as in a Slurm array: 0/10 to 9/10; written to OUT/shard-000I-of-000N",
    )
    add("--decode", choices=("exact", "fast"), help="exact (default): open_clip's pixels; fast: nearly those, sooner")
    add("--no-normalize", dest="normalize", action="store_false", default=None, help="leave rows at their length")

    group = parser.add_argument_group("what is written")
    add = group.add_argument
    add("--format", choices=("npy", "parquet"), help="npy (default): one array; parquet: a table in several files")
    add("--rows-per-file", metavar="N", type=_positive, help="rows of each Parquet file (default: 65536)")
    add(
        "--on-error",
        choices=("nan", "raise"),
        help="what a picture that cannot be read does: a row of NaN (default), or end the run",
    )
    add("--no-resume", dest="resume", action="store_false", default=None, help="begin anew whatever OUT holds")
    add("--quiet", action="store_true", help="no progress bar and no summary")
    add("--json", action="store_true", help="progress and summary as JSON lines on standard output")

    group = parser.add_argument_group("how it runs")
    add = group.add_argument
    devices = group.add_mutually_exclusive_group()
    devices.add_argument(
        "--device", metavar="D", action="append", help="cpu, cuda, cuda:N, mps or auto; repeat for several"
    )
    devices.add_argument("--devices", choices=("all",), help="all CUDA devices, or what there is instead (default)")
    add("--precision", choices=("auto", "float32", "bf16", "fp16"), help="default: half on accelerators, else float32")
    add("--batch-size", metavar="N", type=_batch_size, help="pictures per forward pass, or auto (default)")
    add("--workers", choices=("threads", "processes"), help="what reads and decodes (default: threads)")
    add("--n-workers", metavar="N", type=_positive, help="how many of them (default: one per core, at most 8)")
    add("--compile", action="store_true", default=None, help="compile the model first; for long runs")
    add("--store", metavar="FOLDER", help="take rows from this feature store where it has them, and keep new ones")


def _add_models(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = _command(commands, common, "models", "list models", _MODELS_DESCRIPTION)
    parser.set_defaults(run=_models)
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help="part of a name, or a shell pattern")
    parser.add_argument("--json", action="store_true", help="one JSON line per model")


def _add_info(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = _command(commands, common, "info", "this machine, a model, or an extraction", _INFO_DESCRIPTION)
    parser.set_defaults(run=_info)
    parser.add_argument("subject", metavar="SUBJECT", nargs="?", help="a model or a folder")
    parser.add_argument("--json", action="store_true", help="one JSON line")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _batch_size(text: str) -> int | str:
    return text if text == "auto" else _positive(text)


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form I/N, such as 0/10")
    index, n = int(found[1]), int(found[2])
    if index >= n:
        raise argparse.ArgumentTypeError(f"{text!r}: parts are counted from 0, the last of {n} is {n - 1}/{n}")
    return index, n


def _extract(options: argparse.Namespace, output: _Output) -> int:
    _check_combination(options, output)
    features = _transformer(options)
    run = _extract_to_output if options.out == "-" else _extract_to_folder
    if options.source != "-":
        return run(options.source, nullcontext(), features, options, output)
    names = _ReadAhead(_names(b"\0" if options.null else b"\n"))
    return run(iter(names), names, features, options, output)


def _check_combination(options: argparse.Namespace, output: _Output) -> None:
    if options.source == "-" and sys.stdin is None:
        raise UsageError("SOURCE is - but standard input is closed")
    if options.source == "-" and options.column is not None:
        raise UsageError("--column is for tables: names on standard input have no columns")
    if options.out == "-" and output.is_closed:
        raise UsageError("OUT is - but standard output is closed")
    if options.source != "-" and options.null:
        raise UsageError("--null is for names on standard input: SOURCE must be -")
    if options.rows_per_file is not None and options.format != "parquet":
        raise UsageError("--rows-per-file needs --format parquet")
    if options.out == "-":
        folder_only = {"--format": options.format, "--no-resume": options.resume}
        given = [name for name, value in folder_only.items() if value is not None]
        if given:
            raise UsageError(f"{' and '.join(given)}: needs a folder, but OUT is - (standard output)")


def _transformer(options: argparse.Namespace) -> Any:
    """`CLIPFeatures` with what was given; what was not keeps the defaults of the class."""
    from skclip._backbones import get_card, resolve_device
    from skclip.features import CLIPFeatures

    features = CLIPFeatures(**_given(options, _FEATURE_OPTIONS), store=options.store)
    try:
        get_card(features.model)
        for device in options.device or []:
            resolve_device(device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return features


def _given(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _shows_bar(options: argparse.Namespace) -> int:
    """1 if there is somebody to look at a progress bar."""
    return int(not options.quiet and not options.json and sys.stderr is not None and sys.stderr.isatty())


def _devices(options: argparse.Namespace) -> list[str] | None:
    """None means all accelerators, or what there is instead."""
    return None if not options.device or "auto" in options.device else options.device


def _extract_to_folder(
    source: Any, waiting: AbstractContextManager, features: Any, options: argparse.Namespace, output: _Output
) -> int:
    from skclip.features import extract

    tally = _Tally(output if options.json else None)
    if options.resume is not False:
        tally.n_before, _ = _committed(_folder(options))
    with waiting, _hearing(tally.set) if options.json else nullcontext():
        extraction = extract(
            source,
            options.out,
            features,
            devices=_devices(options),
            verbose=_shows_bar(options),
            **_given(options, ("column", "shard", "format", "rows_per_file", "on_error", "resume")),
        )
    tally.n_rows, tally.n_unreadable = extraction.n_rows, extraction.n_failed
    if options.json:
        tally.emit("done", columns=extraction.n_columns, out=str(_folder(options)))
    elif not options.quiet:
        output.write(tally.summary(f"of {extraction.n_columns} in {_folder(options)}"))
    return UNREADABLE if tally.n_unreadable else DONE


def _committed(folder: Path) -> tuple[int, int]:
    """Rows that an extraction has, finished or not, and how many of them are of unreadable pictures."""
    from skclip.features._output_files import read_journal
    from skclip.features._row_writer import find_state

    done, _ = find_state(folder)
    if done is not None:
        return done["n_rows"], done["n_failed"]
    commit, _ = read_journal(folder)
    return commit.rows, commit.failed


@contextmanager
def _hearing(tell: Callable[[int, int], None]) -> Iterator[None]:
    """Have the rows and unreadable pictures told that `extract` logs after each block."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if hasattr(record, "n_rows") and hasattr(record, "n_failed"):
                tell(record.n_rows, record.n_failed)

    logger, listener = logging.getLogger("skclip"), Listener()
    level = logger.level
    logger.addHandler(listener)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)


def _folder(options: argparse.Namespace) -> Path:
    """Where a run writes: parts of a whole stand beside each other."""
    out = Path(options.out)
    return out / "shard-{:04d}-of-{:04d}".format(*options.shard) if options.shard else out


def _how_to_resume(options: argparse.Namespace) -> str:
    if options.out == "-":
        return ""
    command = "the same command" if options.resume is not False else "the same command without --no-resume"
    return f"; what was committed stays in {_folder(options)}, and {command} goes on from there"


def _extract_to_output(
    source: Any, waiting: AbstractContextManager, features: Any, options: argparse.Namespace, output: _Output
) -> int:
    """One line per picture, block by block; everything else goes to standard error."""
    from skclip.features._extract import stream_features

    tally = _Tally(_Output(sys.stderr) if options.json else None)
    width = 0
    blocks = stream_features(
        source,
        features,
        devices=_devices(options),
        verbose=_shows_bar(options),
        form_blocks=_ready_blocks if options.source == "-" else _small_blocks,
        **_given(options, ("column", "shard")),
    )
    with closing(blocks), waiting:
        for items, rows, failures in blocks:
            reasons = dict(failures)
            for i, (item, row) in enumerate(zip(items, rows)):
                if i in reasons and options.on_error == "raise":
                    raise CommandError(f"{item.name!r}: {reasons[i]}")
                output.write(_row_line(item, row, reasons.get(i)))
            output.flush()
            width = rows.shape[1]
            tally.set(tally.n_rows + len(items), tally.n_unreadable + len(failures))
    if options.json:
        tally.emit("done", columns=width)
    elif not options.quiet:
        _tell(tally.summary(f"of {width}"))
    return UNREADABLE if tally.n_unreadable else DONE


def _small_blocks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """A quarter of what suits the device: somebody waits for the first line."""
    from skclip.features._extract import in_blocks

    return in_blocks(items, max(1, size // 4))


def _ready_blocks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """The same, and less where the next picture keeps one waiting."""
    with _ReadAhead(items) as ahead:
        yield from ahead.blocks(max(1, size // 4))


def _row_line(item: Any, row: Any, reason: str | None) -> str:
    """One JSON line; nine digits give back every float32 exactly."""
    from skclip.features._output_files import renamed

    head = json.dumps({"name": item.name, **renamed(item.extra)})[:-1]
    if reason is not None:
        return f'{head}, "features": null, "error": {json.dumps(reason)}}}'
    return f'{head}, "features": [{",".join(map("%.9g".__mod__, row.tolist()))}], "error": null}}'


class _Tally:
    """What a run has done so far, told as events and in one line at the end."""

    def __init__(self, events: _Output | None) -> None:
        self._events = events
        self._start = self._last = time.perf_counter()
        self.n_rows = self.n_unreadable = self.n_before = 0

    def set(self, n_rows: int, n_unreadable: int) -> None:
        """Take over the counts; an event at most once a second."""
        self.n_rows, self.n_unreadable = n_rows, n_unreadable
        if time.perf_counter() - self._last >= _SECONDS_BETWEEN_EVENTS:
            self._last = time.perf_counter()
            self.emit("progress")

    def emit(self, event: str, **more: Any) -> None:
        if self._events is not None:
            n_new = self.n_rows - self.n_before
            facts = {"event": event, "rows": self.n_rows, "new": n_new, "unreadable": self.n_unreadable}
            self._events.write_json({**facts, **more, "seconds": round(self._seconds(), 3), "rate": self._rate()})
            self._events.flush()

    def summary(self, what: str) -> str:
        unreadable = f", {_count(self.n_unreadable)} unreadable" if self.n_unreadable else ""
        speed = f", {self._rate():.4g} pictures/s" if self.n_rows > self.n_before else ""
        return f"{_count(self.n_rows)} rows {what}{unreadable}{speed}"

    def _seconds(self) -> float:
        return time.perf_counter() - self._start

    def _rate(self) -> float:
        return float(f"{(self.n_rows - self.n_before) / self._seconds():.4g}")


def _count(n: int) -> str:
    return f"{n:,}".replace(",", " ")


def _names(separator: bytes) -> Iterator[str]:
    """Names on standard input, whatever their bytes; empty ones are skipped."""

    def decoded(name: bytes) -> str:
        return os.fsdecode(name.removesuffix(b"\r") if separator == b"\n" else name)

    descriptor = sys.stdin.fileno()
    rest = b""
    # The descriptor itself: a thread that waits in the buffered stream would hold up the end of the program.
    while data := os.read(descriptor, _READ_BYTES):
        *whole, rest = (rest + data).split(separator)
        yield from filter(None, map(decoded, whole))
    yield from filter(None, [decoded(rest)])


class _ReadAhead:
    """Items of an iterable that may keep one waiting, read by a thread that nobody has to wait for.

    Leaving the context, or Ctrl-C, ends the waiting of whoever iterates, with an `InterruptedError`.
    """

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(_ITEMS_AHEAD)
        self._stopped = threading.Event()
        self._previous: Any = None

    def __enter__(self) -> Self:
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler) and threading.current_thread() is threading.main_thread():
            self._previous = handler
            signal.signal(signal.SIGINT, self._interrupted)
        threading.Thread(target=self._read, name="skclip source", daemon=True).start()
        return self

    def stop(self) -> None:
        """End the waiting of whoever iterates; from any thread."""
        self._stopped.set()

    def __exit__(self, *error: object) -> None:
        self.stop()
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def __iter__(self) -> Iterator[Any]:
        while (entry := self._next()) is not None:
            yield entry[0]

    def blocks(self, size: int) -> Iterator[list[Any]]:
        """Items by `size`, fewer where the next one does not come at once."""
        while (first := self._next()) is not None:
            block = [first[0]]
            while len(block) < size and (entry := self._next(_PATIENCE)) is not None:
                block.append(entry[0])
            yield block

    def _next(self, patience: float | None = None) -> tuple[Any] | None:
        """The next item; None at the end, and where it does not come within `patience` seconds."""
        while not self._stopped.is_set():
            try:
                kind, value = self._queue.get(timeout=_POLL if patience is None else patience)
            except queue.Empty:
                if patience is None:
                    continue
                return None
            if kind == "item":
                return (value,)
            self._queue.put((kind, value))  # the end stays the end
            if kind == "error":
                raise value
            return None
        raise InterruptedError("stopped before the last picture was read")

    def _read(self) -> None:
        try:
            for item in self._items:
                if not self._put("item", item):
                    return
            self._put("end", None)
        except BaseException as error:
            self._put("error", error)

    def _put(self, kind: str, value: Any) -> bool:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._queue.put((kind, value), timeout=_POLL)
                return True
        return False

    def _interrupted(self, number: int, frame: Any) -> None:
        self.stop()
        self._previous(number, frame)


def _models(options: argparse.Namespace, output: _Output) -> int:
    from skclip._backbones import get_card, list_models

    pattern = options.pattern if set("*?[") & set(options.pattern) else f"*{options.pattern}*"
    names = [name for name in list_models() if fnmatchcase(name.lower(), pattern.lower())]
    if not names:
        raise CommandError(f"no model matches {options.pattern!r}; 'skclip models' lists all")
    cards = [get_card(name) for name in names]
    if options.json:
        for name, card in zip(names, cards):
            output.write_json({"model": name, **_card_facts(card)})
        return DONE
    table = [("MODEL", "WIDTH", "PIXELS", "TOKENS", "LICENCE")]
    for name, card in zip(names, cards):
        table.append((name, str(card.dim), _pixels(card), str(card.context_length), card.license or "?"))
    widths = [max(map(len, column)) for column in zip(*table)]
    for line in table:
        output.write("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    return DONE


def _card_facts(card: Any) -> dict[str, Any]:
    facts = ("architecture", "tag", "dim", "image_size", "context_length", "interpolation", "resize_mode")
    return {name: getattr(card, name) for name in (*facts, "quick_gelu", "license")}


def _pixels(card: Any) -> str:
    height, width = card.image_size
    return str(height) if height == width else f"{height}x{width}"


def _info(options: argparse.Namespace, output: _Output) -> int:
    if options.subject is None:
        facts = _machine_facts()
    elif Path(options.subject).is_dir():
        facts = _folder_facts(Path(options.subject))
    else:
        facts = _model_facts(options.subject)
    if options.json:
        output.write_json(facts)
        return DONE
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        label = name.replace("_", " ")
        for line in _lines(value):
            output.write(f"{label:<{width}}{line}")
            label = ""
    return DONE


def _lines(value: Any) -> list[str]:
    """A fact as people read it: one line, or one for each thing in it."""
    if isinstance(value, dict):
        return [f"{name}: {_shown(part)}" for name, part in value.items()]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [", ".join(_shown(part) for part in thing.values() if part is not None) for thing in value]
    return [_shown(value)]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " x ".join(map(_shown, value))
    if isinstance(value, int):
        return _count(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _machine_facts() -> dict[str, Any]:
    import joblib
    import torch

    from skclip._backbones import DEFAULT_MODEL

    return {
        "skclip": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in _REPORTED_PACKAGES},
        "cores": joblib.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "devices": _present_devices(),
        "default_model": DEFAULT_MODEL,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _present_devices() -> list[dict[str, Any]]:
    """Devices in the order in which "auto" would take them."""
    import torch

    found: list[dict[str, Any]] = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(i)
        found.append({"device": f"cuda:{i}", "name": facts.name, "memory": _gib(facts.total_memory)})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": platform.machine(), "memory": _memory()})
    return [*found, {"device": "cpu", "name": torch.backends.cpu.get_cpu_capability(), "memory": _memory()}]


def _memory() -> str | None:
    """Of the machine, where the system tells without a library."""
    try:
        return _gib(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return None


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB"


def _model_facts(model: str) -> dict[str, Any]:
    from skclip._backbones import find_weights, get_card

    try:
        card = get_card(model)
    except ValueError as error:
        raise UsageError(f"{error} Nor is there a folder of that name.") from error
    weights = find_weights(model)
    return {
        "model": card.name,
        **_card_facts(card),
        "parameters": card.n_parameters,
        "gflop_per_picture": card.gflops_image,
        "weights": None if weights is None else str(weights),
        "weights_bytes": None if weights is None else weights.stat().st_size,
    }


def _folder_facts(folder: Path) -> dict[str, Any]:
    """Of an extraction, finished or not, or of a folder with the parts of one."""
    from skclip.features._row_writer import find_state

    done, begun = find_state(folder)
    state = done or begun
    if state is None:
        return _parts_facts(folder)
    n_rows, n_unreadable = _committed(folder)
    return {
        "folder": str(folder),
        "finished": done is not None,
        "rows": n_rows,
        "unreadable": n_unreadable,
        "columns": state["n_columns"],
        "format": state["format"],
        "settings": state["settings"],
        "versions": state.get("versions"),
    }


def _parts_facts(folder: Path) -> dict[str, Any]:
    found = {}
    for path in sorted(folder.iterdir()):
        if (numbers := re.fullmatch(r"shard-(\d+)-of-(\d+)", path.name)) and path.is_dir():
            found[int(numbers[1]), int(numbers[2])] = _folder_facts(path)
    if not found:
        raise CommandError(f"{str(folder)!r} holds no extraction, nor parts of one")
    n_parts = max(n for _, n in found)
    return {
        "folder": str(folder),
        "finished": all(facts["finished"] for facts in found.values()) and len(found) == n_parts,
        "rows": sum(facts["rows"] for facts in found.values()),
        "unreadable": sum(facts["unreadable"] for facts in found.values()),
        "parts": n_parts,
        "not_begun": [part for part in range(n_parts) if (part, n_parts) not in found],
        "under_way": [part for (part, _), facts in found.items() if not facts["finished"]],
    }


class _Output:
    """Standard output, where only results go; what the stream's encoding lacks is written as escapes."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.is_closed = stream is None

    def write(self, line: str) -> None:
        if self._stream is None:
            raise CommandError("standard output is closed")
        encoding = self._stream.encoding or "utf-8"
        with self._noticing_the_reader():
            self._stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")

    def write_json(self, facts: dict[str, Any]) -> None:
        self.write(json.dumps(facts))

    def flush(self) -> None:
        if self._stream is not None:
            with self._noticing_the_reader():
                self._stream.flush()

    def discard(self) -> None:
        """Leave nothing that the interpreter would write, in vain, when it ends."""
        if self._stream is not None:
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    @contextmanager
    def _noticing_the_reader(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Windows has no error of its own for it.
            if isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL):
                raise _PipeClosed from None
            raise


@contextmanager
def _reporting(verbose: bool) -> Iterator[None]:
    """Warnings and log messages as lines on standard error, and whatever libraries print, too."""
    elsewhere = sys.stderr or io.StringIO()
    logger = logging.getLogger("skclip")
    level, handler = logger.level, logging.StreamHandler(elsewhere)
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter("skclip: %(message)s"))
    with warnings.catch_warnings(), redirect_stdout(elsewhere):
        warnings.showwarning = _show_warning
        if verbose:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


def _show_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    _tell(f"skclip: warning: {_one_line(_redacted(str(message)))}")


def _tell_error(error: Exception, options: argparse.Namespace) -> None:
    if options.traceback or os.environ.get("SKCLIP_TRACEBACK", "0") not in ("", "0"):
        _tell(_redacted("".join(traceback.format_exception(error)).rstrip()))
    text = str(error)
    if not isinstance(error, (CommandError, UsageError, ValueError, OSError, RuntimeError, ImportError)) or not text:
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    _tell(f"skclip: error: {_one_line(_redacted(text))}")


def _tell(text: str) -> None:
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _redacted(text: str) -> str:
    """Without the passwords, signatures and tokens that addresses may carry."""
    text = re.sub(r"(\w://)[^\s/@'\"]*@", r"\1***@", text)
    return re.sub(r"(\w://[^\s?'\"]*\?)[^\s'\"]+", r"\1***", text)
