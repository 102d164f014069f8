"""The bare decode loop (decode_loop.py) as a process inside the image, asked in turn with the servers."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.server.answers import Asked
from tests.support.unpacked import Unpacked

BARE_LOOP = "bare decode loop, same library"
_PLACE = "decode_loop.py"


class Loop:
    """The running loop."""

    name = BARE_LOOP

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._read()

    def ask(self, asked: Asked, *, seed: int) -> float:
        """Have one answer made; return tokens per second, with the prompt's time in it."""
        assert self._process.stdin is not None
        print(json.dumps(asked.document("", seed * 100)), file=self._process.stdin, flush=True)
        return asked.output_tokens / float(self._read()["seconds"])

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the bare decode loop ended; see the messages above")
        return json.loads(line)


@contextmanager
def bare_loop(image: Unpacked, *, context_tokens: int, threads: int) -> Iterator[Loop]:
    """Start the loop."""
    script = Path(__file__).with_name("decode_loop.py").read_text("utf-8")
    (image.root / _PLACE).write_text(script, "utf-8")
    argv = [
        *image.argv[: image.argv.index("-m")], f"/{_PLACE}", image.runtime["engine"]["library_dir"],
        image.runtime["model"]["files"][0], str(threads), str(context_tokens),
    ]  # fmt: skip
    process = subprocess.Popen(
        image.wrapped(argv),
        env=image.variables({}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Loop(process)
        finally:
            process.kill()
