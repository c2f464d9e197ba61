"""What Prometheus reads at `/metrics`, read as it reads it."""

from typing import Any, NamedTuple

from httpx import AsyncClient
from prometheus_client.parser import text_string_to_metric_families


class Scrape(NamedTuple):
    """The samples of an answer, and the names of what it describes."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]
    described: set[str]

    def value(self, name: str, **labels: str) -> float:
        """The sum of all samples that have these labels."""
        wanted = set(labels.items())
        return sum(value for (known, own), value in self.samples.items() if known == name and wanted <= own)

    def labels(self, name: str, label: str) -> set[str]:
        return {dict(own)[label] for known, own in self.samples if known == name and label in dict(own)}


def parsed(text: str) -> Scrape:
    families = list(text_string_to_metric_families(text))
    samples = {
        (sample.name, frozenset(sample.labels.items())): float(sample.value)
        for family in families
        for sample in family.samples
    }
    assert len(samples) == sum(len(family.samples) for family in families)  # none is there twice
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    names = {family.name + suffix for family in families for suffix in suffixes.get(family.type, [""])}
    return Scrape(samples, names)


async def scrape(client: AsyncClient, **headers: Any) -> Scrape:
    response = await client.get("/metrics", headers=headers)
    assert response.status_code == 200
    return parsed(response.text)
