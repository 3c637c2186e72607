"""SOURCE behind `Influence`: every matrix counts once a segment of a recorded run, with factors and queries of its own.

    score(q, n) = -(1/N) Σ_l Σ_layers < P_ql / C_l, Σ_c ∇L_n at checkpoint c of segment l >,
    P_ql = D_l^-½ F_l(G_l) D_l^-½ Π_{l' > l} (e^(-τ_l' G_l')) ∇f_q(θ_T)

A backward pass is one a checkpoint, and hands the gradients on under the names "segment-<l>.<layer>": to whatever
keeps, contracts, ranks or resumes scores it is a model of L times as many matrices. C_l counts the checkpoints of a
segment.
"""

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hesse.curvature.capture import Captured
from hesse.curvature.layers import TrackedLayer, select_layers
from hesse.curvature.scratch import Scratch
from hesse.errors import ArgumentError, NumericalError
from hesse.influence.contraction import QueryMatrices, empty_queries, put
from hesse.influence.distributed import is_sharded
from hesse.influence.examples import Examples
from hesse.influence.factors import Factors
from hesse.influence.gradients import stacked_gradients
from hesse.influence.objective import Batch, LossOutput, check_is_likelihood
from hesse.influence.passes import Fisher, Measurement, Pass
from hesse.influence.run import RunFolder, open_folder
from hesse.influence.score import PrepareFunction, ScoreSettings, check_memory, to_device
from hesse.influence.strategy import Source
from hesse.influence.trajectory.moving import Checkpoints, MovingExamples, MovingLoss, Scale, ScaledInfluence, scale_of
from hesse.influence.trajectory.record import TrainingRecord, open_record
from hesse.influence.trajectory.source import (
    Segment,
    check_trained,
    decay_of,
    faded,
    mean_tokens,
    settled,
    split_segments,
)
from hesse.io import FileEntry, config_hash

__all__ = ["AlongPass", "FollowedRun", "fit_segments", "follow", "prepare_along"]


@dataclass(frozen=True)
class FollowedRun:
    """A recorded run cut into segments, checked against the model that it ended in."""

    record: TrainingRecord
    segments: tuple[Segment, ...]

    def settings(self) -> dict[str, Any]:
        """Name the record and its cuts, for the settings of a run.

        Returns
        -------
        dict
            JSON values: ``record``, a hash that changes with every kept weight, learning rate and setting of the
            optimizer, and ``segments``, the steps at which all but the first begin.
        """
        files = {name: entry.xxh3 for name, entry in self.record.manifest.files.items()}
        described = {"files": files, "config": self.record.manifest.config, "steps": len(self.record)}
        return {"record": config_hash(described), "segments": [segment.first for segment in self.segments[1:]]}

    def fit(self, run: RunFolder, run_pass: Pass, examples: Examples, chosen: Items[int], **settings: Any) -> None:
        """Fit all segments; see `fit_segments`."""
        fit_segments(run, run_pass, self, examples, chosen, **settings)

    def stages(
        self, run: RunFolder, run_pass: Pass, dtype: torch.dtype
    ) -> tuple[Pass, Callable[[], Pass], PrepareFunction]:
        """Make what answers a question.

        Parameters
        ----------
        run : RunFolder
            With a finished fit.
        run_pass : Pass
            The trained model with its loss and layers.
        dtype : dtype
            Of the model.

        Returns
        -------
        run_pass : AlongPass
            What candidates are streamed through.
        exact_pass : callable
            Returns the same in float32 or wider.
        prepare_fn : callable
            From `prepare_along`.
        """
        along = AlongPass.of(run_pass, self)

        def exact_pass() -> Pass:
            narrow = dtype not in (torch.float32, torch.float64)
            return AlongPass.of(run_pass, self, dtype=torch.float32) if narrow else along

        return along, exact_pass, prepare_along(float(run.stage("fit")["per_sequence"]))


def follow(source: Source, model: nn.Module, layers: Mapping[str, TrackedLayer]) -> FollowedRun:
    """Open the record of a training run, and refuse one that did not end in this model.

    Parameters
    ----------
    source : Source
        Which record, and how it is cut.
    model : nn.Module
        Trained.
    layers : mapping of str to TrackedLayer
        Those that are tracked.

    Returns
    -------
    FollowedRun
        With segments.

    Raises
    ------
    ArgumentError
        If the record ends in other weights, a segment has no checkpoint, a tracked layer was not trained, running means
        of AdamW are missing, or the model is in shards.
    ArtifactError
        If there is no record, or it is damaged.
    """
    if is_sharded(model):
        raise ArgumentError(
            "strategy: Source puts the weights of checkpoints into the model, and this one's are in shards "
            "(fully_shard); use a model that is not sharded"
        )
    record = open_record(source.record)
    segments = split_segments(record, source.segments)
    check_trained(layers, record)
    parameters = dict(model.named_parameters())
    for name, value in record.weights(len(record)).items():
        mine = parameters.get(name)
        if mine is None or mine.shape != value.shape or not torch.equal(mine.detach().cpu(), value.to(mine.dtype)):
            raise ArgumentError(
                f"strategy: the training run in {record.folder} ended in other weights than the model's ({name!r} "
                "differs); pass the model as it was at the end of that run"
            )
    for segment in segments:  # reads AdamW's running means, which may not be there
        for layer in layers.values():
            scale_of(record, segment.checkpoints, layer)
    return FollowedRun(record, tuple(segments))


@dataclass(slots=True, kw_only=True)
class AlongPass(Pass):
    """A backward pass a checkpoint over every batch; ``layers`` has each matrix once a segment."""

    single: Pass  # at whatever weights its model has
    followed: FollowedRun
    checkpoints: Checkpoints
    segment: int = 0

    @classmethod
    def of(cls, run_pass: Pass, followed: FollowedRun, *, dtype: torch.dtype | None = None) -> "AlongPass":
        """Copy the model of a pass, to put the weights of checkpoints into.

        Parameters
        ----------
        run_pass : Pass
            The model with its loss and layers; not changed.
        followed : FollowedRun
            The run.
        dtype : dtype, optional
            Of the copy. Default: that of the model.

        Returns
        -------
        AlongPass
            Ready to open.
        """
        net = copy.deepcopy(run_pass.model)
        net = net if dtype is None else net.to(dtype)
        layers = select_layers(net, lambda name, _module: name in run_pass.layers, allow_head=True)
        single = replace(run_pass, model=net, layers=layers)
        each = {
            segment_name(number, name): replace(layer, name=segment_name(number, name))
            for number in range(len(followed.segments))
            for name, layer in layers.items()
        }
        checkpoints = Checkpoints(net, followed.record)
        own = {"single": single, "followed": followed, "checkpoints": checkpoints}
        return cls(net, run_pass.loss, each, run_pass.seed, run_pass.attended, **own)

    @contextmanager
    def open(self, consumer: Callable[[Captured], None], argument: str = "dataset") -> Iterator[Pass]:
        """Attach the hooks as `Pass` does; the consumer sees the matrices of segments.

        Parameters
        ----------
        consumer, argument : see `Pass`
            As there.

        Yields
        ------
        Pass
            This one.
        """
        with self.single.open(lambda rows: consumer(self._named(rows)), argument):
            yield self

    def empirical(self, batch: Batch, names: Items[str]) -> LossOutput:
        """Backward from the loss as `Pass` does, at the weights of every checkpoint in turn.

        Parameters
        ----------
        batch, names : see `Pass`
            As there.

        Returns
        -------
        LossOutput
            At the last of them.
        """
        outputs: list[LossOutput] = []
        for number, segment in enumerate(self.followed.segments):
            self.segment = number
            for step in segment.checkpoints:
                self.checkpoints.load(step)
                outputs[:] = [self.single.empirical(batch, names)]
        return outputs[0]

    def _named(self, rows: Captured) -> Captured:
        return replace(rows, layer=self.layers[segment_name(self.segment, rows.layer.name)])


def segment_name(number: int, layer: str) -> str:
    """Name a matrix of one segment.

    Parameters
    ----------
    number : int
        Of the segment, from 0.
    layer : str
        Its name in the model.

    Returns
    -------
    str
        As in factors and scores.
    """
    return f"segment-{number}.{layer}"


def fit_segments(
    run: RunFolder,
    run_pass: Pass,
    followed: FollowedRun,
    examples: Examples,
    chosen: Items[int],
    *,
    fisher: Fisher,
    blocks: int,
    overwrite: bool,
    batch_tokens: int,
    checkpoint_seconds: float,
    show_progress: bool | None,
) -> None:
    """Fit the factors of every segment, each a run of its own in ``segment-<l>``, and name all in the run around them.

    Parameters
    ----------
    run : RunFolder
        Whose lock the caller holds; resumed.
    run_pass : Pass
        The trained model with its loss and layers.
    followed : FollowedRun
        The training run.
    examples : Examples
        The training set.
    chosen : sequence of int
        Sequences that each checkpoint's share of the factors is measured on.
    fisher, blocks : see `Influence`
        As there.
    overwrite, batch_tokens, checkpoint_seconds, show_progress : see `Influence.fit`
        As there.
    """
    team, state = run.team, run.stage("fit")
    if state.get("done"):
        return
    if not state:  # a new run: what older ones left does not count
        team.first(lambda: _remove_segments(run.path))
        run.commit({"fit": {"stage": "segments"}})
    net = copy.deepcopy(run_pass.model)
    checkpoints = Checkpoints(net, followed.record)
    if fisher == "sampled":
        with torch.no_grad():
            check_is_likelihood(run_pass.loss, net, to_device(examples.batch([0]), run_pass))
    per_sequence = 1.0
    if followed.record.per == "tokens":
        checkpoints.load(len(followed.record))
        per_sequence = team.first(lambda: mean_tokens(net, run_pass.loss, examples, batch_tokens))
    files: dict[str, FileEntry] = {}
    layers: dict[str, dict[str, str]] = {}
    fitted: list[dict[str, Any]] = []
    for number, segment in enumerate(followed.segments):
        checkpoints.load(segment.checkpoints[0])
        engine = ScaledInfluence(
            net,
            modules=lambda name, _module: name in run_pass.layers,
            loss=MovingLoss(run_pass.loss, checkpoints),
            fisher=fisher,
            positions="attended" if run_pass.attended else "gradient",
            blocks=blocks,
            seed=run_pass.seed,
            allow_head=True,
        )
        engine.scales = _scales(followed, segment, engine.layers)
        folder = run.path / f"segment-{number}"
        engine.fit(
            MovingExamples(examples, list(chosen), segment.checkpoints),
            folder,
            max_sequences=None,
            batch_tokens=batch_tokens,
            unit_size=len(chosen),  # a unit, and so a batch, is of one checkpoint
            checkpoint_seconds=checkpoint_seconds,
            overwrite=overwrite,
            progress=show_progress,
            team=team,
        )
        manifest = open_folder(folder).manifest
        fitted.append(manifest.stages["fit"])
        files |= {f"{folder.name}/{name}": entry for name, entry in manifest.files.items()}
        for name, entry in fitted[-1]["layers"].items():
            layers[segment_name(number, name)] = {key: f"{folder.name}/{file}" for key, file in entry.items()}
    unreached = [segment_name(i, name) for i, stage in enumerate(fitted) for name in stage["unreached"]]
    done = {
        "done": True,
        "stage": "done",
        "layers": layers,
        "unreached": unreached,
        "num_sequences": len(chosen),
        "mean_tokens": sum(stage["mean_tokens"] for stage in fitted) / len(fitted),
        "per_sequence": per_sequence,
    }
    run.commit({"fit": done}, files)


def prepare_along(per_sequence: float) -> PrepareFunction:
    """Make what stands in for `prepare_queries`: gradients at the end of training, carried back through the segments.

    Parameters
    ----------
    per_sequence : float
        What a step's rate is divided by, so that the loss it weighs is a mean of sums: supervised tokens a sequence, or
        1.

    Returns
    -------
    callable
        As `prepare_queries`; its pass is an `AlongPass`.
    """

    def prepare(
        run_pass: AlongPass,
        factors: Factors,
        queries: Examples,
        settings: ScoreSettings,
        *,
        dtype: torch.dtype,
        measurement: Measurement | None = None,
        chosen: Items[int] | None = None,
    ) -> dict[str, QueryMatrices]:
        numbers = list(range(len(queries))) if chosen is None else list(chosen)
        check_memory(run_pass, len(numbers), settings, dtype)
        followed, checkpoints = run_pass.followed, run_pass.checkpoints
        single, scratch = run_pass.single, Scratch()
        device = next(run_pass.model.parameters()).device
        kept = {
            name: empty_queries(layer, len(numbers), settings.rank, dtype, device)
            for name, layer in run_pass.layers.items()
        }
        scales = [_scales(followed, segment, single.layers) for segment in followed.segments]
        decays = {name: decay_of(followed.record, name) * per_sequence for name in single.layers}
        checkpoints.load(len(followed.record))
        one = 16 * sum(layer.out_features * layer.columns for layer in single.layers.values())  # twice, in float64
        step = max(1, min(len(numbers), settings.query_memory // one))
        for first in range(0, len(numbers), step):
            vectors = stacked_gradients(single, queries, numbers=numbers[first : first + step], measurement=measurement)
            for name, gradient in vectors.items():
                vector = _wide(gradient) if measurement is None else -_wide(gradient)
                for number in reversed(range(len(followed.segments))):
                    segment, here = followed.segments[number], scales[number][name].to(vector)
                    rest = (factors[segment_name(number, name)], segment.time / per_sequence, decays[name])
                    inside = here.times(vector)
                    matrices = here.times(settled(*rest).precondition(inside)) / len(segment.checkpoints)
                    if not bool(torch.isfinite(matrices.sum())):
                        raise NumericalError(f"score: the gradient of a query in {name!r} holds NaN or Inf")
                    place = kept[segment_name(number, name)]
                    put(place, first, matrices, bases=None, scratch=scratch, seed=run_pass.seed)
                    vector = here.over(faded(*rest).precondition(inside))
        return kept

    return prepare


def _scales(followed: FollowedRun, segment: Segment, layers: Mapping[str, TrackedLayer]) -> dict[str, Scale]:
    return {name: scale_of(followed.record, segment.checkpoints, layer) for name, layer in layers.items()}


def _remove_segments(folder: Path) -> None:
    for path in folder.glob("segment-*"):
        if path.is_dir():
            shutil.rmtree(path)


def _wide(matrices: Tensor) -> Tensor:
    return matrices if matrices.dtype == torch.float64 else matrices.float()
