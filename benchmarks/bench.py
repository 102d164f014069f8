"""What every group of benchmarks works with: the command, a folder, models of any size, copies of the checkout."""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.constants import LlamaFileType

from benchmarks.measuring import Run, measure
from benchmarks.surroundings import ROOT

# What changes a build, or is somebody's own.
_PERSONAL = (
    "EDGEBUILD_",
    "COSIGN_",
    "DOCKER_",
    "SOURCE_DATE_EPOCH",
    "PYTHON",
    "TERM",
    "COLUMNS",
    "MAKE",
    "MFLAGS",
)
_BLOCK_BYTES = 16 << 20
_WIDTH = 4096
_LAUNCHER = """\
import sys
sys.path[:0] = [{builder!r}, {verify!r}]
from edgebuild.cli import main
main()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One run of the benchmarks.

    Attributes:
        folder: Empty folder of the group, with room for several models; removed afterwards.
        cache: The store that builds use.
        lock: The lock file that builds use.
        model: The 16-bit model that is quantised and asked, as `--model` takes it.
        quick: Whether sizes and rounds are small: to see that everything works, not to measure.
        program: The command, as words.
    """

    folder: Path
    cache: Path
    lock: Path
    model: str
    quick: bool
    program: tuple[str, ...] = (os.fspath(Path(sys.executable).with_name("edgebuild")),)

    def rounds(self, wanted: int) -> int:
        """How often something is measured."""
        return 1 if self.quick else wanted

    def size(self, wanted_bytes: int) -> int:
        """How large something is made."""
        return wanted_bytes // 16 if self.quick else wanted_bytes

    def environment(self) -> dict[str, str]:
        """The whole environment of the command: this one's without what is personal."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_PERSONAL)}
        (self.folder / "docker").mkdir(exist_ok=True)
        own = {"EDGEBUILD_CACHE": self.cache, "DOCKER_CONFIG": self.folder / "docker"}
        return kept | {"LANG": "C.UTF-8"} | {name: os.fspath(path) for name, path in own.items()}

    def edgebuild(self, *arguments: str | Path, watch: bool = False) -> Run:
        """Run the command in the folder."""
        return measure(
            (*self.program, *arguments), cwd=self.folder, environment=self.environment(), watch=watch
        )

    def image(self, *arguments: str | Path, watch: bool = False) -> Run:
        """Run `edgebuild image` with the lock."""
        return self.edgebuild("image", "--lock", self.lock, "--json", *arguments, watch=watch)

    def of_checkout(self, checkout: Path) -> "Bench":
        """The same with the builder, recipes and profiles of another checkout."""
        code = _LAUNCHER.format(
            builder=os.fspath(checkout / "builder"), verify=os.fspath(checkout / "images/verify")
        )
        return replace(self, program=(sys.executable, "-c", code))

    def copy_checkout(self, name: str = "checkout") -> Path:
        """Copy what the builder consists of, to change it."""
        target = self.folder / name
        for part in ("builder", "images", "profiles", "templates"):
            shutil.copytree(ROOT / part, target / part)
        return target


def document(run: Run) -> Any:
    """The JSON document that a run of the command wrote."""
    return json.loads(run.stdout)


def layers_by_role(image: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The layers of an image of the document, by role."""
    return {layer["role"]: layer for layer in image["layers"]}


def change_server(checkout: Path, word: str) -> None:
    """Change a comment of the server's code."""
    path = checkout / "images/server/edgeserve/__init__.py"
    path.write_text(path.read_text("utf-8") + f"# changed: {word}\n", "utf-8")


def write_model(path: Path, size_bytes: int, *, vocabulary: int = 1000) -> Path:
    """Write a GGUF file with a true header and random weights of type Q8_0, which a build takes as it is.

    Args:
        path: Where to.
        size_bytes: Roughly how long it gets.
        vocabulary: Number of tokens.
    """
    # Q8_0 has 34 bytes for 32 weights.
    rows = max(1, size_bytes // (_WIDTH // 32 * 34) // 32)
    matrix_bytes = rows * _WIDTH // 32 * 34
    writer = GGUFWriter(os.fspath(path), "llama")
    writer.add_name(path.stem)
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(2048)
    writer.add_embedding_length(_WIDTH)
    writer.add_feed_forward_length(_WIDTH)
    writer.add_block_count(1)
    writer.add_head_count(32)
    writer.add_head_count_kv(4)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"token-{number}".encode() for number in range(vocabulary)])
    writer.add_token_scores([-float(number) for number in range(vocabulary)])
    writer.add_token_types([int(TokenType.NORMAL)] * vocabulary)
    for number in range(32):
        writer.add_tensor_info(
            f"blk.0.matrix_{number}.weight",
            (rows, _WIDTH // 32 * 34),
            np.dtype(np.uint8),
            matrix_bytes,
            raw_dtype=GGMLQuantizationType.Q8_0,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    _append_random(path, 32 * (matrix_bytes + -matrix_bytes % 32))
    return path


def _append_random(path: Path, size_bytes: int) -> None:
    """Append bytes that do not compress; a block of them again and again, as gzip looks back 32 KiB only."""
    block = os.urandom(_BLOCK_BYTES)
    with path.open("ab") as file:
        file.write(bytes(-file.tell() % 32))
        while size_bytes > 0:
            size_bytes -= file.write(block[: min(size_bytes, len(block))])
