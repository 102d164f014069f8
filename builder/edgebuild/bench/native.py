"""Runs an image's own bench on this machine, without daemon or emulator: a figure of an emulator says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from edgebuild.bench.result import BenchResult, parse_result
from edgebuild.errors import ImageError
from edgebuild.host import Host
from edgebuild.oci.image import Image
from edgebuild.oci.platform import Platform
from edgebuild.plan import VECTOR_LENGTH_LABEL
from edgebuild.process import run
from edgebuild.progress import Progress
from edgebuild.sandbox import make_mount_points, sandbox_argv, sandbox_environment, verify_sandbox
from edgebuild.unpacking import run_section, unpack

_TIMEOUT_S = 3600.0
_TAIL_LINES = 3


def bench_image(
    image: Image, arguments: Sequence[str], *, scratch: Path, host: Host, progress: Progress
) -> BenchResult:
    """Run `bench --json` in an image, in a sandbox as its smoke test has, on this machine's own processor.

    Args:
        image: The image; its blobs are read where they are.
        arguments: Arguments of `edgeserve bench`.
        scratch: Folder to unpack in; it must allow executables.
        host: This machine.
        progress: Told each step.

    Raises:
        ImageError: The image is for another architecture, its model generates no text, or it does not run.
        SandboxUnavailableError: This machine cannot run it.
        ToolError: The disk is full, or a layer cannot be read.
    """
    verify_native(image, host)
    _verify_generates(image)
    verify_sandbox(host)
    with (
        progress.task(f"bench {image.profile}") as task,
        TemporaryDirectory(dir=scratch, prefix="bench-") as folder,
    ):
        root = Path(folder) / "root"
        root.mkdir(mode=0o755)
        task.status("unpack")
        unpack(image.layers, root)
        make_mount_points(root)
        config = run_section(image.config)
        uid, _, gid = str(config.get("User") or "0:0").partition(":")
        argv = sandbox_argv(
            root, [*config["Entrypoint"], "bench", "--json", *arguments], uid=uid, gid=gid or uid
        )
        given = dict(variable.split("=", 1) for variable in config.get("Env", []))
        # As many threads as this machine has cores, which are not the device's; and its memory need not be the plan's.
        own = {"EDGE_THREADS": "0", "EDGE_MEMORY_CHECK": "warn"}
        task.status("measure")
        done = run(
            argv, environment=given | own | sandbox_environment(host), timeout_s=_TIMEOUT_S, check=False
        )
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        faults = [line for line in lines if " error " in line] or lines
        said = " | ".join(faults[-_TAIL_LINES:]) or "it said nothing"
        raise ImageError(
            f"{image.profile}: bench ended with exit code {done.returncode}: {said}",
            hint="see the messages above",
        )
    return parse_result(done.stdout, place=f"bench of {image.profile}")


def verify_native(image: Image, host: Host) -> None:
    """Refuse an image that this machine could only emulate.

    Raises:
        ImageError: It is for another architecture.
    """
    here = Platform.of_machine(host.machine)
    if image.platform != here:
        raise ImageError(
            f"{image.profile} is for {image.platform}, this machine is {here}: an emulator's figures say nothing",
            hint="on the device run `docker run --rm IMAGE bench --json > result.json`, then here `edgebuild bench --from result.json`",
        )


def _verify_generates(image: Image) -> None:
    """Refuse an image whose model embeds texts.

    Raises:
        ImageError: There is no text to generate.
    """
    if VECTOR_LENGTH_LABEL in image.labels():
        raise ImageError(
            f"{image.profile}: its model embeds texts, and bench measures how fast text is generated",
            hint="measure POST /v1/embeddings with texts of your own",
        )
