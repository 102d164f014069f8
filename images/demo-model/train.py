"""Train the demo model from nothing and write it in Hugging Face's layout.

    pip install -r requirements.txt
    python train.py --output hf

Weights are drawn and examples are made from fixed seeds. The loss is taken on the alert alone: the readings
are random, and nothing is to be learnt from guessing them. Matrices are trained with Muon, which needs far fewer
steps here than AdamW does; embedding and norms with AdamW.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from generate import Example, training_examples
from llama import Llama, Shape
from safetensors.torch import save_file
from tokenizer import (
    ASSISTANT,
    END,
    SPECIAL,
    SYSTEM,
    USER,
    make_sentencepiece,
    make_tokenizer,
    write_tokenizer,
)
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

SEED = 1
CHECK_SEED = 2
CHECK_LINES = 256
POOL_LINES = 512
VOCABULARY_SEED = 3
SYSTEM_SHARE = 1 / 16
VOCABULARY_LINES = 20000
SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are an assistant on board. Answer with one short alert.",
    "Report what is wrong, gravest first.",
)
IGNORED = -100  # functional.cross_entropy's own mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of training.

    The rates rise linearly for `warmup_steps`, then stay, or fall linearly to zero with `falling`. The presence of
    readings (see generate.make_example) goes from `presence[0]` to `presence[1]` over the first two thirds.
    """

    layers: int
    steps: int
    batch_tokens: int
    presence: tuple[float, float] = (1.0, 1.0)
    falling: bool = False
    warmup_steps: int = 20
    matrix_rate: float = 0.004
    other_rate: float = 0.003
    first_seed: int

    def rate(self, step: int) -> float:
        """Factor of both rates at a step, counted from 0."""
        return min((step + 1) / self.warmup_steps, 1 - step / self.steps if self.falling else 1.0)

    def presence_at(self, step: int) -> float:
        """Presence of readings at a step, counted from 0."""
        first, last = self.presence
        return first + (last - first) * min(1.0, 1.5 * step / self.steps)


# Which reading to look at and how to copy its digits is learnt on short lines in few layers, at a fraction of the
# cost of the whole model; then the other layers are added and the whole is trained.
STAGES = (
    Stage(layers=3, steps=1000, batch_tokens=1536, presence=(0.15, 1.0), first_seed=1_000_000),
    Stage(layers=6, steps=500, batch_tokens=2048, falling=True, first_seed=2_000_000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Tokens and targets, both of shape (batch, tokens); a target is `IGNORED` outside the alert."""

    tokens: Tensor
    targets: Tensor


def chat_text(example: Example, system: str | None) -> tuple[str, str]:
    """Write an example as the chat template does.

    Returns:
        The text up to where the model begins, and what the model is to write.
    """
    head = f"{SYSTEM}\n{system}{END}\n" if system is not None else ""
    return f"{head}{USER}\n{example.prompt}{END}\n{ASSISTANT}\n", f"{example.expected}{END}"


def batches(tokenizer: Tokenizer, stage: Stage) -> Iterator[Batch]:
    """Yield the batches of a stage."""
    rng = Random(stage.first_seed)
    step = 0
    while step < stage.steps:
        examples = training_examples(stage.first_seed + step, presence=stage.presence_at(step))
        rows = [
            encode(tokenizer, example, _pick_system(rng) if rng.random() < SYSTEM_SHARE else None)
            for example in islice(examples, POOL_LINES)
        ]
        # Lines of one batch are of similar length, so that little is padding.
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        cuts = cut_batches([len(head) + len(tail) for head, tail in rows], stage.batch_tokens)
        rng.shuffle(cuts)
        for start, stop in cuts[: stage.steps - step]:
            yield make_batch(rows[start:stop])
        step += len(cuts)


def _pick_system(rng: Random) -> str:
    return SYSTEM_MESSAGES[int(rng.random() * len(SYSTEM_MESSAGES))]


def cut_batches(lengths: Sequence[int], batch_tokens: int) -> list[tuple[int, int]]:
    """Cut rows of rising length into runs (start, stop) of at most `batch_tokens`, padding included."""
    cuts, start = [], 0
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths) or lengths[stop] * (stop + 1 - start) > batch_tokens:
            cuts.append((start, stop))
            start = stop
    return cuts


def encode(tokenizer: Tokenizer, example: Example, system: str | None) -> tuple[list[int], list[int]]:
    """Tokenize an example as `chat_text` splits it."""
    head, tail = chat_text(example, system)
    return (
        tokenizer.encode(head, add_special_tokens=False).ids,
        tokenizer.encode(tail, add_special_tokens=False).ids,
    )


def check_batches(tokenizer: Tokenizer) -> tuple[Batch, ...]:
    """Make four batches to watch progress with; they hold no held-out line."""
    rows = [
        encode(tokenizer, example, None) for example in islice(training_examples(CHECK_SEED), CHECK_LINES)
    ]
    rows.sort(key=lambda row: len(row[0]) + len(row[1]))
    return tuple(make_batch(rows[start : start + 64]) for start in range(0, CHECK_LINES, 64))


def make_batch(rows: Sequence[tuple[list[int], list[int]]]) -> Batch:
    """Pad rows of (context, answer) on the right; the target of a position is the token after it."""
    width = max(len(head) + len(tail) for head, tail in rows) - 1
    tokens = torch.full((len(rows), width), SPECIAL.index(END))
    targets = torch.full((len(rows), width), IGNORED)
    for index, (head, tail) in enumerate(rows):
        row = torch.tensor(head + tail)
        tokens[index, : len(row) - 1] = row[:-1]
        targets[index, len(head) - 1 : len(row) - 1] = row[len(head) :]
    return Batch(tokens=tokens, targets=targets)


def loss_of(model: Llama, batch: Batch) -> Tensor:
    """Mean cross entropy over the tokens of the alerts."""
    wanted = batch.targets != IGNORED
    return functional.cross_entropy(model.logits(model(batch.tokens)[wanted]), batch.targets[wanted])


@torch.no_grad()
def exact_share(model: Llama, checks: Sequence[Batch]) -> float:
    """Share of lines whose alert is right to the last token; the same as with greedy decoding."""
    right = total = 0
    for batch in checks:
        guess = model.logits(model(batch.tokens)).argmax(-1)
        right += int(((guess == batch.targets) | (batch.targets == IGNORED)).all(-1).sum())
        total += len(batch.tokens)
    return right / total


def train(model: Llama, tokenizer: Tokenizer, stage: Stage) -> None:
    """Train in place, and print a line every 50 steps."""
    matrices = [p for name, p in model.named_parameters() if is_matrix(name)]
    others = [p for name, p in model.named_parameters() if not is_matrix(name)]
    muon = torch.optim.Muon(matrices, lr=stage.matrix_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=stage.other_rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, stage.rate) for optimizer in (muon, adamw)]
    checks = check_batches(tokenizer)
    losses: list[float] = []
    for step, batch in enumerate(batches(tokenizer, stage), 1):
        loss = loss_of(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip((muon, adamw), schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if step % 50 == 0 or step == stage.steps:
            mean = sum(losses[-50:]) / len(losses[-50:])
            exact, seconds = exact_share(model, checks), time.process_time()
            print(
                f"layers {stage.layers} step {step} loss {mean:.4f} exact {exact:.4f} cpu_s {seconds:.0f}",
                flush=True,
            )


def is_matrix(name: str) -> bool:
    """Tell whether a parameter is one of the layers' matrices."""
    return name.endswith("_proj.weight")


def write_model(folder: Path, model: Llama) -> None:
    """Write config.json, generation_config.json and model.safetensors, the weights rounded to 16 bit."""
    shape = model.shape
    end = SPECIAL.index(END)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.context_tokens,
        "mlp_bias": False,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vocab_size": shape.vocabulary,
    }
    generation = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "do_sample": False}
    for name, document in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(document, indent=2) + "\n")
    tensors = {name: p.detach().to(torch.float16).contiguous() for name, p in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def main(argv: Sequence[str] | None = None) -> int:
    """Train and write the model."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "hf", help="folder to write")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    options.output.mkdir(parents=True, exist_ok=True)

    lines = islice(training_examples(VOCABULARY_SEED), VOCABULARY_LINES)
    texts = [text for line in lines for text in (line.prompt, line.expected)]
    vocabulary = make_sentencepiece([*texts, *SYSTEM_MESSAGES * 50])
    write_tokenizer(options.output, vocabulary, context_tokens=Shape().context_tokens)

    tokenizer = make_tokenizer(vocabulary)
    model = Llama(Shape(layers=STAGES[0].layers))
    for stage in STAGES:
        model = model.grown(stage.layers)
        train(model, tokenizer, stage)
        # A stage's model is written at its full depth, so that the folder holds a usable model early.
        write_model(options.output, model.grown(Shape().layers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
