"""The outcome of a preparation in one JSON file, which the report is drawn from."""

from dataclasses import asdict
from typing import Any

from lmstack.data.manifest import SPLITS, Manifest
from lmstack.data.shard_format import write_json
from lmstack.prep.plan import Plan
from lmstack.prep.prepare import StageResult

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
        "tally": result.tally.to_json(),
        "by_source": {
            name: {field: record for field, record in tally.to_json().items() if field != "examples"}
            for name, tally in result.by_source.items()
        },
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
