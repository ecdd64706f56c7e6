"""What a stage did to a partition, in numbers and examples; tallies of partitions add up."""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from lmstack.prep.document import Document, Dropped, Verdict

NUM_EXAMPLES = 10
KEPT, CHANGED = "kept", "changed"
_EXCERPT = 600


@dataclass
class Amount:
    """Documents and the bytes of their text.

    Attributes:
        documents: How many.
        bytes: In UTF-8.
    """

    documents: int = 0
    bytes: int = 0

    def add(self, documents: int, num_bytes: int) -> None:
        """Add to it.

        Args:
            documents: How many.
            num_bytes: Of their text.
        """
        self.documents += documents
        self.bytes += num_bytes


@dataclass
class Tally:
    """What became of documents.

    Attributes:
        taken: What came in.
        kept: What went on.
        changed: Documents whose text was changed.
        dropped: What went no further, by reason.
        counts: What stages counted besides.
        languages: What went on, by language.
        lengths: Documents that went on, by the number of bits of their length in characters.
        examples: By `kept`, `changed` and every reason, those with the smallest hash of seed and id.
        seconds: Processor time of the filter, all processes together; other work on the machine does not count.
    """

    taken: Amount = field(default_factory=Amount)
    kept: Amount = field(default_factory=Amount)
    changed: Amount = field(default_factory=Amount)
    dropped: dict[str, Amount] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    languages: dict[str, Amount] = field(default_factory=dict)
    lengths: Counter[int] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, before: Document, verdict: Verdict, seed: int) -> None:
        """Count one document.

        Args:
            before: As the stage met it.
            verdict: What became of it.
            seed: Of the examples.
        """
        size = len(before.text.encode())
        self.taken.add(1, size)
        if isinstance(verdict, Dropped):
            self.dropped.setdefault(verdict.reason, Amount()).add(1, size)
            self._show(verdict.reason, before, seed, detail=verdict.detail, text=before.text[:_EXCERPT])
            return
        if verdict.text is not before.text and verdict.text != before.text:
            self.changed.add(1, size)
            start = max(0, _first_difference(before.text, verdict.text) - 60)
            old, new = (text[start : start + _EXCERPT // 2] for text in (before.text, verdict.text))
            self._show(CHANGED, before, seed, text=new, before=old)
            size = len(verdict.text.encode())
        self.kept.add(1, size)
        self.languages.setdefault(str(verdict.metadata.get("language", "?")), Amount()).add(1, size)
        self.lengths[len(verdict.text).bit_length()] += 1
        self._show(KEPT, verdict, seed, text=verdict.text[:_EXCERPT])

    def _show(self, what: str, document: Document, seed: int, **shown: str) -> None:
        shown_so_far = self.examples.setdefault(what, [])
        rank = hashlib.blake2b(f"{seed} {document.id}".encode(), digest_size=8).hexdigest()
        if len(shown_so_far) < NUM_EXAMPLES or rank < shown_so_far[-1]["rank"]:
            shown_so_far.append({"rank": rank, "id": document.id, "source": document.source, **shown})
            shown_so_far.sort(key=lambda example: example["rank"])
            del shown_so_far[NUM_EXAMPLES:]

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {**asdict(self), "counts": dict(self.counts), "lengths": dict(self.lengths)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Tally":
        """The tally that `to_json` wrote.

        Args:
            record: From JSON.
        """
        return cls(
            taken=Amount(**record["taken"]),
            kept=Amount(**record["kept"]),
            changed=Amount(**record["changed"]),
            dropped={reason: Amount(**amount) for reason, amount in record["dropped"].items()},
            counts=Counter(record["counts"]),
            languages={language: Amount(**amount) for language, amount in record["languages"].items()},
            lengths=Counter({int(bits): count for bits, count in record["lengths"].items()}),
            examples=record["examples"],
            seconds=record["seconds"],
        )


def total(tallies: Iterable[Tally]) -> Tally:
    """The sum of tallies.

    Args:
        tallies: Of partitions, in any order.
    """
    result = Tally()
    for tally in tallies:
        for name in ("taken", "kept", "changed"):
            part = getattr(tally, name)
            getattr(result, name).add(part.documents, part.bytes)
        for name in ("dropped", "languages"):
            for key, amount in getattr(tally, name).items():
                getattr(result, name).setdefault(key, Amount()).add(amount.documents, amount.bytes)
        result.counts += tally.counts
        result.lengths += tally.lengths
        result.seconds += tally.seconds
        for what, examples in tally.examples.items():
            both = [*result.examples.get(what, []), *examples]
            result.examples[what] = heapq.nsmallest(NUM_EXAMPLES, both, key=lambda example: example["rank"])
    result.dropped = dict(sorted(result.dropped.items(), key=lambda item: (-item[1].documents, item[0])))
    result.languages = dict(sorted(result.languages.items(), key=lambda item: (-item[1].documents, item[0])))
    return result


def _first_difference(one: str, other: str) -> int:
    """Index of the first character that differs; blocks are compared first, which is fast."""
    block = 256
    for start in range(0, min(len(one), len(other)), block):
        if one[start : start + block] != other[start : start + block]:
            pairs = zip(one[start : start + block], other[start : start + block])
            return start + next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)) - start)
    return min(len(one), len(other))
