"""Prompts of chats by the model's own template, and the form in which it calls functions."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from edgeserve.answers import Output
from edgeserve.calls import ChatCall, Tools
from edgeserve.engine.protocol import Engine
from edgeserve.engine.template import ChatTemplate, RenderError, Segment, TemplateError
from edgeserve.errors import ApiError, invalid, unsupported_schema
from edgeserve.log import Log

if TYPE_CHECKING:
    from edgeserve.tools.form import CallForm


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """What an answer must look like.

    Attributes:
        grammar: See `Sampling`; empty leaves the answer free.
        spoken: See `Sampling`.
        read: Takes the text of an answer apart into text and calls; None where there can be none.
    """

    grammar: str = ""
    spoken: frozenset[int] = frozenset()
    read: Callable[[AsyncGenerator[Output, None]], AsyncGenerator[Output, None]] | None = None


class ChatPrompts:
    """Renders chats; for one thread at a time."""

    def __init__(self, engine: Engine, log: Log) -> None:
        self._engine = engine
        self._template: ChatTemplate | None = None
        self._complaint = (
            "This model has no chat template, so it has no chat completions; use /v1/completions."
        )
        facts = engine.facts
        if facts.vector_length:
            return  # it does not chat
        if facts.chat_template is None:
            log.warning("chat-template", problem="the model has none; chat completions are refused")
            return
        try:
            self._template = ChatTemplate(
                facts.chat_template,
                bos_text=facts.bos_text,
                eos_text=facts.eos_text,
                control_texts=facts.control_texts,
            )
        except TemplateError as error:
            log.warning("chat-template", problem=f"{error}; chat completions are refused")
            self._complaint = "This model's chat template cannot be used, so it has no chat completions; use /v1/completions."

    def size(self, call: ChatCall) -> int:
        """Count the characters that a client gave for the prompt.

        Raises:
            ApiError: There is no chat template.
        """
        self._get_template()
        size = sum(len(message["content"] or "") for message in call.messages)
        if call.tools is not None:
            size += call.tools.characters
        return size + sum(_json_size(message.get("tool_calls", ())) for message in call.messages)

    def _get_template(self) -> ChatTemplate:
        if self._template is None:
            raise invalid(self._complaint, "messages", code="no_chat_template")
        return self._template

    def render(self, call: ChatCall, *, longest: int) -> tuple[Segment, ...]:
        """Render the prompt; `longest` is the most characters of it.

        Raises:
            ApiError: There is no chat template, or it refuses the messages.
        """
        template = self._get_template()
        messages = [
            self._called(message, number) if "tool_calls" in message or message["role"] == "tool" else message
            for number, message in enumerate(call.messages)
        ]
        tools = () if call.tools is None else call.tools.definitions
        try:
            return template.render(messages, longest=longest, tools=tools)
        except RenderError as error:
            text = str(error)
            raise invalid(f"{text[:1].upper()}{text[1:]}.", "messages", code="chat_template_error") from error

    def _called(self, message: Mapping[str, Any], number: int) -> Mapping[str, Any]:
        """Give a message that is about calls what the template takes."""
        form = self._call_form
        if form is None:
            raise _no_calls(f"messages[{number}].{'tool_calls' if 'tool_calls' in message else 'role'}")
        if "tool_calls" not in message:
            return message
        calls = message["tool_calls"]
        if form.has_text_arguments:
            calls = [_with_text_arguments(call) for call in calls]
        return {**message, "content": message["content"] or form.no_content, "tool_calls": calls}

    def answer_form(self, tools: Tools) -> AnswerForm:
        """Make the form of an answer that may call functions.

        Raises:
            ApiError: The model has none, or a schema cannot be followed exactly.
        """
        # Rare, as all grammars are.
        from edgeserve.grammar.keywords import SchemaError  # noqa: PLC0415
        from edgeserve.tools.grammar import call_grammar  # noqa: PLC0415
        from edgeserve.tools.reading import read_calls  # noqa: PLC0415

        form = self._call_form
        if form is None:
            raise _no_calls("tools")
        try:
            grammar = call_grammar(tools, form)
        except SchemaError as error:
            raise unsupported_schema(error.path, str(error)) from error
        read = partial(read_calls, form=form, must_call=tools.must_call)
        return AnswerForm(grammar=grammar, spoken=self._spoken, read=read)

    @cached_property
    def _call_form(self) -> CallForm | None:
        from edgeserve.tools.form import find_form  # noqa: PLC0415

        facts = self._engine.facts
        return find_form(self._get_template(), control_texts=facts.control_texts, end_texts=facts.end_texts)

    @cached_property
    def _spoken(self) -> frozenset[int]:
        """Control tokens in the form of calls."""
        texts = () if self._call_form is None else self._call_form.texts
        tokenize = self._engine.tokenize
        control = [
            tokenize(spelling, special=True)
            for spelling in self._engine.facts.control_texts
            if any(spelling in text for text in texts)
        ]
        known = {tokens[0] for tokens in control if len(tokens) == 1}
        return frozenset(token for text in texts for token in tokenize(text, special=True) if token in known)


def _json_size(value: object) -> int:
    return len(json.dumps(value, ensure_ascii=False)) if value else 0


def _with_text_arguments(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def _no_calls(field: str) -> ApiError:
    return invalid(
        f"'{field}' is not supported by this model: its chat template spells no calls of functions as JSON.",
        field,
        code="unsupported_parameter",
    )
