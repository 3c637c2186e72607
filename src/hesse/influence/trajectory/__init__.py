"""Influence through training: a recorded run, differentiated exactly (`magic`) or followed by segments (`source`)."""

from hesse.influence.trajectory.callbacks import lightning_callback, trainer_callback
from hesse.influence.trajectory.magic import magic
from hesse.influence.trajectory.optimizers import SGD, AdamW, optimizer_of
from hesse.influence.trajectory.record import TrainingRecord, open_record
from hesse.influence.trajectory.recorder import Recorder, record_replay
from hesse.influence.trajectory.replay import replay
from hesse.influence.trajectory.result import TrajectoryScores
from hesse.influence.trajectory.schedule import TrainingSchedule
from hesse.influence.trajectory.source import Segment, source, split_segments

__all__ = [
    "SGD",
    "AdamW",
    "Recorder",
    "Segment",
    "TrainingRecord",
    "TrainingSchedule",
    "TrajectoryScores",
    "lightning_callback",
    "magic",
    "open_record",
    "optimizer_of",
    "record_replay",
    "replay",
    "source",
    "split_segments",
    "trainer_callback",
]
