"""Files of the model hub: from the local cache without network, else downloaded, else one clear error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_PROBE_SECONDS = 5.0

_OFFLINE = "'skclip-tiny' (bundled) or 'local-dir:<folder>' (a folder with open_clip_config.json and the weights)"


class BackboneError(RuntimeError):
    """A backbone could not be fetched, read, built or run; the message says why and what would work."""


def hub_file(repo: str, filenames: Sequence[str], *, offline: str = _OFFLINE) -> Path:
    """Path of the first of `filenames` that the hub repository `repo` has.

    What lies in the local cache is used as it is, without asking the hub. `offline` is what errors offer instead.

    Raises
    ------
    BackboneError
        Nothing is cached and the hub is switched off, unreachable (found out within seconds), or has
        no such repository or file.
    """
    cached = cached_file(repo, filenames)
    if cached is not None:
        return cached
    trouble = _hub_trouble()
    if trouble:
        raise BackboneError(
            f"{filenames[0]} of {repo} is not in the local cache and {trouble}. {_advice(repo, offline)}"
        )
    return _download(repo, filenames, offline)


def cached_file(repo: str, filenames: Sequence[str]) -> Path | None:
    """Path of the first of `filenames` that the local cache has of a hub repository; the hub is not asked."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        for filename in filenames:
            cached = try_to_load_from_cache(repo, filename)
            if isinstance(cached, str):
                return Path(cached)
    except HFValidationError as error:
        raise ValueError(f"{repo!r} is not the name of a hub repository: {error}") from None
    return None


def _download(repo: str, filenames: Sequence[str], offline: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for filename in filenames:
        try:
            return Path(hf_hub_download(repo, filename))
        except LocalEntryNotFoundError as error:  # a subclass of the next, but about the connection
            raise _download_error(repo, filename, error, offline) from error
        except EntryNotFoundError:
            continue
        except Exception as error:
            raise _download_error(repo, filename, error, offline) from error
    raise BackboneError(
        f"The hub repository {repo} has none of the files {', '.join(filenames)}. {_advice(repo, offline)}"
    )


def _download_error(repo: str, filename: str, error: Exception, offline: str) -> BackboneError:
    reason = (str(error).strip() or repr(error)).splitlines()[0]
    return BackboneError(
        f"Downloading {filename} of {repo} failed ({type(error).__name__}: {reason}). {_advice(repo, offline)}"
    )


def _hub_trouble() -> str | None:
    """Why the hub cannot be asked, or None.

    One request with a short limit: the hub client itself repeats a request to a host that does not
    answer for half a minute and more.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids asking the hub"
    try:
        get_session().head(constants.ENDPOINT, timeout=_PROBE_SECONDS)
    except Exception as error:  # which class depends on the HTTP library behind the hub client
        return f"the hub {constants.ENDPOINT} cannot be reached ({type(error).__name__}: {error})"
    return None


def _advice(repo: str, offline: str) -> str:
    from huggingface_hub import constants

    return (
        f"Without a connection use {offline}. To fetch this model ahead of time, run "
        f"`hf download {repo}` on a connected machine and copy its cache to {constants.HF_HUB_CACHE} "
        "(or set HF_HOME to where it lies)."
    )
