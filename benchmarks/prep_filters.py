r"""What each filter alone does to real text: how many documents it drops or changes, why, and which.

    python benchmarks/prep_filters.py --out benchmarks/results/prep_filters \
        --group web=DATA/cleaning/warc_samples,DATA/text/en_web_wiki_demo --group chinese=DATA/text/zh_laws ...

Every group of files is read, extracted and normalised; then each stage of `FILTERS` judges the documents of its groups
as if it stood alone. Prints excerpts of drops and changes, drawn by a seed, to be read by a person; writes the counts.
"""

import argparse
import json
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lmstack.prep.blocks import read_documents
from lmstack.prep.collect.source import Source
from lmstack.prep.deduplication.exact import ExactDuplicates
from lmstack.prep.deduplication.lines import RepeatedLines
from lmstack.prep.deduplication.near import NearDuplicates
from lmstack.prep.deduplication.substrings import RepeatedSubstrings
from lmstack.prep.document import Document, Dropped
from lmstack.prep.extraction import Extract
from lmstack.prep.language import IdentifyLanguage
from lmstack.prep.normalisation import Normalise
from lmstack.prep.prepare import prepare_documents
from lmstack.prep.privacy import MaskPersonalData
from lmstack.prep.quality.c4 import C4
from lmstack.prep.quality.code import Code
from lmstack.prep.quality.fineweb import FineWeb
from lmstack.prep.quality.gopher import Gopher
from lmstack.prep.quality.repetition import Repetition
from lmstack.prep.stage import Context, CorpusStage, Stage

PROSE = ("web", "prose")
FILTERS: dict[str, tuple[Stage, tuple[str, ...]]] = {
    "language": (IdentifyLanguage(keep=["en", "zh"]), ("web", "prose", "chinese", "code")),
    "gopher": (Gopher(), PROSE),
    "gopher_zh": (Gopher(unit="characters", min_alphabetic=0.6, max_punctuation=0.4), ("chinese",)),
    "repetition": (Repetition(), PROSE),
    "c4": (C4(), PROSE),
    "c4_without_line_ends": (C4(lines_end_in_punctuation=False), PROSE),
    "fineweb": (FineWeb(), PROSE),
    "code": (Code(), ("code",)),
    "privacy": (MaskPersonalData(), ("web", "prose", "chinese", "code")),
    "repeated_lines": (RepeatedLines(min_documents=5), ("web", "code")),
    "exact_duplicates": (ExactDuplicates(), ("web", "code")),
    "near_duplicates": (NearDuplicates(), ("web", "chinese", "code")),
    "repeated_substrings": (RepeatedSubstrings(), ("web", "chinese", "code")),
}
_AROUND = 40


def collect(paths: Sequence[str], folder: Path) -> tuple[list[Document], dict[str, int], Counter[str]]:
    """Documents of some files, extracted and normalised; drops on the way, and what was counted.

    Args:
        paths: Files and folders.
        folder: To work in.
    """
    stages: dict[str, Stage] = {"extract": Extract(), "normalise": Normalise()}
    plan, results = prepare_documents(folder, {"all": Source(paths=list(paths))}, stages, map)
    files = sorted((plan.folder(len(plan.stages) - 1) / "documents").iterdir())
    dropped = {reason: n.documents for result in results for reason, n in result.tally.dropped.items()}
    counts = sum((result.tally.counts for result in results), Counter[str]())
    return [document for file in files for document in read_documents(file)], dropped, counts


def judge(stage: Stage, documents: Sequence[Document]) -> tuple[list[Document | Dropped], Counter[str]]:
    """What a stage makes of documents, and what it counted.

    Args:
        stage: Which.
        documents: All of them, in order.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if isinstance(stage, CorpusStage):
            stage.survey(documents, folder / "survey")
            stage.decide([folder / "survey"], folder)
        context = Context(folder=folder)
        judged = stage.filter(context)
        return [judged(document) for document in documents], context.counts


def excerpt(before: Document, after: Document | Dropped) -> str:
    """What is worth showing of a verdict: the beginning of a drop, or the place of the first change.

    Args:
        before: As the stage met it.
        after: As it left it.
    """
    if isinstance(after, Dropped):
        return f"[{after.reason}: {after.detail}] {' '.join(before.text.split())[:300]}"
    pairs = zip(before.text, after.text, strict=False)
    place = max(0, next((n for n, (a, b) in enumerate(pairs) if a != b), 0) - _AROUND)
    old, new = (" ".join(text[place : place + 4 * _AROUND].split()) for text in (before.text, after.text))
    return f"{old}\n      -> {new}"


def main() -> None:
    """Judge every group by every filter that is made for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", action="append", required=True, help="name=path,path: web, prose, chinese, code")
    parser.add_argument("--out", type=Path, help="where to write, without suffix")
    parser.add_argument("--examples", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    groups = {}
    figures: dict[str, dict[str, object]] = {}
    for number, (name, _, paths) in enumerate(group.partition("=") for group in arguments.group):
        with tempfile.TemporaryDirectory() as folder:
            groups[name], dropped, counts = collect(paths.split(","), Path(folder) / str(number))
        size = sum(len(document.text.encode()) for document in groups[name])
        figures[f"read {name}"] = {"documents": len(groups[name]), "bytes": size, "dropped": dropped, "counts": counts}
    for kind, (stage, names) in FILTERS.items():
        for name in names:
            documents = groups.get(name, [])
            verdicts, counts = judge(stage, documents)
            pairs = list(zip(documents, verdicts, strict=True))
            drops = [(b, a) for b, a in pairs if isinstance(a, Dropped)]
            changes = [(b, a) for b, a in pairs if isinstance(a, Document) and a.text != b.text]
            reasons = Counter(dropped.reason for _, dropped in drops)
            figures[f"{kind} {name}"] = {
                "documents": len(documents), "dropped": dict(reasons.most_common()), "changed": len(changes),
                "counts": dict(sorted(counts.items())),
            }  # fmt: skip
            print(f"\n{kind}, {name}: {figures[f'{kind} {name}']}")
            draw = random.Random(arguments.seed)
            for reason in reasons:
                some = [pair for pair in drops if pair[1].reason == reason]
                for before, after in draw.sample(some, min(arguments.examples, len(some))):
                    print(f"  - {Path(before.metadata['path']).name}: {excerpt(before, after)}")
            for before, changed in draw.sample(changes, min(arguments.examples, len(changes))):
                print(f"  * {Path(before.metadata['path']).name}: {excerpt(before, changed)}")
    if arguments.out is not None:
        arguments.out.with_suffix(".json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
