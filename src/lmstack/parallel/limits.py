"""Which sizes of a mesh a transformer can be cut to. Arithmetic on the config."""

from lmstack.models.config import TransformerConfig


def check_tensor(config: TransformerConfig, size: int, *, sequence_parallel: bool) -> None:
    """Refuse a shape that cannot be shared out within its layers.

    Args:
        config: The transformer's config.
        size: Processes that share each layer.
        sequence_parallel: Whether they share positions too.

    Raises:
        ValueError: The shape cannot be shared out so.
    """
    counts = {
        "num_heads": config.num_heads,
        "num_kv_heads": config.kv_heads,
        "feed_forward.hidden_dim": config.feed_forward.hidden_dim,
    }
    for name, count in counts.items():
        if count % size:
            raise ValueError(
                f"model.transformer.{name}={count} is not a multiple of trainer.strategy.tensor={size}. Use a smaller "
                "tensor size, or change the shape."
            )
    if config.vocab_size < size * size:  # rows are dealt in equal pieces; the last process must get some
        raise ValueError(f"model.transformer.vocab_size={config.vocab_size} is too small for tensor={size}.")
    if config.positions.kind == "alibi":
        raise ValueError("trainer.strategy.tensor above 1 with alibi positions: not supported. Use rotary positions.")
    if sequence_parallel and config.dropout:
        raise ValueError(
            f"sequence_parallel with model.transformer.dropout={config.dropout}: processes would drop the same parts "
            "of different positions. Set dropout=0, or sequence_parallel=false."
        )


def check_pipeline(config: TransformerConfig, num_stages: int) -> None:
    """Refuse a shape that cannot be cut between its layers.

    Args:
        config: The transformer's config.
        num_stages: Groups of layers.

    Raises:
        ValueError: The shape cannot be cut so.
    """
    if config.head_bias:
        raise ValueError("A pipeline of a model with head_bias is not supported. Use strategy=fsdp2.")
    if config.num_layers < num_stages:
        raise ValueError(
            f"model.transformer.num_layers={config.num_layers}: fewer than the pipeline's {num_stages} stages."
        )
