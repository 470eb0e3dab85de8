"""Encoding of the instructions that Python writes and C++ runs.

An instruction is ``WORDS`` 64-bit words: the opcode, then one word per field in the order of the
table ``FIELDS``; the rest is zero. Addresses are those of contiguous memory, 0 for an absent array.

The table is the only description of the encoding. ``instructions.py`` packs words by it, and the
C++ structs that read them, ``instructions.hpp``, are generated from it::

    python -m backends.sscn.cpu.encoding > backends/sscn/cpu/instructions.hpp
"""

from __future__ import annotations

import zlib
from enum import IntEnum
from typing import NamedTuple, TypeAlias


class Opcode(IntEnum):
    """The operation of an instruction."""

    FOLD = 0
    CONVOLVE = 1
    STATISTICS_GRADIENT = 2
    INPUT_GRADIENT = 3
    WEIGHT_GRADIENT = 4
    FOLD_GRADIENT = 5
    ADD = 6
    TAKE = 7
    INVERT = 8


class Products(IntEnum):
    """The type to which rows and weights are rounded before they are multiplied."""

    FLOAT32 = 0
    BFLOAT16 = 1


class Field(NamedTuple):
    """One word.

    Attributes
    ----------
    name : str
        Its name in C++.
    type : str
        Its type in C++: a pointer, ``int64_t``, ``int``, ``bool``, ``float`` (written as a
        double), ``double`` or ``Products``.
    meaning : str
        Shape and meaning.
    """

    name: str
    type: str
    meaning: str


class Group(NamedTuple):
    """Consecutive words that C++ reads into a struct of ``engine.hpp``.

    Attributes
    ----------
    name : str
        Name of the member in C++.
    struct : str
        Name of the struct; the fields are its members.
    fields : tuple of Field
        The words.
    """

    name: str
    struct: str
    fields: tuple[Field, ...]


Entry: TypeAlias = Field | Group

_SOURCE = Group(
    "source",
    "Source",
    (
        Field("x", "const float*", "(rows, x_channels): the first source"),
        Field("skip", "const float*", "(rows, skip_channels): the second source, or absent"),
        Field("rows", "int64_t", "input rows"),
        Field("x_channels", "int", "channels of x"),
        Field("skip_channels", "int", "channels of skip, 0 if it is absent"),
        Field("scale", "const float*", "(x_channels + skip_channels): of the norm, or absent"),
        Field("shift", "const float*", "(x_channels + skip_channels): of the norm, or absent"),
        Field("slope", "float", "factor of negative values after the norm"),
    ),
)


def _pairs(name: str) -> Group:
    return Group(
        name,
        "Pairs",
        (
            Field("in", "const int32_t*", "input row of each pair"),
            Field("out", "const uint8_t*", "output row of each pair within its block"),
            Field("span", "const int32_t*", "(blocks, taps + 1): first pair of each tap"),
            Field("rows", "int64_t", "output rows"),
            Field("taps", "int", "taps of the kernel"),
            Field("block", "int", "output rows per block"),
        ),
    )


_MIRRORED = Field("mirrored", "bool", "whether tap k of the backward map is tap taps - 1 - k")
_PRODUCTS = Field("products", "Products", "rounding of factors")
_GRADIENT = (
    Field("grad", "const float*", "(rows, channels): gradient of the output"),
    Field("rows", "int64_t", "output rows"),
    Field("channels", "int", "output channels"),
)

FIELDS: dict[Opcode, tuple[Entry, ...]] = {
    Opcode.FOLD: (
        Field("sums", "const double*", "(2, channels): sums of the features and of their squares"),
        Field("weight", "const float*", "(channels): of the norm"),
        Field("bias", "const float*", "(channels): of the norm"),
        Field("running_mean", "float*", "(channels): updated"),
        Field("running_var", "float*", "(channels): updated"),
        Field("rows", "int64_t", "number of sites"),
        Field("channels", "int", "channels that are folded"),
        Field("eps", "double", "added to the variance"),
        Field("momentum", "double", "of the running statistics"),
        Field("scale", "float*", "(channels): result"),
        Field("shift", "float*", "(channels): result"),
        Field("moments", "double*", "(2, stride): mean and inverse deviation, result"),
        Field("stride", "int", "channels of the whole norm"),
    ),
    Opcode.CONVOLVE: (
        _SOURCE,
        Field("weight", "const float*", "(taps, input channels, channels)"),
        Field("channels", "int", "output channels"),
        _pairs("forward"),
        _PRODUCTS,
        Field("residual", "const float*", "(output rows, channels): added, or absent"),
        Field("out", "float*", "(output rows, channels): result"),
        Field("sums", "double*", "(2, channels): sums of the result, or absent"),
        Field("sole_consumer", "bool", "whether exactly one later instruction reads out"),
    ),
    Opcode.STATISTICS_GRADIENT: (
        Field("grad", "const float*", "(rows, channels): gradient of the output"),
        Field("out", "const float*", "(rows, channels): the output"),
        Field("grad_sums", "const double*", "(2, channels): gradients of its sums"),
        Field("rows", "int64_t", "output rows"),
        Field("channels", "int", "output channels"),
        Field("total", "float*", "(rows, channels): result, may be grad"),
    ),
    Opcode.INPUT_GRADIENT: (
        *_GRADIENT,
        Field("weight", "const float*", "(taps, input channels, channels)"),
        _pairs("backward"),
        _MIRRORED,
        _PRODUCTS,
        _SOURCE,
        Field("added_x", "const float*", "like to_x: added to it, or absent; may be to_x"),
        Field("added_skip", "const float*", "like to_skip: added to it, or absent"),
        Field("to_x", "float*", "(input rows, x_channels): gradient of x"),
        Field("to_skip", "float*", "(input rows, skip_channels): gradient of skip"),
        Field("to_norm", "double*", "(2, input channels): of scale and shift, or absent"),
    ),
    Opcode.WEIGHT_GRADIENT: (
        _SOURCE,
        *_GRADIENT,
        _pairs("backward"),
        _MIRRORED,
        Field("to_weight", "float*", "(taps, input channels, channels): result"),
    ),
    Opcode.FOLD_GRADIENT: (
        Field("to_norm", "const double*", "(2, stride): gradients of scale and shift"),
        Field("weight", "const float*", "(channels): of the norm"),
        Field("moments", "const double*", "(2, stride): as FOLD computed them"),
        Field("rows", "int64_t", "number of sites"),
        Field("channels", "int", "channels that are folded"),
        Field("stride", "int", "channels of the whole norm"),
        Field("to_sums", "double*", "(2, channels): gradients of the sums"),
        Field("accumulate", "bool", "whether to add to to_sums instead of setting it"),
        Field("to_weight", "float*", "(channels): result"),
        Field("to_bias", "float*", "(channels): result"),
    ),
    Opcode.ADD: (
        Field("total", "float*", "(size): result, may be a or b"),
        Field("a", "const float*", "(size)"),
        Field("b", "const float*", "(size)"),
        Field("size", "int64_t", "number of values"),
    ),
    Opcode.TAKE: (
        Field("rows", "const float*", "(number, channels)"),
        Field("order", "const int64_t*", "(number): row to take at each place"),
        Field("number", "int64_t", "rows"),
        Field("channels", "int", "channels"),
        Field("bias", "const float*", "(channels): added to each row, or absent"),
        Field("out", "float*", "(number, channels): result"),
    ),
    Opcode.INVERT: (
        Field("order", "const int64_t*", "(number): a permutation"),
        Field("number", "int64_t", "its length"),
        Field("inverse", "int64_t*", "(number): result"),
    ),
}
"""The fields of each instruction, in the order of their words."""


def words(entries: tuple[Entry, ...]) -> tuple[Field, ...]:
    """Return the fields of an instruction with its groups resolved."""
    found: list[Field] = []
    for entry in entries:
        found += entry.fields if isinstance(entry, Group) else (entry,)
    return tuple(found)


WORDS = 1 + max(len(words(entries)) for entries in FIELDS.values())
"""Words per instruction."""


def camel(name: str) -> str:
    """Return the C++ name of an opcode or of a kind of product: ``ADD`` is ``Add``."""
    return "".join(part.capitalize() for part in name.split("_"))


def fingerprint() -> int:
    """Return a number that stands for the table; Python and C++ must have the same."""
    return zlib.crc32("\n".join(_structs()).encode())


def header() -> str:
    """Return the text of ``instructions.hpp``."""
    return "\n".join(
        [
            "// Instructions as C++ structs. Generated from encoding.py, do not edit:",
            "//   python -m backends.sscn.cpu.encoding > backends/sscn/cpu/instructions.hpp",
            "#pragma once",
            "// clang-format off",
            "",
            '#include "engine.hpp"',
            "",
            "#include <bit>",
            "#include <cstdint>",
            "#include <type_traits>",
            "",
            "namespace sscn {",
            "",
            f"constexpr int64_t kFingerprint = {fingerprint()};  // of the table",
            "",
            *_structs(),
            "}  // namespace sscn",
            "",
        ]
    )


def _structs() -> list[str]:
    groups = {
        entry.struct: entry.fields
        for entries in FIELDS.values()
        for entry in entries
        if isinstance(entry, Group)
    }
    return [
        f"constexpr int64_t kWords = {WORDS};  // per instruction",
        "",
        "enum class Opcode : int64_t {",
        *(f"  k{camel(code.name)} = {code.value}," for code in Opcode),
        "};",
        "",
        *(
            f"static_assert(static_cast<int>(Products::k{camel(kind.name)}) == {kind.value});"
            for kind in Products
        ),
        "",
        "// Return a word as a pointer, a float, a double or an integer.",
        "template <class T>",
        "T as(int64_t word) {",
        "  if constexpr (std::is_pointer_v<T>)",
        "    return reinterpret_cast<T>(static_cast<uintptr_t>(word));",
        "  else if constexpr (std::is_floating_point_v<T>)",
        "    return static_cast<T>(std::bit_cast<double>(word));",
        "  else",
        "    return static_cast<T>(word);",
        "}",
        "",
        *(line for name, fields in groups.items() for line in _group_reader(name, fields)),
        *(line for code in Opcode for line in _struct(code)),
    ]


def _group_reader(name: str, fields: tuple[Field, ...]) -> list[str]:
    return [
        f"inline {name} read_{name.lower()}(const int64_t* word) {{",
        f"  {name} found;",
        *(
            f"  found.{field.name} = as<{field.type}>(word[{place}]);"
            for place, field in enumerate(fields)
        ),
        "  return found;",
        "}",
        "",
    ]


def _struct(code: Opcode) -> list[str]:
    members, values = [], []
    place = 1
    for entry in FIELDS[code]:
        if isinstance(entry, Group):
            members.append(f"  {entry.struct} {entry.name};")
            values.append(f"{entry.name}(read_{entry.struct.lower()}(word + {place}))")
            place += len(entry.fields)
        else:
            members.append(f"  {entry.type} {entry.name};  // {entry.meaning}")
            values.append(f"{entry.name}(as<{entry.type}>(word[{place}]))")
            place += 1
    name = camel(code.name)
    return [
        f"struct {name} {{",
        *members,
        "",
        f"  explicit {name}(const int64_t* word)",
        "      : " + ",\n        ".join(values) + " {}",
        "};",
        "",
    ]


if __name__ == "__main__":
    print(header(), end="")
