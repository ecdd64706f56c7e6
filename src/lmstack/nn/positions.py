"""How order enters attention: rotary angles and their long-context scalings, ALiBi slopes, positions in packed rows."""

import math
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

Rotation = tuple[Float[Tensor, "#B T 1 C"], Float[Tensor, "#B T 1 C"]]
"""Cosines and sines of every position's angles, fp32, for `rotate`."""


def rotary_frequencies(channels: int, theta: float) -> Float64[Tensor, " half"]:
    """Radians a position of each channel pair, `theta^(-2i/C)` (Su et al. 2021, arXiv:2104.09864, eq. 15).

    Args:
        channels: Channels C of a head, even.
        theta: Base of the wavelengths.
    """
    return theta ** (-torch.arange(0, channels, 2, dtype=torch.float64, device="cpu") / channels)


def ntk_theta(theta: float, factor: float, channels: int) -> float:
    """The base whose lowest frequency is `factor` times slower while the highest stays ("NTK-aware" scaling).

    Args:
        theta: Base the weights were trained with.
        factor: New context length over the trained one.
        channels: Channels C of a head.
    """
    return float(theta * factor ** (channels / (channels - 2)))


def yarn_frequencies(
    frequencies: Float64[Tensor, " half"],
    *,
    theta: float,
    factor: float,
    original_max_seq_len: int,
    beta_fast: float,
    beta_slow: float,
) -> Float64[Tensor, " half"]:
    """Divide slow frequencies by `factor`, keep fast ones, ramp linearly in between.

    Peng et al. 2023, arXiv:2309.00071, section 3.2, with the reference implementation's ramp: linear in the channel
    index, its ends rounded outward to whole channel pairs.

    Args:
        frequencies: From `rotary_frequencies`.
        theta: Base of the wavelengths.
        factor: New context length over the trained one.
        original_max_seq_len: Trained context length, in tokens.
        beta_fast: Rotations over the trained context above which a frequency is kept.
        beta_slow: Rotations below which a frequency is divided.
    """
    half = frequencies.shape[0]

    def pair_with(rotations: float) -> float:
        return half * math.log(original_max_seq_len / (rotations * 2 * math.pi)) / math.log(theta)

    low = max(math.floor(pair_with(beta_fast)), 0)
    high = min(math.ceil(pair_with(beta_slow)), 2 * half - 1)
    ramp = (torch.arange(half, dtype=torch.float64, device=frequencies.device) - low) / max(high - low, 1e-3)
    interpolated = ramp.clamp(0, 1)
    return frequencies * (1 - interpolated) + frequencies / factor * interpolated


def yarn_attention_factor(factor: float) -> float:
    """What YaRN multiplies queries and keys by, each (arXiv:2309.00071, eq. 22).

    Args:
        factor: New context length over the trained one.
    """
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def llama3_frequencies(
    frequencies: Float64[Tensor, " half"],
    *,
    factor: float,
    original_max_seq_len: int,
    low_freq_factor: float,
    high_freq_factor: float,
) -> Float64[Tensor, " half"]:
    """Divide long wavelengths by `factor`, keep short ones, blend in between (Llama 3.1, arXiv:2407.21783).

    Args:
        frequencies: From `rotary_frequencies`.
        factor: New context length over the trained one.
        original_max_seq_len: Trained context length, in tokens.
        low_freq_factor: Wavelengths above `original_max_seq_len / low_freq_factor` are divided.
        high_freq_factor: Wavelengths below `original_max_seq_len / high_freq_factor` are kept.
    """
    rotations = original_max_seq_len * frequencies / (2 * math.pi)
    kept = ((rotations - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return frequencies * kept + frequencies / factor * (1 - kept)


class RotaryTable:
    """Cosines and sines of every position, computed once in fp64 and kept in fp32.

    Not a buffer: casting the model to bf16 or building it on the meta device leaves it exact.

    Args:
        frequencies: Radians a position, one a channel pair.
        attention_factor: Multiplies cosines and sines (YaRN's temperature).
    """

    def __init__(self, frequencies: Float64[Tensor, " half"], *, attention_factor: float = 1.0) -> None:
        self.frequencies = frequencies
        self.attention_factor = attention_factor
        self._cos: Tensor | None = None
        self._sin: Tensor | None = None

    def at(self, positions: slice | Int[Tensor, "B T"], *, num_positions: int, device: torch.device) -> Rotation:
        """The angles of some positions.

        Args:
            positions: Position of each token, or one range of positions for every row.
            num_positions: Every position is below this; the table grows to it.
            device: Where the tokens are.
        """
        if self._cos is None or self._sin is None or self._cos.shape[0] < num_positions or self._cos.device != device:
            self._cos, self._sin = self._build(num_positions, device)
        if isinstance(positions, slice):
            return self._cos[None, positions, None], self._sin[None, positions, None]
        return self._cos[positions].unsqueeze(2), self._sin[positions].unsqueeze(2)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _build(self, num_positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
        # On the CPU always: some accelerators have no fp64.
        angles = torch.outer(torch.arange(num_positions, dtype=torch.float64, device="cpu"), self.frequencies)
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.attention_factor, angles.sin() * self.attention_factor
        return cos.to(device, torch.float32), sin.to(device, torch.float32)


def rotate(x: Float[Tensor, "B T heads C"], rotation: Rotation) -> Float[Tensor, "B T heads C"]:
    """Turn channel pairs (i, i + C/2) by their position's angle (arXiv:2104.09864, eq. 34, half-split pairing).

    The arithmetic is fp32 whatever the type of `x`.

    Args:
        x: Queries or keys.
        rotation: From `RotaryTable.lookup`.
    """
    cos, sin = rotation
    if not torch.compiler.is_compiling():
        if not torch.is_grad_enabled():
            return _turn(x, cos, sin, 1)
        return _EagerRotate.apply(x, cos, sin)  # type: ignore[no-untyped-call, no-any-return]
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


class _EagerRotate(torch.autograd.Function):
    """The same with half the passes over memory, and nothing but the tables kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, sin, -1), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    cos, sin = cos.to(wide.dtype), sin.to(wide.dtype)
    half = x.shape[-1] // 2
    out = wide * cos
    out[..., :half].addcmul_(wide[..., half:], sin[..., :half], value=-direction)
    out[..., half:].addcmul_(wide[..., :half], sin[..., half:], value=direction)
    return out.to(x.dtype)


def alibi_slopes(num_heads: int) -> Float[Tensor, " H"]:
    """Penalty a token of distance for each head (Press et al. 2021, arXiv:2108.12409, section 3).

    A power of two H gives `2^(-8h/H)`, h from 1; other H take the rest from every second slope of the next power.

    Args:
        num_heads: Number H of query heads.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    slopes += [2 ** (-4 * h / power) for h in range(1, 2 * (num_heads - power), 2)]
    return torch.tensor(slopes, dtype=torch.float32, device="cpu")


def positions_in_documents(document_ids: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Count each token from the first token of its document in the row.

    Args:
        document_ids: Document of each token; a document's tokens stand together.
    """
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    is_first = torch.ones_like(document_ids, dtype=torch.bool)
    is_first[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return index - torch.where(is_first, index, 0).cummax(dim=1).values
