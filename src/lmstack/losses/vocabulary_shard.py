"""A head whose rows are shared out over processes, each with some of the vocabulary (Megatron-LM, arXiv:1909.08053)."""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor


class VocabularyShard(NamedTuple):
    """This process's rows of the head.

    Attributes:
        group: The processes that hold the other rows; all see the same tokens.
        first_id: Token id of the first row here.
    """

    group: Any
    first_id: int

    def owned(self, labels: Int[Tensor, "N 1"], num_rows: int) -> tuple[Int[Tensor, "N 1"], Bool[Tensor, "N 1"]]:
        """Rows of the labels here, and which labels are here; the others have some row.

        Args:
            labels: Token ids.
            num_rows: Rows here.
        """
        rows = labels - self.first_id
        return rows.clamp(0, num_rows - 1), (rows >= 0) & (rows < num_rows)

    def log_softmax(
        self, logits: Float[Tensor, "N V"], rows: Int[Tensor, "N 1"], owned: Bool[Tensor, "N 1"], *, out: Tensor
    ) -> tuple[Float[Tensor, "N V"], Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Log-probabilities of the tokens here, those of the labels, and the logsumexp; normalized over all processes.

        Args:
            logits: Of the tokens here.
            rows: Row of each label.
            owned: Whether it is here.
            out: Where the first result goes.
        """
        largest = logits.amax(-1, keepdim=True)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        torch.sub(logits, largest, out=out)
        label_logits = logits.gather(1, rows).masked_fill_(~owned, 0.0)
        sums = torch.cat([out.exp().sum(-1, keepdim=True), label_logits], dim=1)
        dist.all_reduce(sums, group=self.group)
        log_sum = sums[:, :1].log()
        out.sub_(log_sum)
        logsumexp = (log_sum + largest).squeeze(1)
        return out, sums[:, 1] - logsumexp, logsumexp

    def add_up(self, gradient: Tensor | None) -> None:
        """Make this process's share of a gradient of the hidden states the whole one, in place.

        Args:
            gradient: Of what all processes see; None is left alone.
        """
        if gradient is not None:
            dist.all_reduce(gradient, group=self.group)


def split_head(
    weight: Float[Tensor, "V D"], bias: Float[Tensor, " V"] | None
) -> tuple[Tensor, Tensor | None, VocabularyShard | None]:
    """The rows of a head that are here, and where they belong; None for a head that is whole.

    Args:
        weight: A plain tensor, or one that tensor parallelism shards by rows.
        bias: The same; None for none.
    """
    if not hasattr(weight, "device_mesh"):  # a DTensor, whose class takes long to import
        return weight, bias, None
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    assert isinstance(weight, DTensor)
    assert weight.device_mesh.ndim == 1
    _, offset = compute_local_shape_and_global_offset(weight.shape, weight.device_mesh, weight.placements)
    local_bias = bias.to_local() if isinstance(bias, DTensor) else bias
    return weight.to_local(), local_bias, VocabularyShard(weight.device_mesh.get_group(), offset[0])
