"""Downloads from a real server that cuts, lies and fails."""

import os
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from edgebuild.artifacts.download import Wanted, download
from edgebuild.artifacts.store import Store
from edgebuild.artifacts.tries import Patience
from edgebuild.errors import ToolError
from edgebuild.network import Stop, make_client
from edgebuild.oci.digest import Digest
from edgebuild.pieces import PIECE_BYTES, PIECES_FROM_BYTES, Lanes, Spread, fetch_pieces
from tests.support.file_server import FileServer, Page, file_server
from tests.unit.artifacts.telling import Told

BODY = os.urandom(3_000_000)
LARGE = os.urandom(PIECES_FROM_BYTES + 5)
QUICK = Patience(attempts=3, deadline_s=30, backoff_s=0.01)


def wanted(server: FileServer, body: bytes = BODY, *, size_bytes: int | None = None) -> Wanted:
    return Wanted(
        url=f"{server.url}/f.whl",
        file="f.whl",
        digest=Digest.of(body),
        size_bytes=len(body) if size_bytes is None else size_bytes,
        title="f 1.0",
    )


def fetch(server: FileServer, store: Store, told: Told, item: Wanted | None = None) -> Path:
    return download(item or wanted(server), store=store, environment={}, progress=told, patience=QUICK)


def scratch(store: Store) -> list[Path]:
    return list(store.scratch("partial").glob("*"))


def test_file_is_fetched_once(server: FileServer, store: Store, told: Told) -> None:
    server.pages["/f.whl"] = Page(BODY)
    path = fetch(server, store, told)
    assert path.read_bytes() == BODY
    assert path.name == "f.whl"
    assert told.advanced_bytes == len(BODY)
    assert fetch(server, store, told) == path
    assert len(server.asked) == 1
    assert scratch(store) == []


def test_cut_connection_is_resumed_where_it_broke(server: FileServer, store: Store, told: Told) -> None:
    server.pages["/f.whl"] = Page(BODY, cuts=[1_000_000, 500_000])
    assert fetch(server, store, told).read_bytes() == BODY
    assert [asked for _, asked in server.asked] == ["", "bytes=1000000-", "bytes=1500000-"]
    assert told.advanced_bytes == len(BODY)


def test_server_without_ranges_sends_everything_again(server: FileServer, store: Store, told: Told) -> None:
    server.pages["/f.whl"] = Page(BODY, cuts=[1_000_000], ranges=False)
    assert fetch(server, store, told).read_bytes() == BODY
    assert len(server.asked) == 2


def test_cut_of_a_file_of_unknown_size_is_noticed(server: FileServer, store: Store, told: Told) -> None:
    server.pages["/f.whl"] = Page(BODY, cuts=[10])
    assert fetch(server, store, told, wanted(server, size_bytes=0)).read_bytes() == BODY


def test_what_may_pass_is_tried_again(server: FileServer, store: Store, told: Told) -> None:
    server.pages["/f.whl"] = Page(BODY, failures=[503, 429])
    assert fetch(server, store, told).read_bytes() == BODY
    assert len(server.asked) == 3


def test_endless_failure_ends_after_the_tries_allowed(server: FileServer, store: Store, told: Told) -> None:
    server.pages["/f.whl"] = Page(BODY, refuse=503)
    with pytest.raises(ToolError, match=r"f\.whl from 127\.0\.0\.1 cannot be downloaded: 503") as caught:
        fetch(server, store, told)
    assert len(server.asked) == QUICK.attempts
    assert "mirror" in caught.value.hint


def test_tries_that_bring_new_bytes_do_not_count(server: FileServer, store: Store, told: Told) -> None:
    server.pages["/f.whl"] = Page(BODY, cuts=[300_000] * 9)
    assert fetch(server, store, told).read_bytes() == BODY
    assert len(server.asked) == 10


@pytest.mark.parametrize("status", [404, 410, 403])
def test_refusal_is_final(server: FileServer, store: Store, told: Told, status: int) -> None:
    server.pages["/f.whl"] = Page(BODY, refuse=status)
    with pytest.raises(ToolError, match=str(status)) as caught:
        fetch(server, store, told)
    assert len(server.asked) == 1
    assert ("--update-lock" in caught.value.hint) == (status != 403)


def test_server_that_is_not_there(server: FileServer, store: Store, told: Told) -> None:
    item = Wanted(url="http://127.0.0.1:9/f", file="f", digest=Digest.of(b""), size_bytes=1, title="f")
    with pytest.raises(ToolError, match="cannot be downloaded"):
        fetch(server, store, told, item)


def test_other_bytes_are_refused_and_nothing_is_kept(server: FileServer, store: Store, told: Told) -> None:
    server.pages["/f.whl"] = Page(bytes(len(BODY)))
    with pytest.raises(ToolError, match="has sha256") as caught:
        fetch(server, store, told)
    assert "another mirror" in caught.value.hint
    assert len(server.asked) == 2
    assert scratch(store) == []
    assert store.find("download", Digest.of(BODY)) is None


def test_longer_file_is_refused_without_reading_all_of_it(
    server: FileServer, store: Store, told: Told
) -> None:
    server.pages["/f.whl"] = Page(BODY + bytes(50_000_000))
    with pytest.raises(ToolError, match="longer than"):
        fetch(server, store, told)
    assert sum(path.stat().st_size for path in scratch(store)) <= len(BODY)


@pytest.mark.parametrize("left", [BODY[:1000], b"broken" * 100, BODY, BODY + b"more"])
def test_scratch_file_of_an_earlier_run_is_used_or_thrown_away(
    server: FileServer, store: Store, told: Told, left: bytes
) -> None:
    server.pages["/f.whl"] = Page(BODY)
    (store.scratch("partial") / Digest.of(BODY).hex).write_bytes(left)
    assert fetch(server, store, told).read_bytes() == BODY


def test_two_at_once_fetch_once(server: FileServer, store: Store, told: Told) -> None:
    server.pages["/f.whl"] = Page(BODY)
    threads = [threading.Thread(target=fetch, args=(server, store, told)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(server.asked) == 1


def test_message_holds_no_password(server: FileServer, store: Store, told: Told) -> None:
    url = server.url.replace("http://", "http://user:secret@") + "/gone"
    item = Wanted(url=url, file="f", digest=Digest.of(b""), size_bytes=1, title="f")
    with pytest.raises(ToolError) as caught:
        fetch(server, store, told, item)
    assert "secret" not in caught.value.message + caught.value.hint


def test_stop_ends_a_wait_and_keeps_what_arrived(server: FileServer, store: Store, told: Told) -> None:
    server.pages["/f.whl"] = Page(BODY, cuts=[1_000_000] * 9)
    patient = Patience(attempts=9, deadline_s=600, backoff_s=300)
    with closing(Stop()) as stop:

        def stop_when_something_arrived() -> None:
            while not any(path.stat().st_size == 1_000_000 for path in scratch(store)):
                time.sleep(0.01)
            stop.set()

        watcher = threading.Thread(target=stop_when_something_arrived, daemon=True)
        watcher.start()
        with pytest.raises(ToolError, match="was stopped"):
            download(wanted(server), store=store, environment={}, progress=told, patience=patient, stop=stop)
        watcher.join()
    (left,) = scratch(store)
    assert left.read_bytes() == BODY[:1_000_000]


def read_bytes() -> int:
    """Bytes that this process has read from files; what comes over sockets is not among them."""
    lines = Path("/proc/self/io").read_text("ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))


def pieces_asked(server: FileServer) -> set[str]:
    return {asked for _, asked in server.asked if not asked.endswith("-")}


def test_large_file_comes_by_several_connections_in_order(
    server: FileServer, store: Store, told: Told
) -> None:
    server.pages["/f.whl"] = Page(LARGE)
    assert fetch(server, store, told, wanted(server, LARGE)).read_bytes() == LARGE
    begins = range(0, len(LARGE), PIECE_BYTES)
    assert pieces_asked(server) - {""} == {
        f"bytes={begin}-{min(begin + PIECE_BYTES, len(LARGE)) - 1}" for begin in begins
    }
    assert told.advanced_bytes == len(LARGE)
    assert server.most_at_once > 1


@pytest.mark.parametrize("body", [BODY, LARGE], ids=["small", "large"])
def test_no_file_is_read_again_after_it_has_come(
    server: FileServer, store: Store, told: Told, body: bytes
) -> None:
    server.pages["/f.whl"] = Page(body, cuts=[1_000_000])
    before = read_bytes()
    path = fetch(server, store, told, wanted(server, body))
    assert read_bytes() - before < 500_000
    assert store.find_download(Digest.of(body), "f.whl") == path
    assert store.verify() == ()


def test_large_file_of_unknown_size_from_where_an_earlier_run_stopped(
    server: FileServer, store: Store, told: Told
) -> None:
    body = LARGE + BODY
    server.pages["/f.whl"] = Page(body)
    (store.scratch("partial") / Digest.of(body).hex).write_bytes(body[: len(BODY)])
    assert fetch(server, store, told, wanted(server, body, size_bytes=0)).read_bytes() == body
    assert server.asked[0] == ("/f.whl", f"bytes={len(BODY)}-")
    assert (told.advanced_bytes, told.total_bytes) == (len(body), len(body))
    assert f"bytes={len(BODY)}-{len(BODY) + PIECE_BYTES - 1}" in pieces_asked(server)


def test_large_file_from_a_server_that_cuts(server: FileServer, store: Store, told: Told) -> None:
    server.pages["/f.whl"] = Page(LARGE, cuts=[0, *[3_000_000] * 12])
    assert fetch(server, store, told, wanted(server, LARGE)).read_bytes() == LARGE
    assert told.advanced_bytes == len(LARGE)


def test_large_file_from_a_server_without_parts(server: FileServer, store: Store, told: Told) -> None:
    server.pages["/f.whl"] = Page(LARGE, ranges=False)
    assert fetch(server, store, told, wanted(server, LARGE)).read_bytes() == LARGE
    assert len(server.asked) == 1


def test_large_file_from_a_server_that_promises_parts_and_gives_none(
    server: FileServer, store: Store, told: Told
) -> None:
    server.pages["/f.whl"] = Page(LARGE, ranges=False, headers={"Accept-Ranges": "bytes"})
    assert fetch(server, store, told, wanted(server, LARGE)).read_bytes() == LARGE


def test_address_that_ends_its_life_is_asked_for_again(server: FileServer, store: Store, told: Told) -> None:
    """Storage behind a hub is reached by an address that is good for minutes."""
    server.pages["/f.whl"] = Page(b"", redirect=f"{server.url}/signed")
    server.pages["/signed"] = Page(LARGE, lives=4)
    server.on_gone = lambda: server.pages.update({"/signed": Page(LARGE)})
    assert fetch(server, store, told, wanted(server, LARGE)).read_bytes() == LARGE
    assert [path for path, _ in server.asked].count("/f.whl") == 2


def test_authorization_goes_to_its_own_server_alone(server: FileServer, store: Store, told: Told) -> None:
    with file_server() as storage:
        server.pages["/f.whl"] = Page(b"", redirect=f"{storage.url}/signed")
        storage.pages["/signed"] = Page(LARGE)
        item = replace(wanted(server, LARGE), headers={"Authorization": "Bearer secret"})
        assert fetch(server, store, told, item).read_bytes() == LARGE
        assert set(server.authorizations) == {"Bearer secret"}
        assert set(storage.authorizations) == {""}
    assert "secret" not in repr(item)


def test_wait_that_a_server_asks_for_is_heeded_or_named(server: FileServer, store: Store, told: Told) -> None:
    server.pages["/f.whl"] = Page(BODY, failures=[429], headers={"Retry-After": "1"})
    begin = time.monotonic()
    fetch(server, store, told)
    assert time.monotonic() - begin >= 1
    server.pages["/g.whl"] = Page(BODY, refuse=429, headers={"Retry-After": "3600"})
    item = replace(wanted(server), url=f"{server.url}/g.whl", digest=Digest.of(b"g"))
    with pytest.raises(ToolError, match=r"429 .*asked to wait 3600 s"):
        fetch(server, store, told, item)


def test_server_that_says_nothing_more(server: FileServer, store: Store, told: Told) -> None:
    server.pages["/f.whl"] = Page(BODY, stalls=[500_000])
    patient = replace(QUICK, idle_s=0.5)
    path = download(wanted(server), store=store, environment={}, progress=told, patience=patient)
    assert path.read_bytes() == BODY
    assert [asked for _, asked in server.asked] == ["", "bytes=500000-"]


def test_redirect_that_leads_nowhere(server: FileServer, store: Store, told: Told) -> None:
    server.pages["/f.whl"] = Page(b"", redirect="/f.whl")
    with pytest.raises(ToolError, match="cannot be downloaded"):
        fetch(server, store, told)


def test_stop_ends_connections_that_wait(server: FileServer, store: Store, told: Told) -> None:
    server.pages["/f.whl"] = Page(LARGE, cuts=[0], stalls=[5_000_000] * 9)
    with closing(Stop()) as stop:
        threading.Timer(0.5, stop.set).start()
        begin = time.monotonic()
        with pytest.raises(ToolError, match="was stopped"):
            download(wanted(server, LARGE), store=store, environment={}, progress=told, stop=stop)
        assert time.monotonic() - begin < 10


def test_files_side_by_side_share_the_room_for_pieces(server: FileServer) -> None:
    server.pages["/f.whl"] = Page(LARGE)
    spread = Spread(
        url=f"{server.url}/f.whl", headers=dict, begin=0, end=len(LARGE),
        connect=lambda stop: make_client({}, stop=stop, idle_s=60),
    )  # fmt: skip
    has_begun = threading.Event()
    with closing(Stop()) as stop, Lanes() as lanes, ExitStack() as stack:
        first, second, third = (
            stack.enter_context(closing(fetch_pieces(spread, lanes=lanes, stop=stop))) for _ in range(3)
        )
        assert LARGE.startswith(next(first))
        assert LARGE.startswith(next(second))

        def begin_third() -> None:
            assert LARGE.startswith(next(third))
            has_begun.set()

        thread = threading.Thread(target=begin_third)
        thread.start()
        assert not has_begun.wait(0.5)
        assert len(server.asked) == 8
        first.close()
        thread.join(30)
        assert has_begun.is_set()


def test_pieces_that_nobody_wants_any_more_are_ended_at_once(server: FileServer) -> None:
    """As when the disk is full: connections that wait for bytes must not hold the end up."""
    server.pages["/f.whl"] = Page(LARGE, silent_from=PIECE_BYTES)
    spread = Spread(
        url=f"{server.url}/f.whl", headers=dict, begin=0, end=len(LARGE),
        connect=lambda stop: make_client({}, stop=stop, idle_s=60),
    )  # fmt: skip
    with (
        closing(Stop()) as stop, Lanes() as lanes,
        closing(fetch_pieces(spread, lanes=lanes, stop=stop)) as pieces,
    ):  # fmt: skip
        assert LARGE.startswith(next(pieces))
        begin = time.monotonic()
        while len(server.asked) < 3 and time.monotonic() < begin + 10:
            time.sleep(0.01)
        begin = time.monotonic()
    assert time.monotonic() - begin < 20
    assert not stop.is_set()
