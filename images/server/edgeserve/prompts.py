"""From a checked request to the prompt's tokens, within the limits; runs beside the event loop, one prompt at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from edgeserve.calls import ChatCall, CompletionCall
from edgeserve.engine.protocol import Engine, EngineError
from edgeserve.engine.template import ChatTemplate, RenderError, Segment, TemplateError
from edgeserve.errors import invalid
from edgeserve.log import Log
from edgeserve.settings import LimitSettings

# No vocabulary packs more characters than this into each of many tokens of a text; a longer one need not be tokenised.
_MOST_CHARACTERS_PER_TOKEN: Final = 64
_TEMPLATE_GROWTH_CHARACTERS: Final = 1 << 16


class PromptMaker:
    """Renders and tokenises; `limits` and the engine's context bound the result."""

    def __init__(self, engine: Engine, limits: LimitSettings, log: Log) -> None:
        self._engine = engine
        self._limits = limits
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prompt")
        self._template: ChatTemplate | None = None
        self._complaint = (
            "This model has no chat template, so it has no chat completions; use /v1/completions."
        )
        facts = engine.facts
        self._most_tokens = min(limits.prompt_tokens, facts.context_tokens - 1)
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

    async def make(self, call: ChatCall | CompletionCall) -> tuple[int, ...]:
        """Make the prompt's tokens.

        Raises:
            ApiError: See `for_chat` and `for_completion`.
        """
        return await (self.for_chat(call) if isinstance(call, ChatCall) else self.for_completion(call))

    async def for_chat(self, call: ChatCall) -> tuple[int, ...]:
        """Make the prompt of a chat.

        Raises:
            ApiError: There is no template, it refuses the messages, or the prompt is too long.
        """
        return await self._beside(lambda: self._render(call))

    async def for_completion(self, call: CompletionCall) -> tuple[int, ...]:
        """Make the prompt of a completion.

        Raises:
            ApiError: The prompt is empty, too long, or holds a token that does not exist.
        """
        prompt = call.prompt
        if isinstance(prompt, tuple):
            return self._checked_tokens(prompt)
        # Control tokens are for those who send token ids; text stays text.
        return await self._beside(lambda: self._tokenise([Segment(text=prompt, special=False)], "prompt"))

    async def _beside(self, make: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._worker, make)
        except EngineError as error:
            raise invalid(f"The prompt cannot be tokenised: {error}.", None, code="invalid_text") from error

    def _render(self, call: ChatCall) -> tuple[int, ...]:
        if self._template is None:
            raise invalid(self._complaint, "messages", code="no_chat_template")
        longest = sum(len(message["content"]) for message in call.messages)
        self._check_characters(longest, "messages")
        try:
            segments = self._template.render(call.messages, longest=2 * longest + _TEMPLATE_GROWTH_CHARACTERS)
        except RenderError as error:
            text = str(error)
            raise invalid(f"{text[:1].upper()}{text[1:]}.", "messages", code="chat_template_error") from error
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
        self._check_tokens(len(tokens), param)
        return tuple(tokens)

    def _checked_tokens(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        self.check_tokens_exist(tokens, "prompt")
        self._check_tokens(len(tokens), "prompt")
        return tokens

    def _check_characters(self, characters: int, param: str) -> None:
        if characters > self._most_tokens * _MOST_CHARACTERS_PER_TOKEN:
            message = f"The prompt of {characters} characters is far longer than {self._most_tokens} tokens, the most here."
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
        facts = self._engine.facts
        room = self._limits.output_tokens if facts.can_shift else facts.context_tokens - prompt_tokens
        if wanted is None:
            return min(room, self._limits.output_tokens)
        if wanted > room:
            message = f"The prompt has {prompt_tokens} tokens and '{field}' is {wanted}; the context holds {facts.context_tokens} together."
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

    def close(self) -> None:
        """End the worker thread; a prompt in progress is not waited for."""
        self._worker.shutdown(wait=False, cancel_futures=True)
