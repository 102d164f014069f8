"""ggml over ctypes: the few functions that are needed, with their types; tensors and contexts are addresses."""

import ctypes
from collections.abc import Callable
from typing import Any

from edgeserve.engine.library import Library

F32, F16 = 0, 1  # enum ggml_type, ggml.h
# Headers of tensors and of graphs.
_HEADERS_BYTES = 1 << 20


class InitParams(ctypes.Structure):
    """`struct ggml_init_params` of ggml.h."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Plan(ctypes.Structure):
    """`struct ggml_cplan` of ggml-cpu.h."""

    _fields_ = (
        ("work_size", ctypes.c_size_t),
        ("work_data", ctypes.c_void_p),
        ("n_threads", ctypes.c_int),
        ("threadpool", ctypes.c_void_p),
        ("abort_callback", ctypes.c_void_p),
        ("abort_callback_data", ctypes.c_void_p),
        ("use_ref", ctypes.c_bool),
    )


class Tensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


class Ggml:
    """Functions of ggml.h and ggml-cpu.h, without their prefix."""

    def __init__(self, library: Library) -> None:
        """Find them in the libraries that are loaded."""
        base = ctypes.CDLL(str(library.directory / "libggml-base.so"))
        cpu = ctypes.CDLL(str(library.directory / f"libggml-cpu-{library.cpu_variant}.so"))
        address, number, whole = ctypes.c_void_p, ctypes.c_float, ctypes.c_int64

        def declare(
            name: str, result: Any, *arguments: Any, source: ctypes.CDLL = base
        ) -> Callable[..., Any]:
            function = getattr(source, f"ggml_{name}")
            function.restype, function.argtypes = result, list(arguments)
            return function  # type: ignore[no-any-return]

        self._init = declare("init", address, InitParams)
        self.free = declare("free", None, address)
        self.new_tensor_2d = declare("new_tensor_2d", address, address, ctypes.c_int, whole, whole)
        self.soft_max = declare("soft_max", address, address, address)
        self.clamp = declare("clamp", address, address, address, number, number)
        self.log = declare("log", address, address, address)
        self.argmax = declare("argmax", address, address, address)
        self.cast = declare("cast", address, address, address, ctypes.c_int)
        self.add = declare("add", address, address, address, address)
        self.sub = declare("sub", address, address, address, address)
        self.mul = declare("mul", address, address, address, address)
        self.sqr = declare("sqr", address, address, address)
        self.transpose = declare("transpose", address, address, address)
        self.cont = declare("cont", address, address, address)
        self.sum_rows = declare("sum_rows", address, address, address)
        self.get_data = declare("get_data", address, address)
        self.op_desc = declare("op_desc", ctypes.c_char_p, address)
        self.tensor_overhead = declare("tensor_overhead", ctypes.c_size_t)
        self._new_graph = declare("new_graph", address, address)
        self._expand = declare("build_forward_expand", None, address, address)
        self._plan = declare("graph_plan", Plan, address, ctypes.c_int, address, source=cpu)
        self._compute = declare("graph_compute", ctypes.c_int, address, ctypes.POINTER(Plan), source=cpu)

    def init(self, data_bytes: int) -> int:
        """Make a context with room for tensors of so many bytes."""
        made: int = self._init(InitParams(data_bytes + _HEADERS_BYTES, None, no_alloc=False))
        return made

    def graph(self, context: int, *results: int) -> int:
        """Make a graph that computes tensors."""
        made: int = self._new_graph(context)
        for result in results:
            self._expand(made, result)
        return made

    def compute(self, graph: int, *, threads: int) -> None:
        """Compute a graph.

        Raises:
            MemoryError: ggml could not.
        """
        plan = self._plan(graph, threads, None)
        work = ctypes.create_string_buffer(plan.work_size)
        plan.work_data = ctypes.addressof(work)
        if (status := self._compute(graph, ctypes.byref(plan))) != 0:
            raise MemoryError(f"ggml could not compute: status {status}")
