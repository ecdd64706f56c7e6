"""Speed of every stage of corpus preparation, and peak memory, on text repeated to a given size.

    python benchmarks/prep_throughput.py --text DATA/text --megabytes 20 100 --out benchmarks/results/prep_throughput

Each size runs in a process of its own. Documents are the files of `--text`, cut at 4,000 characters and numbered, so
that copies are not duplicates of each other. Peak memory is the largest of this process and its workers.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
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
from lmstack.prep.prepare import prepare_documents
from lmstack.prep.privacy import MaskPersonalData
from lmstack.prep.quality.c4 import C4
from lmstack.prep.quality.fineweb import FineWeb
from lmstack.prep.quality.gopher import Gopher
from lmstack.prep.quality.repetition import Repetition
from lmstack.prep.stage import Stage

_DOCUMENT = 4000


def main() -> None:
    """Measure each size and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[20])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    results = []
    for megabytes in arguments.megabytes:
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            results.append(pool.apply(measure, (arguments.text, megabytes, arguments.workers)))
    arguments.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    text = "\n\n".join(table(result) for result in results) + "\n"
    arguments.out.with_suffix(".md").write_text(text)
    print(text)


def measure(text: Path, megabytes: int, workers: int) -> dict[str, Any]:
    """Prepare text of a size in a temporary folder."""
    stages: dict[str, Stage] = {
        "normalise": Normalise(),
        "language": IdentifyLanguage(),
        "gopher": Gopher(min_units=1, min_stop_words=0, min_alphabetic=0.0, max_mean_length=1e9),
        "repetition": Repetition(),
        "c4": C4(min_sentences=0, lines_end_in_punctuation=False),
        "fineweb": FineWeb(min_punctuated_lines=0.0, max_short_lines=1.0),
        "privacy": MaskPersonalData(),
        "exact": ExactDuplicates(),
        "near": NearDuplicates(),
        "lines": RepeatedLines(),
    }
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "raw.jsonl")
        write_documents(raw, text, megabytes * 1_000_000)
        began = time.perf_counter()
        with process_pool(workers) as run:
            _, results = prepare_documents(Path(folder, "out"), {"text": Source(paths=str(raw))}, stages, run)
        seconds = time.perf_counter() - began
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    rows = [
        {
            "stage": result.name,
            "documents": result.tally.taken.documents,
            "mb": round(result.tally.taken.bytes / 1e6, 2),
            "mb_per_second_of_filter": round(result.tally.taken.bytes / 1e6 / result.tally.seconds, 2),
            "documents_per_second_of_filter": round(result.tally.taken.documents / result.tally.seconds),
            "mb_per_second_of_clock": round(result.tally.taken.bytes / 1e6 / result.wall_seconds, 2),
        }
        for result in results
    ]
    return {
        "megabytes": megabytes,
        "workers": workers,
        "seconds": round(seconds, 1),
        "peak_mb": round(peak / 1e3),
        "stages": rows,
    }


def write_documents(file: Path, text: Path, num_bytes: int) -> None:
    """The text in pieces, over and over until the size is reached, each with a number at every line."""
    sources = sorted(path for path in text.rglob("*.txt"))
    written = copy = 0
    with open(file, "w", encoding="utf-8") as stream:
        while written < num_bytes:
            for source in sources:
                content = source.read_text(encoding="utf-8", errors="replace")
                for start in range(0, len(content), _DOCUMENT):
                    lines = content[start : start + _DOCUMENT].split("\n")
                    piece = "\n".join(f"{copy} {line}" if line.strip() else line for line in lines)
                    stream.write(json.dumps({"text": piece}) + "\n")
                    written += len(piece.encode())
                    if written >= num_bytes:
                        return
            copy += 1


def table(result: dict[str, Any]) -> str:
    """One size as Markdown."""
    size = f"{result['megabytes']} MB, {result['workers']} worker(s)"
    head = f"{size}: {result['seconds']} s, {result['peak_mb']} MB at peak"
    lines = ["| stage | documents | MB/s, filter alone | documents/s, filter alone | MB/s on the clock |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |"]
    for row in result["stages"]:
        filters = f"{row['mb_per_second_of_filter']} | {row['documents_per_second_of_filter']:,}"
        lines.append(f"| {row['stage']} | {row['documents']:,} | {filters} | {row['mb_per_second_of_clock']} |")
    return "\n".join([head, "", *lines])


if __name__ == "__main__":
    main()
