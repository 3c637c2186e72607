"""The front door: fit the curvature of a model once, then ask which training sequences moved which outputs."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from hesse.curvature.ekfac import Absolute, Damping, Relative
from hesse.curvature.layers import Picker, select_layers
from hesse.curvature.stored_weights import floating_dtype, keep_differentiable
from hesse.errors import ArgumentError
from hesse.influence.candidates import self_scores
from hesse.influence.checks import (
    check_batching,
    check_dtype,
    check_loss,
    check_supervised,
    check_tokens,
    of_kind,
    one_of,
)
from hesse.influence.distributed import ALONE, Team, whole_tensors
from hesse.influence.examples import Examples, as_examples, split_targets
from hesse.influence.experts import has_fused_experts
from hesse.influence.factors import Factors, check_against, damping_text, load_factors
from hesse.influence.fit import FitSettings, fit_factors, sum_dtype
from hesse.influence.identity import loss_identity
from hesse.influence.objective import CausalLMLoss, Loss
from hesse.influence.passes import Fisher, Measurement, Pass, check_model, in_full_precision
from hesse.influence.prefilter import (
    Prefilter,
    ProjectedIndex,
    ProjectedScores,
    build_projected,
    check_sample,
    choose_for_run,
    open_projected,
    sample_agreement,
)
from hesse.influence.question import Question, answer, num_refined
from hesse.influence.run import RunFolder, open_folder, start_folder, writing_run
from hesse.influence.score import PrepareFunction, ScoreSettings, prepare_queries
from hesse.influence.scores import Scores, open_scores
from hesse.influence.settings import (
    FACTORS,
    check_blocks,
    check_question,
    check_refining,
    check_same_run,
    check_team,
    fitted_on,
    question_settings,
    take_up,
)
from hesse.influence.solvers.options import CG, PCG, FactorStrategy, LiSSA, Solver, solver_named
from hesse.influence.solvers.solve import solve
from hesse.influence.solvers.stored import StoredSolver, solved_self_scores, training_set
from hesse.influence.solvers.system import DampedGaussNewton, damped_ggn
from hesse.influence.strategy import Source, Strategy
from hesse.io import config_hash, hash_tensors

if TYPE_CHECKING:
    from hesse.influence.trajectory.along import FollowedRun

__all__ = ["Influence"]

_SOLVERS = ("pcg", "cg", "lissa")


class Influence:
    """Influence functions on one trained model: I(q, n) = -(1/N) ∇f_qᵀ (G + λI)⁻¹ ∇L(z_n).

    G is the Gauss-Newton matrix of the training objective, the mean over sequences of the sum of token losses,
    approximated by one eigenvalue-corrected Kronecker block a weight matrix; f_q is the log-probability of a query's
    completion. A score is the first-order change of f_q, in nats, when one more copy of z_n joins the N training
    sequences. Positive raises it.

    Exact: linear algebra within a block, the sum over tokens and layers. Approximate: linear in the added copy, G for
    the Hessian, independent blocks, the Kronecker eigenbasis, labels sampled once, tracked layers only.

    Parameters
    ----------
    model : nn.Module
        In eval mode, on any device, in float32, bfloat16 or float64. Not changed.
    modules : str or callable, default "mlp"
        Layers to track; see `select_layers`. The MLP matrices are the published choice.
    loss : Loss, default CausalLMLoss()
        The training objective, summed over tokens. A run is taken up again only with the same loss: the same class,
        code and attributes, or, where it has one, the same ``fingerprint`` (text, or a method that returns text).
    strategy : {"ekfac", "kfac", "shampoo", "diagonal", "identity"}, {"pcg", "cg", "lissa"}, PCG, CG, LiSSA or Source
        Default: "ekfac". "shampoo" measures eigenvalues in the basis of whole gradients' moments. "identity" is the
        gradient dot product: nats a unit of learning rate. The others solve each query with products of the true
        damped Gauss-Newton matrix; they fit the factors that they name, so that one run answers with and without them.
        `Source` follows a recorded training run through its checkpoints, without damping.
    fisher : {"sampled", "empirical", "exact"}, default "sampled"
        Labels of the factors: drawn from the model (unbiased for G), the data's (biased), or all of them (tests, small
        heads).
    damping : Relative or Absolute, default Relative(0.1)
        λ; relative to the mean eigenvalue of each matrix, so that the scale of the loss does not matter.
    positions : {"gradient", "attended"}, default "gradient"
        Which positions enter A: those up to the last supervised one, or every non-padding one.
    blocks : int, default 1
        Diagonal blocks a factor is split into; memory falls by that factor, the eigendecomposition by its square.
    seed : int, default 0
        Of the sampled labels: the same whatever the batch size, order or number of restarts.
    allow_head : bool, default False
        Whether ``modules`` may pick the output embedding.

    Raises
    ------
    ArgumentError
        If an option is unknown, no layer matches, or the model is in training mode or in another dtype.
    ArgumentTypeError
        If an argument is of another kind.

    References
    ----------
    R. Grosse, J. Bae, C. Anil et al. (2023), arXiv 2308.03296. T. George et al. (2018), arXiv 1806.03884.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        modules: Picker = "mlp",
        loss: Loss | None = None,
        strategy: Strategy = "ekfac",
        fisher: Fisher = "sampled",
        damping: Damping | float = Relative(0.1),
        positions: Literal["gradient", "attended"] = "gradient",
        blocks: int = 1,
        seed: int = 0,
        allow_head: bool = False,
    ) -> None:
        of_kind("model", model, nn.Module, "a torch module")
        of_kind("modules", modules, (str, Callable), "text or a function of name and module")
        of_kind("damping", damping, (Real, Relative, Absolute), "a number, Relative or Absolute")
        of_kind("blocks", blocks, Integral, "a whole number")
        of_kind("seed", seed, Integral, "a whole number")
        solver = solver_named(strategy) if isinstance(strategy, str) and strategy in _SOLVERS else strategy
        if isinstance(solver, str):
            if solver == "source":
                raise ArgumentError("strategy: it follows a recorded training run; pass Source(folder of the record)")
            one_of("strategy", solver, (*FACTORS, *_SOLVERS))
        else:
            of_kind("strategy", solver, (PCG, CG, LiSSA, Source), "text, PCG, CG, LiSSA or Source")
        one_of("fisher", fisher, ("sampled", "empirical", "exact"))
        one_of("positions", positions, ("gradient", "attended"))
        if blocks < 1:
            raise ArgumentError(f"blocks: expected >= 1, got {blocks}")
        if not 0 <= seed < 2**63:
            raise ArgumentError(f"seed: expected 0 to 2**63 - 1, got {seed}")
        check_model(model)
        keep_differentiable(model)
        if modules in ("mlp", "all-linear") and has_fused_experts(model):
            raise ArgumentError(
                f"model: {type(model).__name__} keeps its experts in one tensor, where they cannot be tracked; call "
                "hesse.influence.split_experts(model) first"
            )
        self.model = model
        self.loss: Loss = CausalLMLoss() if loss is None else loss
        check_loss(self.loss, fisher)
        self.layers = select_layers(model, modules, allow_head=allow_head)
        self.solver: Solver | None = None if isinstance(solver, (str, Source)) else solver
        self.strategy: FactorStrategy = (
            solver if isinstance(solver, str) else "ekfac" if isinstance(solver, Source) else solver.factors
        )
        self.fisher: Fisher = fisher
        self.damping: Damping = damping if isinstance(damping, (Relative, Absolute)) else Relative(float(damping))
        self.positions = positions
        self.blocks = int(blocks)
        self.seed = int(seed)
        self.dtype = floating_dtype(model)
        check_dtype(self.dtype, self.layers)
        self._train: Examples | None = None  # what was fitted on, which solvers multiply with
        self._stranger = secrets.token_hex(6)  # of a loss that has no fingerprint
        self._wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        self._followed = self._follow(solver) if isinstance(solver, Source) else None

    def fit(
        self,
        dataset: Any,
        run_dir: Path | str,
        *,
        max_sequences: int | None = 100_000,
        batch_tokens: int = 4096,
        batch_size: int | None = None,
        unit_size: int = 256,
        checkpoint_seconds: float = 30.0,
        resume: bool = True,
        overwrite: bool = False,
        progress: bool | None = None,
        info: Mapping[str, Any] | None = None,
        team: Team = ALONE,
    ) -> Factors:
        """Fit the factors on the training set and keep them in a run; the same call again resumes, or returns at once.

        Parameters
        ----------
        dataset : Examples, or anything `as_examples` takes
            The whole training set: its size is the N of the scores.
        run_dir : path
            Folder of the run; made if missing.
        max_sequences : int or None, default 100,000
            Fit the factors on a random subset of at most this size: what more would add is small beside its cost. N
            stays that of the whole set. None: on all.
        batch_tokens : int, default 4096
            Padded tokens a batch.
        batch_size : int, optional
            Exactly this many sequences a batch instead, in their order.
        unit_size : int, default 256
            Sequences between two possible checkpoints.
        checkpoint_seconds : float, default 30
            From one checkpoint to the next, about; 0 is one after every unit.
        resume, overwrite : bool
            Take up a run that is there; delete one with other settings.
        progress : bool, optional
            Show bars on stderr. Default: if it is a terminal.
        info : mapping, optional
            Notes kept in the manifest; no part of the run's identity.
        team : Team, default alone
            The processes that share the work, from `join_team`; all make this call. Factors are those of one process up
            to rounding, and any number of processes can take up what others began.

        Returns
        -------
        Factors
            As loaded from the run.

        Raises
        ------
        ArgumentError
            If the folder holds a run with other settings, or an argument is out of range.
        """
        examples = as_examples(dataset)
        order = fitted_on(len(examples), max_sequences, self.seed)
        check_batching(batch_tokens, batch_size, unit_size)
        check_model(self.model)
        check_tokens(self.model, examples, "dataset")
        check_blocks(self.layers, self.strategy, self.blocks)
        check_team(team, self.model, self.solver)
        self._train = examples
        if self._followed is not None:
            self._followed.record.check_data(examples)
        config = self._config() | {"num_sequences": len(examples), "fitted_on": len(order), "info": dict(info or {})}
        parents = {"model": self.model_hash(), "data": examples.fingerprint()}
        folder = Path(run_dir)
        cutting = {"batch_tokens": batch_tokens, "batch_size": batch_size, "unit_size": unit_size}
        team.agree(config | parents | cutting)
        with writing_run(folder, team):
            manifest = team.first(
                lambda: start_folder(folder, config, parents, resume=resume, overwrite=overwrite).manifest
            )
            run = RunFolder(folder, manifest, team)
            if self._followed is not None:
                self._followed.fit(
                    run, self._pass(), examples, order, fisher=self.fisher, blocks=self.blocks, overwrite=overwrite,
                    batch_tokens=batch_tokens, checkpoint_seconds=checkpoint_seconds,
                    show_progress=_shown(progress, team),
                )  # fmt: skip
            else:
                settings = FitSettings(
                    order,
                    self._wide,
                    sum_dtype(self.dtype),
                    batch_tokens,
                    batch_size,
                    unit_size,
                    checkpoint_seconds,
                    _shown(progress, team),
                )
                fit_factors(run, self._pass(), examples, self.strategy, self.fisher, self.blocks, settings)
            return load_factors(folder, run.manifest, device=self._device)

    def score(
        self,
        queries: Any,
        dataset: Any,
        run_dir: Path | str,
        *,
        rank: int | None = 32,
        refine_topk: int | None = None,
        per_layer: bool = False,
        per_token: bool = False,
        per_query_token: bool = False,
        measurement: Measurement | None = None,
        measurement_name: str | None = None,
        units: Literal["nats", "raw"] = "nats",
        batch_tokens: int = 4096,
        batch_size: int | None = None,
        unit_size: int = 256,
        checkpoint_seconds: float = 30.0,
        query_memory: int = 8 << 30,
        top_k: int | None = None,
        prefilter: Prefilter | None = None,
        progress: bool | None = None,
        info: Mapping[str, Any] | None = None,
        team: Team = ALONE,
    ) -> Scores:
        """Score sequences against queries with the factors of a run; the same call again resumes, or returns at once.

        Parameters
        ----------
        queries : Examples, or anything `as_examples` takes
            Labels on the completion only.
        dataset : Examples, or anything `as_examples` takes
            Candidates: the training set, or other texts (the score is then the effect of adding them).
        run_dir : path
            A run that `fit` has finished for this model.
        rank : int or None, default 32
            Keep each preconditioned query gradient at this rank. None, or no less than the matrix: full rank.
        refine_topk : int, optional
            Score this many proponents and opponents of each query again at full rank, in float32. Default: 500; 0 with
            per_layer or per_token, whose terms at full rank cost 2mp a token and query. Nothing is done again where the
            first pass is at full rank in float32 or float64.
        per_layer, per_token : bool
            Keep the terms of the sum as well. They add up to the score: those of a pair that was scored again are
            computed again with it.
        per_query_token : bool, default False
            Score each token of a completion by itself, and add up: costs as much as so many more queries, and tells
            which rows moved which word. `Scores.by_target` and `Scores.pairs` read them.
        measurement : callable, optional
            Explain (model, batch) -> (B,) instead of the log-probability of the completion.
        measurement_name : str, optional
            Names the measurement in the run; needed with one, so that a restart knows its scores.
        units : {"nats", "raw"}, default "nats"
            "raw" leaves out the factor 1/N.
        batch_tokens, batch_size, unit_size, checkpoint_seconds, progress, info : see `fit`
            As there.
        query_memory : int, default 8 GiB
            Refuse, before any work, queries that would take more.
        top_k : int, optional
            Keep this many proponents and as many opponents of each query in place of all scores: O(top_k) memory and
            disk a query, however many rows there are. They are those of the whole matrix; of a row that was cut into
            several sequences all are refined, or none. Default: keep all scores.
        prefilter : Prefilter, optional
            Score only sequences that share tokens with a query, and a random slice, from which `estimate_missed` tells
            what was left out. N stays that of the training set. A score is that of the whole run bit for bit where
            sequences are not batched together (``batch_size=1``), else up to rounding. Default: score all.
        team : Team, default alone
            As of `fit`. The scores are those of one process.

        Returns
        -------
        Scores
            In nats, positive raises the completion's log-probability.

        Raises
        ------
        ArgumentError
            If the fit has not finished, or an argument is out of range.
        ArtifactError
            If the factors belong to another model.
        """
        check_question(
            loss=self.loss, rank=rank, refine_topk=refine_topk, per_layer=per_layer, per_token=per_token,
            per_query_token=per_query_token, measurement=measurement, measurement_name=measurement_name, units=units,
            top_k=top_k, prefilter=prefilter,
        )  # fmt: skip
        asked, candidates = as_examples(queries, argument="queries"), as_examples(dataset)
        check_batching(batch_tokens, batch_size, unit_size)
        check_model(self.model)
        check_tokens(self.model, asked, "queries")
        check_tokens(self.model, candidates, "dataset")
        rank, top_k = (None if value is None else int(value) for value in (rank, top_k))
        refine_topk = num_refined(refine_topk, self.layers, rank, self.dtype, terms=per_layer or per_token)
        settings = ScoreSettings(
            rank, per_layer, per_token, batch_tokens, batch_size, unit_size, checkpoint_seconds, query_memory,
            _shown(progress, team),
        )  # fmt: skip
        if refine_topk:
            check_refining(self._pass(), settings)
        if measurement is None:
            check_supervised(asked, self.loss)
        targets = split_targets(asked) if per_query_token else None
        check_team(team, self.model, self.solver)
        folder = Path(run_dir)
        open_folder(folder)  # no lock, and so no folder, where there is no run
        with writing_run(folder, team):
            run = RunFolder(folder, team.first(lambda: take_up(folder).manifest), team)
            check_same_run(run, self.model_hash(), self._config())
            factors = load_factors(folder, run.manifest, device=self._device)
            run_pass, exact_pass, prepare_fn = self._stages(run)
            check_against(run_pass.layers, factors, str(folder))
            description = question_settings(
                asked, candidates, rank=rank, refine_topk=refine_topk, per_layer=per_layer, per_token=per_token,
                per_query_token=per_query_token, measurement_name=measurement_name, units=units, top_k=top_k,
                prefilter=prefilter, solver=self.solver,
            )  # fmt: skip
            team.agree(description | {"unit_size": unit_size, "batch_tokens": batch_tokens, "batch_size": batch_size})
            where = f"scores/{config_hash(description)[:16]}"
            state = run.stage(f"score:{where}")
            if not state.get("done"):
                total = 1 if units == "raw" else int(run.manifest.config["num_sequences"])
                fresh = {"sequences": 0, "parts": [], "prepared": False, "done": False, "info": dict(info or {})}
                state = state or description | fresh
                chosen: Examples = candidates
                if prefilter is not None:
                    shown = settings.show_progress
                    chosen, state = choose_for_run(run, where, state, asked, candidates, prefilter, show_progress=shown)
                question = Question(where, asked, chosen, total, refine_topk, settings, measurement, targets, top_k)
                if self.solver is not None:
                    whole = exact_pass()
                    system = self._system(run, whole, factors, candidates)
                    prepare_fn = StoredSolver(run, where, state, system, self.solver, whole)
                    prepare_fn.solve_all(question.scored, settings, measurement)  # all ranks, each queries of its own
                answer(
                    run, question, state, run_pass, factors, exact_pass, dtype=self.dtype, prepare_fn=prepare_fn
                )  # fmt: skip
            run.commit({"score": {"latest": where}})
            return open_scores(run, where)

    def index(
        self,
        dataset: Any,
        run_dir: Path | str,
        *,
        k_in: int = 16,
        k_out: int = 16,
        dtype: Literal["float16", "bfloat16", "float32", "float64"] = "float16",
        batch_tokens: int = 4096,
        part_size: int = 1024,
        overwrite: bool = False,
        progress: bool | None = None,
    ) -> ProjectedIndex:
        """Keep the projected gradients of a corpus in the run, for `ask`; the same call again resumes.

        Parameters
        ----------
        dataset : Examples, or anything `as_examples` takes
            N sequences.
        run_dir : path
            A finished fit.
        k_in, k_out, dtype, part_size, overwrite : see `build_projected`
            As there.
        batch_tokens, progress : see `fit`
            As there.

        Returns
        -------
        ProjectedIndex
            In the folder "projected" of the run.
        """
        self._refuse_source("index")
        examples = as_examples(dataset)
        check_model(self.model)
        check_tokens(self.model, examples, "dataset")
        run = open_folder(run_dir)
        check_same_run(run, self.model_hash(), self._config())
        factors = load_factors(run.path, run.manifest, device=self._device)
        return build_projected(
            self._pass(), factors, examples, run.path / "projected", k_in=k_in, k_out=k_out, dtype=dtype,
            batch_tokens=batch_tokens, part_size=part_size,
            overwrite=overwrite, show_progress=progress,
        )  # fmt: skip

    def ask(self, queries: Any, run_dir: Path | str, *, check: Any = None, sample: int = 200) -> ProjectedScores:
        """Score the corpus of `index` against queries: a backward pass a query, and one product with what is stored.

        Parameters
        ----------
        queries : Examples, or anything `as_examples` takes
            Labels on the completion only.
        run_dir : path
            A run with an index.
        check : Examples, or anything `as_examples` takes, optional
            The indexed corpus: a sample of it is then scored at full rank, and the correlation reported.
        sample : int, default 200
            Rows of ``check``.

        Returns
        -------
        ProjectedScores
            In nats, up to what the projection leaves out.

        Raises
        ------
        ArgumentError
            If ``check`` is not what was indexed, or ``sample < 3``.
        ArtifactError
            If there is no index, or it is of other factors.
        """
        self._refuse_source("ask")
        asked = as_examples(queries, argument="queries")
        check_model(self.model)
        check_tokens(self.model, asked, "queries")
        check_supervised(asked, self.loss)
        run = open_folder(run_dir)
        check_same_run(run, self.model_hash(), self._config())
        stored = open_projected(run.path / "projected")
        corpus = None if check is None else as_examples(check, argument="check")
        if corpus is not None:
            check_sample(sample, stored, corpus)
        factors = load_factors(run.path, run.manifest, device=self._device)
        total = int(run.manifest.config["num_sequences"])
        found = stored.score(self._pass(), factors, asked, total)
        if corpus is None:
            return found
        agreement = sample_agreement(self._exact_pass(), factors, asked, corpus, found, total, sample=sample)
        return replace(found, agreement=agreement)

    def self_influence(
        self,
        dataset: Any,
        run_dir: Path | str,
        *,
        batch_tokens: int = 4096,
        progress: bool | None = None,
        team: Team = ALONE,
    ) -> Tensor:
        """(1/N) ∇Lᵀ (G + λI)⁻¹ ∇L of every sequence: by how much its own loss falls with one more copy, in nats.

        Parameters
        ----------
        dataset : Examples, or anything `as_examples` takes
            Sequences to score against themselves.
        run_dir : path
            A finished fit.
        batch_tokens : int, default 4096
            Padded tokens a batch.
        progress : bool, optional
            Show a bar.
        team : Team, default alone
            As of `fit`.

        Returns
        -------
        Tensor, shape (N,)
            float64, positive; on every process.
        """
        self._refuse_source("self_influence")
        examples = as_examples(dataset)
        check_batching(batch_tokens, None, 1)
        check_model(self.model)
        check_tokens(self.model, examples, "dataset")
        check_team(team, self.model, self.solver)
        team.agree({"dataset": examples.fingerprint(), "batch_tokens": batch_tokens})
        run = open_folder(run_dir)
        check_same_run(run, self.model_hash(), self._config())
        factors = load_factors(run.path, run.manifest, device=self._device)
        total = int(run.manifest.config["num_sequences"])
        if self.solver is not None:
            exact_pass = self._exact_pass()
            system = self._system(run, exact_pass, factors, examples)
            shown = _shown(progress, team)
            with team.watching():
                found = solved_self_scores(system, self.solver, exact_pass, examples, show_progress=shown, team=team)
            return found / total
        settings = ScoreSettings(batch_tokens=batch_tokens, show_progress=_shown(progress, team))
        with team.watching():
            return self_scores(self._pass(), factors, examples, settings, team) / total

    def ihvp(self, grads: Mapping[str, Tensor], factors: Factors) -> dict[str, Tensor]:
        """(G + λI)⁻¹ applied to gradients named like the model's parameters, by the factors or by the solver.

        Parameters
        ----------
        grads : mapping of str to Tensor
            At least the weight (and bias) of every tracked layer.
        factors : Factors
            Fitted on this model.

        Returns
        -------
        dict[str, Tensor]
            The same names and shapes, tracked layers only.

        Raises
        ------
        ArgumentError
            If a solver needs the training set, and `fit` was not called on this object.
        """
        self._refuse_source("ihvp")
        matrices = {name: layer.matrix_from_grads(grads) for name, layer in self.layers.items()}
        if self.solver is None:
            inverse = {name: factors.precondition(name, matrix) for name, matrix in matrices.items()}
        else:
            if self._train is None:
                raise ArgumentError("ihvp: a solver multiplies with the training set; call fit on this object first")
            numbers = fitted_on(len(self._train), factors.num_sequences, self.seed)
            system = damped_ggn(self._exact_pass().model, self._train, factors, loss=self.loss, numbers=numbers)
            stacks = {name: matrix[None].to(self._wide) for name, matrix in matrices.items()}
            inverse = {name: stack[0] for name, stack in solve(system, stacks, self.solver).matrices.items()}
        return {n: g for name, layer in self.layers.items() for n, g in layer.grads_from_matrix(inverse[name]).items()}

    def model_hash(self) -> str:
        """Hash all parameters and buffers, by which a run knows its model; every gradient depends on all of them.

        Returns
        -------
        str
            Hexadecimal.
        """
        return hash_tensors(whole_tensors(self.model))

    def _pass(self) -> Pass:
        return Pass(self.model, self.loss, self.layers, self.seed, self.positions == "attended")

    def _exact_pass(self) -> Pass:
        return in_full_precision(self._pass())

    def _stages(self, run: RunFolder) -> tuple[Pass, Callable[[], Pass], PrepareFunction]:
        # what candidates are streamed through, the same in full precision, and how queries are preconditioned
        if self._followed is None:
            return self._pass(), self._exact_pass, prepare_queries
        return self._followed.stages(run, self._pass(), self.dtype)

    def _follow(self, source: Source) -> "FollowedRun":
        from hesse.influence.trajectory.along import follow  # which builds on this module

        if self.damping != Relative(0.1):
            raise ArgumentError(f"damping: Source needs none, got {self.damping}; leave it out")
        return follow(source, self.model, self.layers)

    def _refuse_source(self, call: str) -> None:
        if self._followed is not None:
            raise ArgumentError(
                f"strategy: {call} is about one set of weights, and Source about a training run; use strategy='ekfac' "
                "in a run of its own"
            )

    def _system(self, run: RunFolder, run_pass: Pass, factors: Factors, candidates: Examples) -> DampedGaussNewton:
        train = training_set(run, [candidates, *([] if self._train is None else [self._train])])
        numbers = fitted_on(len(train), factors.num_sequences, self.seed)
        return damped_ggn(run_pass.model, train, factors, loss=self.loss, numbers=numbers)

    def _config(self) -> dict[str, Any]:
        return {
            "strategy": self.strategy if self._followed is None else "source",
            "fisher": self.fisher,
            "damping": damping_text(self.damping),
            "positions": self.positions,
            "blocks": self.blocks,
            "seed": self.seed,
            "dtype": str(self.dtype).removeprefix("torch."),
            "layers": list(self.layers),
            "loss": loss_identity(self.loss, self._stranger),
        } | ({} if self._followed is None else self._followed.settings())

    @property
    def _device(self) -> str:
        return str(next(self.model.parameters()).device)


def _shown(progress: bool | None, team: Team) -> bool | None:
    return progress if team.is_first else False
