"""DeepSpeed's engine as the stages of lmstack drive it: one optimizer step from a window of micro-batches."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lmstack.parallel.zero_state import ZeroState


class ZeroEngine:
    """A model and an optimizer in DeepSpeed's hands.

    Args:
        module: What is trained; from stage 3 on its weights are cut, on its way to the device.
        optimizer: Over its parameters; from now on over flat pieces of them.
        config: As DeepSpeed reads it.
    """

    def __init__(self, module: nn.Module, optimizer: Optimizer, config: dict[str, Any]) -> None:
        import deepspeed

        names = {parameter: name for name, parameter in module.named_parameters()}
        groups = [list(group["params"]) for group in optimizer.param_groups]
        work = _Work(module)
        if config["zero_optimization"]["stage"] == 3:  # one by one; left to itself it needs room for all on the device
            deepspeed.zero.Init(module=work, config_dict_or_path=config, dtype=torch.float32)
        self._engine, *_ = deepspeed.initialize(
            model=work, optimizer=optimizer, config=config, dist_init_required=False
        )
        self._zero = self._engine.optimizer
        optimizer.zero_grad = self._zero.zero_grad  # type: ignore[method-assign]
        self.state = ZeroState(module, self._zero, optimizer, groups, names)
        self._norm: Tensor | None = None
        self._measure = self._take_over_norm()

    def _take_over_norm(self) -> Callable[[], Tensor]:
        """How the norm is measured; from now on DeepSpeed's step takes the one that is found here."""
        from deepspeed.runtime.utils import combine_grad_norm_groups

        zero = self._zero
        if self.state.weights_are_cut:
            norms_of_groups = zero._get_norm_groups
            zero._get_norm_groups = lambda: [self._norm]
            return lambda: combine_grad_norm_groups(norms_of_groups())
        measure: Callable[[], Tensor] = zero.scaled_global_norm
        zero.scaled_global_norm = lambda: self._norm
        return measure

    def call(self, work: Callable[[], Any]) -> Any:
        """Call something that uses the model; weights that are cut are fetched as they are used.

        Args:
            work: Without arguments. Autocast is off when it is called.
        """
        return self._engine(work)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add to the gradients.

        Args:
            loss: What `call` gave, or a function of it.
            is_last: Whether a step follows.
        """
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss)

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """Measure the gradient of the whole model, and have the coming step clip it.

        Args:
            max_norm: Largest norm; infinity does not clip.

        Returns:
            The norm before clipping; infinity where it is not finite, and then the coming step is left out.
        """
        self._norm = self._measure()
        self._zero.clip_grad = 0.0 if max_norm == float("inf") else max_norm
        return self._norm

    def skip_coming_step(self, is_skipped: Tensor) -> None:
        """Leave out the coming step, where that is said: DeepSpeed drops gradients whose norm is not finite.

        Args:
            is_skipped: Whether to skip.
        """
        assert self._norm is not None, "clip_grad_norm comes first"
        self._norm = torch.where(is_skipped.to(self._norm.device), torch.inf, self._norm)

    def step(self) -> None:
        """Update the weights, and forget the gradients."""
        self._engine.step()

    def close(self) -> None:
        """Take the hooks off the model."""
        self._engine.destroy()


class _Work(nn.Module):
    """What DeepSpeed takes for the model: a call of something, before and after which its hooks run."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()
