"""What a preparation made of the dirty corpus, beside the truth: precision and recall of every planted class.

    python benchmarks/corpus_score.py --truth data/dirty/truth.jsonl --prepared data/dirty_prepared --out results/corpus

`--prepared` is the output of `lmstack data prepare` on what `dirty_corpus.py` wrote. Prints a table, and writes it
(`.md`) and the figures (`.json`). A document is known again by its name in the metadata (`name`, or the end of `path`
or `url`). A class of which the preparation had no stage scores nothing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from corpus_outcomes import Score, read_outcomes
from corpus_score_classes import Scorer
from rich.console import Console
from rich.table import Table

_READING = """Recall: of what was planted and reached the stage, the share that was found. Precision: of what was
found, the share that had been planted. What "found" means is said in each line; indented lines are parts of the
line above them.
"""


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def heading(summary: dict[str, Any], num_documents: int) -> str:
    """What went through which stages.

    Args:
        summary: `summary.json` of the preparation.
        num_documents: Of the corpus.
    """
    stages = summary["stages"]
    megabytes = stages[0]["tally"]["taken"]["bytes"] / 1e6
    names = ", ".join(stage["name"] for stage in stages)
    return f"{num_documents:,} documents ({megabytes:.0f} MB), through {names}.\n"


def markdown(title: str, scores: list[Score]) -> str:
    """The table.

    Args:
        title: What was measured.
        scores: Its lines.
    """
    lines = [
        title,
        _READING,
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
    summary = json.loads((arguments.prepared / "summary.json").read_text(encoding="utf-8"))
    title = heading(summary, sum(entry["class"] != "broken" for entry in truth.values()))
    table = Table("class", "planted", "recall", "reported", "precision", "meaning", title=title)
    for s in scores:
        reported = f"{s.reported:,}" if s.reported else ""
        table.add_row(s.name, f"{s.planted:,}", _share(s.recall), reported, _share(s.precision), s.note)
    Console().print(table)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.with_suffix(".md").write_text(markdown(title, scores), encoding="utf-8")
        figures = [{**vars(s), "recall": s.recall, "precision": s.precision} for s in scores]
        arguments.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
