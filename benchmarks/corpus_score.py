"""What a preparation made of the dirty corpus, beside the truth: precision and recall of every planted class.

    python benchmarks/corpus_score.py --truth data/dirty/truth.jsonl --prepared data/dirty_prepared --out results/corpus

`--prepared` is the output of `lmstack data prepare` on what `dirty_corpus.py` wrote. Writes a table (`.md`) and the
figures (`.json`). A document is known again by its name in the metadata (`name`, or the end of `path` or `url`). A
class of which the preparation had no stage scores nothing, and says so.
"""

import argparse
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard
from rich.console import Console
from rich.table import Table

Truth = Mapping[str, Any]
NEAR_THRESHOLD = 0.8
_FIELDS = ("text", "metadata", "reason", "detail", "id")
_TOKEN = re.compile(r"[\u3400-\u9fff]|\w+")


@dataclass(frozen=True)
class Outcome:
    """What became of a document.

    Attributes:
        text: As it was last seen.
        metadata: As it was last seen.
        reason: Of its drop, with the stage before it; None when it was kept.
        detail: Of its drop.
        id: Its id in the preparation.
        stage: Where it was last seen.
    """

    text: str
    metadata: dict[str, Any]
    reason: str | None
    detail: str | None
    id: str
    stage: str

    def was_dropped_as(self, what: str) -> bool:
        """Whether it was dropped for a reason that begins so.

        Args:
            what: Beginning of the reason.
        """
        return self.reason is not None and self.reason.startswith(what)


@dataclass(frozen=True)
class Score:
    """One line of the table.

    Attributes:
        name: What is scored.
        found: Planted ones that were found.
        planted: How many were planted.
        right: Of what was found, how much is right.
        reported: How much was found.
        note: What recall and precision mean here.
    """

    name: str
    found: float
    planted: int
    right: float
    reported: int
    note: str = ""

    @property
    def recall(self) -> float | None:
        """Share of what was planted that was found."""
        return self.found / self.planted if self.planted else None

    @property
    def precision(self) -> float | None:
        """Share of what was found that is right."""
        return self.right / self.reported if self.reported else None


def read_outcomes(prepared: Path) -> dict[str, Outcome]:
    """What became of each document, by name.

    Args:
        prepared: Output of a preparation.
    """
    outcomes: dict[str, Outcome] = {}
    folders = sorted((prepared / "stages").iterdir(), key=_finished)
    files = [file for folder in folders for file in sorted(folder.glob("dropped/*.jsonl.zst"))]
    for file in (*files, *sorted(folders[-1].glob("documents/*.jsonl.zst"))):
        stage = file.parents[1].name
        for record in _records(file):
            outcome = Outcome(stage=stage, **{name: record.get(name) for name in _FIELDS})
            name = _name(outcome.metadata)
            if "/broken/" in outcome.metadata["path"]:
                name = f"{name}#{len(outcomes)}"
            if name in outcomes:
                raise SystemExit(f"{name} is there twice: kept or dropped in two places, or named twice.")
            outcomes[name] = outcome
    return outcomes


def _finished(folder: Path) -> float:
    """When a stage was finished: the stages in their order."""
    return max((file.stat().st_mtime_ns for file in folder.glob("tallies/*.json")), default=0)


def _records(file: Path) -> Iterator[dict[str, Any]]:
    with zstandard.open(file, "rt", encoding="utf-8", newline="\n") as stream:
        yield from map(json.loads, stream)


def _name(metadata: Mapping[str, Any]) -> str:
    if "name" in metadata:
        return str(metadata["name"])
    address = metadata.get("url") or metadata["path"]
    return re.sub(r"\.(txt|html)$", "", str(address).rpartition("/")[2])


class Scorer:
    """The truth and the outcomes, side by side."""

    def __init__(self, truth: Mapping[str, Truth], outcomes: Mapping[str, Outcome]) -> None:
        """Group the truth by class.

        Args:
            truth: By name of the document.
            outcomes: By name of the document.
        """
        self.truth, self.outcomes = truth, outcomes
        self.classes: dict[str, list[Truth]] = defaultdict(list)
        for entry in truth.values():
            self.classes[entry["class"]].append(entry)
        self.names = {outcome.id: name for name, outcome in outcomes.items()}

    def scores(self) -> list[Score]:
        """All lines of the table."""
        methods: list[Callable[[], Iterator[Score]]] = [
            self._lost, self._broken, self._exact, self._near, self._near_by_similarity, self._html, self._mojibake,
            self._personal_data, self._languages, self._boilerplate, self._spam, self._contamination,
        ]  # fmt: skip
        return [score for method in methods for score in method()]

    def _reached(self, kind: str) -> list[tuple[Truth, Outcome]]:
        """Documents of a class that were read."""
        return [(each, self.outcomes[each["name"]]) for each in self.classes[kind] if each["name"] in self.outcomes]

    def _lost(self) -> Iterator[Score]:
        planted = [name for name, entry in self.truth.items() if entry["class"] != "broken"]
        found = sum(name in self.outcomes for name in planted)
        yield Score("all documents", found, len(planted), found, found, "kept, or dropped with a reason")

    def _broken(self) -> Iterator[Score]:
        """Documents read from damaged files; a drop while collecting is a report of damage."""
        paths = Counter(
            Path(o.metadata["path"]).name
            for o in self.outcomes.values()
            if "/broken/" in o.metadata["path"] and o.stage != "collect"
        )
        for entry in self.classes["broken"] if paths else ():
            read = paths[entry["name"]]
            yield Score(
                f"  {entry['name']}",
                min(read, entry["readable"]),
                entry["readable"],
                min(read, entry["readable"]),
                read,
                entry["problem"],
            )

    def _exact(self) -> Iterator[Score]:
        yield self._pairs("exact_duplicate", "exact duplicate", self.classes["exact_duplicate"], lambda _: True)

    def _near(self) -> Iterator[Score]:
        planted = [each for each in self.classes["near_duplicate"] if each["similarity"] >= NEAR_THRESHOLD]
        score = self._pairs("near_duplicate", "near duplicate", planted, lambda s: s >= NEAR_THRESHOLD)
        yield score

    def _near_by_similarity(self) -> Iterator[Score]:
        bins = defaultdict(list)
        for each in self.classes["near_duplicate"]:
            bins[int(each["similarity"] * 20 + 1e-9) / 20].append(each)
        for low, planted in sorted(bins.items()):
            found, reached = self._found(planted)
            yield Score(
                f"  similarity {low:.2f} to {low + 0.05:.2f}", found, reached, 0, 0, "share of pairs not both kept"
            )

    def _pairs(self, kind: str, reason: str, planted: list[Truth], counts: Callable[[float], bool]) -> Score:
        """Pairs not both kept; of the drops for this reason, those whose original is the planted one."""
        found, reached = self._found(planted)
        dropped = [(n, o) for n, o in self.outcomes.items() if o.was_dropped_as(reason)]
        right = 0
        for name, outcome in dropped:
            original = self.names.get(str(outcome.detail).removeprefix("of ").partition(",")[0], "")
            pair = next((e for e in (self.truth.get(name), self.truth.get(original)) if e and e["class"] == kind), None)
            same_group = pair is not None and {name, original} == {pair["name"], pair["of"]}
            right += bool(pair) and same_group and counts(pair.get("similarity", 1.0))
        return Score(kind, found, reached, right, len(dropped), "pairs not both kept; drops that are planted pairs")

    def _found(self, planted: list[Truth]) -> tuple[int, int]:
        """Pairs of which one was dropped as a duplicate, among those that no other stage broke up."""
        found = reached = 0
        for each in planted:
            both = [self.outcomes.get(each["name"]), self.outcomes.get(each["of"])]
            as_duplicate = any(o is not None and o.reason and "duplicate" in o.reason for o in both)
            other = any(o is None or (o.reason and "duplicate" not in o.reason) for o in both)
            found += as_duplicate
            reached += as_duplicate or not other
        return found, reached

    def _html(self) -> Iterator[Score]:
        shared = have = want = 0
        for entry, outcome in self._reached("html"):
            extracted, main = (Counter(_TOKEN.findall(text)) for text in (outcome.text, entry["text"]))
            shared += (extracted & main).total()
            have, want = have + extracted.total(), want + main.total()
        yield Score("html main text", shared, want, shared, have, "tokens of the main text")

    def _mojibake(self) -> Iterator[Score]:
        reached = self._reached("mojibake")
        same = sum(_squeezed(outcome.text) == _squeezed(entry["text"]) for entry, outcome in reached)
        yield Score("mojibake", same, len(reached), 0, 0, "texts repaired to the letter, but for spaces")

    def _personal_data(self) -> Iterator[Score]:
        masked: Counter[str] = Counter()
        planted: Counter[str] = Counter()
        reached = self._reached("personal_data")
        for entry, outcome in reached:
            for each in entry["personal_data"]:
                planted[each["kind"]] += 1
                masked[each["kind"]] += each["value"] not in outcome.text
        placeholders = [len(re.findall(r"\[[A-Z_]{2,8}\]", outcome.text)) for _, outcome in reached]
        right = sum(min(n, len(entry["personal_data"])) for n, (entry, _) in zip(placeholders, reached, strict=True))
        note = "values gone; placeholders that stand for one"
        yield Score("personal_data", masked.total(), planted.total(), right, sum(placeholders), note)
        for kind in sorted(planted):
            yield Score(f"  {kind}", masked[kind], planted[kind], 0, 0, "values gone")
        kept = sum(entry["decoy"] in outcome.text for entry, outcome in reached)
        yield Score("  decoys left alone", kept, len(reached), 0, 0, "figures and names that only look like it")

    def _languages(self) -> Iterator[Score]:
        known = [(entry["language"], self.outcomes[name].metadata.get("language")) for name, entry in self.truth.items()
                 if name in self.outcomes and entry["class"] not in ("broken", "spam")]  # fmt: skip
        known = [(true, found) for true, found in known if found is not None]
        for language in sorted({true for true, _ in known}):
            both = sum(true == found == language for true, found in known)
            planted = sum(true == language for true, _ in known)
            yield Score(f"language {language}", both, planted, both, sum(found == language for _, found in known))

    def _boilerplate(self) -> Iterator[Score]:
        lines = cut = own = left = 0
        for entry, outcome in self._reached("boilerplate"):
            if outcome.reason is not None:
                continue
            lines += len(entry["lines"])
            cut += sum(line not in outcome.text for line in entry["lines"])
            own_lines = [line for line in entry["text"].split("\n") if line]
            own += len(own_lines)
            left += sum(line in outcome.text for line in own_lines)
        yield Score("boilerplate lines", cut, lines, 0, 0, "shared lines cut")
        yield Score("  own lines left", left, own, 0, 0, "lines of the page itself")

    def _spam(self) -> Iterator[Score]:
        others = ("exact duplicate", "near duplicate", "contaminated", "only repeated")
        dropped = {
            name for name, outcome in self.outcomes.items() if outcome.reason and not outcome.reason.startswith(others)
        }
        spam = {entry["name"] for entry, _ in self._reached("spam")}
        gone = {entry["name"] for entry, outcome in self._reached("spam") if outcome.reason}
        reported = {name for name in dropped if name in self.truth}
        yield Score("spam", len(gone), len(spam), len(reported & spam), len(reported), "dropped for any reason")

    def _contamination(self) -> Iterator[Score]:
        reached = [(e, o) for e, o in self._reached("contaminated") if o.reason is None or "contaminated" in o.reason]
        found = sum(o.was_dropped_as("contaminated") or "contaminated" in o.metadata for _, o in reached)
        reported = [name for name, outcome in self.outcomes.items() if outcome.was_dropped_as("contaminated")]
        right = sum(self.truth[name]["class"] == "contaminated" for name in reported if name in self.truth)
        yield Score("contaminated", found, len(reached), right, len(reported), "documents with an evaluation item")


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def markdown(scores: list[Score]) -> str:
    """The table.

    Args:
        scores: Its lines.
    """
    lines = [
        "| class | planted | recall | reported | precision | meaning |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for s in scores:
        name = s.name.replace("  ", "&nbsp;&nbsp;")
        reported = f"{s.reported:,}" if s.reported else ""
        lines.append(f"| {name} | {s.planted:,} | {_share(s.recall)} | {reported} | {_share(s.precision)} | {s.note} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Score a preparation."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="where to write, without suffix")
    arguments = parser.parse_args()
    entries = map(json.loads, arguments.truth.read_text(encoding="utf-8").splitlines())
    truth = {entry["name"]: entry for entry in entries}
    scores = Scorer(truth, read_outcomes(arguments.prepared)).scores()
    table = Table("class", "planted", "recall", "reported", "precision", "meaning")
    for s in scores:
        table.add_row(s.name, f"{s.planted:,}", _share(s.recall), f"{s.reported:,}", _share(s.precision), s.note)
    Console().print(table)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.with_suffix(".md").write_text(markdown(scores), encoding="utf-8")
        figures = [{**vars(s), "recall": s.recall, "precision": s.precision} for s in scores]
        arguments.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
