"""spikes.jsonl in the run folder: every decision of the spike guard, one line each."""

import json
import math
import os
from pathlib import Path
from typing import Any

from lmstack.run_record import SPIKES, read_lines


class DecisionLog:
    """Lines in the order they were decided, numbered by `decision`; on disk before anything follows from them.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / SPIKES

    def append(self, entry: dict[str, Any]) -> None:
        """Write a line, and wait until it is on disk.

        Args:
            entry: What was decided; numbers that are not finite become words, which JSON has no numbers for.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: _plain(value) for name, value in entry.items()}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def keep(self, num_decisions: int) -> None:
        """Drop what was decided later, by steps that are to be taken again.

        Args:
            num_decisions: Decisions made until now.
        """
        kept = [entry for entry in read_lines(self.path) if entry["decision"] < num_decisions]
        if not self.path.exists():
            return
        beside = self.path.with_name(f".{SPIKES}.partial")
        beside.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        os.replace(beside, self.path)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def sentence(entry: dict[str, Any]) -> str:
    """A decision as a line for people.

    Args:
        entry: What was decided.
    """
    where = f"spike guard, step {entry['step']}: "
    if entry["action"] == "skip":
        return where + (
            f"update skipped. Loss {entry['loss']:.4g} ({entry['loss_deviations']:+.1f} deviations), gradient norm "
            f"{entry['grad_norm']:.4g} ({entry['grad_norm_deviations']:+.1f}), strike {entry['strike']}"
        )
    if entry["action"] == "rollback":
        return where + f"back to step {entry['to_step']}; rows {entry['rows'][0]} to {entry['rows'][1]} are left out"
    return where + f"stopped, for {entry['reason']}"
