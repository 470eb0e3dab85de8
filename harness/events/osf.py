"""Downloads files of the public data set, OSF project vruzp, through OSF's public interface."""

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.errors import BadInput

API = "https://api.osf.io/v2"
PROJECT = "vruzp"
_TIMEOUT_S = 30
_CHUNK_BYTES = 1 << 20
_FILE_NAME = "dlprod_{size}px_{number:02d}.root"


class ProgressBar(Protocol):
    """What the download reports to; the form that pooch asks for."""

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
        Where its content is.
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
        Voxels a side: 192, 512 or 768.
    numbers : sequence of int
        Which of the size's files, counted from 0.
    folder : Path
        Made if needed.
    api : str
        Address of OSF's interface.
    progress : ProgressBar, optional
    retries : int
        How often a broken download is tried again at once.

    Yields
    ------
    Path
        Each file, in the order of `numbers`, as soon as it is there.

    Raises
    ------
    BadInput
        If there is no network, OSF has no such file, a transfer breaks, a checksum is wrong, or
        the disk is too small.
    """
    import pooch
    import requests

    # It would report every file beside the progress bar.
    pooch.get_logger().setLevel("WARNING")
    files = {file.name: file for file in list_files(api)}
    names = [_FILE_NAME.format(size=size, number=number) for number in numbers]
    for name in names:
        if name not in files:
            raise BadInput(f"OSF project {PROJECT} has no file {name}; {_offer(files, size)}")
    folder.mkdir(parents=True, exist_ok=True)
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
    downloader = pooch.HTTPDownloader(
        progressbar=progress, chunk_size=_CHUNK_BYTES, timeout=_TIMEOUT_S
    )
    for name in names:
        try:
            path = Path(registry.fetch(name, downloader=downloader))
        except requests.RequestException as error:
            raise BadInput(
                f"{name} could not be downloaded ({_reason(error)}); run the command again"
            ) from error
        except ValueError as error:
            # The only one that pooch raises here.
            raise BadInput(
                f"{name} arrived with a wrong checksum and was thrown away; run the command again"
            ) from error
        expected = files[name].bytes
        if expected is not None and path.stat().st_size != expected:
            path.unlink()
            raise BadInput(f"{name} arrived incomplete and was thrown away; run the command again")
        yield path


def list_files(api: str = API) -> list[RemoteFile]:
    """List all files of the project, in all folders.

    Raises
    ------
    BadInput
        If OSF cannot be reached or answers something unexpected.
    """
    files: list[RemoteFile] = []
    addresses = [f"{api}/nodes/{PROJECT}/files/osfstorage/"]
    while addresses:
        page = _get_json(addresses.pop())
        try:
            for entry in page["data"]:
                attributes = entry["attributes"]
                if attributes["kind"] == "folder":
                    addresses.append(entry["relationships"]["files"]["links"]["related"]["href"])
                    continue
                hashes = (attributes.get("extra") or {}).get("hashes") or {}
                found = [f"{kind}:{hashes[kind]}" for kind in ("sha256", "md5") if hashes.get(kind)]
                files.append(
                    RemoteFile(
                        attributes["name"],
                        entry["links"]["download"],
                        attributes.get("size"),
                        found[0] if found else None,
                    )
                )
            following = (page.get("links") or {}).get("next")
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInput(
                f"OSF's list of files has an unknown form (no {error}); "
                f"download from https://osf.io/{PROJECT} by hand"
            ) from error
        if following:
            addresses.append(following)
    return files


def _get_json(address: str) -> Any:
    import requests

    try:
        response = requests.get(address, timeout=_TIMEOUT_S)
        response.raise_for_status()
        return response.json()
    except requests.ConnectionError as error:
        raise BadInput(
            f"there is no network, or {address} does not answer; "
            "use the packed sample or simulate events instead"
        ) from error
    except (requests.RequestException, ValueError) as error:
        raise BadInput(
            f"OSF's list of files cannot be read ({_reason(error)}); try again later"
        ) from error


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
