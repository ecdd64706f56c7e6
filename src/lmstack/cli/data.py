"""`lmstack data`: build a corpus, check it, and measure what is easy about it."""

import csv
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lmstack.data.manifest import SPLITS, Manifest, SplitSummary
from lmstack.data.shard_format import write_json
from lmstack.prep.build import build_corpus
from lmstack.prep.readers import SourceConfig

BASELINES_FILE = "baselines.json"


def build(
    *,
    output: str,
    sources: dict[str, str | list[str] | SourceConfig],
    tokenizer: str,
    validation_fraction: float | None = None,
    validation_sources: dict[str, str | list[str] | SourceConfig] | None = None,
    seed: int = 0,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Tokenize text, JSONL, JSONL.gz and Parquet into a corpus folder; the same command goes on after a kill.

    Args:
        output: Folder of the corpus.
        sources: Files, folders and globs by source name, such as sources.web=texts/*.jsonl.
        tokenizer: A tokenizer.json, or the folder that holds one.
        validation_fraction: Share of the documents to hold out; null is 0.01, or 0 with validation_sources.
        validation_sources: Sources that are validation only, by name.
        seed: Another seed holds out other documents.
        num_workers: Processes; null is one for each core.
        overwrite: Replace a finished corpus that was built from other inputs.
    """
    manifest = build_corpus(
        output,
        sources,
        tokenizer,
        validation_fraction=validation_fraction,
        validation_sources=validation_sources,
        seed=seed,
        num_workers=num_workers,
        overwrite=overwrite,
    )
    Console().print(summary_table(output, manifest))


def assistant(*, output: str, seed: int = 0) -> None:
    """Questions and answers about Python from its own documentation: demonstrations, comparisons and prompts.

    Args:
        output: Folder to write demonstrations.jsonl, comparisons.jsonl, prompts.jsonl and held_out_prompts.jsonl to.
        seed: Another seed is another split and other worse answers.
    """
    from lmstack.prep.documentation_assistant import write_assistant_data

    for name, count in write_assistant_data(output, seed=seed).items():
        print(f"{output}/{name}: {count:,} rows")


def verify(*, path: str) -> None:
    """Check every byte of a corpus against the hashes in its manifest.

    Args:
        path: Folder of the corpus.
    """
    manifest = Manifest.load(Path(path))
    manifest.verify(Path(path))
    Console().print(summary_table(path, manifest))
    print(f"{path}: every shard is as it was built (fingerprint {manifest.fingerprint[:12]})")


def baselines(*, path: str, run: str | None = None) -> None:
    """Bits per byte that xz and a trigram reach on the validation text: what a model has to beat.

    Args:
        path: Folder of the corpus; the figures are written to baselines.json in it.
        run: Folder of a run whose last val/bits_per_byte is shown beside them.
    """
    from lmstack.evaluation.baselines import corpus_baselines

    figures = corpus_baselines(path)
    write_json(Path(path, BASELINES_FILE), figures)
    table = Table(title=f"Validation bits per byte, {path}")
    table.add_column("what")
    table.add_column("bits per byte", justify="right")
    table.add_row("xz -9e, given the training text", f"{figures['xz_bits_per_byte']:.3f}")
    table.add_row("interpolated trigram over the same tokens", f"{figures['trigram_bits_per_byte']:.3f}")
    if run is not None:
        step, bits_per_byte = last_validation(Path(run))
        table.add_row(f"{run} after {step} steps", f"{bits_per_byte:.3f}")
    Console().print(table)


def last_validation(run: Path) -> tuple[int, float]:
    """Step and bits per byte of the last validation of a run.

    Args:
        run: Folder of the run, or its metrics.csv.

    Raises:
        ValueError: The run has no validation yet.
    """
    file = run / "metrics.csv" if run.is_dir() else run
    if not file.is_file():
        raise ValueError(f"There is no metrics.csv at {run}. Name the folder of a run.")
    with open(file, newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("val/bits_per_byte")]
    if not rows:
        raise ValueError(f"{file} holds no val/bits_per_byte. Wait for the first validation of the run.")
    return int(float(rows[-1]["step"])), float(rows[-1]["val/bits_per_byte"])


def summary_table(path: str, manifest: Manifest) -> Table:
    """Documents, tokens and bytes of each source.

    Args:
        path: Folder of the corpus, for the title.
        manifest: Its manifest.
    """
    table = Table(title=f"{path}: vocabulary {manifest.tokenizer.vocab_size}, {manifest.token_dtype} tokens")
    table.add_column("source")
    table.add_column("split")
    for name in ("documents", "tokens", "bytes", "bytes/token"):
        table.add_column(name, justify="right")
    for name, source in manifest.sources.items():
        for split in SPLITS:
            _add_row(table, name, split, getattr(source, split))
    table.add_section()
    for split in SPLITS:
        _add_row(table, "all", split, manifest.total(split))
    return table


def _add_row(table: Table, name: str, split: str, part: SplitSummary) -> None:
    ratio = f"{part.bytes / part.tokens:.2f}" if part.tokens else "-"
    table.add_row(name, split, f"{part.documents:,}", f"{part.tokens:,}", f"{part.bytes:,}", ratio)
