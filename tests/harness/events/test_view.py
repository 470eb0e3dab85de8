import pytest

from harness.errors import BadInput
from harness.events import open_sample
from harness.events.classes import CLASS_LOOKS
from harness.events.projection import project
from harness.events.view import event_figure, write_event_page, write_event_picture
from harness.report.style import PALETTE
from tests.harness.events.conftest import make_event


def test_every_label_has_a_name_and_a_colour_of_its_own():
    looks = CLASS_LOOKS.values()
    assert len({look.color for look in looks}) == len({look.name for look in looks}) == len(looks)
    assert not {look.color.lower() for look in looks} & {color.lower() for color in PALETTE}


def test_every_voxel_is_drawn_once_by_class_and_once_by_energy():
    event = open_sample(192)[0]
    traces = event_figure(event).data
    assert sum(len(trace.x) for trace in traces[:-1]) == len(event)
    assert len(traces[-1].x) == len(event)
    assert traces[-1].visible is False


@pytest.mark.parametrize("write", [write_event_page, write_event_picture])
def test_an_empty_event_has_nothing_to_show(tmp_path, write):
    with pytest.raises(BadInput, match="has no voxel"):
        write(make_event(0), tmp_path / "event")
    assert list(tmp_path.iterdir()) == []


def test_projections_have_a_picture_too(tmp_path):
    write_event_picture(project(open_sample(192)[0], "xy"), tmp_path / "flat.png")
    assert (tmp_path / "flat.png").stat().st_size > 10_000


CORNERS = """
const plot = document.querySelector('#event')._fullLayout.scene._scene, gl = plot.glplot;
const {model, view, projection} = gl.cameraParams;
const times = (m, v) => [0, 1, 2, 3].map(i => [0, 1, 2, 3].reduce((s, j) => s + m[4*j+i]*v[j], 0));
const found = [];
for (const x of [0, 1]) for (const y of [0, 1]) for (const z of [0, 1]) {
  const corner = [x, y, z].map((side, i) => gl.bounds[side][i]);
  const p = times(projection, times(view, times(model, [...corner, 1])));
  found.push([p[0] / p[3], p[1] / p[3]]);
}
return found;
"""
"""The corners of the cube on the screen; the edges of the plot are at -1 and 1."""


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "dim"), [(1280, 3), (400, 3), (400, 2)])
def test_the_page_opens_without_network_or_error(tmp_path, open_page, dim, width, dark):
    from selenium.webdriver.support.ui import WebDriverWait

    page = tmp_path / "event.html"
    event = open_sample(192)[0]
    write_event_page(event if dim == 3 else project(event, "xy"), page)
    browser = open_page(page, width, dark=dark)
    drawn = "return document.querySelectorAll('#event .legend .traces').length"
    classes = len(set(event.labels.tolist()))
    WebDriverWait(browser, 60).until(lambda _: browser.execute_script(drawn) >= min(classes, 2))
    wide = "return document.documentElement.scrollWidth - window.innerWidth"
    assert browser.execute_script(wide) <= 0
    plot = "const r = document.querySelector('#event').getBoundingClientRect(); return r.height"
    assert browser.execute_script(plot) > 300
    paper = "return getComputedStyle(document.body).backgroundColor"
    assert (browser.execute_script(paper) == "rgb(255, 255, 255)") == (not dark)
    if dim == 3:
        corners = browser.execute_script(CORNERS)
        across, up = zip(*corners, strict=True)
        assert max(map(abs, up)) < 0.95
        assert max(map(abs, across)) < 0.7  # the titles of the axes have place beside it
