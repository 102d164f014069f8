"""Our server as a device has it: an image unpacked, its entrypoint started in it, with its own Python and libraries."""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgebuild.oci.layout import read_layout
from edgebuild.sandbox import make_mount_points, sandbox_argv
from edgebuild.unpacking import run_section, unpack
from tests.support.peers.tool import running, wait_until

_START_TIMEOUT_S = 120.0
_PORT = re.compile(r" start .* port=(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """An image, unpacked.

    Attributes:
        root: The folder that is its root.
        user: Numbers of user and group, with a colon.
        environment: Its environment.
        argv: Its entrypoint and command.
        runtime: Its settings (/etc/edgebuild/runtime.json).
    """

    root: Path
    user: str
    environment: Mapping[str, str]
    argv: tuple[str, ...]
    runtime: Mapping[str, Any]

    @property
    def model(self) -> str:
        """What clients call its model."""
        return str(self.runtime["model"]["name"])

    @property
    def model_file(self) -> Path:
        """The model, or its first file, on this machine."""
        return self.root / str(self.runtime["model"]["files"][0]).lstrip("/")

    def wrapped(self, argv: Sequence[str]) -> list[str]:
        """Give the command that runs another inside, as the image's user."""
        uid, _, gid = self.user.partition(":")
        return sandbox_argv(self.root, argv, uid=uid, gid=gid)

    def variables(self, settings: Mapping[str, object]) -> dict[str, str]:
        """Give the environment inside; PATH is this machine's, for the programs that make the namespace."""
        path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
        return {**self.environment, "PATH": path} | {name: str(value) for name, value in settings.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server that answers.

    Attributes:
        name: Which one.
        port: On the loopback.
        model: What clients call its model.
        pid: Its process.
        ready_s: Seconds from the start of the process until it answered.
        log: What it wrote.
    """

    name: str
    port: int
    model: str
    pid: int
    ready_s: float
    log: Path


def unpack_image(layout: Path, root: Path) -> Unpacked:
    """Unpack the first image of a layout into a new folder."""
    image = read_layout(layout).index().images[0]
    root.mkdir(mode=0o755)
    unpack(image.layers, root)
    make_mount_points(root)
    config = run_section(image.config)
    return Unpacked(
        root=root,
        user=config["User"],
        environment=dict(variable.split("=", 1) for variable in config["Env"]),
        argv=(*config["Entrypoint"], *config["Cmd"]),
        runtime=json.loads((root / "etc/edgebuild/runtime.json").read_text("utf-8")),
    )


@contextmanager
def running_image(
    image: Unpacked, settings: Mapping[str, object], *, prefix: Sequence[str] = ()
) -> Iterator[Running]:
    """Start the image's entrypoint on a free port of the loopback, and stop it at the end.

    Args:
        image: The image.
        settings: Variables of the server, such as EDGE_SLOTS.
        prefix: What stands before the whole command.
    """
    log = image.root.with_name(f"{image.root.name}.log")
    own = {"EDGE_HOST": "127.0.0.1", "EDGE_PORT": 0}
    with running(
        [*prefix, *image.wrapped(image.argv)], log=log, environment=image.variables(own | dict(settings))
    ) as process:
        begin_s = time.monotonic()
        ready_s = wait_for_log(process, log, " ready ") - begin_s
        port = _PORT.search(log.read_text("utf-8"))
        assert port is not None
        yield Running(
            name="edgeserve",
            port=int(port[1]),
            model=image.model,
            pid=process.pid,
            ready_s=ready_s,
            log=log,
        )


def wait_for_log(process: "subprocess.Popen[bytes]", log: Path, text: str) -> float:
    """Wait until a program has logged a text; return when that was seen, on the monotonic clock."""
    wait_until(
        lambda: text in log.read_text("utf-8", "replace"),
        lambda: process.poll() is None,
        log=log,
        what=log.stem,
        timeout_s=_START_TIMEOUT_S,
    )
    return time.monotonic()
