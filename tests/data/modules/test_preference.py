from pathlib import Path
from typing import Any

import pytest
import torch

from lmstack.data.batch import PreferenceBatch
from lmstack.data.modules.preference import PreferenceData
from tiny_chats import comparisons, rows_file, saved_tokenizer

SHAPE = {"sequence_length": 64, "micro_batch_size": 2, "global_batch_size": 4, "chat_template": "chatml"}


def data(folder: Path, rows: list[Any] | None = None, **arguments: Any) -> PreferenceData:
    path = rows_file(folder / "comparisons.jsonl", comparisons(18) if rows is None else rows)
    options = {"add_special_tokens": True, "validation_fraction": 0.0}
    module = PreferenceData(path, saved_tokenizer(folder), **(SHAPE | options | arguments))
    module.setup("fit")
    return module


def prompts_and_answers(module: PreferenceData, batches: list[PreferenceBatch]) -> list[tuple[str, list[str]]]:
    """The texts of each prompt's rows."""
    found = []
    for batch in batches:
        for group in range(int(batch.group.max()) + 1):
            rows = [row for row in range(len(batch.group)) if batch.group[row] == group and batch.lengths[row]]
            texts = [module.tokenizer.decode(batch.input_ids[r, : batch.lengths[r]].tolist(), True) for r in rows]
            split = [text.removeprefix("user\n").split("\nassistant\n") for text in texts]
            if split:
                (prompt,) = {prompt for prompt, _ in split}
                found.append((prompt, [answer for _, answer in split]))
    return found


def test_every_prompt_comes_once_with_all_its_answers_in_one_micro_batch(tmp_path: Path) -> None:
    module = data(tmp_path)
    batches = [batch for step in module.train_dataloader() for batch in step]
    expected = [(row["prompt"], row["answers"]) for row in comparisons(18)]
    assert sorted(prompts_and_answers(module, batches)) == sorted(expected)
    assert sum(int(batch.num_supervised) for batch in batches) == 18
    (end,) = module.stop_ids
    for batch in batches:
        assert batch.input_ids[torch.arange(len(batch.last)), batch.last].tolist() == [end] * len(batch.last)
        assert int(batch.num_supervised) <= 2


def test_ranks_have_as_many_micro_batches_and_their_own_prompts(tmp_path: Path) -> None:
    class Strategy:
        distributed_sampler_kwargs: dict[str, int]

    class Trainer:
        strategy = Strategy()

    module = data(tmp_path)
    ranks = []
    for rank in range(2):
        Trainer.strategy.distributed_sampler_kwargs = {"rank": rank, "num_replicas": 2}
        module.trainer = Trainer()  # type: ignore[assignment]
        ranks.append(list(module.train_dataloader()))
    assert [len(step) for step in ranks[0]] == [len(step) for step in ranks[1]]
    found = [row for steps in ranks for row in prompts_and_answers(module, [batch for step in steps for batch in step])]
    assert sorted(prompt for prompt, _ in found) == sorted(row["prompt"] for row in comparisons(18))


def test_answers_that_do_not_fit_are_left_out_with_their_prompt_or_refused(tmp_path: Path) -> None:
    rows = [*comparisons(8), {"prompt": "Q", "chosen": "short", "rejected": "long " * 20}]
    module = data(tmp_path, rows)
    assert module.counts == {"longer than sequence_length=64": 1}
    assert len(module.train_dataloader()) == 2
    with pytest.raises(ValueError, match=r"comparisons\.jsonl, line 9: 1\d\d tokens do not fit in sequence_length=64"):
        data(tmp_path, rows, too_long="error")
    with pytest.raises(ValueError, match="no prompt is left to train on; sequence_length=4 is too short"):
        data(tmp_path, sequence_length=4)


def test_a_bad_row_stops_the_run_or_is_left_out(tmp_path: Path) -> None:
    rows = [*comparisons(4), {"prompt": "Q", "answers": ["one"]}]
    with pytest.raises(ValueError, match=r"comparisons\.jsonl, line 5: a ranking of 1 answer.*on_bad_row=drop"):
        data(tmp_path, rows)
    assert data(tmp_path, rows, on_bad_row="drop").counts.total() == 1


def test_labels_and_comparisons_are_not_mixed(tmp_path: Path) -> None:
    labels = [{"prompt": f"Q {i}", "completion": "a", "label": bool(i % 2)} for i in range(6)]
    batches = [batch for step in data(tmp_path, labels).train_dataloader() for batch in step]
    assert sum(int(batch.num_supervised) for batch in batches) == 6
    assert sum(float(batch.desirability.sum()) for batch in batches) == 0
    with pytest.raises(ValueError, match=r"line 24 labels a single answer, .*line 18 compares several"):
        data(tmp_path, [*comparisons(18), *labels])


def test_held_out_prompts_are_not_trained_on(tmp_path: Path) -> None:
    doubled = [row for row in comparisons(18) for _ in range(2)]
    module = data(tmp_path, doubled, validation_fraction=0.4)
    train = prompts_and_answers(module, [batch for step in module.train_dataloader() for batch in step])
    held_out = prompts_and_answers(module, list(module.val_dataloader()))
    assert len(train) + len(held_out) == 36
    assert held_out
    assert not {prompt for prompt, _ in train} & {prompt for prompt, _ in held_out}
    other = rows_file(tmp_path / "other.jsonl", comparisons(1))
    with pytest.raises(ValueError, match=r"1 prompts are in data\.path and in data\.validation_path"):
        data(tmp_path, validation_path=other)


def test_demonstrations_are_shared_among_ranks_and_marked(tmp_path: Path) -> None:
    talk = [
        {"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    ]
    rows = [{"prompt": f"Q {i}", "completion": f"A {i}"} for i in range(12)] + [{"messages": talk}]
    path = rows_file(tmp_path / "demonstrations.jsonl", rows)
    module = data(tmp_path, demonstrations=path, micro_batch_size=1)
    batches = list(module.demonstration_batches())
    assert [len(batch.lengths) for batch in batches] == [4, 4, 4, 1]
    assert all(batch.demonstration.all() and not batch.num_supervised for batch in batches)
    shown = prompts_and_answers(module, batches[:3])
    assert shown == [(f"Q {i}", [f"A {i}"]) for i in range(12)]
    last = module.tokenizer.decode(batches[3].input_ids[0].tolist(), skip_special=True)
    assert last == "user\na\nassistant\nb\nuser\nc\nassistant\nd"
    assert batches[3].response_lengths.tolist() == [2]
    assert list(data(tmp_path).demonstration_batches()) == []
    rows_file(tmp_path / "demonstrations.jsonl", [{"messages": talk[:3]}])
    with pytest.raises(ValueError, match=r"demonstrations\.jsonl, line 1: a demonstration must end with the assistant"):
        list(module.demonstration_batches())


def test_votes_of_held_out_comparisons_are_told(tmp_path: Path) -> None:
    votes = rows_file(
        tmp_path / "votes.jsonl",
        [{"prompt": "new", "chosen": "a", "rejected": "b", "votes": [1, 0, 1]}, {"prompt": "n", "answers": ["a", "b"]}],
    )
    assert data(tmp_path, validation_path=votes).annotator_votes() == [[1, 0, 1]]


def test_a_position_in_other_comparisons_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "chosen": "a", "rejected": "b"}, *comparisons(5)]
    state = data(tmp_path, rows).train_dataloader().state_dict()
    data(tmp_path, rows).train_dataloader().load_state_dict(state)
    swapped = [{"prompt": "Q", "answers": ["a", "b"], "scores": [0, 1]}, *comparisons(5)]
    with pytest.raises(ValueError, match="a position in other data"):
        data(tmp_path, swapped).train_dataloader().load_state_dict(state)
