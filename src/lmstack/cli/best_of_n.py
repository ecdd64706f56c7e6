"""`lmstack data best_of_n`: a model's best responses as demonstrations for fine-tuning."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track

from lmstack.data.chat_data import OnBadRow, load_tokenizer, read_rows
from lmstack.data.conversations import Conversation, read_unanswered
from lmstack.rl.best_of_n import BestOfN
from lmstack.rl.reward_configs import Reward, load_rewards
from lmstack.rl.rollout import SamplingConfig, generate_samples, sample_seed

if TYPE_CHECKING:
    from lmstack.generation import GenerationEngine
    from lmstack.rl.rewards import WeightedRewards


def best_of_n(
    *,
    checkpoint: str,
    prompts: str | list[str],
    output: str,
    rewards: dict[str, Reward],
    num_samples: int = 8,
    keep: int = 1,
    min_reward: float | None = None,
    finished_only: bool = True,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    chat_template: str | None = None,
    on_bad_row: OnBadRow = "error",
    seed: int = 0,
    prompts_per_batch: int = 8,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Answer prompts several times and keep the best answers as demonstrations (rejection sampling, best-of-n).

    Such as `checkpoint=runs/sft prompts=data/assistant/prompts.jsonl output=data/best.jsonl
    'rewards.preference={kind:reward_model,path:runs/rm}'`, and then SFT with
    `data.path=data/best.jsonl`. The same command goes on where it was stopped.

    Args:
        checkpoint: A run's folder, a checkpoint's, or one of weights.
        prompts: JSONL, JSON or Parquet files, folders or globs, as for `data.path` of PPO.
        output: JSONL file to write: `messages`, `reward`, and each reward by name.
        rewards: Reward functions by name, as for PPO.
        num_samples: Responses to each prompt.
        keep: At most so many of them are kept.
        min_reward: Keep none below this; null keeps the best, however bad.
        finished_only: Keep no response that was cut at max_new_tokens.
        max_new_tokens: Longest response in tokens, its end included.
        temperature: Of sampling, above 0.
        chat_template: `chatml`, `llama3`, `plain`, or a file with a Jinja template; null takes the tokenizer's own.
        on_bad_row: Whether a prompt that cannot be used stops the command or is left out and counted.
        seed: Another seed draws other responses.
        prompts_per_batch: Prompts answered at once.
        device: Such as cpu or cuda; auto is cuda where there is one.
        overwrite: Replace the output of an earlier run.
    """
    arguments = {name: str(value) for name, value in locals().items() if name not in ("overwrite", "device")}
    import torch

    from lmstack.generation import GenerationEngine
    from lmstack.models.checkpoint import load_transformer

    config = BestOfN(num_samples, keep, min_reward, finished_only)
    sampling = SamplingConfig(max_new_tokens, temperature)
    target = Path(output)
    if target.exists() and not overwrite:
        raise ValueError(f"output={output}: the file exists already. Remove it, or set overwrite=true.")
    tokenizer, template = load_tokenizer(checkpoint, chat_template, add_special_tokens=False)
    counts: Counter[str] = Counter()
    conversations = read_rows(prompts, read_unanswered, on_bad_row, counts)
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    engine = GenerationEngine(load_transformer(checkpoint, device=where), tokenizer)
    sampler = _Sampler(
        engine,
        load_rewards(rewards, tokenizer, where),
        config,
        sampling,
        template.end_ids(tokenizer),
        seed,
    )
    ids = [template.render_prompt(conversation.messages, tokenizer) for conversation in conversations]
    journal = _Journal(Path(f"{output}.partial"), {**arguments, "prompts": _digest(ids)})
    console = Console(highlight=False)
    for begin in track(
        range(len(journal.lines), len(ids), prompts_per_batch), "answering", console=console, transient=True
    ):
        part = slice(begin, begin + prompts_per_batch)
        journal.add(sampler.answer(conversations[part], ids[part], begin))
    _write(target, [row for line in journal.lines for row in line["kept"]])
    journal.path.unlink(missing_ok=True)
    _tell(console, output, journal.lines, counts)


class _Sampler:
    """Answers prompts and picks the best answers."""

    def __init__(
        self,
        engine: "GenerationEngine",
        rewards: "WeightedRewards",
        config: BestOfN,
        sampling: SamplingConfig,
        stop_ids: tuple[int, ...],
        seed: int,
    ) -> None:
        self.engine, self.rewards, self.config = engine, rewards, config
        self.sampling, self.stop_ids, self.seed = sampling, stop_ids, partial(sample_seed, seed)

    def answer(
        self, conversations: Sequence[Conversation], ids: Sequence[list[int]], first: int
    ) -> list[dict[str, Any]]:
        """The rewards of all answers to each prompt, and rows of those that are kept.

        Args:
            conversations: The prompts.
            ids: The same as tokens.
            first: Number of the first one.
        """
        n = self.config.num_samples
        samples, _ = generate_samples(
            self.engine,
            [prompt for prompt in ids for _ in range(n)],
            [c.row | {"source_line": c.where} for c in conversations for _ in range(n)],
            [self.seed(first + i, k) for i in range(len(ids)) for k in range(n)],
            self.sampling,
            self.stop_ids,
        )
        terms = self.rewards(samples)
        totals = self.rewards.total(terms).tolist()
        lines = []
        for i, conversation in enumerate(conversations):
            own = slice(i * n, (i + 1) * n)
            kept = []
            for k in self.config.pick(samples[own], totals[own]):
                answer = {"role": "assistant", "content": samples[i * n + k].response}
                each = {name: float(values[i * n + k]) for name, values in terms.items()}
                kept.append(
                    {"messages": [*conversation.messages, answer], "reward": totals[i * n + k], "rewards": each}
                )
            lines.append({"totals": totals[own], "kept": kept})
        return lines


class _Journal:
    """Finished prompts, a line each after one of settings, so that a killed run loses little."""

    def __init__(self, path: Path, settings: dict[str, str]) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        head = json.dumps(settings)
        if path.is_file():
            known, *lines = path.read_text(encoding="utf-8").split("\n")
            if known == head:
                self.lines = [json.loads(line) for line in lines[:-1]]  # what follows the last line break was cut
        whole = "".join(f"{line}\n" for line in [head, *map(json.dumps, self.lines)])
        path.write_text(whole, encoding="utf-8")

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Write finished prompts.

        Args:
            lines: In order.
        """
        self.lines += lines
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


def _write(target: Path, rows: list[dict[str, Any]]) -> None:
    unfinished = target.with_name(f"{target.name}.tmp")
    unfinished.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(unfinished, target)


def _tell(console: Console, output: str, lines: list[dict[str, Any]], counts: Counter[str]) -> None:
    for reason, count in counts.most_common():
        console.print(f"{count:,} prompts left out: {reason}", markup=False)
    kept = [row["reward"] for line in lines for row in line["kept"]]
    everything = [total for line in lines for total in line["totals"]]
    none = sum(not line["kept"] for line in lines)
    console.print(f"{output}: {len(kept):,} demonstrations from {len(lines):,} prompts, {none:,} without any")
    if kept:
        console.print(f"mean reward {mean(everything):.3f} of all {len(everything):,} responses, {mean(kept):.3f} kept")


def _digest(ids: Sequence[Sequence[int]]) -> str:
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()
