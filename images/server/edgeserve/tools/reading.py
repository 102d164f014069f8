"""Reads an answer that follows `call_grammar`, as it grows: text, then calls of functions."""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Final

from edgeserve.answers import End, Output, Text, ToolCall
from edgeserve.calls import FUNCTION_NAME
from edgeserve.engine.detokenize import overlap
from edgeserve.engine.protocol import FinishReason
from edgeserve.tools.form import ID_CHARACTERS, CallForm

_ALPHABET: Final = string.ascii_letters + string.digits


class _JsonObject:
    """Finds the end of a JSON object that comes in parts."""

    __slots__ = ("_depth", "_is_escaped", "_is_in_string")

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_string = self._is_escaped = False

    def end(self, text: str) -> int | None:
        """Take more of it; returns the place after its last brace, None if that is still to come."""
        for place, character in enumerate(text):
            if self._is_in_string:
                if self._is_escaped:
                    self._is_escaped = False
                elif character == "\\":
                    self._is_escaped = True
                elif character == '"':
                    self._is_in_string = False
            elif character == '"':
                self._is_in_string = True
            elif character == "{":
                self._depth += 1
            elif character == "}":
                self._depth -= 1
                if not self._depth:
                    return place + 1
        return None


class CallReader:
    """Takes one answer apart."""

    def __init__(self, form: CallForm, *, must_call: bool) -> None:
        self._form = form
        self._buffer = ""
        self._found: list[Text | ToolCall] = []
        self._index = 0
        self._object = _JsonObject()
        self._between = None if form.between is None else _pattern(form.between)
        self._to_skip = len(form.opening)
        self._after_skip: Callable[[], bool] = self._in_name
        # Reads from the start of the buffer; returns whether something else can be read from what is left.
        self._read: Callable[[], bool] = self._skip if must_call else self._in_text

    @property
    def has_calls(self) -> bool:
        """Whether any call has begun."""
        return self._index > 0

    def feed(self, text: str) -> list[Text | ToolCall]:
        """Take more of the answer; returns what is now certain."""
        self._buffer += text
        while self._buffer and self._read():
            pass
        found, self._found = self._found, []
        return found

    def finish(self) -> list[Text | ToolCall]:
        """End the answer; returns text that was held back. What was cut off before a call's name is left out."""
        is_text = self._read in {self._in_text, self._in_plain_text}
        rest, self._buffer = self._buffer, ""
        return [Text(text=rest)] if is_text and rest else []

    def _in_text(self) -> bool:
        trigger, buffer = self._form.trigger, self._buffer
        at = buffer.find(trigger)
        if self._form.is_first_only:
            if at != 0 and not trigger.startswith(buffer):
                self._read = self._in_plain_text
                return True
            if at != 0:
                return False
        if at >= 0:
            self._show(buffer[:at].rstrip())
            self._buffer = buffer[at + len(trigger) :]
            self._to_skip, self._read = len(self._form.opening) - len(trigger), self._skip
            return True
        # White space before a call is the template's.
        shown = buffer[: len(buffer) - overlap(buffer, trigger)].rstrip()
        self._show(shown)
        self._buffer = buffer[len(shown) :]
        return False

    def _in_plain_text(self) -> bool:
        self._show(self._buffer)
        self._buffer = ""
        return False

    def _show(self, text: str) -> None:
        if text:
            self._found.append(Text(text=text))

    def _skip(self) -> bool:
        size = min(self._to_skip, len(self._buffer))
        self._buffer = self._buffer[size:]
        self._to_skip -= size
        if not self._to_skip:
            self._read = self._after_skip
        return True

    def _in_name(self) -> bool:
        match = FUNCTION_NAME.match(self._buffer)
        if match is None or match.end() == len(self._buffer):
            return False
        self._found.append(ToolCall(index=self._index, id=_make_id(), name=match[0]))
        self._index += 1
        self._buffer = self._buffer[match.end() :]
        self._to_skip, self._read, self._after_skip = len(self._form.middle), self._skip, self._in_arguments
        return True

    def _in_arguments(self) -> bool:
        end = self._object.end(self._buffer)
        self._found.append(ToolCall(index=self._index - 1, arguments=self._buffer[:end]))
        if end is None:
            self._buffer = ""
            return False
        self._buffer = self._buffer[end:]
        self._read = self._behind
        return True

    def _behind(self) -> bool:
        match = None if self._between is None else self._between.match(self._buffer)
        if match is None:
            return False
        self._buffer = self._buffer[match.end() :]
        self._object = _JsonObject()
        self._read, self._after_skip = self._in_name, self._in_name
        return True


def _pattern(parts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"[A-Za-z0-9]{{{ID_CHARACTERS}}}".join(map(re.escape, parts)))


def _make_id() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(ID_CHARACTERS))


async def read_calls(
    outputs: AsyncGenerator[Output, None], form: CallForm, *, must_call: bool
) -> AsyncGenerator[Output, None]:
    """Turn the text of an answer into text and calls; its end says whether there were any."""
    reader = CallReader(form, must_call=must_call)
    async with aclosing(outputs):
        async for output in outputs:
            if isinstance(output, Text):
                for part in reader.feed(output.text):
                    yield part
                continue
            for part in reader.finish():
                yield part
            if isinstance(output, End) and output.reason is FinishReason.STOP and reader.has_calls:
                yield replace(output, reason=FinishReason.TOOL_CALLS)
            else:
                yield output
