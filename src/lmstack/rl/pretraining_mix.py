"""Pretraining text mixed into policy updates: PPO-ptx."""

from dataclasses import dataclass

from lmstack.data.batch import TokenBatch
from lmstack.data.batch_size import BatchSizePlan
from lmstack.data.corpus import Corpus
from lmstack.data.mixture import Mixture
from lmstack.data.pretraining_rows import TrainRows
from lmstack.data.rank import Rank


@dataclass(frozen=True)
class PretrainingMix:
    """A language-modelling loss beside the policy's, which keeps what pretraining has taught (arXiv:2203.02155, eq. 2).

    Attributes:
        path: Folder of a corpus that `lmstack data build` made, with the policy's tokenizer.
        sequence_length: Tokens of a row.
        rows_per_step: Rows that each optimizer step takes, over all ranks.
        micro_batch_size: Rows of a forward pass.
        coef: Gamma, the weight of the mean loss per token; 27.8 in the paper.
        seed: Of the order of rows.
    """

    path: str
    sequence_length: int
    rows_per_step: int
    micro_batch_size: int
    coef: float = 27.8
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.rows_per_step % self.micro_batch_size:
            raise ValueError(
                f"pretraining_mix.rows_per_step={self.rows_per_step} is not a multiple of "
                f"micro_batch_size={self.micro_batch_size}."
            )
        if not self.coef > 0.0:
            raise ValueError(f"pretraining_mix.coef={self.coef}: must be above 0; set pretraining_mix=null for none.")


class PretrainingStream:
    """The rows of each optimizer step: a pure function of its number, so that a resumed run needs no state.

    Args:
        config: What and how much.
        rank: Which share of a step is made.

    Raises:
        ValueError: The corpus is not there.
    """

    def __init__(self, config: PretrainingMix, rank: Rank) -> None:
        if config.rows_per_step % (config.micro_batch_size * rank.world_size):
            raise ValueError(
                f"pretraining_mix.rows_per_step={config.rows_per_step} is not a multiple of "
                f"micro_batch_size={config.micro_batch_size} x {rank.world_size} ranks."
            )
        self.config = config
        self.corpus = Corpus(config.path)
        names = [name for name, source in self.corpus.manifest.sources.items() if source.train.tokens]
        shards = [self.corpus.shards("train", name) for name in names]
        mixture = Mixture(tuple(s.num_tokens for s in shards), config.sequence_length, None, config.seed)
        plan = BatchSizePlan(config.rows_per_step, config.sequence_length)
        self._rows = TrainRows(shards, mixture, plan, self.corpus.tokenizer, config.micro_batch_size, rank)

    def micro_batches(self, step: int) -> list[TokenBatch]:
        """This rank's micro-batches of an optimizer step.

        Args:
            step: Optimizer steps before it.
        """
        return self._rows[step * self.config.rows_per_step]
