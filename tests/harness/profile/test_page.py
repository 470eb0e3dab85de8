import re
from dataclasses import replace

import pytest

from harness.errors import BadInput
from harness.profile.page import render_profile_page, write_profile_page
from harness.profile.profile import LayerProfile, MemoryProfile
from tests.harness.profile import made


def words(html):
    return " ".join(
        re.sub(r"<style.*?</style>|<svg.*?</svg>|<[^>]+>", " ", html, flags=re.S).split()
    )


def rows_of(html, name):
    return html.replace("<wbr>", "").count(f"</i>{name}</td>")


def network(scale=1.0, seed=0):
    """As many layers as a real network has, with long names."""
    layers = []
    for level in range(5):
        path = "unet" + ".below" * level
        for block in range(2):
            for part in (1, 2):
                for k, direction in enumerate(("forward", "backward")):
                    seconds = (
                        scale * (k + 1) * (1 + (level * 7 + block * 3 + part + seed) % 5) * 1e-4
                    )
                    layers.append(
                        LayerProfile(
                            f"{path}.encoder.{block}.conv{part}",
                            level,
                            "convolution",
                            direction,
                            1,
                            seconds,
                            bytes=10**6 * (k + 1) // (level + 1),
                            flops=10**7 * (k + 1) * (level + 1),
                            sites=5000 >> level,
                        )
                    )
        norm = LayerProfile(
            f"{path}.norm", level, "normalisation", "forward", 2, 2e-4 * scale, 10**5
        )
        layers += [norm, replace(norm, direction="backward")]
    layers += [
        LayerProfile("unet.map", 0, "map", "forward", 9, 3e-4 * scale, 10**5),
        LayerProfile("loss", None, "loss", "forward", 1, 1e-4, 10**4),
        LayerProfile("optimiser", None, "optimiser", "step", 1, 4e-4, 10**6),
        made.HOST,
        replace(made.HOST, direction="backward"),
    ]
    return layers


@pytest.fixture(scope="module")
def one():
    return [made.profile(layers=network())]


@pytest.fixture(scope="module")
def several():
    return [
        made.profile("sscn", network()),
        made.profile("spconv", network(2.5, 1)),
        made.profile("minkowski", network(4.0, 2), memory=None),
    ]


@pytest.fixture(scope="module")
def two():
    return [made.profile("sscn", network()), made.profile("spconv", network(2.5, 1))]


def test_the_page_begins_with_its_finding(one):
    text = words(render_profile_page(one))
    assert "for convolution, backward" in text
    assert text.index("of it for convolution") < text.index("By kind")
    assert "the machine allows" in text


def test_forward_backward_and_step_have_separate_tables(one):
    html = render_profile_page(one)
    for title in ("Forward,", "Backward,", "Optimiser"):
        assert f"<h3>{title}" in html
    assert rows_of(html, "unet.below.encoder.0.conv1") == 2


def test_every_layer_has_its_limit_and_its_rates():
    html = render_profile_page([made.profile()])
    row = next(r for r in html.split("<tr>") if "</i>stem</td>" in r)
    cells = [words(cell) for cell in row.split("</td>")]
    assert cells[1] == "4 ms"
    assert cells[3:8] == ["2 ms", "2×", "100 MFLOP", "25 GFLOP/s", "2.5 GB/s"]


def test_the_peak_of_memory_is_explained():
    text = words(render_profile_page([made.profile()]))
    assert "held 10 MB above the baseline of 300 MB" in text
    assert "9.8 MB, 98 %, are assigned to layers" in text
    assert "stem activation 6 MB" in text


def test_sections_without_data_are_left_out():
    text = words(render_profile_page([made.profile(ceilings=None, memory=None)]))
    assert "Roofline" not in text
    assert "Memory" not in text
    assert "ceilings" not in text
    assert "None" not in text
    empty = made.profile(memory=MemoryProfile(1, 1, 0))
    assert "nan" not in words(render_profile_page([empty])).split()


def test_several_profiles_share_one_roofline(several):
    html = render_profile_page(several)
    assert "Roofline of all" in html
    assert "Layers that make the difference" not in html
    text = words(html)
    assert "sscn takes" in text and "minkowski" in text


def test_two_profiles_of_one_question_are_explained(two):
    html = render_profile_page(two)
    assert "Layers that make the difference" in html
    assert "spconv takes" in words(html)
    other = [two[0], replace(two[1], cell=made.cell("spconv", size=512))]
    assert "Layers that make the difference" not in render_profile_page(other)


def test_the_page_needs_no_network(two):
    html = render_profile_page(two)
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)
    assert "@import" not in html


def test_text_from_profiles_cannot_become_markup():
    layer = replace(made.STEM, name="<script>alert(1)</script>")
    html = render_profile_page([made.profile(layers=[layer])])
    assert "<script>alert" not in html


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        write_profile_page(tmp_path / "file" / "page", [made.profile()])


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("which", ["one", "two", "several"])
def test_the_page_looks_right_in_a_browser(which, width, request, tmp_path, open_page, violations):
    path = write_profile_page(tmp_path / which, request.getfixturevalue(which))
    browser = open_page(path, width)
    assert violations(browser) == []
    overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(overflow) <= 0
    shown = "return [...document.querySelectorAll('figure svg')].map(s => s.clientWidth)"
    widths = browser.execute_script(shown)
    assert len(widths) >= 2
    assert all(150 < found <= 1100 for found in widths)
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('h1,h2,h3,p,.shares,dl')].map("
        "e => e.getBoundingClientRect().right)"
    )
    assert max(boxes) <= width
