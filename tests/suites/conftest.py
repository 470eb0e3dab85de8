"""The records of the harness's tests, for the tests of suites."""

from tests.harness.conftest import make_record, write_records  # noqa: F401
