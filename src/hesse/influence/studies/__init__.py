"""What do models learn from? The published studies of influence, each a function of scores or of a run that returns
numbers and draws them: how thinly influence is spread, in which layers it sits, whether word order matters, whether
languages share it, what changes with scale, what a lexical filter misses, what was copied, and what kind of texts.
"""

from hesse.influence.studies.browse import Browsing, Listed, WordContrast, browse, contrast_words
from hesse.influence.studies.coverage import CoverageStudy, study_coverage
from hesse.influence.studies.crosslingual import LanguageStudy, study_languages
from hesse.influence.studies.layers import LayerStudy, study_layers
from hesse.influence.studies.memorisation import Copied, MemorisationStudy, QueryCopies, study_memorisation
from hesse.influence.studies.scale import ScaleStudy, study_scale
from hesse.influence.studies.tail import QueryTail, TailFit, TailStudy, fit_tail, study_tail
from hesse.influence.studies.wordorder import Wording, WordOrderStudy, study_word_order, word_order_texts

__all__ = [
    "Browsing",
    "Copied",
    "CoverageStudy",
    "LanguageStudy",
    "LayerStudy",
    "Listed",
    "MemorisationStudy",
    "QueryCopies",
    "QueryTail",
    "ScaleStudy",
    "TailFit",
    "TailStudy",
    "WordContrast",
    "WordOrderStudy",
    "Wording",
    "browse",
    "contrast_words",
    "fit_tail",
    "study_coverage",
    "study_languages",
    "study_layers",
    "study_memorisation",
    "study_scale",
    "study_tail",
    "study_word_order",
    "word_order_texts",
]
