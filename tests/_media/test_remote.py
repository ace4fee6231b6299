"""Pictures under URLs, and pictures that are missing."""

from __future__ import annotations

import io
import pickle
import socket
import threading
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from skclip._media import (
    MissingPicture,
    PictureError,
    PictureReader,
    PictureTransform,
    RemotePicture,
    SharedPicture,
    are_pictures,
    check_images,
    content_key,
    describe,
    load_item,
    read_picture,
    unknown_file,
)
from skclip._media import _remote as remote
from skclip._media._remote import is_url, require_protocols

fsspec = pytest.importorskip("fsspec")


def encoded(seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def memory():
    """A folder of fsspec's memory file system that nothing else uses."""
    folder = f"/{uuid.uuid4().hex}"
    filesystem = fsspec.filesystem("memory")
    filesystem.makedirs(folder)
    yield f"memory:/{folder}", filesystem
    filesystem.rm(folder, recursive=True)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.n_asked: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.n_asked[self.path] += 1
            n_asked = self.server.n_asked[self.path]
        kind = self.path.strip("/").partition("/")[0]
        data = encoded()
        if kind.isdigit():
            status = int(kind)
        elif kind.startswith("at-third") and n_asked < 3:
            status = 503
        else:
            status = 200
        if kind == "silent":
            self.server.closing.wait(20)
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if kind == "cut" else data)
        self.close_connection = kind == "cut"


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(remote, "_PAUSE", 0.001)
    monkeypatch.setattr(remote, "_SILENCE", 0.2)
    with _Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.closing.set()
        running.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://host/x.jpg", True),
        ("s3://bucket/x.jpg", True),
        ("zip://x.jpg::s3://bucket/x.zip", True),
        ("simplecache::https://host/x.jpg", True),
        ("C:\\x.jpg", False),
        ("C://x.jpg", False),
        ("/x/y.jpg", False),
        ("x::y.jpg", False),
        ("x:/y", False),
        ("folder/http://x", False),
    ],
)
def test_urls_are_told_from_paths(text, expected):
    assert is_url(text) is expected


def test_a_file_under_a_url_is_read_like_its_bytes(memory):
    folder, filesystem = memory
    filesystem.pipe(f"{folder}/x.png", encoded())
    picture = RemotePicture(f"{folder}/x.png")
    assert load_item(picture) == encoded()
    assert content_key(picture) == content_key(encoded())
    assert read_picture(picture).tobytes() == read_picture(encoded()).tobytes()


def test_a_remote_picture_is_a_picture_like_others(memory):
    folder, filesystem = memory
    filesystem.pipe(f"{folder}/x.png", encoded())
    picture = RemotePicture(f"{folder}/x.png")
    assert check_images([picture]) == [picture]
    assert are_pictures([picture])
    assert unknown_file(picture) is None
    assert describe(picture) == repr(picture.url)
    assert pickle.loads(pickle.dumps(picture)) == picture
    assert content_key(SharedPicture(picture)) == content_key(encoded())
    with pytest.raises(TypeError, match="single picture"):
        check_images(picture)


def test_a_missing_picture_fails_with_its_reason():
    missing = MissingPicture("the cell is empty")
    assert check_images([missing]) == [missing]
    assert unknown_file(missing) is None
    assert describe(missing) == "no picture"
    for read in (load_item, content_key, read_picture):
        with pytest.raises(PictureError, match=r"^the cell is empty$"):
            read(missing)


def test_readers_fetch_and_report_in_order(memory):
    folder, filesystem = memory
    for k in range(6):
        filesystem.pipe(f"{folder}/{k}.png", encoded(k))
    pictures = [RemotePicture(f"{folder}/{k}.png") for k in range(6)]
    pictures[2], pictures[4] = RemotePicture(f"{folder}/none.png"), MissingPicture("nowhere")
    with PictureReader(PictureTransform((8, 8)), n_workers=3) as reader:
        loaded = reader.load(pictures)
    for k, (_, key) in enumerate(loaded):
        if k == 2:
            assert "no such file" in str(key)
        elif k == 4:
            assert str(key) == "nowhere"
        else:
            assert key == content_key(encoded(k))


def test_several_threads_fetch_over_http_at_once(server):
    with ThreadPoolExecutor(4) as pool:
        fetched = list(pool.map(lambda k: load_item(RemotePicture(f"{server.url}/ok/{k}.png")), range(40)))
    assert fetched == [encoded()] * 40
    assert set(server.n_asked.values()) == {1}


@pytest.mark.parametrize(
    ("path", "reason", "n_asked"),
    [
        ("404/x.png", "no such file", 1),
        ("403/x.png", r"denies access \(HTTP 403\)", 1),
        ("410/x.png", "HTTP 410", 1),
        ("503/x.png", r"HTTP 503.*\(4 tries\)", 4),
        ("429/x.png", r"HTTP 429.*\(4 tries\)", 4),
        ("silent/x.png", r"no answer in time \(2 tries\)", 2),
        ("cut/x.png", r"cannot be fetched: .*\(4 tries\)", 4),
    ],
)
def test_a_url_that_fails_says_why(server, path, reason, n_asked):
    with pytest.raises(PictureError, match=reason):
        load_item(RemotePicture(f"{server.url}/{path}"))
    assert server.n_asked[f"/{path}"] == n_asked


def test_an_overloaded_server_is_asked_again(server):
    assert load_item(RemotePicture(f"{server.url}/at-third/x.png")) == encoded()
    assert server.n_asked["/at-third/x.png"] == 3


def test_a_server_says_when_to_come_back():
    class Answer(Exception):
        headers = {"Retry-After": "7"}

    assert remote._wish_of_server(Answer()) == 7
    Answer.headers = {"Retry-After": "86400"}
    assert remote._wish_of_server(Answer()) == remote._LONGEST_PAUSE
    Answer.headers = {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}
    assert remote._wish_of_server(Answer()) == 0
    assert remote._wish_of_server(ValueError()) == 0


def test_a_host_without_a_server_refuses(server):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(PictureError, match=r"refuses the connection \(2 tries\)"):
        load_item(RemotePicture(f"http://127.0.0.1:{port}/x.png"))


def test_an_unknown_protocol_is_named():
    with pytest.raises(PictureError, match=r"no such protocol: htps://"):
        load_item(RemotePicture("htps://host/x.png"))
    require_protocols("htps://host/x.png")  # a slip in one row, not something to install


def test_a_missing_package_is_named(monkeypatch):
    def missing(protocol):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    remote._require_protocol.cache_clear()
    with pytest.raises(ImportError, match=r"s3:// needs one more package: Install s3fs.*skclip\[remote\]"):
        require_protocols("simplecache::s3://bucket/x.png")
    with pytest.raises(PictureError, match="Install s3fs"):
        load_item(RemotePicture("s3://bucket/x.png"))
    monkeypatch.undo()
    remote._require_protocol.cache_clear()
