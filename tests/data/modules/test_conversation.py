import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lmstack.data.batch import IGNORE_INDEX, PADDING_DOCUMENT, TokenBatch
from lmstack.data.modules.conversation import ConversationData
from lmstack.tokenization import ChatTemplate, Tokenizer
from tiny_chats import chats, rows_file, saved_tokenizer

SHAPE = {"sequence_length": 96, "micro_batch_size": 2, "global_batch_size": 4, "chat_template": "chatml"}


def data(folder: Path, rows: list[Any] | None = None, **arguments: Any) -> ConversationData:
    path = rows_file(folder / "chats.jsonl", chats(40) if rows is None else rows)
    tokenizer = arguments.pop("tokenizer", None) or saved_tokenizer(folder)
    options = {"add_special_tokens": True, "validation_fraction": 0.0}
    module = ConversationData(path, tokenizer, **(SHAPE | options | arguments))
    module.setup("fit")
    return module


def batches(module: ConversationData) -> list[TokenBatch]:
    return [batch for step in module.train_dataloader() for batch in step]


def documents(batch: TokenBatch) -> list[tuple[list[int], list[int]]]:
    """Inputs and labels of every document."""
    found = []
    for row in range(len(batch.input_ids)):
        for number in range(int(batch.document_ids[row].max()) + 1):
            inside = batch.document_ids[row] == number
            assert batch.position_ids[row][inside].tolist() == list(range(int(inside.sum())))
            found.append((batch.input_ids[row][inside].tolist(), batch.labels[row][inside].tolist()))
    return found


def rendered(module: ConversationData, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    ids, trained = module.chat_template.render(messages, module.tokenizer)
    return ids[:-1], [i if is_trained else IGNORE_INDEX for i, is_trained in zip(ids[1:], trained[1:], strict=True)]


def turns(row: dict[str, str]) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]


@pytest.mark.parametrize("packing", [True, False])
def test_every_conversation_is_there_once_whole_as_the_template_renders_it(tmp_path: Path, packing: bool) -> None:
    module = data(tmp_path, packing=packing)
    found = [document for batch in batches(module) for document in documents(batch)]
    assert sorted(found) == sorted(rendered(module, turns(row)) for row in chats(40))
    assert packing == any((batch.document_ids == 1).any() for batch in batches(module))


@pytest.mark.parametrize("kind", ["chatml", "llama3", "plain"])
def test_only_answers_and_their_end_of_turn_have_labels(tmp_path: Path, kind: str) -> None:
    module = data(tmp_path, chat_template=kind)
    (end,) = module.stop_ids
    answers = {row["completion"] for row in chats(40)}
    for batch in batches(module):
        for _, labels in documents(batch):
            learnt = [label for label in labels if label != IGNORE_INDEX]
            assert learnt[-1] == end
            assert module.tokenizer.decode(learnt[:-1]) in answers


def test_a_conversation_is_tokenized_as_its_parts_and_special_tokens_come_once(tmp_path: Path) -> None:
    module = data(tmp_path, chats(1), chat_template="llama3", global_batch_size=2)
    ((inputs, labels),) = documents(batches(module)[0])
    whole = [*inputs, labels[-1]]
    (begin,) = [module.tokenizer.token_id("<|begin_of_text|>")]
    assert whole.count(begin) == 1
    row = chats(1)[0]
    prompt = module.chat_template.render_prompt(turns(row)[:1], module.tokenizer)
    assert whole == [*prompt, *module.tokenizer.encode(row["completion"]), *module.stop_ids]
    assert whole.count(module.stop_ids[0]) == 2


def test_a_tokenizer_whose_padding_is_its_end_of_text_learns_the_end(tmp_path: Path) -> None:
    """Masks come from lengths and roles, never from ids."""
    source = "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + eos_token }}"
    source += "{% endgeneration %}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    path = saved_tokenizer(tmp_path)
    config = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "chat_template": source}
    (Path(path) / "tokenizer_config.json").write_text(json.dumps(config))
    module = data(tmp_path, tokenizer=path, chat_template=str(Path(path) / "tokenizer_config.json"))
    eos = module.tokenizer.eot_id
    assert module.stop_ids == (eos,)
    for batch in batches(module):
        assert (batch.labels[batch.document_ids == PADDING_DOCUMENT] == IGNORE_INDEX).all()
        for inputs, labels in documents(batch):
            assert labels[-1] == eos
            assert eos in inputs  # the end of the user's turn is fed, does not end the document, and is not learnt
            assert labels.count(eos) == 1


def test_messages_and_roles_choose_what_is_learnt(tmp_path: Path) -> None:
    talk = [
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A", "train": False},
        {"role": "tool", "content": "T"},
        {"role": "assistant", "content": "B"},
    ]

    def learnt(**arguments: Any) -> str:
        module = data(tmp_path, [{"messages": talk}], global_batch_size=2, **arguments)
        ((_, labels),) = documents(batches(module)[0])
        return module.tokenizer.decode([i for i in labels if i != IGNORE_INDEX], skip_special=True)

    assert learnt() == "B"
    assert learnt(train_on=["user", "tool"]) == "UT"
    with pytest.raises(ValueError, match=r"train_on names 'gpt'. The roles are system, user"):
        data(tmp_path, train_on=["gpt"])


def test_a_mask_that_learns_nothing_is_refused_with_the_row(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no conversation is left.*40 x nothing to learn.*line 1: .*question 0 .*answer 0"
    ):
        data(tmp_path, train_on=[])


def test_a_mask_that_learns_everything_is_refused_with_the_row(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 1: every token of every conversation.*⟦question 0 answer 0"):
        data(tmp_path, chat_template="plain", train_on=["user", "assistant"])


def test_rows_left_without_targets_are_dropped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*chats(10), {"prompt": "long " * 40, "completion": "cut off"}]
    module = data(tmp_path, rows, truncation="right")
    assert sum(len(documents(batch)) for batch in batches(module)) == 10
    assert list(module.counts.values()) == [1]
    assert "1 rows left out: nothing to learn in it, or nothing left after it was cut" in capsys.readouterr().out
    module = data(tmp_path, rows, truncation="left")
    assert sum(len(documents(batch)) for batch in batches(module)) == 11
    with pytest.raises(ValueError, match=r"chats\.jsonl, line 11: 2\d\d tokens do not fit in sequence_length=96"):
        data(tmp_path, rows, truncation="error")
    assert data(tmp_path, rows).counts == {"longer than sequence_length=96": 1}


def test_each_file_of_a_folder_has_a_layout_of_its_own(tmp_path: Path) -> None:
    rows_file(tmp_path / "both" / "a.jsonl", [{"instruction": "a", "output": "1"}])
    rows_file(tmp_path / "both" / "b.jsonl", [{"messages": turns({"prompt": "b", "completion": "2"})}])
    module = ConversationData(
        str(tmp_path / "both"), saved_tokenizer(tmp_path), **SHAPE, add_special_tokens=True, validation_fraction=0.0
    )
    module.setup()
    assert sum(len(documents(batch)) for batch in batches(module)) == 2


def test_a_bad_row_is_named_or_left_out_and_so_is_one_that_the_template_refuses(tmp_path: Path) -> None:
    rows = [*chats(16), {"prompt": "no answer"}, *chats(2)]
    with pytest.raises(ValueError, match=r"chats\.jsonl, line 17: no field 'completion'.*on_bad_row=drop"):
        data(tmp_path, rows)
    assert list(data(tmp_path, rows, on_bad_row="drop").counts.values()) == [1]
    marked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}]
    rows = [{"messages": turns(row)} for row in chats(3)] + [{"messages": marked}]
    with pytest.raises(ValueError, match=r"chats\.jsonl, line 4: A message's weight=0\.5: must be 0 or 1.*on_bad_row"):
        data(tmp_path, rows)
    assert list(data(tmp_path, rows, on_bad_row="drop").counts) == [
        "A message's weight=0.5: must be 0 or 1 (false or true)."
    ]


def test_held_out_prompts_are_not_trained_on_and_validation_files_may_not_overlap(tmp_path: Path) -> None:
    doubled = [row | {"completion": f"{k}"} for row in chats(40) for k in range(2)]
    module = data(tmp_path, doubled, validation_fraction=0.3)

    def prompts(found: list[TokenBatch]) -> set[str]:
        texts = [module.tokenizer.decode(inputs) for batch in found for inputs, _ in documents(batch)]
        return {text.split("assistant")[0] for text in texts}

    train, held_out = prompts(batches(module)), prompts(list(module.val_dataloader()))
    assert (len(train) + len(held_out), train & held_out) == (40, set())
    assert 4 <= len(held_out) <= 20
    other = rows_file(tmp_path / "other.jsonl", chats(1))
    with pytest.raises(ValueError, match=r"1 prompts are in data\.path and in data\.validation_path.*question 0"):
        data(tmp_path, validation_path=other)
    other = rows_file(tmp_path / "other.jsonl", [{"prompt": "new", "completion": "answer"}])
    assert len(data(tmp_path, validation_path=other).val_dataloader()) == 1


def test_every_rank_has_as_many_micro_batches_and_together_they_have_all(tmp_path: Path) -> None:
    class Strategy:
        distributed_sampler_kwargs: dict[str, int]

    class Trainer:
        strategy = Strategy()

    module = data(tmp_path, packing=False, global_batch_size=12)
    whole = [sorted(d for batch in step for d in documents(batch)) for step in module.train_dataloader()]
    ranks = []
    for rank in range(3):
        Trainer.strategy.distributed_sampler_kwargs = {"rank": rank, "num_replicas": 3}
        module.trainer = Trainer()  # type: ignore[assignment]
        ranks.append(list(module.train_dataloader()))
    for steps, expected in zip(zip(*ranks, strict=True), whole, strict=True):
        assert len({len(step) for step in steps}) == 1
        assert sorted(d for step in steps for batch in step for d in documents(batch)) == expected
    module.global_batch_size = 8
    with pytest.raises(
        ValueError, match=r"global_batch_size=8 is not a multiple of micro_batch_size=2 x 3 ranks. Use 6"
    ):
        module.train_dataloader()


def test_a_position_in_other_data_is_refused(tmp_path: Path) -> None:
    state = data(tmp_path).train_dataloader().state_dict()
    data(tmp_path, num_epochs=2.0, micro_batch_size=1).train_dataloader().load_state_dict(state)
    others = ({"seed": 1}, {"rows": chats(39)}, {"train_on": ["user"]}, {"sequence_length": 80})
    for arguments in (*others, {"global_batch_size": 2}):
        with pytest.raises(ValueError, match="a position in other data"):
            data(tmp_path, **arguments).train_dataloader().load_state_dict(state)


def test_tokens_at_a_step_are_those_that_were_fed(tmp_path: Path) -> None:
    module = data(tmp_path, num_epochs=2.0)
    fed = [sum(int((b.document_ids != PADDING_DOCUMENT).sum()) for b in step) for step in module.train_dataloader()]
    assert [module.tokens_at_step(step) for step in range(len(fed) + 1)] == [sum(fed[:n]) for n in range(len(fed) + 1)]
    assert module.samples_at_step(1) == 4
    assert module.steps_for_tokens(sum(fed[:2])) == 2
    with pytest.raises(ValueError, match=r"vocab_size=258 is smaller than the 259 tokens"):
        module.check_vocab(258)
    module.check_vocab(259)


class _Counts(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.validated = 0

    def training_step(self, batch: list[TokenBatch], batch_idx: int) -> torch.Tensor:
        return self.weight.sum()

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        self.validated += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_lightning_runs_for_the_epochs_asked_for_with_and_without_validation(tmp_path: Path, fraction: float) -> None:
    module = data(tmp_path, num_epochs=1.5, validation_fraction=fraction)
    options = {
        name: False for name in ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    }
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, use_distributed_sampler=False, **options
    )
    counts = _Counts()
    trainer.fit(counts, module)
    assert trainer.global_step == module.plan.num_steps == len(module.train_dataloader())
    assert (counts.validated > 0) == (fraction > 0)


def test_the_saved_tokenizer_carries_the_template_into_the_next_stage(tmp_path: Path) -> None:
    data(tmp_path).tokenizer.save(tmp_path / "saved")
    assert ChatTemplate.find(None, Tokenizer.load(tmp_path / "saved")) == ChatTemplate("chatml")
    module = data(tmp_path, tokenizer=str(tmp_path / "saved"), chat_template=None, add_special_tokens=False)
    assert module.chat_template == ChatTemplate("chatml")


def test_an_item_is_described_by_the_lines_of_its_conversations(tmp_path: Path) -> None:
    module = data(tmp_path)
    loader = module.train_dataloader()
    texts = [json.loads(line) for line in (tmp_path / "chats.jsonl").read_text().splitlines()]
    (first, *_) = loader
    shown = "".join(module.tokenizer.decode(row) for batch in first for row in batch.input_ids.tolist())
    for origin in module.describe_rows(0, 4):
        assert origin["documents"]
        for where in origin["documents"]:
            assert texts[int(where.rpartition("line ")[2]) - 1]["prompt"] in shown
