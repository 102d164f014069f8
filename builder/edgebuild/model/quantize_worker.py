"""Runs llama_model_quantize in a process of its own, so that a crash of the library ends only this process.

Called as `quantize_worker.py SOURCE DESTINATION FILE_TYPE THREADS` with the package `llama_cpp` on PYTHONPATH; it
imports nothing of edgebuild. Progress goes to standard output, one line a tensor; the last line of standard error
is the reason of a failure. Exit codes: 0 done, 1 the library refused.
"""

import ctypes
import re
import sys

_TENSOR_LINE = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]\s+(\S+)")
_ERROR_LEVELS = {4}


def main(source: str, destination: str, file_type: int, threads: int) -> int:
    """Quantise `source` into `destination` and return the exit code."""
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
    status = llama_cpp.llama_model_quantize(source.encode(), destination.encode(), ctypes.byref(parameters))
    if status != 0:
        sys.stderr.write((errors[-1] if errors else f"llama_model_quantize returned {status}") + "\n")
    return 0 if status == 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
