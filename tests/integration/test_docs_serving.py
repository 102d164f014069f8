"""docs/serving.md: its commands are run, and a real server is asked with what they made."""

import os
import re
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.asking import answers
from tests.support.llama import SERVER, ServerProcess, running_server

_PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
# Stands for the container: the image's entrypoint is this command.
_DOCKER = f"""
docker() {{
  test "$1 $2 $3" = "run --rm $IMAGE" || return 1
  shift 3
  PYTHONPATH={SERVER} {sys.executable} -P -m edgeserve "$@"
}}
"""


def _blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", _PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all commands to make keys and certificates were run."""
    folder = tmp_path_factory.mktemp("serving")
    script = "set -eu\n" + _DOCKER + "\n".join(_blocks("sh"))
    done = subprocess.run(
        ["sh", "-c", script], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def _curl(server: ServerProcess, folder: Path, number: int, *, program: Path) -> str:
    """Run a curl command of the page against the server; `program` is the folder of curl."""
    commands = [
        line[2:] for block in _blocks("console") for line in block.splitlines() if line.startswith("$ curl")
    ]
    command = re.sub(r"(https?)://device:\d+", rf"\1://localhost:{server.port}", commands[number])
    done = subprocess.run(
        ["sh", "-c", command + " --silent --show-error --fail --ipv4"],
        cwd=folder,
        env={"PATH": f"{program}:{os.defpath}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("number", "mounted", "client"),
    [(0, ("keys",), "key:phone"), (1, ("keys", "tls"), "key:phone"), (2, ("mutual",), "cert:robot-7")],
)
def test_the_page_works(
    made: Path,
    curl_folder: Path,
    llama_host: Path,
    scripted_model: Path,
    tmp_path: Path,
    *,
    number: int,
    mounted: tuple[str, ...],
    client: str,
) -> None:
    settings = {}
    if "keys" in mounted:
        settings["server.access.keys_file"] = str(made / "keys" / "keys")
    if "tls" in mounted or "mutual" in mounted:
        folder = tmp_path / "tls"
        shutil.copytree(made / "tls", folder)
        if "tls" in mounted:
            (folder / "ca.crt").unlink()
        settings["server.access.tls_folder"] = str(folder)
    with running_server(llama_host, tmp_path, scripted_model, settings) as server:
        assert '"object":"list"' in _curl(server, made, number, program=curl_folder)
        server.wait_for(f"client={client} status=200")


def test_strict_clients_take_the_pages_certificates(
    made: Path, llama_host: Path, scripted_model: Path, tmp_path: Path
) -> None:
    """Python 3.13 and later want more of a certificate than curl does."""
    context = ssl.create_default_context(cafile=made / "authority.crt")
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_cert_chain(made / "robot.crt", made / "robot.key")
    settings = {"server.access.tls_folder": str(made / "tls")}
    with running_server(llama_host, tmp_path, scripted_model, settings) as server:
        assert answers(server, context=context)


def test_the_page_names_every_variable_right() -> None:
    table = (SERVER / "README.md").read_text()
    for name in set(re.findall(r"EDGE_[A-Z_]+", _PAGE.read_text())):
        assert f"`{name}`" in table
