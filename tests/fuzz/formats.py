"""The formats that are read, and the command line."""

from __future__ import annotations

from tests.fuzz import event_files, result_files
from tests.fuzz.command_lines import CommandLines
from tests.fuzz.format import Format
from tests.fuzz.jobs import Jobs
from tests.fuzz.study_files import STUDY_FILES
from tests.fuzz.weights import WEIGHTS

FORMATS: tuple[Format, ...] = (
    event_files.Larcv2(),
    event_files.Larcv3(),
    event_files.PilarnetM(),
    event_files.Native(),
    event_files.Packed(),
    event_files.PackedBytes(),
    result_files.AsvDatabase(),
    result_files.OsfList(),
    result_files.Records(),
    *WEIGHTS,
    Jobs(),
    *STUDY_FILES,
    CommandLines(),
)
