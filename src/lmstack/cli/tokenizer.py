"""`lmstack tokenizer`: train a tokenizer, and see what it does to text."""

from collections.abc import Iterator
from typing import Literal

from rich.console import Console
from rich.table import Table

from lmstack.prep.build import DEFAULT_VALIDATION_FRACTION
from lmstack.prep.readers import SourceConfig, read_source
from lmstack.prep.split import is_validation
from lmstack.tokenization import Tokenizer, byte_tokenizer, char_tokenizer, tokenizer_report, train_bpe


def train(
    *,
    output: str,
    sources: dict[str, str | list[str] | SourceConfig],
    vocab_size: int | None = None,
    kind: Literal["bpe", "byte", "char"] = "bpe",
    validation_fraction: float = DEFAULT_VALIDATION_FRACTION,
    seed: int = 0,
) -> None:
    """Make a tokenizer from the training side of some sources.

    Give `sources`, `validation_fraction` and `seed` as for `lmstack data build`, and it never sees a held-out text. A
    character tokenizer takes its characters from all of the text: one that only occurs in validation needs an id too.

    Args:
        output: Folder to write tokenizer.json to.
        sources: Files, folders and globs by source name.
        vocab_size: Number of tokens, for bpe.
        kind: Byte pairs, single bytes, or the characters that occur.
        validation_fraction: Share of the documents that is held out.
        seed: Of the split.
    """
    configs = _configs(sources)
    if (kind == "bpe") != (vocab_size is not None):
        raise ValueError(
            f"vocab_size={vocab_size} with kind={kind}: bpe needs a vocab_size, such as 4096; byte and char have "
            "a vocabulary of their own. Set or drop vocab_size."
        )
    if kind == "byte":
        tokenizer = byte_tokenizer()
    elif kind == "char":
        tokenizer = char_tokenizer(_texts(configs, 0.0, seed))
    else:
        assert vocab_size is not None
        tokenizer = train_bpe(_texts(configs, validation_fraction, seed), vocab_size)
    tokenizer.save(output)
    print(f"{output}: {tokenizer.vocab_size} tokens (fingerprint {tokenizer.fingerprint[:12]})")


def report(*, tokenizer: str, sources: dict[str, str | list[str] | SourceConfig]) -> None:
    """Bytes per token and tokens per word of each source.

    Args:
        tokenizer: A tokenizer.json, or the folder that holds one; any that Hugging Face `tokenizers` reads.
        sources: Files, folders and globs by source name.
    """
    texts = {name: (d.text for d in read_source(name, source)) for name, source in _configs(sources).items()}
    loaded = Tokenizer.load(tokenizer)
    table = Table(title=f"{tokenizer}: {loaded.vocab_size} tokens")
    table.add_column("source")
    for name in ("documents", "bytes", "tokens", "bytes/token", "tokens/word"):
        table.add_column(name, justify="right")
    for name, found in tokenizer_report(loaded, texts).items():
        counts = (f"{n:,}" for n in (found.documents, found.bytes, found.tokens))
        table.add_row(name, *counts, f"{found.bytes_per_token:.2f}", f"{found.fertility:.2f}")
    Console().print(table)


def _configs(sources: dict[str, str | list[str] | SourceConfig]) -> dict[str, SourceConfig]:
    return {name: s if isinstance(s, SourceConfig) else SourceConfig(s) for name, s in sources.items()}


def _texts(sources: dict[str, SourceConfig], validation_fraction: float, seed: int) -> Iterator[str]:
    for name, source in sources.items():
        for document in read_source(name, source):
            if not is_validation(document.key, seed, validation_fraction):
                yield document.text
