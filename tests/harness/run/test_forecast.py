from harness.run.forecast import Forecast
from harness.spec.cell import Cell
from harness.spec.suite import find_suite

LAPTOP = Forecast(budget=10.0, memory=8e9)
COMMAND = "python -m harness run inference --events mine.root"


def test_a_cheaper_command_without_the_dense_networks_stands_beside_the_forecast():
    cells = find_suite("inference").cells(backends=["sscn", "dense", "spconv", "dense-study"])
    said = LAPTOP.sentence(cells, COMMAND)
    assert said.startswith("48 cells, about ")
    assert said.endswith(f"{COMMAND} --exclude dense --exclude dense-study")
    sparse = [cell for cell in cells if not cell.backend.startswith("dense")]
    assert sum(map(LAPTOP.seconds, sparse)) < 0.5 * sum(map(LAPTOP.seconds, cells))


def test_without_dense_networks_the_cheaper_command_samples_less():
    cells = find_suite("inference").cells(backends=["sscn", "spconv"])
    assert LAPTOP.sentence(cells, COMMAND).endswith(f": {COMMAND} --budget 1")
    said = LAPTOP.sentence(cells, f"{COMMAND} --budget 10")
    assert said.startswith("24 cells, about ")
    assert COMMAND not in said


def test_a_short_run_has_no_forecast():
    assert LAPTOP.sentence([Cell("s", "sscn", 192, 1, "forward", "cold")], COMMAND) == ""


def test_a_dense_cell_that_does_not_fit_ends_soon():
    small, large = (Cell("s", "dense", size, 1, "forward", "cold") for size in (192, 768))
    assert LAPTOP.seconds(large) < 30 < 100 < LAPTOP.seconds(small)
