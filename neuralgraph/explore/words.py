"""Values as the notebook writes them, and back: ``1E-3``, ``true``, ``null``, ``n/a``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

BARE = re.compile(r"[^\s,;=\"'\[\](){}]+")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
WORDS: dict[str, Any] = {
    "true": True, "false": False, "null": None, "nan": math.nan, "inf": math.inf,
    "-inf": -math.inf,
}  # fmt: skip
KEY = re.compile(r"[^\s,=\"]+")


def word(value: Any) -> str:
    """A config value or a metric in one word; :func:`value` reads it back unchanged.

    >>> word(5e-4), word(0.001), word(0.25), word(8), word(True), word(None)
    ('5E-4', '1E-3', '0.25', '8', 'true', 'null')
    >>> word("adam"), word("two words"), word("8")
    ('adam', '"two words"', '"8"')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, str):
        is_plain = BARE.fullmatch(value) and not NUMBER.match(value) and value not in WORDS
        return value if is_plain and value != "n/a" else json.dumps(value, ensure_ascii=False)
    if isinstance(value, (list, tuple)):
        return json.dumps(list(value))
    raise TypeError(f"no word for {value!r}")


def value(text: str) -> Any:
    """What :func:`word` wrote.

    >>> value("5E-4"), value("8"), value("true"), value('"8"'), value("39.0min")
    (0.0005, 8, True, '8', '39.0min')
    """
    if text[:1] in ('"', "["):
        return json.loads(text)
    if text in WORDS:
        return WORDS[text]
    if NUMBER.match(text):
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    return text


def _float(number: float) -> str:
    if math.isnan(number):
        return "nan"
    if math.isinf(number):
        return "inf" if number > 0 else "-inf"
    plain = repr(number)
    if "e" not in plain and (number == 0 or 1e-2 <= abs(number) < 1e5):
        return plain
    sign = "-" if math.copysign(1.0, number) < 0 else ""
    digits, _, exponent = plain.lstrip("-").partition("e")
    whole, _, part = digits.partition(".")
    power = int(exponent or 0) + len(whole) - 1
    significant = (whole + part).rstrip("0")
    stripped = significant.lstrip("0")
    power -= len(significant) - len(stripped)
    mantissa = stripped[0] + ("." + stripped[1:] if len(stripped) > 1 else "")
    return f"{sign}{mantissa}E{power}"


def pairs(values: Mapping[str, Any]) -> str:
    """``a=1, b=2``."""
    return ", ".join(f"{key}={word(v)}" for key, v in values.items())


class Unreadable(ValueError):
    """Text that is not what the notebook writes; ``column`` counts from 0."""

    def __init__(self, message: str, column: int) -> None:
        super().__init__(message)
        self.column = column


def read_word(text: str, start: int) -> tuple[Any, int]:
    """The value that begins at ``start``, and where it ends.

    Raises:
        Unreadable: nothing there, or a quote or bracket that is never closed.
    """
    if start >= len(text):
        raise Unreadable("a value is missing", start)
    if text[start] in '"[':
        try:
            found, end = json.JSONDecoder().raw_decode(text, start)
        except ValueError:
            raise Unreadable("a quote or bracket is never closed", start) from None
        return found, end
    match = BARE.match(text, start)
    if match is None:
        raise Unreadable("a value is missing", start)
    return value(match.group()), match.end()


def read_pairs(text: str) -> dict[str, Any]:
    """What :func:`pairs` wrote.

    Raises:
        Unreadable: with the column of the first thing that is no ``key=value``.

    >>> read_pairs('lr_k=5E-3, clip="a, b", on=true')
    {'lr_k': 0.005, 'clip': 'a, b', 'on': True}
    """
    result: dict[str, Any] = {}
    at = 0
    while at < len(text):
        match = KEY.match(text, at)
        if match is None or text[match.end() : match.end() + 1] != "=":
            raise Unreadable("expected key=value", at)
        key = match.group()
        if key in result:
            raise Unreadable(f"'{key}' stands here twice", at)
        result[key], at = read_word(text, match.end() + 1)
        if at < len(text):
            if not text.startswith(", ", at):
                raise Unreadable("expected ', ' between two values", at)
            at += 2
            if at == len(text):
                raise Unreadable("expected key=value after the comma", at)
    return result


def one_line(text: str) -> str:
    r"""Text on one line, without space at its ends.

    >>> one_line("  a\n b ")
    'a b'
    """
    return " ".join(text.split())


def rounded(number: float, digits: int = 4) -> float:
    """A float of so many significant digits; more where a score would round to 1.

    >>> rounded(0.123456), rounded(0.9999987), rounded(123456.7)
    (0.1235, 0.999999, 123500.0)
    """
    if not math.isfinite(number) or number == 0:
        return number
    while digits < 16:
        short = float(f"{number:.{digits}g}")
        if not (short == 1.0 and number < 1.0):
            return short
        digits += 1
    return number
