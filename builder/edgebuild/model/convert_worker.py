"""Runs llama.cpp's converter in a process of its own, and holds it to reading data.

Called as `convert_worker.py check FOLDER` or `convert_worker.py convert FOLDER FILE` by the Python of torch, with the
converter's folder on PYTHONPATH; it imports nothing of edgebuild. Code that comes with a checkpoint is never run, no
pickle is opened, no program started, no connection made. Progress goes to standard output: "total BYTES", "done BYTES", or
words. The last line of standard error is the reason of a failure. Exit codes: 0 done, 1 the converter refuses, 3 the disk is full.
"""

import errno
import json
import logging
import runpy
import shutil
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

_REFUSED = 1
_DISK_FULL = 3
_SHOWN_EVERY_S = 0.2
_NO_SPACE_BYTES = 1 << 20
_FORBIDDEN = (
    "socket.connect",
    "socket.sendto",
    "pickle.find_class",
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
    "os.system",
)


class RefusedError(Exception):
    """What the checkpoint asks for is not done."""


class Bar:
    """Stands in for the converter's progress bar."""

    def __init__(self, *_: object, total: int | None = None, **__: object) -> None:
        self._done_bytes = 0
        self._told_s = 0.0
        self.total = total
        if total:
            say(f"total {total}")

    def update(self, count: int = 1) -> None:
        """Tell how many bytes are written, a few times a second."""
        self._done_bytes += count
        now_s = time.monotonic()
        if now_s - self._told_s > _SHOWN_EVERY_S or self._done_bytes == self.total:
            say(f"done {self._done_bytes}")
            self._told_s = now_s

    def set_description(self, *_: object, **__: object) -> None:
        """Say nothing."""

    def reset(self, *_: object, **__: object) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Say nothing."""


def say(text: str) -> None:
    """Tell of the progress."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def forbid(event: str, arguments: tuple[object, ...]) -> None:
    """Refuse what reading data does not need; an audit hook."""
    if event in _FORBIDDEN:
        raise RefusedError(f"it wants to do what a checkpoint must not ({event} {arguments[:1]})")


def hold_to_data(folder: Path) -> None:
    """Keep transformers and torch from running what comes with the checkpoint.

    The converter asks for tokenizers with trust_remote_code=True (conversion/base.py, get_vocab_base).
    """
    import torch  # type: ignore[import-not-found, unused-ignore] # noqa: PLC0415 - of the environment that this runs in
    import transformers  # type: ignore[import-not-found, unused-ignore] # noqa: PLC0415 - as above

    for kind in (transformers.AutoTokenizer, transformers.AutoConfig):
        _never_trust(kind, folder)

    def never_load(*_: object, **__: object) -> NoReturn:
        raise RefusedError("it holds a pickle, which is never opened")

    torch.load = never_load
    sys.addaudithook(forbid)


def _never_trust(kind: Any, folder: Path) -> None:
    original = kind.from_pretrained

    def from_pretrained(*arguments: Any, **options: Any) -> Any:
        options["trust_remote_code"] = False
        try:
            return original(*arguments, **options)
        except Exception as error:
            if kind.__name__ == "AutoTokenizer" and brings_code(folder):
                raise RefusedError(
                    "its tokenizer needs code that comes with the checkpoint, which is never run"
                ) from error
            raise

    kind.from_pretrained = from_pretrained


def brings_code(folder: Path) -> bool:
    """Say whether the tokenizer's settings name code of their own."""
    try:
        return "auto_map" in json.loads((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):
        return False


def check(folder: Path) -> None:
    """Refuse an architecture that the converter does not know."""
    import conversion  # type: ignore[import-not-found, unused-ignore] # noqa: PLC0415 - the converter's, found by PYTHONPATH

    settings = conversion.ModelBase.load_hparams(folder, False)  # noqa: FBT003 - the converter's own signature
    architecture = conversion.get_model_architecture(settings, conversion.ModelType.TEXT)
    conversion.get_model_class(architecture)


def convert(folder: Path, file: Path) -> None:
    """Convert a folder into a file, whose name is a template of the converter's."""
    import conversion  # type: ignore[import-not-found, unused-ignore] # noqa: PLC0415 - as above
    import tqdm  # type: ignore[import-untyped, unused-ignore] # noqa: PLC0415 - of torch's Python

    check(folder)
    tqdm.tqdm = Bar
    script = Path(conversion.__file__).parents[1] / "convert_hf_to_gguf.py"
    sys.argv = [str(script), str(folder), "--outtype", "auto", "--outfile", str(file)]
    runpy.run_path(str(script), run_name="__main__")


def main(arguments: list[str]) -> int:
    """Do what is asked and return the exit code."""
    logging.basicConfig(level=logging.INFO)
    task, folder, *rest = arguments
    say("loading torch")
    try:
        hold_to_data(Path(folder))
        say("reading")
        if task == "check":
            check(Path(folder))
        else:
            convert(Path(folder), Path(rest[0]))
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return _DISK_FULL if is_disk_full(error, rest) else 2
    except (MemoryError, KeyboardInterrupt) as error:
        sys.stderr.write(f"{type(error).__name__}\n")
        return 2
    except Exception as error:
        logging.getLogger("convert").info("where it happened", exc_info=True)
        sys.stderr.write(f"{reason_of(error)}\n")
        return _REFUSED
    return 0


def is_disk_full(error: OSError, files: list[str]) -> bool:
    """Say whether there was no space; numpy's short writes carry no error number."""
    if error.errno is not None:
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    return bool(files) and shutil.disk_usage(Path(files[0]).parent).free < _NO_SPACE_BYTES


def reason_of(error: Exception) -> str:
    """Say in one line why the converter refuses."""
    text = " ".join(str(error).split())
    if isinstance(error, RefusedError):
        return text
    # Of a KeyError or an assertion the text alone says little.
    return (
        text
        if isinstance(error, NotImplementedError | ValueError) and text
        else f"{type(error).__name__}: {text}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
