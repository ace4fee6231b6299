"""Running a loaded backbone: the two crossings between NumPy and torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skclip._backbones._batch_size import BatchSizeSearch
from skclip._backbones._cards import BackboneCard
from skclip._backbones._compiling import CompiledTower
from skclip._backbones._device import torch_dtype
from skclip._backbones._hub import BackboneError
from skclip._backbones._lanes import n_lanes, work_off
from skclip._backbones._pixels import PixelScale, Uploads, to_tensor

if TYPE_CHECKING:
    import torch

# Pictures per batch under batch_size="auto": where the search begins, and the range of what it tries.
_PICTURES = {"cpu": (16, 8, 64), "mps": (64, 64, 256), "cuda": (256, 256, 1024)}
# Limits of the search on blank pictures: a large model on a CPU would take minutes, and full batches in each of a
# hundred lanes more memory than there is.
_SETTLING_SECONDS = 10.0
_SETTLING_PICTURES = {"cpu": 256, "mps": 256, "cuda": 1024}
# Tokens per batch of texts.
_AUTO_TOKENS = {"cpu": 1024, "mps": 8192, "cuda": 65536}
# Rows that wait on an accelerator to be copied back together.
_GATHERED_BYTES = 2**28
# Of the context: texts that are measured, not encoded.
_LONGEST_TEXT = 8
# Transformers have a few in their stem.
_STEM_CONVOLUTIONS = 8


class Backbone:
    """A frozen open_clip model on its device, and the functions that read from it.

    Instances come from `load_backbone` and are shared; the encoders may be called from several threads.

    Attributes
    ----------
    card : BackboneCard
    digest : str
        SHA-256 of the weights file.
    module : torch.nn.Module
        The open_clip model, in evaluation mode, without gradients.
    device : torch.device
    precision : {"float32", "bf16", "fp16"}
    logit_scale : float
        Trained factor on cosines (not its logarithm).
    """

    def __init__(
        self,
        card: BackboneCard,
        *,
        digest: str,
        module: torch.nn.Module,
        make_tokenizer: Callable[[], Any],
        device: torch.device,
        precision: str,
        compile: bool = False,
    ) -> None:
        self.card = card
        self.digest = digest
        self.logit_scale = float(module.logit_scale.exp().item())  # type: ignore[operator]
        self.module = module.to(device=device, dtype=torch_dtype(precision)).eval().requires_grad_(False)
        self.device = device
        self.precision = precision
        self._make_tokenizer = make_tokenizer
        self._tokenizer_lock = threading.Lock()
        self._compiled = CompiledTower(self._project, card.name, device) if compile else None
        self._scale = PixelScale(card.mean, card.std, device, torch_dtype(precision), self._channels_last())
        self._search = BatchSizeSearch(*_PICTURES[device.type])
        self._text_shrink = 1  # what "auto" learned from running out of memory

    def __repr__(self) -> str:
        return f"<Backbone {self.card.name} on {self.device}, {self.precision}>"

    @cached_property
    def tokenizer(self) -> Any:
        """Callable ``(texts, context_length=None) -> int64 ids``, built at the first use."""
        return self._make_tokenizer()

    @property
    def pixel_scale(self) -> PixelScale:
        """Function from uint8 pixels (n, H, W, 3) on the device to what the image tower reads."""
        return self._scale

    @property
    def picture_batch_size(self) -> int:
        """Pictures per forward pass that ``batch_size="auto"`` means, as far as it has been measured."""
        return self._search.size

    def settle_batch_size(self) -> int:
        """Find out on blank pictures what ``batch_size="auto"`` is to be, if that is still open, and return it.

        It is the best that could be measured in about 10 seconds and with 256 pictures at once (1024 on CUDA): models
        too slow and machines of too many cores for that keep the first size.
        """
        lanes = n_lanes() if self.device.type == "cpu" else 1
        end = perf_counter() + _SETTLING_SECONDS

        def next_size() -> int | None:
            size = None if self._compiled else self._search.trial
            return size if size is not None and size * lanes <= _SETTLING_PICTURES[self.device.type] else None

        def seconds_per_picture(size: int, batch_size: int | str = "auto") -> float:
            start = perf_counter()
            self.encode_images(self.empty_pictures(size * lanes), batch_size)
            return (perf_counter() - start) / size

        if next_size() is not None:
            seconds_per_picture(1, batch_size=1)  # warms up
            seconds = seconds_per_picture(1, batch_size=1)
            while (size := next_size()) is not None and perf_counter() + size * seconds <= end:
                seconds = seconds_per_picture(size)
        return self._search.size

    def empty_pictures(self, n: int) -> NDArray[np.uint8]:
        """Memory for `n` pictures from which `encode_images` reads at full speed.

        Parameters
        ----------
        n : int

        Returns
        -------
        uint8 ndarray of shape (n, H, W, 3), not initialised
            In pinned memory where the device is a CUDA device, from which it copies while it computes.
        """
        shape = (n, *self.card.image_size, 3)
        if self.device.type != "cuda":
            return np.empty(shape, dtype=np.uint8)
        import torch

        try:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
        except RuntimeError:  # the system pins no more: copies wait for each other then
            return np.empty(shape, dtype=np.uint8)

    def encode_images(
        self, batch: NDArray[np.uint8] | torch.Tensor, batch_size: int | str = "auto"
    ) -> NDArray[np.float32]:
        """Project pictures of the model's size; rows are not normalised.

        On CPUs several forward passes run side by side, one per core. The same pictures in the same order with the
        same batch size (and number of cores) give the same bytes; another batch size differs in the last bits.

        Parameters
        ----------
        batch : uint8 ndarray or torch.Tensor of shape (n, H, W, 3)
            H, W as in ``card.image_size``. An array may be a read-only memory map, a tensor may lie on the device.
        batch_size : int or "auto", default="auto"
            Pictures per forward pass, at most. "auto" begins with 16 on CPUs, 64 on MPS, 256 on CUDA, tries larger
            and smaller ones on the first pictures, and keeps the fastest for later calls (`picture_batch_size`).
            Where memory runs out the batch is halved, and "auto" remembers it.

        Returns
        -------
        float32 ndarray of shape (n, dim)
        """
        if self._compiled is None:
            return self._encode_pictures(batch, batch_size, self._project, self.card.dim, measure=True)
        size = _check_batch_size(batch_size) or self._search.size
        return self._encode_pictures(batch, batch_size, partial(self._compiled, size=size), self.card.dim)

    def encode_places(
        self, batch: NDArray[np.uint8] | torch.Tensor, batch_size: int | str = "auto"
    ) -> NDArray[np.float32]:
        """Project pictures and their places, in one pass; see `encode_images`. Never compiled.

        Returns
        -------
        float32 ndarray of shape (n, (1 + h * w) * dim)
            Row by row the embedding of the picture, as `encode_images` gives it, then those of its places on the
            grid `grid_shape`.
        """
        from skclip._backbones._towers import encode_places, grid_shape

        height, width = grid_shape(self.card)

        def project(pictures: torch.Tensor) -> torch.Tensor:
            return encode_places(self.module.visual, pictures).flatten(1)

        return self._encode_pictures(batch, batch_size, project, (1 + height * width) * self.card.dim)

    def encode_through(
        self,
        project: Callable[[torch.Tensor], torch.Tensor],
        batch: NDArray[np.uint8] | torch.Tensor,
        width: int,
        batch_size: int | str = "auto",
    ) -> NDArray[np.float32]:
        """What another function than the model's own makes of pictures; see `encode_images`.

        Parameters
        ----------
        project : callable
            From normalised pictures (b, 3, H, W) on the device to (b, width). Several threads may call it at once.
        batch : uint8 ndarray or torch.Tensor of shape (n, H, W, 3)
        width : int
        batch_size : int or "auto", default="auto"

        Returns
        -------
        float32 ndarray of shape (n, width)
        """
        return self._encode_pictures(batch, batch_size, project, width)

    def _project(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.module.encode_image(pictures, normalize=False)  # type: ignore[operator]

    def _encode_pictures(
        self,
        batch: NDArray[np.uint8] | torch.Tensor,
        batch_size: int | str,
        project: Callable[[torch.Tensor], torch.Tensor],
        width: int,
        *,
        measure: bool = False,
    ) -> NDArray[np.float32]:
        self._check_pictures(batch)
        wanted = _check_batch_size(batch_size)
        out = np.empty((len(batch), width), dtype=np.float32)
        done = self._measure(batch, project, out) if measure and wanted is None else 0
        size = wanted or self._search.size
        fitted = self._fill(out[done:], batch[done:], project, size)
        if wanted is None and fitted < size:
            self._search.ran_out(fitted)
        self._check_finite(out, "picture")
        return out

    def _measure(
        self,
        batch: NDArray[np.uint8] | torch.Tensor,
        project: Callable[[torch.Tensor], torch.Tensor],
        out: NDArray[np.float32],
    ) -> int:
        """Fill the first rows of `out` by rounds in which every lane has one batch; return how many rows."""
        search, done = self._search, 0
        lanes = n_lanes() if self.device.type == "cpu" else 1
        if not search.measuring.acquire(blocking=False):  # another thread measures: two at once would mislead both
            return done
        try:
            while (size := search.trial) is not None and done + size * lanes <= len(batch):
                part = slice(done, done + size * lanes)
                start = perf_counter()
                fitted = self._fill(out[part], batch[part], project, size)
                if fitted < size:
                    search.ran_out(fitted)
                else:
                    search.record(size * lanes / (perf_counter() - start))
                done = part.stop
        finally:
            search.measuring.release()
        return done

    def _fill(
        self,
        out: NDArray[np.float32],
        batch: NDArray[np.uint8] | torch.Tensor,
        project: Callable[[torch.Tensor], torch.Tensor],
        size: int,
    ) -> int:
        """Project each row of `batch` into that of `out`; return the batch size that fitted into memory."""
        return (self._fill_on_cpu if self.device.type == "cpu" else self._fill_from_device)(out, batch, project, size)

    def _fill_on_cpu(
        self,
        out: NDArray[np.float32],
        batch: NDArray[np.uint8] | torch.Tensor,
        project: Callable[[torch.Tensor], torch.Tensor],
        size: int,
    ) -> int:
        lanes = n_lanes()
        if len(out) < lanes:  # one forward pass by all cores
            lanes = 1
        bounds = _cut(len(out), size, lanes, evenly=self._compiled is None)
        largest = int(max(np.diff(bounds), default=size))
        shrinks = [1]

        def work(i: int) -> None:
            first = bounds[i]

            def project_rows(lo: int, hi: int) -> torch.Tensor:
                return project(self._scale(to_tensor(batch[first + lo : first + hi])))

            rows = np.arange(first, bounds[i + 1])
            shrinks.append(run_batched(project_rows, rows, out, rows_at=lambda _: largest, shrink=max(shrinks)))

        work_off(work, len(bounds) - 1, lanes)
        return size if max(shrinks) == 1 else max(1, largest // max(shrinks))

    def _fill_from_device(
        self,
        out: NDArray[np.float32],
        batch: NDArray[np.uint8] | torch.Tensor,
        project: Callable[[torch.Tensor], torch.Tensor],
        size: int,
    ) -> int:
        import torch

        dtype = torch_dtype(self.precision)
        together = max(size, _GATHERED_BYTES // (out.shape[1] * dtype.itemsize))
        shrink = 1
        with torch.inference_mode():
            for start in range(0, len(out), together):
                stop = min(len(out), start + together)
                uploads = Uploads(batch[start:stop], self.device)
                gathered = torch.empty((stop - start, out.shape[1]), dtype=dtype, device=self.device)

                def project_rows(lo: int, hi: int, uploads: Uploads = uploads) -> torch.Tensor:
                    return project(self._scale(uploads.rows(lo, hi)))

                def keep(lo: int, hi: int, part: torch.Tensor, gathered: torch.Tensor = gathered) -> None:
                    gathered[lo:hi] = part

                shrink = _halving(project_rows, keep, stop - start, rows_at=lambda _: size, shrink=shrink)
                out[start:stop] = gathered.cpu().to(torch.float32).numpy()  # waits for the device, once
        return max(1, size // shrink)

    def encode_texts(self, texts: Sequence[str], batch_size: int | str = "auto") -> NDArray[np.float32]:
        """Project texts; rows are not normalised and stand in the order of `texts`.

        Equal texts are encoded once. Texts are sorted by length and, where tokens after the end cannot
        matter (causal towers, towers that mask padding), each batch is cut at its longest text: the same
        features for a fraction of the work.

        Parameters
        ----------
        texts : sequence of str
        batch_size : int or "auto", default="auto"
            Texts per forward pass. "auto" fills batches by tokens: 1024 on CPUs, 8192 on MPS, 65536 on CUDA.

        Returns
        -------
        float32 ndarray of shape (n, dim)

        Warns
        -----
        TruncatedTextWarning
            Some texts are longer than ``card.context_length``; what is beyond was not read.
        """
        import torch

        from skclip._backbones._text import encode_ids, read_lengths, tokenize

        _check_texts(texts)
        position = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        with self._tokenizer_lock:  # fast tokenizers refuse two threads at once
            ids = tokenize(self.tokenizer, list(position), texts)
        lengths = read_lengths(self.module, ids).numpy()
        order = np.argsort(-lengths, kind="stable")  # longest first: memory runs out at once or never
        sorted_ids, sorted_lengths = ids[torch.from_numpy(order)], lengths[order]
        rows = _check_batch_size(batch_size)
        budget = _AUTO_TOKENS[self.device.type]

        def rows_at(lo: int) -> int:
            return rows or max(1, budget // int(sorted_lengths[lo]))

        def project(lo: int, hi: int) -> torch.Tensor:
            return encode_ids(self.module, sorted_ids[lo:hi, : int(sorted_lengths[lo])].to(self.device))

        learn = batch_size == "auto"
        unique = np.empty((len(order), self.card.dim), dtype=np.float32)
        with torch.inference_mode():
            shrink = run_batched(
                project, order, unique, rows_at=rows_at, shrink=self._text_shrink if learn else 1, what="text"
            )
        if learn:
            self._text_shrink = shrink
        out = unique if len(unique) == len(texts) else unique[[position[text] for text in texts]]
        self._check_finite(out, "text")
        return out

    def text_ids(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids of texts as the text tower reads them: cut, or filled up, to its context.

        Parameters
        ----------
        texts : sequence of n str

        Returns
        -------
        int64 tensor of shape (n, context_length), on the CPU

        Warns
        -----
        TruncatedTextWarning
            Some texts are longer.
        """
        from skclip._backbones._text import tokenize

        _check_texts(texts)
        with self._tokenizer_lock:
            return tokenize(self.tokenizer, list(texts), texts)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts from the start token, where the tokenizer writes one, to the end token, at any length.

        Parameters
        ----------
        texts : sequence of n str

        Returns
        -------
        list of n lists of int
        """
        from skclip._backbones._text import filled_lengths

        _check_texts(texts)
        with self._tokenizer_lock:
            ids = self.tokenizer(list(texts), context_length=_LONGEST_TEXT * self.card.context_length)
        lengths = filled_lengths(self.tokenizer, ids)
        return [row[:length].tolist() for row, length in zip(ids, lengths.tolist())]

    @property
    def pad_id(self) -> int:
        """The token with which texts are filled up to the context."""
        from skclip._backbones._text import pad_id

        return pad_id(self.tokenizer)

    def _channels_last(self) -> bool:
        """Whether the picture tower now lies in memory with its channels last: one of convolutions runs faster so.

        On CPUs RN50 takes a tenth less time; on CUDA the units for half precision want it.
        """
        import torch

        if self.device.type == "mps" or (self.device.type == "cuda" and self.precision == "float32"):
            return False
        tower: Any = self.module.visual
        n_convolutions = sum(isinstance(part, torch.nn.Conv2d) for part in tower.modules())
        if n_convolutions <= _STEM_CONVOLUTIONS:
            return False
        tower.to(memory_format=torch.channels_last)
        return True

    def _check_finite(self, out: NDArray[np.float32], what: str) -> None:
        bad = np.flatnonzero(~np.isfinite(out).all(axis=1))
        if len(bad):
            cure = (
                "its weights are damaged"
                if self.precision == "float32"
                else f"precision={self.precision!r} does not suit this model; use 'bf16' or 'float32'"
            )
            raise BackboneError(
                f"{self.card.name} gave NaN or infinity for {len(bad)} of {len(out)} {what}s "
                f"(first at position {bad[0]}): {cure}."
            )

    def _check_pictures(self, batch: Any) -> None:
        import torch

        size = self.card.image_size
        is_array = isinstance(batch, (np.ndarray, torch.Tensor))
        if not is_array or batch.dtype not in (np.uint8, torch.uint8) or tuple(batch.shape[1:]) != (*size, 3):
            got = f"{batch.dtype} {tuple(batch.shape)}" if is_array else type(batch).__name__
            raise ValueError(
                f"{self.card.name} reads a uint8 array or tensor of shape (n, {size[0]}, {size[1]}, 3), got {got}."
            )


def _cut(n: int, size: int, lanes: int, *, evenly: bool = True) -> list[int]:
    """Where parts of at most `size` of `n` rows begin, and the end.

    Evenly: as many for each lane and as equal as can be, or else some lanes would wait for one at the end.
    """
    if not evenly:
        return [*range(0, n, size), n]
    parts = -(-n // size)
    parts = min(n, -(-parts // lanes) * lanes)
    return [n * i // max(1, parts) for i in range(parts + 1)]


def run_batched(
    project: Callable[[int, int], torch.Tensor],
    order: NDArray[np.intp],
    out: NDArray[np.float32],
    *,
    rows_at: Callable[[int], int],
    shrink: int = 1,
    what: str = "picture",
) -> int:
    """Fill ``out[order[lo:hi]]`` with ``project(lo, hi)``, halving batches that do not fit into memory.

    Parameters
    ----------
    project : callable
        Rows ``lo`` to ``hi`` of the running order as a tensor (hi - lo, d).
    order : ndarray of shape (n,)
        Row of `out` for each row of the running order.
    out : float32 ndarray of shape (n, d)
    rows_at : callable
        Batch size wanted at row ``lo``.
    shrink : int
        Divisor of the batch size to begin with.

    Returns
    -------
    int
        The divisor at the end.
    """

    def keep(lo: int, hi: int, part: torch.Tensor) -> None:
        out[order[lo:hi]] = part.to(dtype=_float32(), device="cpu").numpy()

    return _halving(project, keep, len(order), rows_at=rows_at, shrink=shrink, what=what)


def _halving(
    project: Callable[[int, int], torch.Tensor],
    keep: Callable[[int, int, torch.Tensor], None],
    n: int,
    *,
    rows_at: Callable[[int], int],
    shrink: int,
    what: str = "picture",
) -> int:
    """``keep(lo, hi, project(lo, hi))`` for `n` rows; see `run_batched`."""
    lo = 0
    while lo < n:
        hi = min(n, lo + max(1, rows_at(lo) // shrink))
        part = _attempt(project, lo, hi)
        if part is not None:
            keep(lo, hi, part)
            lo = hi
            continue
        if hi - lo == 1:
            raise BackboneError(
                f"Out of memory with batch_size=1 (halved down from {rows_at(lo)}): not one {what} fits. "
                "Free memory on the device, or use a smaller model, a lower precision or device='cpu'."
            )
        _release_memory()
        while max(1, rows_at(lo) // shrink) >= hi - lo:
            shrink *= 2
    return shrink


def _attempt(project: Callable[[int, int], torch.Tensor], lo: int, hi: int) -> torch.Tensor | None:
    """The projection, or None where memory ran out: the failed frames are gone when this returns."""
    try:
        return project(lo, hi)
    except RuntimeError as error:
        # MPS has no class of its own for it, and neither has torch before 2.5.
        if "out of memory" not in str(error).lower():
            raise
        return None


def _release_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _float32() -> torch.dtype:
    return torch_dtype("float32")


def _check_batch_size(batch_size: Any) -> int | None:
    if batch_size == "auto":
        return None
    if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} is neither 'auto' nor an integer of at least 1.")
    return int(batch_size)


def _check_texts(texts: Any) -> None:
    if isinstance(texts, (str, bytes)):
        raise ValueError(f"texts={texts!r} is a single text; pass a list of them.")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts[{i}] is not a str: {text!r}.")
