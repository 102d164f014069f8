"""A figure: what was measured of edgebuild, what is allowed, and what the peers took for the same."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from edgebuild.cli.tables import render_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A figure of another program, from the same run and in the same unit.

    Attributes:
        name: The program.
        value: What it took.
        ratios: Ours by its, round by round, where both took turns; the machine's own pace, which drifts, is not in them.
        ratio_at_most: What the ratio may be at most; None when nothing is promised.
        ratio_at_least: What it must be at least.
    """

    name: str
    value: float
    ratios: tuple[float, ...] = ()
    ratio_at_most: float | None = None
    ratio_at_least: float | None = None

    def ratio(self, ours: float) -> float:
        """Compare: the middle one of the rounds' ratios, or that of the values."""
        if self.ratios:
            return median(self.ratios)
        return ours / self.value if self.value else math.inf

    def promise(self) -> str:
        """Say what is promised of the ratio; "" when nothing is."""
        bounds = (("≤", self.ratio_at_most), ("≥", self.ratio_at_least))
        return " ".join(f"{sign} {bound:.2f}" for sign, bound in bounds if bound is not None)

    def verdict(self, ours: float) -> str:
        """Say whether it is kept; "" when nothing is promised."""
        if not self.promise():
            return ""
        ratio = self.ratio(ours)
        is_kept = (self.ratio_at_most is None or ratio <= self.ratio_at_most) and (
            self.ratio_at_least is None or ratio >= self.ratio_at_least
        )
        return "kept" if is_kept else "MISSED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of edgebuild.

    Attributes:
        name: What was measured.
        unit: "s", "B", "/s" or "x" (a ratio).
        ours: The value.
        limit: What it may be at most; None when nothing is promised.
        peers: What others took for the same.
        samples: All measured values that `ours` was chosen from.
        note: How it came about, where the name does not say it.
    """

    name: str
    unit: str
    ours: float
    limit: float | None = None
    peers: tuple[Peer, ...] = ()
    samples: tuple[float, ...] = ()
    note: str = ""

    @property
    def verdict(self) -> str:
        """Say whether the limit is kept; "" without one."""
        if self.limit is None:
            return ""
        return "kept" if self.ours <= self.limit else "MISSED"

    @property
    def is_missed(self) -> bool:
        """Whether the limit, or what is promised beside a peer, is not kept."""
        return "MISSED" in {self.verdict, *(peer.verdict(self.ours) for peer in self.peers)}

    def document(self) -> dict[str, Any]:
        """Give it as JSON."""
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": round(self.ours, 4),
            "limit": self.limit,
            "verdict": self.verdict or None,
            "peers": [
                {
                    "name": peer.name,
                    "value": round(peer.value, 4),
                    "ratio": round(peer.ratio(self.ours), 4) if peer.value else None,
                    "promise": peer.promise() or None,
                    "verdict": peer.verdict(self.ours) or None,
                }
                for peer in self.peers
            ],
            "samples": [round(sample, 4) for sample in self.samples],
            "note": self.note or None,
        }


def best(samples: Sequence[float]) -> float:
    """The least of several values: what the work takes when nothing else disturbs it."""
    return min(samples)


def median(samples: Sequence[float]) -> float:
    """The middle value; of an even number the lower one, so that it is one that was measured."""
    return sorted(samples)[(len(samples) - 1) // 2]


def render(figures: Iterable[Figure]) -> str:
    """Lay figures out for people: a line each, and one more for each further peer."""
    rows = []
    for figure in figures:
        own = (
            figure.name,
            format_value(figure.ours, figure.unit),
            "" if figure.limit is None else format_value(figure.limit, figure.unit),
            figure.verdict,
        )
        for number, peer in enumerate(figure.peers or (None,)):
            first = own if number == 0 else ("", "", "", "")
            if peer is None:
                rows.append((*first, "", "", "", ""))
            else:
                ratio = f"{peer.ratio(figure.ours):.2f}" if peer.value else ""
                promise = f"{peer.promise()} {peer.verdict(figure.ours)}".strip()
                rows.append((*first, peer.name, format_value(peer.value, figure.unit), ratio, promise))
    header = ("figure", "edgebuild", "at most", "", "peer", "peer's", "ratio", "")
    return render_table(header, rows, right=frozenset({1, 2, 5, 6}))


def format_value(value: float, unit: str) -> str:
    """Write a value for people."""
    if unit == "s":
        return f"{value * 1000:.0f} ms" if value < 0.9995 else f"{value:.1f} s"
    if unit == "B":
        return f"{value / 1e6:.1f} MB" if value >= 1e5 else f"{value / 1e3:.1f} kB"
    if unit == "/s":
        return f"{value:.1f} /s"
    return f"{value:.2f}"
