"""What goes wrong with keys, names and registries, at the command line: one line, a hint, the exit code, nothing half done."""

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from edgebuild.oci.layout import LayoutSink
from edgebuild.oci.reference import Reference
from edgebuild.progress import SilentProgress
from tests.support.built import PASSWORD, Edgebuild, make_edgebuild
from tests.support.faulty_registry import Answer, BasicLogin, FaultyRegistry, TokenLogin
from tests.support.peers.registry import Registry
from tests.support.peers.tool import Completed, Tool
from tests.support.small_image import publish, small_index

TAG = "1.0"


@pytest.fixture
def command(tmp_path: Path) -> Edgebuild:
    """The command with an empty store: nothing here builds."""
    made = make_edgebuild(tmp_path, tmp_path / "store")
    (tmp_path / "password").write_text(PASSWORD + "\n", "utf-8")
    return made


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A small unsigned layout."""
    path = tmp_path / "layout"
    with LayoutSink(
        path, progress=SilentProgress(), reference=Reference.parse("h.example/acme/a:1.0")
    ) as sink:
        publish(sink, small_index(), tag=TAG)
    return path


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    made = make_edgebuild(folder, folder / "store")
    made.run("keys", "generate", "--output", "keys", env={"EDGEBUILD_PASSWORD": PASSWORD})
    return folder / "keys"


@pytest.fixture
def keys(command: Edgebuild, generated: Path) -> Path:
    """Folder with `cosign.key`, `cosign.pub`, `attest.key` and `attest.pub`."""
    return shutil.copytree(generated, command.folder / "keys")


def assert_refused(done: Completed, code: int, *parts: str, has_hint: bool = True) -> None:
    """See one line `error: …` that holds the parts, a hint below it, nothing on standard output, no traceback."""
    assert done.returncode == code, done.describe()
    assert done.stdout == "", done.describe()
    assert "Traceback" not in done.stderr, done.describe()
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, done.describe()
    for part in parts:
        assert part in errors[0], done.describe()
    if has_hint:
        assert lines[-1].startswith("hint: "), done.describe()
        assert len(lines[-1]) > len("hint: "), done.describe()


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def uploads(registry: FaultyRegistry) -> list[str]:
    """List what asked the registry to keep something and was not refused."""
    return [
        f"{request.method} {request.path}"
        for request in registry.requests
        if request.method in {"PUT", "POST", "PATCH", "DELETE"}
        and request.status < 400
        and "/token" not in request.path
    ]


class TestKeys:
    def test_wrong_password(self, command: Edgebuild, layout: Path, keys: Path) -> None:
        before = files(layout)
        env = {"EDGEBUILD_PASSWORD": "another one"}
        done = command.run("sign", layout, "--key", keys / "cosign.key", env=env, check=False)
        assert_refused(done, 8, "cosign.key", "password")
        assert files(layout) == before

    def test_no_password_and_nobody_to_ask(self, command: Edgebuild, layout: Path, keys: Path) -> None:
        done = command.run("sign", layout, "--key", keys / "cosign.key", check=False)
        assert_refused(done, 2, "password")

    def test_password_file_that_is_not_there(self, command: Edgebuild, layout: Path, keys: Path) -> None:
        done = command.run(
            "sign", layout, "--key", keys / "cosign.key", "--password-file", "gone", check=False
        )
        assert_refused(done, 2, "gone")

    @pytest.mark.parametrize(
        "kind", ["rsa", "ed25519", "plain-p256", "p384", "public", "garbage", "empty", "folder"]
    )
    def test_key_of_another_type(self, command: Edgebuild, layout: Path, keys: Path, kind: str) -> None:
        path = command.folder / "other.key"
        if kind == "folder":
            path.mkdir()
        else:
            path.write_bytes(_other_key(kind, keys))
        before = files(layout)
        done = command.run("sign", layout, "--key", path, "--password-file", "password", check=False)
        assert_refused(done, 8, "other.key")
        assert files(layout) == before

    def test_key_that_is_not_there(self, command: Edgebuild, layout: Path) -> None:
        done = command.run("sign", layout, "--key", "gone.key", "--password-file", "password", check=False)
        assert_refused(done, 2, "gone.key")

    def test_hostile_work_factor_ends_at_once(self, command: Edgebuild, layout: Path, keys: Path) -> None:
        key = keys / "cosign.key"
        hostile = command.folder / "hostile.key"
        hostile.write_bytes(_with_work_factor(key.read_bytes(), 2**40))
        done = command.run(
            "sign", layout, "--key", hostile, "--password-file", "password", check=False, timeout_s=30
        )
        assert_refused(done, 8, "hostile.key")

    def test_existing_keys_are_never_overwritten(self, command: Edgebuild, keys: Path) -> None:
        before = files(keys)
        done = command.run("keys", "generate", "--output", "keys", "--password-file", "password", check=False)
        assert done.returncode == 8, done.describe()
        assert "Traceback" not in done.stderr
        assert files(keys) == before

    def test_a_half_pair_is_not_completed(self, command: Edgebuild, keys: Path) -> None:
        (keys / "attest.key").unlink()
        before = files(keys)
        done = command.run("keys", "generate", "--output", "keys", "--password-file", "password", check=False)
        assert done.returncode == 8, done.describe()
        assert files(keys) == before


def _other_key(kind: str, keys: Path) -> bytes:
    def pem(key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    makers: dict[str, Callable[[], bytes]] = {
        "rsa": lambda: pem(rsa.generate_private_key(65537, 2048)),
        "ed25519": lambda: pem(ed25519.Ed25519PrivateKey.generate()),
        "plain-p256": lambda: pem(ec.generate_private_key(ec.SECP256R1())),
        "p384": lambda: pem(ec.generate_private_key(ec.SECP384R1())),
        "public": (keys / "cosign.pub").read_bytes,
        "garbage": lambda: bytes(range(256)) * 4,
        "empty": lambda: b"",
    }
    return makers[kind]()


def _with_work_factor(pem: bytes, factor: int) -> bytes:
    head, *body, foot = pem.decode().strip().splitlines()
    document = json.loads(base64.b64decode("".join(body)))
    document["kdf"]["params"]["N"] = factor
    return "\n".join(
        [head, base64.encodebytes(json.dumps(document).encode()).decode().strip(), foot, ""]
    ).encode()


class TestNames:
    @pytest.mark.parametrize(
        "reference",
        [
            "acme/llm:1.0",
            "127.0.0.1:1/Acme/llm:1.0",
            "127.0.0.1:1/acme/llm:",
            "127.0.0.1:1/acme/llm:-x",
            "127.0.0.1:1/acme/llm:a b",
            "127.0.0.1:1/acme/llm:" + "x" * 129,
            "127.0.0.1:1/acme/llm@sha256:12",
            "http://127.0.0.1:1/acme/llm:1.0",
        ],
    )
    def test_reference_that_cannot_be_parsed(self, command: Edgebuild, layout: Path, reference: str) -> None:
        assert_refused(command.run("push", layout, reference, check=False), 2)
        assert_refused(command.run("image", "--profile", "x86", "--tag", reference, "--push", check=False), 2)
        assert not (command.folder / "build").exists()

    def test_tag_that_leaves_no_room_for_the_profile(
        self, command: Edgebuild, layout: Path, faulty_registry: FaultyRegistry
    ) -> None:
        reference = faulty_registry.reference("acme/llm", "x" * 126)
        assert_refused(command.run("push", layout, reference, check=False), 2, "is not a tag")
        assert faulty_registry.store.tags("acme/llm") == []
        assert_refused(
            command.run("image", "--profile", "x86", "--tag", reference, check=False), 2, "is not a tag"
        )
        assert not (command.folder / "build").exists()

    def test_digest_where_a_tag_belongs(self, command: Edgebuild, layout: Path) -> None:
        reference = "127.0.0.1:1/acme/llm@sha256:" + "0" * 64
        assert_refused(command.run("push", layout, reference, check=False), 2, "digest")
        done = command.run("image", "--profile", "x86", "--tag", reference, "--push", check=False)
        assert_refused(done, 2, "digest")

    def test_layout_that_is_not_there(self, command: Edgebuild, keys: Path) -> None:
        key = ("--key", keys / "cosign.key", "--password-file", "password")
        for arguments in (
            ("sign", "./gone", *key),
            ("verify", "./gone", "--key", keys / "cosign.pub"),
            ("push", "gone", "127.0.0.1:1/a/b:1"),
            ("check", "gone"),
            ("archive", "gone"),
            ("test", "gone"),
        ):
            assert_refused(command.run(*arguments, check=False), 6, "gone")

    def test_folder_that_is_no_layout(self, command: Edgebuild, keys: Path) -> None:
        folder = command.folder / "empty"
        folder.mkdir()
        key = ("--key", keys / "cosign.key", "--password-file", "password")
        for arguments in (
            ("sign", folder, *key),
            ("push", folder, "127.0.0.1:1/a/b:1"),
            ("archive", folder),
        ):
            assert_refused(command.run(*arguments, check=False), 6, "empty")
        assert files(folder) == {}
        verified = command.run("verify", folder, "--key", keys / "cosign.pub", check=False)
        assert verified.returncode == 8, verified.describe()
        assert "Traceback" not in verified.stderr


class TestVerify:
    def test_unsigned(self, command: Edgebuild, layout: Path, keys: Path) -> None:
        done = command.run("verify", layout, "--key", keys / "cosign.pub", check=False)
        assert done.returncode == 8, done.describe()
        assert done.stderr.startswith("error: ") or "\nerror: " in done.stderr

    def test_another_key_and_a_changed_blob(self, command: Edgebuild, layout: Path, keys: Path) -> None:
        command.run("sign", layout, "--key", keys / "cosign.key", "--password-file", "password")
        command.run("verify", layout, "--key", keys / "cosign.pub")
        done = command.run("verify", layout, "--key", keys / "attest.pub", check=False)
        assert done.returncode == 8, done.describe()
        blob = next(p for p in (layout / "blobs" / "sha256").iterdir() if b" layer of " in p.read_bytes())
        blob.write_bytes(b"X" + blob.read_bytes()[1:])
        done = command.run("verify", layout, "--key", keys / "cosign.pub", check=False)
        assert done.returncode == 8, done.describe()
        assert "Traceback" not in done.stderr

    def test_public_key_of_another_type(self, command: Edgebuild, layout: Path) -> None:
        path = command.folder / "rsa.pub"
        key = rsa.generate_private_key(65537, 2048).public_key()
        path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        assert_refused(command.run("verify", layout, "--key", path, check=False), 8, "rsa.pub")
        assert_refused(command.run("verify", layout, "--key", "gone.pub", check=False), 8, "gone.pub")

    def test_as_json(self, command: Edgebuild, layout: Path, keys: Path) -> None:
        done = command.run("verify", layout, "--key", keys / "cosign.pub", "--json", check=False)
        assert done.returncode == 8
        document = json.loads(done.stdout)
        assert set(document) == {"error"}
        assert set(document["error"]) == {"message", "hint", "faults", "exit_code"}
        assert document["error"]["exit_code"] == 8


class TestRegistry:
    @pytest.mark.parametrize("login", [BasicLogin(), TokenLogin(uses=1000)])
    def test_login_that_is_missing(
        self,
        command: Edgebuild,
        layout: Path,
        tmp_path_factory: pytest.TempPathFactory,
        login: BasicLogin | TokenLogin,
    ) -> None:
        with FaultyRegistry(tmp_path_factory.mktemp("registry"), login=login) as registry:
            done = command.run("push", layout, registry.reference("acme/llm", TAG), check=False)
            assert_refused(done, 7, "401")
            assert uploads(registry) == []

    def test_wrong_registry_password(
        self, command: Edgebuild, layout: Path, faulty_login: FaultyRegistry
    ) -> None:
        _write_login(command, faulty_login, "edge:wrong")
        done = command.run("push", layout, faulty_login.reference("acme/llm", TAG), check=False)
        assert_refused(done, 7, "401")
        assert "wrong" not in done.stderr
        assert uploads(faulty_login) == []

    def test_nobody_listens(self, command: Edgebuild, layout: Path) -> None:
        done = command.run("push", layout, "127.0.0.1:9/acme/llm:1.0", check=False, timeout_s=60)
        assert_refused(done, 7, "127.0.0.1:9")

    @pytest.mark.parametrize("path", [r"/manifests/", r"/blobs/"])
    def test_registry_that_refuses_has_no_tag(
        self, command: Edgebuild, layout: Path, keys: Path, faulty_registry: FaultyRegistry, path: str
    ) -> None:
        faulty_registry.inject(Answer(status=403), method="PUT", path=path, times=None)
        reference = faulty_registry.reference("acme/llm", TAG)
        key = ("--sign", keys / "cosign.key", "--password-file", "password")
        assert_refused(command.run("push", layout, reference, *key, check=False), 7, "403")
        assert faulty_registry.store.tags("acme/llm") == []

    def test_a_refused_last_tag_leaves_the_old_image(
        self, command: Edgebuild, layout: Path, faulty_registry: FaultyRegistry
    ) -> None:
        reference = faulty_registry.reference("acme/llm", TAG)
        command.run("push", layout, reference)
        old, _, _ = faulty_registry.store.manifest("acme/llm", TAG)
        other = command.folder / "other"
        with LayoutSink(other, progress=SilentProgress()) as sink:
            publish(sink, small_index("another"), tag=TAG)
        faulty_registry.inject(Answer(status=403), method="PUT", path=r"/manifests/sha256:", times=None)
        assert_refused(command.run("push", other, reference, check=False), 7, "403")
        assert faulty_registry.store.manifest("acme/llm", TAG)[0] == old

    def test_wrong_key_password_sends_nothing(
        self, command: Edgebuild, layout: Path, keys: Path, faulty_registry: FaultyRegistry
    ) -> None:
        reference = faulty_registry.reference("acme/llm", TAG)
        done = command.run(
            "push",
            layout,
            reference,
            "--sign",
            keys / "cosign.key",
            env={"COSIGN_PASSWORD": "no"},
            check=False,
        )
        assert_refused(done, 8, "password")
        assert faulty_registry.requests == ()

    def test_signing_and_verifying_what_is_not_there(
        self, command: Edgebuild, keys: Path, faulty_registry: FaultyRegistry
    ) -> None:
        reference = faulty_registry.reference("acme/llm", TAG)
        key = ("--key", keys / "cosign.key", "--password-file", "password")
        assert_refused(command.run("sign", reference, *key, check=False), 8, "not there")
        done = command.run("verify", reference, "--key", keys / "cosign.pub", check=False)
        assert_refused(done, 8, "not there")
        digest = f"{faulty_registry.host}/acme/llm@sha256:{'0' * 64}"
        assert_refused(command.run("sign", digest, *key, check=False), 8, "not there")
        assert uploads(faulty_registry) == []

    def test_a_tag_for_an_image_in_a_registry(
        self, command: Edgebuild, keys: Path, faulty_registry: FaultyRegistry
    ) -> None:
        reference = faulty_registry.reference("acme/llm", TAG)
        key = ("--key", keys / "cosign.key", "--password-file", "password")
        assert_refused(command.run("sign", reference, *key, "--tag", reference, check=False), 2, "--tag")
        done = command.run("sign", "no-such-folder", *key, check=False)
        assert_refused(done, 6, "no-such-folder")

    @pytest.mark.peers
    def test_login_of_the_real_registry(
        self, command: Edgebuild, layout: Path, keys: Path, auth_registry: Registry, crane: Tool
    ) -> None:
        reference = auth_registry.reference("acme/llm", TAG)
        key = ("--sign", keys / "cosign.key", "--password-file", "password")
        assert_refused(command.run("push", layout, reference, *key, check=False), 7, "401")
        auth_registry.write_docker_config(command.folder / "docker")
        env = {"DOCKER_CONFIG": str(command.folder / "docker")}
        listed = crane.run("ls", reference.rpartition(":")[0], env=env, check=False)
        assert listed.stdout == ""
        command.run("push", layout, reference, *key)
        listed = crane.run("ls", reference.rpartition(":")[0], env=env)
        assert {TAG, f"{TAG}-pi4", f"{TAG}-x86"} <= set(listed.stdout.split())
        command.run("verify", reference, "--key", keys / "cosign.pub", "--name", reference)


@pytest.fixture
def faulty_login(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyRegistry]:
    with FaultyRegistry(tmp_path_factory.mktemp("registry"), login=BasicLogin()) as registry:
        yield registry


def _write_login(command: Edgebuild, registry: FaultyRegistry, login: str) -> None:
    document = {"auths": {registry.host: {"auth": base64.b64encode(login.encode()).decode()}}}
    (command.folder / "docker" / "config.json").write_text(json.dumps(document), "utf-8")


class TestArguments:
    def test_what_the_parser_refuses_looks_like_every_other_error(self, command: Edgebuild) -> None:
        for arguments, part in (
            (("image", "--profle", "x86"), "--profile"),
            (("image",), "--profile"),
            (("imgae",), "image"),
            (("image", "--profile", "x86", "--engine", "docker"), "native"),
            (("cache", "prune", "--unused-for", "soon"), "soon"),
            (("cache", "prune"), "remove"),
        ):
            assert_refused(command.run(*arguments, check=False), 2, part)
        done = command.run("image", "--profle", "x86", "--json", check=False)
        assert json.loads(done.stdout)["error"]["exit_code"] == 2
