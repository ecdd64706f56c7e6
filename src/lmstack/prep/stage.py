"""What a stage of corpus preparation is: a filter for one document, with a look at the whole corpus first if need be.

The runner cuts the corpus into partitions and calls, for each stage:

1. `survey(documents, file)` once for every partition, in any order and in many processes: writes what the stage has to
   know of the partition to one file.
2. `decide(surveys, folder)` once, with all those files in the order of the partitions: writes its decisions to files in
   `folder`, with as little memory as it can.
3. `filter(context)` once for every partition: returns the function that judges each document.

A stage that judges a document by itself has only the third. All three must be functions of their inputs: the bytes they
write may not depend on time, process ids, hash seeds, or the order in which partitions are worked on.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from lmstack.prep.document import Document, Verdict

Filter = Callable[[Document], Verdict]


@dataclass(frozen=True, kw_only=True)
class Only:
    """Which documents a stage looks at; the others pass it as they are.

    Attributes:
        sources: Names of sources; null for all.
        languages: Languages as the language stage names them, such as en and zh; null for all.
        formats: text, markdown, html, code; null for all.
    """

    sources: list[str] | None = None
    languages: list[str] | None = None
    formats: list[str] | None = None

    def concerns(self, document: Document) -> bool:
        """Whether a stage looks at a document.

        Args:
            document: Which.
        """
        return (
            (self.sources is None or document.source in self.sources)
            and (self.languages is None or document.metadata.get("language") in self.languages)
            and (self.formats is None or document.metadata.get("format", "text") in self.formats)
        )


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """What every stage of a config has.

    Attributes:
        only: Which documents it looks at.
    """

    only: Only = Only()


@dataclass(frozen=True)
class Context:
    """What a stage is told when it judges the documents of a partition.

    Attributes:
        partition: Index of the partition.
        folder: Where `decide` left its decisions.
        counts: Things to count that are not drops, such as addresses masked; the report shows the sum over partitions.
    """

    partition: int = 0
    folder: Path = Path()
    counts: Counter[str] = field(default_factory=Counter)


@runtime_checkable
class Stage(Protocol):
    """A stage that judges each document by itself. Its fields are its settings, and its identity."""

    def filter(self, context: Context) -> Filter:
        """The function that keeps, changes or drops a document; it is called in the order of the partition.

        Args:
            context: Of the partition.
        """
        ...


@runtime_checkable
class CorpusStage(Stage, Protocol):
    """A stage that must see the whole corpus before it can judge a document."""

    def survey(self, documents: Iterable[Document], file: Path) -> None:
        """Write what has to be known of a partition.

        Args:
            documents: Of the partition, in order.
            file: To write; the runner renames it into place when the call returns.
        """
        ...

    def decide(self, surveys: Sequence[Path], folder: Path) -> None:
        """Write the decisions.

        Args:
            surveys: What `survey` wrote, in the order of the partitions.
            folder: For the decisions; new and empty, and renamed into place when the call returns.
        """
        ...


@runtime_checkable
class ReadsFiles(Protocol):
    """A stage whose verdicts depend on files besides its documents: when one of them changes, it is done again."""

    def input_files(self) -> Iterable[Path]:
        """All those files, also such as a glob or another file names."""
        ...
