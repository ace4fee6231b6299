"""`extract`: features of any number of pictures, into files, resumable."""

from __future__ import annotations

import importlib.metadata
import operator
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from skclip import __version__
from skclip._backbones import resolve_device, resolve_precision, weights_digest
from skclip._media import PictureError
from skclip.features._clip_features import CLIPFeatures
from skclip.features._devices import encode_on_devices, local_devices
from skclip.features._extraction import Execution, Progress, block_size, encode_blocks, logger, picture_transform
from skclip.features._outputs import Extraction, open_extraction, open_writer
from skclip.features._sources import SourceItem, open_source
from skclip.features._transformer import PictureTransformer

# A measured size would depend on the moment, and the last bits of a row can depend on the size.
_CPU_BATCH = 16
_SHARED_BATCH = 256
_PACKAGES = ("torch", "open_clip_torch", "Pillow", "numpy")


FormBlocks: TypeAlias = Callable[[Iterator[SourceItem], int], Iterator[list[SourceItem]]]


def in_blocks(items: Iterator[SourceItem], size: int) -> Iterator[list[SourceItem]]:
    """Consecutive items, `size` at a time."""
    while block := list(islice(items, size)):
        yield block


def extract(
    source: Any,
    out: str | os.PathLike[str],
    features: PictureTransformer | None = None,
    *,
    column: str | None = None,
    shard: str | tuple[int, int] | None = None,
    devices: Sequence[str] | None = None,
    format: str = "npy",
    rows_per_file: int = 65_536,
    on_error: str = "nan",
    resume: bool = True,
    verbose: int = 1,
) -> Extraction:
    """Write features of any number of pictures into a folder.

    Memory does not grow with the number of pictures. A run that was killed at any moment is resumed by the same
    call, and its files are those of an undisturbed run, byte for byte.

    Parameters
    ----------
    source : folder, list, iterator, manifest, tar shards, URL or Hugging Face dataset
        - a folder: every picture below it, by name;
        - a list, array, Series or iterator of pictures, or of (name, picture) pairs;
        - a manifest: a file that ends in .csv, .tsv, .jsonl or .parquet, with a column of paths or URLs;
        - webdataset shards: a file or pattern that ends in .tar or .tar.gz, ``"shard-{0000..0099}.tar"``;
        - a URL that fsspec reads, ``"s3://bucket/photos/"``; manifests and lists may hold URLs, too;
        - a ``datasets.Dataset``.
    out : str or Path
        A folder; made if missing.
    features : CLIPFeatures, DenseCLIPFeatures or CLIPLayerStatistics, default=None
        What is extracted and how: model, precision, batch size, readers. None is ``CLIPFeatures()``. Rows
        are those of its `transform`, those of a grid flattened. A store in memory is not used; one in a folder is.
    column : str, default=None
        Column of a manifest or data set that holds the pictures. None takes the first with a usual name.
    shard : str "i/n" or (int, int), default=None
        Only pictures i, i + n, i + 2n, ... (whole tar files, if there are n), counted from 0, into the folder
        ``out/shard-<i>-of-<n>``.
    devices : sequence of str, default=None
        One process runs on each. None is `features.device`, and all CUDA devices if that is "auto".
    format : {"npy", "parquet"}, default="npy"
        "npy" writes one ``features.npy``, to be memory-mapped, and ``manifest.jsonl``; "parquet" files of
        `rows_per_file` rows with names and further columns.
    rows_per_file : int, default=65536
        Only with "parquet"; rounded up to whole blocks, which are 256 pictures on CPUs, 1024 on accelerators and fewer
        where they are large.
    on_error : {"nan", "raise"}, default="nan"
        What a picture that cannot be read does: its row is NaN and it is listed with the reason, or the
        extraction ends there. This one counts, not that of `features`.
    resume : bool, default=True
        Whether to go on where an earlier run into `out` ended. False starts anew.
    verbose : int, default=1
        1 shows a progress bar.

    Returns
    -------
    Extraction
        With ``features`` (memory-mapped), ``names``, ``failures``, ``settings``; see `open_extraction`.

    Raises
    ------
    SourceError
        The source is none, or is damaged.
    OutputError
        The folder holds an extraction of other settings or of other pictures, or another run writes there.
    PictureError
        A picture cannot be read, and ``on_error="raise"``.

    See Also
    --------
    CLIPFeatures : The same rows in memory, as a step of a pipeline.
    open_extraction : Reads what this wrote.

    Notes
    -----
    A row is equal to that of `CLIPFeatures.transform` up to the rounding of another batch. Without a folder
    store equal pictures are encoded once only if they are near each other. With one, their last bits are those of
    whichever batch was first, and several devices may take turns.

    On CPUs ``batch_size="auto"`` is 16 here; on an accelerator it is measured on blank pictures before the run, on
    several it is 256. It is kept when the run is resumed.

    Examples
    --------
    >>> import tempfile
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.features import CLIPFeatures, extract
    >>> pictures = make_picture_world(3).images
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = extract(pictures, folder, CLIPFeatures("skclip-tiny"), verbose=0)
    ...     done.features.shape
    (3, 128)
    """
    encoder = CLIPFeatures() if features is None else features
    _check(encoder, on_error)
    if not isinstance(rows_per_file, Integral) or rows_per_file < 1:
        raise ValueError(f"rows_per_file={rows_per_file!r} must be an integer of at least 1.")
    part, n_parts = _shard(shard)
    folder = Path(out) if shard is None else Path(out) / f"shard-{part:04d}-of-{n_parts:04d}"
    executions = _executions(encoder, devices, verbose)
    opened = open_source(source, column=column, shard=(part, n_parts))
    settings = _settings(encoder, executions[0])
    if shard is not None:
        settings.update(shard=f"{part}/{n_parts}", shard_unit=opened.shard_unit)
    with open_writer(
        folder,
        n_columns=encoder._width(),
        settings=settings,
        resume=resume,
        format=format,
        rows_per_file=-(-int(rows_per_file) // settings["block"]) * settings["block"],
    ) as writer:
        items = iter(opened)
        writer.skip(item.name for item in items)
        if not writer.finished:
            if writer.settings["batch_size"] == "auto":
                writer.settle(_measured_batch(executions))
            kept = {name: writer.settings[name] for name in ("batch_size", "block")}
            executions = [replace(execution, **kept) for execution in executions]
            # Counting may take a walk through all folders: only for the bar.
            with Progress(executions, opened.n_items if verbose else None, writer.n_rows) as progress:
                for block, rows, failures in encode_items(items, encoder, executions, progress):
                    if failures and on_error == "raise":
                        i, reason = failures[0]
                        raise PictureError(f"Row {writer.n_rows + i}, {block[i].name!r}: {reason}.")
                    writer.write([item.name for item in block], rows, failures, [item.extra for item in block])
                    counts = {"n_rows": writer.n_rows, "n_failed": writer.n_failed}
                    logger.debug("%(n_rows)d rows, %(n_failed)d unreadable", counts, extra=counts)
            writer.finish()
    return open_extraction(folder)


def stream_features(
    source: Any,
    features: PictureTransformer,
    *,
    column: str | None = None,
    shard: str | tuple[int, int] | None = None,
    devices: Sequence[str] | None = None,
    verbose: int = 0,
    form_blocks: FormBlocks = in_blocks,
) -> Generator[tuple[list[SourceItem], NDArray[np.float32], list[tuple[int, str]]]]:
    """What `extract` writes, block by block: items, their rows, and (place in the block, reason) of failures.

    `form_blocks` may give fewer items at a time than would suit the device, where somebody waits for them.
    """
    _check(features, "nan")
    executions = _executions(features, devices, verbose)
    opened = open_source(source, column=column, shard=_shard(shard))
    with Progress(executions, opened.n_items if verbose else None) as progress:
        yield from encode_items(iter(opened), features, executions, progress, form_blocks)


def encode_items(
    items: Iterator[SourceItem],
    encoder: PictureTransformer,
    executions: Sequence[Execution],
    progress: Progress,
    form_blocks: FormBlocks = in_blocks,
) -> Iterator[tuple[list[SourceItem], NDArray[np.float32], list[tuple[int, str]]]]:
    """Blocks of items with their rows, in order."""
    size = block_size(executions[0], encoder._reading)
    in_hand: deque[list[SourceItem]] = deque()

    def pictures() -> Iterator[list[Any]]:
        for block in form_blocks(items, size):
            in_hand.append(block)
            yield [item.picture for item in block]

    if len(executions) == 1:
        encoded_blocks = encode_blocks(pictures(), range(1), executions[0], seed=0, reading=encoder._reading)
    else:
        encoded_blocks = encode_on_devices(pictures(), range(1), executions, seed=0, reading=encoder._reading)
    with closing(encoded_blocks):  # an interrupt here would else leave threads and processes to the traceback
        for encoded in encoded_blocks:
            progress.update(encoded)
            block = in_hand.popleft()
            yield block, encoder._finish(encoded.rows[:, 0]).reshape(len(block), -1), encoded.failures


def _check(encoder: Any, on_error: str) -> None:
    if not isinstance(encoder, PictureTransformer):
        raise TypeError(f"features={encoder!r} must be a transformer of pictures, such as CLIPFeatures.")
    if on_error not in ("nan", "raise"):
        raise ValueError(f"on_error={on_error!r} must be 'nan' or 'raise'.")
    encoder._check()


def _executions(encoder: Any, devices: Sequence[str] | None, verbose: int) -> list[Execution]:
    """One for each device."""
    execution = encoder._execution()
    if devices is not None and (isinstance(devices, str) or not len(devices)):
        raise ValueError(f"devices={devices!r} must be a sequence of devices, such as ['cuda:0', 'cuda:1'].")
    devices = local_devices(execution.device if devices is None else devices)
    store = None if execution.store == "memory" else execution.store
    size = execution.batch_size
    if size == "auto" and all(resolve_device(device).type == "cpu" for device in devices):
        size = _CPU_BATCH
    return [replace(execution, device=device, store=store, batch_size=size, verbose=verbose) for device in devices]


def _measured_batch(executions: Sequence[Execution]) -> int:
    """Of one device; several have the model in processes of their own, and not here."""
    return executions[0].backbone().settle_batch_size() if len(executions) == 1 else _SHARED_BATCH


def _settings(encoder: Any, execution: Execution) -> dict[str, Any]:
    """What a row depends on, but for its last bits."""
    parameters = encoder.get_params()
    own = ("normalize", "mode", "layout", "global_token")
    return {
        "model": execution.model,
        "weights": weights_digest(execution.model),
        "features": type(encoder).__name__,
        **{name: parameters[name] for name in own if name in parameters},
        "pixels": picture_transform(execution).key(),
        "precision": resolve_precision(execution.precision, resolve_device(execution.device)),
        "block": block_size(execution, encoder._reading),
        "batch_size": execution.batch_size,
        "versions": {"skclip": __version__, **{name: importlib.metadata.version(name) for name in _PACKAGES}},
    }


def _shard(shard: str | tuple[int, int] | None) -> tuple[int, int]:
    if shard is None:
        return 0, 1
    try:
        part, n_parts = map(int, shard.split("/")) if isinstance(shard, str) else map(operator.index, shard)
    except (TypeError, ValueError):
        raise ValueError(f"shard={shard!r} must be 'i/n' or (i, n).") from None
    if not 0 <= part < n_parts:
        raise ValueError(f"shard={shard!r}: shards of {n_parts} are counted from 0 to {n_parts - 1}.")
    return part, n_parts
