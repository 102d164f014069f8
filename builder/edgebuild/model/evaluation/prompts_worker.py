"""What a user writes, as the tokens that the model gets: the same as from the server in the image (edgeserve/prompts.py)."""

from collections.abc import Sequence
from typing import Final

from edgeserve.engine.model import LlamaModel
from edgeserve.engine.protocol import EngineError
from edgeserve.engine.template import ChatTemplate, RenderError, Segment, TemplateError

_LONGEST_CHARACTERS: Final = 1 << 20


class Prompts:
    """Renders the model's chat template; without one, a prompt is what the answer continues."""

    def __init__(self, model: LlamaModel) -> None:
        """Read the template.

        Raises:
            EngineError: It cannot be used.
        """
        self._model = model
        self._template: ChatTemplate | None = None
        if (source := model.chat_template) is None:
            return
        try:
            self._template = ChatTemplate(
                source,
                bos_text=model.text_of(model.bos_token),
                eos_text=model.text_of(model.eos_token),
                control_texts=model.control_texts(),
            )
        except TemplateError as error:
            raise EngineError(f"the model's chat template cannot be used: {error}") from error

    def tokens(self, prompt: str) -> tuple[int, ...]:
        """Return the tokens of a prompt, up to where the answer begins.

        Raises:
            EngineError: The template refuses it, or nothing is left of it.
        """
        segments: Sequence[Segment] = (Segment(text=prompt, special=False),)
        if self._template is not None:
            try:
                segments = self._template.render(
                    [{"role": "user", "content": prompt}], longest=_LONGEST_CHARACTERS
                )
            except RenderError as error:
                raise EngineError(str(error)) from error
        model = self._model
        tokens = [token for part in segments for token in model.tokenize(part.text, special=part.special)]
        if model.adds_bos and model.bos_token is not None and tokens[:1] != [model.bos_token]:
            tokens.insert(0, model.bos_token)
        if not tokens:
            raise EngineError("a prompt is empty")
        return tuple(tokens)

    def answer(self, text: str) -> tuple[int, ...]:
        """Return the tokens of an answer, and of its end where the vocabulary has one."""
        model = self._model
        end = [] if model.eos_token is None else [model.eos_token]
        return (*model.tokenize(text, special=False), *end)
