"""What a transformer makes of labels: losses and log-probabilities, without all logits at once."""

from jaxtyping import Float, Int
from torch import Tensor

from lmstack.losses.language_modeling import LossSums, chunked_cross_entropy_sum
from lmstack.losses.language_modeling import token_log_probs as log_probs_of_labels
from lmstack.losses.reduction import IGNORE_INDEX
from lmstack.models.transformer import Transformer


def cross_entropy_sum(
    transformer: Transformer,
    hidden: Float[Tensor, "*B D"],
    labels: Int[Tensor, "*B"],
    *,
    chunk_size: int,
    z_loss_coef: float = 0.0,
) -> LossSums:
    """`chunked_cross_entropy_sum` with the model's own output head.

    Args:
        transformer: Whose head.
        hidden: Its hidden states after the final norm.
        labels: The token that each hidden state should predict, `IGNORE_INDEX` where it does not count.
        chunk_size: Most tokens whose logits exist at once.
        z_loss_coef: Coefficient of logsumexp².
    """
    return chunked_cross_entropy_sum(
        hidden,
        transformer.head_weight,
        labels,
        chunk_size=chunk_size,
        head_bias=transformer.head_bias,
        logit_scale=transformer.logit_scale,
        logit_softcap=transformer.config.logit_softcap,
        z_loss_coef=z_loss_coef,
    )


def token_log_probs(
    transformer: Transformer,
    hidden: Float[Tensor, "*B D"],
    labels: Int[Tensor, "*B"],
    *,
    chunk_size: int,
    temperature: float = 1.0,
) -> Float[Tensor, "*B"]:
    """`lmstack.losses.token_log_probs` with the model's own output head.

    Args:
        transformer: Whose head.
        hidden: Its hidden states after the final norm.
        labels: The token that occurred after each hidden state, `IGNORE_INDEX` where none counts.
        chunk_size: Most tokens whose logits exist at once.
        temperature: Divisor of the logits.

    Returns:
        In nats, 0 where no label counts.
    """
    return log_probs_of_labels(
        hidden,
        transformer.head_weight,
        labels,
        chunk_size=chunk_size,
        head_bias=transformer.head_bias,
        logit_scale=transformer.logit_scale,
        logit_softcap=transformer.config.logit_softcap,
        temperature=temperature,
    )


def response_log_probs(
    transformer: Transformer,
    input_ids: Int[Tensor, "B T"],
    labels: Int[Tensor, "B T"],
    *,
    temperature: float,
    chunk_size: int,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T D"]]:
    """Log-probability of every labelled token, and the hidden states they come from.

    Only the positions with a label go through the output head. Rows are padded on the right, where causality keeps
    padding out of sight of what is before it.

    Args:
        transformer: The policy, or its reference.
        input_ids: Rows.
        labels: The token after each position, `IGNORE_INDEX` where none counts.
        temperature: Divisor of the logits.
        chunk_size: Tokens whose logits exist at once.

    Returns:
        In nats, 0 where no label counts; and hidden states after the final norm.
    """
    hidden: Tensor = transformer(input_ids)
    counts = labels != IGNORE_INDEX
    of_labels = token_log_probs(
        transformer, hidden[counts], labels[counts], chunk_size=chunk_size, temperature=temperature
    )
    return of_labels.new_zeros(labels.shape).masked_scatter(counts, of_labels), hidden
