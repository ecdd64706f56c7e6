"""The report of a corpus preparation, drawn from its `summary.json`."""

from collections.abc import Mapping
from typing import Any

from lmstack.reports.page import figures, page, table
from lmstack.reports.svg import Series, chart

_MEGABYTE = 1e6


def corpus_report(title: str, summary: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        title: Its heading.
        summary: What `summary.json` holds.
    """
    stages = summary["stages"]
    taken, kept = stages[0]["tally"]["taken"], stages[-1]["tally"]["kept"]
    lead = (
        f"{taken['documents']:,} documents came in ({taken['bytes'] / _MEGABYTE:,.1f} MB), {kept['documents']:,} are "
        f"left ({kept['bytes'] / _MEGABYTE:,.1f} MB)."
    )
    sections = [
        ("Stages", _stages(stages)),
        ("Why documents were dropped", _reasons(stages)),
        ("Length", figures(_lengths(stages))),
        *((f"{stage['name']}: examples", _examples(stage["tally"]["examples"])) for stage in stages),
    ]
    return page(title, lead, sections)


def _stages(stages: list[dict[str, Any]]) -> str:
    rows = []
    for stage in stages:
        tally = stage["tally"]
        speed = tally["taken"]["bytes"] / _MEGABYTE / tally["seconds"] if tally["seconds"] else None
        rows.append(
            [
                stage["name"],
                tally["taken"]["documents"],
                tally["kept"]["documents"],
                tally["changed"]["documents"],
                tally["taken"]["bytes"] / _MEGABYTE,
                tally["kept"]["bytes"] / _MEGABYTE,
                tally["seconds"],
                speed,
            ]
        )
    return table(
        ["stage", "documents in", "kept", "changed", "MB in", "MB out", "seconds of work", "MB/s per process"], rows
    )


def _reasons(stages: list[dict[str, Any]]) -> str:
    rows = [
        [stage["name"], reason, amount["documents"], amount["bytes"] / _MEGABYTE]
        for stage in stages
        for reason, amount in stage["tally"]["dropped"].items()
    ]
    return table(["stage", "reason", "documents", "MB"], rows)


def _lengths(stages: list[dict[str, Any]]) -> str:
    series = []
    for name, stage in (("collected", stages[0]), ("left", stages[-1])):
        lengths = {int(bits): count for bits, count in stage["tally"]["lengths"].items()}
        series.append(Series(name, sorted(lengths.items())))
    return chart("Length of documents", series, x_label="characters (powers of two)", y_label="documents")


def _examples(examples: Mapping[str, list[dict[str, Any]]]) -> str:
    rows = [
        [what, example["source"], example.get("detail", ""), example["text"]]
        for what, some in examples.items()
        for example in some
    ]
    return table(["verdict", "source", "detail", "text"], rows)
