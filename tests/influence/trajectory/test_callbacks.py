"""Tests of hesse.influence.trajectory.callbacks, with the real Trainers."""

import pytest
import torch

from hesse.influence import ClassificationLoss, as_examples
from hesse.influence.trajectory import lightning_callback, magic, open_record, replay, trainer_callback
from tests.influence._tiny import classifier, llama, points, tokens


def close(ended, expected, *, rtol=1e-8):
    for key, value in expected.items():
        torch.testing.assert_close(ended[key], value, rtol=rtol, atol=1e-2 * rtol)


@pytest.fixture
def train(tmp_path):
    """Train a Llama of width 8 with the Trainer of transformers; returns the finished record."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    rows = tokens(11)

    def collator(batch):
        return as_examples(batch).batch(range(len(batch)))

    def run(name, resume=None, **options):
        model = llama().train()
        args = transformers.TrainingArguments(
            output_dir=str(tmp_path / f"out-{name}"),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=0.01,
            weight_decay=0.1,
            max_grad_norm=0.5,
            warmup_steps=2,
            lr_scheduler_type="constant_with_warmup",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            dataloader_drop_last=True,
            **({"save_strategy": "no", "num_train_epochs": 3} | options),
        )
        data = [{"input_ids": row["input_ids"]} for row in rows]
        callback = trainer_callback(tmp_path / name, every=2)
        trainer = transformers.Trainer(model, args, train_dataset=data, data_collator=collator, callbacks=[callback])
        trainer.train(resume_from_checkpoint=resume)
        return callback.record, rows

    return run


def test_trainer_run_replays(train):
    """Oracle: the Trainer itself: replaying the record ends in its weights, float64, through ragged rows, accumulation,
    warmup, clipping and decay that spares norms and biases. To 1e-5, since transformers takes its loss in float32."""
    record, rows = train("r")
    assert len(record) == 9  # 3 epochs of ceil(5 batches / 2)
    assert [len(batch) for batch in record.batches] == [4, 4, 2] * 3
    assert record.per == "tokens"
    assert any("norm" in name for name in record.optimizer.no_decay)
    first = record.weights(0)
    close(replay(llama(seed=3), rows, record.schedule(), initial=first), record.weights(9), rtol=1e-5)
    scores = magic(llama(), tokens(2, seed=5), rows, record.schedule(), initial=first)
    assert scores.values.shape == (2, 11)
    assert bool((scores.values != 0).any(0).sum() >= 10)


def test_trainer_run_is_taken_up(train, tmp_path):
    """Oracle: the uninterrupted run. Stopped in the middle of an epoch and taken up from the Trainer's checkpoint."""
    whole, _rows = train("whole")
    train("cut", save_strategy="steps", save_steps=5, max_steps=5)
    assert len(open_record(tmp_path / "cut")) == 5
    cut, _rows = train("cut", resume=str(tmp_path / "out-cut" / "checkpoint-5"))
    assert cut.batches == whole.batches
    assert cut.checkpoints[-1] == 9
    close(cut.weights(9), whole.weights(9))


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning 2.6 with torch 2.13
def test_lightning_run_replays(tmp_path):
    """Oracle: Lightning itself: replaying the record ends in its weights, float64, with accumulation and clipping."""
    lightning = pytest.importorskip("lightning.pytorch")
    x, y = points(11)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = classifier().train()

        def training_step(self, batch, _number):
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), 0.3, momentum=0.9, weight_decay=0.01)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 2, shuffle=True, drop_last=True)
    callback = lightning_callback(tmp_path / "r", every=3, dataset=(x, y), pick=lambda module: module.net)
    trainer = lightning.Trainer(
        max_epochs=3,
        accumulate_grad_batches=2,
        gradient_clip_val=0.8,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), loader)
    record = callback.record
    assert len(record) == 9  # 3 epochs of ceil(5 batches / 2)
    assert [len(batch) for batch in record.batches] == [4, 4, 2] * 3
    ended = replay(classifier(seed=4), (x, y), record.schedule(), initial=record.weights(0), loss=ClassificationLoss())
    close(ended, record.weights(9))
