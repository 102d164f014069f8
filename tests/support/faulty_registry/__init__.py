"""A loopback registry that can be told to fail: the one test double that the tests allow themselves.

    with FaultyRegistry(folder) as registry:
        registry.inject(Answer(status=503, headers={"Retry-After": "1"}), method="PUT", path="/manifests/", times=2)
        push(layout, f"{registry.host}/repo:tag")
        assert [request.status for request in registry.requests if request.method == "PUT"] == [503, 503, 201]

Without faults it is a strict registry of the OCI distribution specification 1.1: it checks digests, offsets and that a
manifest's parts are there.
"""

from tests.support.faulty_registry.auth import BasicLogin, TokenLogin
from tests.support.faulty_registry.faults import (
    Answer,
    Corrupt,
    CutRequest,
    CutResponse,
    Effect,
    Hang,
    Inflate,
    Injection,
    WrongDigest,
)
from tests.support.faulty_registry.server import FaultyRegistry, Recorded

__all__ = [
    "Answer",
    "BasicLogin",
    "Corrupt",
    "CutRequest",
    "CutResponse",
    "Effect",
    "FaultyRegistry",
    "Hang",
    "Inflate",
    "Injection",
    "Recorded",
    "TokenLogin",
    "WrongDigest",
]
