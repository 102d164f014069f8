"""Opens everything that access hangs on, once at start, from the settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeserve.access.door import Door
from edgeserve.access.keys import KeyRing, load_keys
from edgeserve.access.tls import CLIENT_CA, Certificates, Clients, load_certificates, tls_paths
from edgeserve.access.watched import AccessError, Watched
from edgeserve.log import Log
from edgeserve.settings import KEYS_FILE, TLS_FOLDER, AccessSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What guards the server, the same for every interface; None is what is not used."""

    door: Door
    tls: Watched[Certificates] | None
    keys: Watched[KeyRing] | None

    @property
    def watched(self) -> tuple[Watched[Any], ...]:
        """What is to be looked at again while the server runs."""
        return tuple(one for one in (self.tls, self.keys) if one is not None)

    @property
    def ways(self) -> tuple[tuple[str, ...], ...]:
        """In which ways a request comes in: each names credentials, "key" and "certificate", that it needs together."""
        clients = Clients.NONE if self.tls is None else self.tls.value.clients
        ways: list[tuple[str, ...]] = []
        if self.keys is not None:
            ways.append(("key", "certificate") if clients is Clients.REQUIRED else ("key",))
        if clients is not Clients.NONE and not self.door.requires_key:
            ways.append(("certificate",))
        return tuple(ways) or ((),)

    def describe(self) -> dict[str, object]:
        """Say how the server is guarded, for the log."""
        tls, keys = self.tls, self.keys
        fields: dict[str, object] = {
            "tls": "off" if tls is None else f"{tls.value.minimum}+",
            "keys": "off" if keys is None else len(keys.value),
            "certificates": (Clients.NONE if tls is None else tls.value.clients).value,
        }
        if keys is None and (tls is None or tls.value.clients is Clients.NONE):
            fields["note"] = "anyone who reaches this port can use the model"
        elif tls is None:
            fields["note"] = "keys, prompts and answers cross the network in the clear"
        return fields


def open_access(settings: AccessSettings, log: Log) -> Access:
    """Read what is mounted.

    Raises:
        AccessError: Something that is there cannot be used, or something required is not there.
    """
    keys = _open_keys(settings, log)
    tls = _open_tls(settings, log, has_keys=keys is not None)
    return Access(door=Door(keys, requires_key=settings.require_key), tls=tls, keys=keys)


# Half a mount, a folder without its files, is a fault and never an open door; so is a folder of one's own that is not there.


def _open_keys(settings: AccessSettings, log: Log) -> Watched[KeyRing] | None:
    path = settings.keys_file
    if not path or (path == KEYS_FILE and not Path(path).parent.is_dir()):
        if settings.require_key:
            raise AccessError(
                f"server.access.require_key is on, and there are no keys: mount a folder that makes {path or KEYS_FILE}"
            )
        return None
    return Watched("keys", (path,), lambda: load_keys(path), log=log)


def _open_tls(settings: AccessSettings, log: Log, *, has_keys: bool) -> Watched[Certificates] | None:
    folder = settings.tls_folder
    if not folder or (folder == TLS_FOLDER and not Path(folder).is_dir()):
        for name in ("require_tls", "require_certificate"):
            if getattr(settings, name):
                raise AccessError(
                    f"server.access.{name} is on, and there is no TLS: mount a folder at {folder or TLS_FOLDER}"
                )
        return None
    has_ca = Path(folder, CLIENT_CA).exists()
    if settings.require_certificate or (has_ca and not has_keys):
        clients = Clients.REQUIRED
    else:
        clients = Clients.OPTIONAL if has_ca else Clients.NONE
    return Watched(
        "tls",
        tls_paths(folder),
        lambda: load_certificates(folder, minimum=settings.tls_minimum, clients=clients),
        log=log,
        is_worn=lambda certificates: certificates.is_worn,
    )
