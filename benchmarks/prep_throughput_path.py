"""The whole path of `prep_throughput.py` in a process of its own: documents through all stages to token shards."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from lmstack.prep.collect.source import Source
from lmstack.prep.deduplication.exact import ExactDuplicates
from lmstack.prep.deduplication.lines import RepeatedLines
from lmstack.prep.deduplication.near import NearDuplicates
from lmstack.prep.language import IdentifyLanguage
from lmstack.prep.normalisation import Normalise
from lmstack.prep.pool import process_pool
from lmstack.prep.prepare import StageResult, prepare_documents
from lmstack.prep.privacy import MaskPersonalData
from lmstack.prep.quality.c4 import C4
from lmstack.prep.quality.fineweb import FineWeb
from lmstack.prep.quality.gopher import Gopher
from lmstack.prep.quality.repetition import Repetition
from lmstack.prep.shards import HOLD_OUT, Shards, build_shards
from lmstack.prep.stage import Only, Stage


def stages() -> dict[str, Stage]:
    """The published thresholds for English, the variants in characters for Chinese."""
    english, chinese = Only(languages=["en"]), Only(languages=["zh"])
    return {
        "normalise": Normalise(),
        "language": IdentifyLanguage(),
        "gopher": Gopher(only=english),
        "gopher_zh": Gopher(only=chinese, unit="characters", min_alphabetic=0.6, max_punctuation=0.4),
        "repetition": Repetition(only=english),
        "c4": C4(only=english, lines_end_in_punctuation=False),
        "fineweb": FineWeb(only=english, min_punctuated_lines=0.0),  # the lines of printed books are wrapped
        "privacy": MaskPersonalData(),
        "exact": ExactDuplicates(),
        "near": NearDuplicates(),
        "lines": RepeatedLines(),
    }


def main() -> None:
    """Prepare, and write what every stage took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("documents", type=Path)
    parser.add_argument("tokenizer")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    shards = Shards(tokenizer=arguments.tokenizer)
    chosen = stages() | {HOLD_OUT: shards.hold_out()}
    began = time.perf_counter()
    with process_pool(arguments.workers) as run:
        sources = {"text": Source(paths=str(arguments.documents))}
        plan, results = prepare_documents(arguments.folder, sources, chosen, run)
    prepared = time.perf_counter()
    manifest = build_shards(plan, results[-1], shards, arguments.workers)
    ended = time.perf_counter()
    rows = [stage_row(result) for result in results]
    rows.append(row("shards", results[-1].tally.kept.documents, results[-1].tally.kept.bytes, 0.0, ended - prepared))
    answer = {"seconds": ended - began, "tokens": manifest.total("train").tokens, "stages": rows}
    arguments.out.write_text(json.dumps(answer, indent=1) + "\n")


def stage_row(result: StageResult) -> dict[str, Any]:
    """What a stage took in, and how long it worked on it.

    Args:
        result: Of the stage.
    """
    taken = result.tally.taken
    return row(result.name, taken.documents, taken.bytes, result.tally.seconds, result.wall_seconds)


def row(stage: str, documents: int, num_bytes: int, work_seconds: float, wall_seconds: float) -> dict[str, Any]:
    """A stage in numbers.

    Args:
        stage: Its name.
        documents: What came in.
        num_bytes: Of their text.
        work_seconds: Of its filter, all workers together, with reading and writing documents.
        wall_seconds: On the clock, with surveys and decisions.
    """
    return {
        "stage": stage,
        "documents": documents,
        "mb": num_bytes / 1e6,
        "work_seconds": work_seconds,
        "wall_seconds": wall_seconds,
    }


if __name__ == "__main__":
    main()
