"""What can be wrong with data, and what is done about it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

logger = logging.getLogger(__name__)

OnFault: TypeAlias = Literal["error", "skip"]
SHOWN_FAULTS = 50
"""Faults that a message spells out; the rest is counted."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with the data: where, and what."""

    place: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


def settle(
    faults: Sequence[Fault], on_fault: OnFault, place: str, dropped: int, total: int, noun: str = "rankings"
) -> None:
    """Do with faults what `on_fault` says: raise, or report how many records are dropped. Nothing without faults.

    Args:
        faults: All faults that were found.
        on_fault: `error` or `skip`.
        place: Where the records come from.
        dropped: How many records have faults.
        total: How many records there are.
        noun: What a record is called, in the plural.

    Raises:
        ValueError: There are faults and `on_fault` is `error`, or `on_fault` is neither `error` nor `skip`.
    """
    if on_fault not in ("error", "skip"):
        raise ValueError(f"on_fault must be error or skip, not {on_fault!r}")
    if not faults:
        return
    lines = [f"  {fault}" for fault in faults[:SHOWN_FAULTS]]
    if len(faults) > SHOWN_FAULTS:
        lines.append(f"  and {len(faults) - SHOWN_FAULTS} more")
    listing = "\n".join(lines)
    count = f"{len(faults)} fault{'s' * (len(faults) > 1)}"
    if on_fault == "error":
        raise ValueError(
            f"{place} has {count} in {dropped} of {total} {noun}. Mend them, or set on_fault=skip to "
            f"leave these {noun} out:\n{listing}"
        )
    logger.warning("%s: dropped %d of %d %s for %s:\n%s", place, dropped, total, noun, count, listing)
