"""Supervised fine-tuning: imitate the answers of demonstrations."""

from typing import final

from lmstack.data.batch import IGNORE_INDEX, TokenBatch
from lmstack.models import TransformerConfig
from lmstack.models.activation_checkpointing import ActivationCheckpointing
from lmstack.models.likelihood import cross_entropy_sum
from lmstack.nn.lora import LoRAConfig
from lmstack.optim.optimizers import AdamWConfig, MuonConfig
from lmstack.optim.schedules import Schedule
from lmstack.stages.supervised import ObjectiveSums
from lmstack.stages.token_objective import TokenObjective
from lmstack.stages.warm_start import build_transformer, warm_start


@final
class SFT(TokenObjective):
    """Minimise -log p(token | what came before it), over the tokens that the model is to say.

    Args:
        optimizer: Which optimizer, with its settings.
        schedule: How the learning rate changes over the run.
        init_from: Weights to start from: an lmstack run or checkpoint, or a Hugging Face folder. None starts from
            random weights.
        transformer: Shape of the model; None takes that of `init_from`, with rows added for the tokens that the
            conversations' tokenizer has more.
        lora: Adapters, which are then all that is trained; None trains the weights.
        freeze: Regular expressions; parameters whose name one of them finds something in are not trained.
        loss_chunk_size: Tokens whose logits exist at once.
        activation_checkpointing: What is computed again in the backward pass instead of kept; null keeps everything.
        compile_blocks: Run each block through `torch.compile`.
    """

    def __init__(
        self,
        optimizer: AdamWConfig | MuonConfig,
        schedule: Schedule,
        *,
        init_from: str | None = None,
        transformer: TransformerConfig | None = None,
        lora: LoRAConfig | None = None,
        freeze: list[str] | None = None,
        loss_chunk_size: int = 4096,
        activation_checkpointing: ActivationCheckpointing | None = None,
        compile_blocks: bool = False,
    ) -> None:
        super().__init__(
            build_transformer(transformer, init_from),
            optimizer,
            schedule,
            activation_checkpointing=activation_checkpointing,
            compile_blocks=compile_blocks,
        )
        self.init_from = init_from
        self.may_grow = transformer is None
        self.lora = lora
        self.frozen = freeze or []
        self.loss_chunk_size = loss_chunk_size
        self._is_set_up = False

    def setup(self, stage: str) -> None:
        """Load the weights to start from, once.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
        """
        if not self._is_set_up:
            self._is_set_up = True
            warm_start(self, self.init_from, may_grow=self.may_grow, lora=self.lora, frozen=self.frozen)

    def loss_sums(self, batch: TokenBatch) -> ObjectiveSums:
        """Cross-entropy of a micro-batch, summed over its labels.

        Args:
            batch: One micro-batch of this rank.
        """
        hidden = self.transformer(batch.input_ids, position_ids=batch.position_ids, document_ids=batch.document_ids)
        counts = batch.labels != IGNORE_INDEX  # most tokens may be prompt: they need no logits
        sums = cross_entropy_sum(
            self.transformer, hidden[counts], batch.labels[counts], chunk_size=self.loss_chunk_size
        )
        return ObjectiveSums(sums.cross_entropy, {"loss": sums.cross_entropy})
