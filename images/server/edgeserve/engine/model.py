"""The loaded model and its vocabulary: metadata, text to tokens, token to text."""

from __future__ import annotations

import ctypes
from typing import Any, Final

from edgeserve.engine.library import Library
from edgeserve.engine.mapped_pages import MappedPages
from edgeserve.engine.protocol import EngineError, ModelFacts
from edgeserve.settings import EngineSettings

_TOKEN_NULL: Final = -1
_NO: Final = False  # a C bool argument
_ATTR_UNKNOWN, _ATTR_CONTROL = 1 << 0, 1 << 3  # enum llama_token_attr, llama.h


class LlamaModel:
    """Weights and vocabulary; the vocabulary may be read from any thread (llama.h, "Tokenization")."""

    def __init__(self, library: Library, files: tuple[str, ...], *, use_mmap: bool = True) -> None:
        self._api = library.api
        self.file = files[0]
        library.forget_complaints()
        params = self._api.llama_model_default_params()
        pages = MappedPages(self._api, files) if use_mmap else None
        if pages is not None:
            params.progress_callback = pages.callback
        else:
            params.load_mode = self._api.LLAMA_LOAD_MODE_NONE
        self.pointer = self._load(params, files)
        # Whether the pages of weights that were copied stayed, since nobody knows where they are.
        self.has_stray_pages = pages is not None and pages.are_missed
        if not self.pointer:
            raise EngineError(f"{files[0]}: the model does not load{library.last_complaint()}")
        self._vocabulary = self._api.llama_model_get_vocab(self.pointer)
        self.vocabulary_tokens: int = self._api.llama_vocab_n_tokens(self._vocabulary)
        self.trained_context_tokens: int = self._api.llama_model_n_ctx_train(self.pointer)
        self.control_tokens = self._find_control_tokens()
        # A piece is one vocabulary entry; the longest known are runs of 256 spaces.
        self._piece = ctypes.create_string_buffer(1024)

    def _load(self, params: Any, files: tuple[str, ...]) -> int:
        names = [file.encode("utf-8", "surrogateescape") for file in files]
        if len(names) == 1:
            return self._api.llama_model_load_from_file(names[0], params) or 0
        paths = (ctypes.c_char_p * len(names))(*names)
        return self._api.llama_model_load_from_splits(paths, len(names), params) or 0

    @property
    def description(self) -> str:
        """What llama.cpp calls the model, such as `llama 1B Q8_0`."""
        buffer = ctypes.create_string_buffer(256)
        self._api.llama_model_desc(self.pointer, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @property
    def chat_template(self) -> str | None:
        """The model's own template (GGUF key tokenizer.chat_template)."""
        text = self._api.llama_model_chat_template(self.pointer, None)
        return None if text is None else text.decode("utf-8", "replace")

    def facts(
        self, library: Library, settings: EngineSettings, *, context_tokens: int, threads: int
    ) -> ModelFacts:
        """Gather what the server needs to know, as it is for every kind of engine."""
        return ModelFacts(
            description=self.description,
            cpu_variant=library.cpu_variant,
            context_tokens=context_tokens,
            trained_context_tokens=self.trained_context_tokens,
            slots=settings.slots,
            threads=threads,
            vocabulary_tokens=self.vocabulary_tokens,
            chat_template=None,
            bos_text=self.text_of(self.bos_token),
            eos_text=self.text_of(self.eos_token),
            bos_token=self.bos_token,
            add_bos=self.adds_bos,
            control_texts=self.control_texts(),
        )

    @property
    def is_generative(self) -> bool:
        """Whether the model turns text into text by itself: a decoder that looks back only, without an encoder."""
        api = self._api
        has_decoder = bool(api.llama_model_has_decoder(self.pointer))
        is_causal = self._metadata("attention.causal") != "false"
        return has_decoder and is_causal and not api.llama_model_has_encoder(self.pointer)

    @property
    def pooling(self) -> int:
        """How the model makes one vector of a text's (GGUF key pooling_type): llama.cpp's number of a kind, 0 for not."""
        text = self._metadata("pooling_type")
        return int(text) if text.isdecimal() else 0

    @property
    def vector_length(self) -> int:
        """Length of the vectors that it makes of tokens or texts."""
        return int(self._api.llama_model_n_embd_out(self.pointer))

    def _metadata(self, key: str) -> str:
        """Return a value of the header below the architecture's name, as llama.cpp writes it; empty if there is none."""
        return self._value(f"{self._value('general.architecture')}.{key}")

    def _value(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        size = self._api.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if size >= 0 else ""

    @property
    def has_state(self) -> bool:
        """Whether the model keeps a state that changes from token to token, of which no part can be taken back."""
        api = self._api
        return bool(api.llama_model_is_recurrent(self.pointer) or api.llama_model_is_hybrid(self.pointer))

    @property
    def bos_token(self) -> int | None:
        """The token that starts a text, if the vocabulary has one."""
        return self._known(self._api.llama_vocab_bos(self._vocabulary))

    @property
    def eos_token(self) -> int | None:
        """The token that ends a text, if the vocabulary has one."""
        return self._known(self._api.llama_vocab_eos(self._vocabulary))

    @property
    def adds_bos(self) -> bool:
        """Whether every text starts with the BOS token."""
        return bool(self._api.llama_vocab_get_add_bos(self._vocabulary))

    @staticmethod
    def _known(token: int) -> int | None:
        return None if token == _TOKEN_NULL else token

    def text_of(self, token: int | None) -> str:
        """Return the vocabulary's own spelling of a token, empty for None."""
        if token is None:
            return ""
        text = self._api.llama_vocab_get_text(self._vocabulary, token)
        return text.decode("utf-8", "replace") if text else ""

    def _find_control_tokens(self) -> tuple[int, ...]:
        attribute, vocabulary = self._api.llama_vocab_get_attr, self._vocabulary
        wanted = _ATTR_UNKNOWN | _ATTR_CONTROL
        return tuple(
            token for token in range(self.vocabulary_tokens) if attribute(vocabulary, token) & wanted
        )

    def control_texts(self) -> tuple[str, ...]:
        """Return the spellings that `tokenize(special=True)` turns into tokens with a meaning of their own.

        llama.cpp parses these only on demand: attributes CONTROL and UNKNOWN (llama-vocab.cpp, tokenizer_st_partition).
        """
        return tuple(text for text in map(self.text_of, self.control_tokens) if text)

    def end_texts(self) -> tuple[str, ...]:
        """Return the spellings of the tokens that end an answer."""
        return tuple(text for text in map(self.text_of, filter(self.is_end, self.control_tokens)) if text)

    @property
    def silent_tokens(self) -> tuple[int, ...]:
        """Control tokens that neither end an answer nor have a text in it."""
        return tuple(token for token in self.control_tokens if not self.is_end(token))

    @property
    def vocabulary(self) -> int:
        """Address of llama.cpp's vocabulary."""
        return int(self._vocabulary)

    def is_end(self, token: int) -> bool:
        """Whether the token ends the answer."""
        return bool(self._api.llama_vocab_is_eog(self._vocabulary, token))

    def piece(self, token: int) -> bytes:
        """Return the token's text, empty for a control token; one thread only."""
        size = self._api.llama_token_to_piece(self._vocabulary, token, self._piece, len(self._piece), 0, _NO)
        if size < 0:
            self._piece = ctypes.create_string_buffer(-size)
            size = self._api.llama_token_to_piece(
                self._vocabulary, token, self._piece, len(self._piece), 0, _NO
            )
        return ctypes.string_at(self._piece, size)

    def tokenize(self, text: str, *, special: bool, whole: bool = False) -> tuple[int, ...]:
        """Turn text into tokens, `whole` with what the vocabulary puts around every text, such as BOS and EOS."""
        data = text.encode("utf-8")
        # One token per byte plus a leading space is the most that any vocabulary makes.
        room = len(data) + 2
        tokens = (ctypes.c_int32 * room)()
        count = self._api.llama_tokenize(self._vocabulary, data, len(data), tokens, room, whole, special)
        if count < 0:
            room = -count
            tokens = (ctypes.c_int32 * room)()
            count = self._api.llama_tokenize(self._vocabulary, data, len(data), tokens, room, whole, special)
        if count < 0:
            raise EngineError("llama.cpp could not tokenise a text")
        return tuple(tokens[:count])

    def close(self) -> None:
        """Free the weights."""
        self._api.llama_model_free(self.pointer)
