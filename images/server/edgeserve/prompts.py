"""From a checked request to the prompt's tokens, within the limits; runs beside the event loop, one prompt at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

from edgeserve.calls import ChatCall, CompletionCall, EmbeddingCall, JsonAnswer
from edgeserve.chats import AnswerForm, ChatPrompts
from edgeserve.engine.protocol import Engine, EngineError
from edgeserve.engine.template import Segment
from edgeserve.errors import invalid, unsupported_schema
from edgeserve.log import Log
from edgeserve.settings import LimitSettings
from edgeserve.windows import (
    SMALLEST_WINDOW_TOKENS,
    TooManyWindowsError,
    Windows,
    split_text,
    text_to_split,
    with_text,
)

_T = TypeVar("_T")

# No vocabulary packs more characters than this into each of many tokens of a text; a longer one need not be tokenised.
_MOST_CHARACTERS_PER_TOKEN: Final = 64
_TEMPLATE_GROWTH_CHARACTERS: Final = 1 << 16


class PromptMaker:
    """Renders and tokenises; `limits` and the engine's context bound the result."""

    def __init__(self, engine: Engine, limits: LimitSettings, log: Log) -> None:
        self._engine = engine
        self._limits = limits
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prompt")
        self._chats = ChatPrompts(engine, log)
        self._most_tokens = engine.facts.longest_prompt(limits.prompt_tokens)
        self._has_windows = limits.over_long == "window"
        prompts = limits.windows if self._has_windows else 1
        self._most_characters = self._most_tokens * _MOST_CHARACTERS_PER_TOKEN * prompts

    async def make(self, call: ChatCall | CompletionCall) -> tuple[int, ...]:
        """Make the prompt's tokens.

        Raises:
            ApiError: There is no chat template, it refuses the messages, or the prompt is empty, too long, or holds a
                token that does not exist.
        """
        tokens = await self._beside(lambda: self._tokens(call))
        self._check_tokens(len(tokens), _param(call))
        return tokens

    async def make_windows(self, call: ChatCall | CompletionCall) -> Windows:
        """Make the tokens of the prompt, or of its windows where it is too long for one and the limits say so.

        Raises:
            ApiError: As `make`; or even windows cannot hold it.
        """
        if self._has_windows:
            return await self._beside(lambda: self._windows(call))
        return Windows(prompts=(await self.make(call),), overlap=False)

    async def make_inputs(self, call: EmbeddingCall) -> tuple[tuple[int, ...], ...]:
        """Make the tokens of texts to embed, each with what the model wants around a text.

        Raises:
            ApiError: One is empty, too long, or holds a token that does not exist.
        """
        # One by one, so that others' prompts get their turn between them.
        return tuple(
            [
                await self._beside(partial(self._input, text, f"input[{number}]"))
                for number, text in enumerate(call.inputs)
            ]
        )

    def _input(self, text: str | tuple[int, ...], field: str) -> tuple[int, ...]:
        if isinstance(text, tuple):
            self.check_tokens_exist(text, field)
            tokens = text
        else:
            self._check_characters(len(text), field)
            facts = self._engine.facts
            tokens = (*facts.text_prefix, *self._engine.tokenize(text, special=False), *facts.text_suffix)
        self._check_tokens(len(tokens), field)
        return tokens

    async def form(self, call: ChatCall | CompletionCall) -> AnswerForm:
        """Make the form of the answer.

        Raises:
            ApiError: A schema cannot be followed exactly, or the model has no form for calls of functions.
        """
        if not isinstance(call, ChatCall) or (call.answer is None and call.tools is None):
            return AnswerForm()
        return await self._beside(lambda: self._form(call))

    def _form(self, call: ChatCall) -> AnswerForm:
        if call.tools is not None:
            return self._chats.answer_form(call.tools)
        assert call.answer is not None
        return AnswerForm(grammar=_json_grammar(call.answer))

    async def _beside(self, make: Callable[[], _T]) -> _T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._worker, make)
        except EngineError as error:
            raise invalid(f"The prompt cannot be tokenised: {error}.", None, code="invalid_text") from error

    def _tokens(self, call: ChatCall | CompletionCall) -> tuple[int, ...]:
        """Make the prompt's tokens, however many."""
        if isinstance(call, ChatCall):
            return self._render(call)
        if isinstance(call.prompt, tuple):
            return self._known_tokens(call.prompt)
        # Control tokens are for those who send token ids; text stays text.
        return self._tokenise([Segment(text=call.prompt, special=False)], "prompt")

    def _windows(self, call: ChatCall | CompletionCall) -> Windows:
        tokens, param = self._tokens(call), _param(call)
        text = text_to_split(call)
        if len(tokens) <= self._most_tokens or text is None:
            self._check_tokens(len(tokens), param)
            return Windows(prompts=(tokens,), overlap=False)
        limits, context = self._limits, self._engine.facts.context_tokens
        # Not without any text: templates may leave out a message that is empty.
        frame = len(self._tokens(with_text(call, ".")))
        room = min(self._most_tokens, context * 3 // 4) - frame
        window = min(limits.window_tokens or room, room)
        if window < SMALLEST_WINDOW_TOKENS:
            message = f"The prompt has {frame} tokens beside the text that could be cut into windows; they leave too little room."
            raise invalid(message, param, code="context_length_exceeded")
        stride = min(limits.window_stride_tokens or window * 3 // 4, window)
        too_long = invalid(
            f"The prompt has {len(tokens)} tokens; {limits.windows} windows of {window} tokens, the most here, do not hold it.",
            param,
            code="context_length_exceeded",
        )
        if len(tokens) > 2 * limits.windows * window:
            raise too_long  # not worth counting piece by piece
        try:
            texts = split_text(
                text,
                count_tokens=lambda piece: len(self._engine.tokenize(piece, special=False)),
                window_tokens=window,
                stride_tokens=stride,
                most=limits.windows,
            )
        except TooManyWindowsError:
            raise too_long from None
        prompts = tuple(self._tokens(with_text(call, text)) for text in texts)
        # The sum of its pieces bounds a window but for a token or two, for which the answer's quarter has room.
        assert max(map(len, prompts)) < context
        return Windows(prompts=prompts, overlap=stride < window)

    def _render(self, call: ChatCall) -> tuple[int, ...]:
        size = self._chats.size(call)
        self._check_characters(size, "messages")
        segments = self._chats.render(call, longest=2 * size + _TEMPLATE_GROWTH_CHARACTERS)
        return self._tokenise(segments, "messages")

    def _tokenise(self, segments: Iterable[Segment], param: str) -> tuple[int, ...]:
        tokens: list[int] = []
        for segment in segments:
            self._check_characters(len(segment.text), param)
            tokens.extend(self._engine.tokenize(segment.text, special=segment.special))
        facts = self._engine.facts
        if facts.add_bos and facts.bos_token is not None and tokens[:1] != [facts.bos_token]:
            tokens.insert(0, facts.bos_token)
        if not tokens:
            raise invalid(f"'{param}' is empty.", param, code="invalid_value")
        return tuple(tokens)

    def _known_tokens(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        self.check_tokens_exist(tokens, "prompt")
        return tokens

    def _check_characters(self, characters: int, param: str) -> None:
        if characters > self._most_characters:
            message = f"The prompt of {characters} characters is far longer than this server takes: {self._most_tokens} tokens{' in one window' if self._has_windows else ''}."
            raise invalid(message, param, code="context_length_exceeded")

    def _check_tokens(self, count: int, param: str) -> None:
        if count > self._most_tokens:
            message = f"The prompt has {count} tokens; this server takes at most {self._most_tokens}."
            raise invalid(message, param, code="context_length_exceeded")

    def output_tokens(self, prompt_tokens: int, wanted: int | None, field: str) -> int:
        """Decide how long the answer may get.

        Args:
            prompt_tokens: Length of the prompt.
            wanted: What the client asks for; None for as much as the limits and the context leave.
            field: The field in which it asked.

        Raises:
            ApiError: Prompt and answer do not fit the context together, and the engine cannot shift it.
        """
        room = self.room(prompt_tokens)
        if wanted is None:
            return min(room, self._limits.output_tokens)
        if wanted > room:
            context = self._engine.facts.context_tokens
            message = f"The prompt has {prompt_tokens} tokens and '{field}' is {wanted}; the context holds {context} together."
            raise invalid(message, field, code="context_length_exceeded")
        return wanted

    def check_tokens_exist(self, tokens: Iterable[int], field: str) -> None:
        """Check token ids that a client gave.

        Raises:
            ApiError: The vocabulary has not all of them.
        """
        most = self._engine.facts.vocabulary_tokens - 1
        if not all(0 <= token <= most for token in tokens):
            raise invalid(f"'{field}' holds a token id outside 0 to {most}.", field, code="out_of_range")

    def windows_output_tokens(self, windows: int, wanted: int | None, field: str) -> int:
        """Decide how long the answer about so many windows may get altogether.

        Raises:
            ApiError: It would be less than a token for each.
        """
        most = wanted or self._limits.output_tokens
        if most < windows:
            message = (
                f"'{field}' is {most}, less than one token for each of the {windows} windows of this prompt."
            )
            raise invalid(message, field, code="out_of_range")
        return most

    def room(self, prompt_tokens: int) -> int:
        """Count the tokens that the context, or the limits where it is shifted, leave to the answer."""
        facts = self._engine.facts
        return self._limits.output_tokens if facts.can_shift else facts.context_tokens - prompt_tokens

    def close(self) -> None:
        """End the worker thread; a prompt in progress is not waited for."""
        self._worker.shutdown(wait=False, cancel_futures=True)


def _param(call: ChatCall | CompletionCall) -> str:
    return "messages" if isinstance(call, ChatCall) else "prompt"


def _json_grammar(answer: JsonAnswer) -> str:
    # Rare, and a twentieth of all code: only whom it serves pays for it.
    from edgeserve.grammar.json_schema import json_object_grammar, schema_grammar  # noqa: PLC0415
    from edgeserve.grammar.keywords import SchemaError  # noqa: PLC0415

    if answer.schema is None:
        return json_object_grammar()
    try:
        return schema_grammar(answer.schema, answer.schema_field)
    except SchemaError as error:
        raise unsupported_schema(error.path, str(error)) from error
