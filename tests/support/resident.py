"""A real image's server, run natively where it was unpacked and used to the full: what memory does it take?

1. The image is unpacked; the model's pages are dropped from the page cache, so that the start is a cold one.
2. Its entrypoint starts in it.
3. Every slot is given a prompt and an answer that fill its context together; a model that embeds texts, the longest ones.
4. The kernel tells the most pages that were resident at once, mapped files included (proc(5), VmHWM in status).
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import PoolingType

from tests.support.load import Call, run_calls
from tests.support.tiny_embedder import write_tiny_bert
from tests.support.tiny_gguf import BOS, write_tiny_gguf
from tests.support.unpacked import Unpacked, running_image, unpack_image

_ANSWER_TIMEOUT_S = 900.0
_ANSWER_TOKENS = 24
# The number that keeps prompts apart, BOS, and what is left free at the end.
_MARGIN_TOKENS = 16
# Each is one token of the random models' vocabulary, with the space before it.
_WORDS = ("the", "and", "Obstacle", "ahead", "left", "right", "Battery", "low")


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What a server took.

    Attributes:
        peak_bytes: The most resident memory at any time, start included.
        parts: Resident bytes at the end, by what they are.
    """

    peak_bytes: int
    parts: Mapping[str, int]


def host_variant() -> str:
    """Name the engine variant that this x86 machine loads (ggml-cpu-feats of the variants that images hold)."""
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())  # type: ignore[index]
    if {"avx512f", "avx512_vnni", "avx512vbmi"} <= flags:
        return "icelake"
    if {"avx2", "avx_vnni"} <= flags:
        return "alderlake"
    return "haswell" if "avx2" in flags else "sse42"


def _shape(image: Unpacked) -> tuple[int, int]:
    """Return how many slots there are, and the tokens of each."""
    engine = image.runtime["engine"]
    return engine["slots"], engine["context_tokens"]


def fill_context(image: Unpacked, port: int) -> tuple[int, ...]:
    """Fill every slot's context at the same time, and return the tokens of each.

    Raises:
        AssertionError: An answer is not whole.
    """
    slots, context_tokens = _shape(image)
    length = context_tokens - _ANSWER_TOKENS - _MARGIN_TOKENS
    calls = []
    for slot in range(slots):
        words = random.Random(slot).choices(_WORDS, k=length)
        document = {
            "model": image.model, "prompt": f"{slot} " + " ".join(words), "max_tokens": _ANSWER_TOKENS, "seed": slot,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        calls.append(Call(document=document))
    answers = run_calls(port, calls, clients=slots, still_s=_ANSWER_TIMEOUT_S)
    for answer in answers:
        assert (answer.status, answer.finish) == (200, "length"), answer.describe()
    totals = [re.search(rb'"total_tokens": ?(\d+)', answer.body) for answer in answers]
    tokens = tuple(int(total[1]) for total in totals if total is not None)
    assert len(tokens) == slots, answers[0].describe()
    assert min(tokens) > context_tokens * 0.9, (tokens, context_tokens)
    return tokens


def embed_longest(image: Unpacked, port: int) -> None:
    """Have the longest texts embedded that the server takes, as many as its slots.

    Raises:
        AssertionError: It does not do it.
    """
    slots, context_tokens = _shape(image)
    document = {"model": image.model, "input": [[BOS] * context_tokens] * slots}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_TIMEOUT_S)
    with closing(connection):
        connection.request(
            "POST", "/v1/embeddings", json.dumps(document), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        body = response.read()
    assert response.status == 200, body[:500]
    assert json.loads(body)["usage"]["total_tokens"] == context_tokens * slots


def use_to_the_full(image: Unpacked) -> Used:
    """Start the server cold, fill every slot, and return what memory it took."""
    _drop_pages(image.model_file)
    # What this machine has free is no part of the question.
    settings = {"EDGE_MEMORY_CHECK": "warn", "EDGE_REQUEST_S": 1800}
    with running_image(image, settings) as server:
        embeds = json.loads((image.root / "etc/edgebuild/model.json").read_text("utf-8"))["embeds"]
        (embed_longest if embeds else fill_context)(image, server.port)
        parts = resident_parts(server.pid, image.model_file.name)
        return Used(peak_bytes=_peak_bytes(server.pid), parts=parts)


def resident_parts(pid: int, model_file: str) -> dict[str, int]:
    """Split the resident pages of a process: the model's file, other files, and memory of its own."""
    parts = {"model file": 0, "other files": 0, "own": 0}
    kind = "own"
    for line in Path(f"/proc/{pid}/smaps").read_text("utf-8", "replace").splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            path = fields[5] if len(fields) > 5 else ""
            kind = (
                "model file"
                if path.endswith(f"/{model_file}")
                else "other files"
                if path.startswith("/")
                else "own"
            )
        elif fields[0] == "Rss:":
            parts[kind] += int(fields[1]) * 1024
    return parts


def _peak_bytes(pid: int) -> int:
    """Read the most bytes that a running process had resident at once."""
    status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None, status
    return int(found[1]) * 1024


def _drop_pages(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A model of random weights and how it is served.

    Attributes:
        name: For people.
        quantization: Type that it is made.
        shape: Arguments of `write_tiny_gguf`, or of `write_tiny_bert`.
        context_tokens: Longest sequence of one slot.
        slots: Sequences side by side.
        batch_tokens: Prompt tokens of one step.
        kv_type: Element type of the cache.
        flash_attention: As in a profile.
        is_encoder: Whether the model is a BERT.
    """

    name: str
    quantization: str
    shape: Mapping[str, Any]
    context_tokens: int = 512
    slots: int = 1
    batch_tokens: int = 256
    kv_type: str = "f16"
    flash_attention: str = "auto"
    is_encoder: bool = False

    def profile(self, *, memory: str = "64GiB") -> str:
        """Write a profile for this machine."""
        return (
            f"extends: x86\nschema_version: 1\nname: measured\nmemory: {memory}\nreserve: 0%\ncontext: {self.context_tokens}\n"
            f"batch: {self.batch_tokens}\ncpu: {{variant: {host_variant()}}}\nserver: {{slots: {self.slots}}}\n"
            f"tuning: {{kv_type: {self.kv_type}, flash_attention: {self.flash_attention}}}\n"
        )


# What takes the memory: the model, in the order of the file and in the processor's; cache; scores; vocabulary; and a
# matrix that is held twice. Tensors are large, as those of real models: from Linux 6.18 on, a page that is touched brings
# in its neighbours of up to 2 MiB.
QUICK = Setting(
    name="small",
    quantization="Q4_K_M",
    shape={"dim": 512, "ff": 1536, "layers": 2, "vocabulary_tokens": 4000},
    slots=2,
    context_tokens=256,
)
# The size of the small ones that are used most; the room for logits is what takes the most memory.
QUICK_EMBEDDER = Setting(
    name="embeds texts",
    quantization="Q8_0",
    shape={"dim": 384, "ff": 1536, "heads": 12, "layers": 6, "vocabulary_tokens": 30_000},
    context_tokens=512,
    is_encoder=True,
)
SETTINGS = (
    Setting(
        name="weights as they are, Q8_0",
        quantization="Q8_0",
        shape={"dim": 1024, "ff": 4096, "layers": 8, "vocabulary_tokens": 16000},
        context_tokens=256,
    ),
    Setting(
        name="weights in another order, Q4_K_M",
        quantization="Q4_K_M",
        shape={"dim": 2048, "ff": 8192, "layers": 4, "vocabulary_tokens": 8000},
        context_tokens=256,
    ),
    Setting(
        name="cache of f16, 4 slots",
        quantization="Q4_K_M",
        shape={"dim": 512, "ff": 512, "layers": 8, "vocabulary_tokens": 1000, "kv_heads": 8},
        context_tokens=1024,
        slots=4,
    ),
    Setting(
        name="cache of q8_0",
        quantization="Q4_K_M",
        shape={"dim": 512, "ff": 512, "layers": 8, "vocabulary_tokens": 1000, "kv_heads": 8},
        context_tokens=2048,
        slots=2,
        kv_type="q8_0",
    ),
    Setting(
        name="no flash attention",
        quantization="Q8_0",
        shape={"dim": 512, "ff": 512, "layers": 1, "vocabulary_tokens": 1000},
        context_tokens=4096,
        batch_tokens=512,
        flash_attention="off",
    ),
    Setting(
        name="vocabulary of 128 000",
        quantization="Q4_K_M",
        shape={"dim": 256, "ff": 512, "layers": 2, "vocabulary_tokens": 128_000},
        context_tokens=256,
        slots=4,
    ),
    Setting(
        name="embeddings are the output matrix, Q4_0",
        quantization="Q4_0",
        shape={"dim": 512, "ff": 1024, "layers": 2, "vocabulary_tokens": 64_000, "is_tied": True},
        context_tokens=256,
    ),
    Setting(
        name="embeds texts, encoder without flash attention",
        quantization="Q4_K_M",
        shape={"dim": 1024, "ff": 4096, "heads": 16, "layers": 4, "vocabulary_tokens": 4000},
        context_tokens=512,
        flash_attention="off",
        is_encoder=True,
    ),
    Setting(
        name="embeds texts, decoder",
        quantization="Q8_0",
        shape={"dim": 512, "ff": 1536, "layers": 4, "vocabulary_tokens": 32_000, "pooling": PoolingType.LAST},
        context_tokens=512,
        slots=2,
    ),
)


def build_image(
    setting: Setting,
    folder: Path,
    *,
    build: Callable[..., object],
    memory: str = "64GiB",
    more: str = "",
) -> Unpacked:
    """Make the model, build an image with it as a user does, and unpack that.

    Args:
        setting: What to build.
        folder: Empty folder.
        build: Runs `edgebuild image` with further arguments.
        memory: Memory of the profile.
        more: What else stands in the profile, such as what may be chosen; then the type is the profile's.
    """
    model, profile, layout = folder / "random.gguf", folder / "measured.yaml", folder / "layout"
    if not model.exists():
        write = write_tiny_bert if setting.is_encoder else write_tiny_gguf
        write(model, context_tokens=setting.context_tokens, **setting.shape)
    profile.write_text(setting.profile(memory=memory) + more)
    kind = () if more else ("--quantization", setting.quantization)
    build("--profile", profile, "--model", model, "--no-test", "--output", layout, *kind)
    image = unpack_image(layout, folder / "root")
    shutil.rmtree(layout)
    return image
