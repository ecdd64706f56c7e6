"""Chat templates: messages to tokens, and which of them are trained; never by looking for text in the result."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from lmstack.tokenization.jinja_template import JinjaTemplate
from lmstack.tokenization.template_pieces import Piece, is_message_trained, special, text
from lmstack.tokenization.tokenizer import CHAT_TEMPLATE_FILE, CONFIG_FILE, Tokenizer, jinja_chat_template

ROLES = ("system", "user", "assistant", "tool")

Kind = Literal["chatml", "llama3", "plain", "jinja"]

Messages = Sequence[Mapping[str, Any]]
"""Messages with `role` and `content`, and where wanted `train` (true or false) or `weight` (0 or 1)."""

_JINJA_OF_KIND = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
        "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ '<|begin_of_text|>' }}{% for message in messages %}"
        "{% set role = 'ipython' if message['role'] == 'tool' else message['role'] %}"
        "{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}"
        "{% if role == 'assistant' %}{% generation %}{{ (message['content'] | trim) + '<|eot_id|>' }}"
        "{% endgeneration %}{% else %}{{ (message['content'] | trim) + '<|eot_id|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "plain": (
        "{{ eos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
        "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    ),
}
"""The built-in templates in Transformers' language: written beside a tokenizer, and the tests' second opinion."""


class Rendered(NamedTuple):
    """A conversation in tokens.

    Attributes:
        input_ids: Its token ids.
        is_trained: Whether each of them is to be learnt.
    """

    input_ids: list[int]
    is_trained: list[bool]


@dataclass(frozen=True)
class ChatTemplate:
    """How messages become tokens.

    A message's opening and its content are encoded apart, so that a prompt is exactly the beginning of what was trained
    on. What looks like a special token inside a message is encoded as text.

    Attributes:
        kind: `chatml` (turns between `<|im_start|>` and `<|im_end|>`), `llama3` (headers and `<|eot_id|>`), `plain`
            (the end-of-text token, which opens a document, and bare text; the same token ends an answer) or `jinja`.
        source: The template in Transformers' language; for `jinja` only.
        bos_token: What such a template writes for `bos_token`.
    """

    kind: Kind
    source: str | None = None
    bos_token: str = ""

    def __post_init__(self) -> None:
        """Check the kind, and that a source is there when it is needed.

        Raises:
            ValueError: The kind is not known, or the source is missing or too much.
        """
        if self.kind not in get_args(Kind):
            raise ValueError(f"chat_template={self.kind!r} is not known. Use one of {get_args(Kind)}.")
        if (self.kind == "jinja") != (self.source is not None):
            raise ValueError(f"chat_template kind={self.kind!r}: a source is needed for 'jinja', and for no other.")

    @classmethod
    def find(cls, name: str | None, tokenizer: Tokenizer) -> "ChatTemplate":
        """A template by its name, from a file, or the tokenizer's own.

        Args:
            name: `chatml`, `llama3`, `plain`; a `tokenizer_config.json`, `chat_template.json` or `.jinja` file, or the
                folder that holds one; None for the one saved with the tokenizer.
            tokenizer: The tokenizer.

        Raises:
            ValueError: There is no such template, or none with the tokenizer.
        """
        if name is None:
            if tokenizer.chat_template is None:
                raise ValueError(
                    "This tokenizer comes without a chat template. Set data.chat_template to chatml, llama3 or plain, "
                    "or to a tokenizer_config.json that has one."
                )
            return cls.from_dict(tokenizer.chat_template)
        if name in _JINJA_OF_KIND:
            return cls(name)  # type: ignore[arg-type]
        path = Path(name)
        if path.is_dir():
            path = next((path / n for n in (CHAT_TEMPLATE_FILE, CONFIG_FILE) if (path / n).is_file()), path)
        if not path.is_file():
            raise ValueError(
                f"chat_template={name!r} is neither {', '.join(_JINJA_OF_KIND)} nor a file. Name one of them, or a "
                "tokenizer_config.json, chat_template.json or .jinja file."
            )
        content = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return cls("jinja", content)
        values = json.loads(content)
        if "kind" in values:
            return cls.from_dict(values)
        if not isinstance(values.get("chat_template"), str):
            raise ValueError(f"{path} has no text under 'chat_template'. Name a file that has a Jinja template.")
        return cls.from_dict(jinja_chat_template(values["chat_template"], values))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ChatTemplate":
        """What `to_dict` gave.

        Args:
            values: `kind`, and for Jinja `source` and perhaps `bos_token`.
        """
        if values["kind"] != "jinja":
            return cls(values["kind"])
        return cls("jinja", values["source"], values.get("bos_token", ""))

    def to_dict(self) -> dict[str, str]:
        """The template as JSON can hold it; `source` is what Transformers reads, for every kind."""
        source = self.source if self.source is not None else _JINJA_OF_KIND[self.kind]
        return {"kind": self.kind, "source": source} | ({"bos_token": self.bos_token} if self.bos_token else {})

    def special_tokens(self) -> tuple[str, ...]:
        """Special tokens that the template writes, beside the end-of-text token; those of Jinja are not known."""
        if self.kind == "chatml":
            return ("<|im_start|>", "<|im_end|>")
        if self.kind == "llama3":
            return ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
        return ()

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer that lacks what the template writes.

        Args:
            tokenizer: The tokenizer.

        Raises:
            ValueError: Special tokens are missing.
        """
        missing = [name for name in self.special_tokens() if tokenizer.token_id(name) is None]
        if missing:
            raise ValueError(
                f"The {self.kind} template needs the special tokens {', '.join(missing)}, which this tokenizer lacks. "
                "Add them with data.add_special_tokens=true (the embedding grows with init_from), or use "
                "chat_template=plain."
            )
        if self.kind == "plain" and tokenizer.eot_id is None:
            raise ValueError(
                "The plain template ends an answer with the end-of-text token, and this tokenizer has none. "
                "Add one with data.add_special_tokens=true, or use a tokenizer trained with special tokens."
            )

    def render(self, messages: Messages, tokenizer: Tokenizer, *, train_on: Sequence[str] = ("assistant",)) -> Rendered:
        """A conversation in tokens.

        Args:
            messages: The conversation.
            tokenizer: Has the template's special tokens.
            train_on: Roles whose content and end are learnt. A message's own `train` or `weight` goes first.

        Raises:
            ValueError: A role is not known, or the template cannot render the messages.
        """
        return encode_pieces([self.pieces(messages, tokenizer, train_on)], tokenizer)[0]

    def render_prompt(self, messages: Messages, tokenizer: Tokenizer) -> list[int]:
        """A conversation and the opening of the assistant's turn that comes next.

        Args:
            messages: The conversation so far.
            tokenizer: Has the template's special tokens.

        Raises:
            ValueError: As `render`.
        """
        return encode_pieces([self.pieces(messages, tokenizer, (), is_prompt=True)], tokenizer)[0].input_ids

    def end_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Tokens that end the assistant's turn: where generation stops.

        Args:
            tokenizer: Has the template's special tokens.
        """
        self.check(tokenizer)
        if self.kind == "jinja":
            return self._jinja(tokenizer).end_ids(tokenizer)
        name = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "plain": str(tokenizer.eot_token)}[self.kind]
        end = tokenizer.token_id(name)
        assert end is not None
        return (end,)

    def pieces(
        self, messages: Messages, tokenizer: Tokenizer, train_on: Sequence[str], *, is_prompt: bool = False
    ) -> list[Piece]:
        """A conversation in pieces that are encoded apart.

        Args:
            messages: The conversation.
            tokenizer: Gives the names of special tokens.
            train_on: As in `render`.
            is_prompt: Whether the opening of the assistant's turn follows.

        Raises:
            ValueError: As `render`.
        """
        self.check(tokenizer)
        trained = [is_message_trained(message, train_on) for message in messages]
        if self.kind == "jinja":
            return self._jinja(tokenizer).pieces(messages, trained, is_prompt=is_prompt)
        for message in messages:
            if message["role"] not in ROLES:
                raise ValueError(f"The role {message['role']!r} is not known. Use one of {', '.join(ROLES)}.")
        result = [special("<|begin_of_text|>")] if self.kind == "llama3" else []
        if self.kind == "plain":
            result = [special(str(tokenizer.eot_token))]
        for message, is_trained in zip(messages, trained, strict=True):
            result += [*self._opening(message["role"]), *self._content(message, tokenizer, is_trained)]
        return [*result, *self._opening("assistant")] if is_prompt else result

    def _opening(self, role: str) -> list[Piece]:
        if self.kind == "chatml":
            return [special("<|im_start|>"), text(f"{role}\n")]
        if self.kind == "llama3":
            header = "ipython" if role == "tool" else role
            return [special("<|start_header_id|>"), text(header), special("<|end_header_id|>"), text("\n\n")]
        return []

    def _content(self, message: Mapping[str, Any], tokenizer: Tokenizer, is_trained: bool) -> list[Piece]:
        content = message["content"]
        if self.kind == "chatml":
            return [text(content, is_trained), special("<|im_end|>", is_trained), text("\n")]
        if self.kind == "llama3":
            return [text(content.strip(), is_trained), special("<|eot_id|>", is_trained)]
        ends = message["role"] == "assistant"
        return [text(content, is_trained), *([special(str(tokenizer.eot_token), is_trained)] if ends else [])]

    def _jinja(self, tokenizer: Tokenizer) -> JinjaTemplate:
        assert self.source is not None
        return JinjaTemplate.compiled(self.source, tokenizer, self.bos_token)


def encode_pieces(conversations: Iterable[Sequence[Piece]], tokenizer: Tokenizer) -> list[Rendered]:
    """Tokens of conversations; many are encoded at once.

    Args:
        conversations: The pieces of each.
        tokenizer: Has every special token among them.
    """
    conversations = list(conversations)
    texts = [piece.text for pieces in conversations for piece in pieces if not piece.is_special]
    encoded = iter(tokenizer.encode_batch(texts))
    result = []
    for pieces in conversations:
        rendered = Rendered([], [])
        for piece in pieces:
            ids = [_id_of(piece.text, tokenizer)] if piece.is_special else next(encoded)
            rendered.input_ids.extend(ids)
            rendered.is_trained.extend([piece.is_trained] * len(ids))
        result.append(rendered)
    return result


def _id_of(name: str, tokenizer: Tokenizer) -> int:
    index = tokenizer.token_id(name)
    assert index is not None, name
    return index
