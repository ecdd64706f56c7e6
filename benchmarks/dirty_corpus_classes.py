"""The kinds of documents of `dirty_corpus.py`, clean and dirty, each with the truth about it."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dirty_corpus_pages import make_page
from dirty_corpus_personal import DECOYS, INTRODUCTIONS, PERSONAL
from dirty_corpus_text import PHRASES, English, foreign_sentence, paragraphs

NGRAM = 5
SIMILARITIES = (0.5, 0.6, 0.7, 0.75, 0.78, 0.82, 0.85, 0.9, 0.95)
"""What near-duplicates aim at; what they reach is computed and stored."""

_WORD = re.compile(r"[\u3400-\u9fff]|[^\W_]+")


@dataclass
class Planted:
    """A document and what is known of it.

    Attributes:
        text: As it is written into the corpus; HTML for pages.
        kind: Its class.
        truth: What a score needs: the clean text, what it duplicates, what has to be masked, ...
        language: Code of its language.
    """

    text: str
    kind: str
    truth: dict[str, Any] = field(default_factory=dict)
    language: str = "en"
    name: str = ""


def ngrams(text: str) -> set[tuple[str, ...]]:
    """The set of 5-grams of the words of a text, in small letters; a Chinese character is a word.

    Args:
        text: Any.
    """
    words = _WORD.findall(text.lower())
    return {tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)}


def true_jaccard(left: str, right: str) -> float:
    """Jaccard similarity of two texts by their sets of 5-grams.

    Args:
        left: A text.
        right: Another.
    """
    a, b = ngrams(left), ngrams(right)
    return len(a & b) / len(a | b)


class Generator:
    """Makes documents of each class; everything follows from the seed."""

    def __init__(self, seed: int) -> None:
        """Read the words of English.

        Args:
            seed: Another seed makes another corpus.
        """
        self.draw = random.Random(seed)
        self.english = English()

    def clean(self, num_sentences: int | None = None) -> str:
        """English prose.

        Args:
            num_sentences: How long; None is as it comes.
        """
        return paragraphs(self._sentences(), self.draw, num_sentences or self.draw.randint(8, 20))

    def exact_duplicate(self, original: Planted) -> Planted:
        """A copy that differs in spaces and perhaps case.

        Args:
            original: Of which.
        """
        how = self.draw.randrange(3)
        text = original.text
        if how == 1:
            text = re.sub(r"(?<=\.) (?=\S)", "  ", text).replace("\n\n", "\n \n") + "\n"
        elif how == 2:
            text = text.upper()
        return Planted(text, "exact_duplicate", {"of": original.name})

    def near_duplicate(self, original: Planted) -> Planted:
        """A copy with stretches of words replaced, so that about a given share of 5-grams is common to both.

        Args:
            original: Of which.
        """
        target = self.draw.choice(SIMILARITIES)
        num_ngrams = len(ngrams(original.text))
        to_lose = round(num_ngrams * (1 - target) / (1 + target))
        similarity, text = 1.0, original.text
        while similarity == 1:
            text = self._with_stretches_replaced(original.text, to_lose)
            similarity = true_jaccard(original.text, text)
        return Planted(text, "near_duplicate", {"of": original.name, "similarity": round(similarity, 6)})

    def _with_stretches_replaced(self, text: str, num_ngrams: int) -> str:
        words = text.split(" ")
        num_stretches = max(1, min(3, num_ngrams // (3 * NGRAM)))
        for number in range(num_stretches):
            size = max(1, num_ngrams // num_stretches - (NGRAM - 1))
            room = len(words) // num_stretches
            start = number * room + self.draw.randrange(max(1, room - size - NGRAM))
            words[start : start + size] = self.english.words(self.draw, size)
        return " ".join(words)

    def foreign(self, language: str | None = None) -> Planted:
        """A text in another language.

        Args:
            language: Its code; None draws one.
        """
        language = language or self.draw.choice(sorted(PHRASES))
        sentences = iter(lambda: foreign_sentence(str(language), self.draw), "")
        gap = "" if language == "zh" else " "
        text = paragraphs(sentences, self.draw, self.draw.randint(8, 20), gap)
        return Planted(text, "foreign", {"text": text}, language)

    def mojibake(self) -> Planted:
        """UTF-8 that was read as Windows-1252, and written as UTF-8 again; English loses its quotes and dashes."""
        language = self.draw.choice(("en", *sorted(PHRASES)))
        text = self._typographic() if language == "en" else self.foreign(language).text
        broken = "".join(_as_windows_1252(byte) for byte in text.encode())
        return Planted(broken, "mojibake", {"text": text}, language)

    def personal_data(self) -> Planted:
        """Prose with personal data, and with what only looks like it."""
        sentences = [self.english.sentence(self.draw) for _ in range(self.draw.randint(8, 14))]
        found = []
        for kind in self.draw.sample(sorted(PERSONAL), k=self.draw.randint(1, 3)):
            value = PERSONAL[kind](self.draw)
            found.append({"kind": kind, "value": value})
            sentences.insert(self.draw.randrange(len(sentences)), f"{self.draw.choice(INTRODUCTIONS)} {value} now.")
        decoy = self.draw.choice(DECOYS)(self.draw)
        sentences.insert(self.draw.randrange(len(sentences)), f"The figure is {decoy} in the table.")
        text = paragraphs(iter(sentences), self.draw, len(sentences))
        for entry in found:
            entry["start"] = text.index(entry["value"])
        return Planted(text, "personal_data", {"personal_data": found, "decoy": decoy})

    def spam(self) -> Planted:
        """A page without worth, of a kind that some published rule is made for."""
        kind = self.draw.choice(("repeated", "keywords", "menu", "signs", "short"))
        if kind == "repeated":
            text = "\n".join([self.english.sentence(self.draw)] * self.draw.randint(20, 60))
        elif kind == "keywords":
            words = self.draw.sample(_KEYWORDS, k=6)
            text = " | ".join(self.draw.choice(words) for _ in range(self.draw.randint(100, 300)))
        elif kind == "menu":
            text = "\n".join(self._menu_entry() for _ in range(self.draw.randint(40, 90)))
        elif kind == "signs":
            signs = ("####", "$$$", "***", ">>>", "{}", "...", "===", "@@")
            text = " ".join(self.draw.choice(signs) for _ in range(self.draw.randint(80, 200)))
        else:
            text = " ".join(self.english.words(self.draw, self.draw.randint(2, 6)))
        return Planted(text, "spam", {"spam": kind})

    def _menu_entry(self) -> str:
        return " ".join(self.english.words(self.draw, self.draw.randint(1, 3))).strip(",").capitalize()

    def site(self, num_pages: int) -> Iterator[Planted]:
        """Pages of one site, which share some lines.

        Args:
            num_pages: How many.
        """
        shared = [f"{self.english.sentence(self.draw)[:-1]} | {self.draw.randrange(10**6)}" for _ in range(3)]
        for _ in range(num_pages):
            own = self.clean()
            yield Planted(
                f"{shared[0]}\n{shared[1]}\n\n{own}\n\n{shared[2]}", "boilerplate", {"lines": shared, "text": own}
            )

    def page(self) -> Planted:
        """An HTML page around a main text, in one of some layouts."""
        title = self.english.sentence(self.draw)[:-1]
        main = self.clean(self.draw.randint(6, 14)).split("\n\n")
        entries = [" ".join(self.english.words(self.draw, 6)) for _ in range(self.draw.randint(3, 5))]
        layout, html, chrome = make_page(self.draw, title, main, entries, links=self.english.words(self.draw, 9))
        text = "\n\n".join([title, main[0], *entries, *main[1:]])
        return Planted(html, "html", {"text": text, "layout": layout, "chrome": chrome})

    def evaluation_items(self, count: int) -> list[dict[str, str]]:
        """Items of a benchmark: long and short questions in English, some in Chinese.

        Args:
            count: How many.
        """
        items = []
        for number in range(count):
            size = self.draw.randint(16, 30) if number % 3 else self.draw.randint(7, 12)
            question = " ".join(self.english.words(self.draw, size)).replace(",", "").capitalize() + "?"
            if number % 5 == 4:
                question = _chinese_question(self.draw)
            items.append({"id": f"item-{number:04d}", "question": question, "answer": self.draw.choice("ABCD")})
        return items

    def contaminated(self, item: dict[str, str]) -> Planted:
        """Prose with an evaluation item in it, as it is or in another dress.

        Args:
            item: Which.
        """
        how = self.draw.choice(("as it is", "in capitals", "without punctuation", "over lines"))
        question = item["question"]
        if how == "in capitals":
            question = question.upper()
        elif how == "without punctuation":
            question = " ".join(re.split(r"[\W_]+", question)).strip()
        elif how == "over lines":
            question = question.replace(" ", "\n", 3)
        before, after = self.clean(self.draw.randint(3, 8)), self.clean(self.draw.randint(3, 8))
        return Planted(f"{before}\n\nQ: {question}\n\n{after}", "contaminated", {"item": item["id"], "how": how})

    def _typographic(self) -> str:
        """English with the quotes and dashes of a word processor: what mojibake most often breaks."""
        text = ""
        while text.isascii():
            text = re.sub(r'"([^"]*)"', r"“\1”", self.clean()).replace("'", "’").replace(", ", " — ", 1)
        return text

    def _sentences(self) -> Iterator[str]:
        while True:
            yield self.english.sentence(self.draw)


def _as_windows_1252(byte: int) -> str:
    try:
        return bytes([byte]).decode("cp1252")
    except UnicodeDecodeError:
        return chr(byte)  # five bytes have no character there; readers then take Latin-1


def _chinese_question(draw: random.Random) -> str:
    a, b, c, d = (draw.randint(11, 9999) for _ in range(4))
    who, whom = draw.sample(("小明", "小红", "王芳", "李强", "张伟", "陈静"), k=2)
    what = draw.choice(("苹果", "铅笔", "邮票", "橘子", "本子", "贝壳"))
    return f"{who}有{a}个{what}，送给{whom}{b}个，又买来{c}箱，每箱{d}个，现在一共有多少个{what}？"


_KEYWORDS = ("cheap", "casino", "watches", "pills", "discount", "free", "bonus", "winner", "credit", "loans", "deal",
             "replica", "viral", "hot", "offer", "click", "best", "price")  # fmt: skip
