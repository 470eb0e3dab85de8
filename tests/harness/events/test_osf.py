"""Downloads, against a local server that imitates OSF's interface."""

import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from harness.errors import BadInput
from harness.events.osf import (
    API,
    RemoteFile,
    check_address,
    fetch,
    list_files,
    parse_numbers,
)

CONTENT = {f"dlprod_512px_{i:02d}.root": bytes([i]) * (3 << 20) for i in range(3)}
CONTENT["dlprod_192px_00.root"] = b"small"


class Osf:
    """Files in two pages and a folder; tests can change them, and read the requests."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.broken: dict[str, int] = {}
        self.status: dict[str, int] = {}
        self.redirect: dict[str, str] = {}
        self.checksums = {
            name: {"sha256": hashlib.sha256(data).hexdigest()} for name, data in CONTENT.items()
        }
        self.sizes = {name: len(data) for name, data in CONTENT.items()}
        self.listing: bytes | None = None
        self.answer: Callable[[], bytes] | None = None
        self.address = ""

    def entry(self, name):
        return {
            "attributes": {
                "kind": "file",
                "name": name,
                "size": self.sizes[name],
                "extra": {"hashes": self.checksums[name]},
            },
            "links": {"download": f"{self.address}/download/{name}"},
        }

    def pages(self):
        root = "/v2/nodes/vruzp/files/osfstorage/"
        folder = {
            "attributes": {"kind": "folder", "name": "192px"},
            "relationships": {
                "files": {"links": {"related": {"href": f"{self.address}{root}folder/"}}}
            },
        }
        names = [name for name in CONTENT if "512px" in name]
        following = f"{self.address}{root}?page=2"
        return {
            root: {"data": [self.entry(name) for name in names[:2]], "links": {"next": following}},
            f"{root}?page=2": {"data": [self.entry(names[2]), folder], "links": {"next": None}},
            f"{root}folder/": {"data": [self.entry("dlprod_192px_00.root")], "links": {}},
        }

    @property
    def downloads(self):
        return [path.rsplit("/", 1)[1] for path in self.requests if "/download/" in path]


@contextmanager
def serving(osf):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            osf.requests.append(self.path)
            name = self.path.rsplit("/", 1)[1]
            if target := osf.redirect.get(name):
                self.send_response(302)
                self.send_header("Location", target)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            if status := osf.status.get(name):
                return self.send_error(status)
            if "/download/" not in self.path:
                body = osf.answer() if osf.answer else osf.listing
                body = body or json.dumps(osf.pages()[self.path]).encode()
            else:
                body = CONTENT[name]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if osf.broken.get(name, 0) > 0:
                osf.broken[name] -= 1
                body = body[: len(body) // 2]
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def osf():
    pytest.importorskip("pooch")
    osf = Osf()
    with serving(osf) as osf.address:
        yield osf


@pytest.fixture
def get(osf, tmp_path):
    def get(size, numbers, retries=0, progress=None):
        return list(
            fetch(
                size,
                numbers,
                tmp_path,
                api=f"{osf.address}/v2",
                retries=retries,
                progress=progress,
            )
        )

    return get


def test_the_list_goes_through_pages_and_folders(osf):
    files = {file.name: file for file in list_files(f"{osf.address}/v2")}
    assert set(files) == set(CONTENT)
    name = "dlprod_512px_01.root"
    checksum = f"sha256:{hashlib.sha256(CONTENT[name]).hexdigest()}"
    url = f"{osf.address}/download/{name}"
    assert files[name] == RemoteFile(name, url, 3 << 20, checksum)


def test_files_arrive_and_are_not_fetched_twice(osf, get, tmp_path):
    paths = get(512, [0, 2])
    assert [path.name for path in paths] == ["dlprod_512px_00.root", "dlprod_512px_02.root"]
    assert [path.read_bytes() for path in paths] == [CONTENT[path.name] for path in paths]
    assert get(512, [0, 2]) == paths
    assert osf.downloads == ["dlprod_512px_00.root", "dlprod_512px_02.root"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_a_file_in_a_folder(get):
    assert get(192, [0])[0].read_bytes() == b"small"


def test_progress_is_shown_to_the_last_byte(get):
    class Bar:
        total = count = 0
        closed = False

        def update(self, count):
            self.count += count

        def reset(self):
            self.count = 0

        def close(self):
            self.closed = True

    bar = Bar()
    get(512, [1], progress=bar)
    assert (bar.total, bar.count, bar.closed) == (3 << 20, 3 << 20, True)


def test_a_broken_transfer_is_tried_again(osf, get):
    osf.broken["dlprod_512px_00.root"] = 1
    (path,) = get(512, [0], retries=1)
    assert path.read_bytes() == CONTENT[path.name]
    assert len(osf.downloads) == 2


def test_a_transfer_that_stays_broken_leaves_nothing_and_can_be_restarted(osf, get, tmp_path):
    osf.broken["dlprod_512px_00.root"] = 1
    with pytest.raises(BadInput, match=r"dlprod_512px_00.root could not be downloaded .* again"):
        get(512, [0])
    assert list(tmp_path.iterdir()) == []
    assert get(512, [0])[0].read_bytes() == CONTENT["dlprod_512px_00.root"]


def test_a_wrong_checksum_is_thrown_away(osf, get, tmp_path):
    osf.checksums["dlprod_512px_00.root"] = {"sha256": "0" * 64}
    with pytest.raises(BadInput, match=r"dlprod_512px_00.root arrived with a wrong checksum"):
        get(512, [0])
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_in_the_cache_is_fetched_again(osf, get, tmp_path):
    (tmp_path / "dlprod_192px_00.root").write_bytes(b"smell")
    assert get(192, [0])[0].read_bytes() == b"small"


def test_md5_serves_where_there_is_no_sha256(osf, get):
    digest = hashlib.md5(b"small").hexdigest()
    osf.checksums["dlprod_192px_00.root"] = {"sha256": None, "md5": digest}
    assert get(192, [0])[0].read_bytes() == b"small"


def test_without_any_checksum_the_length_is_compared(osf, get, tmp_path):
    osf.checksums["dlprod_192px_00.root"] = {}
    osf.sizes["dlprod_192px_00.root"] = 6
    with pytest.raises(BadInput, match="arrived incomplete"):
        get(192, [0])
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_gone(osf, get):
    osf.status["dlprod_512px_01.root"] = 404
    with pytest.raises(BadInput, match=r"dlprod_512px_01.root could not be downloaded .*404"):
        get(512, [1])


def test_a_list_that_is_gone(osf, get):
    osf.status[""] = 404
    with pytest.raises(BadInput, match=r"list of files cannot be read .*404"):
        get(512, [1])


@pytest.mark.parametrize(
    ("listing", "words"),
    [(b"<html>maintenance</html>", "cannot be read"), (b'{"data": [{}]}', "unknown form")],
)
def test_a_list_of_another_form(osf, get, listing, words):
    osf.listing = listing
    with pytest.raises(BadInput, match=words):
        get(512, [0])


def test_files_that_do_not_exist_are_named_with_those_that_do(get):
    with pytest.raises(BadInput, match=r"no file dlprod_512px_07.root; for 512 px it has .*_02"):
        get(512, [7])
    with pytest.raises(BadInput, match="choose a size of 192, 512"):
        get(256, [0])


def test_no_network(tmp_path):
    with serving(Osf()) as address:
        pass
    with pytest.raises(BadInput, match=r"there is no network, or http://127.0.0.1:\d+/v2"):
        list(fetch(512, [0], tmp_path, api=f"{address}/v2"))


def test_a_disk_that_is_too_small(osf, get):
    osf.sizes["dlprod_512px_00.root"] = 10**18
    with pytest.raises(BadInput, match="do not fit"):
        get(512, [0])
    assert osf.downloads == []


@pytest.mark.parametrize(
    ("text", "numbers"), [("0", [0]), ("0-1", [0, 1]), ("0,3", [0, 3]), ("2-4, 7", [2, 3, 4, 7])]
)
def test_file_numbers(text, numbers):
    assert parse_numbers(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "0;1"])
def test_file_numbers_that_are_none(text):
    with pytest.raises(BadInput, match="write them like 0-1"):
        parse_numbers(text)


def listing(osf, name, **changes):
    entry = osf.entry(name)
    entry["attributes"] |= changes.pop("attributes", {})
    return json.dumps({"data": [entry | changes], "links": {}}).encode()


def test_a_list_whose_next_page_is_itself_ends(osf):
    root = f"{osf.address}/v2/nodes/vruzp/files/osfstorage/"
    osf.listing = json.dumps({"data": [], "links": {"next": root}}).encode()
    with pytest.raises(BadInput, match="leads in a circle or has no end"):
        list_files(f"{osf.address}/v2")
    assert len(osf.requests) == 1


class Endless(Osf):
    """A list in which each page or folder leads to another one."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def pages(self):
        following = f"{self.address}/v2/{len(self.requests)}"
        folder = {
            "attributes": {"kind": "folder", "name": "deeper"},
            "relationships": {"files": {"links": {"related": {"href": following}}}},
        }
        page = {"data": [folder]} if self.kind == "folders" else {"data": []}
        page["links"] = {"next": following if self.kind == "pages" else None}
        return defaultdict(lambda: page)


@pytest.mark.parametrize(("kind", "most"), [("pages", 500), ("folders", 10)])
def test_endless_lists_end(kind, most):
    osf = Endless(kind)
    with (
        serving(osf) as osf.address,
        pytest.raises(BadInput, match="has no end"),
    ):
        list_files(f"{osf.address}/v2")
    assert len(osf.requests) <= most


def test_an_endless_page_ends(osf):
    osf.listing = b'{"data": [' + b" " * (17 << 20)
    with pytest.raises(BadInput, match="is longer than"):
        list_files(f"{osf.address}/v2")


@pytest.mark.parametrize(
    "address",
    [
        "http://files.osf.io/v1/file",
        "https://files.osf.io.example.org/file",
        "https://example.org/osf.io",
        "file:///etc/passwd",
        "https://[::1",
    ],
)
def test_only_encrypted_addresses_of_osf_are_followed(address):
    with pytest.raises(BadInput, match="no encrypted address of OSF"):
        check_address(address, API)


@pytest.mark.parametrize(
    "address", ["https://files.osf.io/v1/file", "https://storage.googleapis.com/cos-osf/file"]
)
def test_osf_and_its_storage_are_followed(address):
    assert check_address(address, API) == address


def test_a_download_from_elsewhere_is_refused_before_it_begins(osf, get):
    address = "http://example.org/dlprod_192px_00.root"
    osf.listing = listing(osf, "dlprod_192px_00.root", links={"download": address})
    with pytest.raises(BadInput, match=r"leads to http://example.org"):
        get(192, [0])


def test_a_redirection_to_elsewhere_is_not_followed(osf, get):
    osf.redirect["dlprod_192px_00.root"] = "http://127.0.0.1:1/file"
    with pytest.raises(BadInput, match=r"leads to http://127.0.0.1:1/file"):
        get(192, [0])


@pytest.mark.parametrize("attributes", [{"name": 5}, {"size": "long"}, {"size": -1}, {"size": 1.5}])
def test_wrong_types_in_the_list_are_one_sentence(osf, get, attributes):
    osf.listing = listing(osf, "dlprod_192px_00.root", attributes=attributes)
    with pytest.raises(BadInput, match="unknown form"):
        get(192, [0])
