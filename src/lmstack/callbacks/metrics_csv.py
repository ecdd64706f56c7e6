"""metrics.csv in the run folder: one row a step, exact across interruptions."""

import csv
import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

NAME = "metrics.csv"


class MetricsCsv(Logger):
    """Writes every logged metric to `metrics.csv`, a row a step, a column a metric.

    A resumed run first drops the rows after the step it resumes from, so that the file reads as if the run had never
    been interrupted.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.path = Path(folder) / NAME
        self._columns: list[str] = ["step"]
        self._row: dict[str, Any] = {}
        self._row_start = 0

    @property
    def name(self) -> str:
        """What Lightning calls this logger."""
        return "csv"

    @property
    def version(self) -> str:
        """Unused: one file a run."""
        return ""

    @property
    def root_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    @property
    @rank_zero_experiment
    def experiment(self) -> "MetricsCsv":
        """The logger itself."""
        return self

    @rank_zero_only  # type: ignore[untyped-decorator]
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: `config.yaml` has them.

        Args:
            params: Ignored.
            *args: Ignored.
            **kwargs: Ignored.
        """

    @rank_zero_only  # type: ignore[untyped-decorator]
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add to the step's row, in the file at once, so that nothing is lost when the process is killed.

        Args:
            metrics: Values by name.
            step: Optimizer steps taken.
        """
        is_new_row = self._row.get("step") != step
        self._row = {} if is_new_row else self._row
        self._row.update((name, value) for name, value in metrics.items() if name != "epoch")
        self._row["step"] = step
        if self._columns == ["step"] and (written := read_metrics(self.path)):
            self._columns = list(written[0])
        new_columns = [name for name in self._row if name not in self._columns]
        if new_columns or not self.path.exists():
            rows = read_metrics(self.path)
            self._columns += new_columns
            self._rewrite(rows if is_new_row else rows[:-1])
            is_new_row = True
        with self.path.open("r+", newline="") as file:
            self._row_start = file.seek(0, os.SEEK_END) if is_new_row else file.seek(self._row_start)
            file.truncate()
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(self._row)

    @rank_zero_only  # type: ignore[untyped-decorator]
    def resume_from(self, step: int) -> None:
        """Drop rows of steps not yet taken.

        Args:
            step: Optimizer steps taken by the checkpoint that is resumed.
        """
        rows = read_metrics(self.path)
        self._row = {}
        self._columns = ["step", *(name for name in (rows[0] if rows else {}) if name != "step")]
        if self.path.exists():
            self._rewrite([row for row in rows if int(row["step"]) <= step])

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{NAME}.partial")
        with beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(beside, self.path)


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Rows of a `metrics.csv`, oldest first; none when there is no file, and a torn last line is left out.

    Args:
        path: The file.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if None not in row.values() and None not in row and (row["step"] or "").isdigit()]


def last_value(path: Path, name: str) -> float | None:
    """The last value a run logged under a name.

    Args:
        path: The run's `metrics.csv`.
        name: A column.
    """
    values = [row[name] for row in read_metrics(path) if row.get(name)]
    return json.loads(values[-1]) if values else None
