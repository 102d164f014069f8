"""The one file in which edgebuild and the server meet: what the builder writes, the server takes."""

from pathlib import Path

import pytest

from edgebuild.contents import BakedFile, make_contents
from edgebuild.errors import ProfileError
from edgebuild.memory import GRPC_BYTES
from edgebuild.oci.digest import Digest
from edgebuild.oci.layer import Role
from edgebuild.plan import GRPC_FOLDER, STATE_FOLDER, ModelOrigin, ModelSource, make_plan, make_run
from edgebuild.profile import DeviceProfile, load_profile, profile_names
from edgeserve.config import load_config
from edgeserve.settings import AuditSettings, Runtime
from tests.support.specs import llama_spec

_MODEL = llama_spec(name="small", vocabulary=32000, embedding=512, heads=8, kv_heads=8, feed_forward=1024)
_ORIGIN = ModelOrigin(
    source=ModelSource(kind="file", reference="small.gguf", file="small.gguf"),
    source_quantization="Q8_0",
    quantized_by="",
)


_FILE = BakedFile(
    path="/models/small.Q8_0.gguf",
    size_bytes=10**8,
    diff_id=Digest.of(b"model"),
    before=b"",
    after=bytes(512),
)


def _runtime(profile: DeviceProfile, folder: Path) -> Runtime:
    plan = make_plan(profile, _MODEL, _ORIGIN, epoch_s=0)
    contents = make_contents(plan, (_FILE,))
    path = folder / "runtime.json"
    path.write_bytes(contents["etc/edgebuild/runtime.json"])
    return load_config({"EDGE_RUNTIME": str(path)}, {})


@pytest.mark.parametrize("name", profile_names())
def test_the_server_takes_what_is_built(name: str, tmp_path: Path) -> None:
    profile = load_profile(name, working_directory=tmp_path)
    runtime = _runtime(profile, tmp_path)
    assert runtime.profile == name
    assert runtime.server.port == profile.server.port
    assert runtime.server.state_dir == STATE_FOLDER


def test_what_a_profile_says_of_observation_arrives(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "extends: pi4\nschema_version: 1\nname: own\nserver:\n"
        "  audit: {enabled: true, required: true, prompts: true, sync: line, checkpoint_lines: 7, checkpoint_s: 9, file: 1MiB, total: 3MiB}\n"
        "  metrics: {enabled: false, open: true}\n"
    )
    server = _runtime(load_profile(str(path), working_directory=tmp_path), tmp_path).server
    assert server.audit == AuditSettings(
        enabled=True, required=True, prompts=True, sync="line", checkpoint_lines=7, checkpoint_s=9, file_bytes=1 << 20, total_bytes=3 << 20
    )  # fmt: skip
    assert (server.metrics.enabled, server.metrics.open) == (False, True)


def test_an_audit_log_needs_room_for_two_files(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "extends: pi4\nschema_version: 1\nname: own\nserver:\n  audit: {file: 8MiB, total: 12MiB}\n"
    )
    with pytest.raises(ProfileError) as caught:
        load_profile(str(path), working_directory=tmp_path)
    assert "less than two files" in "".join(caught.value.faults)


def test_tuning_and_limits_reach_the_server(tmp_path: Path) -> None:
    (tmp_path / "tuned.yaml").write_text(
        "extends: pi4\nname: tuned\ncontext: 1024\n"
        "tuning: {kv_type: q8_0, flash_attention: on, mmap: false, mlock: true, threads: 3, batch_threads: 4}\n"
        "server: {limits: {past_context: shift, keep_tokens: 100, output_tokens: 5000, first_token_s: 9, client_requests: 2,"
        " over_long: window, window_tokens: 300, window_stride_tokens: 200, windows: 5}}\n"
    )
    runtime = _runtime(load_profile("./tuned.yaml", working_directory=tmp_path), tmp_path)
    engine, limits = runtime.engine, runtime.server.limits
    assert (engine.kv_type, engine.flash_attention, engine.mmap, engine.mlock) == ("q8_0", "on", False, True)
    assert (engine.threads, engine.batch_threads, engine.past_context, engine.keep_tokens) == (
        3,
        4,
        "shift",
        100,
    )
    assert (limits.output_tokens, limits.first_token_s, limits.client_requests) == (5000, 9, 2)
    assert (limits.over_long, limits.window_tokens, limits.window_stride_tokens, limits.windows) == (
        "window", 300, 200, 5,
    )  # fmt: skip


def test_without_tuning_every_core_computes(tmp_path: Path) -> None:
    runtime = _runtime(load_profile("pi4", working_directory=tmp_path), tmp_path)
    assert (runtime.engine.threads, runtime.engine.batch_threads, runtime.engine.kv_type) == (4, 0, "f16")


def test_what_the_server_insists_on_reaches_it(tmp_path: Path) -> None:
    (tmp_path / "strict.yaml").write_text(
        "extends: pi4\nname: strict\n"
        'server: {access: {require_tls: true, require_key: true, tls_minimum: "1.3"}, limits: {connections: 9, header_s: 3}}\n'
    )
    server = _runtime(load_profile("./strict.yaml", working_directory=tmp_path), tmp_path).server
    assert (server.access.require_tls, server.access.require_certificate, server.access.require_key) == (
        True,
        False,
        True,
    )
    assert server.access.tls_minimum == "1.3"
    assert (server.limits.connections, server.limits.connections_per_address, server.limits.header_s) == (
        9,
        64,
        3,
    )


def test_grpc_where_the_profile_asks_for_it(tmp_path: Path) -> None:
    (tmp_path / "talk.yaml").write_text("extends: pi4\nname: talk\nserver: {grpc: true, grpc_port: 9090}\n")
    profile, plain = (load_profile(name, working_directory=tmp_path) for name in ("./talk.yaml", "pi4"))
    assert (
        _runtime(profile, tmp_path).server.grpc.enabled,
        _runtime(profile, tmp_path).server.grpc.port,
    ) == (True, 9090)
    assert not _runtime(plain, tmp_path).server.grpc.enabled
    talking, silent = (make_plan(one, _MODEL, _ORIGIN, epoch_s=0) for one in (profile, plain))
    assert [role for role in talking.layers if role not in silent.layers] == [Role.GRPC]
    assert talking.fit.need_bytes - silent.fit.need_bytes == GRPC_BYTES
    runs = [make_run(plan, model_digest=Digest.of(b"model")) for plan in (talking, silent)]
    assert [run.exposed_ports for run in runs] == [(8080, 9090), (8080,)]
    assert [GRPC_FOLDER in dict(run.environment)["PYTHONPATH"].split(":") for run in runs] == [True, False]


@pytest.mark.parametrize(
    ("server", "fault"),
    [
        ("{grpc: true, grpc_port: 8080}", "server.grpc_port: 8080 is the port of HTTP too"),
        ('{grpc: true, access: {tls_minimum: "1.3"}}', "server.access.tls_minimum: gRPC speaks TLS 1.2 too"),
    ],
)
def test_what_grpc_cannot_go_with_is_refused(tmp_path: Path, server: str, fault: str) -> None:
    (tmp_path / "clash.yaml").write_text(f"extends: pi4\nname: clash\nserver: {server}\n")
    with pytest.raises(ProfileError) as caught:
        load_profile("./clash.yaml", working_directory=tmp_path)
    assert fault in str(caught.value.faults)
