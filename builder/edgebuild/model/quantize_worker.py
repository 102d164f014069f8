"""Runs llama_model_quantize in a process of its own, so that a crash of the library ends only this process.

Called as `quantize_worker.py SOURCE DESTINATION FILE_TYPE THREADS [MATRIX]` with the package `llama_cpp` on PYTHONPATH; it
imports nothing of edgebuild. Progress goes to standard output, one line a tensor; the last line of standard error
is the reason of a failure. Exit codes: 0 done, 1 the library refused.
"""

import array
import ctypes
import json
import re
import sys
from pathlib import Path
from typing import Any

_TENSOR_LINE = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]\s+(\S+)")
_ERROR_LEVELS = {4}


def main(source: str, destination: str, file_type: int, threads: int, matrix: str = "") -> int:
    """Quantise `source` into `destination`, by the importance matrix in a file if one is named; return the exit code."""
    from llama_cpp import llama_cpp  # noqa: PLC0415 - the folder of the package is known only when this process runs

    errors: list[str] = []
    pending = ""

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
    def on_log(level: int, text: bytes, _data: object) -> None:
        nonlocal pending
        pending += text.decode(errors="replace")
        *lines, pending = pending.split("\n")
        for line in lines:
            if found := _TENSOR_LINE.match(line):
                sys.stdout.write(f"{found[1]}/{found[2]} tensors\n")
                sys.stdout.flush()
            elif level in _ERROR_LEVELS and line.strip():
                errors.append(line.strip())

    llama_cpp.llama_log_set(on_log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type
    parameters.nthread = threads
    kept = _set_matrix(llama_cpp, parameters, matrix) if matrix else ()
    status = llama_cpp.llama_model_quantize(source.encode(), destination.encode(), ctypes.byref(parameters))
    del kept
    if status != 0:
        sys.stderr.write((errors[-1] if errors else f"llama_model_quantize returned {status}") + "\n")
    return 0 if status == 0 else 1


def _set_matrix(llama_cpp: Any, parameters: Any, path: str) -> tuple[Any, ...]:
    """Hand over an importance matrix, and what the file shall say of it, as llama-quantize does.

    Args:
        llama_cpp: The library.
        parameters: `llama_model_quantize_params`.
        path: A line of JSON, then 32-bit numbers.

    Returns:
        What must live until the library is done.
    """
    with Path(path).open("rb") as file:
        head = json.loads(file.readline())
        values = [array.array("f", file.read(4 * count)) for _, count in head["entries"]]
    names = [name.encode() for name, _ in head["entries"]]
    entries = (llama_cpp.llama_model_imatrix_data * (len(names) + 1))()
    for entry, name, numbers in zip(entries, names, values, strict=False):
        entry.name, entry.size = name, len(numbers)
        entry.data = ctypes.cast(numbers.buffer_info()[0], ctypes.POINTER(ctypes.c_float))
    parameters.imatrix = ctypes.cast(entries, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    said = (
        ("file", head["file"].encode()[:127]),
        ("dataset", head["dataset"].encode()[:127]),
        ("entries_count", len(names)),
        ("chunks_count", head["chunks"]),
    )
    overrides = (llama_cpp.llama_model_kv_override * (len(said) + 1))()
    for override, (key, value) in zip(overrides, said, strict=False):
        override.key = f"quantize.imatrix.{key}".encode()
        if isinstance(value, bytes):
            override.tag, override.value.val_str = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR, value
        else:
            override.tag, override.value.val_i64 = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, value
    parameters.kv_overrides = ctypes.cast(overrides, ctypes.POINTER(llama_cpp.llama_model_kv_override))
    return names, values, entries, overrides


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:6]))
