"""Files of a corpus that may live in an object store: fetched once, kept in a cache folder."""

import hashlib
import os
from pathlib import Path

CACHE_VARIABLE = "LMSTACK_CACHE"
_DEFAULT_CACHE = "~/.cache/lmstack"
_REMOTE_PREFIXES = ("s3://", "gs://", "r2://", "azure://", "hf://", "local:")
"""What litdata's downloaders know; `local:` is a folder treated as if it were remote."""


def is_remote(path: str) -> bool:
    """Whether a path names an object store.

    Args:
        path: A folder or URL.
    """
    return path.startswith(_REMOTE_PREFIXES)


def join(folder: str, *parts: str) -> str:
    """A path or URL inside another.

    Args:
        folder: The outer one.
        *parts: Names to go down by.
    """
    return "/".join([folder.rstrip("/"), *parts])


def local_copy(folder: str, name: str) -> Path:
    """Where a file of a folder can be read: the file itself, or its copy in the cache, fetched if need be.

    Args:
        folder: A folder or URL.
        name: File name in it.

    Raises:
        ValueError: The file cannot be fetched.
    """
    if not is_remote(folder):
        return Path(folder, name)
    cache = Path(os.environ.get(CACHE_VARIABLE, _DEFAULT_CACHE)).expanduser()
    copy = cache / hashlib.sha256(folder.encode()).hexdigest()[:16] / name
    if not copy.exists():
        _download(folder, name, copy)
    return copy


def _download(folder: str, name: str, copy: Path) -> None:
    os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")  # it would ask the network for a newer version
    from litdata.streaming.downloader import get_downloader

    copy.parent.mkdir(parents=True, exist_ok=True)
    temporary = copy.with_name(f"{copy.name}.{os.getpid()}.tmp")
    try:
        get_downloader(folder, str(copy.parent), []).download_file(join(folder, name), str(temporary))
        os.replace(temporary, copy)
    except Exception as error:  # each store raises its own
        temporary.unlink(missing_ok=True)
        raise ValueError(f"{join(folder, name)} cannot be fetched: {error}. Check the URL and the access.") from error
