"""Split Tiny Shakespeare as nanoGPT does (first 90 % of the characters to train on) and write its shards.

python experiments/001_shakespeare_char/prepare.py path/to/input.txt
"""

import sys
from pathlib import Path

from lmstack.prep.build import build_corpus
from lmstack.tokenization import char_tokenizer

OUTPUT = Path("data/shakespeare_char")

if __name__ == "__main__":
    text = Path(sys.argv[1]).read_text()
    split = int(0.9 * len(text))
    parts = OUTPUT.parent / "shakespeare_char_text"
    parts.mkdir(parents=True, exist_ok=True)
    (parts / "train.txt").write_text(text[:split])
    (parts / "validation.txt").write_text(text[split:])
    char_tokenizer([text]).save(parts / "tokenizer")
    build_corpus(
        OUTPUT,
        {"plays": str(parts / "train.txt")},
        parts / "tokenizer",
        validation_fraction=0.0,
        validation_sources={"plays": str(parts / "validation.txt")},
        overwrite=True,
    )
