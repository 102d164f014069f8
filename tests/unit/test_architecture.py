"""The structure holds: who imports whom, what no code may do, and that lint and types are clean."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "builder" / "edgebuild"
# docs/design.md, "The tree": a module imports only from ranks below its own; a package freely inside itself.
RANKS = {
    "errors": 0,
    "canonical": 1, "process": 1, "process_guard": 1, "data": 1, "progress": 1, "host": 1, "documents": 1,
    "stopwatch": 1, "network": 1, "beside": 1,
    "quantities": 1,
    "oci": 2, "pieces": 2,
    "profile": 3, "tensor_types": 3, "quantization": 3, "profile_engine": 3, "profile_server": 3, "gguf": 3, "gguf_types": 3,
    "gguf_shards": 3, "gguf_joined": 3, "model_spec": 3, "lock": 3, "gates": 3,
    "memory": 4, "fit": 4, "choice": 4, "quality": 4, "plan": 4, "contents": 4,
    "registry": 5, "artifacts": 5, "sandbox": 5, "unpacking": 5, "grpc_health": 5,
    "model": 6, "engine": 6, "signing": 6, "smoke": 6, "bench": 6,
    "locking": 7, "resolving": 7, "request": 7, "project": 7, "judging": 7, "preparing": 7, "layering": 7,
    "pipeline": 8,
    "cli": 9,
}  # fmt: skip
# Inside a rank these stand in this order.
ORDER_INSIDE = (
    ("process", "progress"),
    ("gguf_types", "gguf"),
    ("gguf_types", "model_spec"),
    ("gguf", "gguf_shards"),
    ("gguf", "gguf_joined"),
    ("gguf_shards", "gguf_joined"),
    ("gguf", "model_spec"),
    ("gguf_shards", "model_spec"),
    ("gguf", "tensor_types"),
    ("gguf_types", "tensor_types"),
    ("tensor_types", "model_spec"),
    ("tensor_types", "quantization"),
    ("profile_engine", "profile"),
    ("profile_server", "profile"),
    ("memory", "fit"),
    ("fit", "choice"),
    ("choice", "plan"),
    ("fit", "plan"),
    ("fit", "contents"),
    ("resolving", "locking"),
    ("request", "judging"),
    ("request", "preparing"),
    ("judging", "preparing"),
    ("request", "layering"),
    ("preparing", "layering"),
    ("gates", "profile"),
    ("gates", "project"),
    ("quality", "plan"),
    ("quality", "contents"),
    ("plan", "contents"),
    ("errors", "data"),
)
# edgeserve and edgebuild meet in runtime.json alone; edgeverify serves both and knows neither; edgetorch runs in another Python.
STANDALONE = {
    "edgeserve": ROOT / "images/server/edgeserve",
    "edgeverify": ROOT / "images/verify/edgeverify",
    "edgetorch": ROOT / "builder/edgetorch",
}


def modules(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*.py")))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_module_has_a_rank() -> None:
    assert {room(path) for path in modules(PACKAGE)} - {"__init__"} == set(RANKS)


def test_imports_go_down_only() -> None:
    faults = []
    for path in modules(PACKAGE):
        here = room(path)
        for line, name in imported(path):
            there = name.split(".")[1] if name.startswith("edgebuild.") else ""
            if there not in RANKS or here in {there, "__init__"}:
                continue
            if RANKS[there] > RANKS[here] or (
                RANKS[there] == RANKS[here] and (there, here) not in ORDER_INSIDE
            ):
                faults.append(
                    f"{path.relative_to(ROOT)}:{line}: {here} (rank {RANKS[here]}) imports {there} (rank {RANKS[there]})"
                )
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", STANDALONE)
def test_what_runs_elsewhere_knows_nothing_of_the_builder(name: str) -> None:
    faults = [
        f"{path}:{line}: {module}"
        for path in modules(STANDALONE[name])
        for line, module in imported(path)
        if module.startswith("edgebuild")
    ]
    assert not faults, "\n".join(faults)


def test_edgebuild_does_without_torch() -> None:
    foreign = {"torch", "transformers", "safetensors", "edgetorch"}
    faults = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in modules(PACKAGE)
        if not path.name.endswith("_worker.py")
        for line, module in imported(path)
        if module.split(".")[0] in foreign
    ]
    assert not faults, "\n".join(faults)


def test_edgeverify_needs_only_the_standard_library_and_cryptography() -> None:
    allowed = {*sys.stdlib_module_names, "cryptography", "edgeverify"}
    faults = [
        f"{path}:{line}: {module}"
        for path in modules(STANDALONE["edgeverify"])
        for line, module in imported(path)
        if module.split(".")[0] not in allowed
    ]
    assert not faults, "\n".join(faults)


def below_cli() -> Iterator[tuple[Path, ast.AST]]:
    """Every node of the code that is a library: not the command line, not what runs as a program of its own."""
    for path in modules(PACKAGE):
        if room(path) not in {"cli", "process_guard"} and not path.name.endswith("_worker.py"):
            yield from ((path, node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def test_clock_and_environment_enter_in_cli_only() -> None:
    """Monotonic time is free; the wall clock and the environment are facts of a Host."""
    forbidden = {
        "time.time",
        "datetime.now",
        "datetime.utcnow",
        "os.environ",
        "os.getenv",
        "Path.cwd",
        "os.getcwd",
    }
    faults = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
        for path, node in below_cli()
        if isinstance(node, ast.Attribute) and ast.unparse(node) in forbidden
    ]
    assert not faults, "\n".join(faults)


def test_nothing_prints_or_exits_below_cli() -> None:
    forbidden = {"print", "exit", "quit", "sys.exit", "os._exit"}
    faults = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node.func)}"
        for path, node in below_cli()
        if isinstance(node, ast.Call) and ast.unparse(node.func) in forbidden
    ]
    assert not faults, "\n".join(faults)


def test_help_imports_nothing_heavy() -> None:
    program = "import sys; from edgebuild.cli import cli; cli(['--help'], standalone_mode=False); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {
        "pydantic",
        "yaml",
        "httpx2",
        "huggingface_hub",
        "rich",
        "cryptography",
        "nacl",
        "docker",
        "jinja2",
    } & set(done.stderr.split())
    assert not heavy


def test_no_file_is_too_long() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in (PACKAGE, *STANDALONE.values())
        for path in modules(folder)
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long
