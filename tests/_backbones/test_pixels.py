from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision.transforms import Compose, Normalize, ToTensor

from skclip._backbones._pixels import PixelScale, Uploads, to_tensor

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CPU = torch.device("cpu")


def every_value():
    """Two pictures, 24 by 32, in which each channel has every value."""
    values = np.arange(256, dtype=np.uint8)
    channels = [np.random.default_rng(i).permutation(np.tile(values, 6)) for i in range(3)]
    return np.stack(channels, axis=-1).reshape(2, 24, 32, 3)


def by_torchvision():
    steps = Compose([ToTensor(), Normalize(MEAN, STD)])
    return torch.stack([steps(picture) for picture in every_value()])


@pytest.mark.parametrize("channels_last", [False, True])
def test_float32_is_totensor_and_normalize_bit_for_bit(channels_last):
    pixels = to_tensor(every_value())
    before = pixels.clone()
    found = PixelScale(MEAN, STD, CPU, torch.float32, channels_last)(pixels)
    assert torch.equal(found, by_torchvision())
    assert torch.equal(pixels, before)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert found.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_nearest_to_float32(dtype, channels_last):
    found = PixelScale(MEAN, STD, CPU, dtype, channels_last)(to_tensor(every_value()))
    assert found.dtype == dtype
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert found.is_contiguous(memory_format=layout)
    exact = by_torchvision().double()
    # half a unit in the last place, and what float32 itself is off
    assert ((found.double() - exact).abs() <= (exact.abs() * torch.finfo(dtype).eps / 2 + 1e-6)).all()


def test_devices_that_mix_no_types_go_through_float32():
    scale = PixelScale(MEAN, STD, CPU, torch.float16, False)
    scale._fold = False
    assert torch.equal(scale(to_tensor(every_value())), by_torchvision().half())


class FakeCuda:
    """Streams that write down what they are asked for."""

    def __init__(self):
        self.log = []

    def Stream(self, device):
        return FakeStream("copies", self.log)

    def current_stream(self, device):
        return FakeStream("work", self.log)

    def stream(self, stream):
        return stream


class FakeStream:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def __enter__(self):
        self.log.append(("enter", self.name))

    def __exit__(self, *error):
        self.log.append(("leave", self.name))

    def record_event(self):
        event = SimpleNamespace(of=self.name, number=sum(entry[0] == "event" for entry in self.log))
        event.synchronize = lambda: self.log.append(("host waits for", event.of, event.number))
        self.log.append(("event", self.name, event.number))
        return event

    def wait_event(self, event):
        self.log.append(("wait", self.name, event.of, event.number))


@pytest.fixture
def uploads(monkeypatch):
    """``uploads(batch)`` that believes in a CUDA device; copies land on the CPU."""
    cuda = FakeCuda()
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda self, stream: cuda.log.append(("keep for", stream.name, len(self)))
    )

    def make(batch):
        made = Uploads(batch, CPU)
        made._cuda, made._side, made.log = cuda, cuda.Stream(CPU), cuda.log
        return made

    return make


def test_the_next_batch_is_copied_before_the_first_is_worked_on(uploads):
    X = every_value().repeat(5, axis=0)  # 10 pictures
    coming = uploads(X)
    assert np.array_equal(coming.rows(0, 4).numpy(), X[:4])
    assert coming.log == [
        ("enter", "copies"),
        ("leave", "copies"),
        ("event", "copies", 0),
        ("wait", "work", "copies", 0),
        ("keep for", "work", 4),
        ("event", "work", 1),
        ("enter", "copies"),
        ("leave", "copies"),
        ("event", "copies", 2),
    ]
    coming.log.clear()
    assert np.array_equal(coming.rows(4, 8).numpy(), X[4:8])
    assert coming.log[0] == ("wait", "work", "copies", 2)
    assert np.array_equal(coming.rows(8, 10).numpy(), X[8:])
    assert sum(entry == ("enter", "copies") for entry in coming.log) == 1  # none beyond the last


def test_batches_that_became_smaller_are_copied_anew(uploads):
    X = every_value().repeat(5, axis=0)
    coming = uploads(X)
    coming.rows(0, 8)
    for lo in range(0, 10, 2):
        assert np.array_equal(coming.rows(lo, lo + 2).numpy(), X[lo : lo + 2])


def test_the_host_does_not_run_far_ahead(uploads):
    X = every_value().repeat(5, axis=0)
    coming = uploads(X)
    for i in range(10):
        coming.rows(i, i + 1)
        waits = [entry for entry in coming.log if entry[0] == "host waits for"]
        assert len(waits) == max(0, i - 1)
    assert all(entry[1] == "work" for entry in waits)


def test_without_streams_rows_are_rows():
    X = every_value()
    assert np.array_equal(Uploads(X, CPU).rows(1, 2).numpy(), X[1:])
    assert np.array_equal(Uploads(X[::-1], CPU).rows(0, 1).numpy(), X[1:])
    assert np.array_equal(Uploads(torch.from_numpy(X), CPU).rows(1, 2).numpy(), X[1:])
