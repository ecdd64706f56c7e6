"""metrics.csv in the run folder: one row a step, exact across interruptions."""

import csv
import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
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
        self._pending: dict[str, Any] = {}

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

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: `config.yaml` has them.

        Args:
            params: Ignored.
            args: Ignored.
            kwargs: Ignored.
        """

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add to the step's row; a row is written when the next step's begins, or on `save`.

        Args:
            metrics: Values by name.
            step: Optimizer steps taken.
        """
        if self._pending and self._pending["step"] != step:
            self.save()
        self._pending.update(metrics, step=step)
        self._pending.pop("epoch", None)

    @rank_zero_only
    def save(self) -> None:
        """Write the pending row."""
        if not self._pending:
            return
        new = [name for name in self._pending if name not in self._columns]
        if new or not self.path.exists():
            rows = read_metrics(self.path)
            self._columns += [name for name in new if name not in self._columns]
            self._rewrite(rows)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(self._pending)
        self._pending = {}

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the pending row.

        Args:
            status: Ignored.
        """
        self.save()

    @rank_zero_only
    def resume_from(self, step: int) -> None:
        """Drop rows of steps not yet taken.

        Args:
            step: Optimizer steps taken by the checkpoint that is resumed.
        """
        rows = read_metrics(self.path)
        self._columns = ["step", *(name for name in (rows[0] if rows else {}) if name != "step")]
        if self.path.exists():
            self._rewrite([row for row in rows if int(row["step"]) < step])

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{NAME}.partial")
        with beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
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
