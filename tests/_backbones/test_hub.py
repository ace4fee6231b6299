from __future__ import annotations

import json
import shutil
import socket
import time

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError, RepositoryNotFoundError

from skclip._backbones import BackboneError, get_card, load_backbone, weights_digest
from skclip._backbones import _hub as hub

DIGEST = "ab" * 32


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache and a hub that must not be asked."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "_hub_trouble", lambda: "the hub is out of reach")
    return tmp_path / "hub"


def add_to_cache(cache, repo, files):
    """Files as the hub client stores them: named blobs, and links from a snapshot."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / "0123"
    for folder in (root / "blobs", root / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text("0123")
    for name, (blob, source) in files.items():
        shutil.copy(source, root / "blobs" / blob)
        (snapshot / name).symlink_to(root / "blobs" / blob)


def test_cached_repository_needs_no_hub(cache, models):
    folder = models("vit").removeprefix("local-dir:")
    add_to_cache(
        cache,
        "someone/model",
        {
            "open_clip_config.json": ("c" * 40, f"{folder}/open_clip_config.json"),
            "open_clip_model.safetensors": (DIGEST, f"{folder}/open_clip_model.safetensors"),
        },
    )
    model = "hf-hub:someone/model"
    assert weights_digest(model) == DIGEST  # the cache's own name of the content, not hashed again
    backbone = load_backbone(model, device="cpu")
    assert (backbone.card.architecture, backbone.digest) == ("someone/model", DIGEST)
    expected = load_backbone(models("vit"), device="cpu").encode_texts(["a dog"])
    np.testing.assert_array_equal(backbone.encode_texts(["a dog"]), expected)


def test_blob_with_a_short_name_is_hashed(cache, models):
    folder = models("vit").removeprefix("local-dir:")
    add_to_cache(
        cache,
        "someone/model",
        {
            "open_clip_config.json": ("c" * 40, f"{folder}/open_clip_config.json"),
            "open_clip_pytorch_model.bin": ("d" * 40, f"{folder}/open_clip_model.safetensors"),
        },
    )
    assert weights_digest("hf-hub:someone/model") == weights_digest(models("vit"))


@pytest.mark.parametrize("ask", [weights_digest, load_backbone])
def test_nothing_cached_and_no_hub(cache, ask):
    with pytest.raises(BackboneError) as caught:
        ask("ViT-B-32/openai")
    message = str(caught.value)
    for part in (
        "timm/vit_base_patch32_clip_224.openai is not in the local cache and the hub is out of reach",
        "'skclip-tiny'",
        "'local-dir:<folder>'",
        "hf download timm/vit_base_patch32_clip_224.openai",
        str(cache),
        "HF_HOME",
    ):
        assert part in message


def test_hub_card_without_hub(cache):
    with pytest.raises(BackboneError, match=r"open_clip_config\.json of someone/else is not in the local cache"):
        get_card("hf-hub:someone/else")
    with pytest.raises(ValueError, match="is not the name of a hub repository"):
        get_card("hf-hub:a/b/c")


def test_offline_switch(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in hub._hub_trouble()


def test_unreachable_hub_fails_within_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(BackboneError, match=r"the hub http://127\.0\.0\.1:9 cannot be reached"):
        load_backbone("ViT-B-32/openai", device="cpu")
    assert time.perf_counter() - start < 8


def test_a_silent_hub_is_given_up(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, never answers
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(hub, "_PROBE_SECONDS", 0.2)
        start = time.perf_counter()
        assert "cannot be reached" in hub._hub_trouble()
        assert time.perf_counter() - start < 5


class FakeHub:
    """Stands in for the download: each name gives a path or an exception."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def __call__(self, repo, filename):
        self.asked.append(filename)
        answer = self.answers[filename]
        if isinstance(answer, Exception):
            raise answer
        return answer


def response_error(kind, text):
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    return error


def test_download_takes_the_first_file_there_is(cache, monkeypatch, models):
    monkeypatch.setattr(hub, "_hub_trouble", lambda: None)
    missing = response_error(RemoteEntryNotFoundError, "no such file")
    fake = FakeHub({"a": missing, "b": "/somewhere/b"})
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake)
    assert str(hub.hub_file("someone/model", ["a", "b"])) == "/somewhere/b"
    fake.answers["b"] = missing
    with pytest.raises(BackboneError, match="someone/model has none of the files a, b"):
        hub.hub_file("someone/model", ["a", "b"])


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("connection lost"),
        response_error(RepositoryNotFoundError, "404 no such repository"),
        OSError("disk full"),
    ],
)
def test_failed_download_is_one_clear_error(cache, monkeypatch, error):
    monkeypatch.setattr(hub, "_hub_trouble", lambda: None)
    fake = FakeHub({"a": error})
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake)
    with pytest.raises(BackboneError, match=rf"Downloading a of someone/model failed \({type(error).__name__}"):
        hub.hub_file("someone/model", ["a", "b"])
    assert fake.asked == ["a"]


def test_weights_file_of_a_tag_prefers_safetensors(cache, monkeypatch):
    monkeypatch.setattr(hub, "_hub_trouble", lambda: None)
    fake = FakeHub({"pytorch_model.safetensors": OSError("stop here")})
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake)
    with pytest.raises(BackboneError, match="stop here"):
        weights_digest("ViTamin-S/datacomp1b")
    assert fake.asked == ["pytorch_model.safetensors"]


def test_config_in_the_cache_is_read_as_json(cache, tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({"model_cfg": {}}))
    add_to_cache(cache, "someone/model", {"open_clip_config.json": ("c" * 40, broken)})
    with pytest.raises(BackboneError, match="lacks 'model_cfg'"):
        get_card("hf-hub:someone/model")
