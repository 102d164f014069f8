"""How a model spells calls of functions, found out from its own chat template by rendering calls that are known.

1. Render a chat with a call in its middle, and the same chat with a text in its place: where the two part, the call begins.
2. Find the call's name and its arguments, as JSON, behind that place; what stands around them is the form.
3. Render both as the last message: what follows both is the end of a message, not of the call.
4. Render two calls at once: what stands between them, if the template takes two.
5. Check that the prompt tells of the tools and of what a call has given back.

Templates differ in what they expect of a call: arguments as an object or as JSON in a text, no content or an empty one.
The first combination that works is the form's; where none does, the model has no calls.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgeserve.calls import FUNCTION_NAME
from edgeserve.engine.template import ChatTemplate, RenderError

ID_CHARACTERS: Final = 9  # Mistral's templates take no other length
_LONGEST: Final = 1 << 18
_LONGEST_PART: Final = 256
_SHORTEST_MARK: Final = 4
_TEXT: Final = "zqanswer"
_NAMES: Final = ("zqfirstname", "zqothername")
_IDS: Final = ("zqfirstid", "zqotherid")
_KEYS: Final = ("zqfirstkey", "zqotherkey")
_VALUES: Final = ("zqfirstvalue", "zqothervalue")
_RESULT: Final = "zqresult"
_TOOL, _PARAMETER = "zqtool", "zqparameter"
_TOOLS: Final[Sequence[Mapping[str, Any]]] = (
    {
        "type": "function",
        "function": {
            "name": _TOOL,
            "description": "zqdescription",
            "parameters": {
                "type": "object",
                "properties": {_PARAMETER: {"type": "string", "description": "zqdescription"}},
                "required": [_PARAMETER],
            },
        },
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallForm:
    """What stands around the names and arguments of calls in an answer.

    Attributes:
        trigger: The text with which a call begins; no other part of an answer holds it.
        is_first_only: Whether a call can stand at the start of an answer only, since `trigger` looks like any text.
        opening: What stands before the first name; it starts with `trigger`.
        middle: What stands between name and arguments.
        between: What stands between the arguments of a call and the name of the next; its parts are around an id of
            `ID_CHARACTERS` letters and digits. None: one call an answer.
        closing: What stands after the last arguments, likewise.
        has_text_arguments: Whether the template takes arguments as JSON in a text instead of an object.
        no_content: What the template takes for the content of a message of nothing but calls.
    """

    trigger: str
    is_first_only: bool
    opening: str
    middle: str
    between: tuple[str, ...] | None
    closing: tuple[str, ...]
    has_text_arguments: bool
    no_content: str | None

    @property
    def texts(self) -> tuple[str, ...]:
        """All that is the same in every call."""
        return self.opening, self.middle, *(self.between or ()), *self.closing


def find_form(
    template: ChatTemplate, *, control_texts: Sequence[str], end_texts: Sequence[str]
) -> CallForm | None:
    """Find out how a model spells calls.

    Args:
        template: The model's.
        control_texts: Spellings of its control tokens.
        end_texts: Spellings of those that end an answer.

    Returns:
        The form; None where the template does not take calls, or spells arguments otherwise than as JSON.
    """
    for has_text_arguments, no_content in itertools.product((False, True), ("", None)):
        probe = _Probe(template, has_text_arguments=has_text_arguments, no_content=no_content)
        try:
            form = probe.form(control_texts, end_texts)
        except RenderError:
            continue
        if form is None or _holds(form.texts, end_texts):
            continue
        return form
    return None


def _holds(texts: Sequence[str], wanted: Sequence[str]) -> bool:
    return any(one in text for one in wanted for text in texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """Where a call stands in a text: ends are exclusive."""

    name: int
    name_end: int
    arguments: int
    arguments_end: int


class _Probe:
    """Renders chats with calls in one way of giving them to the template."""

    def __init__(self, template: ChatTemplate, *, has_text_arguments: bool, no_content: str | None) -> None:
        self._template = template
        self._has_text_arguments = has_text_arguments
        self._no_content = no_content

    def form(self, control_texts: Sequence[str], end_texts: Sequence[str]) -> CallForm | None:
        """Find the form; see the module."""
        plain = self._chat({"role": "assistant", "content": _TEXT})
        chat = self._chat(*self._called(1))  # 1
        call = _find(chat, 0)
        if call is None or plain.count(_TEXT) != 1:
            return None
        start = _shared(plain[: plain.index(_TEXT)], chat)
        opening = chat[start : call.name].lstrip()  # 2
        middle = chat[call.name_end : call.arguments]
        closing = self._closing()  # 3
        if (
            closing is None
            or start > call.name
            or not chat.startswith(_IDS[0].join(closing), call.arguments_end)
        ):
            return None
        between = self._between(opening, middle)  # 4
        if between is not None and _holds(between, end_texts):
            between = None  # each call is an answer of its own
        texts = (opening, middle, *(between or ()), *closing)
        is_known = all(text in chat for text in (_RESULT, _TOOL, _PARAMETER))  # 5
        if (
            not is_known
            or not opening
            or not middle
            or FUNCTION_NAME.match(middle)
            or not all(map(_is_part, texts))
        ):
            return None
        trigger, is_first_only = _trigger(opening, control_texts)
        return CallForm(
            trigger=trigger,
            is_first_only=is_first_only,
            opening=opening,
            middle=middle,
            between=between,
            closing=closing,
            has_text_arguments=self._has_text_arguments,
            no_content=self._no_content,
        )

    def _closing(self) -> tuple[str, ...] | None:
        asked = {"role": "user", "content": "zqquestion"}
        called = self._render([asked, self._called(1)[0]], has_generation_prompt=False)
        plain = self._render([asked, {"role": "assistant", "content": _TEXT}], has_generation_prompt=False)
        call = _find(called, 0)
        end = plain[plain.rindex(_TEXT) + len(_TEXT) :] if _TEXT in plain else None
        if call is None or end is None or not called.endswith(end, call.arguments_end):
            return None
        return _around_id(called[call.arguments_end : len(called) - len(end)].rstrip())

    def _between(self, opening: str, middle: str) -> tuple[str, ...] | None:
        try:
            chat = self._chat(*self._called(2))
        except RenderError:
            return None
        first, second = _find(chat, 0), _find(chat, 1)
        if first is None or second is None or second.name < first.arguments_end:
            return None
        is_alike = (
            chat.endswith(opening, 0, first.name) and chat[second.name_end : second.arguments] == middle
        )
        return _around_id(chat[first.arguments_end : second.name]) if is_alike else None

    def _chat(self, *answer: Mapping[str, Any]) -> str:
        """Render a chat that has gone on after an answer: it ends as others do, with a question."""
        messages: list[Mapping[str, Any]] = [{"role": "user", "content": "zqquestion"}, *answer]
        if len(answer) > 1:
            messages.append({"role": "assistant", "content": "zqcomment"})
        messages.append({"role": "user", "content": "zqthanks"})
        return self._render(messages, has_generation_prompt=True)

    def _called(self, count: int) -> list[Mapping[str, Any]]:
        """Make a message with so many calls, and what they give back."""
        calls = [
            {
                "id": _IDS[number],
                "type": "function",
                "function": {"name": _NAMES[number], "arguments": self._arguments(number)},
            }
            for number in range(count)
        ]
        called: Mapping[str, Any] = {"role": "assistant", "content": self._no_content, "tool_calls": calls}
        results = [
            {"role": "tool", "tool_call_id": _IDS[number], "name": _TOOL, "content": _RESULT}
            for number in range(count)
        ]
        return [called, *results]

    def _arguments(self, number: int) -> object:
        document = {_KEYS[number]: _VALUES[number]}
        return json.dumps(document) if self._has_text_arguments else document

    def _render(self, messages: Sequence[Mapping[str, Any]], *, has_generation_prompt: bool) -> str:
        segments = self._template.render(
            messages, longest=_LONGEST, tools=_TOOLS, has_generation_prompt=has_generation_prompt
        )
        return "".join(segment.text for segment in segments)


def _find(text: str, number: int) -> _Call | None:
    """Find a call's name and, behind it, its arguments; None unless both stand there exactly once."""
    name, key, value = _NAMES[number], _KEYS[number], _VALUES[number]
    at = text.find(name)
    found = re.compile(rf'\{{\s*"{key}"\s*:\s*"{value}"\s*\}}').search(text, max(at, 0))
    if at < 0 or found is None or text.count(name) != 1 or text.count(key) != 1:
        return None
    return _Call(name=at, name_end=at + len(name), arguments=found.start(), arguments_end=found.end())


def _shared(one: str, other: str) -> int:
    """Count the characters with which both start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (mine, its) in pairs if mine != its), min(len(one), len(other)))


def _around_id(text: str) -> tuple[str, ...] | None:
    """Take a text apart where an id stands; None where another call's does."""
    parts = tuple(text.split(_IDS[0]))
    return parts if len(parts) <= 2 and _IDS[1] not in text else None


def _is_part(text: str) -> bool:
    """Whether a text can be a fixed part of the form: short, and with nothing in it that was given to the template."""
    return len(text) <= _LONGEST_PART and "zq" not in text


def _trigger(opening: str, control_texts: Sequence[str]) -> tuple[str, bool]:
    """Choose with what a call begins, and say whether that is anything but at the start of an answer."""
    control = [text for text in control_texts if opening.startswith(text)]
    if control:
        return max(control, key=len), False
    mark = opening.partition("{")[0].rstrip()
    if len(mark) >= _SHORTEST_MARK and not mark.isalnum():
        return mark, False
    return opening, True
