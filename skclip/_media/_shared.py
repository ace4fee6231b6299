"""One picture for several readers: read, hashed and decoded once, whoever asks first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from numpy.typing import NDArray

# Of pictures held at once. A chunk of few pictures comes first, to see how large they are.
_HELD_BYTES = 2**28
_FIRST_CHUNK = 16
_CHUNK = 256


class SharedPicture:
    """A picture that several readers are given, each of which would otherwise read it for itself.

    What `_media` makes of it - the file's bytes, the decoded picture - is kept while it is held (`held_chunks`), and
    the key of its content for good; so are the rows of features that were made of it. Everything that takes pictures
    takes these, and gives the same for them as for their source.

    Parameters
    ----------
    source : Picture

    Attributes
    ----------
    source : Picture
    rows : dict {bytes: ndarray of shape (d,)}
        Raw rows by their key in the feature store.
    """

    __slots__ = ("_held", "_kept", "_lock", "rows", "source")

    def __init__(self, source: Any) -> None:
        self.source = source
        self.rows: dict[bytes, NDArray] = {}
        self._kept: dict[str, Any] = {}
        self._held = False
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"SharedPicture({self.source!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.source, self.rows, self._kept.get("key"))

    @property
    def is_read(self) -> bool:
        """Whether the source has been looked at: what it is now may be something else."""
        return "key" in self._kept or "data" in self._kept

    def once(self, what: str, make: Callable[[], Any]) -> Any:
        """What `make` returns; made once while the picture is held, and the "key" once for all."""
        with self._lock:
            if what in self._kept:
                return self._kept[what]
            made = make()
            if self._held or what == "key":
                self._kept[what] = made
            return made

    def hold(self) -> None:
        """Keep from now on what is made."""
        self._held = True

    def release(self) -> None:
        """Forget the file's bytes and the decoded picture."""
        with self._lock:
            self._held = False
            self._kept = {what: made for what, made in self._kept.items() if what == "key"}

    def held_bytes(self) -> int:
        """Memory that `release` would give back, about."""
        picture, data = self._kept.get("picture"), self._kept.get("data")
        pixels = 0 if picture is None else picture.width * picture.height * len(picture.getbands())
        return pixels + (len(data) if isinstance(data, bytes) else 0)


def held_chunks(pictures: Sequence[SharedPicture]) -> Iterator[tuple[int, Sequence[SharedPicture]]]:
    """Consecutive pictures, held until the next are asked for.

    Yields
    ------
    start : int
        Position of the first.
    chunk : sequence of SharedPicture
        At most 256, fewer where pictures like those before would take more than 256 MiB.
    """
    start, size = 0, _FIRST_CHUNK
    while start < len(pictures):
        chunk = pictures[start : start + size]
        for picture in chunk:
            picture.hold()
        try:
            yield start, chunk
            largest = max(picture.held_bytes() for picture in chunk)
        finally:
            for picture in chunk:
                picture.release()
        start += len(chunk)
        size = min(_CHUNK, max(1, _HELD_BYTES // max(1, largest)))


def _restored(source: Any, rows: dict[bytes, NDArray], key: bytes | None) -> SharedPicture:
    picture = SharedPicture(source)
    picture.rows = rows
    if key is not None:
        picture.once("key", lambda: key)
    return picture
