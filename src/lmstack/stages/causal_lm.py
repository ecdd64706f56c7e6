"""Pretraining: predict the next token."""

from typing import final

from jaxtyping import Float
from torch import Tensor

from lmstack.data.batch import TokenBatch
from lmstack.models import Transformer, TransformerConfig
from lmstack.models.activation_checkpointing import ActivationCheckpointing
from lmstack.models.checkpoint import load_weights_grown
from lmstack.models.likelihood import cross_entropy_sum, token_log_probs
from lmstack.optim.optimizers import AdamWConfig, MuonConfig
from lmstack.optim.schedules import Schedule
from lmstack.stages.supervised import ObjectiveSums
from lmstack.stages.token_objective import TokenObjective


@final
class CausalLM(TokenObjective):
    """Autoregressive language modelling: minimise -log p(token | what came before it in its document).

    Args:
        transformer: Shape of the model.
        optimizer: Which optimizer, with its settings.
        schedule: How the learning rate changes over the run.
        z_loss_coef: Weight of the squared log-partition, which keeps logits from drifting (PaLM, arXiv:2204.02311,
            section 5); 0 is none.
        loss_chunk_size: Tokens whose logits exist at once.
        init_from: Weights to start from: an lmstack run or checkpoint, or a Hugging Face folder. The vocabulary may
            have grown since. None starts from random weights.
        activation_checkpointing: What is computed again in the backward pass instead of kept; null keeps everything.
        compile_blocks: Run each block through `torch.compile`.
    """

    def __init__(
        self,
        transformer: TransformerConfig,
        optimizer: AdamWConfig | MuonConfig,
        schedule: Schedule,
        *,
        z_loss_coef: float = 0.0,
        loss_chunk_size: int = 4096,
        init_from: str | None = None,
        activation_checkpointing: ActivationCheckpointing | None = None,
        compile_blocks: bool = False,
    ) -> None:
        super().__init__(
            Transformer(transformer),
            optimizer,
            schedule,
            activation_checkpointing=activation_checkpointing,
            compile_blocks=compile_blocks,
        )
        self.z_loss_coef = z_loss_coef
        self.loss_chunk_size = loss_chunk_size
        self.init_from = init_from

    def loss_sums(self, batch: TokenBatch) -> ObjectiveSums:
        """Cross-entropy and z-loss of a micro-batch, summed over its labels.

        Args:
            batch: One micro-batch of this rank.
        """
        hidden = self.transformer(batch.input_ids, position_ids=batch.position_ids, document_ids=batch.document_ids)
        sums = cross_entropy_sum(
            self.transformer, hidden, batch.labels, chunk_size=self.loss_chunk_size, z_loss_coef=self.z_loss_coef
        )
        reported = {"loss": sums.cross_entropy} | ({"z_loss": sums.z_loss} if self.z_loss_coef else {})
        return ObjectiveSums(sums.cross_entropy + sums.z_loss, reported)

    def predict_step(self, batch: TokenBatch, batch_idx: int) -> Float[Tensor, "B T"]:
        """Log-probability of every label, in nats; 0 where a label does not count.

        Args:
            batch: One batch of this rank.
            batch_idx: Ignored.
        """
        hidden = self.transformer(batch.input_ids, position_ids=batch.position_ids, document_ids=batch.document_ids)
        return token_log_probs(self.transformer, hidden, batch.labels, chunk_size=self.loss_chunk_size)

    def setup(self, stage: str) -> None:
        """Load the weights to start from, unless a checkpoint is about to replace them.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            ValueError: The data has tokens for which the model has no row.
        """
        if check_vocab := getattr(getattr(self.trainer, "datamodule", None), "check_vocab", None):
            check_vocab(self.transformer.config.vocab_size)
        if self.init_from is not None and self.trainer.ckpt_path is None:
            load_weights_grown(self.transformer, self.init_from)
