"""From prepared documents to token shards."""

from dataclasses import dataclass
from pathlib import Path

from lmstack.data.manifest import Manifest
from lmstack.prep.build import build_corpus
from lmstack.prep.hold_out import KEY, HoldOut
from lmstack.prep.plan import Plan
from lmstack.prep.prepare import StageResult
from lmstack.prep.readers import SourceConfig
from lmstack.prep.task import documents_file

CORPUS_FOLDER = "corpus"
HOLD_OUT = "hold_out"


@dataclass(frozen=True, kw_only=True)
class Shards:
    """How the documents that are left become a corpus.

    Attributes:
        tokenizer: A tokenizer.json, or the folder that holds one.
        validation_fraction: Share held out for validation, from 0 to below 1.
        validation_sources: Texts that are validation only, by source, such as one set for several corpora.
        test_fraction: Share set aside as text, never tokenized: the dropped documents of the stage `hold_out`.
        seed: Of the split. Near-duplicates, where a stage has found them, stay on one side.
    """

    tokenizer: str
    validation_fraction: float = 0.01
    validation_sources: dict[str, SourceConfig] | None = None
    test_fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction + self.test_fraction < 1:
            raise ValueError(
                f"shards.validation_fraction={self.validation_fraction} and test_fraction={self.test_fraction} leave "
                "nothing to train on. Use shares such as 0.01."
            )

    def hold_out(self) -> HoldOut:
        """The stage that comes before the shards."""
        return HoldOut(test_fraction=self.test_fraction, seed=self.seed)


def build_shards(plan: Plan, last: StageResult, shards: Shards, num_workers: int | None) -> Manifest:
    """Tokenize what the last stage kept; sources of which nothing is left are left out.

    Args:
        plan: Of the preparation; its last stage is `hold_out`.
        last: What that stage did.
        shards: How.
        num_workers: As for `build_corpus`.

    Raises:
        ValueError: Nothing is left at all.
    """
    folder = plan.folder(len(plan.stages) - 1)
    sources: dict[str, str | list[str] | SourceConfig] = {}
    for name, tally in last.by_source.items():
        if tally.kept.documents:
            files = [str(documents_file(folder, p.index)) for p in plan.partitions if p.source == name]
            sources[name] = SourceConfig(files, key_field=f"metadata.{KEY}")
    if not sources:
        raise ValueError("No document is left to train on: every one was dropped. Look at the report, loosen a stage.")
    return build_corpus(
        Path(plan.output, CORPUS_FOLDER),
        sources,
        shards.tokenizer,
        validation_fraction=shards.validation_fraction,
        validation_sources=shards.validation_sources,
        seed=shards.seed,
        num_workers=num_workers,
        overwrite=True,
    )
