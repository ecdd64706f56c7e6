"""The stage that takes evaluation items out of training data, and reports which items were in it."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from lmstack.prep.contamination_index import ContaminationIndex, Hit
from lmstack.prep.document import Document, Dropped, Verdict
from lmstack.prep.evaluation_sets import EvaluationSet, evaluation_files, read_items
from lmstack.prep.ngrams import batches, split_words
from lmstack.prep.spans import cut_spans
from lmstack.prep.stage import Context, Filter, StageSettings

REPORT_FILE = "contamination.json"
REASON = "contaminated"


@dataclass(frozen=True, kw_only=True)
class Decontamination(StageSettings):
    """Drop documents that hold evaluation items, or cut the items out.

    A document is contaminated if it shares `ngram` words in a row with an item (13 as in arXiv:2005.14165, appendix C),
    whatever their case and punctuation; Chinese characters are words. The texts of shorter items are looked for as a
    whole, down to `min_words`; those that are shorter still are counted in the report and not looked for, because
    every corpus has them.

    Attributes:
        kind: `decontamination`.
        benchmarks: Evaluation sets by name.
        ngram: Words in a row.
        min_words: Words of the shortest text that is looked for.
        action: `drop` the document, or `cut` what it shares with the items.
    """

    kind: Literal["decontamination"] = "decontamination"
    benchmarks: dict[str, EvaluationSet]
    ngram: int = 13
    min_words: int = 6
    action: Literal["drop", "cut"] = "drop"

    def __post_init__(self) -> None:
        if not self.benchmarks:
            raise ValueError("No benchmarks are given. Name the evaluation sets, or leave this stage out.")
        if not 1 <= self.min_words <= self.ngram:
            raise ValueError(f"min_words={self.min_words} is not in 1 .. ngram={self.ngram}. Use one such as 6.")

    def survey(self, documents: Iterable[Document], file: Path) -> None:
        """Write which documents of a partition hold which items.

        Args:
            documents: Of the partition.
            file: To write.
        """
        with open(file, "w", encoding="utf-8") as stream:
            for batch in batches(documents):
                words = split_words([document.text for document in batch])
                hits: dict[int, list[Hit]] = defaultdict(list)
                for hit in self._index.find(words):
                    hits[hit.text].append(hit)
                for text, found in sorted(hits.items()):
                    items = sorted({hit.item for hit in found})
                    record = {"id": batch[text].id, "source": batch[text].source, "items": items}
                    stream.write(json.dumps(record, ensure_ascii=False) + "\n")

    def decide(self, surveys: Sequence[Path], folder: Path) -> None:
        """Write the report: items hit of each benchmark, and by how many documents.

        Args:
            surveys: Of the partitions, in order.
            folder: For the decisions.
        """
        documents_of: dict[str, Counter[str]] = {name: Counter() for name in self.benchmarks}
        examples: dict[str, str] = {}
        num_documents: Counter[str] = Counter()
        for partition, survey in enumerate(surveys):
            hit: dict[str, list[str]] = {}
            for line in survey.read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                hit[record["id"]] = record["items"]
                for benchmark, item in record["items"]:
                    documents_of[benchmark][item] += 1
                    examples.setdefault(f"{benchmark}/{item}", record["id"])
                num_documents.update({benchmark for benchmark, _ in record["items"]})
            _partition_file(folder, partition).write_text(json.dumps(hit, ensure_ascii=False), encoding="utf-8")
        report = {
            name: {
                **self._index.summaries[name],
                "items_hit": len(hits),
                "documents": num_documents[name],
                "hits": {
                    item: {"documents": count, "example": examples[f"{name}/{item}"]}
                    for item, count in sorted(hits.items())
                },
            }
            for name, hits in documents_of.items()
        }
        (folder / REPORT_FILE).write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")

    def filter(self, context: Context) -> Filter:
        """The judge of a partition's documents; `context.counts` learns how much was cut.

        Args:
            context: Of the partition.
        """
        hit = json.loads(_partition_file(context.folder, context.partition).read_text(encoding="utf-8"))

        def judge(document: Document) -> Verdict:
            items = hit.get(document.id)
            if items is None:
                return document
            names = ", ".join(f"{benchmark}/{item}" for benchmark, item in items)
            if self.action == "drop":
                return Dropped(document, REASON, f"by {names}")
            text = self._cut(document.text)
            context.counts["characters of evaluation items cut"] += len(document.text) - len(text)
            left = document.with_text(text).with_metadata(contaminated=names)
            return left if text.strip() else Dropped(document, REASON, f"by {names}, and by nothing else")

        return judge

    def input_files(self) -> Iterator[Path]:
        """The files of the benchmarks.

        Raises:
            ValueError: A path matches nothing, or a task's data is not local.
        """
        for benchmark in self.benchmarks.values():
            yield from evaluation_files(benchmark)

    @cached_property
    def _index(self) -> ContaminationIndex:
        items = ((name, item) for name, source in self.benchmarks.items() for item in read_items(source))
        index = ContaminationIndex(items, ngram=self.ngram, min_words=self.min_words)
        if empty := [name for name in self.benchmarks if name not in index.summaries]:
            raise ValueError(f"The benchmark {empty[0]!r} holds no items. Look at its files, or leave it out.")
        return index

    def _cut(self, text: str) -> str:
        words = split_words([text])
        spans: list[tuple[int, int]] = []
        for start, stop in sorted((hit.start, hit.stop) for hit in self._index.find(words)):
            if spans and start <= spans[-1][1]:
                spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
            else:
                spans.append((start, stop))
        return cut_spans(text, words, spans)


def _partition_file(folder: Path, partition: int) -> Path:
    return folder / f"partition-{partition:06d}.json"
