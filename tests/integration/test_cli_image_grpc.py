"""An image whose profile asks for gRPC: one more layer, which works on the device's processor; no other image has it."""

import gzip
import io
import json
import tarfile
from pathlib import Path

from tests.support.built import Built, Edgebuild

# What docs/design.md allows for gRPC, beside the 32 MB of all other software.
GRPC_LIMIT_BYTES = 9_000_000


def test_a_profile_that_asks_for_grpc_gets_a_layer(
    edgebuild: Edgebuild, built_layout: Built, tmp_path: Path
) -> None:
    (tmp_path / "talk.yaml").write_text("extends: pi4\nname: talk\nserver: {grpc: true, grpc_port: 9090}\n")
    common = ("--model", built_layout.model, "--lock", built_layout.lock, "--output", "layout")
    # Built with its smoke test, which asks for health over gRPC too, and read back by the checker.
    document = edgebuild.json("image", "--profile", "./talk.yaml", *common, timeout_s=1800)
    (talking,), silent = document["images"], built_layout.image("pi4")
    assert talking["smoke"]["answer"]
    assert "every rule holds" in edgebuild.run("check", "layout").stdout

    layers = {layer["role"]: layer for layer in talking["layers"]}
    others = {layer["role"]: layer["digest"] for layer in silent["layers"]}
    assert list(layers) == ["model", "rootfs", "python-deps", "grpc", "engine", "server", "config"]
    assert {role for role, layer in layers.items() if layer["digest"] != others.get(role)} == {
        "grpc",
        "config",
    }
    assert layers["grpc"]["size_bytes"] <= GRPC_LIMIT_BYTES
    rows = {row["what"] for row in talking["fit"]["rows"]} - {row["what"] for row in silent["fit"]["rows"]}
    assert rows == {"gRPC"}

    blobs = tmp_path / "layout" / "blobs"
    config = json.loads((blobs / talking["config_digest"].replace(":", "/")).read_bytes())["config"]
    assert set(config["ExposedPorts"]) == {"8080/tcp", "9090/tcp"}
    assert "PYTHONPATH=/opt/edge/server:/opt/edge/engine:/opt/edge/deps:/opt/edge/grpc" in config["Env"]
    layer = gzip.decompress((blobs / layers["grpc"]["digest"].replace(":", "/")).read_bytes())
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        names = {member.name for member in archive if not member.isdir()}
    assert {name for name in names if not name.startswith("opt/edge/grpc/")} == {
        "usr/lib/aarch64-linux-gnu/libstdc++.so.6",
        "usr/lib/aarch64-linux-gnu/libstdc++.so.6.0.33",
        "usr/share/doc/libstdc++6",
        "var/lib/dpkg/status.d/libstdc++6",
    }
