from __future__ import annotations

import json
import os

import numpy as np
import pytest

from skclip.datasets import make_picture_world
from skclip.retrieval import CLIPRetriever, _folder


def rows(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 8)).astype(np.float32)


@pytest.fixture
def saved(tmp_path):
    CLIPRetriever(n_neighbors=3).fit(rows(40), [f"{i}.png" for i in range(40)]).save(tmp_path / "bank")
    return tmp_path / "bank"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_comes_back_as_it_was(saved):
    original = CLIPRetriever(n_neighbors=3).fit(rows(40), [f"{i}.png" for i in range(40)])
    loaded = CLIPRetriever.load(saved)
    assert repr(loaded) == repr(original)
    for ours, expected in zip(loaded.kneighbors(rows(5, 1)), original.kneighbors(rows(5, 1))):
        np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(loaded.ids_, original.ids_)
    assert set(vars(loaded)) == set(vars(original))
    loaded.partial_fit(rows(2, 2), ["a", "b"])
    assert loaded.n_samples_fit_ == 42


def test_rows_stay_on_the_disk(saved):
    loaded = CLIPRetriever.load(saved)
    base = loaded.X_fit_
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    assert type(loaded.X_fit_) is np.ndarray
    assert not loaded.X_fit_.flags.writeable


def test_numbers_data_frames_and_parameters_survive(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows(9), columns=[f"c{i}" for i in range(8)])
    CLIPRetriever("skclip-tiny", store=tmp_path / "store", n_neighbors=np.int64(2)).fit(frame).save(str(tmp_path / "b"))
    loaded = CLIPRetriever.load(str(tmp_path / "b"))
    assert list(loaded.feature_names_in_) == list(frame.columns)
    assert loaded.store == str(tmp_path / "store")
    assert loaded.model == loaded.model_ == "skclip-tiny"
    np.testing.assert_array_equal(loaded.ids_, np.arange(9))
    loaded.partial_fit(frame)
    np.testing.assert_array_equal(loaded.ids_, np.arange(18))


def test_other_weights_are_refused(tmp_path):
    world = make_picture_world(5)
    CLIPRetriever("skclip-tiny").fit(world.images).save(tmp_path)
    assert CLIPRetriever.load(tmp_path).kneighbors(texts=["a red circle"])[1].shape == (1, 5)
    path = tmp_path / _folder.FILE_NAME
    description = json.loads(path.read_text())
    assert description["model"] == "skclip-tiny"
    path.write_text(json.dumps({**description, "weights_digest": "0" * 64}))
    with pytest.raises(ValueError, match=r"skclip-tiny.*not those that encoded"):
        CLIPRetriever.load(tmp_path)
    later = CLIPRetriever.load(tmp_path, check_weights=False)
    later.kneighbors(later.X_fit_[:2])
    with pytest.raises(ValueError, match="not those that encoded"):
        later.kneighbors(texts=["a red circle"])


@pytest.mark.parametrize("failing", ["save", "replace", "fsync"])
def test_a_failed_save_leaves_what_was_there(saved, monkeypatch, failing):
    before = names(saved)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(np if failing == "save" else os, failing, fail)
        with pytest.raises(OSError, match="disk full"):
            CLIPRetriever().fit(rows(7)).save(saved)
        with pytest.raises(OSError, match="disk full"):
            CLIPRetriever().fit(rows(7)).save(saved.parent / "new")
    assert names(saved) == before
    assert CLIPRetriever.load(saved).n_samples_fit_ == 40
    with pytest.raises(FileNotFoundError, match="no saved CLIPRetriever"):
        CLIPRetriever.load(saved.parent / "new")


def test_what_a_killed_process_left_is_never_opened(tmp_path):
    np.save(tmp_path / f"skclip-rows-{'0' * 32}.npy", rows(3))
    (tmp_path / f"{_folder.FILE_NAME}.123").write_text('{"version": 1, "fi')
    with pytest.raises(FileNotFoundError, match="no saved CLIPRetriever"):
        CLIPRetriever.load(tmp_path)
    CLIPRetriever().fit(rows(7)).save(tmp_path)
    assert CLIPRetriever.load(tmp_path).n_samples_fit_ == 7
    assert f"skclip-rows-{'0' * 32}.npy" not in names(tmp_path)


def test_a_new_save_replaces_the_old_and_nothing_else(saved):
    (saved / "notes.txt").write_text("mine")
    old = CLIPRetriever.load(saved)
    before = old.kneighbors(rows(3, 1))
    CLIPRetriever().fit(rows(7)).save(saved)
    assert CLIPRetriever.load(saved).n_samples_fit_ == 7
    assert len(names(saved)) == 3
    assert (saved / "notes.txt").read_text() == "mine"
    np.testing.assert_array_equal(old.kneighbors(rows(3, 1))[1], before[1])  # its map is still open
    loaded = CLIPRetriever.load(saved)
    loaded.save(saved)  # onto itself
    assert CLIPRetriever.load(saved).n_samples_fit_ == 7


def test_damage_is_noticed(saved):
    data = next(saved.glob("skclip-rows-*.npy"))
    whole = data.read_bytes()
    data.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=r"skclip-rows.*is damaged"):
        CLIPRetriever.load(saved)
    data.write_bytes(b"x" * len(whole))
    with pytest.raises(ValueError, match="damaged"):
        CLIPRetriever.load(saved)
    data.unlink()
    with pytest.raises(ValueError, match="is not there"):
        CLIPRetriever.load(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', "null"])
def test_a_foreign_description(tmp_path, text):
    (tmp_path / _folder.FILE_NAME).write_text(text)
    with pytest.raises(ValueError, match="damaged, or not the description"):
        CLIPRetriever.load(tmp_path)


def test_a_later_version(saved):
    path = saved / _folder.FILE_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(ValueError, match="version 99"):
        CLIPRetriever.load(saved)


def test_objects_are_never_unpickled(saved):
    path = saved / _folder.FILE_NAME
    description = json.loads(path.read_text())
    data = saved / description["files"]["ids"]["name"]
    np.save(data, np.array([{"a": 1}] * 40, dtype=object), allow_pickle=True)
    description["files"]["ids"]["bytes"] = data.stat().st_size
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match="damaged"):
        CLIPRetriever.load(saved)


def test_unfitted_cannot_be_saved(tmp_path):
    with pytest.raises(Exception, match="not fitted"):
        CLIPRetriever().save(tmp_path)
