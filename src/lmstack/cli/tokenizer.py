"""`lmstack tokenizer train`: tokenizers from text."""

import sys
from collections.abc import Iterator
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from lmstack.prep.build import DEFAULT_VALIDATION_FRACTION
from lmstack.prep.readers import SourceConfig, read_source
from lmstack.prep.split import is_validation
from lmstack.prep.text_sample import SampledSource, plan_sample, sample_text
from lmstack.tokenization import Tokenizer, WordSplit, byte_tokenizer, char_tokenizer, train_bpe_sizes, train_unigram

Sources = dict[str, str | list[str] | SourceConfig]


def train(
    *,
    output: str,
    sources: Sources,
    vocab_size: int | list[int] | None = None,
    kind: Literal["bpe", "unigram", "byte", "char"] = "bpe",
    split: WordSplit | None = None,
    sample_bytes: int | None = None,
    weights: dict[str, float] | None = None,
    temperature: float | None = None,
    validation_fraction: float = DEFAULT_VALIDATION_FRACTION,
    seed: int = 0,
) -> None:
    """Make a tokenizer from the training side of some sources.

    Give `sources`, `validation_fraction` and `seed` as for `lmstack data build`, and it never sees a held-out text. A
    character tokenizer takes its characters from all of the text: one that only occurs in validation needs an id too.

    Args:
        output: Folder to write tokenizer.json to; with several sizes, the folder of folders named by them.
        sources: Files, folders and globs by source name.
        vocab_size: Number of tokens, or a list of numbers, for bpe and unigram.
        kind: Byte pairs, the unigram model over bytes, single bytes, or the characters that occur.
        split: Words that no token of bpe or unigram crosses; null is digits in threes and Chinese words.
        sample_bytes: Train on about so many bytes, drawn from all sources; null is as much as there is.
        weights: Share of the training text by source, in any unit; null weighs all alike.
        temperature: Shares by size^(1/temperature), times the weights: larger is more even. Null leaves the size out
            of it, or takes all text once when there are no weights either.
        validation_fraction: Share of the documents that is held out.
        seed: Of the split and of the drawing.
    """
    configs = source_configs(sources)
    _check_options(kind, vocab_size, split=split, sample_bytes=sample_bytes, weights=weights, temperature=temperature)
    if kind == "byte":
        _save(byte_tokenizer(), output)
    elif kind == "char":
        _save(char_tokenizer(text for name in configs for text in one_side(configs, name, 0.0, seed)), output)
    else:
        assert vocab_size is not None
        plan = None
        if not (sample_bytes is None and weights is None and temperature is None):
            sizes = {n: sum(len(t.encode()) for t in one_side(configs, n, validation_fraction, seed)) for n in configs}
            plan = plan_sample(sizes, sample_bytes=sample_bytes, weights=weights, temperature=temperature)
            Console(stderr=True).print(_sample_table(plan))
        texts = _TrainingText(configs, plan, validation_fraction, seed)
        folders = {vocab_size: output} if isinstance(vocab_size, int) else {n: f"{output}/{n}" for n in vocab_size}
        for size, tokenizer in _train_sizes(kind, texts, list(folders), split or WordSplit()):
            _save(tokenizer, folders[size])


class _TrainingText:
    """The training text, each time it is gone through."""

    def __init__(
        self,
        configs: dict[str, SourceConfig],
        plan: dict[str, SampledSource] | None,
        validation_fraction: float,
        seed: int,
    ):
        self.configs = configs
        self.plan = plan
        self.validation_fraction = validation_fraction
        self.seed = seed

    def __iter__(self) -> Iterator[str]:
        for name in self.configs:
            texts = one_side(self.configs, name, self.validation_fraction, self.seed)
            yield from texts if self.plan is None else sample_text(texts, self.plan[name].copies, f"{self.seed} {name}")


def _train_sizes(
    kind: Literal["bpe", "unigram"], texts: _TrainingText, sizes: list[int], split: WordSplit
) -> Iterator[tuple[int, Tokenizer]]:
    show_progress = sys.stderr.isatty()
    if kind == "bpe":
        yield from train_bpe_sizes(texts, sizes, split=split, show_progress=show_progress).items()
    else:  # what a smaller vocabulary keeps is not a part of what a larger one keeps
        for size in sizes:
            yield size, train_unigram(texts, size, split=split, show_progress=show_progress)


def _check_options(kind: str, vocab_size: int | list[int] | None, **options: Any) -> None:
    is_trained = kind in ("bpe", "unigram")
    if is_trained != bool(vocab_size):
        raise ValueError(
            f"vocab_size={vocab_size} with kind={kind}: bpe and unigram need a vocab_size, such as 4096; byte and char "
            "have a vocabulary of their own. Set or drop vocab_size."
        )
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    if given and not is_trained:
        raise ValueError(f"{', '.join(given)} with kind={kind}: only bpe and unigram are trained. Drop it.")


def _save(tokenizer: Tokenizer, output: str) -> None:
    tokenizer.save(output)
    print(f"{output}: {tokenizer.vocab_size} tokens (fingerprint {tokenizer.fingerprint[:12]})")


def source_configs(sources: Sources) -> dict[str, SourceConfig]:
    """Sources as `read_source` takes them.

    Args:
        sources: Files, folders and globs by source name.
    """
    return {name: s if isinstance(s, SourceConfig) else SourceConfig(s) for name, s in sources.items()}


def one_side(
    sources: dict[str, SourceConfig], name: str, validation_fraction: float, seed: int, *, held_out: bool = False
) -> Iterator[str]:
    """The texts of one side of a source.

    Args:
        sources: All sources.
        name: Which one.
        validation_fraction: Share of the documents that is held out.
        seed: Of the split.
        held_out: Whether to give the documents that are held out, or the others.
    """
    for document in read_source(name, sources[name]):
        if is_validation(document.key, seed, validation_fraction) == held_out:
            yield document.text


def _sample_table(plan: dict[str, SampledSource]) -> Table:
    table = Table("source", title="Training text")
    for heading in ("bytes there are", "bytes taken", "share", "times"):
        table.add_column(heading, justify="right")
    total = sum(source.bytes * source.copies for source in plan.values())
    for name, (size, copies) in plan.items():
        taken = size * copies
        table.add_row(name, f"{size:,}", f"about {taken:,.0f}", f"{taken / total:.1%}", f"{copies:.3g}")
    return table
