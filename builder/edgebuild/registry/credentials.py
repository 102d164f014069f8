"""Logins, as `docker login` and `podman login` leave them. Secrets never appear in messages."""

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgebuild import process
from edgebuild.errors import RegistryError, ToolError

_HELPER_TIMEOUT_S = 30.0
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# docker-credential-helpers credentials/error.go, errCredentialsNotFoundMessage: the protocol's word for "none".
_NOT_FOUND = "credentials not found in native keychain"
_HUB_HOSTS = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_HUB_KEY = "https://index.docker.io/v1/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A login: a name with a password, or a token of one of two kinds.

    Attributes:
        username: Name, or "".
        password: Its password, or "".
        identity_token: A refresh token to be given to the token server, or "".
        registry_token: A bearer token for the registry itself, or "".
        source: Where it was found, for messages.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    source: str = ""


def find_credential(registry: str, repository: str, environment: Mapping[str, str]) -> Credential | None:
    """Look up the login for a repository; None when nobody logged in.

    Files in this order, the first that knows the registry wins: REGISTRY_AUTH_FILE, Docker's config.json
    (DOCKER_CONFIG, else ~/.docker), podman's auth.json (XDG_RUNTIME_DIR, then ~/.config). In each, a credential
    helper comes before a stored entry, and of stored entries the one that names most of the path.

    Raises:
        RegistryError: A file or helper is broken.

    Source: docker/cli cli/config; containers-auth.json(5).
    """
    for path in _files(environment):
        if document := _read(path):
            found = _from_helpers(document, registry, path, environment) or _from_entries(
                document, registry, repository, path
            )
            if found is not None:
                return found
    return None


def _files(environment: Mapping[str, str]) -> Iterator[Path]:
    home = environment.get("HOME")
    if named := environment.get("REGISTRY_AUTH_FILE"):
        yield Path(named)
    if folder := environment.get("DOCKER_CONFIG"):
        yield Path(folder) / "config.json"
    elif home:
        yield Path(home) / ".docker" / "config.json"
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers" / "auth.json"
    if home:
        yield Path(home) / ".config" / "containers" / "auth.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise RegistryError(
            f"logins cannot be read from {path}: {error.strerror}", hint="check who may read the file"
        ) from error
    try:
        document = json.loads(raw or b"{}")
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"{path} is not JSON", hint="mend it, or remove it and log in again") from error
    if not isinstance(document, dict):
        raise RegistryError(f"{path} is not a JSON object", hint="mend it, or remove it and log in again")
    return document


def _from_helpers(
    document: Mapping[str, Any], registry: str, path: Path, environment: Mapping[str, str]
) -> Credential | None:
    helpers = document.get("credHelpers")
    by_host = helpers if isinstance(helpers, dict) else {}
    names = [by_host[key] for key in _server_names(registry) if key in by_host][:1]
    if document.get("credsStore"):
        names.append(document["credsStore"])
    for name in names:
        if not isinstance(name, str) or not _HELPER_NAME.fullmatch(name):
            raise RegistryError(f"{path} names a credential helper that cannot exist", hint="mend the file")
        for server in _server_names(registry)[:2]:
            if (found := _ask_helper(name, server, environment)) is not None:
                return found
    return None


def _server_names(registry: str) -> tuple[str, ...]:
    if registry in _HUB_HOSTS:
        return (_HUB_KEY, "docker.io", "index.docker.io")
    return (registry,)


def _ask_helper(name: str, server: str, environment: Mapping[str, str]) -> Credential | None:
    program = f"docker-credential-{name}"
    hint = f"run it by hand: echo {server} | {program} get"
    try:
        done = process.run(
            (program, "get"),
            environment=environment,
            stdin=server.encode(),
            timeout_s=_HELPER_TIMEOUT_S,
            check=False,
        )
    except ToolError as error:
        raise RegistryError(f"the login for {server}: {error.message}", hint=hint) from error
    if done.returncode != 0:
        if _NOT_FOUND in done.stdout:
            return None
        raise RegistryError(
            f"the login for {server}: {program} failed with exit code {done.returncode}", hint=hint
        )
    try:
        document = json.loads(done.stdout)
        username, secret = document["Username"], document["Secret"]
    except (ValueError, KeyError, TypeError, RecursionError):
        # "from None": the exception's text could hold the secret.
        raise RegistryError(
            f"the login for {server}: {program} did not answer with Username and Secret", hint=hint
        ) from None
    if not isinstance(username, str) or not isinstance(secret, str):
        raise RegistryError(f"the login for {server}: {program} answered with no text", hint=hint)
    return _login(username, secret, program)


def _login(username: str, secret: str, source: str) -> Credential:
    # docker/cli cli/config/credentials: the name "<token>" marks an identity token.
    if username == "<token>":
        return Credential(identity_token=secret, source=source)
    return Credential(username=username, password=secret, source=source)


def _from_entries(
    document: Mapping[str, Any], registry: str, repository: str, path: Path
) -> Credential | None:
    auths = document.get("auths")
    if not isinstance(auths, dict):
        return None
    wanted = f"{'docker.io' if registry in _HUB_HOSTS else registry}/{repository}/"
    matches = sorted(
        (key for key, entry in auths.items() if isinstance(entry, dict) and entry and _covers(key, wanted)),
        key=lambda key: len(_plain(key)),
        reverse=True,
    )
    for key in matches:
        if (found := _entry(auths[key], key, path)) is not None:
            return found
    return None


def _plain(key: str) -> str:
    """Strip what old clients wrote around the host: "https://HOST/v1/" is HOST."""
    bare = key.partition("://")[2] if "://" in key else key
    bare = re.sub(r"/v[12]/?$", "", bare.rstrip("/"))
    host, slash, rest = bare.partition("/")
    return ("docker.io" if host in _HUB_HOSTS else host) + slash + rest


def _covers(key: str, wanted: str) -> bool:
    return wanted.startswith(f"{_plain(key)}/")


def _entry(entry: Mapping[str, Any], key: str, path: Path) -> Credential | None:
    source = str(path)
    if token := entry.get("identitytoken"):
        return Credential(identity_token=str(token), source=source)
    if token := entry.get("registrytoken"):
        return Credential(registry_token=str(token), source=source)
    if auth := entry.get("auth"):
        try:
            username, colon, password = base64.b64decode(str(auth), validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            colon = username = password = ""
        if not colon:
            raise RegistryError(
                f"{path}: the entry of {key} is not base64 of NAME:PASSWORD",
                hint=f"log in again: docker login {_plain(key)}",
            )
        return _login(username, password.rstrip("\0"), source)
    if entry.get("username") and entry.get("password"):
        return _login(str(entry["username"]), str(entry["password"]), source)
    return None
