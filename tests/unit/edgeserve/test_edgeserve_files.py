"""Open files for as many connections as the settings allow."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("soft", "hard", "connections", "missing", "after"),
    [
        (1000, 4000, 256, 0, 1000),
        (500, 4000, 256, 0, 832),
        (500, 4000, 4000, 576, 4000),
        (300, 300, 256, 532, 300),
    ],
)
def test_the_soft_limit_is_raised(soft: int, hard: int, connections: int, missing: int, after: int) -> None:
    program = (
        "import resource; from edgeserve.http.server import allow_files;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}));"
        f"print(allow_files({connections}), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(Path("images/server").resolve())},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == [str(missing), str(after)]
