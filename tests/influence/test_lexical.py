import math

import numpy as np
import pytest

from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.influence.lexical import bm25_scores, tfidf_paper


def random_tokens(rng, number, vocabulary=12):
    return [rng.integers(0, vocabulary, rng.integers(0, 9)) for _ in range(number)]


def idf(token, documents):
    seen = sum(token in document for document in documents)
    return math.log(1 + (len(documents) - seen + 0.5) / (seen + 0.5))


def bm25_by_loop(query, document, documents, k1, b):
    average = sum(map(len, documents)) / len(documents)
    total = 0.0
    for token in query:
        count = list(document).count(token)
        norm = k1 * (1 - b + b * len(document) / average)
        if count:
            total += idf(token, documents) * count * (k1 + 1) / (count + norm)
    return total


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.0), (2.0, 1.0)])
def test_bm25_equals_its_formula(k1, b):
    """Oracle: the formula, in loops over tokens, repeated query tokens counted."""
    rng = np.random.default_rng(0)
    queries, documents = random_tokens(rng, 5), random_tokens(rng, 9)
    expected = [[bm25_by_loop(q, d, documents, k1, b) for d in documents] for q in queries]
    np.testing.assert_allclose(bm25_scores(queries, documents, k1, b), expected, rtol=1e-5, atol=1e-6)


def test_tfidf_is_the_idf_of_shared_tokens():
    """Oracle: the sum of IDF over distinct shared tokens, since (k + 1)/(k + 1) = 1, whatever k."""
    rng = np.random.default_rng(1)
    queries, documents = random_tokens(rng, 5), random_tokens(rng, 9)
    expected = [[sum(idf(t, documents) for t in set(q.tolist()) & set(d.tolist())) for d in documents] for q in queries]
    for k in (0.5, 1.5):
        np.testing.assert_allclose(tfidf_paper(queries, documents, k), expected, rtol=1e-5, atol=1e-6)


def test_order_of_documents_does_not_matter():
    """Oracle: invariance under a permutation of the documents."""
    rng = np.random.default_rng(2)
    queries, documents = random_tokens(rng, 4), random_tokens(rng, 8)
    order = rng.permutation(8)
    shuffled = bm25_scores(queries, [documents[i] for i in order])
    np.testing.assert_allclose(shuffled, bm25_scores(queries, documents)[:, order], rtol=1e-6)


def test_tokens_that_no_document_has_change_nothing():
    """Oracle: invariance; such tokens are ignored however large their ids."""
    documents = [np.array([1, 2]), np.array([2, 3])]
    known, unknown = np.array([1]), np.array([1, 77, 77])
    scores = bm25_scores([known, unknown, np.array([], dtype=int)], documents)
    np.testing.assert_array_equal(scores[0], scores[1])
    assert not scores[2].any()


@pytest.mark.parametrize("function", [bm25_scores, tfidf_paper])
def test_refuses_bad_input(function):
    """Oracle: the documented errors, each naming its argument."""
    good = [np.array([1, 2])]
    with pytest.raises(ArgumentError, match="documents"):
        function(good, [])
    with pytest.raises(ArgumentError, match=r"queries\[0\]"):
        function([np.array([-1])], good)
    with pytest.raises(ArgumentTypeError, match=r"documents\[0\]"):
        function(good, [np.array([0.5])])


def test_refuses_constants_out_of_range():
    """Oracle: the documented errors."""
    good = [np.array([1, 2])]
    with pytest.raises(ArgumentError, match="k1"):
        bm25_scores(good, good, k1=-1)
    with pytest.raises(ArgumentError, match="b:"):
        bm25_scores(good, good, b=1.5)
    with pytest.raises(ArgumentError, match="k:"):
        tfidf_paper(good, good, k=-1)
