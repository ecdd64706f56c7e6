"""The figures of `prep_throughput.py` as Markdown."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

_Turns = list[dict[str, Any]]


def report(results: dict[str, Any]) -> str:
    """Every part that was measured.

    Args:
        results: By part.
    """
    parts: dict[str, Callable[[dict[str, Any]], str]] = {
        "stages": _stages,
        "path": _path,
        "tokens": _tokens,
        "memory": _memory,
    }
    return "\n\n".join(table(results[part]) for part, table in parts.items() if part in results) + "\n"


def _stages(part: dict[str, Any]) -> str:
    rows = []
    for job in part["jobs"]:
        ours, theirs = (job["turns"][f"{library} {job['job']}"] for library in ("lmstack", "datatrove"))
        speeds = [part["mb"] / _median(turns, "cpu_seconds") for turns in (ours, theirs)]
        per_second = [part["documents"] / _median(turns, "cpu_seconds") for turns in (ours, theirs)]
        kept = f"{ours[0]['result']:,} / {theirs[0]['result']:,}"
        figures = [f"{speed:.2f}" for speed in speeds] + [f"{number:,.0f}" for number in per_second]
        rows.append([job["job"], *figures, f"{speeds[0] / speeds[1]:.1f}", kept])
    head = "## Stages, one core\n\n" + _facts(part) + " Processor seconds; documents are in memory.\n\n"
    names = ("stage", "MB/s", "datatrove MB/s", "documents/s", "datatrove documents/s", "times as fast", "kept by each")
    return head + _table(names, rows)


def _path(part: dict[str, Any]) -> str:
    (job,) = part["jobs"]
    ratio = _ratio(job["turns"], "datatrove path", "lmstack path", "seconds")
    head = "## The whole path, all cores\n\n" + _facts(part) + " Seconds on the clock.\n\n"
    return head + _clock(part, job) + f"\n\nlmstack is {ratio:.1f} times as fast."


def _tokens(part: dict[str, Any]) -> str:
    (job,) = part["jobs"]
    names = ("lmstack encode_batch", "lmstack shards")
    clock, cpu = (_ratio(job["turns"], *names, what) for what in ("seconds", "cpu_seconds"))
    head = "## Tokenization, all cores\n\n" + _facts(part) + " Seconds on the clock.\n\n"
    last = f"Shards are made at {clock:.2f} of the speed of `encode_batch`, by processor seconds at {cpu:.2f}."
    return head + _clock(part, job) + "\n\n" + last


def _clock(part: dict[str, Any], job: dict[str, Any]) -> str:
    rows = []
    for name, turns in job["turns"].items():
        seconds = _median(turns, "seconds")
        speeds = [f"{part['mb'] / seconds:.2f}", " to ".join(f"{part['mb'] / each:.2f}" for each in _extremes(turns))]
        rows.append([name, f"{turns[0]['result']:,}", f"{seconds:.1f}", *speeds, f"{part['documents'] / seconds:,.0f}"])
    return _table(("what", "tokens", "seconds", "MB/s", "MB/s, slowest to fastest", "documents/s"), rows)


def _memory(part: dict[str, Any]) -> str:
    sizes = part["sizes"]
    peaks = [[f"{size[name]:,.0f}" for name in ("megabytes", "workers", "tree_mb", "process_mb")] for size in sizes]
    names = ("MB of input", "workers", "peak of all processes, MB", "peak of one process, MB")
    text = f"## The whole path in English and Chinese: memory and stages\n\n{_table(names, peaks)}"
    text += f"\n\nThe stages at {sizes[0]['megabytes']:,} MB, {sizes[0]['workers']} worker(s):\n\n"
    rows = [_stage_row(row) for row in sizes[0]["stages"]]
    return text + _table(("stage", "documents", "MB/s, filter", "documents/s, filter", "MB/s on the clock"), rows)


def _stage_row(row: dict[str, Any]) -> list[str]:
    work, wall = row["work_seconds"], row["wall_seconds"]
    alone = [f"{row['mb'] / work:.2f}", f"{row['documents'] / work:,.0f}"] if work else ["", ""]
    return [row["stage"], f"{row['documents']:,}", *alone, f"{row['mb'] / wall:.2f}"]


def _facts(part: dict[str, Any]) -> str:
    versions = sorted({f"{name} {version}" for each in part["versions"].values() for name, version in each.items()})
    size = f"{part['mb']:.1f} MB in {part['documents']:,} documents, medians of {part['rounds']} rounds in turn."
    return f"{size} {part['processor']}, {part['cores']} cores; {', '.join(versions)}."


def _median(turns: _Turns, what: str) -> float:
    return statistics.median(turn[what] for turn in turns)


def _extremes(turns: _Turns) -> tuple[float, float]:
    seconds = [turn["seconds"] for turn in turns]
    return max(seconds), min(seconds)


def _ratio(turns: dict[str, _Turns], numerator: str, denominator: str, what: str) -> float:
    return _median(turns[numerator], what) / _median(turns[denominator], what)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
