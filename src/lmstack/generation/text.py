"""Text that grows token by token: never a broken character, never the beginning of a stop string."""

from collections.abc import Sequence

from lmstack.tokenization.tokenizer import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_CONTEXT_TOKENS = 6  # of the prompt: decoders that drop a leading space drop it there
_LONGEST_UNFINISHED = 3  # bytes of a UTF-8 character without its last


class TextStream:
    """The text that sampled tokens add to a prompt.

    A character whose bytes are spread over several tokens appears when its last byte does, and text that may turn out
    to be the beginning of a stop string appears when it turns out not to be. Each step decodes a few tokens only.

    A prompt that ends inside a character keeps that character: it is not text that was added.

    Attributes:
        stopped: A stop string occurred.

    Args:
        tokenizer: Gives the text of tokens.
        prompt: Token ids before the first one pushed.
        stop_strings: The text ends before the first occurrence of any of them.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop_strings: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop_strings = tuple(stop_strings)
        self._longest_stop = max((len(stop) for stop in stop_strings), default=0)
        self._window = list(prompt[-_CONTEXT_TOKENS:])  # tokens that are decoded together
        self._num_context = len(self._window)  # how many of them are there for context only
        self._num_chars = len(tokenizer.decode(self._window)) if self._window else 0  # already taken from the window
        self._text = ""
        self._num_taken = 0
        self._is_finished = False
        self.stopped = False

    @property
    def text(self) -> str:
        """All text so far, what is held back by `take` included; the stop string and what follows it are cut."""
        return self._text

    def push(self, token: int) -> None:
        """Add a sampled token.

        Args:
            token: Its id.
        """
        self._window.append(token)
        decoded = self._tokenizer.decode(self._window)
        unfinished = min(len(decoded) - len(decoded.rstrip(REPLACEMENT)), _LONGEST_UNFINISHED)
        complete = len(decoded) - unfinished
        if complete > self._num_chars:
            self._append(decoded[self._num_chars : complete])
            self._num_chars = complete
        if not unfinished:
            del self._window[: self._num_context]
            self._num_context = len(self._window)
            self._num_chars = len(self._tokenizer.decode(self._window))

    def finish(self) -> None:
        """Give up waiting for the rest of a character: its bytes become U+FFFD."""
        self._append(self._tokenizer.decode(self._window)[self._num_chars :] if self._window else "")
        self._is_finished = True

    def take(self) -> str:
        """Text that is certain and was not taken before."""
        end = len(self._text)
        if not (self.stopped or self._is_finished):
            end -= self._num_undecided()
        taken, self._num_taken = self._text[self._num_taken : end], end
        return taken

    def _append(self, piece: str) -> None:
        if self.stopped:
            return
        start = max(0, len(self._text) - self._longest_stop + 1)
        self._text += piece
        found = [at for stop in self._stop_strings if (at := self._text.find(stop, start)) >= 0]
        if found:
            self._text, self.stopped = self._text[: min(found)], True

    def _num_undecided(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        for length in range(min(self._longest_stop - 1, len(self._text)), 0, -1):
            if any(stop.startswith(self._text[-length:]) for stop in self._stop_strings):
                return length
        return 0
