"""Field-by-field comparison of two descriptions of the same kind: what differs, old -> new."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fgkd.errors import DataMismatch, Difference

SHOWN = 5  # differences in a message


def differences(old: Any, new: Any, field: str = "") -> list[Difference]:
    """Every leaf of nested dicts and lists that differs; of a list, the first entry that does."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        nested = (differences(old.get(k), new.get(k), f"{field}.{k}" if field else k) for k in keys)
        return [one for some in nested for one in some]
    if isinstance(old, list) and isinstance(new, list) and old != new:
        at = [i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b]
        if len(old) != len(new):
            first = at[0] if at else min(len(old), len(new))
            a, b = (str(x[first]) if first < len(x) else "none" for x in (old, new))
            note = f", from [{first}] on: {a} -> {b}"
            return [Difference(field, f"{len(old)} entries", len(new), note)]
        if isinstance(old[at[0]], dict):
            return differences(old[at[0]], new[at[0]], f"{field}[{at[0]}]")
        more = f" ({len(at)} entries differ)" if len(at) > 1 else ""
        return [Difference(f"{field}[{at[0]}]", old[at[0]], new[at[0]], more)]
    return [] if old == new else [Difference(field, old, new)]


def refuse(what: str, found: Sequence[Difference], subject: str, path: Any = None) -> None:
    """Raise DataMismatch with the first differences, if there are any."""
    if found:
        more = f"\n  ... and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        lines = "\n  ".join(map(str, found[:SHOWN]))
        message = f"{what}:\n  {lines}{more}"
        raise DataMismatch(message, subject=subject, differences=tuple(found), path=path)
