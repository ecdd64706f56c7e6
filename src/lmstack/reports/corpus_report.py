"""The report of a corpus preparation, drawn from its `summary.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from lmstack.reports.funnel import funnel
from lmstack.reports.page import figures, page, paragraph, table
from lmstack.reports.svg import Series, bars, chart, histogram

_MEGABYTE = 1e6
_MOST_BARS = 8
_MOST_REASONS = 6

_NOT_DROPPED = ("changed", "kept")

Stages = Sequence[Mapping[str, Any]]


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
        ("What every stage let through", _funnels(stages)),
        ("Stages", _stages(stages)),
        ("Why documents were dropped", _reasons(stages)),
        ("What else was counted", _counts(stages)),
        ("Sources", _sources(stages, summary["corpus"])),
        ("Shares and lengths", figures(_source_shares(stages), _languages(stages), _lengths(stages))),
        ("Duplicates", _duplicates(stages)),
        ("Evaluation items found", _contamination(stages)),
        *((f"{stage['name']}: examples", _examples(stage["tally"]["examples"])) for stage in stages),
    ]
    return page(title, lead, sections)


def _funnels(stages: Stages) -> str:
    drawn = []
    for title, what, scale in (("Documents", "documents", 1.0), ("Megabytes of text", "bytes", _MEGABYTE)):
        rows = []
        for stage in stages:
            tally = stage["tally"]
            dropped = [(reason, amount[what] / scale) for reason, amount in tally["dropped"].items()]
            rest = sum(amount for _, amount in dropped[_MOST_REASONS:])
            dropped = dropped[:_MOST_REASONS] + ([("other reasons", rest)] if rest else [])
            rows.append((stage["name"], tally["kept"][what] / scale, dropped))
        drawn.append(funnel(title, rows))
    note = paragraph(
        "Grey went on, every colour is a reason to drop: hover for its name. Beside the bar: the share of what came in "
        "that was dropped."
    )
    return "".join(f'<div class="wide">{svg}</div>' for svg in drawn) + note


def _stages(stages: Stages) -> str:
    rows = []
    for stage in stages:
        tally = stage["tally"]
        taken, kept, seconds = tally["taken"], tally["kept"], tally["seconds"]
        megabytes = taken["bytes"] / _MEGABYTE
        speeds = [megabytes / seconds, taken["documents"] / seconds] if seconds else [None, None]
        documents = [taken["documents"], kept["documents"], tally["changed"]["documents"]]
        times = [seconds or None, stage["wall_seconds"] or None]
        rows.append([stage["name"], *documents, megabytes, kept["bytes"] / _MEGABYTE, *times, *speeds])
    work = sum(stage["tally"]["seconds"] for stage in stages)
    clock = sum(stage["wall_seconds"] for stage in stages)
    first, last = stages[0]["tally"]["taken"]["bytes"], stages[-1]["tally"]["kept"]["bytes"]
    sums = [None, None, None, first / _MEGABYTE, last / _MEGABYTE, work, clock, None, None]
    rows.append(["all", *sums])
    columns = ["stage", "documents in", "kept", "changed", "MB in", "MB out", "seconds of work", "seconds on the clock"]
    note = paragraph(
        f"The cost: {work / 3600:.3g} core-hours of work in {clock / 60:.3g} minutes. "
        "Work is processor time of the filter, all processes together. The clock has in it what a stage does before it "
        "filters, such as comparing all documents, and is empty where a stage was finished by an earlier run."
    )
    return table([*columns, "MB/s per process", "documents/s per process"], rows) + note


def _reasons(stages: Stages) -> str:
    rows = []
    for stage in stages:
        taken = stage["tally"]["taken"]["documents"]
        for reason, amount in stage["tally"]["dropped"].items():
            percent = 100 * amount["documents"] / taken
            rows.append([stage["name"], reason, amount["documents"], percent, amount["bytes"] / _MEGABYTE])
    return table(["stage", "reason", "documents", "% of those that came in", "MB"], rows) if rows else ""


def _counts(stages: Stages) -> str:
    rows = [
        [stage["name"], what, number] for stage in stages for what, number in sorted(stage["tally"]["counts"].items())
    ]
    return table(["stage", "what", "times"], rows) if rows else ""


def _sources(stages: Stages, corpus: Mapping[str, Any] | None) -> str:
    rows: list[list[Any]] = []
    for name, first in stages[0]["by_source"].items():
        last = stages[-1]["by_source"][name]["kept"]
        tokens: list[Any] = [None, None]
        if corpus is not None and name in corpus["sources"]:
            tokens = [corpus["sources"][name][split]["tokens"] for split in ("train", "validation")]
        taken = first["taken"]
        rows.append(
            [
                name,
                taken["documents"],
                last["documents"],
                taken["bytes"] / _MEGABYTE,
                last["bytes"] / _MEGABYTE,
                *tokens,
            ]
        )
    columns = ["source", "documents in", "documents left", "MB in", "MB left", "training tokens", "validation tokens"]
    return table(columns, rows)


def _source_shares(stages: Stages) -> str:
    left = {name: tally["kept"]["bytes"] / _MEGABYTE for name, tally in stages[-1]["by_source"].items()}
    shown = sorted(left.items(), key=lambda item: -item[1])[:_MOST_BARS]
    return bars("Sources of what is left", shown, y_label="MB")


def _languages(stages: Stages) -> str:
    languages = stages[-1]["tally"]["languages"]
    shown = [(name, amount["bytes"] / _MEGABYTE) for name, amount in list(languages.items())[:_MOST_BARS]]
    return bars("Languages of what is left", shown, y_label="MB") if set(languages) - {"?"} else ""


def _lengths(stages: Stages) -> str:
    """By powers of two; a length of b bits is one below 2 ** b."""
    counts = [
        (name, {int(bits): count for bits, count in stage["tally"]["lengths"].items()})
        for name, stage in (("collected", stages[0]), ("left", stages[-1]))
    ]
    seen = [bits for _, lengths in counts for bits in lengths]
    if not seen:
        return ""
    lowest, highest = min(seen), max(seen)
    series = [
        Series(name, [(float(bits - lowest), float(count)) for bits, count in sorted(lengths.items())])
        for name, lengths in counts
    ]
    bins = [str(2**bits) if bits < 10 else f"{2 ** (bits - 10)}k" for bits in range(lowest, highest + 1)]
    return histogram(
        "Length of documents", bins, series, x_label="characters, fewer than (k = 1,024)", y_label="documents"
    )


def _duplicates(stages: Stages) -> str:
    parts = []
    for stage in stages:
        if (found := stage.get("clusters")) is None:
            continue
        parts.append(
            paragraph(f"{stage['name']}: {found['clusters']:,} clusters of {found['documents']:,} documents in all.")
        )
        if found["clusters"]:
            sizes = [(size, number) for size, number in found["sizes"].items()][:20]
            parts.append(table(["documents in a cluster", "clusters"], [[str(size), n] for size, n in sizes]))
            largest = [row for row in found["largest"] if row[1] > 2]
            parts.append(table(["a member of the largest clusters", "documents"], largest) if largest else "")
            file = f"stages/{stage['name']}/decisions/clusters.jsonl"
            parts.append(paragraph(f"All members: {file}. To read one: lmstack data look path=… id=…"))
        if curve := stage.get("s_curve"):
            points = [(float(s), prob) for s, prob in curve.items() if s[0].isdigit()]
            series = [Series("candidates", points)]
            drawn = chart("S-curve", series, x_label="Jaccard similarity", y_label="probability", y_from_zero=True)
            parts.append(figures(drawn))
    return "".join(parts)


def _contamination(stages: Stages) -> str:
    rows: list[list[Any]] = []
    columns: list[str] = []
    for stage in stages:
        for name, found in stage.get("contamination", {}).items():
            plain = {key: value for key, value in found.items() if isinstance(value, int | float | str)}
            columns = ["benchmark", *(key.replace("_", " ") for key in plain)]
            rows.append([name, *plain.values()])
    return table(columns, rows) if rows else ""


def _examples(examples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    if not examples:
        return ""
    rows = []
    for what in sorted(examples, key=lambda what: (what in _NOT_DROPPED, what)):
        for example in examples[what]:
            text = f"{example['before']}\n→\n{example['text']}" if "before" in example else example["text"]
            rows.append([what, example["source"], example["id"], example.get("detail", ""), text])
    content = table(["verdict", "source", "id", "detail", "text"], rows)
    return f"<details><summary>{len(rows)} examples, drawn by a seed</summary>{content}</details>"
