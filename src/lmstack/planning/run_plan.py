"""What a run is about to do: parameters, tokens, FLOPs, memory and time. Arithmetic; nothing is built."""

from dataclasses import dataclass

from lmstack.models.accounting import ParameterCount, count_parameters, flops_per_token
from lmstack.models.activation_checkpointing import ActivationCheckpointing
from lmstack.models.config import TransformerConfig
from lmstack.models.memory import MemoryEstimate, OptimizerKind, memory_bytes
from lmstack.planning.workload import precision_of


@dataclass(frozen=True)
class Speed:
    """Floating-point operations a second of one device in training.

    Attributes:
        flops_per_second: Reached, not the maker's peak; counted as `causal_attention` counts.
        source: Where the figure comes from, for people.
    """

    flops_per_second: float
    source: str


@dataclass(frozen=True)
class RunPlan:
    """The size of a run.

    Attributes:
        parameters: By what they are.
        num_steps: Optimizer steps of the whole run.
        num_tokens: Training tokens of the whole run.
        sequence_length: Tokens of a row.
        micro_batch_size: Rows of a forward on one device.
        global_batch_size: Rows of an optimizer step.
        world_size: Devices that share a step.
        data_parallel: How many of them have rows of their own.
        precision: As Lightning names it.
        flops_per_token: Forward and backward, by convention.
        memory: Of one device, when every device holds the whole model.
        speed: How fast a device is; None where it is not known.
    """

    parameters: ParameterCount
    num_steps: int
    num_tokens: int
    sequence_length: int
    micro_batch_size: int
    global_batch_size: int
    world_size: int
    data_parallel: int
    precision: str
    flops_per_token: dict[str, float]
    memory: MemoryEstimate
    speed: Speed | None

    @property
    def total_flops(self) -> float:
        """Forward and backward over all tokens, counting the query-key pairs that causality lets through."""
        return self.num_tokens * self.flops_per_token["causal_attention"]

    @property
    def seconds(self) -> float | None:
        """Time of all steps, without validation; None where the speed is not known."""
        if self.speed is None:
            return None
        return self.total_flops / (self.speed.flops_per_second * self.world_size)


def plan_run(
    config: TransformerConfig,
    *,
    num_steps: int,
    num_tokens: int,
    sequence_length: int,
    micro_batch_size: int,
    global_batch_size: int,
    world_size: int = 1,
    data_parallel: int | None = None,
    precision: str = "32-true",
    master_weights: bool = False,
    optimizer: OptimizerKind = "adamw",
    activation_checkpointing: ActivationCheckpointing | None = None,
    loss_chunk_size: int = 4096,
    speed: Speed | None = None,
) -> RunPlan:
    """Plan a run.

    Args:
        config: The transformer's config.
        num_steps: Optimizer steps.
        num_tokens: Training tokens.
        sequence_length: Tokens of a row.
        micro_batch_size: Rows of a forward on one device.
        global_batch_size: Rows of an optimizer step.
        world_size: Devices that share a step.
        data_parallel: How many of them have rows of their own; None is all.
        precision: As Lightning names it.
        master_weights: Whether the optimizer has its own copy of the weights.
        optimizer: Which state is kept.
        activation_checkpointing: What is kept of a block; None is everything.
        loss_chunk_size: Tokens whose logits exist at once.
        speed: How fast a device is.

    Raises:
        ValueError: The precision is unknown, or the batch cannot be shared out.
    """
    data_parallel = data_parallel or world_size
    if global_batch_size % (micro_batch_size * data_parallel):
        raise ValueError(
            f"data.global_batch_size={global_batch_size} is not a multiple of micro_batch_size={micro_batch_size} x "
            f"{data_parallel} devices."
        )
    return RunPlan(
        parameters=count_parameters(config),
        num_steps=num_steps,
        num_tokens=num_tokens,
        sequence_length=sequence_length,
        micro_batch_size=micro_batch_size,
        global_batch_size=global_batch_size,
        world_size=world_size,
        data_parallel=data_parallel,
        precision=precision,
        flops_per_token={
            convention: flops_per_token(config, sequence_length, convention)
            for convention in ("6n", "full_attention", "causal_attention")
        },
        memory=memory_bytes(
            config,
            micro_batch_size=micro_batch_size,
            seq_len=sequence_length,
            precision=precision_of(precision, master_weights),
            optimizer=optimizer,
            activation_checkpointing=activation_checkpointing,
            loss_chunk_size=loss_chunk_size,
        ),
        speed=speed,
    )
