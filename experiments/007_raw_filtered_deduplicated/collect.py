"""What each corpus kept of each class, and what was trained on it cost: results.csv and kept.csv.

python experiments/007_raw_filtered_deduplicated/collect.py
"""

import csv
from collections import Counter
from pathlib import Path

from lmstack.callbacks.metrics_csv import read_metrics
from lmstack.prep.blocks import read_documents

HERE = Path(__file__).parent
CORPORA = ("raw", "filtered", "deduplicated")
SEEDS = (1, 2, 3)


def main() -> None:
    names = [f"val/bits_per_byte{suffix}" for suffix in ("", "/english", "/chinese", "/code")]
    rows = []
    for corpus in CORPORA:
        for seed in SEEDS:
            metrics = read_metrics(Path(f"runs/007_{corpus}_{seed}/metrics.csv"))
            last = [row for row in metrics if row.get("val/loss")][-1]
            rows.append([corpus, seed, *(f"{float(last[name]):.4f}" for name in names)])
    write(HERE / "results.csv", ["corpus", "seed", *names], rows)
    kept = {corpus: classes(Path("data/spoilt") / corpus / "stages" / "hold_out" / "documents") for corpus in CORPORA}
    write(HERE / "kept.csv", ["class", *CORPORA], [[c, *(kept[k][c] for k in CORPORA)] for c in sorted(kept["raw"])])


def classes(folder: Path) -> Counter[str]:
    return Counter(each.metadata["class"] for file in folder.iterdir() for each in read_documents(file))


def write(file: Path, head: list[str], rows: list[list[object]]) -> None:
    with open(file, "w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([head, *rows])


if __name__ == "__main__":
    main()
