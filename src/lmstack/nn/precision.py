"""Casting under autocast."""

import torch
from jaxtyping import Float
from torch import Tensor


def to_compute_dtype(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """What autocast would make of the input of a matrix product; unchanged without autocast.

    Autocast casts the input of every linear layer anew, and keeps each copy for the backward pass: layers that share
    an input share the copy this way.

    Args:
        x: Activations that several linear layers read.
    """
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
