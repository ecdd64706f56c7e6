"""Parameters by what they are, for weight decay and learning rates: every one in exactly one group."""

from typing import Any

from torch import nn

EMBEDDING_GROUP = "embeddings"
HEAD_GROUP = "head"
HIDDEN_GROUP = "hidden"
VECTOR_GROUP = "vectors"


def parameter_groups(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    decay_embeddings: bool = False,
    hidden_lr_multiplier: float = 1.0,
) -> list[dict[str, Any]]:
    """Optimizer groups of the trainable parameters, in the order `hidden`, `embeddings`, `head`, `vectors`.

    `hidden` are the matrices inside `blocks`; `embeddings` the tables of `nn.Embedding`, a tied head included; `head`
    every other matrix; `vectors` norms, biases and whatever else has fewer than two dimensions. None is empty.

    Args:
        module: Whose parameters.
        lr: Peak learning rate.
        weight_decay: Of `hidden` and `head`; `vectors` never decay.
        decay_embeddings: Decay `embeddings` as well.
        hidden_lr_multiplier: Factor on the learning rate of `hidden`, such as muP's base width / width.

    Returns:
        Dictionaries with `name`, `params`, `param_names`, `lr` and `weight_decay`. A parameter with two names is there
        once.
    """
    members: dict[str, dict[str, nn.Parameter]] = {
        name: {} for name in (HIDDEN_GROUP, EMBEDDING_GROUP, HEAD_GROUP, VECTOR_GROUP)
    }
    # Modules share parameters: an embedding claims a tied matrix whichever of its owners comes first.
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            members[_group_name(name, parameter, id(parameter) in embeddings)][name] = parameter
    decays = {HIDDEN_GROUP: True, HEAD_GROUP: True, EMBEDDING_GROUP: decay_embeddings, VECTOR_GROUP: False}
    return [
        {
            "name": name,
            "params": list(parameters.values()),
            "param_names": list(parameters),
            "lr": lr * (hidden_lr_multiplier if name == HIDDEN_GROUP else 1.0),
            "weight_decay": weight_decay if decays[name] else 0.0,
        }
        for name, parameters in members.items()
        if parameters
    ]


def _group_name(name: str, parameter: nn.Parameter, is_embedding: bool) -> str:
    if parameter.ndim < 2:
        return VECTOR_GROUP
    if is_embedding:
        return EMBEDDING_GROUP
    return HIDDEN_GROUP if "blocks" in name.split(".") else HEAD_GROUP
