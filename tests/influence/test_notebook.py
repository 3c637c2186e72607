"""Scores and factors as a notebook shows them: the right numbers, and hostile texts as texts."""

from html.parser import HTMLParser

import pytest

from hesse.influence import Plan, StagePlan, Workload, load_factors, open_scores
from hesse.influence.run import open_folder
from tests.hostile import HOSTILE


class Page(HTMLParser):
    """Elements, attributes and text of a piece of HTML, as a browser's tokenizer would see them."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_scores_show_the_strongest_rows(run_folder):
    """Oracle: the ranking; elements and attributes are those of the table, whatever the texts."""
    scores = open_scores(run_folder)
    page = Page(scores._repr_html_())
    assert {tag for tag, _ in page.tags} <= {"p", "b", "table", "thead", "tbody", "tr", "th", "td", "span"}
    assert {name for _, attrs in page.tags for name in attrs} <= {"style", "title"}
    for query in (0, 1):
        assert f"{scores.topk(query, 1)[0].score:+.3g}" in page.text
    assert HOSTILE[0] in page.text  # a prompt
    assert HOSTILE[2] in page.text  # a completion


def test_scores_without_terms(run_folder):
    """Oracle: the ids of an earlier question, whose texts are not looked up."""
    run = open_folder(run_folder)
    earlier = next(
        name.removeprefix("score:")
        for name in run.manifest.stages
        if name.startswith("score:") and name != f"score:{run.stage('score')['latest']}"
    )
    scores = open_scores(run_folder, earlier)
    assert scores.topk(0, 1)[0].id in Page(scores._repr_html_()).text


def test_factors_show_their_layers(run_folder):
    """Oracle: the factors."""
    factors = load_factors(run_folder, open_folder(run_folder).manifest)
    page = Page(factors._repr_html_())
    for name, layer in factors.layers.items():
        assert name in page.text
        assert f"{layer.damping:.3g}" in page.text


def test_plans_show_their_stages():
    """Oracle: the plan's own figures; memory with the model's."""
    gib = 2**30
    stages = (StagePlan("covariance", 60.0, 2 * gib, gib), StagePlan("scores", 30.0, gib, 0))
    page = Page(Plan(stages, gib, Workload(1000, 512.0, 4))._repr_html_())
    cells = page.text.split("disk, GiB")[1]
    assert cells == "covariance6031" + "scores3020" + "in all9031"
    assert "1,000 sequences of 512 tokens, 4 queries" in page.text


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_is_only_text(text):
    """Oracle: the parsed page: no element comes from the text, and no character acts on it."""
    from hesse.influence.notebook import escaped

    page = Page(f"<p>{escaped(text)}</p>")
    assert page.tags == [("p", {})]
    assert not set(page.text) & set("\x00\x1b\x07\u202e\u200b\u2028")
