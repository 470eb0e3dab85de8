import pytest

from harness.errors import BadInput
from harness.events import open_events, open_sample
from harness.events.event_set import file_sha256
from harness.events.sample import COUNTS, LEAST_VOXELS, SHA256, make_sample, sample_path


def test_the_packed_files_are_the_ones_that_were_made():
    assert {size: open_sample(size).sha256 for size in COUNTS} == SHA256


def test_the_sample_is_small_and_has_enough_events():
    assert sum(sample_path(size).stat().st_size for size in COUNTS) < 6e6
    assert set(COUNTS) == {192, 512, 768}
    for size in COUNTS:
        events = open_sample(size)
        assert len(events) >= 64
        assert events.size == size
        assert min(len(event) for event in events) >= LEAST_VOXELS


def test_without_a_size_the_sample_holds_all_sizes():
    events = open_events("sample")
    assert events.sizes == (192, 512, 768)
    assert len(events) == sum(COUNTS.values())
    assert [events[i].size for i in (0, COUNTS[192], -1)] == [192, 512, 768]
    assert events[COUNTS[192] + 3].voxels.tolist() == open_sample(512)[3].voxels.tolist()
    across = events[COUNTS[192] - 1 : COUNTS[192] + 1]
    assert [event.size for event in across] == [192, 512]
    with pytest.raises(BadInput, match="choose one with size"):
        _ = events.size


def test_a_size_that_the_sample_lacks():
    with pytest.raises(BadInput, match="192, 512, 768 px, none of 256"):
        open_events("sample", size=256)


def test_slices_are_lazy_and_have_an_identity_of_their_own():
    events = open_sample(192)
    part = events[10:20:3]
    assert [event.name for event in part] == [events[i].name for i in (10, 13, 16, 19)]
    assert part[-1].name == events[19].name
    assert [event.name for event in part[::-1]] == [events[i].name for i in (19, 16, 13, 10)]
    assert len(events[300:]) == 0
    assert len({events.sha256, part.sha256, events[10:20].sha256}) == 3
    with pytest.raises(IndexError, match="no event 256"):
        events[256]


def test_the_hash_of_a_large_file_covers_its_length_and_both_ends(tmp_path):
    def hashed(length, changes=()):
        path = tmp_path / "large"
        with path.open("wb") as file:
            file.truncate(length)
            for position in changes:
                file.seek(position)
                file.write(b"x")
        return file_sha256(path)

    large = 65 << 20
    whole = hashed(large)
    assert whole == hashed(large)
    others = [hashed(large, [0]), hashed(large, [large - 1]), hashed(large + 1)]
    assert len({whole, *others}) == 4
    small = 1 << 20
    assert hashed(small, [small // 2]) != hashed(small)


@pytest.mark.slow
def test_one_command_makes_the_sample_again_byte_for_byte(tmp_path):
    pytest.importorskip("calzone")
    made = {size: sha256 for size, _, sha256 in make_sample(tmp_path)}
    assert made == SHA256
