"""`BatchEncoder`: features for engines that hand over tables batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skclip._media import PictureError, describe
from skclip._media._sources import check_pixels, table_kind
from skclip.features._extraction import block_size, encode_blocks
from skclip.features._source_tables import PICTURE_COLUMNS, picture_in_cell
from skclip.features._transformer import PictureTransformer

# What engines call a column of pictures; bytes before the path that they were read from.
_COLUMNS = tuple(dict.fromkeys(("image", "img", "bytes", "content", "jpg", "jpeg", "png", "webp", *PICTURE_COLUMNS)))


class BatchEncoder:
    """Add features to the batches of a data engine: Ray Data, Spark, Hugging Face datasets.

    Parameters
    ----------
    features : CLIPFeatures, DenseCLIPFeatures or CLIPLayerStatistics
        What is extracted and how. Take ``store=None``: what passes by once need not be kept. With ``on_error="raise"``,
        its default, the first picture that cannot be read ends the run; with ``"nan"`` its row is NaN, and `error`
        tells why.
    column : str, default=None
        Column of the pictures: paths, URLs, encoded bytes, uint8 arrays, PIL images, or dicts with "bytes" or "path".
        None takes the first that is there of image, img, bytes, content, jpg, jpeg, png, webp, path, filepath, file,
        filename, file_name, image_path, url, image_url.
    output : str, default="features"
        Column for the rows, float32.
    error : str, default="error"
        Column for the reasons why pictures could not be read; None for those that could.
    keep_pictures : bool, default=True
        Whether the column of pictures stays. Where it holds encoded pictures and not their names, False spares the
        engine to carry them on.

    See Also
    --------
    skclip.features.extract : Without an engine, on all accelerators of one machine.

    Notes
    -----
    A batch is a dict of columns, a pandas DataFrame or a pyarrow Table, and comes back as the same, with the columns
    added. Other mappings, such as the batches of ``datasets.Dataset.map``, which adds the columns itself, are answered
    by a dict of the new columns alone.

    The object is small when it travels. A process loads the model at its first batch and keeps it. Each batch is
    encoded as one stream: give batches of 256 pictures or more, 1024 for accelerators.

    Examples
    --------
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.features import BatchEncoder, CLIPFeatures
    >>> encode = BatchEncoder(CLIPFeatures("skclip-tiny", store=None, on_error="nan"))
    >>> pictures = [*make_picture_world(2).images, "missing.png"]
    >>> batch = encode({"name": ["a", "b", "c"], "image": pictures})
    >>> batch["features"].shape
    (3, 128)
    >>> list(batch["error"])
    [None, None, 'no such file']
    """

    def __init__(
        self,
        features: PictureTransformer,
        *,
        column: str | None = None,
        output: str = "features",
        error: str = "error",
        keep_pictures: bool = True,
    ) -> None:
        if not isinstance(features, PictureTransformer):
            raise TypeError(f"features={features!r} must be a transformer of pictures, such as CLIPFeatures.")
        if output == error:
            raise ValueError(f"output={output!r} and error={error!r} must be two columns.")
        self.features = features
        self.column = column
        self.output = output
        self.error = error
        self.keep_pictures = keep_pictures

    def __repr__(self) -> str:
        return f"BatchEncoder({self.features!r}, column={self.column!r})"

    def __call__(self, batch: Any) -> Any:
        """Features of one batch.

        Parameters
        ----------
        batch : dict of str to sequence, pandas.DataFrame, pyarrow.Table or mapping

        Returns
        -------
        batch : as given; dict for other mappings

        Raises
        ------
        ValueError
            There is no column of pictures, or a picture cannot be read and ``on_error="raise"``.
        """
        if table_kind(batch) == "DataFrame" and hasattr(batch, "assign"):
            return self._encode_frame(batch)
        if type(batch).__module__.startswith("pyarrow") and type(batch).__name__ == "Table":
            return self._encode_table(batch)
        if isinstance(batch, Mapping):
            return self._encode_mapping(batch)
        raise TypeError(
            f"The batch is a {type(batch).__name__}; expected a dict of columns, a pandas DataFrame or a pyarrow Table."
        )

    def map_pandas(self, frames: Iterable[Any]) -> Iterator[Any]:
        """Features of a stream of data frames, as Spark's ``mapInPandas`` wants it.

        Parameters
        ----------
        frames : iterable of pandas.DataFrame

        Yields
        ------
        frame : pandas.DataFrame
            With the columns `output`, an array per row, and `error`.
        """
        for frame in frames:
            yield self(frame)

    def _encode_frame(self, frame: Any) -> Any:
        import pandas as pd

        column = self._picture_column(list(frame.columns))
        rows, reasons = self._encode(list(frame[column]), column)
        kept = frame if self.keep_pictures else frame.drop(columns=column)
        # A column of str would turn None into NaN.
        errors = pd.Series(reasons, index=frame.index, dtype=object)
        return kept.assign(**{self.output: list(rows), self.error: errors})

    def _encode_table(self, table: Any) -> Any:
        import pyarrow as pa

        column = self._picture_column(table.column_names)
        rows, reasons = self._encode(table.column(column).to_pylist(), column)
        # The types are those of every batch, also of one without errors.
        new = {
            self.output: pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel(), pa.float32()), rows.shape[1]),
            self.error: pa.array(reasons, pa.string()),
        }
        replaced = {*new, *(() if self.keep_pictures else (column,))}
        table = table.select([name for name in table.column_names if name not in replaced])
        for name, values in new.items():
            table = table.append_column(name, values)
        return table

    def _encode_mapping(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        column = self._picture_column(list(batch))
        rows, reasons = self._encode(_items(batch[column], column), column)
        new = {self.output: rows, self.error: np.array(reasons, dtype=object)}
        if type(batch) is not dict:
            return new
        return {name: values for name, values in batch.items() if self.keep_pictures or name != column} | new

    def _picture_column(self, columns: Sequence[str]) -> str:
        if self.column is not None:
            if self.column in columns:
                return self.column
            raise ValueError(f"column={self.column!r} is not in the batch, which has: {', '.join(map(str, columns))}.")
        found = next((name for name in _COLUMNS if name in columns), None)
        if found is None:
            there = ", ".join(map(str, columns))
            raise ValueError(f"No column of the batch has a usual name of pictures, only {there}; name it: column=...")
        return found

    def _encode(self, items: list[Any], column: str) -> tuple[NDArray[np.float32], list[str | None]]:
        """Rows of the pictures, and reasons why there are none."""
        features = self.features
        features._check()
        execution = features._execution()
        rows = np.empty((len(items), features._width()), dtype=np.float32)
        reasons: list[str | None] = [None] * len(items)
        pictures = [_picture_of(item, column, i) for i, item in enumerate(items)]
        size = block_size(execution, features._reading)
        blocks = (pictures[lo : lo + size] for lo in range(0, len(pictures), size))
        start = 0
        for block in encode_blocks(blocks, range(1), execution, seed=0, reading=features._reading):
            stop = start + len(block.rows)
            rows[start:stop] = features._finish(block.rows[:, 0]).reshape(stop - start, -1)
            for i, reason in block.failures:
                if features.on_error == "raise":
                    raise PictureError(f"{column}[{start + i}], {describe(pictures[start + i])}: {reason}.")
                reasons[start + i] = reason
            start = stop
        return rows, reasons


def _items(values: Any, column: str) -> list[Any]:
    if isinstance(values, np.ndarray) and values.dtype.kind == "S":
        raise TypeError(
            f"The column {column!r} has dtype {values.dtype}: NumPy cuts trailing zero bytes off encoded pictures. "
            "Give an array of objects or a list."
        )
    return list(values)


def _picture_of(item: Any, column: str, position: int) -> Any:
    if isinstance(item, np.ndarray):
        check_pixels(item, f"{column}[{position}]")
    return picture_in_cell(item, "", position, column)[1]
