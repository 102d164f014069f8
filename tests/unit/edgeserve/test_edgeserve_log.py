import os
import re

from edgeserve.log import Log, described


def _lines(write: object) -> list[str]:
    reader, writer = os.pipe()
    try:
        assert callable(write)
        write(Log(writer))
        return os.read(reader, 1 << 16).decode().splitlines()
    finally:
        os.close(reader)
        os.close(writer)


def test_one_line_per_event() -> None:
    (line,) = _lines(lambda log: log.info("ready", model="m", seconds=0.12345, slots=2))
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info ready model=m seconds=0\.123 slots=2", line
    )


def test_a_value_cannot_forge_a_line_or_a_field() -> None:
    (line,) = _lines(lambda log: log.error("x", path='a\nb c=d\x1b[31m "é'))
    assert line.endswith(r'error x path="a\nb c=d\u001b[31m \"\u00e9"')


def test_long_values_are_cut() -> None:
    (line,) = _lines(lambda log: log.warning("x", value="a" * 100_000))
    assert len(line) < 2100


def test_a_closed_descriptor_does_not_stop_anything() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    Log(writer).info("lost")


def test_an_exception_is_named_without_its_text() -> None:
    try:
        raise ValueError("the prompt")  # noqa: TRY301
    except ValueError as error:
        fields = described(error)
    assert fields["exception"] == "ValueError"
    assert str(fields["at"]).startswith("test_edgeserve_log.py:")
