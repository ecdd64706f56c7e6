"""`lmstack data train_classifier`: a model of quality from labelled documents."""

import json
from pathlib import Path

import numpy as np

from lmstack.prep.collect.piece import read_piece
from lmstack.prep.collect.reading import Reading
from lmstack.prep.collect.source import Source, list_pieces
from lmstack.prep.document import Document


def train_classifier(
    *,
    output: str,
    good: str | list[str] | None = None,
    bad: str | list[str] | None = None,
    labelled: str | None = None,
    label_field: str = "label",
    text_field: str = "text",
    max_ngram: int = 2,
    l2: float = 1e-3,
    num_folds: int = 5,
    seed: int = 0,
) -> None:
    """Train a classifier of quality, and say by cross-validation how well it tells good from bad.

    Args:
        output: File to write, ending in .npz.
        good: Files of good documents, such as an encyclopedia.
        bad: Files of bad ones, such as an unfiltered crawl.
        labelled: Instead of the two: records with a label that is 1 or true for good ones, 0 or false for bad ones.
        label_field: Field of the label.
        text_field: Field of the text.
        max_ngram: Words of the longest n-gram.
        l2: Weight decay.
        num_folds: Parts of the cross-validation.
        seed: Of the folds.

    Raises:
        ValueError: Files and labels do not fit together.
    """
    from lmstack.prep.quality import classifier

    if (labelled is None) == (good is None or bad is None) or not output.endswith(".npz"):
        raise ValueError("Give `labelled`, or both `good` and `bad`; and an output that ends in .npz.")
    if labelled is not None:
        documents = _documents(labelled, text_field)
        missing = [document.id for document in documents if document.metadata.get(label_field) not in (0, 1)]
        if missing:
            raise ValueError(f"{len(missing)} records have no label 0 or 1 in {label_field!r}. Name the field.")
        labels = [document.metadata[label_field] == 1 for document in documents]
    else:
        assert good is not None
        assert bad is not None
        documents = _documents(good, text_field)
        labels = [True] * len(documents)
        documents += _documents(bad, text_field)
        labels += [False] * (len(documents) - len(labels))
    truth = np.array(labels)
    texts = [document.text for document in documents]
    model, scores = classifier.train_classifier(
        texts, truth, max_ngram=max_ngram, l2=l2, num_folds=num_folds, seed=seed
    )
    model.save(output)
    figures = {
        "documents": len(texts),
        "good": int(truth.sum()),
        "cross_validated_auc": round(classifier.area_under_curve(scores, truth), 4),
        "brier_score": round(float(np.mean((scores - truth) ** 2)), 4),
    }
    Path(output).with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(f"{output}: " + ", ".join(f"{name} {value}" for name, value in figures.items()))


def _documents(paths: str | list[str], text_field: str) -> list[Document]:
    source = Source(paths=paths, text_field=text_field)
    pieces = list_pieces("labelled", source, 1 << 30)
    found = (verdict for piece in pieces for verdict in read_piece(Reading("labelled", source, piece)))
    return [verdict for verdict in found if isinstance(verdict, Document)]
