r"""Extraction against reference extractions, and the quality classifier by cross-validation.

    python benchmarks/prep_quality.py --pages DATA/html_readability --labelled DATA/agreement_data.jsonl \
        --out benchmarks/results/prep_quality

`--pages` holds folders with `source.html` and `expected.html` (the layout of mozilla/readability's tests). F1 is over
the multiset of words (Chinese and Japanese by character), page by page, then averaged; the worst pages are named.
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from resiliparse.extract.html2text import extract_plain_text

from lmstack.prep.document import Document
from lmstack.prep.extraction import Extract
from lmstack.prep.quality.classifier import area_under_curve, train_classifier
from lmstack.prep.stage import Context

WORD = re.compile(r"[\u3040-\u9fff]|\w+")


def main() -> None:
    """Measure both and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=Path, required=True)
    parser.add_argument("--labelled", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    figures = {"extraction": extraction(arguments.pages), "classifier": classifier(arguments.labelled)}
    arguments.out.with_suffix(".json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(figures, indent=1, ensure_ascii=False))


def extraction(pages: Path) -> dict[str, dict[str, object]]:
    """Precision, recall and F1 of each extractor."""
    found: dict[str, dict[str, object]] = {}
    for name in ("resiliparse", "trafilatura"):
        judge = Extract(extractor=name).filter(Context())
        scores = {}
        for page in sorted(pages.iterdir()):
            if not page.is_dir():
                continue
            html = (page / "source.html").read_text(encoding="utf-8", errors="replace")
            verdict = judge(Document(html, page.name, "pages", {"format": "html"}))
            reference = extract_plain_text((page / "expected.html").read_text(encoding="utf-8", errors="replace"))
            scores[page.name] = f1(verdict.text if isinstance(verdict, Document) else "", reference)
        figures = np.array(list(scores.values()))
        found[name] = {
            "pages": len(figures),
            "precision": round(float(figures[:, 0].mean()), 4),
            "recall": round(float(figures[:, 1].mean()), 4),
            "f1": round(float(figures[:, 2].mean()), 4),
            "median_f1": round(float(np.median(figures[:, 2])), 4),
            "worst": {page: score[2] for page, score in sorted(scores.items(), key=lambda item: item[1][2])[:4]},
        }
    return found


def f1(text: str, reference: str) -> tuple[float, float, float]:
    """Precision, recall and F1 over the words of one page."""
    have, want = Counter(WORD.findall(text)), Counter(WORD.findall(reference))
    both = (have & want).total()
    precision, recall = both / max(have.total(), 1), both / max(want.total(), 1)
    return precision, recall, round(2 * precision * recall / max(precision + recall, 1e-9), 4)


def classifier(file: Path) -> dict[str, object]:
    """Area under the curve over five folds, beside that of length alone."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    texts, labels = [row["text"] for row in rows], np.array([bool(row["label"]) for row in rows])
    areas = [area_under_curve(train_classifier(texts, labels, seed=seed)[1], labels) for seed in range(3)]
    lengths = np.array([float(len(text)) for text in texts])
    return {
        "documents": len(texts),
        "good": int(labels.sum()),
        "auc_of_3_seeds": [round(area, 4) for area in areas],
        "auc_of_length_alone": round(area_under_curve(lengths, labels), 4),
    }


if __name__ == "__main__":
    main()
