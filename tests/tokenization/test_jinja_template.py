import pytest

from lmstack.tokenization import ChatTemplate, byte_tokenizer

TOKENIZER = byte_tokenizer().with_special_tokens(["<s>", "[INST]", "[/INST]"])
MESSAGES = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def test_a_template_without_blocks_is_masked_by_the_difference_of_renderings() -> None:
    ids, trained = ChatTemplate("jinja", INST, "<s>").render(MESSAGES, TOKENIZER)
    assert TOKENIZER.decode(ids) == "<s>[INST] a [/INST] b<|endoftext|>[INST] c [/INST] d<|endoftext|>"
    assert TOKENIZER.decode([i for i, t in zip(ids, trained, strict=True) if t]) == " b<|endoftext|> d<|endoftext|>"


def test_an_answer_that_occurs_in_the_prompt_is_trained_only_where_it_is_the_answer() -> None:
    messages = [{"role": "user", "content": "say b b b"}, {"role": "assistant", "content": "b"}]
    _, trained = ChatTemplate("jinja", INST, "<s>").render(messages, TOKENIZER)
    assert sum(trained) == 3  # the space, b, the end
    assert trained[-3:] == [True] * 3


def test_a_template_that_rewrites_earlier_turns_is_refused_with_the_way_out() -> None:
    source = "{% for m in messages %}{{ m.content if loop.last else '...' }}{{ eos_token }}{% endfor %}"
    with pytest.raises(ValueError, match=r"message 2 differently .* Put a \{% generation %\} block"):
        ChatTemplate("jinja", source).render(MESSAGES, TOKENIZER)


def test_blocks_that_do_not_match_the_messages_are_refused() -> None:
    source = "{% generation %}{% for m in messages %}{{ m.content }}{% endfor %}{% endgeneration %}"
    with pytest.raises(ValueError, match=r"wrote 1 .* blocks for 2 assistant"):
        ChatTemplate("jinja", source).render(MESSAGES, TOKENIZER)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for %}", "does not parse, line 1"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "cannot render"),  # the sandbox
        ("{{ messages.append(1) }}", "cannot render"),
    ],
)
def test_a_template_that_fails_says_why(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatTemplate("jinja", source).render(MESSAGES, TOKENIZER)


def test_a_template_without_a_special_end_is_refused_where_generation_has_to_stop() -> None:
    template = ChatTemplate("jinja", "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    with pytest.raises(ValueError, match="does not end the assistant's message with a special token"):
        template.end_ids(TOKENIZER)


def test_noncharacters_that_mark_spans_cannot_come_from_a_message() -> None:
    with pytest.raises(ValueError, match=r"U\+FDD0"):
        ChatTemplate("jinja", INST).render([{"role": "user", "content": "a\ufdd1b"}], TOKENIZER)


def test_only_the_assistant_can_be_trained() -> None:
    with pytest.raises(ValueError, match="train_on names 'user'"):
        ChatTemplate("jinja", INST).render(MESSAGES, TOKENIZER, train_on=("assistant", "user"))
