"""llama.cpp as an `Engine`, with the real library and small models."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeserve.engine.opening import open_llama
from edgeserve.engine.protocol import Engine, EngineError, Finish, FinishReason, Request, Sampling, Token
from edgeserve.log import Log
from edgeserve.settings import EngineSettings
from tests.support.tiny_gguf import BOS, write_tiny_gguf

_GREEDY = Sampling(temperature=0.0)
_CONTEXT = 256


@pytest.fixture(scope="module")
def engine(llama_host: Path, tiny_model: Path) -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(llama_host))
        patch.setenv("LLAMA_CPP_LIB_PATH", str(llama_host / "llama_cpp" / "lib"))
        settings = EngineSettings(context_tokens=_CONTEXT, batch_tokens=64, slots=3, threads=1)
        loaded = open_llama((str(tiny_model),), settings, Log())
        yield loaded
        loaded.close()


def _request(
    engine: Engine, name: str, text: str, *, output_tokens: int = 12, sampling: Sampling = _GREEDY
) -> Request:
    return Request(
        id=name,
        prompt=(BOS, *engine.tokenize(text, special=False)),
        output_tokens=output_tokens,
        sampling=sampling,
    )


def _run(engine: Engine, *requests: Request) -> tuple[dict[str, list[int]], dict[str, Finish]]:
    tokens: dict[str, list[int]] = {request.id: [] for request in requests}
    ends: dict[str, Finish] = {}
    for request in requests:
        engine.submit(request)
    while len(ends) < len(requests):
        for event in engine.step():
            if isinstance(event, Token):
                tokens[event.request_id].append(event.token)
            elif isinstance(event, Finish):
                ends[event.request_id] = event
    return tokens, ends


def _events(engine: Engine, request: Request) -> tuple[list[Token], Finish]:
    tokens: list[Token] = []
    engine.submit(request)
    while True:
        for event in engine.step():
            if isinstance(event, Finish):
                return tokens, event
            assert isinstance(event, Token)
            tokens.append(event)


_TEXTS = {"short": "Obstacle ahead", "other": "Battery low and the", "long": "left right at the " * 8}


def test_answers_alone_and_together_are_the_same(engine: Engine) -> None:
    alone = {name: _run(engine, _request(engine, name, text))[0][name] for name, text in _TEXTS.items()}
    together, _ = _run(engine, *(_request(engine, name, text) for name, text in _TEXTS.items()))
    assert together == alone
    assert len({tuple(tokens) for tokens in alone.values()}) == 3


def test_a_prompt_that_starts_like_an_earlier_one_computes_only_the_rest(engine: Engine) -> None:
    first = _request(engine, "a", "at the left at the right at the left")
    fresh, _ = _run(engine, first)
    before = engine.stats()
    again, ends = _run(engine, Request(id="b", prompt=first.prompt, output_tokens=12, sampling=_GREEDY))
    after = engine.stats()
    assert ends["b"].cached_tokens == len(first.prompt) - 1
    assert after.prompt_tokens - before.prompt_tokens == 1
    assert again["b"] == fresh["a"]


def test_answers_that_continue_a_chat_reuse_the_whole_chat(engine: Engine) -> None:
    first = _request(engine, "a", "on and on and on", output_tokens=6)
    tokens, _ = _run(engine, first)
    chat = (*first.prompt, *tokens["a"], *engine.tokenize("then", special=False))
    _, ends = _run(engine, Request(id="b", prompt=chat, output_tokens=2, sampling=_GREEDY))
    # The last token of the answer was drawn but never computed.
    assert ends["b"].cached_tokens == len(first.prompt) + 5


def test_a_long_prompt_does_not_hold_up_the_others(engine: Engine) -> None:
    engine.submit(_request(engine, "quick", "Battery", output_tokens=40))
    while not engine.step():
        pass
    engine.submit(_request(engine, "slow", "left right " * 60, output_tokens=2))
    order: list[str] = []
    while "slow" not in order:
        order.extend(event.request_id for event in engine.step())
    assert order.count("quick") > 1
    engine.cancel("quick")
    engine.cancel("slow")


def test_cancel_frees_the_slot_at_once(engine: Engine) -> None:
    for name in ("a", "b", "c"):
        engine.submit(_request(engine, name, "Obstacle " + name, output_tokens=100))
    engine.step()
    with pytest.raises(EngineError, match="no slot"):
        engine.submit(_request(engine, "d", "ahead"))
    finish = engine.cancel("b")
    assert finish is not None
    assert finish.reason is FinishReason.CANCELLED
    assert engine.stats().busy_slots == 2
    engine.submit(_request(engine, "d", "ahead", output_tokens=1))
    events = engine.step()
    assert {"a", "c"} <= {event.request_id for event in events}
    assert "b" not in {event.request_id for event in events}
    assert engine.cancel("b") is None
    for name in ("a", "c", "d"):
        engine.cancel(name)
    assert engine.stats().busy_slots == 0
    assert engine.step() == ()


def test_refuses_what_does_not_fit_the_context(engine: Engine) -> None:
    with pytest.raises(EngineError, match="context"):
        engine.submit(Request(id="x", prompt=(BOS,) * _CONTEXT, output_tokens=1, sampling=_GREEDY))
    with pytest.raises(EngineError, match="context"):
        engine.submit(Request(id="x", prompt=(), output_tokens=1, sampling=_GREEDY))


def test_fills_the_context_to_the_last_token(engine: Engine) -> None:
    request = Request(id="full", prompt=(BOS,) * (_CONTEXT - 8), output_tokens=8, sampling=_GREEDY)
    _, ends = _run(engine, request)
    assert ends["full"].output_tokens <= 8


def test_a_seed_repeats_and_another_differs(engine: Engine) -> None:
    def answer(seed: int) -> list[int]:
        sampling = Sampling(temperature=1.5, seed=seed)
        return _run(engine, _request(engine, "s", "the", output_tokens=24, sampling=sampling))[0]["s"]

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_top_k_1_is_greedy_at_any_temperature(engine: Engine) -> None:
    greedy, _ = _run(engine, _request(engine, "a", "Obstacle"))
    cut, _ = _run(
        engine, _request(engine, "a", "Obstacle", sampling=Sampling(temperature=2.0, top_k=1, seed=3))
    )
    assert cut == greedy


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0, repeat_penalty=10.0),
        Sampling(temperature=1.0, top_p=0.01, min_p=0.99, seed=7),
        Sampling(temperature=0.01, top_p=0.0, seed=2**32 - 2),
    ],
)
def test_extreme_sampling_still_answers(engine: Engine, sampling: Sampling) -> None:
    _, ends = _run(engine, _request(engine, "x", "the", sampling=sampling))
    assert ends["x"].reason in {FinishReason.LENGTH, FinishReason.STOP}


def test_penalties_forbid_repeats(engine: Engine) -> None:
    sampling = Sampling(temperature=0.0, repeat_penalty=10.0, presence_penalty=2.0, frequency_penalty=2.0)
    text = "the left " * 30
    plain, _ = _run(engine, _request(engine, "x", text, output_tokens=40))
    tokens, _ = _run(engine, _request(engine, "x", text, output_tokens=40, sampling=sampling))
    assert len(set(plain["x"])) < len(plain["x"])
    assert len(set(tokens["x"])) == len(tokens["x"])


def test_control_tokens_only_where_asked(engine: Engine) -> None:
    assert engine.tokenize("</s>", special=True) == (2,)
    assert 2 not in engine.tokenize("</s>", special=False)
    assert set(engine.facts.control_texts) == {"<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"}


def test_tokenises_any_text(engine: Engine) -> None:
    assert engine.tokenize("", special=False) == ()
    assert engine.tokenize("\x00\x00", special=False)
    assert len(engine.tokenize("😀" * 100, special=False)) == 400


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model" * 100])
def test_says_which_file_is_no_model(
    llama_host: Path, engine: Engine, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"broken\.gguf"):
        open_llama((str(path),), EngineSettings(), Log())


def test_says_that_a_file_is_cut_short(engine: Engine, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes(tiny_model.read_bytes()[:-4096])
    with pytest.raises(EngineError, match=r"short\.gguf"):
        open_llama((str(path),), EngineSettings(), Log())


@pytest.mark.parametrize("kv_type", ["f16", "q8_0", "q4_0"])
def test_kv_types_load_and_answer(engine: Engine, tmp_path: Path, kv_type: str) -> None:
    model = write_tiny_gguf(tmp_path / "m.gguf")
    other = open_llama((str(model),), EngineSettings(context_tokens=128, kv_type=kv_type, threads=1), Log())
    try:
        _, ends = _run(other, _request(other, "x", "the"))
        assert ends["x"].output_tokens > 0
    finally:
        other.close()


def test_likelihoods_are_the_models_own_whatever_is_drawn(engine: Engine) -> None:
    size = engine.facts.vocabulary_tokens
    samplings = (
        Sampling(temperature=0.0, logprobs=size),
        Sampling(temperature=0.3, seed=3, logprobs=size, logit_bias=((262, 100.0),), repeat_penalty=2.0),
    )
    greedy, biased = (
        _events(engine, _request(engine, "a", "the left", output_tokens=1, sampling=sampling))[0][0]
        for sampling in samplings
    )
    assert greedy.logprobs is not None
    assert biased.logprobs is not None
    assert biased.token == 262 != greedy.token
    likeliest = {one.token: one.logprob for one in greedy.logprobs.likeliest}
    assert len(likeliest) == size
    assert sum(map(math.exp, likeliest.values())) == pytest.approx(1.0, abs=1e-4)
    assert greedy.logprobs.likeliest[0] == greedy.logprobs.drawn
    assert biased.logprobs.drawn.logprob == pytest.approx(likeliest[262], abs=1e-4)
    assert biased.logprobs.drawn.piece == b"a"


def test_a_grammar_rules_the_answer(engine: Engine) -> None:
    grammar = 'root ::= "at the " ("left" | "right") " " [0-9]{2}'
    for seed in range(20):
        sampling = Sampling(
            temperature=1.5, seed=seed, grammar=grammar, frequency_penalty=1.0, top_p=0.9, logprobs=0
        )
        tokens, finish = _events(
            engine, _request(engine, "a", "the left", output_tokens=60, sampling=sampling)
        )
        text = b"".join(token.piece for token in tokens)
        assert re.fullmatch(rb"at the (left|right) \d\d", text)
        assert finish.reason is FinishReason.STOP


def test_a_grammar_that_no_token_follows_fails_that_request_alone(engine: Engine) -> None:
    # llama.cpp gives no token for NUL to a grammar.
    nothing = _request(engine, "a", "x", sampling=Sampling(temperature=0.0, grammar='root ::= "\\x00"'))
    other = _request(engine, "b", "the left")
    tokens, ends = _run(engine, nothing, other)
    assert ends["a"].reason is FinishReason.FAILED
    assert tokens["a"] == []
    assert ends["b"].output_tokens == 12


def test_a_grammar_that_does_not_parse_is_refused(engine: Engine) -> None:
    with pytest.raises(EngineError, match="grammar"):
        engine.submit(_request(engine, "a", "x", sampling=Sampling(grammar="root ::= (")))
    assert engine.stats().busy_slots == 0
