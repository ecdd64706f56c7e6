"""The side of datatrove in `prep_throughput.py`, in its own environment: the same jobs on the same documents."""

import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.formatters import FTFYFormatter, PIIFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter
from prep_throughput_turns import Job, serve

CORES = len(os.sched_getaffinity(0))
ALPHABETIC_SHARE = 0.5
"""Of the words, in the whole path: to spaCy punctuation marks are words, and at 0.8 few books would go on."""
MINHASH = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)


def text_of(document: Document) -> str:
    """What exact deduplication compares.

    Args:
        document: Which.
    """
    return document.text


EXACT = ExactDedupConfig(content_getter=text_of)


def rules() -> dict[str, Any]:
    """The defaults of datatrove, but for lines without punctuation at their end, which printed books have."""
    return {
        "mojibake": FTFYFormatter(),
        "gopher": GopherQualityFilter(),
        "repetition": GopherRepetitionFilter(),
        "c4": C4QualityFilter(filter_no_terminal_punct=False),
        "fineweb": FineWebQualityFilter(line_punct_thr=0.0),
        "privacy": PIIFormatter(),
    }


def main() -> None:
    """Read the documents, then do jobs."""
    folder, tokenizer = Path(sys.argv[1]), str(Path(sys.argv[2], "tokenizer.json"))
    texts = [(document.text, document.id) for document in JsonlReader(str(folder), doc_progress=False)()]

    def documents() -> Iterator[Document]:
        return (Document(text=text, id=identity) for text, identity in texts)

    def rule_job(block: Any) -> Job:
        return lambda: count(block.run(documents()))

    jobs: dict[str, Job] = {name: rule_job(block) for name, block in rules().items()}
    jobs |= {
        "exact": lambda: exact(documents),
        "near": lambda: near(documents),
        "shards": lambda: shard(folder, tokenizer),
        "path": lambda: whole_path(folder, tokenizer),
    }
    serve(jobs, {name: importlib.metadata.version(name) for name in ("datatrove", "spacy", "tokenizers", "numpy")})


def count(documents: Iterable[Document]) -> int:
    """How many documents come through.

    Args:
        documents: Of a block.
    """
    return sum(1 for _ in documents)


def exact(documents: Any) -> int:
    """Exact deduplication in this process; documents kept.

    Args:
        documents: Gives them anew at every call.
    """
    with tempfile.TemporaryDirectory() as folder:
        ExactDedupSignature(f"{folder}/signatures", EXACT).run(documents())
        ExactFindDedups(f"{folder}/signatures", f"{folder}/found", EXACT).run()
        return count(ExactDedupFilter(f"{folder}/found", EXACT).run(documents()))


def near(documents: Any) -> int:
    """The four steps of MinHash in this process; documents kept.

    Args:
        documents: Gives them anew at every call.
    """
    with tempfile.TemporaryDirectory() as folder:
        MinhashDedupSignature(f"{folder}/signatures", MINHASH).run(documents())
        for bucket in range(MINHASH.num_buckets):
            step = MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets", config=MINHASH)
            step.run(None, bucket, MINHASH.num_buckets)
        MinhashDedupCluster(f"{folder}/buckets", f"{folder}/remove", MINHASH).run()
        return count(MinhashDedupFilter(f"{folder}/remove").run(documents()))


def shard(documents: Path, tokenizer: str) -> int:
    """Documents to tokenized files on all cores, in their order; tokens.

    Args:
        documents: Folder of files.
        tokenizer: A tokenizer.json.
    """
    with tempfile.TemporaryDirectory() as folder:
        execute(folder, "tokens", [JsonlReader(str(documents), doc_progress=False), _tokenizer(folder, tokenizer)])
        return num_tokens(folder)


def whole_path(documents: Path, tokenizer: str) -> int:
    """Files of documents through all rules to tokenized files, on all cores; tokens.

    Args:
        documents: Folder of files.
        tokenizer: A tokenizer.json.
    """
    folder = tempfile.mkdtemp()
    signatures, found, buckets, remove = (f"{folder}/{name}" for name in ("signatures", "found", "buckets", "remove"))
    blocks = rules()
    del blocks["mojibake"]
    blocks["gopher"] = GopherQualityFilter(max_non_alpha_words_ratio=ALPHABETIC_SHARE)
    execute(
        folder,
        "filter",
        [JsonlReader(str(documents), doc_progress=False), *blocks.values(), _writer(folder, "filtered")],
    )
    execute(folder, "exact1", [_reader(folder, "filtered"), ExactDedupSignature(signatures, EXACT)])
    execute(folder, "exact2", [ExactFindDedups(signatures, found, EXACT)], tasks=1)
    exact_filter = ExactDedupFilter(found, EXACT)
    execute(folder, "exact3", [_reader(folder, "filtered"), exact_filter, _writer(folder, "exact")])
    execute(folder, "near1", [_reader(folder, "exact"), MinhashDedupSignature(f"{folder}/minhash", MINHASH)])
    step = MinhashDedupBuckets(f"{folder}/minhash", buckets, config=MINHASH)
    execute(folder, "near2", [step], tasks=MINHASH.num_buckets)
    execute(folder, "near3", [MinhashDedupCluster(buckets, remove, MINHASH)], tasks=1)
    execute(folder, "near4", [_reader(folder, "exact"), MinhashDedupFilter(remove), _writer(folder, "near")])
    execute(folder, "shards", [_reader(folder, "near"), _tokenizer(folder, tokenizer)])
    tokens = num_tokens(folder)
    shutil.rmtree(folder)
    return tokens


def num_tokens(folder: str) -> int:
    """Tokens that were written, of a vocabulary that two bytes hold.

    Args:
        folder: Of the pipeline.
    """
    return sum(file.stat().st_size for file in Path(folder, "tokens").glob("*.ds")) // 2


def execute(folder: str, name: str, pipeline: list[Any], tasks: int = CORES) -> None:
    """Run a pipeline with datatrove's own executor.

    Args:
        folder: For its logs.
        name: Of the step.
        pipeline: Its blocks.
        tasks: Into how many the files are divided.
    """
    LocalPipelineExecutor(pipeline, tasks=tasks, workers=CORES, logging_dir=f"{folder}/logs/{name}").run()


def _reader(folder: str, name: str) -> JsonlReader:
    return JsonlReader(f"{folder}/{name}", doc_progress=False)


def _writer(folder: str, name: str) -> JsonlWriter:
    return JsonlWriter(f"{folder}/{name}", compression="zstd")


def _tokenizer(folder: str, tokenizer: str) -> DocumentTokenizer:
    return DocumentTokenizer(f"{folder}/tokens", tokenizer, eos_token="<|endoftext|>", shuffle_documents=False)


if __name__ == "__main__":
    main()
