"""One implementation of `pretrain_throughput.py`, in its own process: it takes optimizer steps when it is told to.

Started by that script, possibly by the interpreter of another environment, so nothing of lmstack is imported before it
is needed. A line on standard input is a number of steps to take, each answer a line of JSON; an empty line, or the end
of the input, is the end.
"""

import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

# Whatever a library prints goes to standard error: the real standard output is for answers.
ANSWERS = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)

import torch  # noqa: E402 - after the redirection

LR, BETAS, EPS, WEIGHT_DECAY, CLIP = 1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0
WARMUP_STEPS, LOG_EVERY, NORM_EPS, INIT_STD = 10, 10, 1e-5, 0.02
MAX_STEPS = 1_000_000  # never reached: the parent ends the run
NUM_BATCHES = 16  # different ones, in turn


class Turns:
    """The worker's side of taking turns: waits until it may go on, and times the steps in between.

    Args:
        packages: Whose versions to tell.
    """

    def __init__(self, *packages: str) -> None:
        self.packages = ("torch", *packages)
        self.first_loss: float | None = None
        self._steps = self._left = 0
        self._wall = self._cpu = 0.0

    def start(self, num_parameters: int) -> bool:
        """Tell that the next thing is the first step, and wait.

        Args:
            num_parameters: Of the model, a tied matrix counted once.

        Returns:
            Whether there is a step to take.
        """
        versions = {name: importlib.metadata.version(name) for name in self.packages}
        return self._wait({"num_parameters": num_parameters, "versions": versions})

    def step_done(self) -> bool:
        """Count a step; after the last one of the turn, answer and wait.

        Returns:
            Whether there is another step to take.
        """
        self._left -= 1
        if self._left:
            return True
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return self._wait({"steps": self._steps, "seconds": wall, "cpu_seconds": cpu, "first_loss": self.first_loss})

    def _wait(self, answer: dict[str, Any]) -> bool:
        print(json.dumps(answer), file=ANSWERS)
        self._steps = self._left = int(sys.stdin.readline().strip() or 0)
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self._left > 0


def batches(shape: dict[str, int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Random inputs and labels, the same for every implementation.

    Args:
        shape: Of the model and the batch.
    """
    generator = torch.Generator().manual_seed(0)
    size = (NUM_BATCHES, shape["batch_size"], shape["seq_len"] + 1)
    tokens = torch.randint(shape["vocab_size"], size, generator=generator)
    return [(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) for rows in tokens]


def autocast(precision: str) -> AbstractContextManager[None]:
    """The forward's context in a plain loop.

    Args:
        precision: `fp32` or `bf16-mixed`.
    """
    return nullcontext() if precision == "fp32" else torch.autocast("cpu", dtype=torch.bfloat16)


def plain_loop(
    turns: Turns, model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[int], torch.Tensor]
) -> None:
    """Forward, backward, clip, step; the loss is read every `LOG_EVERY` steps.

    Args:
        turns: When to go on.
        model: Whose gradients are clipped.
        optimizer: Takes the steps.
        loss_of: The loss of a step, from its number.
    """
    parameters = list(model.parameters())
    step, going = 0, turns.start(sum(p.numel() for p in parameters))
    while going:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        step += 1
        if step == 1 or step % LOG_EVERY == 0:
            value = loss.item()
            turns.first_loss = value if step == 1 else turns.first_loss
        going = turns.step_done()


def lmstack_config(shape: dict[str, int]) -> Any:
    """The transformer of `conf/model/llama_5m.yaml` or `llama_60m.yaml`.

    Args:
        shape: Of the model and the batch.
    """
    from lmstack.models.config import DenseConfig, DepthScaledInit, NormConfig, RotaryConfig, TransformerConfig

    return TransformerConfig(
        vocab_size=shape["vocab_size"],
        max_seq_len=shape["seq_len"],
        dim=shape["dim"],
        num_layers=shape["num_layers"],
        num_heads=shape["num_heads"],
        positions=RotaryConfig(),
        norm=NormConfig(kind="rms", placement="pre", eps=NORM_EPS),
        feed_forward=DenseConfig(hidden_dim=shape["hidden_dim"], activation="silu", gated=True),
        initialization=DepthScaledInit(std=INIT_STD),
        tied_embeddings=True,
    )


def token_batches(shape: dict[str, int]) -> list[Any]:
    """Batches as lmstack takes them: each row one document, masked as if it could be several.

    Args:
        shape: Of the model and the batch.
    """
    from lmstack.data.batch import TokenBatch

    result = []
    for input_ids, labels in batches(shape):
        position_ids = torch.arange(shape["seq_len"]).repeat(shape["batch_size"], 1)
        num_bytes = torch.full((shape["batch_size"],), shape["seq_len"])
        result.append(TokenBatch(input_ids, labels, torch.zeros_like(input_ids), position_ids, num_bytes))
    return result


class StepLoader:
    """An item is one optimizer step: here one micro-batch.

    Args:
        batches: Handed out in turn, without end.
    """

    def __init__(self, batches: list[Any]) -> None:
        self.steps = [[batch] for batch in batches]

    def __len__(self) -> int:
        return MAX_STEPS

    def __iter__(self) -> Iterator[list[Any]]:
        return (self.steps[step % NUM_BATCHES] for step in range(MAX_STEPS))


def run_bare(shape: dict[str, int], precision: str, compiled: bool) -> None:
    """The model, loss and optimizer of lmstack without Lightning: the floor.

    Args:
        shape: Of the model and the batch.
        precision: `fp32` or `bf16-mixed`.
        compiled: Compile each block.
    """
    from lmstack.losses.language_modeling import chunked_cross_entropy_sum
    from lmstack.models import Transformer
    from lmstack.optim.optimizers import AdamWConfig, build_optimizer

    model = Transformer(lmstack_config(shape))
    optimizer = build_optimizer(AdamWConfig(LR, BETAS, EPS, WEIGHT_DECAY), model)
    data = token_batches(shape)
    if compiled:
        for block in model.blocks:
            block.compile()

    def loss_of(step: int) -> torch.Tensor:
        batch = data[step % NUM_BATCHES]
        with autocast(precision):
            hidden = model(batch.input_ids, position_ids=batch.position_ids, document_ids=batch.document_ids)
            sums = chunked_cross_entropy_sum(hidden, model.head_weight, batch.labels, chunk_size=4096)
        return sums.cross_entropy / sums.num_tokens

    plain_loop(Turns(), model, optimizer, loss_of)


def run_lmstack(shape: dict[str, int], precision: str, compiled: bool) -> None:
    """The stage in Lightning's trainer, as `lmstack fit` sets it up.

    Args:
        shape: Of the model and the batch.
        precision: `fp32` or `bf16-mixed`.
        compiled: Compile each block.
    """
    from lmstack.cli.lean_imports import import_lightning
    from lmstack.cli.quiet import after_lightning

    import_lightning({"model": {"compile_blocks": compiled}})
    after_lightning()
    import lightning.pytorch as pl

    from lmstack.callbacks import Checkpointing, FolderCheckpointIO, LearningRateLogger, MetricsCsv, Throughput
    from lmstack.optim.optimizers import AdamWConfig
    from lmstack.optim.schedules import CosineSchedule
    from lmstack.stages import CausalLM

    turns = Turns("lightning")

    class Gate(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if not turns.start(sum(p.numel() for p in pl_module.parameters())):
                trainer.should_stop = True

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:  # noqa: ARG002
            if turns.first_loss is None:
                turns.first_loss = float(outputs["loss"])
            if not turns.step_done():
                trainer.should_stop = True

    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> StepLoader:
            return StepLoader(token_batches(shape))

        def tokens_at_step(self, step: int) -> int:
            return step * shape["batch_size"] * shape["seq_len"]

    with tempfile.TemporaryDirectory() as folder:
        stage = CausalLM(
            lmstack_config(shape),
            AdamWConfig(LR, BETAS, EPS, WEIGHT_DECAY),
            CosineSchedule(warmup=WARMUP_STEPS),
            compile_blocks=compiled,
        )
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            precision="32-true" if precision == "fp32" else "bf16-mixed",
            gradient_clip_val=CLIP,
            max_steps=MAX_STEPS,
            max_epochs=-1,
            check_val_every_n_epoch=None,
            val_check_interval=MAX_STEPS,
            num_sanity_val_steps=0,
            log_every_n_steps=LOG_EVERY,
            use_distributed_sampler=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            default_root_dir=folder,
            logger=MetricsCsv(folder),
            callbacks=[Checkpointing(), Throughput(), LearningRateLogger(), Gate()],
            plugins=[FolderCheckpointIO()],
        )
        trainer.fit(stage, datamodule=Data())


def run_transformers(shape: dict[str, int], precision: str, compiled: bool) -> None:
    """`LlamaForCausalLM` in transformers' trainer.

    Args:
        shape: Of the model and the batch.
        precision: `fp32` or `bf16-mixed`.
        compiled: `torch_compile` of the trainer.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    turns = Turns("transformers", "accelerate")

    class Gate(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            if not turns.start(sum(p.numel() for p in kwargs["model"].parameters())):
                control.should_training_stop = True

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            if not turns.step_done():
                control.should_training_stop = True

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if turns.first_loss is None and "loss" in logs:
                turns.first_loss = float(logs["loss"])

    class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        def __init__(self) -> None:
            self.rows = [row for input_ids, _ in batches(shape) for row in input_ids]

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"input_ids": self.rows[index], "labels": self.rows[index]}  # the model shifts them itself

    config = LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["dim"],
        intermediate_size=shape["hidden_dim"],
        num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_heads"],
        num_key_value_heads=shape["num_heads"],
        max_position_embeddings=shape["seq_len"],
        rms_norm_eps=NORM_EPS,
        initializer_range=INIT_STD,
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="sdpa",
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            bf16=precision == "bf16-mixed",
            torch_compile=compiled,
            per_device_train_batch_size=shape["batch_size"],
            max_steps=MAX_STEPS,
            learning_rate=LR,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            adam_epsilon=EPS,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=CLIP,
            optim="adamw_torch_fused",
            lr_scheduler_type="cosine",
            warmup_steps=WARMUP_STEPS,
            logging_steps=LOG_EVERY,
            logging_first_step=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        Trainer(model=LlamaForCausalLM(config), args=arguments, train_dataset=Rows(), callbacks=[Gate()]).train()


def run_litgpt(shape: dict[str, int], precision: str, compiled: bool) -> None:
    """Model and loss of litgpt in a plain loop, weights tied and initialized as its `pretrain` command can.

    Args:
        shape: Of the model and the batch.
        precision: `fp32` or `bf16-mixed`.
        compiled: Compile the model, as its `pretrain` command does.
    """
    from litgpt.config import Config
    from litgpt.model import GPT

    try:  # its place from 0.5 on varies
        from litgpt.utils import chunked_cross_entropy
    except ImportError:
        from litgpt.pretrain import chunked_cross_entropy

    config = Config(
        block_size=shape["seq_len"],
        vocab_size=shape["vocab_size"],
        padded_vocab_size=shape["vocab_size"],
        n_layer=shape["num_layers"],
        n_head=shape["num_heads"],
        n_embd=shape["dim"],
        intermediate_size=shape["hidden_dim"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=NORM_EPS,
        mlp_class_name="LLaMAMLP",
    )
    model = GPT(config)
    model.transformer.wte.weight = model.lm_head.weight
    model.apply(model._init_weights)
    # fused, as everywhere here; its own default on a CPU is the slower loop over tensors
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True
    )
    data = batches(shape)
    forward = torch.compile(model) if compiled else model

    def loss_of(step: int) -> torch.Tensor:
        input_ids, labels = data[step % NUM_BATCHES]
        with autocast(precision):
            logits = forward(input_ids)
            return chunked_cross_entropy(logits, labels)

    plain_loop(Turns("litgpt"), model, optimizer, loss_of)


RUNNERS = {"bare": run_bare, "lmstack": run_lmstack, "transformers": run_transformers, "litgpt": run_litgpt}


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    RUNNERS[job["implementation"]](job["shape"], job["precision"], job["compiled"])
