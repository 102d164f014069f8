"""Small wheels, made as a test needs them, and pins for them."""

import base64
import hashlib
import zipfile
from pathlib import Path


def write_wheel(
    folder: Path, project: str, version: str, *, requires: tuple[str, ...] = (), **files: str
) -> Path:
    """Write a wheel for any Python; `files` are modules by name."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{project}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n"
    content = {f"{name}.py": text for name, text in (files or {project: ""}).items()}
    content |= {
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {line}\n" for line in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}\n"
        for name, text in content.items()
    ]
    content[f"{info}/RECORD"] = "".join(rows) + f"{info}/RECORD,,\n"
    path = folder / f"{project}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in content.items():
            archive.writestr(name, text)
    return path


def write_pins(folder: Path, *wheels: Path, torch: str) -> Path:
    """Write the two files that pin an environment: the wheels by their hashes, and torch by its version."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for wheel in wheels:
        project, version = wheel.name.split("-")[:2]
        lines.append(f"{project}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    (folder / "requirements.txt").write_text("".join(lines))
    (folder / "requirements-torch.txt").write_text(f"torch=={torch}\n")
    return folder
