"""Made-up prose for `dirty_corpus.py`: English after Python's own documentation, and five other languages from phrases.

English is a Markov chain of order 1 over the words of the language reference and the library's docstrings; the other
languages join phrases of a subject, a verb, an object and a circumstance. All sentences of the phrases are our own.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain, pairwise

from lmstack.prep import stdlib_corpus

_SENTENCE = re.compile(r"[A-Z][a-z][^\n.!?<>{}\[\]|`_=*#@]{30,300}[.!?](?=\s)")
_FEWEST_WORDS, _MOST_WORDS = 8, 24

PHRASES: dict[str, tuple[tuple[str, ...], ...]] = {
    "de": (
        ("Der alte Lehrer", "Meine Großmutter", "Das kleine Mädchen", "Ein müder Wanderer", "Die junge Ärztin",
         "Unser Nachbar", "Der fleißige Bäcker", "Die neue Bürgermeisterin", "Ein fröhlicher Gärtner", "Der Zug"),
        ("sieht", "findet", "zeigt", "verlässt", "erreicht", "beschreibt", "vergisst", "bewundert", "sucht", "malt"),
        ("die grüne Brücke", "den hohen Turm", "das Haus am Fluss", "einen Brief aus der Stadt", "die schönen Äpfel",
         "den Weg durch den Wald", "ein Bild von früher", "das große Tor", "die Straße zum Meer", "den Garten"),
        ("am frühen Morgen", "nach dem Regen", "mit großer Freude", "ohne ein Wort zu sagen", "während des Festes",
         "kurz vor Mitternacht", "an jedem Sonntag", "wie in alten Zeiten", "trotz der Kälte", "zusammen mit Freunden"),
    ),
    "fr": (
        ("Le vieux marin", "Ma petite sœur", "Un étranger", "La boulangère", "Le médecin du village", "Notre voisine",
         "L’élève appliqué", "Une dame élégante", "Le facteur", "Mon frère aîné"),
        ("regarde", "découvre", "préfère", "traverse", "décrit", "oublie", "répare", "achète", "dessine", "cherche"),
        ("la maison près de la forêt", "un bateau blanc", "les fleurs du marché", "le pont de pierre", "une lettre",
         "le château au bord de l’eau", "des pêches mûres", "la rue étroite", "un livre très ancien", "le jardin"),
        ("à la tombée de la nuit", "pendant l’été", "avec beaucoup de soin", "sans faire de bruit", "après le dîner",
         "depuis son arrivée", "malgré la pluie", "chaque dimanche", "comme autrefois", "au début du mois"),
    ),
    "es": (
        ("El viejo pescador", "Mi abuela", "La niña pequeña", "Un viajero cansado", "La doctora", "Nuestro vecino",
         "El panadero", "Una mujer elegante", "El cartero", "Mi hermano mayor"),
        ("mira", "encuentra", "describe", "cruza", "olvida", "compra", "dibuja", "busca", "recuerda", "limpia"),
        ("la casa junto al río", "un barco blanco", "las flores del mercado", "el puente de piedra", "una carta",
         "el castillo en la montaña", "los libros antiguos", "la calle estrecha", "el jardín", "un reloj de oro"),
        ("al caer la noche", "durante el verano", "con mucho cuidado", "sin hacer ruido", "después de la cena",
         "desde su llegada", "a pesar de la lluvia", "cada domingo", "como en otros tiempos", "a principios de mes"),
    ),
    "ru": (
        ("Старый учитель", "Моя бабушка", "Маленькая девочка", "Усталый путник", "Молодой врач", "Наш сосед",
         "Весёлый садовник", "Новый директор", "Мой старший брат", "Один рыбак"),
        ("видит", "находит", "показывает", "покидает", "описывает", "забывает", "рисует", "ищет", "помнит", "любит"),
        ("зелёный мост", "высокую башню", "дом у реки", "письмо из города", "красивые яблоки", "дорогу через лес",
         "старую картину", "большие ворота", "улицу, ведущую к морю", "тихий сад"),
        ("рано утром", "после дождя", "с большой радостью", "не говоря ни слова", "во время праздника",
         "незадолго до полуночи", "каждое воскресенье", "как в прежние времена", "несмотря на холод", "вместе с нами"),
    ),
    "zh": (
        ("老渔夫", "我的祖母", "那个小女孩", "疲惫的旅人", "年轻的医生",
         "我们的邻居", "勤劳的面包师", "新来的校长", "快乐的园丁", "邮递员"),
        ("看见了", "找到了", "描述着", "离开了", "到达了",
         "忘记了", "修理好", "买下了", "画出了", "想起了"),
        ("河边的房子", "一艘白色的船", "市场上的鲜花", "那座石桥", "城里寄来的信",
         "山上的城堡", "许多旧书", "狭窄的街道", "安静的花园", "一块金表"),
        ("在清晨的时候", "下过雨以后", "带着极大的喜悦", "一句话也没有说", "在节日期间",
         "快到半夜的时候", "每个星期天都这样", "就像从前一样", "尽管天气寒冷", "和朋友们一起"),
    ),
}  # fmt: skip
"""Subjects, verbs, objects and circumstances by language."""


class English:
    """Sentences that follow one another as words do in Python's documentation."""

    def __init__(self) -> None:
        """Count which word follows which."""
        names = ("python:reference", "python:docstrings")
        texts = chain.from_iterable(stdlib_corpus.documents(n, 0, len(stdlib_corpus.sizes(n))) for n in names)
        self._next: dict[str, list[str]] = defaultdict(list)
        self._openings: list[str] = []
        for text, _ in texts:
            for sentence in _SENTENCE.findall(" ".join(text.split()) + " "):
                words = sentence.split()
                self._openings.append(words[0])
                for word, following in pairwise(words):
                    self._next[word].append(following)

    def sentence(self, draw: random.Random) -> str:
        """A sentence of some words.

        Args:
            draw: Source of chance.
        """
        length = draw.randint(_FEWEST_WORDS, _MOST_WORDS)
        words = [draw.choice(self._openings)]
        while len(words) < length:
            followers = self._next.get(words[-1])
            word = followers[int(draw.random() * len(followers))] if followers else draw.choice(self._openings)
            words.append(word if followers else word.lower())
        words = [word.rstrip(".!?:;") for word in words]
        return " ".join(words).rstrip(",") + "."

    def words(self, draw: random.Random, count: int) -> list[str]:
        """A run of words without capitals and stops.

        Args:
            draw: Source of chance.
            count: How many.
        """
        found: list[str] = []
        while len(found) < count:
            found += self.sentence(draw).lower().strip(".").split()
        return found[:count]


def foreign_sentence(language: str, draw: random.Random) -> str:
    """A sentence in one of the languages of `PHRASES`.

    Args:
        language: Its code.
        draw: Source of chance.
    """
    parts = [draw.choice(phrases) for phrases in PHRASES[language]]
    if language == "zh":
        return "".join(parts) + "。"
    return " ".join(parts) + "."


def paragraphs(sentences: Iterator[str], draw: random.Random, num_sentences: int, gap: str = " ") -> str:
    """A text of paragraphs of three to five sentences.

    Args:
        sentences: Where they come from.
        draw: Source of chance.
        num_sentences: How many.
        gap: What stands between sentences.
    """
    found: list[str] = []
    remaining = num_sentences
    while remaining > 0:
        count = min(remaining, draw.randint(3, 5))
        found.append(gap.join(next(sentences) for _ in range(count)))
        remaining -= count
    return "\n\n".join(found)
