"""Asks llama.cpp which type each tensor of a model would get, for many types at once; nothing is quantised.

Called as `dry_quantize.py MODEL FILE_TYPE…` with the package `llama_cpp` on PYTHONPATH. Writes a JSON object to standard
output: by "FILE_TYPE" and "FILE_TYPE+matrix" the types of those tensors that change, by name, or null where llama.cpp
refuses. It stays a program of its own, since the library may end the process.
"""

import ctypes
import json
import re
import sys

_TENSOR = re.compile(
    r"\[ *[0-9]+/ *[0-9]+\] (\S+) +- \[.*?\], type = +\S+ size = +[0-9.]+ MiB (?:-> +[0-9.]+ MiB \((\S+)\))?"
)


def main(model: str, file_types: list[int]) -> None:
    """Ask for all of them and print the answers."""
    from llama_cpp import llama_cpp

    said: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
    def on_log(_level: int, text: bytes, _data: object) -> None:
        said.append(text.decode())

    llama_cpp.llama_log_set(on_log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    empty_matrix = (llama_cpp.llama_model_imatrix_data * 1)()
    answers: dict[str, dict[str, str] | None] = {}
    for file_type in file_types:
        for has_matrix in (False, True):
            parameters = llama_cpp.llama_model_quantize_default_params()
            parameters.ftype, parameters.dry_run, parameters.nthread = file_type, True, 1
            if has_matrix:
                parameters.imatrix = empty_matrix
            said.clear()
            status = llama_cpp.llama_model_quantize(model.encode(), b"", ctypes.byref(parameters))
            found = {match[1]: match[2].upper() for match in _TENSOR.finditer("".join(said)) if match[2]}
            answers[f"{file_type}{'+matrix' if has_matrix else ''}"] = found if status == 0 else None
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], [int(text) for text in sys.argv[2:]])
