import csv
import io

from harness.report.rows import Format, write_rows


def test_rows_may_lack_columns_that_others_have():
    rows = [{"cell": "step", "time": 2.0}, {"cell": "forward", "accuracy": 0.96}]
    first, second = csv.DictReader(io.StringIO(write_rows(rows, Format.csv)))
    assert first == {"cell": "step", "time": "2.0", "accuracy": ""}
    assert second == {"cell": "forward", "time": "", "accuracy": "0.96"}
    assert write_rows(rows, Format.markdown).splitlines() == [
        "| cell | time | accuracy |",
        "| --- | --- | --- |",
        "| step | 2 |  |",
        "| forward |  | 0.96 |",
    ]
