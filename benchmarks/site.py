"""Times and sizes of the site for many synthetic submissions.

Each submission has the records of the demo in ``results/baseline.jsonl``, on a machine of its own.

    python benchmarks/site.py
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.site.catalogue import read_catalogue
from harness.site.pages import write_site
from harness.submissions.archive import make_submission, write_archive

ROOT = Path(__file__).resolve().parent.parent


def main(
    submissions: Annotated[int, typer.Option(help="Number of submissions.")] = 500,
    seed: Annotated[int, typer.Option(help="Of the synthetic times.")] = 0,
) -> None:
    """Print the time of writing the site, the sizes of its pages, and the first paint."""
    rng = np.random.default_rng(seed)
    lines = (ROOT / "results" / "baseline.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    with tempfile.TemporaryDirectory() as folder:
        archives, out = Path(folder, "submissions"), Path(folder, "site")
        archives.mkdir()
        for number in range(submissions):
            own = copy.deepcopy(records)
            for record in own:
                record["machine"] = {"processor": f"Example CPU {number}", "threads": 2}
                factor = float(np.exp(rng.normal(0, 0.5)))
                record["host_seconds"] = [factor * value for value in record["host_seconds"]]
            write_archive(archives / f"{number:04d}.zip", make_submission(own))
        start = time.perf_counter()
        write_site(out, read_catalogue(archives))
        print(f"{submissions} submissions: written in {time.perf_counter() - start:.1f} s")
        sizes = {path: path.stat().st_size for path in out.rglob("*.*")}
        print(
            f"largest page: {max(s for p, s in sizes.items() if p.suffix == '.html') / 1e6:.2f} MB"
        )
        loaded = sum(sizes[out / name] for name in ("index.html", "data.js", "app.js"))
        print(f"rankings with their data: {loaded / 1e6:.2f} MB")
        _first_paint(out / "index.html")


def _first_paint(page: Path) -> None:
    """Print when Chromium paints the page first, and when its tables are there."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    try:
        from selenium import webdriver
    except ImportError:
        programs = [None]
    if None in programs:
        print("first paint: needs selenium, chromium and chromedriver")
        return
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0] or ""
    for flag in ("--headless=new", "--no-sandbox"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    try:
        browser.get(page.as_uri())
        paint, loaded = browser.execute_script(
            "return [performance.getEntriesByType('paint')[0].startTime,"
            " performance.timing.loadEventEnd - performance.timing.navigationStart]"
        )
        print(f"first paint: {paint:.0f} ms, tables: {loaded:.0f} ms")
    finally:
        browser.quit()


if __name__ == "__main__":
    typer.run(main)
