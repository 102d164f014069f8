"""Reads /metrics of an edgeserve process as Prometheus' own library does."""

import http.client
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from tests.support.llama import ServerProcess


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """What came back."""

    status: int
    content_type: str
    text: str

    @property
    def families(self) -> set[str]:
        """Names as queries write them."""
        return {
            family.name + ("_total" if family.type == "counter" else "")
            for family in text_string_to_metric_families(self.text)
        }

    @property
    def samples(self) -> dict[str, float]:
        """Values by name and labels, as `name{label="value"}` with the labels sorted."""
        return {
            sample.name + _shown(sample.labels): sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
        }


def _shown(labels: dict[str, str]) -> str:
    inside = ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
    return f"{{{inside}}}" if inside else ""


def scrape(server: ServerProcess, **headers: str) -> Scrape:
    """Scrape once."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request("GET", "/metrics", headers=headers)
        response = connection.getresponse()
        text = response.read().decode()
        return Scrape(
            status=response.status, content_type=response.headers.get("content-type", ""), text=text
        )
    finally:
        connection.close()


def values(server: ServerProcess) -> dict[str, float]:
    """Scrape once, which must succeed, and return the samples."""
    found = scrape(server)
    assert (found.status, found.content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return found.samples
