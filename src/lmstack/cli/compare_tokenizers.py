"""`lmstack tokenizer compare` and `report`: what tokenizers do to text."""

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lmstack.cli.tokenizer import Sources, one_side, source_configs
from lmstack.data.shard_format import write_json
from lmstack.prep.build import DEFAULT_VALIDATION_FRACTION
from lmstack.tokenization import Tokenizer
from lmstack.tokenization.comparison import (
    RARE_COUNT,
    RENYI_ORDER,
    TokenizerFigures,
    VocabularyUse,
    compare_tokenizers,
    vocabulary_use,
)

_NOTE = (
    "Models with other tokenizers are compared in bits per byte (val/bits_per_byte: loss / ln 2 / bytes per token), "
    "never in loss or perplexity per token."
)


def report(*, tokenizer: str, sources: Sources) -> None:
    """Bytes per token and tokens per word of each source.

    Args:
        tokenizer: A tokenizer.json, or the folder that holds one; any that Hugging Face `tokenizers` reads.
        sources: Files, folders and globs by source name.
    """
    configs = source_configs(sources)
    loaded = Tokenizer.load(tokenizer)
    figures = compare_tokenizers({tokenizer: loaded}, {name: one_side(configs, name, 0.0, 0) for name in configs})
    table = Table("source", title=f"{tokenizer}: {loaded.vocab_size} tokens")
    for heading in ("documents", "bytes", "tokens", "bytes/token", "tokens/word"):
        table.add_column(heading, justify="right")
    for name, found in figures[tokenizer].sources.items():
        counts = (f"{n:,}" for n in (found.documents, found.bytes, found.tokens))
        table.add_row(name, *counts, f"{found.bytes_per_token:.2f}", f"{found.fertility:.2f}")
    Console().print(table)


def compare(
    *,
    tokenizers: dict[str, str],
    sources: Sources,
    validation_fraction: float = DEFAULT_VALIDATION_FRACTION,
    seed: int = 0,
    output: str | None = None,
) -> None:
    """What several tokenizers do to the held-out side of some sources: length, efficiency, and tokens of no use.

    Give `sources`, `validation_fraction` and `seed` as for `lmstack tokenizer train`: none of that text was trained on.

    Args:
        tokenizers: By name, each a tokenizer.json or the folder that holds one, such as a Hugging Face model's.
        sources: Files, folders and globs by source name.
        validation_fraction: Share of the documents to look at; 1 is all of them.
        seed: Of the split.
        output: Write all figures and the tokens of no use to this .json file too.
    """
    if not 0 < validation_fraction <= 1:
        raise ValueError(
            f"validation_fraction={validation_fraction}: must be above 0 and at most 1, which is all text."
        )
    if not tokenizers:
        raise ValueError("tokenizers is empty. Name at least one, such as tokenizers.mine=data/tokenizers/mine.")
    configs = source_configs(sources)
    loaded = {name: Tokenizer.load(path) for name, path in tokenizers.items()}
    held_out = {name: one_side(configs, name, validation_fraction, seed, held_out=True) for name in configs}
    figures = compare_tokenizers(loaded, held_out)
    if not any(counts.documents for counts in next(iter(figures.values())).sources.values()):
        raise ValueError(f"validation_fraction={validation_fraction} holds out no document. Raise it; 1 is all text.")
    uses = {name: vocabulary_use(loaded[name], found.token_counts) for name, found in figures.items()}
    console = Console()
    console.print(_sources_table(figures))
    console.print(_vocabulary_table(loaded, figures, uses))
    console.print(_NOTE, style="dim")
    if output is not None:
        write_json(Path(output), _as_json(loaded, figures, uses))


def _sources_table(figures: dict[str, TokenizerFigures]) -> Table:
    table = Table("text", "tokenizer", title="Held-out text")
    for heading in ("tokens", "bytes/token", "chars/token", "tokens/word"):
        table.add_column(heading, justify="right")
    first = next(iter(figures.values()))
    for group in ("sources", "languages"):
        for text in getattr(first, group):
            for name, found in figures.items():
                counts = getattr(found, group)[text]
                ratios = (counts.bytes_per_token, counts.characters_per_token, counts.fertility)
                label = text if group == "sources" else f"all {text}"
                table.add_row(label, name, f"{counts.tokens:,}", *(f"{ratio:.2f}" for ratio in ratios))
        table.add_section()
    return table


def _vocabulary_table(
    tokenizers: dict[str, Tokenizer], figures: dict[str, TokenizerFigures], uses: dict[str, VocabularyUse]
) -> Table:
    table = Table("tokenizer", title=f"Vocabulary; rare is seen fewer than {RARE_COUNT} times")
    for heading in ("tokens", "Rényi", "unseen", "swallowed", "unreachable", "rare"):
        table.add_column(heading, justify="right")
    for name, use in uses.items():
        counts = (use.unseen, len(use.swallowed), len(use.unreachable), use.rare)
        efficiency = f"{figures[name].renyi_efficiency:.3f}"
        table.add_row(name, f"{tokenizers[name].vocab_size:,}", efficiency, *(f"{n:,}" for n in counts))
    return table


def _as_json(
    tokenizers: dict[str, Tokenizer], figures: dict[str, TokenizerFigures], uses: dict[str, VocabularyUse]
) -> dict[str, Any]:
    ratios = ("bytes_per_token", "characters_per_token", "fertility")
    return {
        "note": _NOTE,
        "renyi_order": RENYI_ORDER,
        "rare_count": RARE_COUNT,
        "tokenizers": {
            name: {
                "vocab_size": tokenizers[name].vocab_size,
                "fingerprint": tokenizers[name].fingerprint,
                "renyi_efficiency": found.renyi_efficiency,
                **{
                    group: {
                        text: dataclasses.asdict(counts) | {ratio: getattr(counts, ratio) for ratio in ratios}
                        for text, counts in getattr(found, group).items()
                    }
                    for group in ("sources", "languages")
                },
                "vocabulary": dataclasses.asdict(uses[name]),
            }
            for name, found in figures.items()
        },
    }
