"""Every stage that a config can name, by its `kind`."""

from lmstack.prep.datatrove import DatatroveFilter
from lmstack.prep.decontamination import Decontamination
from lmstack.prep.deduplication.exact import ExactDuplicates
from lmstack.prep.deduplication.lines import RepeatedLines
from lmstack.prep.deduplication.near import NearDuplicates
from lmstack.prep.deduplication.substrings import RepeatedSubstrings
from lmstack.prep.extraction import Extract
from lmstack.prep.language import IdentifyLanguage
from lmstack.prep.normalisation import Normalise
from lmstack.prep.privacy import MaskPersonalData
from lmstack.prep.quality.c4 import C4
from lmstack.prep.quality.code import Code
from lmstack.prep.quality.fineweb import FineWeb
from lmstack.prep.quality.gopher import Gopher
from lmstack.prep.quality.repetition import Repetition
from lmstack.prep.quality.scored import PerplexityBuckets, QualityClassifier
from lmstack.prep.quality.word_list import WordList

StageConfig = (
    Extract
    | Normalise
    | IdentifyLanguage
    | Gopher
    | Repetition
    | C4
    | FineWeb
    | Code
    | WordList
    | QualityClassifier
    | PerplexityBuckets
    | MaskPersonalData
    | ExactDuplicates
    | RepeatedLines
    | NearDuplicates
    | RepeatedSubstrings
    | Decontamination
    | DatatroveFilter
)
