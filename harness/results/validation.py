"""Checks of stored records against the definition in ``harness.results.record``."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Iterable, Mapping
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    TypeGuard,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from harness.errors import BadInput
from harness.results.record import SCHEMA, Machine, Record
from harness.spec.cell import Cell
from harness.spec.fields import Field

Check = Callable[[Any], str]
"""Return what is wrong with a value, as ``.path: problem`` or ``: problem``; empty if nothing."""

NAMES: dict[object, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    types.NoneType: "null",
}


def problem(record: object) -> str:
    """Return why a parsed line is not a valid record, naming the field; empty for a valid one."""
    if not isinstance(record, dict):
        return "not a record; left out"
    schema = record.get("schema")
    if type(schema) is not int or schema < 1:
        return "a record without a schema version; left out"
    if schema > SCHEMA:
        return f"a record of schema {schema}, newer than {SCHEMA}; update sscn-bench to read it"
    found = _check_record(record) or _disagreement(record)
    return f"{found.removeprefix('.')}; left out" if found else ""


def is_record(value: object) -> TypeGuard[Record]:
    """Return whether a parsed line is a valid record."""
    return not problem(value)


def _disagreement(record: Mapping[str, Any]) -> str:
    """Return the contradiction between two fields of a record, or an empty text."""
    samples = record.get("host_seconds") or []
    if record["outcome"] == "ok" and not samples:
        return ".host_seconds: is empty although the outcome is ok"
    accuracy = record.get("accuracy") or {}
    correct, labelled = (accuracy.get(name, []) for name in ("event_correct", "event_labelled"))
    if len(correct) != len(labelled) or any(c > n for c, n in zip(correct, labelled, strict=False)):
        return ".accuracy.event_correct: does not fit event_labelled"
    for name in ("outliers", "throttled"):
        if any(place >= len(samples) for place in record.get(name) or []):
            return f".{name}: names a sample that host_seconds does not have"
    return ""


def check_of(kind: object) -> Check:
    """Return the check of a type: scalar, ``Literal``, union, list, dict, TypedDict or ``Cell``."""
    origin = get_origin(kind)
    if origin in (Required, NotRequired):
        return check_of(get_args(kind)[0])
    if origin is Annotated:
        base, *notes = get_args(kind)
        return _bounded(check_of(base), next(n for n in notes if isinstance(n, Field)))
    if kind is Cell:
        return _once(_check_cell)
    if is_typeddict(kind):
        return _once(_object_check(kind)) if kind is Machine else _object_check(kind)
    if origin is Literal:
        return _choice_check(Field("", choices=get_args(kind)))
    if origin is list:
        return _list_check(check_of(get_args(kind)[0]), get_args(kind)[0])
    if origin is dict:
        return _once(_dict_check(check_of(get_args(kind)[1])))
    if origin in (Union, types.UnionType):
        return _union_check([(part, check_of(part)) for part in get_args(kind)])
    return _scalar_check(kind)


def fields_problem(kind: type, values: object) -> str:
    """Return why JSON values are not those of the fields of a data class; empty if they are.

    Parameters
    ----------
    kind : type
        A data class. Its fields are scalars, texts by name, tuples of scalars, or data classes.
        Fields with another type are not looked at.
    values : object
        Parsed JSON.
    """
    return _fields_check(kind)(values).removeprefix(".").removeprefix(": ")


@functools.cache
def _fields_check(kind: type) -> Check:
    hints = get_type_hints(kind, include_extras=True)
    entries = {entry.name: entry for entry in dataclasses.fields(kind)}
    required = [name for name, entry in entries.items() if _has_no_default(entry)]
    found_checks = {name: _field_check(hints[name]) for name in entries}
    checks = {name: each for name, each in found_checks.items() if each is not None}

    def check(value: Any) -> str:
        if not isinstance(value, dict):
            return f": is {_short(value)}, not an object"
        unknown = [name for name in value if name not in entries]
        if unknown:
            return f": has no field {unknown[0]!r}"
        for name in required:
            if name not in value:
                return f".{name}: is missing"
        for name, known in checks.items():
            found = known(value[name]) if name in value else ""
            if found:
                return f".{name}{found}"
        return ""

    return check


def _field_check(hint: object) -> Check | None:
    """Return the check of a field of a data class; None for a type that is not looked at."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        base = _field_check(parts[0])
        return base and _bounded(base, next(note for note in parts[1:] if isinstance(note, Field)))
    if hint is int:  # Python's own: the value is not converted
        return lambda v: "" if type(v) is int else f": is {_short(v)}, not a whole number"
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return None if hint is Cell else _fields_check(hint)
    if origin is tuple:
        return _list_check(check_of(parts[0]), parts[0])
    if origin is Mapping and parts == (str, str):
        return _dict_check(check_of(str))
    return _scalar_check(hint) if hint in NAMES else None


def _has_no_default(entry: dataclasses.Field[Any]) -> bool:
    return entry.default is entry.default_factory is dataclasses.MISSING


def _scalar_check(kind: object) -> Check:
    name = NAMES[kind]
    if kind is int:
        # As in JSON Schema, 3.0 is a whole number.
        return lambda v: (
            ""
            if type(v) is int or (type(v) is float and v.is_integer())
            else f": is {_short(v)}, not {name}"
        )
    if kind is float:
        return lambda v: (
            ""
            if type(v) is int or (type(v) is float and v - v == 0)
            else f": is {_short(v)}, not {name}"
        )
    return lambda v: "" if type(v) is kind else f": is {_short(v)}, not {name}"


def _choice_check(field: Field) -> Check:
    def check(value: Any) -> str:
        wrong = field.problem(value)
        return f": {wrong}" if wrong else ""

    return check


def _union_check(parts: list[tuple[object, Check]]) -> Check:
    optional = any(part is types.NoneType for part, _ in parts)
    checks = [check for part, check in parts if part is not types.NoneType]
    if len(checks) == 1:
        (only,) = checks
        return lambda v: "" if v is None and optional else only(v)
    names = ", ".join(NAMES[part] for part, _ in parts)
    wanted = [check for _, check in parts]
    return lambda v: (
        "" if any(not check(v) for check in wanted) else f": is {_short(v)}, not one of {names}"
    )


def _list_check(item: Check, kind: object) -> Check:
    # Types first: a run has thousands of samples, nearly all of them valid.
    plain: dict[object, set[type]] = {int: {int}, float: {int, float}, str: {str}}
    valid = plain[kind]

    def check(value: Any) -> str:
        if type(value) is not list:
            return f": is {_short(value)}, not a list"
        if set(map(type, value)) <= valid:  # parsed JSON has no NaN and no infinity
            return ""
        return _first_problem((f"[{place}]", item(each)) for place, each in enumerate(value))

    return check


def _dict_check(item: Check) -> Check:
    def check(value: Any) -> str:
        if type(value) is not dict:
            return f": is {_short(value)}, not an object"
        return _first_problem((f".{name}", item(each)) for name, each in value.items())

    return check


def _first_problem(checked: Iterable[tuple[str, str]]) -> str:
    """Return the first of several (place, problem) that has a problem, or an empty text."""
    return next((place + problem for place, problem in checked if problem), "")


def _object_check(kind: Any) -> Check:
    """Return the check of a TypedDict, which ignores fields that the type does not define."""
    hints = get_type_hints(kind, include_extras=True)
    checks = {name: check_of(hint) for name, hint in hints.items()}
    required = sorted(kind.__required_keys__)

    def check(value: Any) -> str:
        if type(value) is not dict:
            return f": is {_short(value)}, not an object"
        for name in required:
            if name not in value:
                return f".{name}: is missing"
        for name, each in value.items():
            check_field = checks.get(name)
            if check_field is not None:
                found = check_field(each)
                if found:
                    return f".{name}{found}"
        return ""

    return check


def _bounded(check: Check, field: Field) -> Check:
    """Return a check with the bounds of a field, which apply to each number of a list."""
    if not (field.choices or field.pattern) and (field.least, field.above, field.most) == (
        None,
        None,
        None,
    ):
        return check
    low, above, high = field.least, field.above, field.most
    lowest = -math.inf if low is None else low
    lowest = lowest if above is None else math.nextafter(above, math.inf)
    highest = math.inf if high is None else high

    def bounded(value: Any) -> str:
        found = check(value)
        if found or value is None:
            return found
        kind = type(value)
        if kind is int or kind is float:
            if lowest <= value <= highest:
                return ""
        elif kind is list:
            if not value or (lowest <= min(value) and max(value) <= highest):
                return ""
            place = next(i for i, each in enumerate(value) if not lowest <= each <= highest)
            return f"[{place}]: {field.problem(value[place])}"
        wrong = field.problem(value)
        return f": {wrong}" if wrong else ""

    return bounded


def _once(check: Check) -> Check:
    """Return a check with a cache, for objects such as the machine that many records share."""
    checked: dict[bytes, str] = {}

    def check_once(value: Any) -> str:
        import orjson  # a worker, which imports this module, may lack it

        key = orjson.dumps(value)
        found = checked.get(key)
        if found is None:
            found = checked[key] = check(value)
        return found

    return check_once


def _check_cell(value: Any) -> str:
    if type(value) is not dict:
        return f": is {_short(value)}, not an object"
    for name in CELL_REQUIRED:
        if name not in value:
            return f".{name}: is missing"
    try:
        Cell.from_json(value)
    except BadInput as error:
        return f": {error}"
    return ""


CELL_REQUIRED = (
    *("suite", "backend", "options", "device", "precision", "dim", "size", "batch", "phase"),
    *("map", "model", "events"),
)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_check_record = check_of(Record)
