"""The file of a training."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from skclip.tuning._checkpoint import (  # noqa: E402
    CheckpointError,
    check_writable,
    digest_of,
    read_checkpoint,
    write_checkpoint,
)

FACTS = {"epoch": 3, "losses": [0.1 + 0.2, math.inf, 1e-300], "scaler": {}}
MARKS = {"batch_size": 32, "data": "0123456789abcdef" * 2, "names": ["a", "b"], "learning_rate": 0.002}


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "learned/ctx": torch.randn(4, 6, generator=generator),
        "optimizer/step/ctx": torch.tensor(7.0),
        "learned/none": torch.zeros(0, 6),
        "learned/turned": torch.randn(3, 5, generator=generator, dtype=torch.float64).T,
        "generator": generator.get_state(),
    }


@pytest.fixture
def path(tensors, tmp_path):
    path = tmp_path / "run.skclip"
    write_checkpoint(path, tensors, FACTS, MARKS)
    return path


def test_what_is_written_comes_back_to_the_last_bit(path, tensors):
    found, facts = read_checkpoint(path, MARKS)
    assert facts == FACTS
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_no_file_is_no_error(tmp_path):
    assert read_checkpoint(tmp_path / "none", MARKS) is None


def test_another_training_is_refused_by_what_differs(path):
    other = {**MARKS, "batch_size": 16, "data": "f" * 32, "depth": 3}
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path, other)
    message = str(caught.value)
    assert "batch_size is 32 there and 16 here; data differs; depth is null there and 3 here." in message
    assert "learning_rate" not in message
    assert "another path, or remove the file" in message


@pytest.mark.parametrize("kept", [0, 5, 200, -8])
def test_a_cut_file_is_damaged(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"run\.skclip' cannot be read.*remove it to begin anew"):
        read_checkpoint(path, MARKS)


def test_a_flipped_bit_is_damage(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"run\.skclip' is damaged; remove it"):
        read_checkpoint(path, MARKS)


def test_other_files_are_none_of_ours(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "weights.safetensors"
    for metadata in (None, {"training": "of a dog"}):
        save_file({"a": np.zeros(3)}, path, metadata)
        with pytest.raises(CheckpointError, match="no checkpoint of a training"):
            read_checkpoint(path, MARKS)
    path.write_text("a diary")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(path, MARKS)


def test_a_failing_write_leaves_the_last_one(path, tensors, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(CheckpointError, match=r"cannot be written.*No space left"):
            write_checkpoint(path, {"generator": tensors["generator"]}, {"epoch": 4}, MARKS)
    assert read_checkpoint(path, MARKS)[1] == FACTS
    assert os.listdir(path.parent) == [path.name]


def test_where_no_file_can_be_written_is_known_before(tmp_path):
    check_writable(tmp_path / "new" / "folder" / "run")
    assert os.listdir(tmp_path / "new" / "folder") == []
    with pytest.raises(CheckpointError, match="is a folder; name a file"):
        check_writable(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        check_writable(tmp_path / "file" / "run")


def test_digests_tell_contents_types_and_shapes_apart():
    values = [np.arange(6), np.arange(6.0), np.arange(6).reshape(2, 3), np.arange(6)[::-1], np.array(["a", "b"])]
    digests = [digest_of(value) for value in values]
    assert len(set(digests)) == len(values)
    assert digest_of(np.arange(6)) == digests[0]
    assert digest_of(*values) != digest_of(*values[::-1])
