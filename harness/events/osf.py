"""Download of files of the public data set, OSF project vruzp, by OSF's public interface."""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit

from harness.errors import BadInput
from harness.files import make_folder, refuse

API = "https://api.osf.io/v2"
PROJECT = "vruzp"
_TIMEOUT_S = 30
_CHUNK_BYTES = 1 << 20
_MOST_PAGES = 500
_DEEPEST_FOLDER = 8
_PAGE_BYTES = 1 << 24
_FILE_BYTES = 1 << 38
_HOSTS = ("osf.io", "storage.googleapis.com")
"""OSF, and the storage that it redirects to; their subdomains belong to them."""

_FILE_NAME = "dlprod_{size}px_{number:02d}.root"


class ProgressBar(Protocol):
    """Receiver of a download's progress, in the form that pooch uses."""

    total: int

    def update(self, count: int) -> None:
        """Count more bytes."""

    def reset(self) -> None:
        """Count from zero again."""

    def close(self) -> None:
        """End the count."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as OSF describes it.

    Attributes
    ----------
    name : str
    url : str
        Address of its content.
    bytes : int or None
        Its length, where OSF gives one.
    checksum : str or None
        ``sha256:...`` or ``md5:...``, where OSF gives one.
    """

    name: str
    url: str
    bytes: int | None
    checksum: str | None


def parse_numbers(text: str) -> list[int]:
    """Parse numbers and ranges such as ``0-1,4``.

    Raises
    ------
    BadInput
        If the text is anything else.
    """
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise BadInput(f"file numbers {text!r} are not understood; write them like 0-1 or 0,3")
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return numbers


def fetch(
    size: int,
    numbers: Sequence[int],
    folder: Path,
    *,
    api: str = API,
    progress: ProgressBar | None = None,
    retries: int = 2,
) -> Iterator[Path]:
    """Download files of one image size that are not in the folder yet.

    A file appears under its name only when it is complete and its checksum is right; a broken
    download leaves nothing behind and starts anew on the next call.

    Parameters
    ----------
    size : int
        Voxels per side: 192, 512 or 768.
    numbers : sequence of int
        Which of the size's files, counted from 0.
    folder : Path
        Made if needed.
    api : str
        Address of OSF's interface.
    progress : ProgressBar, optional
    retries : int
        Number of further attempts after a broken download.

    Yields
    ------
    Path
        Each file, in the order of ``numbers``, as soon as it is complete.

    Raises
    ------
    BadInput
        If there is no network, OSF has no such file, a transfer breaks, a checksum is wrong, or
        the disk is too small.
    """
    import pooch
    import requests

    # Its log would repeat every file beside the progress bar.
    pooch.get_logger().setLevel("WARNING")
    files = {file.name: file for file in list_files(api)}
    names = [_FILE_NAME.format(size=size, number=number) for number in numbers]
    for name in names:
        if name not in files:
            raise BadInput(f"OSF project {PROJECT} has no file {name}; {_offer(files, size)}")
    make_folder(folder, "--cache")
    missing = sum(files[name].bytes or 0 for name in names if not (folder / name).exists())
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise BadInput(
            f"{missing / 1e9:.1f} GB do not fit into {folder}, which has {free / 1e9:.1f} GB left; "
            "free some space or choose another folder with --cache"
        )
    registry = pooch.create(
        path=folder,
        base_url="",
        registry={name: files[name].checksum for name in names},
        urls={name: files[name].url for name in names},
        retry_if_failed=retries,
    )
    for name in names:
        check_address(files[name].url, api)
        length = files[name].bytes
        most = _FILE_BYTES if length is None else length
        downloader = pooch.HTTPDownloader(
            progressbar=_BoundedBar(progress, most),
            chunk_size=_CHUNK_BYTES,
            timeout=_TIMEOUT_S,
            hooks=_redirect_check(api),
        )
        try:
            path = Path(registry.fetch(name, downloader=downloader))
        except BadInput:
            raise
        except OSError as error:
            if not isinstance(error, requests.RequestException):
                refuse(folder / name, error, "--cache")
            raise BadInput(
                f"{name} could not be downloaded ({_reason(error)}); run the command again"
            ) from error
        except ValueError as error:
            raise BadInput(
                f"{name} arrived with a wrong checksum and was deleted; run the command again"
            ) from error
        expected = files[name].bytes
        if expected is not None and path.stat().st_size != expected:
            path.unlink()
            raise BadInput(f"{name} arrived incomplete and was deleted; run the command again")
        yield path


class _BoundedBar:
    """Reports a download's progress, and ends it at a number of bytes.

    Parameters
    ----------
    progress : ProgressBar or None
    most : int
        Bytes.
    """

    def __init__(self, progress: ProgressBar | None, most: int) -> None:
        self._progress, self._most, self._count, self._total = progress, most, 0, 0

    @property
    def total(self) -> int:
        """Bytes that the server announces."""
        return self._total

    @total.setter
    def total(self, total: int) -> None:
        self._total, self._count = total, 0
        if self._progress is not None:
            self._progress.total = total

    def update(self, count: int) -> None:
        """Count more bytes.

        Raises
        ------
        BadInput
            If there are more than expected.
        """
        self._count += count
        # pooch counts the last, shorter chunk as a whole one.
        if self._count > 2 * self._most + 16 * _CHUNK_BYTES:
            raise BadInput(
                f"the server sends more than the {self._most} bytes of its list of files; "
                "try again later"
            )
        if self._progress is not None:
            self._progress.update(count)

    def reset(self) -> None:
        """Count from zero again."""
        self._count = 0
        if self._progress is not None:
            self._progress.reset()

    def close(self) -> None:
        """End the count."""
        if self._progress is not None:
            self._progress.close()


def check_address(address: object, api: str) -> str:
    """Check that an address belongs to OSF, its storage, or the same server as the interface.

    Raises
    ------
    BadInput
        If it is of another host or not encrypted.
    """
    try:
        parts, own = urlsplit(str(address)), urlsplit(api)
        host = parts.hostname or ""
        same = (parts.scheme, parts.netloc) == (own.scheme, own.netloc)
        ours = any(host == name or host.endswith(f".{name}") for name in _HOSTS)
        allowed = same or (parts.scheme == "https" and ours)
    except ValueError:
        allowed = False
    if not isinstance(address, str) or not allowed:
        raise BadInput(
            f"OSF's answer leads to {_shortened(address)}, which is no encrypted address of OSF; "
            f"download from https://osf.io/{PROJECT} by hand"
        )
    return address


def _redirect_check(api: str) -> dict[str, Callable[..., None]]:
    """Hooks of requests that check where an answer redirects to, before it is followed."""

    def check(response: Any, *_: object, **__: object) -> None:
        if response.is_redirect:
            check_address(urljoin(response.url, response.headers["location"]), api)

    return {"response": check}


def list_files(api: str = API) -> list[RemoteFile]:
    """List all files of the project, in all folders.

    Raises
    ------
    BadInput
        If OSF cannot be reached, or its list is endless or has an unexpected form.
    """
    files: list[RemoteFile] = []
    addresses = [(f"{api}/nodes/{PROJECT}/files/osfstorage/", 0)]
    seen: set[str] = set()
    while addresses:
        address, depth = addresses.pop()
        check_address(address, api)
        if address in seen or len(seen) >= _MOST_PAGES or depth > _DEEPEST_FOLDER:
            raise BadInput(
                f"OSF's list of files leads in a circle or has no end at {_shortened(address)}; "
                f"download from https://osf.io/{PROJECT} by hand"
            )
        seen.add(address)
        page = _get_json(address, api)
        try:
            for entry in page["data"]:
                if entry["attributes"]["kind"] == "folder":
                    related = entry["relationships"]["files"]["links"]["related"]["href"]
                    addresses.append((related, depth + 1))
                else:
                    files.append(_remote_file(entry))
            following = (page.get("links") or {}).get("next")
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInput(
                f"OSF's list of files has an unknown form (no {error}); "
                f"download from https://osf.io/{PROJECT} by hand"
            ) from error
        if following:
            addresses.append((following, depth))
    return files


def _remote_file(entry: Any) -> RemoteFile:
    """Read the description of a file; a wrong type raises ``TypeError``."""
    attributes = entry["attributes"]
    name, size = attributes["name"], attributes.get("size")
    address = entry["links"]["download"]
    if not isinstance(name, str) or not isinstance(address, str):
        raise TypeError("name or address")
    if size is not None and (type(size) is not int or size < 0):
        raise TypeError("size")
    hashes = (attributes.get("extra") or {}).get("hashes") or {}
    found = [
        f"{kind}:{hashes[kind]}"
        for kind in ("sha256", "md5")
        if isinstance(hashes.get(kind), str) and hashes[kind]
    ]
    return RemoteFile(name, address, size, found[0] if found else None)


def _get_json(address: str, api: str) -> Any:
    import requests

    try:
        with requests.get(
            address, timeout=_TIMEOUT_S, stream=True, hooks=_redirect_check(api)
        ) as response:
            response.raise_for_status()
            content = bytearray()
            for piece in response.iter_content(1 << 16):
                content += piece
                if len(content) > _PAGE_BYTES:
                    raise BadInput(
                        f"OSF's list of files is longer than {_PAGE_BYTES} bytes at "
                        f"{_shortened(address)}; try again later"
                    )
            return json.loads(content)
    except BadInput:
        raise
    except requests.ConnectionError as error:
        raise BadInput(
            f"there is no network, or {_shortened(address)} does not answer; "
            "use the packed sample or simulate events instead"
        ) from error
    except (requests.RequestException, ValueError, RecursionError) as error:
        raise BadInput(
            f"OSF's list of files cannot be read ({_reason(error)}); try again later"
        ) from error


def _shortened(address: object) -> str:
    return " ".join(str(address).split())[:200]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _offer(files: dict[str, RemoteFile], size: int) -> str:
    same = sorted(name for name in files if name.startswith(f"dlprod_{size}px_"))
    if same:
        return f"for {size} px it has {same[0]} to {same[-1]}"
    sizes = sorted(
        {int(match[1]) for name in files if (match := re.match(r"dlprod_(\d+)px_", name))}
    )
    return f"choose a size of {', '.join(map(str, sizes)) or 'none: it has no event file'}"
