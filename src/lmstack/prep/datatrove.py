"""datatrove's filters as stages of lmstack, and lmstack's stages as blocks of a datatrove pipeline."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lmstack.prep.document import Document, Dropped, Verdict
from lmstack.prep.stage import Context, CorpusStage, Filter, Only, Stage, StageSettings


@dataclass(frozen=True, kw_only=True)
class DatatroveFilter(StageSettings):
    """A filter or formatter of datatrove.

    Attributes:
        kind: `datatrove`.
        block: Its class, such as datatrove.pipeline.filters.URLFilter.
        arguments: What it is built with.
    """

    kind: Literal["datatrove"] = "datatrove"
    block: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def filter(self, context: Context) -> Filter:
        """The function that asks the block.

        Args:
            context: Of the partition.

        Raises:
            ValueError: There is no such class, or it judges no document by itself.
        """
        block = self._block()
        from datatrove.data import Document as Other

        def judge(document: Document) -> Verdict:
            other = Other(text=document.text, id=document.id, metadata=dict(document.metadata))
            if hasattr(block, "format"):
                return document.with_text(block.format(other.text))
            verdict = block.filter(other)
            is_kept, reason = verdict if isinstance(verdict, tuple) else (verdict, block.__class__.__name__)
            if not is_kept:
                return Dropped(document, str(reason), self.block)
            return document.with_text(other.text).with_metadata(**other.metadata)

        return judge

    def input_files(self) -> Iterator[Path]:
        """Files among the arguments."""
        yield from (Path(text) for text in _texts(self.arguments) if Path(text).is_file())

    def _block(self) -> Any:
        module, _, name = self.block.rpartition(".")
        try:
            block = getattr(importlib.import_module(module), name)(**self.arguments)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"datatrove.block={self.block} cannot be built: {error}. Check the name and the arguments; "
                "pip install datatrove, and what the block asks for."
            ) from None
        if not hasattr(block, "filter") and not hasattr(block, "format"):
            raise ValueError(f"datatrove.block={self.block} is neither a filter nor a formatter. Use one of those.")
        return block


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def as_datatrove_block(stage: Stage, source: str = "") -> Any:
    """A stage as a block that any datatrove pipeline and executor runs.

    Args:
        stage: One that judges each document by itself.
        source: Name of the source that its documents are of.

    Raises:
        ValueError: The stage has to see the whole corpus first.
    """
    if isinstance(stage, CorpusStage):
        raise ValueError(f"{type(stage).__name__} has to see the whole corpus first. Run it with lmstack data prepare.")
    from datatrove.pipeline.base import PipelineStep
    from datatrove.utils.typeshelper import StatHints

    stage_name = type(stage).__name__

    class Block(PipelineStep):
        type = "lmstack"
        name = stage_name

        def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
            judge = stage.filter(Context(rank, Path()))
            only: Only = getattr(stage, "only", Only())
            for other in data:
                self.stat_update(StatHints.total)
                document = Document(other.text, other.id, source, dict(other.metadata))
                verdict = judge(document) if only.concerns(document) else document
                if isinstance(verdict, Dropped):
                    self.stat_update(StatHints.dropped, f"dropped_{verdict.reason}")
                    continue
                self.stat_update(StatHints.forwarded)
                other.text, other.metadata = verdict.text, verdict.metadata
                yield other

    return Block()
