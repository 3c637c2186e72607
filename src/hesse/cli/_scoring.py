"""What scoring on the command line and from the viewer share: a run's own model, its texts, and one call."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hesse.influence import Query, Scores
    from hesse.influence.distributed import Team
    from hesse.influence.run import RunFolder
    from hesse.influence.sequences import Row
    from hesse.influence.solvers import Solver
    from hesse.web.asking import AskFunction

__all__ = ["load_of", "question_scorer", "score_queries"]


def load_of(run: Path, *, needs_texts: bool, trust_remote_code: bool) -> tuple["RunFolder", Any, Any]:
    """Open a fitted run, and load the model and tokenizer that it is about.

    Parameters
    ----------
    run : Path
        The run.
    needs_texts : bool
        Refuse a run that keeps no training texts.
    trust_remote_code : bool
        From the command's own flag.

    Returns
    -------
    tuple
        The folder, the model in eval mode, the tokenizer.

    Raises
    ------
    ArgumentError
        If the run was not made by `hesse influence fit`, or keeps no texts.
    ArtifactError
        If the tokenizer is not the one of the fit.
    """
    from hesse.cli._model import load
    from hesse.errors import ArgumentError, ArtifactError
    from hesse.influence.huggingface import tokenizer_hash
    from hesse.influence.run import open_folder

    folder = open_folder(run)
    info = folder.manifest.config["info"]
    if "model" not in info:
        raise ArgumentError(f"run: {run} does not say which model it is of; it was not made by `hesse influence fit`")
    if needs_texts and "train" not in folder.stage("corpus"):
        raise ArgumentError(f"run: {run} keeps no training texts; finish `hesse influence fit`, or pass --data")
    network, tokenizer = load(info, trust_remote_code=trust_remote_code)
    if info.get("tokenizer") not in (None, tokenizer_hash(tokenizer)):
        raise ArtifactError(
            f"run: {run} was fitted on texts cut by another tokenizer than {info['model']} has now; fit again"
        )
    return folder, network, tokenizer


def score_queries(
    folder: "RunFolder",
    network: Any,
    tokenizer: Any,
    asked: "list[Query]",
    rows: "list[Row] | None" = None,
    *,
    team: "Team | None" = None,
    solver: "Solver | None" = None,
    **settings: Any,
) -> "Scores":
    """Score rows, or the training texts of the run, against queries; texts and questions are kept in the run.

    Parameters
    ----------
    folder, network, tokenizer : RunFolder, PreTrainedModel and tokenizer
        From `load_of`.
    asked : list of Query
        What to trace.
    rows : list of Row, optional
        Default: the training texts.
    team : Team, optional
        Processes that share the work. Default: this one alone.
    solver : PCG, CG or LiSSA, optional
        Solves each query. Default: the factors of the run answer.
    **settings
        Of `Influence.score`.

    Returns
    -------
    Scores
        Finished.
    """
    from hesse.cli._model import build
    from hesse.influence.corpus import keep_corpus, open_corpus
    from hesse.influence.distributed import ALONE
    from hesse.influence.query import tokenize_query
    from hesse.influence.sequences import fingerprint, tokenize_rows

    config, info = folder.manifest.config, folder.manifest.config["info"]
    run, length, team = folder.path, info["max_length"], ALONE if team is None else team
    questions = [tokenize_query(query, tokenizer, length) for query in asked]
    if rows is None:
        sequences = open_corpus(run, "train").sequences()
    else:
        sequences = tokenize_rows(rows, tokenizer, length)
        team.first(lambda: keep_corpus(run, f"data-{fingerprint(sequences)[:12]}", sequences))
    team.first(lambda: keep_corpus(run, f"queries-{fingerprint(questions)[:12]}", questions))
    chosen = config if solver is None else config | {"strategy": solver}
    return build(network, chosen, info["modules"]).score(questions, sequences, run, team=team, **settings)


def question_scorer(run: Path, *, trust_remote_code: bool) -> "AskFunction":
    """Load the model of a run, and return what scores a new question with it, word by word.

    Parameters
    ----------
    run : Path
        Whose model is loaded; questions about other runs of the same model are answered too.
    trust_remote_code : bool
        From the command's own flag.

    Returns
    -------
    callable
        (run, prompt, completion) -> path of the scores inside the run.
    """
    import hashlib

    from hesse.influence import Query

    _folder, network, tokenizer = load_of(run, needs_texts=True, trust_remote_code=trust_remote_code)

    def ask(path: Path, prompt: str, completion: str) -> str:
        from hesse.influence.run import open_folder

        name = "asked-" + hashlib.sha256(f"{len(prompt)} {prompt}{completion}".encode()).hexdigest()[:8]
        scores = score_queries(
            open_folder(path),
            network,
            tokenizer,
            [Query(name, prompt, completion)],
            per_token=True,
            per_layer=True,
            per_query_token=True,
            checkpoint_seconds=1.0,
            progress=False,
        )
        return scores.folder

    return ask
