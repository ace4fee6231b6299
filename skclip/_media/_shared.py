"""One picture for several readers: read, hashed and decoded once, whoever asks first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from numpy.typing import NDArray
from PIL import Image

# Of pictures held at once. A chunk of few pictures comes first, to see how large they are.
_HELD_BYTES = 2**28
# Where large ones follow small ones: beyond it nothing is kept, and the next reader reads for itself.
_MOST_HELD_BYTES = 2**30
_FIRST_CHUNK = 16
_CHUNK = 256


class Room:
    """Memory that threads share out."""

    def __init__(self, n_bytes: int) -> None:
        self._left = n_bytes
        self._lock = threading.Lock()

    def take(self, n_bytes: int) -> bool:
        """Whether there was any left; what comes last may take more than that."""
        with self._lock:
            if self._left <= 0:
                return False
            self._left -= n_bytes
            return True


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

    __slots__ = ("_kept", "_lock", "_room", "rows", "source")

    def __init__(self, source: Any) -> None:
        self.source = source
        self.rows: dict[bytes, NDArray] = {}
        self._kept: dict[str, Any] = {}
        self._room: Room | None = None
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
            if what == "key" or (self._room is not None and self._room.take(_size(made))):
                self._kept[what] = made
            return made

    def hold(self, room: Room | None = None) -> None:
        """Keep from now on what is made, as long as there is room."""
        self._room = room or Room(_MOST_HELD_BYTES)

    def release(self) -> None:
        """Forget the file's bytes and the decoded picture."""
        with self._lock:
            self._room = None
            self._kept = {what: made for what, made in self._kept.items() if what == "key"}

    def held_bytes(self) -> int:
        """Memory that `release` would give back, about."""
        return sum(_size(made) for what, made in self._kept.items() if what != "key")


def held_chunks(pictures: Sequence[SharedPicture]) -> Iterator[tuple[int, Sequence[SharedPicture]]]:
    """Consecutive pictures, held until the next are asked for.

    Yields
    ------
    start : int
        Position of the first.
    chunk : sequence of SharedPicture
        At most 256, fewer where pictures like those before would take more than 256 MiB. They keep no more than 1 GiB.
    """
    start, size = 0, _FIRST_CHUNK
    while start < len(pictures):
        chunk = pictures[start : start + size]
        room = Room(_MOST_HELD_BYTES)
        for picture in chunk:
            picture.hold(room)
        try:
            yield start, chunk
            largest = max(picture.held_bytes() for picture in chunk)
        finally:
            for picture in chunk:
                picture.release()
        start += len(chunk)
        size = min(_CHUNK, max(1, _HELD_BYTES // max(1, largest)))


def _size(made: Any) -> int:
    """Bytes of a decoded picture or of a file; 0 of what is the user's own."""
    if isinstance(made, Image.Image):
        return made.width * made.height * len(made.getbands())
    return len(made) if isinstance(made, bytes) else 0


def _restored(source: Any, rows: dict[bytes, NDArray], key: bytes | None) -> SharedPicture:
    picture = SharedPicture(source)
    picture.rows = rows
    if key is not None:
        picture.once("key", lambda: key)
    return picture
