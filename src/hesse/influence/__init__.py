"""Which training sequences made the model say that? Influence functions with EK-FAC curvature, in nats, token by
token.
"""

from hesse.influence.corpus import Corpus, find_corpus, keep_corpus, open_corpus
from hesse.influence.curation import Selection, mean_scores, select_rows
from hesse.influence.engine import Influence
from hesse.influence.examples import ArrayExamples, Examples, TokenExamples, as_examples
from hesse.influence.experts import has_fused_experts, split_experts
from hesse.influence.factors import Factors, LayerFactors, load_factors, parse_damping
from hesse.influence.facts import Fact, FactWorld, office_world, prose_world
from hesse.influence.huggingface import load_model, load_skeleton, load_tokenizer
from hesse.influence.lexical import bm25_scores, tfidf_paper
from hesse.influence.objective import CausalLMLoss, ClassificationLoss, Loss, LossOutput, RegressionLoss
from hesse.influence.opened import Run, open_run
from hesse.influence.plan import (
    Budget,
    MeasuredRates,
    Plan,
    Proposal,
    StagePlan,
    StatedRates,
    Workload,
    plan_stages,
    propose_plan,
    rates_here,
)
from hesse.influence.plots import plot_layers, plot_pair, plot_scores, plot_spectra
from hesse.influence.query import Query, read_queries, tokenize_query
from hesse.influence.report import Column, ReportData, ReportEntry, ReportQuery, write_report
from hesse.influence.retrieval import mean_reciprocal_rank, recall_at_k
from hesse.influence.scores import Ranked, Scores, open_scores
from hesse.influence.sequences import Sequence, collate, read_rows, tokenize_rows
from hesse.influence.text_losses import MaskedLMLoss, PairExamples, Seq2SeqLoss

__all__ = [
    "ArrayExamples",
    "Budget",
    "CausalLMLoss",
    "ClassificationLoss",
    "Column",
    "Corpus",
    "Examples",
    "Fact",
    "FactWorld",
    "Factors",
    "Influence",
    "LayerFactors",
    "Loss",
    "LossOutput",
    "MaskedLMLoss",
    "MeasuredRates",
    "PairExamples",
    "Plan",
    "Proposal",
    "Query",
    "Ranked",
    "RegressionLoss",
    "ReportData",
    "ReportEntry",
    "ReportQuery",
    "Run",
    "Scores",
    "Selection",
    "Seq2SeqLoss",
    "Sequence",
    "StagePlan",
    "StatedRates",
    "TokenExamples",
    "Workload",
    "as_examples",
    "bm25_scores",
    "collate",
    "find_corpus",
    "has_fused_experts",
    "keep_corpus",
    "load_factors",
    "load_model",
    "load_skeleton",
    "load_tokenizer",
    "mean_reciprocal_rank",
    "mean_scores",
    "office_world",
    "open_corpus",
    "open_run",
    "open_scores",
    "parse_damping",
    "plan_stages",
    "plot_layers",
    "plot_pair",
    "plot_scores",
    "plot_spectra",
    "propose_plan",
    "prose_world",
    "rates_here",
    "read_queries",
    "read_rows",
    "recall_at_k",
    "select_rows",
    "split_experts",
    "tfidf_paper",
    "tokenize_query",
    "tokenize_rows",
    "write_report",
]
