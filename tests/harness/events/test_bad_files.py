"""Invalid files are refused with one sentence that names the file and the error."""

import contextlib
import json
import zlib

import h5py
import numpy as np
import pytest

from harness.errors import BadInput
from harness.events import open_events
from harness.events.event import Event
from harness.events.native import EventWriter
from harness.events.packed import write_packed
from harness.events.statistics import summarise
from tests.harness.events import files


def refusal(path, index=0, **options) -> str:
    """Open the file and read an event; return the one sentence it is refused with."""
    with pytest.raises(BadInput) as caught, open_events(path, **options) as events:
        events[index]
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def write_own(path, events) -> None:
    with EventWriter(path, events[0].size, events[0].dim, "test") as writer:
        for event in events:
            writer.append(event)


WRITERS = {
    "larcv2": files.write_larcv2,
    "larcv3": files.write_larcv3,
    "own": write_own,
    "packed": write_packed,
}


def test_missing_file(tmp_path):
    assert "is no file" in refusal(tmp_path / "none.root")
    assert "is no file" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"some text\n", b"PK\x03\x04 an archive"])
def test_other_kinds_of_file(tmp_path, content):
    path = tmp_path / "events.root"
    path.write_bytes(content)
    assert "larcv2, larcv3, PILArNet-M" in refusal(path)


def test_other_kinds_of_hdf5(tmp_path):
    path = tmp_path / "events.h5"
    with h5py.File(path, "w") as file:
        file["weights"] = np.zeros(3)
    assert "it holds weights" in refusal(path)


@pytest.mark.parametrize("kind", WRITERS)
def test_truncated_files(tmp_path, kind, some_events):
    path = tmp_path / "events"
    WRITERS[kind](path, some_events)
    content = path.read_bytes()
    for part in (0.2, 0.6, 0.98):
        path.write_bytes(content[: int(part * len(content))])
        # The last event, whose bytes are the most likely to be missing.
        assert "truncated" in (message := refusal(path, -1)) or "damaged" in message


@pytest.mark.parametrize("kind", WRITERS)
def test_damaged_bytes_never_change_voxels_silently(tmp_path, kind, some_events):
    path = tmp_path / "events"
    WRITERS[kind](path, some_events)
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(5)
    start = len(content) // 3
    content[start : start + 400] = rng.integers(0, 256, 400, np.uint8).tobytes()
    path.write_bytes(bytes(content))
    with contextlib.suppress(BadInput), open_events(path) as events:
        # Where nothing is refused, only bytes that say nothing about the events were hit.
        for event, original in zip(events, some_events, strict=True):
            assert np.array_equal(event.voxels, original.voxels)
            assert np.array_equal(event.labels, original.labels)


@pytest.mark.parametrize("kind", WRITERS)
def test_another_size_than_asked_for(tmp_path, kind, some_events):
    path = tmp_path / "events"
    WRITERS[kind](path, some_events)
    assert open_events(path, size=32).size == 32
    assert "32 px, not of 192" in refusal(path, size=192)


def test_larcv2_without_a_label_tree(tmp_path):
    import uproot

    path = tmp_path / "events.root"
    with uproot.recreate(path) as file:
        file.mktree("sparse3d_data_tree", files.LARCV2_ENERGY_BRANCHES)
    message = refusal(path)
    assert "no label product" in message
    assert "sparse3d_fivetypes" in message


def test_larcv2_without_any_product(tmp_path):
    import uproot

    path = tmp_path / "events.root"
    with uproot.recreate(path) as file:
        file.mktree("other", {"x": "int32"})
    assert "no energy product" in refusal(path)


def test_larcv2_without_a_branch(tmp_path):
    import uproot

    path = tmp_path / "events.root"
    with uproot.recreate(path) as file:
        file.mktree("sparse3d_data_tree", {"_voxel_v._id": "var * uint64"})
        file.mktree("sparse3d_fivetypes_tree", files.LARCV2_LABEL_BRANCHES)
    assert "no branch _meta._xnum" in refusal(path)


def jagged(*rows, dtype):
    import awkward

    return awkward.Array([np.array(row, dtype) for row in rows])


BAD_LARCV2 = {
    "negative id": (
        {"data__voxel_v._id": jagged([0, -1], dtype=np.int64)},
        "entry 0: voxel id 18446744073709551615 lies outside the image of 4 x 4 x 4",
    ),
    "too large id": ({"data__voxel_v._id": jagged([0, 64], dtype=np.uint64)}, "voxel id 64"),
    "id twice": (
        {
            "data__voxel_v._id": jagged([7, 7], dtype=np.uint64),
            "fivetypes__voxel_v._id": jagged([7, 7], dtype=np.uint64),
        },
        "entry 0: 1 voxels appear more than once",
    ),
    "labels of other voxels": (
        {"fivetypes__voxel_v._id": jagged([0, 2], dtype=np.uint64)},
        "entry 0: the labels in sparse3d_fivetypes belong to other voxels",
    ),
    "label out of range": (
        {"fivetypes__voxel_v._value": jagged([0, 5], dtype=np.float32)},
        "entry 0: label 5.0 is none of 0 to 4",
    ),
    "label between classes": (
        {"fivetypes__voxel_v._value": jagged([0, 1.5], dtype=np.float32)},
        "entry 0: label 1.5",
    ),
    "energy not finite": (
        {"data__voxel_v._value": jagged([1, np.nan], dtype=np.float32)},
        "entry 0: voxel 1 has no finite energy",
    ),
    "no image": (
        {f"data__meta._{axis}num": np.zeros(1, np.uint64) for axis in "xyz"},
        "no valid image size",
    ),
}


@pytest.mark.parametrize("case", BAD_LARCV2)
def test_wrong_content_of_larcv2(tmp_path, case):
    changes, words = BAD_LARCV2[case]
    voxels = np.array([[0, 0, 0], [1, 0, 0]], np.int32)
    event = Event(voxels, np.ones(2, np.float32), np.zeros(2, np.uint8), 4, "two voxels")
    path = tmp_path / "events.root"
    files.write_larcv2(path, [event], **changes)
    assert words in refusal(path)


def test_larcv2_trees_of_different_length(tmp_path, some_events):
    import uproot

    path = tmp_path / "events.root"
    with uproot.recreate(path) as file:
        data = file.mktree("sparse3d_data_tree", files.LARCV2_ENERGY_BRANCHES)
        side = np.full(2, 4, np.uint64)
        rows = jagged([1], [2], dtype=np.uint64)
        counts = {f"_meta._{axis}num": side for axis in "xyz"}
        data.extend({"_voxel_v._id": rows, "_voxel_v._value": rows, **counts})
        labels = file.mktree("sparse3d_fivetypes_tree", files.LARCV2_LABEL_BRANCHES)
        labels.extend({"_voxel_v._id": rows[:1], "_voxel_v._value": rows[:1]})
    assert "2 entries of sparse3d_data do not match 1" in refusal(path)


def test_larcv2_with_two_sizes(tmp_path, some_events):
    path = tmp_path / "events.root"
    sides = np.array([32, 32, 32, 64, 32], np.uint64)
    files.write_larcv2(path, some_events, **{f"data__meta._{axis}num": sides for axis in "xyz"})
    # The file's size is the largest among the first entries.
    assert "one size per file" in refusal(path)


def edit(path, change) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def replace(name, values):
    def change(file):
        del file[name]
        file[name] = values

    return change


DATA = "Data/sparse3d_data_group"


def remove(name):
    return lambda file: file.__delitem__(name)


def shorten(name, length):
    return lambda file: replace(name, file[name][:length])(file)


BAD_LARCV3 = {
    "no label product": (remove("Data/sparse3d_fivetypes_group"), "no label"),
    "no data set": (remove(f"{DATA}/voxel_extents"), "no data set voxel_extents"),
    "voxels missing": (shorten(f"{DATA}/voxels", 60), "not all in the file, which has 60"),
    "events missing": (shorten(f"{DATA}/extents", 2), "2 events"),
}


@pytest.mark.parametrize("case", BAD_LARCV3)
def test_wrong_content_of_larcv3(tmp_path, case, some_events):
    change, words = BAD_LARCV3[case]
    path = tmp_path / "events.h5"
    files.write_larcv3(path, some_events)
    edit(path, change)
    assert words in refusal(path, 1)


def test_larcv3_ids_outside_the_image(tmp_path, some_events):
    path = tmp_path / "events.h5"
    files.write_larcv3(path, some_events)

    def change(file):
        voxels = file[f"{DATA}/voxels"][:]
        voxels["id"][-1] = 32**3
        replace(f"{DATA}/voxels", voxels)(file)

    edit(path, change)
    assert "event 4: voxel id 32768" in refusal(path, -1)


def vlen(rows, dtype):
    values = np.empty(len(rows), object)
    values[:] = [np.array(row, dtype) for row in rows]
    return values


@pytest.mark.parametrize(
    ("points", "clusters", "words"),
    [
        ([1, 2, 3, 0.5, 0, 0, 0], [1, 0, 0, 0, 0], "7 numbers are no whole points"),
        ([1, 2, 3, 0.5, 0, 0, 0, 0], [2, 0, 0, 0, 0], "do not match its 1 voxels"),
        ([1, 2, 3, 0.5, 0, 0, 0, 0], [1, 0, 0, 0], "do not match its 1 voxels"),
        ([1, 2, 768, 0.5, 0, 0, 0, 0], [1, 0, 0, 0, 0], "outside the image"),
        ([1, -2, 3, 0.5, 0, 0, 0, 0], [1, 0, 0, 0, 0], "outside the image"),
        ([1.5, 2, 3, 0.5, 0, 0, 0, 0], [1, 0, 0, 0, 0], "no whole number"),
        ([np.nan, 2, 3, 0.5, 0, 0, 0, 0], [1, 0, 0, 0, 0], "no whole number"),
        ([1, 2, 3, np.inf, 0, 0, 0, 0], [1, 0, 0, 0, 0], "no finite energy"),
        ([1, 2, 3, 0.5, 0, 0, 0, 0], [1, 0, 0, 0, 7], "label 7"),
        ([1, 2, 3, 0.5, 0, 0, 0, 0], [1, 0, 0, 0, -1], "label -1"),
        ([1, 2, 3, 0.5, 0, 0, 0, 0] * 2, [2, 0, 0, 0, 0], "more than once"),
    ],
)
def test_wrong_content_of_pilarnet_m(tmp_path, points, clusters, words):
    path = tmp_path / "events.h5"
    with h5py.File(path, "w") as file:
        for name, rows, dtype in (("point", points, np.float32), ("cluster", clusters, np.int64)):
            column = file.create_dataset(name, (1,), h5py.vlen_dtype(dtype))
            column[0] = np.array(rows, dtype)
    message = refusal(path)
    assert words in message
    assert "event 0" in message


def test_pilarnet_m_of_different_lengths(tmp_path):
    path = tmp_path / "events.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("point", (3,), h5py.vlen_dtype(np.float32))
        file.create_dataset("cluster", (2,), h5py.vlen_dtype(np.int64))
    assert "3 events of points do not match 2 of clusters" in refusal(path)


def without_checksums(file):
    """Turn a file into one of version 1."""
    del file["crc32"], file.attrs["checksum"]
    file.attrs["version"] = 1


BAD_OWN = {
    "missing column": (remove("labels"), "labels"),
    "short column": (shorten("labels", -1), "offsets do not match"),
    "offsets in disorder": (
        replace("offsets", np.array([0, 60, 50, 50, 140, 175], np.uint64)),
        "offsets are damaged",
    ),
    "unknown label": (replace("labels", np.full(175, 9, np.uint8)), "label 9"),
    "large voxel": (replace("voxels", np.full((175, 3), 32, np.uint16)), "outside"),
    "later version": (lambda f: f.attrs.__setitem__("version", 3), "version is 3"),
}


@pytest.mark.parametrize("case", BAD_OWN)
def test_wrong_content_of_own_format(tmp_path, case, some_events):
    change, words = BAD_OWN[case]
    path = tmp_path / "events.h5"
    write_own(path, some_events)
    edit(path, without_checksums)
    edit(path, change)
    assert words in refusal(path)


def test_files_without_checksums_are_read(tmp_path, some_events):
    path = tmp_path / "events.h5"
    write_own(path, some_events)
    edit(path, without_checksums)
    with open_events(path) as events:
        assert [len(event) for event in events] == [len(event) for event in some_events]


def change_at(name, index, value):
    def change(file):
        file[name][index] = value

    return change


SILENT_CHANGES = {
    "energy": (change_at("energies", 3, 1.25), "event 0 is damaged: its checksum"),
    "label": (lambda f: change_at("labels", 3, 4 - f["labels"][3])(f), "event 0 is damaged"),
    "voxel": (lambda f: f["voxels"].__setitem__((0, 2), 0), "event 0 is damaged"),
    "offsets": (change_at("offsets", 1, 49), "the head is damaged"),
    "size": (lambda f: f.attrs.__setitem__("size", 33), "the head is damaged"),
    "source": (lambda f: f.attrs.__setitem__("source", "elsewhere"), "the head is damaged"),
    "checksum": (change_at("crc32", 0, 1), "the head is damaged"),
}


@pytest.mark.parametrize("case", SILENT_CHANGES)
def test_changed_content_of_own_format_is_noticed(tmp_path, case, some_events):
    change, words = SILENT_CHANGES[case]
    path = tmp_path / "events.h5"
    write_own(path, some_events)
    edit(path, change)
    assert words in refusal(path)


def declare(name, shape, dtype):
    """Replace a data set by one that declares a length without having any content."""

    def change(file):
        del file[name]
        file.create_dataset(name, shape, dtype, chunks=True, compression="gzip")

    return change


HOSTILE_OWN = {
    "offsets of a petabyte": declare("offsets", (1 << 47,), np.uint64),
    "text as energies": replace("energies", np.full(175, b"x", "S1")),
    "a table as labels": replace("labels", np.zeros(175, [("a", "u1")])),
    "voxels of four axes": replace("voxels", np.zeros((175, 4), np.uint16)),
    "size of 10^18": lambda f: f.attrs.__setitem__("size", 10**18),
    "size as a list": lambda f: f.attrs.__setitem__("size", [32, 32]),
    "size as text": lambda f: f.attrs.__setitem__("size", "32"),
    "source as a number": lambda f: f.attrs.__setitem__("source", 7),
    "negative dimension": lambda f: f.attrs.__setitem__("dim", -3),
    "energies in another file": lambda f: (
        f.__delitem__("energies"),
        f.__setitem__("energies", h5py.ExternalLink("/etc/passwd", "energies")),
    ),
}


@pytest.mark.parametrize("case", HOSTILE_OWN)
def test_hostile_structure_of_own_format(tmp_path, case, some_events):
    path = tmp_path / "events.h5"
    write_own(path, some_events)
    edit(path, without_checksums)
    edit(path, HOSTILE_OWN[case])
    refusal(path)


def test_a_writer_refuses_another_size_and_leaves_nothing_behind(tmp_path, some_events):
    path = tmp_path / "events.h5"
    with (
        pytest.raises(BadInput, match="32 px in 3D cannot join"),
        EventWriter(path, 64, 3, "test") as writer,
    ):
        writer.append(some_events[0])
    assert list(tmp_path.iterdir()) == []


def test_a_writer_names_a_missing_folder(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        EventWriter(tmp_path / "none" / "events.h5", 32, 3, "test")


@pytest.mark.parametrize("energy", [-1.0, 1e-5, 1e6])
def test_the_packed_format_refuses_energies_it_cannot_hold(tmp_path, energy):
    event = Event(
        np.zeros((1, 3), np.int32), np.array([energy], np.float32), np.zeros(1, np.uint8), 4, "odd"
    )
    with pytest.raises(BadInput, match="odd: an energy lies outside"):
        write_packed(tmp_path / "events", [event])


def test_the_packed_format_holds_zero(tmp_path):
    event = Event(
        np.zeros((1, 3), np.int32), np.zeros(1, np.float32), np.zeros(1, np.uint8), 4, "nothing"
    )
    write_packed(tmp_path / "events", [event])
    assert open_events(tmp_path / "events")[0].energies.tolist() == [0.0]


def test_no_changed_byte_of_a_packed_file_goes_unnoticed(tmp_path, some_events):
    path = tmp_path / "events"
    write_packed(path, some_events[:2])
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        changed = bytearray(content)
        changed[position] ^= 0x41
        path.write_bytes(bytes(changed))
        refusal(path)


def test_an_image_that_is_no_cube_is_refused(tmp_path, some_events):
    """An image size that is wrong along one axis would move every voxel."""
    path = tmp_path / "events.h5"
    files.write_larcv3(path, some_events)
    for product in ("data", "fivetypes"):
        edit(path, larcv3_sizes(product, (32, 32, 31)))
    assert "32 x 32 x 31 voxels; only cubes can be read" in refusal(path)
    path = tmp_path / "events.root"
    counts = np.full(5, 33, np.uint64)
    files.write_larcv2(path, some_events, **{"data__meta._ynum": counts})
    assert "32 x 33 x 32 voxels; only cubes can be read" in refusal(path)


def larcv3_sizes(product, sizes):
    def change(file):
        name = f"Data/sparse3d_{product}_group/image_meta"
        table = file[name][:]
        table["number_of_voxels"] = sizes
        file[name][:] = table

    return change


def test_products_with_other_image_sizes_are_refused(tmp_path, some_events):
    path = tmp_path / "events.h5"
    files.write_larcv3(path, some_events)
    edit(path, larcv3_sizes("data", (64, 64, 64)))
    assert "sparse3d_fivetypes has images of 32 x 32 x 32 voxels, the energies of 64" in (
        refusal(path)
    )
    path = tmp_path / "events.root"
    counts = np.full(5, 64, np.uint64)
    files.write_larcv2(path, some_events, label_sizes=32, **larcv2_sizes(counts))
    assert "sparse3d_fivetypes has images of 32 x 32 x 32 voxels, the energies of 64" in (
        refusal(path)
    )


def larcv2_sizes(counts):
    return {f"data__meta._{axis}num": counts for axis in "xyz"}


def test_larcv2_lengths_that_do_not_fit_each_other(tmp_path, some_events):
    path = tmp_path / "events.root"
    values = jagged(*[np.ones(max(len(e) - 1, 0)) for e in some_events], dtype=np.float32)
    files.write_larcv2(path, some_events, **{"data__voxel_v._value": values})
    assert "49 values do not match 50 voxel ids" in refusal(path)


def test_larcv2_with_impossible_image_sizes(tmp_path, some_events):
    path = tmp_path / "events.root"
    counts = np.full(5, 1 << 63, np.uint64)
    files.write_larcv2(path, some_events, **larcv2_sizes(counts))
    assert "an image size of 9223372036854775808 voxels is impossible" in refusal(path)


HOSTILE_LARCV3 = {
    "extents as numbers": (replace(f"{DATA}/extents", np.zeros(5, np.uint64)), "no field first"),
    "voxels as text": (
        replace(f"{DATA}/voxels", np.zeros(175, [("id", "S4"), ("value", "f4")])),
        "in field id",
    ),
    "sizes of two axes": (
        replace(f"{DATA}/image_meta", np.zeros(5, [("number_of_voxels", "u8", 2)])),
        "in field number_of_voxels",
    ),
    "two axes": (
        lambda f: replace(f"{DATA}/voxel_extents", f[f"{DATA}/voxel_extents"][:].reshape(1, 5))(f),
        "has shape",
    ),
    "group as data set": (
        lambda f: (f.__delitem__(f"{DATA}/voxels"), f.create_group(f"{DATA}/voxels")),
        "is no data set",
    ),
}


@pytest.mark.parametrize("case", HOSTILE_LARCV3)
def test_hostile_structure_of_larcv3(tmp_path, case, some_events):
    change, words = HOSTILE_LARCV3[case]
    path = tmp_path / "events.h5"
    files.write_larcv3(path, some_events)
    edit(path, change)
    assert words in refusal(path)


def packed_head(path, change):
    """Change fields of a packed file's header, with the right checksum."""
    content = path.read_bytes()
    length = int.from_bytes(content[8:12], "little")
    header = json.loads(content[16 : 16 + length])
    header = change(header) or header
    text = json.dumps(header).encode()
    lead = len(text).to_bytes(4, "little") + zlib.crc32(text).to_bytes(4, "little")
    path.write_bytes(content[:8] + lead + text + content[16 + length :])


WRONG_FIELDS = (None, "32", -1, 1e300, [], {}, [[1]], [-1, 1, 1], 10**30, [10**12] * 5, True)


@pytest.mark.parametrize("field", ["version", "size", "dim", "step", "voxels", "streams", "crc32"])
def test_wrong_fields_of_a_packed_head(tmp_path, field, some_events):
    path = tmp_path / "events"
    write_packed(path, some_events)
    content = path.read_bytes()
    for wrong in WRONG_FIELDS:
        path.write_bytes(content)
        packed_head(path, lambda header, wrong=wrong: header.update({field: wrong}))
        refusal(path)
    for whole in ([], "text", 5, None):
        packed_head(path, lambda header, whole=whole: whole)
        refusal(path)


def test_events_without_energy_have_statistics(tmp_path):
    event = Event(np.zeros((1, 3), np.int32), np.zeros(1, np.float32), np.zeros(1, np.uint8), 4, "")
    assert np.isnan(summarise([event]).voxels_per_mev)
