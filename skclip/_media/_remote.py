"""Pictures that lie elsewhere, under a URL that fsspec reads, and pictures that are known to be nowhere."""

from __future__ import annotations

import asyncio
import errno
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]+::)*[A-Za-z][A-Za-z0-9+.-]+://", re.ASCII)

# Seconds: of a connection, of silence on it, and before a second try, twice as long before each further one.
_CONNECT = 15.0
_SILENCE = 30.0
_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_TRIES = 4
# Of hosts that never answered: lists of web pictures are full of them.
_TRIES_UNANSWERED = 2

_PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)
_FINAL = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ValueError)


class FetchError(OSError):
    """A URL that cannot be read; the message is the reason alone."""


@dataclass(frozen=True, slots=True)
class RemotePicture:
    """A picture file under a URL; whoever needs its bytes fetches them.

    Parameters
    ----------
    url : str
        Any that fsspec reads, chained ones too: "https://...", "s3://...", "zip://a.jpg::gs://...".
    """

    url: str


@dataclass(frozen=True, slots=True)
class MissingPicture:
    """A place where a picture is expected and none is: reading it fails with `reason`."""

    reason: str


def is_url(text: str) -> bool:
    """Whether a text is a URL rather than a path, "C:\\\\pictures" among them."""
    return _URL.match(text) is not None


def require_protocols(url: str) -> None:
    """Make sure that the packages that a URL needs are installed; a protocol that nobody knows passes.

    Raises
    ------
    ImportError
        Naming the package, or the extra that brings it.
    """
    for link in url.split("::"):
        if "://" in link:
            _require_protocol(link.partition("://")[0])


def fetch(url: str) -> bytes:
    """Read the file under a URL whole.

    What may pass is tried again, half a second and more later: a lost connection and an overloaded server up to four
    times in all, a host that does not answer twice. Credentials, proxies and other options are those of fsspec's
    configuration; for http(s) the proxies of the environment count.

    Raises
    ------
    FetchError
        With the reason in words.
    """
    n_tries = 0
    while True:
        n_tries += 1
        try:
            filesystem, path = open_filesystem(url)
            return filesystem.cat_file(path)
        except Exception as error:
            if n_tries >= _most_tries(error):
                raise FetchError(reason_of(error, n_tries)) from error
            pause = max(_PAUSE * 2 ** (n_tries - 1), _wish_of_server(error))
        time.sleep(pause)


def open_filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path of the URL in it."""
    require_protocols(url)
    from fsspec.core import url_to_fs

    return url_to_fs(url, **_options(url))


@lru_cache(maxsize=64)
def _require_protocol(protocol: str) -> None:
    try:
        from fsspec import get_filesystem_class
    except ImportError as error:
        raise ImportError(f"{protocol}:// is read by fsspec: pip install 'skclip[remote]'.") from error
    try:
        get_filesystem_class(protocol)
    except ValueError:
        return
    except ImportError as error:
        raise ImportError(
            f"{protocol}:// needs one more package: {error}. Those of http, https and s3 come with "
            "pip install 'skclip[remote]'."
        ) from error


def _options(url: str) -> dict[str, Any]:
    """What fsspec's own http client lacks: limits of time, and the proxies of the environment."""
    if not url.startswith(("http://", "https://")):
        return {}
    import aiohttp
    from fsspec.config import conf

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_SILENCE)
    of_user = conf.get(url.partition("://")[0], {}).get("client_kwargs", {})
    return {"client_kwargs": {"timeout": timeout, "trust_env": True, **of_user}}


def _most_tries(error: Exception) -> int:
    status = getattr(error, "status", None)
    if isinstance(status, int) and status >= 400:
        return _TRIES if status in _PASSING_STATUS else 1
    if isinstance(error, _FINAL):
        return 1
    if _is_timeout(error) or hasattr(error, "os_error"):  # aiohttp's of a connection that never came about
        return _TRIES_UNANSWERED
    return _TRIES if isinstance(error, (OSError, EOFError)) or _is_of_client(error) else 1


def _is_timeout(error: Exception) -> bool:
    return isinstance(error, (TimeoutError, asyncio.TimeoutError))


def _is_of_client(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] == "aiohttp"


def _wish_of_server(error: Exception) -> float:
    """Seconds after which an overloaded server wants to be asked again."""
    headers = getattr(error, "headers", None) or {}
    wish = str(headers.get("Retry-After", ""))
    return min(float(wish), _LONGEST_PAUSE) if wish.isdecimal() else 0.0


def reason_of(error: Exception, n_tries: int = 1) -> str:
    """Why a URL could not be read, in words."""
    tries = f" ({n_tries} tries)" if n_tries > 1 else ""
    status = getattr(error, "status", None)
    if isinstance(status, int) and status >= 400:
        if status in (401, 403):
            return f"the server denies access (HTTP {status})"
        return f"the server answers with an error (HTTP {status} {getattr(error, 'message', '')}".rstrip() + f"){tries}"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return f"access is denied ({error})"
    if _is_timeout(error):
        return f"no answer in time{tries}"
    if getattr(error, "errno", None) == errno.ECONNREFUSED:
        return f"the host refuses the connection{tries}"
    if isinstance(error, ImportError):
        return str(error)
    if isinstance(error, ValueError) and "Protocol not known" in str(error):
        return f"fsspec knows no such protocol: {str(error).rpartition(' ')[2]}://"
    return f"cannot be fetched: {str(error) or type(error).__name__}{tries}"
