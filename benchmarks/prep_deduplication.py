"""Deduplication and decontamination by themselves: speed on one core beside others, and memory as the input grows.

    python benchmarks/prep_deduplication.py speed --corpus data/dirty/corpus --out results/deduplication_speed
    python benchmarks/prep_deduplication.py memory --megabytes 100 1000 --out results/deduplication_memory

`speed` times the steps of MinHash on the texts of a folder of JSONL files in processor seconds of one core, in turns
(one batch of each candidate after the other), so that whatever else the machine does hits all alike. Candidates: our
signatures in numpy; `rensa` (Rust) on the same n-gram hashes and from words; `datasketch`; datatrove's own signature
block, with its numpy hashing and a whitespace tokenizer for its words, so that nothing is downloaded. All make 120
hashes of 5-grams. `memory` runs every stage in a process of its own over made-up documents, a fifth of them
duplicates, and tells the peak of the process, and processor seconds without those of making the documents.
"""

import argparse
import json
import multiprocessing
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lmstack.prep.decontamination import Decontamination
from lmstack.prep.deduplication.exact import ExactDuplicates
from lmstack.prep.deduplication.lines import RepeatedLines
from lmstack.prep.deduplication.minhash import band_keys, shingle_sets, signatures
from lmstack.prep.deduplication.near import NearDuplicates
from lmstack.prep.deduplication.substrings import RepeatedSubstrings
from lmstack.prep.document import Document
from lmstack.prep.evaluation_sets import EvaluationSet
from lmstack.prep.ngrams import batches, ngram_hashes, split_words
from lmstack.prep.stage import Context

NUM_HASHES, NUM_BANDS, NGRAM = 120, 20, 5
ROUNDS = 5
PARTITION_BYTES = 1 << 25

Texts = Sequence[str]


def ours(texts: Texts) -> None:
    """Words, 5-grams, signatures and bands in numpy."""
    for batch in batches(Document(text, "", "") for text in texts):
        shingles, offsets = shingle_sets([document.text for document in batch], NGRAM)
        band_keys(signatures(shingles, offsets, num_hashes=NUM_HASHES, seed=0), NUM_BANDS)


def only_words(texts: Texts) -> None:
    """The first part of `ours`: words and their hashes."""
    for batch in batches(Document(text, "", "") for text in texts):
        split_words([document.text for document in batch])


def rensa_hashes(texts: Texts) -> None:
    """Rensa's signatures of our 5-gram hashes."""
    from rensa import RMinHash

    for batch in batches(Document(text, "", "") for text in texts):
        hashes, offsets = ngram_hashes(split_words([document.text for document in batch]), NGRAM)
        RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets.astype(np.uint64), NUM_HASHES, 42)


def _string_ngrams(text: str) -> list[str]:
    words = text.lower().split()
    return [" ".join(words[i : i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))]


def rensa_words(texts: Texts) -> None:
    """Rensa's signatures of 5-grams as strings."""
    from rensa import RMinHash

    for text in texts:
        sketch = RMinHash(NUM_HASHES, 42)
        sketch.update(_string_ngrams(text))
        sketch.digest()


def datasketch_words(texts: Texts) -> None:
    """Datasketch's signatures of 5-grams as strings."""
    from datasketch import MinHash

    for text in texts:
        sketch = MinHash(NUM_HASHES)
        sketch.update_batch([ngram.encode() for ngram in _string_ngrams(text)])


def datatrove_words(texts: Texts) -> None:
    """Datatrove's signatures, with its words split at spaces."""
    from datatrove.pipeline.dedup import minhash

    minhash.load_word_tokenizer = lambda _: _Spaces()  # its own for English needs spaCy
    config = minhash.MinhashConfig(n_grams=NGRAM, num_buckets=NUM_BANDS, hashes_per_bucket=NUM_HASHES // NUM_BANDS)
    block = minhash.MinhashDedupSignature(tempfile.gettempdir(), config)
    for text in texts:
        shingles = block.get_shingles(text)
        if shingles.size:
            block.get_signature(shingles)


class _Spaces:
    """What datatrove asks of a word tokenizer."""

    @staticmethod
    def word_tokenize(text: str) -> list[str]:
        return text.split()


CANDIDATES: dict[str, Callable[[Texts], None]] = {
    "lmstack": ours,
    "lmstack, words only": only_words,
    "rensa on our hashes": rensa_hashes,
    "rensa": rensa_words,
    "datasketch": datasketch_words,
    "datatrove": datatrove_words,
}


def speed(corpus: Path, megabytes: float) -> list[dict[str, Any]]:
    """Processor seconds of each candidate on the same texts, in turns.

    Args:
        corpus: With JSONL files.
        megabytes: How much of it, for each round.
    """
    texts = _texts(corpus, int(megabytes * 1e6 * ROUNDS))
    size = len(texts) // ROUNDS
    seconds: dict[str, list[float]] = {name: [] for name in CANDIDATES}
    for run in CANDIDATES.values():
        run(texts[:50])  # imports, tables
    for round_number in range(ROUNDS):
        part = texts[round_number * size : (round_number + 1) * size]
        num_bytes = sum(len(text.encode()) for text in part)
        for name, run in CANDIDATES.items():
            begin = time.process_time()
            run(part)
            seconds[name].append((time.process_time() - begin) / num_bytes * 1e6)
    num_bytes = sum(len(text.encode()) for text in texts) // len(texts)
    return [
        {
            "candidate": name,
            "mb_per_second": 1 / statistics.median(each),
            "documents_per_second": 1e6 / statistics.median(each) / num_bytes,
        }
        for name, each in seconds.items()
    ]


def _texts(corpus: Path, num_bytes: int) -> list[str]:
    found: list[str] = []
    total = 0
    for file in sorted(corpus.rglob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            found.append(json.loads(line)["text"])
            total += len(found[-1].encode())
            if total > num_bytes:
                return found
    return found


def made_up(number: int, num_bytes: int) -> Iterator[Document]:
    """Documents of a partition, 3 kB of words each; every fifth is a near-duplicate of one made before.

    Args:
        number: Of the partition.
        num_bytes: About how much.
    """
    count = num_bytes // 3000
    for place in range(count):
        is_copy = place % 5 == 4
        draw = random.Random(f"{number} {place - 2 if is_copy else place}")
        words = [f"w{int(draw.random() ** 3 * 50000)}" for _ in range(520)]
        lines = [" ".join(words[start : start + 26]) for start in range(0, 520, 26)]
        if is_copy:
            lines[number % 20] = f"changed in copy {place} of {number}"
        yield Document("\n".join(lines), f"{number:06d}-{place:06d}", "made-up")


def _measure(name: str, num_bytes: int, queue: Any) -> None:
    """Run one stage over partitions as the runner would, one after another in one process."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        stage: Any = _stage(name, folder)
        partitions = range(max(1, num_bytes // PARTITION_BYTES))
        surveys = [folder / f"survey-{number}" for number in partitions]
        begin = time.process_time()
        num_bytes = sum(len(document.text) for document in made_up(0, PARTITION_BYTES))
        making = (time.process_time() - begin) * len(partitions)
        begin = time.process_time()
        for number, survey in zip(partitions, surveys, strict=True):
            stage.survey(made_up(number, PARTITION_BYTES), survey)
        surveyed = time.process_time()
        stage.decide(surveys, folder)
        decided = time.process_time()
        for number in partitions:
            judge = stage.filter(Context(number, folder))
            for document in made_up(number, PARTITION_BYTES):
                judge(document)
        filtered = time.process_time()
        disk = sum(file.stat().st_size for file in surveys)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    row = {"stage": name, "megabytes": num_bytes * len(partitions) / 1e6, "peak_mb": peak / 1e6, "disk_mb": disk / 1e6}
    seconds = {
        "survey": surveyed - begin - making,
        "decide": decided - surveyed,
        "filter": filtered - decided - making,
    }
    queue.put(row | seconds)


def _stage(name: str, folder: Path) -> object:
    if name == "decontamination":
        items = folder / "items.jsonl"
        texts = (" ".join(islice(document.text.split(), 30)) for document in made_up(-1, 3_000_000))
        items.write_text("".join(json.dumps({"question": text}) + "\n" for text in texts))
        return Decontamination(benchmarks={"made-up": EvaluationSet(str(items), ["question"])})
    kinds: dict[str, Callable[[], object]] = {
        "exact": ExactDuplicates, "lines": RepeatedLines, "near": NearDuplicates, "substrings": RepeatedSubstrings,
    }  # fmt: skip
    return kinds[name]()


def memory(sizes: Sequence[int], stages: Sequence[str]) -> list[dict[str, Any]]:
    """Peak memory of each stage at each size, each in a process of its own; `nothing` only makes the documents.

    Args:
        sizes: Megabytes.
        stages: Names of the stages.
    """
    context = multiprocessing.get_context("spawn")
    found = []
    for name in stages:
        for size in sizes:
            queue = context.Queue()
            process = context.Process(target=_measure, args=(name, size * 10**6, queue))
            process.start()
            found.append(queue.get())
            process.join()
            Console(stderr=True).print(found[-1])
    return found


def main() -> None:
    """Measure, show and write a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    speed_parser = commands.add_parser("speed")
    speed_parser.add_argument("--corpus", type=Path, required=True)
    speed_parser.add_argument("--megabytes", type=float, default=1.0, help="of each round")
    memory_parser = commands.add_parser("memory")
    memory_parser.add_argument("--megabytes", type=int, nargs="+", default=[100])
    memory_parser.add_argument(
        "--stages", nargs="+", default=["exact", "lines", "near", "substrings", "decontamination"]
    )
    for each in (speed_parser, memory_parser):
        each.add_argument("--out", type=Path, help="where to write, without suffix")
    arguments = parser.parse_args()
    if arguments.command == "speed":
        rows = speed(arguments.corpus, arguments.megabytes)
    else:
        rows = memory(arguments.megabytes, arguments.stages)
    table = Table(*rows[0])
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
    for row in rows:
        cells = [f"{value:,.1f}" if isinstance(value, float) else str(value) for value in row.values()]
        table.add_row(*cells)
        lines.append("| " + " | ".join(cells) + " |")
    Console().print(table)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        arguments.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
