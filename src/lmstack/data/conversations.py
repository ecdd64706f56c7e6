"""Conversations in the layouts that people store them in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal

from lmstack.data.records import Record

Message = dict[str, Any]
Schema = Literal["messages", "sharegpt", "alpaca", "prompt_completion"]

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}
"""What roles are called, and what they are called here."""

PROMPTS = ("prompt", "question", "query", "instruction")
"""Fields that hold a prompt; the first that is there counts."""

_LISTS = ("messages", "conversations", "conversation")
_COMPLETIONS = ("completion", "response", "answer", "output", "chosen")


@dataclass(frozen=True)
class Conversation:
    """Messages in order.

    Attributes:
        messages: Each with `role` and `content`; some with `train` or `weight`.
        where: File and line it came from.
        row: The whole record.
    """

    messages: list[Message]
    where: str
    row: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt_text(self) -> str:
        """What identifies the prompt."""
        return prompt_text(self.messages)


def prompt_text(messages: Sequence[Message]) -> str:
    """What identifies a prompt: the roles and texts before the first answer.

    Conversations that begin alike have it in common, so no answer is on one side of a split and context on the other.

    Args:
        messages: A prompt, or a conversation.
    """
    before = takewhile(lambda message: message["role"] != "assistant", messages)
    return "\n".join(f"{message['role']}: {message['content'].strip()}" for message in before)


def detect_schema(record: Record) -> Schema:
    """Which layout a record has, by its fields.

    Args:
        record: The first one of a file, say.

    Raises:
        ValueError: None fits.
    """
    names = record.values.keys()
    if isinstance(record.values.get("messages"), list):
        return "messages"
    if any(isinstance(record.values.get(name), list) for name in _LISTS):
        return "sharegpt"
    if "instruction" in names and "output" in names:
        return "alpaca"
    if _first(record.values, PROMPTS) is not None and _first(record.values, _COMPLETIONS) is not None:
        return "prompt_completion"
    raise ValueError(
        f"{record.where}: the fields {sorted(names)} are of no known layout: messages; conversations (ShareGPT); "
        "instruction, input and output (Alpaca); prompt and completion. Rename the fields."
    )


def read_conversation(record: Record, schema: Schema) -> Conversation:
    """A record as a conversation.

    Args:
        record: In the layout `schema`.
        schema: The layout.

    Raises:
        ValueError: A field is missing or of the wrong type, a role is not known, a text is empty, or the assistant says
            nothing; file and line are named.
    """
    messages = _READERS[schema](record)
    _refuse_empty(messages, record.where)
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError(f"{record.where}: no message of the assistant, so there is nothing to learn.")
    return Conversation(messages, record.where, record.values)


def read_prompt(record: Record) -> list[Message]:
    """The messages of a prompt: a field that asks, as text or messages; or a list of messages.

    Args:
        record: One row; what else it holds is not looked at.

    Raises:
        ValueError: There is no prompt, or it is empty; file and line are named.
    """
    name = _first(record.values, PROMPTS)
    if name is not None:
        messages = _before(record, name)
    elif _first(record.values, _LISTS) is not None:
        messages = _sharegpt(record)
    else:
        raise ValueError(
            f"{record.where}: no prompt among the fields {sorted(record.values)}. Name it {', '.join(PROMPTS)} or "
            "messages."
        )
    _refuse_empty(messages, record.where)
    return messages


def read_unanswered(record: Record) -> Conversation:
    """A record as the messages before the answer; a bare prompt has none.

    Args:
        record: A prompt, or a conversation whose last answer is left out.

    Raises:
        ValueError: As `read_prompt`, or nothing comes before the answer.
    """
    messages = read_prompt(record)
    before = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    if not before:
        raise ValueError(f"{record.where}: there is no message before the answer.")
    return Conversation(before, record.where, record.values)


def clean_messages(messages: Any, where: str) -> list[Message]:
    """Messages under the names and roles used here.

    Args:
        messages: A list of objects with `role` and `content`, or `from` and `value`.
        where: For messages of errors.

    Raises:
        ValueError: A field is missing, or a role is not known.
    """
    if not isinstance(messages, list):
        raise ValueError(f"{where}: expected a list of messages, got {type(messages).__name__}.")
    cleaned = []
    is_sharegpt = bool(messages) and isinstance(messages[0], dict) and bool({"from", "value"} & messages[0].keys())
    role_key, content_key = ("from", "value") if is_sharegpt else ("role", "content")
    for number, message in enumerate(messages, start=1):
        missing = [key for key in (role_key, content_key) if not isinstance(message, dict) or key not in message]
        if missing:
            raise ValueError(f"{where}: message {number} has no {missing[0]!r}.")
        role = _ROLES.get(str(message[role_key]).lower())
        if role is None:
            raise ValueError(
                f"{where}: message {number} has the role {message[role_key]!r}. Known roles: {', '.join(_ROLES)}."
            )
        if not isinstance(message[content_key], str):
            raise ValueError(
                f"{where}: the {content_key} of message {number} is {type(message[content_key]).__name__}, not text."
            )
        kept = {key: message[key] for key in ("train", "weight") if key in message}
        cleaned.append({"role": role, "content": message[content_key], **kept})
    return cleaned


def _messages(record: Record) -> list[Message]:
    return clean_messages(_required(record, "messages"), record.where)


def _sharegpt(record: Record) -> list[Message]:
    name = _first(record.values, _LISTS) or "conversations"
    return _system(record) + clean_messages(_required(record, name), record.where)


def _alpaca(record: Record) -> list[Message]:
    return [*_before(record, "instruction"), {"role": "assistant", "content": _text(record, "output")}]


def _prompt_completion(record: Record) -> list[Message]:
    before = _before(record, _first(record.values, PROMPTS) or "prompt")
    completion = _first(record.values, _COMPLETIONS) or "completion"
    if isinstance(record.values.get(completion), list):
        return before + clean_messages(record.values[completion], record.where)
    return [*before, {"role": "assistant", "content": _text(record, completion)}]


def _before(record: Record, name: str) -> list[Message]:
    """The messages before the answer: what the field asks, after the system prompt and earlier turns."""
    if isinstance(record.values.get(name), list):
        return _system(record) + clean_messages(record.values[name], record.where)
    question = _text(record, name)
    extra = record.values.get("input") if name == "instruction" else None
    if extra:
        question = f"{question}\n\n{_text(record, 'input')}"
    return [*_system(record), *_history(record), {"role": "user", "content": question}]


def _system(record: Record) -> list[Message]:
    return [{"role": "system", "content": _text(record, "system")}] if record.values.get("system") else []


def _history(record: Record) -> list[Message]:
    """Earlier turns as LLaMA-Factory's files have them: a list of question and answer."""
    turns = record.values.get("history") or []
    messages = []
    for turn in turns if isinstance(turns, list) else [turns]:
        if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn)):
            raise ValueError(f"{record.where}: 'history' must be a list of [question, answer], got {str(turn)[:60]!r}.")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return messages


_READERS: dict[str, Callable[[Record], list[Message]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
}


def _refuse_empty(messages: Sequence[Message], where: str) -> None:
    if not messages:
        raise ValueError(f"{where}: there are no messages.")
    for number, message in enumerate(messages, start=1):
        if not message["content"].strip() and message["role"] in ("user", "assistant"):
            raise ValueError(f"{where}: message {number} ({message['role']}) is empty.")


def _required(record: Record, name: str) -> Any:
    if name not in record.values:
        raise ValueError(f"{record.where}: no field {name!r}. It has {sorted(record.values)}.")
    return record.values[name]


def _text(record: Record, name: str) -> str:
    value = _required(record, name)
    if not isinstance(value, str):
        raise ValueError(f"{record.where}: {name!r} is {type(value).__name__}, not text.")
    return value


def _first(values: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if values.get(name) is not None), None)
