"""The side of lmstack, and of `tokenizers` alone, in `prep_throughput.py`: jobs on documents, told by name."""

import importlib.metadata
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import tokenizers
from prep_throughput_turns import Job, serve

from lmstack.data.manifest import Manifest
from lmstack.prep.blocks import read_documents
from lmstack.prep.build import build_corpus
from lmstack.prep.collect.source import Source
from lmstack.prep.deduplication.exact import ExactDuplicates
from lmstack.prep.deduplication.near import NearDuplicates
from lmstack.prep.document import Document, Dropped
from lmstack.prep.normalisation import Normalise
from lmstack.prep.pool import available_cores, process_pool
from lmstack.prep.prepare import prepare_documents
from lmstack.prep.privacy import MaskPersonalData
from lmstack.prep.quality.c4 import C4
from lmstack.prep.quality.fineweb import FineWeb
from lmstack.prep.quality.gopher import Gopher
from lmstack.prep.quality.repetition import Repetition
from lmstack.prep.shards import HOLD_OUT, Shards, build_shards
from lmstack.prep.stage import Context, CorpusStage, Stage

# The rules and thresholds of datatrove's defaults.
STAGES: Mapping[str, Stage] = {
    "mojibake": Normalise(steps=["mojibake"]),
    "gopher": Gopher(),
    "repetition": Repetition(),
    "c4": C4(lines_end_in_punctuation=False),
    "fineweb": FineWeb(min_punctuated_lines=0.0),
    "privacy": MaskPersonalData(mask=["email", "ip"]),
    "exact": ExactDuplicates(),
    "near": NearDuplicates(num_bands=14, rows_per_band=8),
}
BATCH = 1000


def main() -> None:
    """Read the documents, then do jobs."""
    folder, tokenizer = Path(sys.argv[1]), Path(sys.argv[2])
    documents = [document for file in sorted(folder.iterdir()) for document in read_documents(file)]

    def stage_job(stage: Stage) -> Job:
        return lambda: judge_all(stage, documents)

    jobs: dict[str, Job] = {name: stage_job(stage) for name, stage in STAGES.items()}
    jobs |= {
        "shards": lambda: shard(folder, tokenizer),
        "encode_batch": lambda: encode([document.text for document in documents], tokenizer),
        "path": lambda: whole_path(folder, tokenizer),
    }
    serve(jobs, {name: importlib.metadata.version(name) for name in ("lmstack", "tokenizers", "numpy")})


def judge_all(stage: Stage, documents: list[Document]) -> int:
    """One stage over documents in memory, in this process; documents kept.

    Args:
        stage: Which.
        documents: Held in memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = Context(0, Path(folder, "decisions"))
        if isinstance(stage, CorpusStage):
            context.folder.mkdir()
            stage.survey(iter(documents), Path(folder, "survey"))
            stage.decide([Path(folder, "survey")], context.folder)
        judge = stage.filter(context)
        return sum(not isinstance(judge(document), Dropped) for document in documents)


def shard(documents: Path, tokenizer: Path) -> int:
    """Prepared documents to shards, on all cores; tokens.

    Args:
        documents: Folder of files.
        tokenizer: Folder of a tokenizer.
    """
    with tempfile.TemporaryDirectory() as folder:
        return num_tokens(build_corpus(folder, {"text": str(documents)}, tokenizer))


def encode(texts: list[str], tokenizer: Path) -> int:
    """`encode_batch` of `tokenizers` on texts in memory, on all cores; tokens. Nothing is read, added or written.

    Args:
        texts: Held in memory.
        tokenizer: Folder of a tokenizer.
    """
    backend = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    batches = (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))
    return sum(len(encoding.ids) for batch in batches for encoding in backend.encode_batch(batch))


def whole_path(documents: Path, tokenizer: Path) -> int:
    """Files of documents through all stages but the first to shards, on all cores; tokens.

    Args:
        documents: Folder of files.
        tokenizer: Folder of a tokenizer.
    """
    shards = Shards(tokenizer=str(tokenizer))
    stages = {**STAGES, HOLD_OUT: shards.hold_out()}
    del stages["mojibake"]
    output = Path(tempfile.mkdtemp())
    with process_pool(available_cores()) as run:
        plan, results = prepare_documents(output, {"text": Source(paths=str(documents))}, stages, run)
    tokens = num_tokens(build_shards(plan, results[-1], shards, None))
    shutil.rmtree(output)
    return tokens


def num_tokens(manifest: Manifest) -> int:
    """Of both sides of the split.

    Args:
        manifest: Of the corpus.
    """
    return manifest.total("train").tokens + manifest.total("validation").tokens


if __name__ == "__main__":
    main()
