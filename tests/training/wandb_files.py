"""What an offline run of Weights & Biases wrote, read without its service."""

import json
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import MetricRecord, Record, RunRecord

HEADER, BLOCK, LAST_PARTS = 7, 32768, (1, 4)
SECONDS = 60
"""How long the service may take to write the end of a run."""


@dataclass
class Written:
    """One run.

    Attributes:
        run: Its name, group and tags.
        config: Its configuration.
        metrics: How figures are plotted and summed up, by name or pattern.
        history: What was logged, call by call.
        summary: What is left in the end, the last value of each.
    """

    run: RunRecord = field(default_factory=RunRecord)
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, MetricRecord] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)


def read(run: Path) -> Written:
    """Read the one file in `wandb/` of a run's folder, once the service's process has written it to its end."""
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + SECONDS
    while not (found := [*records(file.read_bytes())]) or found[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < deadline, f"{file} has no record of the run's end"
        time.sleep(0.1)
    written = Written()
    for record in found:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            written.run, written.config = record.run, items(record.run.config.update)
        elif kind == "metric":
            written.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "history":
            written.history.append(items(record.history.item))
        elif kind == "summary":
            written.summary |= items(record.summary.update)
    return written


def records(content: bytes) -> Iterator[Record]:
    """Records in the log format of LevelDB: each whole, or in parts where a block of 32 KB ends."""
    place, parts = HEADER, b""
    while place + HEADER <= len(content):
        if (left := BLOCK - place % BLOCK) < HEADER:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)  # after a checksum
        place += HEADER
        parts += content[place : place + length]
        place += length
        if kind in LAST_PARTS:
            yield Record.FromString(parts)
            parts = b""


def items(some: Iterable[Any]) -> dict[str, Any]:
    """Values by key, nested keys with dots."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in some}
