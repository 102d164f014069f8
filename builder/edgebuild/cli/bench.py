"""`edgebuild bench`: what an image measures of itself, kept and compared."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgebuild.cli.options import Session, common_options
from edgebuild.cli.tables import render_table
from edgebuild.errors import ImageError, UsageError

if TYPE_CHECKING:
    from edgebuild.bench.comparison import Change
    from edgebuild.bench.result import BenchResult

_LAST = "last"
_LOAD = ("prompt", "output", "concurrency", "repetitions")


@click.command(name="bench")
@click.argument("layout", required=False)
@click.option("--profile", metavar="NAME", help="The image of LAYOUT to measure, if it holds several.")
@click.option(
    "--from", "file", metavar="FILE", help="Take a result that `bench --json` printed on the device instead."
)
@click.option("--prompt", type=click.IntRange(1), metavar="N", help="Tokens of each prompt.")
@click.option("--output", type=click.IntRange(2), metavar="N", help="Tokens of each answer.")
@click.option("--concurrency", type=click.IntRange(1), metavar="N", help="Requests at the same time.")
@click.option("--repetitions", type=click.IntRange(1), metavar="N", help="How often.")
@click.option(
    "--compare", metavar="FILE|last", help="Show the change against a result, or the one kept last."
)
@click.option(
    "--slower",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    metavar="PERCENT",
    help="With --compare, fail when a speed fell by more than this; such a result is not kept.",
)
@click.option(
    "--baselines",
    default="baselines",
    show_default=True,
    metavar="DIR",
    help="Folder in which results are kept, by profile, model, engine and load.",
)
@click.option("--no-keep", is_flag=True, help="Do not keep the result.")
@common_options
def command(
    session: Session,
    layout: str | None,
    profile: str | None,
    file: str | None,
    compare: str | None,
    slower: float,
    baselines: str,
    no_keep: bool,
    **load: int | None,
) -> None:
    """Measure an image of LAYOUT on this machine, or take a device's own result; keep and compare it.

    An image for another architecture is refused: an emulator's figures say nothing of the device.
    """
    from edgebuild.bench.baselines import Baselines  # noqa: PLC0415 - pydantic is slow to import
    from edgebuild.bench.comparison import compare as make_changes  # noqa: PLC0415
    from edgebuild.bench.comparison import differences  # noqa: PLC0415

    if (layout is None) == (file is None):
        raise UsageError("give either LAYOUT or --from FILE", hint="see `edgebuild bench --help`")
    kept = Baselines(session.host.path(baselines))
    before = None if compare in {None, _LAST} else _load(session, str(compare))
    result = _load(session, file) if file is not None else _measure(session, str(layout), profile, load)
    if compare == _LAST:
        before = kept.last(result)
        if before is None:
            session.say(f"nothing was kept yet at {kept.path(result)}: nothing to compare with")
    changes = () if before is None else make_changes(before, result)
    notes = () if before is None else differences(before, result)
    session.say(_render(result, changes))
    for note in notes:
        session.say(f"not the same: {note}")
    _judge(changes, slower, result=result, notes=notes)
    path = None if no_keep else kept.keep(result)
    if path is not None:
        session.say(f"kept as {path}")
    session.give(_document(result, changes, notes, path))


def _load(session: Session, path: str) -> BenchResult:
    from edgebuild.bench.result import load_result  # noqa: PLC0415

    return load_result(session.host.path(path))


def _measure(session: Session, layout: str, profile: str | None, load: dict[str, int | None]) -> BenchResult:
    from edgebuild.artifacts.store import Store  # noqa: PLC0415
    from edgebuild.cli.places import layout_path  # noqa: PLC0415
    from edgebuild.pipeline import bench_layout  # noqa: PLC0415
    from edgebuild.request import Context  # noqa: PLC0415

    store = Store(session.host.cache_directory, progress=session.progress)
    context = Context(host=session.host, store=store, progress=session.progress)
    arguments = [word for name in _LOAD if load[name] is not None for word in (f"--{name}", str(load[name]))]
    return bench_layout(layout_path(layout, session=session), profile, arguments, context)


def _judge(
    changes: tuple[Change, ...],
    slower: float,
    *,
    result: BenchResult,
    notes: tuple[str, ...],
) -> None:
    """Refuse a result that is slower than allowed; the one kept before stays, so that the next one is compared with it too."""
    from edgebuild.bench.comparison import slowest  # noqa: PLC0415

    if not changes:
        return
    worst = slowest(changes)
    if worst.slower_percent > slower:
        raise ImageError(
            f"{result.profile}: {worst.figure} is {worst.slower_percent:.1f} % slower than before, "
            f"{worst.after:.4g} {worst.unit} instead of {worst.before:.4g}",
            hint=f"not kept; allowed are {slower:g} % (--slower){', and see what is not the same' if notes else ''}",
        )


def _render(result: BenchResult, changes: tuple[Change, ...]) -> str:
    from edgebuild.bench.comparison import compare  # noqa: PLC0415

    load = result.load
    head = (
        f"{result.model.name} for {result.profile or 'no profile'} on {result.machine.processor}, "
        f"{result.engine.name} {result.engine.cpu_variant}, {result.engine.threads} threads: "
        f"{load.concurrency} at a time, {load.prompt_tokens} + {load.output_tokens} tokens\n"
    )
    if not changes:
        # Against itself: the same rows.
        alone = [(change.figure, _shown(change.after), change.unit) for change in compare(result, result)]
        return head + render_table(("figure", "median", "unit"), alone, right=frozenset({1}))
    rows = [
        (
            change.figure,
            _shown(change.before),
            _shown(change.after),
            change.unit,
            "" if change.percent is None else f"{change.percent:+.1f} %",
        )
        for change in changes
    ]
    return head + render_table(
        ("figure", "before", "now", "unit", "change"), rows, right=frozenset({1, 2, 4})
    )


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _document(
    result: BenchResult, changes: tuple[Change, ...], notes: tuple[str, ...], path: Path | None
) -> dict[str, object]:
    return {
        "result": result.model_dump(mode="json"),
        "changes": [dataclasses.asdict(change) for change in changes],
        "not_the_same": list(notes),
        "kept": None if path is None else str(path),
    }
