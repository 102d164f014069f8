"""Asks llama.cpp how large it makes the cache and the compute buffer of a context, without computing anything.

Called as `llama_buffers.py MODEL CONTEXT,SLOTS,BATCH,KV_TYPE,on|off…` with the package `llama_cpp` on PYTHONPATH. Writes
a line for each, in MiB: "kv 16.00 compute 17.01". With SLOTS 0 the context is one for passes of whole texts.
"""

import ctypes
import os
import re
import sys

_SIZE = re.compile(r"CPU (KV|compute) buffer size = +([0-9.]+) MiB")


def main(model: str, settings: list[str]) -> None:
    """Make one context after the other, as edgeserve does."""
    from llama_cpp import llama_cpp

    said: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
    def on_log(_level: int, text: bytes, _data: object) -> None:
        said.append(text.decode(errors="replace"))

    llama_cpp.llama_log_set(on_log, ctypes.c_void_p(0))
    folder = f"{os.path.dirname(llama_cpp.__file__)}/lib"  # noqa: PTH120 - this program imports little
    ggml = ctypes.CDLL(f"{folder}/libggml.so")
    ggml.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
    ggml.ggml_backend_load_all_from_path(folder.encode())
    llama_cpp.llama_backend_init()
    loaded = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
    for setting in settings:
        context, slots, batch, kv_type, flash = setting.split(",")
        params = llama_cpp.llama_context_default_params()
        if int(slots):
            params.n_ctx, params.n_seq_max = int(context) * int(slots), int(slots)
            params.n_batch, params.n_ubatch = int(batch), min(int(batch), 512)
            params.n_outputs_max = int(slots)
        else:
            params.n_ctx = params.n_batch = params.n_ubatch = int(context)
            params.n_seq_max, params.embeddings = 16, True
        params.type_k = params.type_v = getattr(llama_cpp, f"GGML_TYPE_{kv_type.upper()}")
        kind = "AUTO" if flash == "on" else "DISABLED"
        params.flash_attn_type = getattr(llama_cpp, f"LLAMA_FLASH_ATTN_TYPE_{kind}")
        params.kv_unified = not int(slots)
        said.clear()
        made = llama_cpp.llama_init_from_model(loaded, params)
        sizes = dict(_SIZE.findall("".join(said)))
        sys.stdout.write(f"kv {sizes.get('KV', '0.00')} compute {sizes['compute']}\n")
        llama_cpp.llama_free(made)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
