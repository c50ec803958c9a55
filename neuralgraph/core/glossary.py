"""What the names of metrics mean: one sentence each, shown beside every number."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping


def explain(names: Iterable[str], meanings: Mapping[str, str]) -> dict[str, str]:
    """Meaning of each name, in the words of the first entry that fits it.

    Args:
        names: Names of metrics.
        meanings: Sentence by name. A name may hold fields, ``accuracy_{n}``, which the sentence
            repeats; a field stands for any text, and a name without fields goes first.

    Returns:
        Sentence by name; a name that no entry fits is left out.

    >>> explain(["accuracy_4", "loss"], {"accuracy_{n}": "share of {n}-gene circuits"})
    {'accuracy_4': 'share of 4-gene circuits'}
    """
    patterns = [(_pattern(entry), text) for entry, text in meanings.items() if "{" in entry]
    found: dict[str, str] = {}
    for name in names:
        if name in meanings:
            found[name] = meanings[name]
            continue
        for pattern, text in patterns:
            match = pattern.fullmatch(name)
            if match:
                fields = {key: value.replace("_", " ") for key, value in match.groupdict().items()}
                found[name] = text.format(**fields)
                break
    return found


def _pattern(entry: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", entry)
    return re.compile(
        "".join(f"(?P<{part}>.+)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    )
