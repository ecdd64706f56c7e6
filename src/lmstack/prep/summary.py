"""The outcome of a preparation in one JSON file, which the report is drawn from."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmstack.data.manifest import SPLITS, Manifest
from lmstack.data.shard_format import write_json
from lmstack.prep.decontamination import REPORT_FILE as CONTAMINATION_FILE
from lmstack.prep.deduplication.clusters import CLUSTERS_FILE
from lmstack.prep.deduplication.near import S_CURVE_FILE
from lmstack.prep.plan import Plan
from lmstack.prep.prepare import StageResult
from lmstack.prep.tally import NUM_EXAMPLES
from lmstack.prep.task import DECISIONS

SUMMARY_FILE = "summary.json"


def write_summary(plan: Plan, results: list[StageResult], manifest: Manifest | None) -> dict[str, Any]:
    """Write `summary.json` and return what it holds.

    Args:
        plan: Of the preparation.
        results: Of its stages, in order.
        manifest: Of the shards; None when none were built.
    """
    summary = {
        "sources": {name: asdict(source) for name, source in plan.sources.items()},
        "stages": [_stage(plan, number, result) for number, result in enumerate(results)],
        "corpus": None if manifest is None else _corpus(manifest),
        "num_partitions": len(plan.partitions),
        "seed": plan.seed,
    }
    write_json(plan.output / SUMMARY_FILE, summary)
    return summary


def _stage(plan: Plan, number: int, result: StageResult) -> dict[str, Any]:
    stage = plan.stages[number].stage
    return {
        "name": result.name,
        "settings": {} if stage is None else asdict(stage),  # type: ignore[call-overload]
        "wall_seconds": result.wall_seconds,
        **_decisions(plan.folder(number) / DECISIONS),
        "tally": result.tally.to_json(),
        "by_source": {
            name: {field: record for field, record in tally.to_json().items() if field != "examples"}
            for name, tally in result.by_source.items()
        },
    }


def _decisions(folder: Path) -> dict[str, Any]:
    """What a stage found in the whole corpus: clusters of duplicates, evaluation items."""
    found: dict[str, Any] = {}
    if (folder / CLUSTERS_FILE).is_file():
        found["clusters"] = _clusters(folder / CLUSTERS_FILE)
    if (folder / S_CURVE_FILE).is_file():
        found["s_curve"] = json.loads((folder / S_CURVE_FILE).read_text(encoding="utf-8"))
    if (folder / CONTAMINATION_FILE).is_file():
        report = json.loads((folder / CONTAMINATION_FILE).read_text(encoding="utf-8"))
        found["contamination"] = {
            name: {key: value for key, value in benchmark.items() if key != "hits"}
            for name, benchmark in report.items()
        }
    return found


def _clusters(file: Path) -> dict[str, Any]:
    """How many there are of each size, and the largest."""
    sizes: Counter[int] = Counter()
    largest: list[tuple[int, str]] = []
    with open(file, encoding="utf-8") as stream:
        for line in stream:
            record = json.loads(line)
            size = len(record["members"])
            sizes[size] += 1
            largest = sorted([*largest, (-size, record["cluster"])])[:NUM_EXAMPLES]
    return {
        "clusters": sizes.total(),
        "documents": sum(size * number for size, number in sizes.items()),
        "sizes": dict(sorted(sizes.items())),
        "largest": [[cluster, -size] for size, cluster in largest],
    }


def _corpus(manifest: Manifest) -> dict[str, Any]:
    return {
        "fingerprint": manifest.fingerprint,
        "vocab_size": manifest.tokenizer.vocab_size,
        "sources": {
            name: {split: asdict(getattr(source, split)) for split in SPLITS}
            for name, source in manifest.sources.items()
        },
    }
