"""`make image` on a stranger's machine: a fresh Debian with Python, make and apt, empty homes and caches."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.support.bare import USER, BareMachine, make_bare_machine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.getuid() != 0, reason="making a root folder needs root"),
]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> BareMachine:
    return make_bare_machine(tmp_path_factory.mktemp("bare"))


def test_an_ordinary_user_builds_from_nothing_and_root_gets_the_same_image(bare: BareMachine) -> None:
    done = bare.run("umask 077 && TZ=Asia/Tokyo LC_ALL=C make image", user=USER)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "armv8.2_2 on cortex-a76" in done.stdout
    assert "signed with cosign.key" in done.stdout
    for word in ("run ", "verify ", "push "):
        assert re.search(rf"^  {word}.*(edgebuild|docker)", done.stdout, re.MULTILINE), done.stdout
    # The printed command for verifying works as it is printed.
    command = re.search(r"^  verify +(\S*edgebuild .*)$", done.stdout, re.MULTILINE)
    assert command is not None
    verified = bare.run(command[1], user=USER)
    assert verified.returncode == 0, verified.stderr

    # Again: from the store, in another home, as root, with the same lock; the same bytes come out.
    bare.run(f"cp -a /home/{USER}/.cache /root/.cache && cp /home/{USER}/edgebuild/edgebuild.lock .")
    again = bare.run(
        "make setup && .venv/bin/edgebuild image --profile jetson --output elsewhere --locked --json --no-test"
    )
    assert again.returncode == 0, again.stderr[-3000:]
    digest = json.loads(again.stdout[again.stdout.index("{") :])["index"]["digest"]
    assert digest in done.stdout


def test_the_checkout_stays_clean(bare: BareMachine) -> None:
    """Everything that the two commands write is ignored by git, so that nothing is committed by accident."""
    ignored = (Path(__file__).parents[2] / ".gitignore").read_text().split()
    top = {path.name for path in (bare.root / "home" / USER / "edgebuild").iterdir()}
    written = top - {
        path.name
        for path in (bare.root / "root" / "edgebuild").iterdir()
        if path.name not in {".venv", "build", "edgebuild.lock", "elsewhere"}
    }
    assert {f"/{name}" + ("" if name == "edgebuild.lock" else "/") for name in written} <= set(ignored)
