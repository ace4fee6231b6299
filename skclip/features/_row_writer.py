"""Writing extracted features: rows in order, into a folder that no interruption can spoil.

While a run is under way its rows lie in ``features.npy.part``, ``manifest.jsonl.part`` and ``failures.jsonl.part``;
``extraction.json.part`` holds its settings. Every two seconds at most, and when a run is left by an exception, these
files are flushed to the disk and then, and only then, a record with their lengths is added to ``extraction.journal``
and flushed too. A run that is resumed takes the last whole record and cuts the files to these lengths. So

- a process killed at any instruction loses what it has written in the last two seconds, which the next run computes
  and writes again: no row is lost, doubled or moved, and the final files are the same bytes;
- the same holds after a power failure, as far as the drive keeps what ``fsync`` has promised.

Under "parquet" the rows of the file to come lie in ``features.npy.part``; when it is full it is turned into
``part-<k>.parquet`` under a temporary name and renamed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from skclip.features import _parquet_output as parquet
from skclip.features._output_files import (
    FAILURES,
    FEATURES,
    FINAL_NAMES,
    JOURNAL,
    KIND,
    MANIFEST,
    PART,
    STATE,
    VERSION,
    Commit,
    FolderLock,
    OutputError,
    as_json,
    count_parts,
    differences,
    explained,
    failure_line,
    manifest_line,
    npy_bytes,
    npy_header,
    open_sized,
    own_files,
    part_name,
    read_journal,
    read_lines,
    read_state,
    sync_folder,
    write_all,
    write_json,
)

COMMIT_SECONDS = 2.0
# What may differ where a run is continued: what it was begun with counts and stays noted.
TAKEN_OVER = ("batch_size", "block", "versions")

_END = object()
_SHAPE = ("format", "n_columns", "rows_per_file")
_ANEW = "Give another folder, or begin anew with resume=False, which replaces what lies there."


def open_writer(
    out: str | Path,
    *,
    n_columns: int,
    settings: Mapping[str, Any],
    resume: bool = True,
    format: str = "npy",
    rows_per_file: int | None = None,
) -> RowWriter:
    """Begin an extraction into a folder, or go on with the one that is there.

    Parameters
    ----------
    out : str or Path
        The folder, made if missing. Files of others in it are left alone.
    n_columns : int
        Width of a row.
    settings : dict
        What the rows depend on, of values that JSON knows. A run is continued only with equal settings, "batch_size",
        "block" and "versions" apart, which are taken over from the folder.
    resume : bool, default=True
        Whether to go on with what lies there. With False an extraction there, finished or not, is replaced.
    format : {"npy", "parquet"}, default="npy"
    rows_per_file : int, default=None
        Rows of one Parquet file; None means 65536. Not used under "npy".

    Returns
    -------
    writer : RowWriter
        Holds the folder's lock until it is closed: use it as a context manager.

    Raises
    ------
    OutputError
        Another run writes there, the settings differ, or the folder holds files with our names that are not ours, is
        damaged or cannot be written.
    ImportError
        "parquet" without pyarrow.
    """
    if format not in FINAL_NAMES:
        raise ValueError(f"format={format!r} must be one of {', '.join(map(repr, FINAL_NAMES))}.")
    if format == "parquet":
        parquet.import_pyarrow()
        rows_per_file = 65536 if rows_per_file is None else rows_per_file
        if rows_per_file < 1:
            raise ValueError(f"rows_per_file={rows_per_file!r} must be at least 1.")
    else:
        rows_per_file = None
    state = {
        "kind": KIND,
        "version": VERSION,
        "format": format,
        "n_columns": int(n_columns),
        "rows_per_file": rows_per_file,
        "settings": as_json(settings),
    }
    return RowWriter(Path(out), state, resume=resume)


class RowWriter:
    """Takes rows in order; made by `open_writer`, used as a context manager.

    Leaving the context commits what was written, also after an exception, and frees the folder; only `finish` makes
    the extraction complete.

    Attributes
    ----------
    folder : Path
    settings : dict
        Of the run that was found or begun.
    finished : bool
        Whether nothing can be added.
    """

    def __init__(self, folder: Path, state: dict[str, Any], *, resume: bool) -> None:
        self.folder = folder
        self.finished = False
        self._state: dict[str, Any] = state
        self._files: list[IO[bytes]] = []
        self._data: tuple[IO[bytes], ...] = ()  # features, manifest, failures
        with explained(folder, "Opening an extraction in the folder"):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(folder)
            try:
                self._open(resume)
            except BaseException:
                self.close()
                raise

    @property
    def n_rows(self) -> int:
        """Rows that the extraction has so far: after opening, those that were found."""
        return self._commit.rows

    @property
    def n_failed(self) -> int:
        """Rows of unreadable pictures among them."""
        return self._commit.failed

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        try:
            if not self.finished and not self._commit.final:
                # What goes wrong while an exception is on its way must not hide it: the last commit stands.
                with suppress(OutputError) if error else explained(self.folder, "Writing into the folder"):
                    self.commit()
        finally:
            self.close()

    def close(self) -> None:
        """Free the folder, committing nothing."""
        for file in self._files:
            file.close()
        self._lock.release()

    def skip(self, names: Iterable[str]) -> None:
        """Compare the names of the source with those of the rows that were found.

        Takes exactly `n_rows` names; of a finished extraction one more, which must not exist. Must be called before
        `write` unless `n_rows` is 0.

        Raises
        ------
        OutputError
            Naming the first difference.
        """
        given, row = iter(names), -1
        for row, (name, same) in enumerate(self._names()):
            other = next(given, _END)
            if other is _END:
                raise OutputError(
                    f"The source has {row} items, the extraction in {str(self.folder)!r} has {self.n_rows} rows "
                    f"already. {_ANEW}"
                )
            if same(other) != name:
                raise OutputError(
                    f"Row {row} in {str(self.folder)!r} is {name!r}, item {row} of the source is {other!r}: the source "
                    f"has changed. {_ANEW}"
                )
        if row + 1 != self.n_rows:
            raise OutputError(
                f"The extraction in {str(self.folder)!r} is damaged: it has {row + 1} names and {self.n_rows} rows. "
                f"{_ANEW}"
            )
        if self.finished and (more := next(given, _END)) is not _END:
            raise OutputError(
                f"The extraction in {str(self.folder)!r} is finished with {self.n_rows} rows, the source has further "
                f"items from {more!r} on. {_ANEW}"
            )
        self._compared = True

    def write(
        self,
        names: Sequence[str],
        rows: NDArray,
        failures: Iterable[tuple[int, str]] = (),
        extras: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add rows.

        Parameters
        ----------
        names : sequence of m str
        rows : ndarray of shape (m, n_columns)
            NaN where a picture could not be read.
        failures : iterable of (int, str)
            Which of these rows, from 0 on, have failed, and why.
        extras : sequence of m dict, default=None
            Further columns.
        """
        self._check_open()
        extras = [{}] * len(names) if extras is None else extras
        width = self._state["n_columns"]
        if rows.shape != (len(names), width) or len(extras) != len(names):
            raise ValueError(
                f"{len(names)} names, rows of shape {rows.shape} and {len(extras)} extras do not belong together; "
                f"expected rows of shape ({len(names)}, {width})."
            )
        reasons = dict(failures)
        data = np.ascontiguousarray(rows, dtype="<f4")
        with explained(self.folder, "Writing into the folder"):
            lo = 0
            while lo < len(names):
                hi = min(len(names), lo + self._room())
                self._append(names, data, reasons, extras, lo, hi)
                lo = hi
            if time.monotonic() - self._committed_at >= COMMIT_SECONDS:
                self.commit()

    def commit(self) -> None:
        """Flush everything to the disk, then say so in the journal."""
        self._record(self._commit, *self._data)

    def settle(self, batch_size: int) -> None:
        """Keep the batch size that "auto" has come to, for when the run is resumed.

        Call it before the first `write`, so that all rows are of one batch size.
        """
        self._check_open()
        self.settings["batch_size"] = batch_size
        with explained(self.folder, "Writing into the folder"):
            write_json(self.folder / (STATE + PART), self._state)

    def finish(self) -> None:
        """Make the extraction complete; of a finished one, do nothing."""
        if self.finished:
            return
        self._check_open()
        with explained(self.folder, "Finishing the extraction in the folder"):
            for file, size in zip(self._data, self._sizes()):
                file.truncate(size)  # a write that failed halfway may have left more
            if self._rows_per_file is not None and (self._commit.held or not self.n_rows):
                self._close_part(final=True)
            else:
                self._record(replace(self._commit, final=True), *self._data)
            for file in self._files:
                file.close()
            finalize(self.folder, self._state, self._commit)
        self.finished = True

    def _open(self, resume: bool) -> None:
        folder, state = self.folder, self._state
        done, begun = find_state(folder)
        self._commit, end = read_journal(folder)
        self._committed_at = -np.inf  # so that the first rows are: a run that is always killed soon gets on
        if resume and done is not None:
            self._state = _agreed(done, state, folder)
            check_files(folder, done)
            self._commit = Commit(rows=done["n_rows"], failed=done["n_failed"])
            self.finished = True
            remove_unfinished(folder)
        elif resume and begun is not None and self._commit.rows + self._commit.final:
            self._state = _agreed(begun, state, folder)
            if self._commit.final:
                finalize(folder, self._state, self._commit)
                self.finished = True
        else:
            self._commit, end = Commit(), 0
            begin(folder, state, done or begun)
        self.settings: dict[str, Any] = self._state["settings"]
        self._rows_per_file: int | None = self._state["rows_per_file"]
        self._compared = self.n_rows == 0 and not self.finished
        if not self.finished:
            self._open_files(end)

    def _open_files(self, end: int) -> None:
        for name, size in zip((FEATURES, MANIFEST, FAILURES), self._sizes()):
            self._files.append(open_sized(self.folder / (name + PART), size))
        self._data = tuple(self._files)
        self._files.append(open_sized(self.folder / JOURNAL, end))
        self._journal = self._files[-1]
        self._journal.seek(end)

    def _sizes(self) -> tuple[int, int, int]:
        """Bytes of features, manifest and failures that count."""
        commit = self._commit
        return npy_bytes(commit.held, self._state["n_columns"]), commit.manifest, commit.failures

    def _check_open(self) -> None:
        if self.finished:
            raise OutputError(f"The extraction in {str(self.folder)!r} is finished with {self.n_rows} rows. {_ANEW}")
        if not self._compared:
            raise RuntimeError(f"{self.n_rows} rows were found: call skip with the names of the source first.")

    def _names(self) -> Iterator[tuple[str, Any]]:
        """The names of the rows, and how a name of the source looks there."""
        suffix = "" if self.finished else PART
        if self._rows_per_file is not None:
            n_parts = (self.n_rows - self._commit.held) // self._rows_per_file
            if self.finished:
                n_parts = count_parts(self.n_rows, self._rows_per_file)
            paths = [self.folder / part_name(number) for number in range(n_parts)]
            yield from ((name, parquet.as_text) for path in paths for name in parquet.read_names(path))
            if self.finished:
                return
        yield from ((line["name"], str) for line in read_lines(self.folder / (MANIFEST + suffix)))

    def _room(self) -> int:
        """How many rows can follow before a file is full."""
        if self._rows_per_file is None:
            return sys.maxsize
        if self._commit.held == self._rows_per_file:
            self._close_part()
        return self._rows_per_file - self._commit.held

    def _append(
        self,
        names: Sequence[str],
        data: NDArray,
        reasons: Mapping[int, str],
        extras: Sequence[Mapping[str, Any]],
        lo: int,
        hi: int,
    ) -> None:
        commit, first = self._commit, self._commit.rows - lo
        failed = [i for i in sorted(reasons) if lo <= i < hi]
        lines = [manifest_line(first + i, names[i], extras[i], reasons.get(i)) for i in range(lo, hi)]
        pieces = (
            data[lo:hi],
            "".join(lines).encode(),
            "".join(failure_line(first + i, names[i], reasons[i]) for i in failed).encode(),
        )
        for file, start, piece in zip(self._data, self._sizes(), pieces):
            file.seek(start)  # an attempt before may have failed halfway
            write_all(file, piece)
        self._commit = Commit(
            rows=commit.rows + hi - lo,
            held=commit.held + hi - lo,
            manifest=commit.manifest + len(pieces[1]),
            failures=commit.failures + len(pieces[2]),
            failed=commit.failed + len(failed),
        )

    def _close_part(self, final: bool = False) -> None:
        """Turn the rows held into a Parquet file; only the final one may be short."""
        assert self._rows_per_file is not None
        commit = self._commit
        parquet.write_part(
            self.folder,
            number=(commit.rows - commit.held) // self._rows_per_file,
            features=self.folder / (FEATURES + PART),
            manifest=self.folder / (MANIFEST + PART),
            n_rows=commit.held,
            n_columns=self._state["n_columns"],
        )
        # Killed before this record, the next run holds these rows still and writes the same file again.
        self._record(replace(commit, held=0, manifest=0, final=final), self._data[-1])

    def _record(self, commit: Commit, *files: IO[bytes]) -> None:
        for file in files:
            os.fsync(file.fileno())
        write_all(self._journal, commit.pack())
        os.fsync(self._journal.fileno())
        self._commit = commit
        self._committed_at = time.monotonic()


def find_state(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The documents of a finished and of an unfinished extraction, None where there is none."""
    done = (read_state(folder / names[STATE]) for names in FINAL_NAMES.values())
    return next((document for document in done if document), None), read_state(folder / (STATE + PART))


def begin(folder: Path, state: dict[str, Any], replaced: dict[str, Any] | None) -> None:
    """Make the files of an extraction without rows, after removing those of the one that is replaced.

    Cut off at any point it leaves an unfinished extraction without rows, or what was there before.
    """
    ours = set(own_files(folder, replaced["format"])) if replaced else set()
    foreign = sorted(
        path.name for path in own_files(folder, state["format"]) if path not in ours and path.suffix != ".tmp"
    )
    if foreign:
        raise OutputError(
            f"{str(folder)!r} holds files that no extraction of skclip has left there, under names that one would "
            f"need: {', '.join(foreign[:5])}. Give another folder."
        )
    (folder / JOURNAL).unlink(missing_ok=True)
    begun = folder / (STATE + PART)
    for names in FINAL_NAMES.values():
        if folder / names[STATE] in ours:
            os.replace(folder / names[STATE], begun)
    for path in ours - {begun}:
        path.unlink(missing_ok=True)
    write_json(begun, state)
    for name, content in ((FEATURES, npy_header(0, state["n_columns"])), (MANIFEST, b""), (FAILURES, b"")):
        (folder / (name + PART)).write_bytes(content)
    (folder / JOURNAL).write_bytes(b"")
    sync_folder(folder)


def finalize(folder: Path, state: dict[str, Any], commit: Commit) -> None:
    """Give the files of a final commit their final names; done again after being cut off, it leaves the same."""
    names = FINAL_NAMES[state["format"]]
    moved = {FAILURES: names[FAILURES]}
    if state["format"] == "npy":
        moved |= {FEATURES: FEATURES, MANIFEST: MANIFEST}
        features = folder / (FEATURES + PART)
        if features.exists():
            with open(features, "r+b", buffering=0) as file:
                write_all(file, npy_header(commit.rows, state["n_columns"]))
                os.fsync(file.fileno())
    for name, final in moved.items():
        if (folder / (name + PART)).exists():
            os.replace(folder / (name + PART), folder / final)
    files = list(moved.values())
    if state["format"] == "parquet":
        files += [part_name(k) for k in range(count_parts(commit.rows, state["rows_per_file"]))]
    sync_folder(folder)
    counts = {"n_rows": commit.rows, "n_failed": commit.failed}
    sizes = {name: (folder / name).stat().st_size for name in sorted(files)}
    write_json(folder / names[STATE], {**state, **counts, "files": sizes})
    remove_unfinished(folder)


def remove_unfinished(folder: Path) -> None:
    """Remove what a finished extraction no longer needs."""
    for name in (FEATURES, MANIFEST, FAILURES, STATE):
        (folder / (name + PART)).unlink(missing_ok=True)
    (folder / JOURNAL).unlink(missing_ok=True)


def check_files(folder: Path, state: dict[str, Any]) -> None:
    """That the files of a finished extraction are there in their full length."""
    for name, size in state["files"].items():
        path = folder / name
        there = path.stat().st_size if path.exists() else None
        if there != size:
            what = "is missing" if there is None else f"has {there} bytes instead of {size}"
            raise OutputError(f"The extraction in {str(folder)!r} is damaged: {name} {what}. Extract again.")


def _agreed(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The document found, if that which is wanted differs in nothing but what is taken over."""
    old, new = ({**document["settings"], **{key: document[key] for key in _SHAPE}} for document in (found, wanted))
    new.update({name: old[name] for name in TAKEN_OVER if name in old})
    unequal = [f"{name} was {was!r} and is {now!r}" for name, was, now in differences(old, new)]
    if unequal:
        raise OutputError(
            f"The extraction in {str(folder)!r} was begun with other settings: {'; '.join(unequal[:5])}. Go on with "
            f"the settings it was begun with, or: {_ANEW[0].lower()}{_ANEW[1:]}"
        )
    return found
