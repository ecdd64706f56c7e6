"""What an optimizer step has to do, whatever does it."""

from dataclasses import dataclass

from lmstack.models.accounting import flops_per_token
from lmstack.models.activation_checkpointing import (
    ActivationCheckpointing,
    BlockCheckpointing,
    BudgetCheckpointing,
    FullCheckpointing,
)
from lmstack.models.config import TransformerConfig
from lmstack.models.memory import OptimizerKind, Precision

_PRECISIONS: dict[str, Precision] = {
    "32": "32-true",
    "32-true": "32-true",
    "bf16": "bf16-mixed",
    "bf16-mixed": "bf16-mixed",
    "16-mixed": "bf16-mixed",
    "bf16-true": "bf16-true",
    "16-true": "bf16-true",
}


def precision_of(name: str, master_weights: bool = False) -> Precision:
    """The precision whose numbers are as large.

    Args:
        name: As Lightning names it.
        master_weights: Whether the optimizer has its own copy of the weights.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in _PRECISIONS:
        raise ValueError(f"trainer.precision={name!r}: must be one of {', '.join(_PRECISIONS)}.")
    return "bf16-true with masters" if master_weights and name == "bf16-true" else _PRECISIONS[name]


@dataclass(frozen=True)
class Workload:
    """An optimizer step.

    Attributes:
        transformer: Which model.
        sequence_length: Tokens of a row.
        micro_batch_size: Rows of a forward on one device.
        global_batch_size: Rows of the step.
        precision: Of weights, products and optimizer.
        optimizer: Which state is kept.
        activation_checkpointing: What is kept of a block; None is everything.
        loss_chunk_size: Tokens whose logits exist at once.
    """

    transformer: TransformerConfig
    sequence_length: int
    micro_batch_size: int
    global_batch_size: int
    precision: Precision
    optimizer: OptimizerKind
    activation_checkpointing: ActivationCheckpointing | None = None
    loss_chunk_size: int = 4096

    @property
    def tokens(self) -> int:
        """Of a micro-batch."""
        return self.micro_batch_size * self.sequence_length

    def num_micro_batches(self, data_parallel: int) -> int:
        """Of a step, on one device.

        Args:
            data_parallel: Devices with rows of their own.

        Raises:
            ValueError: The step cannot be shared out evenly.
        """
        rows = self.micro_batch_size * data_parallel
        if self.global_batch_size % rows:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} is not a multiple of micro_batch_size="
                f"{self.micro_batch_size} x {data_parallel}"
            )
        return self.global_batch_size // rows

    @property
    def flops(self) -> float:
        """Of the step on all devices, what is computed again included."""
        tokens = self.global_batch_size * self.sequence_length
        forward_again = self._share_computed_again / 3  # a backward is two forwards
        return (
            tokens * flops_per_token(self.transformer, self.sequence_length, "causal_attention") * (1 + forward_again)
        )

    @property
    def _share_computed_again(self) -> float:
        choice = self.activation_checkpointing
        if isinstance(choice, FullCheckpointing):
            return 1.0
        if isinstance(choice, BlockCheckpointing):
            return 1 / choice.every
        return 1 - choice.fraction if isinstance(choice, BudgetCheckpointing) else 0.0
