"""The kinds of documents of `dirty_corpus.py`, clean and dirty, each with the truth about it."""

import random
import re
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

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
        return paragraphs(self._sentences(), self.draw, num_sentences or self.draw.randint(5, 16))

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
        return Planted(paragraphs(sentences, self.draw, self.draw.randint(8, 20), gap), "foreign", {}, language)

    def mojibake(self) -> Planted:
        """UTF-8 that was read as Windows-1252, and written as UTF-8 again."""
        clean = self.foreign(self.draw.choice(("de", "fr", "es", "ru")))
        broken = "".join(_as_windows_1252(byte) for byte in clean.text.encode())
        return Planted(broken, "mojibake", {"text": clean.text}, clean.language)

    def personal_data(self) -> Planted:
        """Prose with personal data, and with what only looks like it."""
        sentences = [self.english.sentence(self.draw) for _ in range(self.draw.randint(8, 14))]
        found = []
        for kind in self.draw.sample(sorted(_PERSONAL), k=self.draw.randint(1, 3)):
            value = _PERSONAL[kind](self.draw)
            found.append({"kind": kind, "value": value})
            sentences.insert(self.draw.randrange(len(sentences)), f"{self.draw.choice(_INTRODUCTIONS)} {value} now.")
        decoy = self.draw.choice(_DECOYS)(self.draw)
        sentences.insert(self.draw.randrange(len(sentences)), f"The figure is {decoy} in the table.")
        text = paragraphs(iter(sentences), self.draw, len(sentences))
        for entry in found:
            entry["start"] = text.index(entry["value"])
        return Planted(text, "personal_data", {"personal_data": found, "decoy": decoy})

    def spam(self) -> Planted:
        """A page without worth: repeated, a heap of keywords, signs, or next to nothing."""
        kind = self.draw.choice(("repeated", "keywords", "signs", "short"))
        if kind == "repeated":
            text = "\n".join([self.english.sentence(self.draw)] * self.draw.randint(20, 60))
        elif kind == "keywords":
            words = self.draw.sample(_KEYWORDS, k=6)
            text = " | ".join(self.draw.choice(words) for _ in range(self.draw.randint(100, 300)))
        elif kind == "signs":
            signs = ("####", "$$$", "***", ">>>", "{}", "...", "===", "@@")
            text = " ".join(self.draw.choice(signs) for _ in range(self.draw.randint(80, 200)))
        else:
            text = " ".join(self.english.words(self.draw, self.draw.randint(2, 6)))
        return Planted(text, "spam", {"spam": kind})

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
        """An HTML page around a main text."""
        title = self.english.sentence(self.draw)[:-1]
        main = self.clean(self.draw.randint(6, 14))
        body = "\n".join(f"<p>{_escaped(paragraph)}</p>" for paragraph in main.split("\n\n"))
        links = "".join(
            f'<li><a href="/{n}">{w.title()}</a></li>' for n, w in enumerate(self.english.words(self.draw, 9))
        )
        html = _PAGE.format(title=_escaped(title), links=links, body=body, number=self.draw.randrange(10**6))
        return Planted(html, "html", {"text": f"{title}\n\n{main}"})

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

    def _sentences(self) -> Iterator[str]:
        while True:
            yield self.english.sentence(self.draw)


def _as_windows_1252(byte: int) -> str:
    try:
        return bytes([byte]).decode("cp1252")
    except UnicodeDecodeError:
        return chr(byte)  # five bytes have no character there; readers then take Latin-1


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _chinese_question(draw: random.Random) -> str:
    a, b, c, d = (draw.randint(11, 9999) for _ in range(4))
    who, whom = draw.sample(("小明", "小红", "王芳", "李强", "张伟", "陈静"), k=2)
    what = draw.choice(("苹果", "铅笔", "邮票", "橘子", "本子", "贝壳"))
    return f"{who}有{a}个{what}，送给{whom}{b}个，又买来{c}箱，每箱{d}个，现在一共有多少个{what}？"


def _email(draw: random.Random) -> str:
    names = ("anna.meier", "j_smith42", "li.wei", "marie-claire", "office", "k.ivanov")
    hosts = ("example.org", "mail.example.com", "uni.example.edu", "firma.example.de")
    return f"{draw.choice(names)}{draw.randrange(1000)}@{draw.choice(hosts)}"


def _ip(draw: random.Random) -> str:
    return (
        f"{draw.choice((23, 45, 81, 93, 142, 203))}.{draw.randrange(256)}.{draw.randrange(256)}.{draw.randint(1, 254)}"
    )


def _phone(draw: random.Random) -> str:
    digits = [draw.randrange(10) for _ in range(8)]
    return draw.choice(
        (
            f"+1 {draw.randint(201, 989)}-{draw.randint(200, 999)}-{draw.randrange(10**4):04d}",
            f"({draw.randint(201, 989)}) {draw.randint(200, 999)}-{draw.randrange(10**4):04d}",
            "138" + "".join(map(str, digits)),
            f"+49 30 {draw.randint(1000000, 9999999)}",
        )
    )


def _id_cn(draw: random.Random) -> str:
    """With its check digit, GB 11643-1999."""
    born = f"{draw.randint(1950, 2005)}{draw.randint(1, 12):02d}{draw.randint(1, 28):02d}"
    body = f"{draw.choice((110101, 310104, 440305, 510107))}{born}{draw.randrange(1000):03d}"
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return body + "10X98765432"[sum(w * int(d) for w, d in zip(weights, body, strict=True)) % 11]


def _id_us(draw: random.Random) -> str:
    area = draw.choice([n for n in (draw.randint(1, 665), draw.randint(667, 899))])
    return f"{area:03d}-{draw.randint(1, 99):02d}-{draw.randint(1, 9999):04d}"


def _key(draw: random.Random) -> str:
    letters = string.ascii_letters + string.digits
    token = "".join(draw.choices(letters, k=40))
    upper = "".join(draw.choices(string.ascii_uppercase + string.digits, k=16))
    return draw.choice((f"AKIA{upper}", f"ghp_{token[:36]}", f"sk-{token}", f"hf_{token[:34]}"))


_PERSONAL: dict[str, Callable[[random.Random], str]] = {
    "email": _email, "ip": _ip, "phone": _phone, "id_cn": _id_cn, "id_us": _id_us, "key": _key,
}  # fmt: skip
_INTRODUCTIONS = ("Reach us under", "The record says", "Please note", "It was sent from", "On file we have")
_DECOYS: tuple[Callable[[random.Random], str], ...] = (
    lambda draw: f"{draw.randint(1, 99)},{draw.randrange(1000):03d},{draw.randrange(1000):03d}",
    lambda draw: f"{draw.randint(1990, 2025)}-{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d}",
    lambda draw: f"{draw.randint(1, 20)}.{draw.randrange(10)}.{draw.randrange(10)}",
    lambda draw: f"{draw.random():.12f}",
    lambda draw: f"@{draw.choice(('decorator', 'property', 'staticmethod'))}",
)
_KEYWORDS = ("cheap", "casino", "watches", "pills", "discount", "free", "bonus", "winner", "credit", "loans", "deal",
             "replica", "viral", "hot", "offer", "click", "best", "price")  # fmt: skip
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body {{ margin: 0; color: #222; }} nav li {{ display: inline; }}</style>
<script>window.tracker = {{ id: {number}, send: function (page) {{ return page + 1; }} }};</script></head>
<body><header><nav><ul>{links}</ul></nav></header>
<div class="cookie-banner">We use cookies to improve your experience. <button>Accept all</button></div>
<main><article><h1>{title}</h1>
{body}
</article></main>
<aside class="sidebar"><h3>Related posts</h3><ul>{links}</ul></aside>
<footer><p>Copyright 2024 Example Media No. {number}. All rights reserved.</p><a href="/terms">Terms</a></footer>
</body></html>
"""
