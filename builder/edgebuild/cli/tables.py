"""Tables for people: a few columns of text, aligned, without frames that break when copied."""

from collections.abc import Iterable, Sequence


def render_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, right: frozenset[int] = frozenset()
) -> str:
    """Lay out rows under a header.

    Args:
        header: Titles of the columns.
        rows: Cells, as many in each row as there are titles.
        right: Columns aligned to the right, counted from 0.
    """
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def render(line: Sequence[str]) -> str:
        cells = (
            text.rjust(width) if column in right else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join(
        [render(lines[0]), "  ".join("─" * width for width in widths), *(render(line) for line in lines[1:])]
    )
