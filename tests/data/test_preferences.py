from typing import Any

import pytest
import torch

from lmstack.data.batch import IGNORE_INDEX, PADDING_DOCUMENT
from lmstack.data.preference_batches import collate_answers, tokenize_answers
from lmstack.data.preferences import Answers, Pair, PairConfig, read_answers
from lmstack.tokenization import ChatTemplate, Tokenizer, byte_tokenizer
from tiny_chats import record

USER = [{"role": "user", "content": "Q?"}]


def grown(kind: str) -> Tokenizer:
    return byte_tokenizer().with_special_tokens(ChatTemplate(kind).special_tokens())  # type: ignore[arg-type]


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def ranked(**values: Any) -> list[tuple[str, str]]:
    """(better, worse) of every pair."""
    answers = read_answers(record(**values))
    return [(answers.texts[pair.better], answers.texts[pair.worse]) for pair in answers.pairs()]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q?", "chosen": "a", "rejected": "b"},
        {"prompt": USER, "chosen": "a", "rejected": "b"},
        {"question": "Q?", "selected": "a", "rejected": "b"},
        {"chosen": [*USER, said("assistant", "a")], "rejected": [*USER, said("assistant", "b")]},
        {"prompt": USER, "chosen": [said("assistant", "a")], "rejected": [said("assistant", "b")]},
        {
            "conversations": [{"from": "human", "value": "Q?"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        {"chosen": "\n\nHuman: Q?\n\nAssistant: a", "rejected": "\n\nHuman: Q?\n\nAssistant: b"},
        {"text": ["\n\nHuman: Q?\n\nAssistant: b", "\n\nHuman: Q?\n\nAssistant: a"], "score": [0.0, 1.0]},
        {"text": ["## Human:\nQ?\n\n## Assistant:\n a", "## Human:\nQ?\n\n## Assistant:\n b"], "score": [2, -1]},
        {"prompt": "Q?", "answers": ["a", "b"]},
        {"prompt": "Q?", "responses": ["b", "a"], "scores": [1, 7.5]},
        {"instruction": "Q?", "input": "", "output": ["a", "b"]},
        {"prompt": "Q?", "answers": [{"text": "b", "score": 1}, {"text": "a", "score": 2}]},
        {"prompt": "Q?", "answers": [{"text": "b", "rank": 2}, {"text": "a", "rank": 1}]},
    ],
)
def test_each_layout_says_which_answer_is_better(row: dict[str, Any]) -> None:
    assert read_answers(record(**row)).prompt == USER
    assert ranked(**row) == [("a", "b")]


def test_a_ranking_gives_every_pair_and_ties_give_none() -> None:
    assert ranked(prompt="Q?", answers=["a", "b", "c"]) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert ranked(prompt="Q?", answers=["a", "b", "c"], scores=[1, 2, 1]) == [("b", "a"), ("b", "c")]
    tied = read_answers(record(prompt="Q?", answers=["a", "b", "c", "d"], scores=[1, 2, 1, 2]))
    assert tied.desirability() == [-1, 1, -1, 1]
    assert read_answers(record(prompt="Q?", answers=["a", "b", "c"])).desirability() == [1, 0, -1]


def test_ties_and_margins_are_taken_from_scores_where_that_is_wanted() -> None:
    answers = read_answers(record(prompt="Q?", answers=["a", "b", "c"], scores=[1, 4.5, 1]))
    assert answers.pairs(PairConfig(keep_ties=True)) == [Pair(1, 0), Pair(0, 2, is_tie=True), Pair(1, 2)]
    assert answers.pairs(PairConfig(margins_from_scores=True)) == [Pair(1, 0, 3.5), Pair(1, 2, 3.5)]
    by_rank = read_answers(record(prompt="Q?", answers=["a", "b", "c"]))
    assert [pair.margin for pair in by_rank.pairs(PairConfig(margins_from_scores=True))] == [1, 2, 1]
    tied = read_answers(record(prompt="Q?", answers=["a", "b"], scores=[1, 1]), may_tie=True)
    assert tied.pairs(PairConfig(keep_ties=True, margins_from_scores=True)) == [Pair(0, 1, 0.0, is_tie=True)]


def test_a_transcript_is_cut_into_turns_and_its_last_answer() -> None:
    text = "\n\nHuman: 1\n\nstill 1\n\nAssistant: 2\n\nHuman: 3\n\nAssistant: {}"
    answers = read_answers(record(chosen=text.format("good: yes"), rejected=text.format("bad")))
    assert answers.prompt == [said("user", "1\n\nstill 1"), said("assistant", "2"), said("user", "3")]
    assert answers.texts == ["good: yes", "bad"]


def test_answers_that_look_like_transcripts_stay_whole_where_there_is_a_prompt() -> None:
    plays = ["Human: a\n\nAssistant: b", "Human: c\n\nAssistant: d"]
    answers = read_answers(record(prompt="Q?", chosen=plays[0], rejected=plays[1]))
    assert (answers.prompt, answers.texts) == (USER, plays)


def test_labels_of_single_answers_are_wanted_or_not() -> None:
    for label, expected in ((True, 1), (False, -1), (1, 1), (0, -1)):
        answers = read_answers(record(prompt="Q?", completion="a", label=label))
        assert (answers.desirability(), answers.pairs()) == ([expected], [])


PAIR = {"prompt": "Q?", "chosen": "a", "rejected": "b"}
TALK = [*USER, said("assistant", "a")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q?"}, "of no known layout"),
        ({"chosen": "a", "rejected": "b"}, "no prompt among the fields"),
        (PAIR | {"prompt": None}, "no prompt among"),
        (PAIR | {"prompt": [*TALK]}, "the prompt ends with the assistant"),
        (PAIR | {"rejected": " "}, "answer 2 is empty"),
        (PAIR | {"rejected": 3}, "an answer is int, not text"),
        (PAIR | {"rejected": "a \n"}, "the same answer is ranked above and below itself"),
        (PAIR | {"margin": "far"}, "margin='far' is not a finite number"),
        (PAIR | {"margin": -1}, "margin=-1.0: the chosen answer cannot be worse"),
        ({"prompt": "Q?", "answers": ["a"]}, "a ranking of 1 answer compares nothing"),
        ({"prompt": "Q?", "answers": ["a", "b"], "scores": [1, 1]}, "all answers are tied"),
        ({"prompt": "Q?", "answers": ["a", "b"], "scores": [1]}, "a number for each of 2 answers"),
        ({"prompt": "Q?", "answers": ["a", "b"], "scores": [1, None]}, "scores=None is not a finite number"),
        ({"prompt": "Q?", "answers": ["a", "b"], "scores": [1, float("nan")]}, "scores=nan is not a finite"),
        ({"prompt": "Q?", "answers": [{"text": "a", "score": 1}, {"text": "b"}]}, "some answers have a score and some"),
        ({"prompt": "Q?", "completion": "a", "label": "yes"}, "label='yes' must be true"),
        ({"chosen": TALK, "rejected": [said("user", "other"), TALK[1]]}, "differ before their last turn"),
        ({"chosen": TALK, "rejected": USER}, "does not end with the assistant"),
        ({"chosen": TALK, "rejected": []}, "does not end with the assistant"),
        (
            {"chosen": "Human: 1\n\nAssistant: a", "rejected": "Human: 2\n\nAssistant: b"},
            "they answer different prompts",
        ),
        ({"text": ["Note\n\nHuman: 1\n\nAssistant: a"] * 2, "score": [1, 0]}, "begins with 'Note'"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^file\.jsonl, line 17: .*" + message):
        read_answers(record(**row))


@pytest.mark.parametrize("kind", ["chatml", "llama3", "plain"])
def test_a_row_is_the_prompt_that_is_sampled_from_then_the_answer_then_the_token_that_stops(kind: str) -> None:
    template, tokenizer = ChatTemplate(kind), grown(kind)  # type: ignore[arg-type]
    prompt = [said("system", "Be kind."), said("user", "1"), said("assistant", "2"), said("user", "Q?")]
    answers = Answers(prompt, ["yes <|im_end|>", "no"], [0.0, 1.0], "here")
    item = tokenize_answers(answers, template, tokenizer)
    opening = template.render_prompt(prompt, tokenizer)
    (end,) = template.end_ids(tokenizer)
    assert item.input_ids == [[*opening, *tokenizer.encode(text), end] for text in answers.texts]
    assert item.prompt_length == len(opening)


def test_a_template_that_opens_an_answer_otherwise_than_it_writes_one_is_refused() -> None:
    source = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}>{% generation %}{{ m['content'] + eos_token }}"
        "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<{% endif %}"
    )
    answers = Answers(USER, ["a", "b"], [0.0, 1.0], "file, line 3")
    with pytest.raises(ValueError, match="file, line 3: the chat template writes the prompt differently"):
        tokenize_answers(answers, ChatTemplate("jinja", source), byte_tokenizer())
    tokenize_answers(answers, ChatTemplate("jinja", source.replace(">", "<")), byte_tokenizer())


def test_golden_batch_of_a_pair_a_ranking_and_a_label() -> None:
    tokenizer = byte_tokenizer()
    rows = [
        record(prompt="P", chosen="a", rejected="bc", margin=2.5),
        record(prompt="Q", answers=["d", "e", "f"], scores=[3, 3, 1]),
    ]
    plain = ChatTemplate("plain")
    batch = collate_answers([tokenize_answers(read_answers(row), plain, tokenizer) for row in rows])
    E, X = 256, IGNORE_INDEX
    p, q, a, b, c, d, e, f = b"PQabcdef"
    assert batch.input_ids.tolist() == [[E, p, a, E, 0], [E, p, b, c, E], *([E, q, x, E, 0] for x in (d, e, f))]
    assert batch.labels.tolist() == [[X, a, E, X, X], [X, b, c, E, X], *([X, x, E, X, X] for x in (d, e, f))]
    assert batch.lengths.tolist() == [4, 5, 4, 4, 4]
    assert batch.better.tolist() == [0, 2, 3]
    assert batch.worse.tolist() == [1, 4, 4]
    assert batch.pair_weight.tolist() == [1.0, 0.5, 0.5]
    assert batch.margin.tolist() == [2.5, 0.0, 0.0]
    assert batch.is_tie.tolist() == [False] * 3
    assert batch.group.tolist() == [0, 0, 1, 1, 1]
    assert batch.desirability.tolist() == [1, -1, 1, 1, -1]
    assert batch.demonstration.tolist() == [False] * 5
    assert int(batch.num_supervised) == 2
    assert (batch.document_ids == PADDING_DOCUMENT).sum(1).tolist() == [1, 0, 1, 1, 1]
    assert batch.input_ids[torch.arange(5), batch.last].tolist() == [E] * 5
    assert batch.response_lengths.tolist() == [2, 3, 2, 2, 2]


def test_kept_ties_are_pairs_of_their_own() -> None:
    rows = [record(prompt="P", answers=["a", "b"]), record(prompt="Q", answers=["d", "e", "f"], scores=[3, 3, 1])]
    items = [tokenize_answers(read_answers(row), ChatTemplate("plain"), byte_tokenizer()) for row in rows]
    batch = collate_answers(items, PairConfig(keep_ties=True))
    assert (batch.better.tolist(), batch.worse.tolist()) == ([0, 2, 2, 3], [1, 3, 4, 4])
    assert batch.is_tie.tolist() == [False, True, False, False]
    assert batch.pair_weight.tolist() == [1.0] + [pytest.approx(1 / 3)] * 3


def test_the_weights_of_a_prompt_s_pairs_add_up_to_one() -> None:
    rows = [record(prompt=f"{n}", answers=[f"{i}" for i in range(n)]) for n in (2, 3, 5)]
    batch = collate_answers([tokenize_answers(read_answers(r), ChatTemplate("plain"), byte_tokenizer()) for r in rows])
    totals = torch.zeros(3).index_add(0, batch.group[batch.better], batch.pair_weight)
    torch.testing.assert_close(totals, torch.ones(3))


def test_a_batch_of_labels_counts_its_rows_and_one_of_nothing_counts_none() -> None:
    rows = [record(prompt="P", completion="a", label=bool(i)) for i in range(2)]
    batch = collate_answers([tokenize_answers(read_answers(r), ChatTemplate("plain"), byte_tokenizer()) for r in rows])
    assert batch.desirability.tolist() == [-1, 1]
    assert len(batch.better) == 0
    assert int(batch.num_supervised) == 2
    empty = collate_answers([])
    assert (empty.lengths.tolist(), int(empty.num_supervised), len(empty.better)) == ([0], 0, 0)
