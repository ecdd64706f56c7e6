"""Precision and recall of each class of `dirty_corpus.py`: what counts as found is said beside every figure."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from corpus_outcomes import Outcome, Score

Truth = Mapping[str, Any]
NEAR_THRESHOLD = 0.8
_TOKEN = re.compile(r"[\u3400-\u9fff]|\w+")
_MARKUP = re.compile(r"</?[a-z][^<>\n]*>|&(?:amp|lt|gt|quot|nbsp|#\w+);|function \(|<!--")
_PLACEHOLDER = re.compile(r"\[[A-Z_]{2,8}\]")
_NOT_FOR_QUALITY = ("exact duplicate", "near duplicate", "contaminated", "only repeated", "language ")
"""Reasons of a drop that say nothing about the worth of a text."""

_AFTER_MASKING = ("exact duplicate", "near duplicate", "contaminated")
_NO_LANGUAGE = "language und"


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
            self._lost, self._clean, self._broken, self._exact, self._near, self._html, self._mojibake,
            self._personal_data, self._foreign, self._boilerplate, self._spam, self._contamination,
        ]  # fmt: skip
        return [score for method in methods for score in method()]

    def _reached(self, kind: str) -> list[tuple[Truth, Outcome]]:
        """Documents of a class that were read."""
        return [(each, self.outcomes[each["name"]]) for each in self.classes[kind] if each["name"] in self.outcomes]

    def _dropped(self, is_such: Callable[[Outcome], bool]) -> list[str]:
        """Names of the documents of the corpus, broken files aside, that were dropped so."""
        return [name for name, outcome in self.outcomes.items() if name in self.truth and is_such(outcome)]

    def _lost(self) -> Iterator[Score]:
        planted = [name for name, entry in self.truth.items() if entry["class"] != "broken"]
        found = sum(name in self.outcomes for name in planted)
        yield Score("all documents", found, len(planted), note="kept, or dropped with a reason")

    def _clean(self) -> Iterator[Score]:
        reached = self._reached("clean")
        kept = sum(not o.reason or o.was_dropped_as("exact duplicate", "near duplicate") for _, o in reached)
        yield Score("clean", kept, len(reached), note="kept, or dropped in favour of a planted duplicate")

    def _broken(self) -> Iterator[Score]:
        """Documents read from damaged files; a drop while collecting is a report of damage."""
        paths = Counter(
            Path(o.metadata["path"]).name
            for o in self.outcomes.values()
            if "/broken/" in o.metadata["path"] and o.stage != "collect"
        )
        for entry in self.classes["broken"] if paths else ():
            read, readable = paths[entry["name"]], entry["readable"]
            right = min(read, readable)
            yield Score(f"  {entry['name']}", right, readable, right, read, f"{entry['problem']}; documents read")

    def _exact(self) -> Iterator[Score]:
        note = "pairs of which one was dropped; such drops that are of planted pairs"
        yield self._pairs("exact_duplicate", "exact duplicate", self.classes["exact_duplicate"], 0.0, note)

    def _near(self) -> Iterator[Score]:
        planted = [each for each in self.classes["near_duplicate"] if each["similarity"] >= NEAR_THRESHOLD]
        note = f"the same, for pairs with a similarity of {NEAR_THRESHOLD} or more"
        yield self._pairs("near_duplicate", "near duplicate", planted, NEAR_THRESHOLD, note)
        bins = defaultdict(list)
        for each in self.classes["near_duplicate"]:
            bins[int(each["similarity"] * 20 + 1e-9) / 20].append(each)
        for low, pairs in sorted(bins.items()):
            wanted = "to be found" if low >= NEAR_THRESHOLD else "not to be found"
            found, reached = self._found(pairs)
            yield Score(f"  similarity {low:.2f} to {low + 0.05:.2f}", found, reached, note=wanted)

    def _pairs(self, kind: str, reason: str, planted: list[Truth], least: float, note: str) -> Score:
        found, reached = self._found(planted)
        dropped = [(n, o) for n, o in self.outcomes.items() if o.was_dropped_as(reason)]
        right = 0
        for name, outcome in dropped:
            original = self.names.get(str(outcome.detail).removeprefix("of ").partition(",")[0], "")
            pair = next((e for e in (self.truth.get(name), self.truth.get(original)) if e and e["class"] == kind), None)
            same_group = pair is not None and {name, original} == {pair["name"], pair["of"]}
            right += pair is not None and same_group and pair.get("similarity", 1.0) >= least
        return Score(kind, found, reached, right, len(dropped), note)

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
        reached = self._reached("html")
        tokens: dict[str, Counter[str]] = defaultdict(Counter)
        for entry, outcome in reached:
            extracted, main = (Counter(_TOKEN.findall(text)) for text in (outcome.text, entry["text"]))
            for layout in ("", entry["layout"]):
                tokens[layout] += Counter(both=(extracted & main).total(), have=extracted.total(), want=main.total())
        for layout, n in sorted(tokens.items()):
            name, note = (
                (f"  layout {layout}", "") if layout else ("html main text", "words of the content; of the text")
            )
            yield Score(name, n["both"], n["want"], n["both"], n["have"], note)
        clean = sum(not set(_MARKUP.findall(o.text)) - set(_MARKUP.findall(e["text"])) for e, o in reached)
        yield Score(
            "  no markup left",
            clean,
            len(reached),
            note="pages without tags, entities, comments, scripts that the content does not have",
        )
        gone = sum(line not in outcome.text for entry, outcome in reached for line in entry["chrome"])
        planted = sum(len(entry["chrome"]) for entry, _ in reached)
        yield Score("  what is around it", gone, planted, note="banners, footers, signs to share and subscribe: gone")

    def _mojibake(self) -> Iterator[Score]:
        reached = self._reached("mojibake")
        same = sum(_squeezed(outcome.text) == _squeezed(entry["text"]) for entry, outcome in reached)
        sound = self._reached("foreign")
        spoilt = sum(_squeezed(outcome.text) != _squeezed(entry["text"]) for entry, outcome in sound)
        note = "repaired to the letter; texts changed, sound ones of other languages among them"
        yield Score("mojibake", same, len(reached), same, same + spoilt, note)

    def _personal_data(self) -> Iterator[Score]:
        masked: Counter[str] = Counter()
        planted: Counter[str] = Counter()
        reached = [
            (e, o) for e, o in self._reached("personal_data") if not o.reason or o.was_dropped_as(*_AFTER_MASKING)
        ]
        for entry, outcome in reached:
            for each in entry["personal_data"]:
                planted[each["kind"]] += 1
                masked[each["kind"]] += each["value"] not in outcome.text
        placeholders = [len(_PLACEHOLDER.findall(outcome.text)) for _, outcome in reached]
        right = sum(min(n, len(entry["personal_data"])) for n, (entry, _) in zip(placeholders, reached, strict=True))
        note = "values gone; placeholders that stand for one"
        yield Score("personal_data", masked.total(), planted.total(), right, sum(placeholders), note)
        for kind in sorted(planted):
            yield Score(f"  {kind}", masked[kind], planted[kind], note="values gone")
        kept = sum(entry["decoy"] in outcome.text for entry, outcome in reached)
        yield Score("  decoys", kept, len(reached), note="dates, versions, figures, decorators: left alone")

    def _foreign(self) -> Iterator[Score]:
        """Documents in languages that were not wanted, and what was taken for such."""
        wanted = {self.truth[name]["language"] for name in self._dropped(lambda o: o.reason is None)}
        foreign = {name for name, e in self.truth.items() if e.get("language", "en") not in wanted}
        found = self._dropped(lambda o: o.was_dropped_as("language ") and not o.was_dropped_as(_NO_LANGUAGE))
        right = sum(name in foreign for name in found)
        yield Score("foreign language", right, len(foreign), right, len(found), "documents dropped for their language")
        named = {name: self.outcomes[name].metadata.get("language") for name in self.truth if name in self.outcomes}
        for language in sorted({e["language"] for e in self.truth.values() if "language" in e}):
            true = {n for n, e in self.truth.items() if e.get("language") == language and e["class"] != "spam"}
            called = {
                name for name, found in named.items() if found == language and self.truth[name]["class"] != "spam"
            }
            both = len(true & called)
            yield Score(f"  {language}", both, len(true), both, len(called), "named so; spam aside")

    def _boilerplate(self) -> Iterator[Score]:
        reached = [(entry, outcome.text) for entry, outcome in self._reached("boilerplate") if not outcome.reason]
        lines = [line not in text for entry, text in reached for line in entry["lines"]]
        own = [line not in text for entry, text in reached for line in entry["text"].split("\n") if line]
        note = "lines that the pages of a site share: cut; lines cut that are such"
        yield Score("boilerplate lines", sum(lines), len(lines), sum(lines), sum(lines) + sum(own), note)

    def _spam(self) -> Iterator[Score]:
        reached = self._reached("spam")
        dropped = self._dropped(
            lambda o: o.reason is not None and (o.reason == _NO_LANGUAGE or not o.was_dropped_as(*_NOT_FOR_QUALITY))
        )
        classes = Counter(self.truth[name]["class"] for name in dropped)
        right = classes.pop("spam", 0)
        gone = [entry["spam"] for entry, outcome in reached if outcome.reason]
        others = ", ".join(f"{kind} {number}" for kind, number in classes.most_common()) or "none"
        note = f"dropped for any reason; drops by rules of quality, or for no language at all (others: {others})"
        yield Score("spam", len(gone), len(reached), right, len(dropped), note)
        for kind, count in sorted(Counter(entry["spam"] for entry, _ in reached).items()):
            reasons = Counter(str(o.reason) for entry, o in reached if entry["spam"] == kind and o.reason)
            most = ", ".join(f"{reason} {number}" for reason, number in reasons.most_common(2))
            yield Score(f"  {kind}", gone.count(kind), count, note=most)

    def _contamination(self) -> Iterator[Score]:
        reached = [(e, o) for e, o in self._reached("contaminated") if o.reason is None or "contaminated" in o.reason]
        found = sum(o.was_dropped_as("contaminated") or "contaminated" in o.metadata for _, o in reached)
        reported = self._dropped(lambda o: o.was_dropped_as("contaminated"))
        right = sum(self.truth[name]["class"] == "contaminated" for name in reported)
        yield Score("contaminated", found, len(reached), right, len(reported), "documents with an evaluation item")


def _squeezed(text: str) -> str:
    return " ".join(text.split())
