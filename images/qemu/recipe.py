"""Static qemu-user for the host's architecture: one emulator for each platform that images are built for."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from arguments import MACHINES, Arguments, RecipeError, run_recipe, say
from debs import unpack_deb
from trees import settle_modes


def build(arguments: Arguments) -> None:
    """Build the artifact."""
    say("unpack qemu-user")
    wanted = {f"usr/bin/qemu-{machine}": f"qemu-{machine}" for machine in MACHINES.values()}
    unpack_deb(arguments.input("qemu-user_*.deb"), arguments.output, wanted=wanted.__contains__)
    for source, name in wanted.items():
        path = arguments.output / source
        if not path.is_file() or path.read_bytes()[:4] != b"\x7fELF":
            raise RecipeError(f"qemu-user brings no /{source}")
        path.rename(arguments.output / name)
    for folder in sorted((path for path in arguments.output.rglob("*") if path.is_dir()), reverse=True):
        folder.rmdir()
    settle_modes(arguments.output)


if __name__ == "__main__":
    run_recipe(build)
