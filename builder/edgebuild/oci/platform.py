"""Platforms: what an image runs on."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Platform:
    """Operating system and processor of an image.

    Attributes:
        os: Always "linux" in edgebuild.
        architecture: Go's name of the architecture: "amd64" or "arm64".
        variant: "v8" for arm64, else "".

    Source: image-spec v1.1 image-index.md, "platform".
    """

    os: str = "linux"
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.os}/{self.architecture}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "linux/amd64", "linux/arm64" or "linux/arm64/v8".

        Raises:
            ValueError: A platform that edgebuild does not build for.
        """
        for platform in (LINUX_AMD64, LINUX_ARM64):
            if text in {str(platform), f"{platform}/{platform.variant}"}:
                return cls(architecture=platform.architecture, variant=platform.variant)
        raise ValueError(f"platform {text!r} is not one of linux/amd64, linux/arm64")

    @classmethod
    def of_machine(cls, machine: str) -> Self:
        """Map the kernel's processor name ("x86_64", "aarch64") to its platform.

        Raises:
            ValueError: Another processor.
        """
        by_machine = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}
        if machine not in by_machine:
            raise ValueError(f"processor {machine!r} is neither x86_64 nor aarch64")
        return cls.parse(by_machine[machine])

    @property
    def debian(self) -> str:
        """Debian's name of the architecture; the same as Go's for both."""
        return self.architecture

    @property
    def machine(self) -> str:
        """The kernel's and qemu's name of the processor."""
        return {"amd64": "x86_64", "arm64": "aarch64"}[self.architecture]

    def to_json(self) -> dict[str, str]:
        """Give the object of an index entry or image config, keys in the specification's order."""
        document = {"architecture": self.architecture, "os": self.os}
        return document | ({"variant": self.variant} if self.variant else {})


LINUX_AMD64 = Platform(architecture="amd64")
LINUX_ARM64 = Platform(architecture="arm64", variant="v8")
