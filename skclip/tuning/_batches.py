"""What a training loop reads: batches of features, or of pictures read afresh in every epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skclip._media import Augmentation, PictureError, PictureReader, PictureTransform, Wanted, describe

if TYPE_CHECKING:
    import torch

_BATCHES_AHEAD = 2
# Of plain pictures: they are the same in every epoch and are kept if they fit.
_KEPT_BYTES = 2**29


class FeatureInputs:
    """Features of n pictures in V views each, of which an epoch shows one.

    V stored views stand in for a random crop at every step, as long as the image tower is frozen.

    Parameters
    ----------
    views : torch.Tensor of shape (n, V, ...)
        On the device where they are wanted.
    """

    def __init__(self, views: torch.Tensor) -> None:
        self.views = views

    def __len__(self) -> int:
        return len(self.views)

    def batches(
        self, rows: Sequence[NDArray[np.intp]], epoch: int, generator: torch.Generator
    ) -> Iterator[torch.Tensor]:
        """Features of pictures, one random view of each.

        Parameters
        ----------
        rows : sequence of ndarray of shape (b,)
            Positions of the pictures of each batch.
        epoch : int
            Not read: the views follow from `generator`.
        generator : torch.Generator
            On the CPU. One number per picture is drawn, whatever the batches; none where there is one view.

        Yields
        ------
        tensor of shape (b, ...)
        """
        import torch

        n, n_views = self.views.shape[:2]
        chosen = torch.zeros(n, dtype=torch.int64)
        if n_views > 1:
            chosen = torch.randint(n_views, (n,), generator=generator)
        for batch in rows:
            places = torch.from_numpy(np.asarray(batch, dtype=np.int64))
            device = self.views.device
            yield self.views[places.to(device), chosen[places].to(device)]


class PictureInputs:
    """Pictures, read again for every epoch; the next batches are read while one is trained on.

    Parameters
    ----------
    pictures : sequence of n pictures, as `check_images` returns them
        Files are read here, once, and kept as far as 512 MiB go.
    transform : PictureTransform
    scale : callable
        From uint8 pixels (b, H, W, 3) on `device` to what the tower reads, (b, 3, H, W), such as a `PixelScale`.
    augmentation : Augmentation or None
        None reads the plain picture, which is decoded once where all of them fit into 512 MiB.
    seed : int
        Of the random views. Epoch e shows view e + 1 of each picture, a function of its content, `seed` and e alone: a
        training that is resumed sees what it would have seen.
    device : torch.device
    workers : {"threads", "processes"}, default="threads"
    n_workers : int, default=None
        See `PictureReader`.

    Raises
    ------
    PictureError
        Naming the first picture that cannot be read; of damaged files `batches` raises it.
    """

    def __init__(
        self,
        pictures: Sequence[Any],
        transform: PictureTransform,
        scale: Callable[[torch.Tensor], torch.Tensor],
        *,
        augmentation: Augmentation | None,
        seed: int,
        device: torch.device,
        workers: str = "threads",
        n_workers: int | None = None,
    ) -> None:
        self._pictures = pictures
        self._transform = transform
        self._scale = scale
        self._is_plain = augmentation is None
        self._device = device
        self._reading: dict[str, Any] = {
            "workers": workers,
            "n_workers": n_workers,
            "seed": seed,
            "augmentation": augmentation or Augmentation(),
        }
        with self._reader() as reader:
            loaded = reader.load(pictures)
        for i, (_, key) in enumerate(loaded):
            if isinstance(key, PictureError):
                raise self._trouble(i, key)
        self._loaded = [data for data, _ in loaded]
        self._keys: list[Any] = [key for _, key in loaded]
        n_bytes = 3 * len(pictures) * transform.size[0] * transform.size[1]
        keep = self._is_plain and n_bytes <= _KEPT_BYTES
        self._kept = np.empty((len(pictures) if keep else 0, *transform.size, 3), dtype=np.uint8)
        self._is_kept = np.zeros(len(self._kept), dtype=bool)

    def __len__(self) -> int:
        return len(self._pictures)

    def batches(
        self, rows: Sequence[NDArray[np.intp]], epoch: int, generator: torch.Generator | None = None
    ) -> Iterator[torch.Tensor]:
        """Pixels of pictures as the tower reads them.

        Parameters
        ----------
        rows : sequence of ndarray of shape (b,)
            Positions of the pictures of each batch.
        epoch : int
            From 0; the number of the views.
        generator : Ignored

        Yields
        ------
        tensor of shape (b, 3, H, W)
        """
        import torch

        view = 0 if self._is_plain else epoch + 1
        # The reader is closed first: where the caller stops early, a batch that is being read ends in an error.
        with ThreadPoolExecutor(1) as ahead, self._reader() as reader:
            coming: deque[Future[NDArray[np.uint8]]] = deque()
            for i in range(len(rows)):
                for batch in rows[i + len(coming) : i + 1 + _BATCHES_AHEAD]:
                    coming.append(ahead.submit(self._read, reader, batch, view))
                yield self._scale(torch.from_numpy(coming.popleft().result()).to(self._device))

    def _reader(self) -> PictureReader:
        return PictureReader(self._transform, **self._reading)

    def _read(self, reader: PictureReader, batch: NDArray[np.intp], view: int) -> NDArray[np.uint8]:
        if not len(self._kept):
            return self._pixels(reader, batch, view)
        new = batch[~self._is_kept[batch]]
        self._kept[new] = self._pixels(reader, new, view)
        self._is_kept[new] = True
        return self._kept[batch]

    def _pixels(self, reader: PictureReader, batch: NDArray[np.intp], view: int) -> NDArray[np.uint8]:
        pixels = np.empty((len(batch), *self._transform.size, 3), dtype=np.uint8)
        wanted = [Wanted(self._loaded[i], self._keys[i], ((row, view),)) for row, i in enumerate(batch)]
        for i, error in zip(batch.tolist(), reader.read(wanted, pixels)):
            if error is not None:
                raise self._trouble(i, error) from error
        return pixels

    def _trouble(self, i: int, error: PictureError) -> PictureError:
        return PictureError(f"X[{i}], {describe(self._pictures[i])}: {error}.")
