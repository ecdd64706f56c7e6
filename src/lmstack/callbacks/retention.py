"""Which checkpoints stay."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lmstack.models.checkpoint_folder import MANIFEST


@dataclass(frozen=True)
class Retention:
    """Keeps the newest, the best, and one of each stretch of time; the rest may be deleted.

    Attributes:
        last: How many of the newest stay, at least 1.
        best: How many of the best by `monitor` stay.
        every_hours: The first checkpoint stays, and then the first that is at least so many hours younger than the one
            that stayed before it; None keeps none for its age.
        monitor: A metric in the manifest.
        mode: Whether the least or the largest value is best.
    """

    last: int
    best: int
    every_hours: float | None
    monitor: str
    mode: Literal["min", "max"]

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.last < 1:
            raise ValueError(f"keep_last={self.last}: must be at least 1, or nothing could be resumed.")
        if self.best < 0:
            raise ValueError(f"keep_best={self.best}: must not be negative. 0 keeps none for its metric.")
        if self.every_hours is not None and self.every_hours <= 0:
            raise ValueError(
                f"keep_every_hours={self.every_hours}: must be above 0. Use null to keep none for its age."
            )

    def unkept(self, folders: list[Path]) -> list[Path]:
        """Checkpoints that may be deleted, oldest first.

        Args:
            folders: Checkpoints of a run, oldest first.
        """
        older = folders[: -self.last]
        manifests = {folder: _manifest(folder) for folder in folders} if older else {}
        kept = {*self._best(manifests), *self._one_of_each_stretch(manifests)}
        return [folder for folder in older if folder not in kept]

    def _best(self, manifests: dict[Path, dict[str, Any]]) -> list[Path]:
        sign = 1.0 if self.mode == "min" else -1.0
        scored, before = [], None
        for folder, manifest in manifests.items():
            metrics = manifest.get("metrics", {})
            value = metrics.get(self.monitor)
            # A checkpoint that no validation was followed by carries the metrics of the last one.
            if value is not None and math.isfinite(value) and metrics != before:
                scored.append((sign * float(value), folder))
            before = metrics
        return [folder for _, folder in sorted(scored)[: self.best]]

    def _one_of_each_stretch(self, manifests: dict[Path, dict[str, Any]]) -> list[Path]:
        """Found anew each time from what is there: what stayed before stays again."""
        if self.every_hours is None:
            return []
        kept: list[Path] = []
        last = float("-inf")
        for folder, manifest in manifests.items():
            saved_at = float(manifest.get("saved_at", "-inf"))
            if saved_at - last >= 3600 * self.every_hours:
                kept.append(folder)
                last = saved_at
        return kept


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest as it is; empty when there is none that can be read, as in a damaged checkpoint."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}
