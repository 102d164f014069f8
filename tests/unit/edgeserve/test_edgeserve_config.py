import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgeserve.config import ConfigError, load_config, render_table
from edgeserve.settings import Runtime, settings

_SMALL: dict[str, Any] = {"schema_version": 1, "model": {"name": "m", "files": ["/models/m.gguf"]}}
# The document of the contract between edgebuild and the image.
_WHOLE: dict[str, Any] = {
    "schema_version": 1,
    "profile": "pi4",
    "model": {"name": "m", "files": ["/models/m.gguf"], "card": "/etc/edgebuild/model.json"},
    "engine": {
        "name": "llama.cpp",
        "library_dir": "/opt/edge/engine/llama_cpp/lib",
        "context_tokens": 2048,
        "batch_tokens": 512,
        "slots": 1,
        "threads": 4,
        "kv_type": "f16",
        "cpu_variant": "armv8.0_1",
    },
    "server": {
        "host": "0.0.0.0",
        "port": 8080,
        "limits": {
            "body_bytes": 1048576,
            "prompt_tokens": 1536,
            "output_tokens": 512,
            "request_s": 120,
            "queue": 16,
        },
    },
    "memory": {"need_bytes": 123, "budget_bytes": 456},
}


def _load(
    folder: Path, document: object, environment: Mapping[str, str] | None = None, **flags: str
) -> Runtime:
    path = folder / "runtime.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return load_config({"PATH": "/bin", "EDGE_RUNTIME": str(path), **(environment or {})}, flags)


def _faults(
    folder: Path, document: object, environment: Mapping[str, str] | None = None, **flags: str
) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        _load(folder, document, environment, **flags)
    return caught.value.faults


def test_reads_the_contracts_document(tmp_path: Path) -> None:
    runtime = _load(tmp_path, _WHOLE)
    assert runtime.engine.cpu_variant == "armv8.0_1"
    assert runtime.server.limits.queue == 16
    assert runtime.model.files == ("/models/m.gguf",)


def test_everything_else_has_a_default(tmp_path: Path) -> None:
    runtime = _load(tmp_path, _SMALL)
    assert (runtime.server.port, runtime.engine.slots, runtime.server.limits.request_s) == (8080, 1, 120)


def test_the_order_is_file_environment_flags(tmp_path: Path) -> None:
    document = _SMALL | {"server": {"port": 1, "host": "::1"}, "engine": {"threads": 1}}
    runtime = _load(tmp_path, document, {"EDGE_PORT": "2", "EDGE_THREADS": "2"}, EDGE_PORT="3")
    assert (runtime.server.port, runtime.engine.threads, runtime.server.host) == (3, 2, "::1")


def test_paths_from_the_environment_are_separated_by_colons(tmp_path: Path) -> None:
    assert _load(tmp_path, _SMALL, {"EDGE_MODEL_FILES": "/a:/b"}).model.files == ("/a", "/b")


def test_an_overridden_fault_is_no_fault(tmp_path: Path) -> None:
    assert _load(tmp_path, _SMALL | {"server": {"port": "x"}}, {"EDGE_PORT": "9"}).server.port == 9


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"schema_version": 2}, "schema_version: must be from 1 to 1, not 2"),
        ({"schema_version": "1"}, 'schema_version: must be a whole number, not "1"'),
        ({"profiel": "x"}, "profiel: unknown key (did you mean profile?)"),
        ({"model": []}, "model: must be an object"),
        ({"model": {"files": ["/m"]}}, "model.name: missing"),
        ({"model": {"name": "m", "files": []}}, "model.files: must be a list of paths, not []"),
        ({"model": {"name": "m", "files": ["/m", 1]}}, 'model.files: must be a list of paths, not ["/m", 1]'),
        ({"engine": {"kv_type": "q9"}}, 'engine.kv_type: must be one of f16, q8_0, q4_0, not "q9"'),
        ({"engine": {"name": "onnx"}}, 'engine.name: must be one of llama.cpp, not "onnx"'),
        ({"engine": {"threads": True}}, "engine.threads: must be a whole number, not true"),
        ({"engine": {"slots": 65}}, "engine.slots: must be from 1 to 64, not 65"),
        ({"server": {"limits": {"queue": -1}}}, "server.limits.queue: must be from 0 to 4096, not -1"),
    ],
)
def test_a_fault_names_file_key_and_value(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    assert _faults(tmp_path, _SMALL | change) == (f"{tmp_path}/runtime.json: {fault}",)


def test_all_faults_come_together(tmp_path: Path) -> None:
    faults = _faults(tmp_path, {"a": 1, "engine": {"b": 1, "slots": 0}}, {"EDGE_PROT": "1"}, EDGE_PORT="x")
    assert len(faults) == 7


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"engine": {"context_tokens": 512}, "server": {"limits": {"prompt_tokens": 513, "output_tokens": 8}}},
         "server.limits.prompt_tokens"),
        ({"engine": {"context_tokens": 512}, "server": {"limits": {"prompt_tokens": 8, "output_tokens": 512}}},
         "server.limits.output_tokens"),
        ({"engine": {"batch_tokens": 16, "slots": 17}}, "engine.batch_tokens"),
        ({"engine": {"kv_type": "q8_0", "flash_attention": "off"}}, "engine.flash_attention"),
        ({"engine": {"past_context": "shift", "keep_tokens": 1024}}, "engine.keep_tokens"),
        ({"server": {"limits": {"window_tokens": 99, "window_stride_tokens": 100}}},
         "server.limits.window_stride_tokens"),
        ({"server": {"audit": {"enabled": True}}}, "server.audit.enabled"),
        ({"server": {"audit": {"file_bytes": 1 << 20, "total_bytes": 1 << 20}}}, "server.audit.total_bytes"),
    ],
)  # fmt: skip
def test_keys_that_contradict_each_other(tmp_path: Path, change: dict[str, Any], key: str) -> None:
    (fault,) = _faults(tmp_path, _SMALL | change)
    assert fault.startswith(key)


def test_with_shift_an_answer_may_be_longer_than_the_context(tmp_path: Path) -> None:
    document = _SMALL | {"engine": {"past_context": "shift"}, "server": {"limits": {"output_tokens": 9999}}}
    assert _load(tmp_path, document).server.limits.output_tokens == 9999


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "{}\x00"])
def test_what_is_no_document(tmp_path: Path, text: str) -> None:
    (fault, *_) = _faults(tmp_path, text)
    assert fault.startswith(f"{tmp_path}/runtime.json: ")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"/gone: cannot be read: No such file"):
        load_config({"EDGE_RUNTIME": f"{tmp_path}/gone"}, {})


def test_an_override_inside_a_broken_section_is_still_a_fault(tmp_path: Path) -> None:
    assert _faults(tmp_path, _SMALL | {"server": 5}, {"EDGE_PORT": "1"}) == (
        f"{tmp_path}/runtime.json: server: must be an object",
    )


def test_names_are_unique_and_the_table_has_all() -> None:
    variables = [setting.variable for setting in settings() if setting.variable]
    assert len(set(variables)) == len(variables)
    table = render_table()
    assert all(f"| `{setting.key}` |" in table for setting in settings())


def test_the_readme_holds_the_table() -> None:
    readme = Path(__file__).parents[3] / "images" / "server" / "README.md"
    assert readme.read_text().endswith("\n\n" + render_table())
