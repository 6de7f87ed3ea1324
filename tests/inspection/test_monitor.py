from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import keyfilters as kf
from keyfilters.inspection import TensorBoardLog, TrackerImages, TrainMonitor, WandbLog
from keyfilters.inspection.adapters import lightning_callback, transformers_callback
from keyfilters.thumbnails import filter_image, grid_image
from tests.inspection.sick import healthy


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2, groups=1),
        nn.Conv2d(32, 32, 5, padding=2, groups=32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 2),
    )


def train(model: nn.Module, steps: int, *, after: Any = lambda: None, hook: Any = None) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    if hook is not None:
        hook(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        after()


class Recorder:
    def __init__(self) -> None:
        self.values: dict[int, dict[str, float]] = {}
        self.drawn: dict[int, dict[str, Any]] = {}

    def __call__(self, values: dict[str, float], step: int) -> None:
        self.values[step] = values

    def images(self, drawn: dict[str, Any], step: int) -> None:
        self.drawn[step] = drawn


def test_a_loop_of_ones_own(tmp_path: Path) -> None:
    model, log = net(), Recorder()
    monitor = kf.Monitor(model, every=3, log=log, path=tmp_path / "m.parquet")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert monitor.step() is None and monitor.step() is None
    assert monitor.step() is not None
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    train(model, 6, after=monitor.step)
    assert list(log.values) == [0, 3, 6, 9] == monitor.table["step"].tolist()
    written = pd.read_parquet(tmp_path / "m.parquet")
    pd.testing.assert_frame_equal(written, monitor.table)
    assert log.values[3]["filters/1/change"] == 0 < log.values[6]["filters/1/change"]
    assert set(log.drawn[0]) == {"filters/1", "filters/3"}
    assert log.drawn[0]["filters/1"].dtype == np.uint8


def test_the_numbers_are_those_of_the_weights() -> None:
    model = net()
    smooth = torch.tensor(healthy(1, 32).layers[0].weight)
    with torch.no_grad():
        model[1].weight[:, 0] = smooth
        model[3].weight[:8] = 0
    [values] = kf.Monitor(model).history
    assert values["filters/1/norm"] == pytest.approx(
        float(smooth.flatten(1).norm(dim=1).median()), rel=0.05
    )
    assert values["filters/3/dead"] == 0.25 and values["filters/1/dead"] == 0
    matched = kf.match(smooth, families="separable", null=None)
    assert values["filters/5x5/explained"] == pytest.approx((matched["r2"] >= 0.64).mean())
    assert values["filters/5x5/beyond"] == pytest.approx(
        values["filters/5x5/explained"] - values["filters/5x5/chance"]
    )
    shares = [v for k, v in values.items() if k.startswith("filters/5x5/pattern/")]
    assert sum(shares) == pytest.approx(1)


def test_a_hook_on_the_optimiser() -> None:
    model = net()
    monitor = kf.Monitor(model, every=2)
    handles: list[Any] = []
    train(model, 4, hook=lambda optimizer: handles.append(monitor.attach(optimizer)))
    assert monitor.table["step"].tolist() == [0, 2, 4]
    handles[0].remove()
    assert "every 2 steps" in repr(monitor)


def test_a_loop_that_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    model = net()
    whole = kf.Monitor(model, every=2, path=path)
    train(model, 3, after=whole.step)
    assert whole.table["step"].tolist() == [0, 2]
    again = kf.Monitor(model, every=2, path=path, start=2)  # interrupted after step 3
    assert again.table["step"].tolist() == [0, 2]
    train(model, 2, after=again.step)
    assert pd.read_parquet(path)["step"].tolist() == [0, 2, 4] == again.table["step"].tolist()
    assert again.table["filters/1/change"].notna().tolist() == [False, True, True]
    between = kf.Monitor(model, every=2, path=path, start=3)
    assert between.table["step"].tolist() == [0, 2] and "2 measured" in repr(between)
    assert kf.Monitor(model, every=2, start=4).table["step"].tolist() == [4]
    path.write_bytes(b"no table")
    with pytest.raises(kf.KeyFiltersError, match=r"m\.parquet"):
        kf.Monitor(model, path=path, start=2)


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_the_package(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from keyfilters.training import Recipe, load_data, train

    recipe = Recipe.from_dict({"schedule": {"steps": 4}, "data": {"samples": 80}})
    images = load_data("digits", samples=80)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 1), net()[1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    )
    log = Recorder()
    watch = TrainMonitor(2, log=log)
    train(recipe, model=model, data=images, device="cpu", on_step=watch)
    assert list(log.values) == [0, 2, 4] and not watch.refused
    assert log.values[4]["filters/1/change"] > 0 and set(log.drawn[0]) == {"filters/1"}
    plain = TrainMonitor(2)
    train(recipe, model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data=images, device="cpu",
          on_step=plain)  # fmt: skip
    assert plain.monitor is None and "depthwise" in plain.refused


def test_filters_that_diverge_are_told() -> None:
    model = net()
    monitor = kf.Monitor(model, every=1)
    with torch.no_grad():
        model[1].weight.fill_(torch.nan)
        model[3].weight.fill_(torch.inf)
    values = monitor.step()
    assert values is not None and values["filters/1/dead"] == 1
    assert "filters/5x5/explained" not in values


def test_a_sample_of_dead_filters_explains_nothing() -> None:
    model = net()
    with torch.no_grad():
        model[1].weight[2:] = 0
    [values] = kf.Monitor(model, sample=2).history
    assert "filters/5x5/explained" not in values and "filters/3x3/explained" in values
    assert values["filters/1/dead"] == 30 / 32


@pytest.mark.parametrize(
    "call",
    [
        lambda: kf.Monitor(nn.Linear(3, 3)),
        lambda: kf.Monitor(net(), every=0),
        lambda: kf.Monitor(net(), path="m.csv"),
    ],
)
def test_what_cannot_be_monitored(call: Any) -> None:
    with pytest.raises(kf.KeyFiltersError):
        call()


def test_pictures() -> None:
    filters = np.random.default_rng(0).normal(size=(10, 5, 5))
    filters[3] = np.nan
    picture = grid_image(filters, columns=4, pixels=2)
    assert picture.shape == (2 * (3 * 6 - 1), 2 * (4 * 6 - 1), 3)
    grey = picture[: 2 * 5, 2 * 18 : 2 * 23]
    assert (grey == grey[0, 0]).all()
    largest = np.unravel_index(np.argmax(filters[0]), (5, 5))
    red, _, blue = picture[2 * largest[0], 2 * largest[1]].astype(int)
    assert red > blue
    assert filter_image(np.zeros((3, 3))).startswith("data:image/png")


def data() -> TensorDataset:
    return TensorDataset(torch.randn(16, 3, 8, 8), torch.randint(0, 2, (16,)))


def events(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    return found.Reload()


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    model = net()
    with SummaryWriter(str(tmp_path)) as writer:
        train(model, 4, after=kf.Monitor(model, every=2, log=TensorBoardLog(writer)).step)
    found = events(tmp_path)
    assert [x.step for x in found.Scalars("filters/5x5/explained")] == [0, 2, 4]
    assert len(found.Images("filters/1")) == 3


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    run = wandb.init(mode="offline", dir=str(tmp_path), project="test")
    [values] = kf.Monitor(net(), log=WandbLog(run)).history
    run.finish()
    wandb.teardown()  # the file is whole when the process that writes it has ended
    [written] = tmp_path.rglob("*.wandb")
    held = written.read_bytes()  # of less than a block, so that names are whole
    assert [name for name in values if name != "step" and name.encode() not in held] == []
    assert len(list(tmp_path.rglob("*.png"))) == 2


@pytest.mark.filterwarnings("ignore")
def test_accelerate(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    pytest.importorskip("tensorboard")
    accelerator = accelerate.Accelerator(
        log_with="tensorboard", project_dir=str(tmp_path), cpu=True
    )
    accelerator.init_trackers("run")
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data(), 4))
    monitor = kf.Monitor(model, every=2, log=TrackerImages(accelerator))
    for images, labels in loader:
        optimizer.zero_grad()
        accelerator.backward(nn.functional.cross_entropy(model(images), labels))
        optimizer.step()
        monitor.step()
    accelerator.end_training()
    found = events(tmp_path / "run")
    assert [x.step for x in found.Scalars("filters/3x3/explained")] == [0, 2, 4]
    assert len(found.Images("filters/1")) == 3


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import CSVLogger

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callback = lightning_callback(every=2)
    trainer = lightning.Trainer(
        max_epochs=1,
        callbacks=[callback],
        logger=CSVLogger(str(tmp_path)),
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Module(), DataLoader(data(), 4))
    assert callback.monitor.table["step"].tolist() == [0, 2, 4]
    [written] = tmp_path.rglob("metrics.csv")
    table = pd.read_csv(written)
    assert table["filters/net.1/norm"].notna().sum() == 3


@pytest.mark.filterwarnings("ignore")
def test_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    log = Recorder()
    rows = [{"x": x, "labels": y} for x, y in data()]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_train_epochs=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    callback = transformers_callback(every=2, log=log)
    transformers.Trainer(Model(), arguments, train_dataset=rows, callbacks=[callback]).train()
    assert list(log.values) == [0, 2, 4]
    assert log.values[4]["filters/net.1/change"] > 0


@pytest.mark.filterwarnings("ignore")
def test_callbacks_go_on_where_a_trainer_does() -> None:
    pytest.importorskip("lightning")
    pytest.importorskip("transformers")
    of_lightning = lightning_callback(every=2)
    trainer = SimpleNamespace(is_global_zero=True, loggers=[], global_step=4)
    of_lightning.on_train_start(trainer, net())
    of_transformers = transformers_callback(every=2)
    state = SimpleNamespace(is_world_process_zero=True, global_step=5)
    of_transformers.on_train_begin(None, state, None, model=net())
    assert of_lightning.monitor.table["step"].tolist() == [4]
    assert of_transformers.monitor.table.empty
    state.global_step = 6
    of_transformers.on_step_end(None, state, None)
    assert of_transformers.monitor.table["step"].tolist() == [6]


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much of three libraries as the adapters use."""
    for library, name in (
        ("lightning", "Callback"),
        ("transformers", "TrainerCallback"),
        ("wandb", "Image"),
    ):
        module = ModuleType(library)
        setattr(module, name, type(name, (), {"__init__": lambda self, *given: None}))
        monkeypatch.setitem(sys.modules, library, module)


@pytest.mark.usefixtures("stand_ins")
def test_a_run_of_weights_and_biases_gets_numbers_and_pictures() -> None:
    told: list[tuple[int, dict[str, Any]]] = []
    run = SimpleNamespace(log=lambda values, step: told.append((step, values)))
    [values] = kf.Monitor(net(), log=WandbLog(run)).history
    (first, numbers), (second, pictures) = told
    assert first == second == 0 and numbers == {k: v for k, v in values.items() if k != "step"}
    assert set(pictures) == {"filters/1", "filters/3"}
    assert {type(x).__name__ for x in pictures.values()} == {"Image"}


def test_trackers_that_take_no_pictures_get_none() -> None:
    drawn: dict[str, Any] = {}

    def log_images(batches: dict[str, Any], step: int, **options: Any) -> None:
        drawn.update(batches)

    trackers = [SimpleNamespace(name="plain"), SimpleNamespace(name="own", log_images=log_images)]
    numbers: list[dict[str, float]] = []
    accelerator = SimpleNamespace(trackers=trackers, log=lambda x, step: numbers.append(x))
    kf.Monitor(net(), log=TrackerImages(accelerator))
    assert set(drawn) == {"filters/1", "filters/3"} and len(numbers) == 1
    assert all(picture.ndim == 4 for picture in drawn.values())


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("first_process", [True, False])
def test_callbacks_measure_in_the_first_process_only(first_process: bool) -> None:
    told: list[int] = []
    logger = SimpleNamespace(log_metrics=lambda values, step: told.append(step))
    trainer = SimpleNamespace(is_global_zero=first_process, loggers=[logger], global_step=0)
    state = SimpleNamespace(is_world_process_zero=first_process, global_step=0)
    of_lightning, of_transformers = lightning_callback(every=2), transformers_callback(every=2)
    of_lightning.on_train_start(trainer, net())
    of_transformers.on_train_begin(None, state, None, model=net())
    for step in (1, 2, 3, 4):
        trainer.global_step = state.global_step = step
        of_lightning.on_train_batch_end(trainer, None, None, None, 0)
        of_transformers.on_step_end(None, state, None)
    for callback in (of_lightning, of_transformers):
        seen = None if callback.monitor is None else callback.monitor.table["step"].tolist()
        assert seen == ([0, 2, 4] if first_process else None)
    assert told == ([0, 2, 4] if first_process else [])
