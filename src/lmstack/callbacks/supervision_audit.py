"""Looks at the first step's batches before anything is trained on them."""

from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities.seed import isolate_rng
from rich.text import Text

from lmstack.data.batch import PreferenceBatch, TokenBatch
from lmstack.data.rendering import LEGEND, RowCounts, count_rows, render_row


class SupervisionAudit(L.Callback):
    """Shows what the first optimizer step will learn from, and refuses labels that cannot be meant.

    The batches come from a loader of its own, so that the training loader stays where it is. A resumed run is not
    audited again.

    Args:
        expect: `all` where every token should count (pretraining: only the last token of a document may be without
            label), `some` where a mask should leave part of the tokens out.
        max_tokens: How much of the sample row is shown.
    """

    def __init__(self, expect: Literal["all", "some"], max_tokens: int = 160) -> None:
        self.expect = expect
        self.max_tokens = max_tokens

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Audit, unless the run is resumed.

        Args:
            trainer: The trainer, whose data module has a tokenizer.
            pl_module: The stage.

        Raises:
            ValueError: No token of the step has a label, or the labels contradict `expect`.
        """
        data: Any = getattr(trainer, "datamodule", None)
        if trainer.global_step > 0 or data is None:
            return
        with isolate_rng():
            batches: Sequence[TokenBatch | PreferenceBatch] = next(iter(data.train_dataloader()))
        rows = [counts for batch in batches for counts in count_rows(batch)]
        if trainer.is_global_zero:
            trainer.print(self._report(batches, rows, data.tokenizer))
        self._check(rows)

    def _report(self, batches: Sequence[TokenBatch | PreferenceBatch], rows: list[RowCounts], tokenizer: Any) -> Text:
        supervised = [row.num_supervised for row in rows]
        total, num_bytes = sum(row.num_tokens for row in rows), sum(row.num_bytes for row in rows)
        report = Text("Supervision audit of the first step: ", "bold")
        report.append(
            f"{sum(supervised):,} of {total:,} tokens supervised in {len(rows)} rows "
            f"(per row {min(supervised):,} to {max(supervised):,}){f', {num_bytes:,} bytes' if num_bytes else ''}.\n",
            "not bold",
        )
        report.append(LEGEND + "\n", "dim")
        report.append_text(render_row(batches[0], 0, tokenizer, max_tokens=self.max_tokens))
        return report

    def _check(self, rows: list[RowCounts]) -> None:
        num_tokens = sum(row.num_tokens for row in rows)
        if not any(row.num_supervised for row in rows):
            raise ValueError(
                f"None of the {num_tokens} tokens of the first step has a label: nothing would be learnt. "
                "Check the loss mask, and that rows are not cut before their first label."
            )
        num_gaps = sum(row.num_gaps for row in rows)
        if self.expect == "all" and num_gaps:
            raise ValueError(
                f"{num_gaps} of the {num_tokens} tokens of the first step have no label though their document goes on. "
                "Use expect=some if a mask is meant, or look for what removed them."
            )
        if self.expect == "some" and not num_gaps:
            raise ValueError(
                f"All of the {num_tokens} tokens of the first step have a label: the loss mask masks nothing. "
                "Check the chat template's markers, or use expect=all if every token is meant to count."
            )
