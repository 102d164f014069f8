"""The checked-in modules of edge/v1/inference.proto are what protoc makes of it."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[3] / "images/server/edgeserve/grpc"
PROTO = "edge/v1/inference.proto"


def test_generated_modules_are_current(tmp_path: Path) -> None:
    """Renew them with the command below, and the output folder `images/server/edgeserve/grpc`."""
    command = [
        "-m",
        "grpc_tools.protoc",
        f"-I{ROOT}",
        f"--python_out={tmp_path}",
        f"--pyi_out={tmp_path}",
        PROTO,
    ]
    subprocess.run([sys.executable, *command], check=True)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.py*"))
    assert [path.name for path in made] == ["inference_pb2.py", "inference_pb2.pyi"]
    for path in made:
        assert (ROOT / path).read_text() == (tmp_path / path).read_text()


def test_everything_in_the_proto_is_documented() -> None:
    """A line that declares something follows a comment, or another value of the same comment's."""
    lines = [line.strip() for line in (ROOT / PROTO).read_text().splitlines()]
    for above, line in pairwise(lines):
        if line.startswith(("message ", "enum ", "service ", "rpc ")) or " = " in line:
            assert above.startswith("//"), line
