"""What a model makes of a text, measured as llama.cpp's perplexity tool does.

1. A text's tokens are cut into chunks of one context; where the vocabulary wants it, a chunk begins with BOS. Of
   chats, each is a chunk.
2. Each chunk is read alone, and the predictions of its second half are scored, which all have half a context before
   them; of a chat, those of the answer.
3. Of the 16-bit original the log probabilities are kept; those of another model are compared with them.

Source: llama.cpp tools/perplexity/perplexity.cpp, perplexity() and kl_divergence(), as in llama-cpp-python 0.3.36. What is kept
differs: it is exact to 2⁻¹² of each log probability, where llama.cpp keeps 1/65535 of their range. Chats are our own.
"""

import ctypes
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final

from edgebuild.model.evaluation.distributions_worker import Distributions
from edgebuild.model.evaluation.prompts_worker import Prompts
from edgebuild.model.evaluation.statistics_worker import Scored, Seen
from edgeserve.engine.library import Library
from edgeserve.engine.model import LlamaModel
from edgeserve.engine.protocol import EngineError

# Outputs of one forward pass: their logits are held in 32 bit, of which a large vocabulary makes many.
_OUTPUTS: Final = 64
_MOST_BATCH_TOKENS: Final = 512
_WATCHED_TOKENS: Final = 128
_LOGPROBS, _INDEX = "logprobs.f16", "reference.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What is read at once, from an empty context.

    Attributes:
        tokens: At least two.
        first: The first position whose prediction is scored.
    """

    tokens: tuple[int, ...]
    first: int


def cut_text(model: LlamaModel, text: str, *, context_tokens: int, most_tokens: int) -> tuple[Chunk, ...]:
    """Cut a text into chunks of one context; step 1.

    Args:
        model: Its vocabulary.
        text: The text.
        context_tokens: Tokens of one chunk, if the model was trained for as many.
        most_tokens: Of a longer text only the beginning counts.

    Raises:
        EngineError: The text is shorter than two chunks.
    """
    size = min(context_tokens, model.trained_context_tokens)
    bos = () if not model.adds_bos or model.bos_token is None else (model.bos_token,)
    tokens = (*bos, *model.tokenize(text, special=False))
    if len(tokens) < 2 * size:
        raise EngineError(f"the text has {len(tokens)} tokens; at least {2 * size} are needed")
    return tuple(
        Chunk(tokens=(*bos, *tokens[start + len(bos) : start + size]), first=size // 2)
        for start in range(0, min(len(tokens), max(most_tokens, 2 * size)) - size + 1, size)
    )


def cut_chats(model: LlamaModel, chats: Sequence[tuple[str, str]], *, most_tokens: int) -> tuple[Chunk, ...]:
    """Make a chunk of each chat; step 1.

    Args:
        model: Its vocabulary and chat template.
        chats: Prompts and answers.
        most_tokens: Chats that would go beyond are left out, the first one excepted.

    Raises:
        EngineError: One does not fit the context that the model was trained for.
    """
    prompts, total = Prompts(model), 0
    found: list[Chunk] = []
    for number, (prompt, answer) in enumerate(chats, 1):
        asked = prompts.tokens(prompt)
        tokens = (*asked, *prompts.answer(answer))
        if len(tokens) > model.trained_context_tokens:
            raise EngineError(
                f"chat {number} has {len(tokens)} tokens, the model was trained for {model.trained_context_tokens}"
            )
        total += len(tokens)
        if found and total > most_tokens:
            break
        if len(tokens) > len(asked):
            found.append(Chunk(tokens=tokens, first=len(asked) - 1))
    if not found:
        raise EngineError("the chats have no answers")
    return tuple(found)


class Reader:
    """Reads chunks with one model."""

    def __init__(
        self,
        library: Library,
        model: LlamaModel,
        *,
        context_tokens: int,
        threads: int,
        watch: Callable[[int, bool, object], bool] | None = None,
    ) -> None:
        """Make a context.

        Args:
            library: llama.cpp.
            model: The model.
            context_tokens: Tokens of the longest chunk.
            threads: Threads that compute.
            watch: Called for every tensor that is computed; see ggml_backend_sched_eval_callback in ggml-backend.h.

        Raises:
            EngineError: llama.cpp refuses, as a rule for want of memory.
        """
        self._api: Any = library.api
        params = self._api.llama_context_default_params()
        params.n_ctx, params.n_seq_max = context_tokens, 1
        params.n_batch = params.n_ubatch = min(max(context_tokens, _OUTPUTS), _MOST_BATCH_TOKENS)
        params.n_outputs_max = _OUTPUTS
        if watch is not None:
            # All positions have outputs, for the last layers compute only those that do.
            params.n_batch = params.n_ubatch = params.n_outputs_max = _WATCHED_TOKENS
            # llama.cpp calls it for as long as the context lives.
            self._watch = self._api.ggml_backend_sched_eval_callback(watch)
            params.cb_eval = self._watch
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        library.forget_complaints()
        self._context = self._api.llama_init_from_model(model.pointer, params)
        if not self._context:
            raise EngineError(f"no context of {context_tokens} tokens{library.last_complaint()}")
        self._batch_tokens = int(params.n_batch)
        self._batch = self._api.llama_batch_init(self._batch_tokens, 0, 1)

    def predictions(self, chunk: Chunk, *, rows: int) -> Iterator[tuple[int, list[int]]]:
        """Read one chunk and give the predictions that are scored, a few at a time; step 2.

        Args:
            chunk: The chunk.
            rows: Most predictions at a time.

        Returns:
            Address of the logits of some positions, good until the next ones, and the tokens that came after them.

        Raises:
            EngineError: A forward pass failed.
        """
        self._forget()
        tokens, last = chunk.tokens, len(chunk.tokens) - 1
        for start in range(0, chunk.first, self._batch_tokens):
            self._decode(tokens, start, min(start + self._batch_tokens, chunk.first), has_outputs=False)
        for start in range(chunk.first, last, _OUTPUTS):
            end = min(start + _OUTPUTS, last)
            self._decode(tokens, start, end, has_outputs=True)
            for some in range(start, end, rows):
                logits = self._api.llama_get_logits_ith(self._context, some - start)
                address = ctypes.cast(logits, ctypes.c_void_p).value
                assert address is not None
                yield address, list(tokens[some + 1 : min(some + rows, end) + 1])

    def read(self, chunk: Chunk) -> None:
        """Read one chunk for those who watch.

        Raises:
            EngineError: A forward pass failed.
        """
        self._forget()
        for start in range(0, len(chunk.tokens), self._batch_tokens):
            end = min(start + self._batch_tokens, len(chunk.tokens))
            self._decode(chunk.tokens, start, end, has_outputs=True)

    def close(self) -> None:
        """Give the memory back."""
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)

    def _forget(self) -> None:
        memory = self._api.llama_get_memory(self._context)
        self._api.llama_memory_clear(memory, True)  # noqa: FBT003 - a C function

    def _decode(self, tokens: Sequence[int], start: int, end: int, *, has_outputs: bool) -> None:
        batch = self._batch
        batch.n_tokens = end - start
        for index, position in enumerate(range(start, end)):
            batch.token[index] = tokens[position]
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = has_outputs
        if (code := self._api.llama_decode(self._context, batch)) != 0:
            raise EngineError(f"a forward pass failed with code {code}")


def measure_reference(
    reader: Reader,
    distributions: Distributions,
    chunks: Sequence[Chunk],
    *,
    folder: Path | None,
    told: Callable[[str], None],
) -> Scored:
    """Score a text, and keep the log probabilities for others to be compared with; step 3.

    Args:
        reader: Reads with the original.
        distributions: Of its vocabulary.
        chunks: The text.
        folder: Takes what is kept; None keeps nothing.
        told: Told how far it is.
    """
    scored = Scored()
    if folder is None:
        for _, seen in _look(reader, distributions, chunks, told):
            scored.add_all(seen)
        return scored
    with (folder / _LOGPROBS).open("wb") as file:
        for packed, seen in _look(reader, distributions, chunks, told):
            scored.add_all(seen)
            file.write(packed)
    document = {
        "chunks": [asdict(chunk) for chunk in chunks],
        "top": scored.top,
        "logprobs": scored.logprobs,
        "row_bytes": distributions.row_bytes,
    }
    (folder / _INDEX).write_text(json.dumps(document), encoding="ascii")
    return scored


def _look(
    reader: Reader, distributions: Distributions, chunks: Sequence[Chunk], told: Callable[[str], None]
) -> Iterator[tuple[memoryview, list[Seen]]]:
    for number, chunk in enumerate(chunks, 1):
        told(f"chunk {number}/{len(chunks)}")
        for logits, came in reader.predictions(chunk, rows=distributions.rows):
            seen = distributions.look(logits, came)
            yield distributions.packed[: distributions.row_bytes * len(came)], seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What `measure_reference` kept.

    Attributes:
        folder: Where.
        chunks: The text.
        scored: What the original made of it.
        row_bytes: Bytes of the log probabilities of one position.
    """

    folder: Path
    chunks: tuple[Chunk, ...]
    scored: Scored
    row_bytes: int


def load_reference(folder: Path) -> Reference:
    """Read what `measure_reference` kept, but for the log probabilities."""
    document = json.loads((folder / _INDEX).read_text(encoding="ascii"))
    return Reference(
        folder=folder,
        chunks=tuple(Chunk(tokens=tuple(one["tokens"]), first=one["first"]) for one in document["chunks"]),
        scored=Scored(top=document["top"], logprobs=document["logprobs"]),
        row_bytes=document["row_bytes"],
    )


def compare(
    reader: Reader, distributions: Distributions, reference: Reference, *, told: Callable[[str], None]
) -> Scored:
    """Score the same text with another model, and measure how far it is from the original; step 3.

    Raises:
        EngineError: The models have other vocabularies.
    """
    if reference.row_bytes != distributions.row_bytes:
        raise EngineError("the model's vocabulary is not the original's")
    scored, row, base = Scored(), 0, reference.scored
    with (reference.folder / _LOGPROBS).open("rb") as file:
        for number, chunk in enumerate(reference.chunks, 1):
            told(f"chunk {number}/{len(reference.chunks)}")
            for logits, came in reader.predictions(chunk, rows=distributions.rows):
                _fill(file, distributions.base[: reference.row_bytes * len(came)])
                tops = base.top[row : row + len(came)]
                for seen, divergence in distributions.compare(logits, came, tops):
                    scored.add_all((seen,))
                    scored.divergences.append(divergence)
                row += len(came)
    return scored


def _fill(file: IO[bytes], room: memoryview) -> None:
    if (data := file.read(len(room))) and len(data) == len(room):
        room[:] = data
    else:
        raise EngineError("the original's log probabilities end too early")
