"""Reads a trace in Chrome's format as strictly as the viewers do, and more so."""

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any


def read_trace(path: Path) -> list[dict[str, Any]]:
    """Read a trace and check every event.

    Raises:
        AssertionError: An event lacks what its phase needs, or two of one lane overlap.
    """
    document = json.loads(path.read_bytes())
    events: list[dict[str, Any]] = document["traceEvents"]
    lanes: dict[int, list[tuple[float, float]]] = defaultdict(list)
    named = set()
    for event in events:
        assert event["ph"] in {"X", "C", "M"}, event
        assert isinstance(event["name"], str)
        assert event["pid"] == 1
        assert isinstance(event["args"], dict)
        if event["ph"] == "M":
            named.add(event.get("tid"))
            continue
        assert event["ts"] >= 0
        assert event["tid"] in named
        if event["ph"] == "C":
            assert all(type(value) is int for value in event["args"].values())
        else:
            assert event["dur"] >= 0
            lanes[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for spans in lanes.values():
        spans.sort()
        # Rounded to a tenth of a microsecond.
        assert all(end <= start + 0.2 for (_, end), (start, _) in pairwise(spans))
    return events
