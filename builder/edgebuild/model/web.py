"""Models from anywhere on the web, known by their sha256."""

from urllib.parse import urlsplit

from edgebuild.artifacts.download import Hints, Wanted
from edgebuild.artifacts.store import Store
from edgebuild.errors import ModelError, UsageError
from edgebuild.gguf_joined import is_one_of_several
from edgebuild.host import Host
from edgebuild.model.addresses import found_at_addresses
from edgebuild.model.found import Found
from edgebuild.model.reference import WebReference
from edgebuild.model_spec import gguf_file_name
from edgebuild.network import is_loopback_host
from edgebuild.plan import ModelSource
from edgebuild.progress import Progress

_HINTS = Hints(
    away="check the address, the network and proxies; what arrived is kept for the next try",
    gone="check the address: nothing is there",
    refused="check the address and what its server asks for",
    other="check the sha256 in --model, and that the address is the one it was published for",
)


def find_web_model(reference: WebReference, *, host: Host, store: Store, progress: Progress) -> Found:
    """Say where the file lies; nothing is asked yet.

    Raises:
        UsageError: The address is plain HTTP to another machine.
        ModelError: It is one of several files, of which a sha256 names only one.
    """
    parts = urlsplit(reference.url)
    if parts.scheme.lower() != "https" and not is_loopback_host(parts.hostname or ""):
        raise UsageError(
            f"{reference.shown} is not https", hint="plain http shows everybody what is fetched; take https"
        )
    file = gguf_file_name(reference.file)
    if is_one_of_several(file):
        raise ModelError(
            f"{reference.shown} is one of several files of a model, and one sha256 tells nothing of the others",
            hint="fetch all of them and give the path of the first, or take them from a hub or registry",
        )
    wanted = Wanted(
        url=reference.url, file=file, digest=reference.digest, size_bytes=0, title=file, hints=_HINTS
    )
    source = ModelSource(kind="web", reference=reference.shown, file=file, sha256=reference.digest.hex)
    return found_at_addresses((wanted,), source, host=host, store=store, progress=progress)
