"""Running a loaded backbone: the two crossings between NumPy and torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skclip._backbones._cards import BackboneCard
from skclip._backbones._device import torch_dtype
from skclip._backbones._hub import BackboneError

if TYPE_CHECKING:
    import torch

# Pictures per batch and tokens per batch under batch_size="auto". On CPUs larger batches leave the cache:
# ViT-B/32 on two cores takes 4.8 s for 64 pictures by 16 and 5.6 s by 64. Accelerators want many.
_AUTO_PICTURES = {"cpu": 16, "mps": 64, "cuda": 256}
_AUTO_TOKENS = {"cpu": 1024, "mps": 8192, "cuda": 65536}


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
    ) -> None:
        self.card = card
        self.digest = digest
        self.logit_scale = float(module.logit_scale.exp().item())  # type: ignore[operator]
        self.module = module.to(device=device, dtype=torch_dtype(precision)).eval().requires_grad_(False)
        self.device = device
        self.precision = precision
        self._make_tokenizer = make_tokenizer
        self._tokenizer_lock = threading.Lock()
        self._shrink = {"picture": 1, "text": 1}  # what "auto" learned from running out of memory

    def __repr__(self) -> str:
        return f"<Backbone {self.card.name} on {self.device}, {self.precision}>"

    @cached_property
    def tokenizer(self) -> Any:
        """Callable ``(texts, context_length=None) -> int64 ids``, built at the first use."""
        return self._make_tokenizer()

    def encode_images(self, batch: NDArray[np.uint8], batch_size: int | str = "auto") -> NDArray[np.float32]:
        """Project pictures of the model's size; rows are not normalised.

        Parameters
        ----------
        batch : uint8 ndarray of shape (n, H, W, 3)
            H, W as in ``card.image_size``; may be a read-only memory map.
        batch_size : int or "auto", default="auto"
            Pictures per forward pass. "auto" is 16 on CPUs, 64 on MPS, 256 on CUDA. Where an accelerator
            runs out of memory the batch is halved, and "auto" remembers it.

        Returns
        -------
        float32 ndarray of shape (n, dim)
        """
        return self._encode_pictures(batch, batch_size, self._project, self.card.dim)

    def encode_places(self, batch: NDArray[np.uint8], batch_size: int | str = "auto") -> NDArray[np.float32]:
        """Project pictures and their places, in one pass; see `encode_images`.

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

    def _project(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.module.encode_image(pictures, normalize=False)  # type: ignore[operator]

    def _encode_pictures(
        self,
        batch: NDArray[np.uint8],
        batch_size: int | str,
        project: Callable[[torch.Tensor], torch.Tensor],
        width: int,
    ) -> NDArray[np.float32]:
        import torch

        self._check_pictures(batch)
        mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (self.card.mean, self.card.std))
        dtype = torch_dtype(self.precision)
        rows = _check_batch_size(batch_size) or _AUTO_PICTURES[self.device.type]

        def project_rows(lo: int, hi: int) -> torch.Tensor:
            part = np.require(batch[lo:hi], requirements=["C", "W"])  # copies maps on disk and reversed views
            pixels = torch.from_numpy(part).to(self.device)
            pictures = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
            # The order of ToTensor and Normalize: the same float32 pixels bit for bit.
            return project(pictures.div_(255).sub_(mean).div_(std).to(dtype))

        order = np.arange(len(batch))
        out = self._run(project_rows, order, lambda lo: rows, "picture", batch_size == "auto", width)
        self._check_finite(out, "picture")
        return out

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

        unique = self._run(project, order, rows_at, "text", batch_size == "auto", self.card.dim)
        out = unique if len(unique) == len(texts) else unique[[position[text] for text in texts]]
        self._check_finite(out, "text")
        return out

    def _run(
        self,
        project: Callable[[int, int], torch.Tensor],
        order: NDArray[np.intp],
        rows_at: Callable[[int], int],
        what: str,
        learn: bool,
        width: int,
    ) -> NDArray[np.float32]:
        import torch

        out = np.empty((len(order), width), dtype=np.float32)
        with torch.inference_mode():
            shrink = run_batched(
                project, order, out, rows_at=rows_at, shrink=self._shrink[what] if learn else 1, what=what
            )
        if learn:
            self._shrink[what] = shrink
        return out

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
        size = self.card.image_size
        if not isinstance(batch, np.ndarray) or batch.dtype != np.uint8 or batch.shape[1:] != (*size, 3):
            got = f"{batch.dtype} {batch.shape}" if isinstance(batch, np.ndarray) else type(batch).__name__
            raise ValueError(f"{self.card.name} reads a uint8 array of shape (n, {size[0]}, {size[1]}, 3), got {got}.")


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
    lo = 0
    while lo < len(order):
        hi = min(len(order), lo + max(1, rows_at(lo) // shrink))
        part = _attempt(project, lo, hi)
        if part is not None:
            out[order[lo:hi]] = part.to(dtype=_float32(), device="cpu").numpy()
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
