import itertools
from pathlib import Path
from typing import Any

import pytest

from lmstack.data.batch import PromptBatch
from lmstack.data.modules.prompts import PromptData
from tiny_chats import rows_file, saved_tokenizer

ROWS = [{"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(7)]


def data(folder: Path, rows: list[Any] | None = None, **arguments: Any) -> PromptData:
    path = rows_file(folder / "prompts.jsonl", ROWS if rows is None else rows)
    options = {"max_prompt_tokens": 40, "prompts_per_step": 4, "chat_template": "chatml", "add_special_tokens": True}
    module = PromptData(path, saved_tokenizer(folder), **(options | {"validation_fraction": 0.0} | arguments))
    module.setup("fit")
    return module


def taken(batches: list[PromptBatch]) -> list[str]:
    return [row["question"] for batch in batches for row in batch.rows]


def test_a_prompt_is_as_it_is_sampled_from_and_its_row_knows_where_it_stands(tmp_path: Path) -> None:
    module = data(tmp_path, num_episodes=7)
    for batch in module.train_dataloader():
        for ids, row in zip(batch.prompts, batch.rows, strict=True):
            message = {"role": "user", "content": row["question"]}
            assert ids == module.chat_template.render_prompt([message], module.tokenizer)
            line = int(row["answer"])
            assert row == ROWS[line - 1] | {"source_line": f"{tmp_path / 'prompts.jsonl'}, line {line}"}


@pytest.mark.parametrize("num_episodes", [1, 4, 7, 10, 6401])
def test_a_run_has_exactly_the_episodes_asked_for_and_each_epoch_every_prompt(
    tmp_path: Path, num_episodes: int
) -> None:
    batches = list(data(tmp_path, num_episodes=num_episodes).train_dataloader())
    order = taken(batches)
    assert len(order) == num_episodes
    assert [int(i) for batch in batches for i in batch.ids] == list(range(num_episodes))
    for start in range(0, num_episodes - 6, 7):
        assert len(set(order[start : start + 7])) == 7


def test_without_an_end_it_goes_on(tmp_path: Path) -> None:
    batches = list(itertools.islice(data(tmp_path).train_dataloader(), 30))
    assert [len(batch.prompts) for batch in batches] == [4] * 30


def test_two_ranks_take_what_one_takes_with_the_same_numbers(tmp_path: Path) -> None:
    class Strategy:
        distributed_sampler_kwargs: dict[str, int]

    class Trainer:
        strategy = Strategy()

    module = data(tmp_path, num_episodes=10)
    whole = list(module.train_dataloader())
    ranks = []
    for rank in range(2):
        Trainer.strategy.distributed_sampler_kwargs = {"rank": rank, "num_replicas": 2}
        module.trainer = Trainer()  # type: ignore[assignment]
        ranks.append(list(module.train_dataloader()))
    for one, both in zip(whole, zip(*ranks, strict=True), strict=True):
        assert taken([one]) == taken(list(both))
        assert one.ids.tolist() == [i for batch in both for i in batch.ids.tolist()]
    module.global_batch_size = 3
    with pytest.raises(ValueError, match=r"data\.prompts_per_step=3 is not a multiple of .* x 2 ranks. Use 4"):
        module.train_dataloader()


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q"},
        {"prompt": [{"role": "user", "content": "Q"}]},
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        {"conversations": [{"from": "human", "value": "Q"}]},
        {"instruction": "Q", "input": "", "output": "A"},
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
    ],
)
def test_any_layout_gives_its_prompt_without_the_answer(tmp_path: Path, row: dict[str, Any]) -> None:
    module = data(tmp_path, [row], num_episodes=1)
    (batch,) = module.train_dataloader()
    expected = module.chat_template.render_prompt([{"role": "user", "content": "Q"}], module.tokenizer)
    assert batch.prompts == [expected]


def test_a_prompt_that_is_too_long_stops_the_run_or_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [*ROWS, {"question": "long " * 20}]
    with pytest.raises(ValueError, match=r"prompts\.jsonl, line 8: the prompt has 1\d\d tokens, max_prompt_tokens=40"):
        data(tmp_path, rows)
    module = data(tmp_path, rows, too_long="drop", num_episodes=7)
    assert module.counts == {"longer than max_prompt_tokens=40": 1}
    assert sorted(taken(list(module.train_dataloader()))) == [row["question"] for row in ROWS]
    with pytest.raises(ValueError, match="no prompt is left; max_prompt_tokens=3 is too few"):
        data(tmp_path, max_prompt_tokens=3, too_long="drop")


def test_a_bad_row_stops_the_run_or_is_left_out(tmp_path: Path) -> None:
    rows = [*ROWS, {"question": ""}, {"messages": [{"role": "assistant", "content": "A"}]}]
    with pytest.raises(ValueError, match=r"prompts\.jsonl, line 8: message 1 \(user\) is empty.*on_bad_row=drop"):
        data(tmp_path, rows)
    assert data(tmp_path, rows, on_bad_row="drop").counts.total() == 2
    with pytest.raises(ValueError, match="num_episodes=0"):
        data(tmp_path, num_episodes=0)


def test_validation_has_its_own_prompts_each_once_and_at_most_so_many(tmp_path: Path) -> None:
    rows = [{"question": f"{i}"} for i in range(60)]
    module = data(tmp_path, rows, validation_fraction=0.3, num_episodes=60)
    held_out = taken(list(module.val_dataloader()))
    assert len(set(held_out)) == len(held_out) > 6
    assert not set(held_out) & set(taken(list(module.train_dataloader())))
    assert (
        len(taken(list(data(tmp_path, rows, validation_fraction=0.3, max_validation_prompts=3).val_dataloader()))) == 3
    )
    other = rows_file(tmp_path / "other.jsonl", ROWS[:1])
    with pytest.raises(ValueError, match=r"1 prompts are in data\.path and in data\.validation_path"):
        data(tmp_path, validation_path=other)


def test_a_rank_without_prompts_gets_an_empty_batch(tmp_path: Path) -> None:
    batch = data(tmp_path)._held_out_batch([])
    assert (batch.prompts, batch.rows, batch.ids.tolist()) == ([], [], [])
