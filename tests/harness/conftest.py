"""Records made up for tests of what reads them."""

import base64
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

from harness.events import open_sample
from harness.events.event import checked_event
from tests.harness.events.files import write_larcv2

MACHINE = {"name": "bench", "processor": "Example CPU", "threads": 2, "gpu": None}


@pytest.fixture(scope="session")
def make_record():
    """Build one record; keywords named like a cell's fields go into the cell."""

    def make(seconds=0.05, *, n=9, seed=0, spread=0.01, **changes):
        cell = {
            "suite": "inference",
            "backend": "sscn",
            "options": {},
            "device": "cpu",
            "precision": "fp32",
            "dim": 3,
            "size": 192,
            "batch": 1,
            "phase": "forward",
            "map": "cold",
            "model": {"filters": 16, "depth": 5, "reps": 2, "classes": 5},
            "events": {"set": "sample", "sha256": "", "seed": 0},
        }
        record = {
            "schema": 1,
            "run": "r1",
            "utc": "2026-01-01T00:00:00Z",
            "commit": "a" * 40,
            "dirty": False,
            "outcome": "ok",
            "reason": "",
            "sites": 5180,
            "stop": "samples",
            "memory": {"baseline_bytes": 300_000_000, "peak_rss_bytes": 500_000_000},
            "energy_joules": None,
            "error": {"max_abs": 1e-6, "rel_rmse": 2e-7, "argmax_agreement": 1.0},
            "precision_readback": {},
            "machine": MACHINE,
            "versions": {"torch": "2.13.0"},
        }
        event_seed = changes.pop("event_seed", 0)
        for key, value in changes.items():
            (cell if key in cell else record)[key] = value
        cell["events"] = cell["events"] | {"seed": event_seed}
        record["cell"] = cell
        if record["outcome"] == "ok":
            noise = np.random.default_rng(seed).normal(0, spread, n)
            record["host_seconds"] = (seconds * np.exp(noise)).tolist()
        else:
            record["host_seconds"] = []
        return record

    return make


def write_lines(path, records) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records))
    return path


@pytest.fixture
def write_records(tmp_path):
    """Write records to a file of JSON lines and return its path."""

    def write(records, name="run.jsonl") -> Path:
        return write_lines(tmp_path / name, records)

    return write


@pytest.fixture(scope="session")
def run_records(make_record):
    """A small run: three engines, three sizes, outcomes of every kind."""

    def make(factor=1.0, rounds=1, commit="a" * 40, run="r1", slower="sscn"):
        found = []
        plain = {"sscn": 1.0, "spconv": 1.6, "dense": 9.0}
        seed = zlib.crc32(f"{commit}{factor}".encode())
        for size, sites in ((192, 5180), (512, 20100), (768, 42000)):
            for batch in (1, 4):
                for engine, cost in plain.items():
                    for number in range(rounds):
                        seed += 1
                        base = 1e-5 * sites * batch * cost * (factor if engine == slower else 1)
                        common = {
                            "backend": engine,
                            "size": size,
                            "batch": batch,
                            "sites": sites * batch,
                            "commit": commit,
                            "run": run,
                            "round": number,
                            "seed": seed,
                            "memory": {
                                "baseline_bytes": 3e8,
                                "peak_rss_bytes": 3e8 + 2e3 * cost * sites * batch,
                            },
                        }
                        if engine == "dense" and size > 192:
                            found.append(
                                make_record(
                                    outcome="out-of-memory",
                                    reason="needs 31 GB of 8 GB",
                                    **common,
                                )
                            )
                        else:
                            found.append(make_record(base, **common))
        return found

    return make


@pytest.fixture(scope="session")
def larcv2_file(tmp_path_factory) -> Path:
    """A larcv2 file of four events of 192 px: 4000, 1000, 100 and 0 voxels."""
    pytest.importorskip("awkward")
    event = max((open_sample(192)[i] for i in range(8)), key=len)
    assert len(event) >= 4000
    path = tmp_path_factory.mktemp("larcv2") / "events.root"
    write_larcv2(path, [first_voxels(event, count) for count in (4000, 1000, 100, 0)])
    return path


def first_voxels(event, count):
    """Return an event with a number of the voxels of another one."""
    kept = (event.voxels[:count], event.energies[:count], event.labels[:count])
    return checked_event(*kept, event.size, f"{count} voxels")


@pytest.fixture
def open_page(tmp_path):
    """Open a page in headless Chromium at a width; fail on any error in its console."""
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("needs chromium and chromedriver")
    opened = []

    def open_at(path, width, height=900, dark=False):
        options = Options()
        options.binary_location = programs[0]
        for flag in (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--use-angle=swiftshader",  # a GPU is not needed for WebGL
            "--enable-unsafe-swiftshader",
        ):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        browser = webdriver.Chrome(options=options, service=Service(programs[1]))
        opened.append(browser)
        # Windows have a least width; a device's metrics have none.
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        browser.get(path.resolve().as_uri())
        full = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        (tmp_path / f"{path.stem}-{width}.png").write_bytes(base64.b64decode(full["data"]))
        return browser

    yield open_at
    errors = []
    for browser in opened:
        errors += [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        browser.quit()
    assert not errors


@pytest.fixture
def violations():
    """Return what axe-core finds on an open page: rule, place and reason."""
    package = pytest.importorskip("axe_playwright_python", reason="needs axe-core")
    script = (Path(package.__path__[0]) / "axe.min.js").read_text()
    run = """
        const done = arguments[arguments.length - 1];
        axe.run().then(found => done(found.violations.flatMap(rule => rule.nodes.map(
            node => [rule.id, node.target.join(" "), node.failureSummary]))));
    """

    def find(browser):
        browser.execute_script(script)
        return browser.execute_async_script(run)

    return find
