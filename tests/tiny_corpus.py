"""A tiny tokenized corpus on disk, for tests of the data path."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lmstack.data.shard_format import ChunkInfo, token_dtype, write_chunk, write_index
from lmstack.prep.build import build_corpus
from lmstack.tokenization import Tokenizer, byte_tokenizer


def write_shards(folder: Path, documents: Sequence[Sequence[int]], per_chunk: int = 2, vocab_size: int = 257) -> Path:
    """Documents of token ids as litdata chunks, a few documents in each."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = token_dtype(vocab_size)
    chunks: list[ChunkInfo] = []
    for first in range(0, len(documents), per_chunk):
        part = [np.array(document, dtype=dtype) for document in documents[first : first + per_chunk]]
        chunks.append(write_chunk(folder / f"chunk-{first}.bin", part))
    write_index(folder, chunks, dtype)
    return folder


def tiny_corpus(
    folder: Path,
    train: Mapping[str, Sequence[str]],
    validation: Mapping[str, Sequence[str]],
    tokenizer: Tokenizer | None = None,
) -> Path:
    """A finished corpus of texts; byte tokens unless another tokenizer is given."""
    (tokenizer or byte_tokenizer()).save(folder / "tokenizer")
    sources = {}
    for split, side in (("train", train), ("validation", validation)):
        sources[split] = {}
        for name, texts in side.items():
            file = folder / "texts" / split / f"{name}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\x1e".join(texts), encoding="utf-8")
            sources[split][name] = {"paths": str(file), "separator": "\x1e"}
    from lmstack.prep.readers import SourceConfig

    configs = {split: {name: SourceConfig(**s) for name, s in side.items()} for split, side in sources.items()}
    build_corpus(
        folder / "corpus",
        configs["train"],
        folder / "tokenizer",
        validation_sources=configs["validation"] or None,
        validation_fraction=0.0,
        num_workers=1,
    )
    return folder / "corpus"
