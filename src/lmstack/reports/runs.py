"""What a run folder says about the run."""

import csv
from pathlib import Path


def read_run(folder: Path) -> list[dict[str, str]]:
    """Rows of a run's `metrics.csv`, oldest first; none when there is no such file.

    Args:
        folder: The run folder.
    """
    path = folder / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def column(rows: list[dict[str, str]], name: str) -> list[tuple[float, float]]:
    """(step, value) where a metric was logged.

    Args:
        rows: Of `read_run`.
        name: Of the metric.
    """
    return [(float(row["step"]), float(row[name])) for row in rows if row.get(name)]
