from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmstack.data.chat_data import load_tokenizer, read_rows, refuse_overlap, split_by_prompt
from lmstack.data.records import Record
from lmstack.models import Transformer, save_weights
from lmstack.tokenization import ChatTemplate, Tokenizer, byte_tokenizer, char_tokenizer
from tiny_chats import rows_file, saved_tokenizer
from tiny_run import tiny_config


@given(st.lists(st.sampled_from([f"prompt {i}" for i in range(30)]), max_size=60), st.floats(0, 0.99))
def test_a_prompt_is_on_one_side_whatever_else_there_is(prompts: list[str], fraction: float) -> None:
    train, held_out = split_by_prompt(prompts, str, fraction)
    assert sorted(train + held_out) == sorted(prompts)
    assert not set(train) & set(held_out)
    for prompt in set(prompts):
        assert split_by_prompt([prompt + " "], str, fraction)[1] == ([prompt + " "] if prompt in held_out else [])


def test_about_the_share_asked_for_is_held_out_and_a_larger_share_holds_it_too() -> None:
    prompts = [f"prompt {i}" for i in range(4000)]
    small, large = (split_by_prompt(prompts, str, fraction)[1] for fraction in (0.05, 0.1))
    assert abs(len(small) / 4000 - 0.05) < 4 * (0.05 * 0.95 / 4000) ** 0.5  # four standard deviations
    assert set(small) < set(large)
    assert split_by_prompt(prompts, str, 0.0)[1] == []
    for fraction in (-0.1, 1.0):
        with pytest.raises(ValueError, match="validation_fraction"):
            split_by_prompt(prompts, str, fraction)


def test_a_prompt_on_both_sides_is_refused_and_quoted() -> None:
    refuse_overlap(["a", "b"], ["c"])
    with pytest.raises(ValueError, match=r"1 prompts are in data\.path and in data\.validation_path, such as 'b'"):
        refuse_overlap(["a", " b\n"], ["c", "b"])


def small(record: Record) -> int:
    if record.values["a"] > 2:
        raise ValueError(f"{record.where}: too large.")
    return int(record.values["a"])


def test_bad_rows_stop_the_run_or_are_left_out_and_counted(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "rows.jsonl", [{"a": 1}, {"a": 3}, {"a": 2}, {"a": 4}, [5]])
    counts: Counter[str] = Counter()
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 5: expected an object"):
        read_rows(path, small, "error", counts)
    assert read_rows(path, small, "drop", counts) == [1, 2]
    assert counts == {"too large.": 2, "expected an object with fields, got list": 1}
    path = rows_file(tmp_path / "rows.jsonl", [{"a": 1}, {"a": 3}])
    with pytest.raises(
        ValueError, match=r"rows\.jsonl, line 2: too large\. Mend the row, or set data\.on_bad_row=drop"
    ):
        read_rows(path, small, "error", counts)


@pytest.mark.parametrize("row", [{"a": 3}, 5])
def test_files_of_bad_rows_only_are_refused_even_when_they_may_be_left_out(tmp_path: Path, row: object) -> None:
    with pytest.raises(ValueError, match="none of the 2 rows can be used, such as: "):
        read_rows(rows_file(tmp_path / "rows.jsonl", [row, row]), small, "drop", Counter())


def test_special_tokens_are_added_only_when_asked_and_keep_all_ids(tmp_path: Path) -> None:
    path = saved_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"<\|im_start\|>, <\|im_end\|>.*data\.add_special_tokens=true"):
        load_tokenizer(path, "chatml", add_special_tokens=False)
    tokenizer, template = load_tokenizer(path, "chatml", add_special_tokens=True)
    assert template == ChatTemplate("chatml")
    assert tokenizer.vocab_size == byte_tokenizer().vocab_size + 2
    assert tokenizer.extends(byte_tokenizer())
    tokenizer.save(tmp_path / "grown")
    again, own = load_tokenizer(str(tmp_path / "grown"), None, add_special_tokens=True)
    assert (again.vocab_size, own) == (tokenizer.vocab_size, template)


def test_a_tokenizer_without_an_end_of_text_gets_one_for_the_plain_template(tmp_path: Path) -> None:
    char_tokenizer("abc").save(tmp_path / "tokenizer")
    path = str(tmp_path / "tokenizer")
    if Tokenizer.load(path).eot_id is None:
        with pytest.raises(ValueError, match="end-of-text"):
            load_tokenizer(path, "plain", add_special_tokens=False)
    tokenizer, _ = load_tokenizer(path, "plain", add_special_tokens=True)
    assert tokenizer.eot_id is not None


def test_the_folder_of_weights_or_of_a_run_gives_its_tokenizer_and_template(tmp_path: Path) -> None:
    tokenizer, template = load_tokenizer(saved_tokenizer(tmp_path), "chatml", add_special_tokens=True)
    save_weights(tmp_path / "weights", Transformer(tiny_config()))
    tokenizer.save(tmp_path / "weights" / "tokenizer")
    found, own = load_tokenizer(str(tmp_path / "weights"), None, add_special_tokens=False)
    assert (found.fingerprint, own) == (tokenizer.fingerprint, template)


def test_a_tokenizer_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.tokenizer=.*nowhere: there is no such"):
        load_tokenizer(str(tmp_path / "nowhere"), "chatml", add_special_tokens=True)
    with pytest.raises(ValueError, match="whole checkpoint"):
        load_tokenizer(str(tmp_path), "chatml", add_special_tokens=True)
