"""Models from a Hugging Face hub.

huggingface_hub asks the hub what there is: it knows the API, revisions and refusals. The bytes come through our own
downloader, which hashes them as they arrive, goes on where a run before stopped, and puts them into the store once.

1. The revision is pinned to a commit; what the hub says of a commit never changes and is remembered.
2. One model is chosen: a file, or several that belong together.
3. Each file is fetched by its sha256, which the hub tells of every large file.
"""

import json
from contextlib import suppress
from dataclasses import asdict, replace

from edgebuild.artifacts.store import Store
from edgebuild.artifacts.tries import USUAL, Patience
from edgebuild.canonical import canonical_json
from edgebuild.errors import ModelError, ToolError
from edgebuild.gguf_joined import find_shards
from edgebuild.host import Host
from edgebuild.model.addresses import found_at_addresses
from edgebuild.model.found import Found
from edgebuild.model.hub_api import Hub, HubFile, Listing
from edgebuild.model.reference import HubReference
from edgebuild.model.selection import choose_files, find_candidates
from edgebuild.model_spec import gguf_file_name
from edgebuild.oci.digest import Digest
from edgebuild.plan import ModelSource
from edgebuild.progress import Progress


def find_hub_model(
    reference: HubReference,
    *,
    wanted: tuple[str, ...],
    host: Host,
    store: Store,
    progress: Progress,
    may_set_up: bool = True,
    patience: Patience = USUAL,
) -> Found:
    """Find a GGUF model of a repository, or its checkpoint, which is converted when it is fetched.

    Args:
        reference: Repository, revision and file.
        wanted: Types that the devices want, each once.
        host: Its environment names the hub and the token.
        store: Takes the files.
        progress: Told what was chosen and of the bytes.
        may_set_up: Whether what converting a checkpoint needs may be fetched.
        patience: How long the hub and its storage are asked.

    Raises:
        ModelError: There is no such repository, revision or file, or no clear choice.
        ToolError: The hub refuses, fails or serves other bytes.
        StoreError: The disk is full.
    """
    hub = Hub(host.environment, patience=patience)
    listing = _list_files(hub, reference, host=host, store=store)
    pinned = HubReference(repository=reference.repository, revision=listing.commit)
    # Step 2.
    files = _choose(reference, listing, wanted)
    if not files:
        from edgebuild.model.hub_checkpoint import convert_repository  # noqa: PLC0415 - GGUF files do without the converter

        return Found(
            place=str(pinned),
            fetch=lambda _: convert_repository(
                hub,
                reference,
                listing,
                host=host,
                store=store,
                progress=progress,
                may_set_up=may_set_up,
                patience=patience,
            ),
            reason="it is a checkpoint, which is converted",
        )
    # Step 3.
    first = files[0]
    if not reference.file or not reference.is_pinned:
        several = f" and the {len(files) - 1} that belong to it" if len(files) > 1 else ""
        progress.note(f"{reference}: taking {first.path}{several} at commit {listing.commit}")
    named = tuple((gguf_file_name(file.path.rpartition("/")[2]), file.sha256) for file in files)
    is_one = len(files) == 1
    source = ModelSource(
        kind="huggingface",
        reference=str(replace(pinned, file=first.path)),
        revision=listing.commit,
        file=named[0][0],
        sha256=first.sha256 if is_one else "",
        licence=listing.licence,
        files=() if is_one else named,
    )
    return found_at_addresses(
        tuple(hub.wanted(pinned, file, name=name) for file, (name, _) in zip(files, named, strict=True)),
        source,
        host=host,
        store=store,
        progress=progress,
        patience=patience,
    )


def _list_files(hub: Hub, reference: HubReference, *, host: Host, store: Store) -> Listing:
    """List a repository, from the store where its commit was asked for before."""
    # Step 1.
    listing = _recall(hub, reference, store)
    if listing is None:
        if host.environment.get("HF_HUB_OFFLINE", "0").lower() in {"1", "true", "yes", "on"}:
            raise ToolError(
                f"{reference} is not in the store, and HF_HUB_OFFLINE forbids to ask the hub",
                hint="unset HF_HUB_OFFLINE, or name a commit that was fetched before",
            )
        listing = hub.list_files(reference)
        _remember(hub, reference, listing, store)
    return listing


def _choose(reference: HubReference, listing: Listing, wanted: tuple[str, ...]) -> tuple[HubFile, ...]:
    """Choose a GGUF model; empty when there is none and no file was named."""
    by_path = {file.path: file for file in listing.files}
    place = f"hf://{reference.repository}" + (f"@{reference.revision}" if reference.revision else "")
    if reference.file:
        if reference.file not in by_path:
            held = ", ".join(candidate.file for candidate in find_candidates(by_path)) or "no GGUF file"
            raise ModelError(f"{place} has no file {reference.file}", hint=f"it holds {held}")
        if not reference.file.lower().endswith(".gguf"):
            raise ModelError(f"{place}/{reference.file} is no GGUF file", hint="name a .gguf file, or none")
        paths = find_shards(by_path, reference.file, place=place)
    else:
        paths = choose_files(by_path, wanted=wanted, place=place, hint=f"name the file: {place}/{{file}}")
    for path in paths:
        if not by_path[path].sha256:
            raise ModelError(
                f"{place}/{path} is kept in git, so the hub tells no sha256 of it",
                hint="fetch it yourself and give its path, or https://…#sha256=…",
            )
    return tuple(by_path[path] for path in paths)


def _note_name(hub: Hub, reference: HubReference) -> str:
    key = Digest.of(canonical_json([2, hub.endpoint, reference.repository, reference.revision]))
    return f"hub-{key.hex}.json"


def _recall(hub: Hub, reference: HubReference, store: Store) -> Listing | None:
    """Return what the hub said of a commit before; what it says of a branch is asked anew each time."""
    note = store.recall(_note_name(hub, reference)) if reference.is_pinned else None
    if note is None:
        return None
    with suppress(ValueError, TypeError, KeyError):
        document = json.loads(note)
        files = tuple(HubFile(**file) for file in document.pop("files"))
        return Listing(**document, files=files)
    return None


def _remember(hub: Hub, reference: HubReference, listing: Listing, store: Store) -> None:
    pinned = HubReference(repository=reference.repository, revision=listing.commit)
    store.remember(_note_name(hub, pinned), canonical_json(asdict(listing)))
