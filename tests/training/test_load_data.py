"""Named data sets, on the real ones where they are and on small files made here."""

from __future__ import annotations

import gzip
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from keyfilters.errors import KeyFiltersError, MissingExtraError
from keyfilters.training import Data, load_data, photographs
from keyfilters.training.parts import stratified
from keyfilters.training.readers import DEBIAN
from tests.conftest import require


def test_digits_are_split_once_for_ever() -> None:
    data = load_data("digits")
    assert data.images.shape == (1438, 1, 8, 8) and data.test_images.shape == (359, 1, 8, 8)
    assert data.images.dtype == torch.uint8 and data.labels.dtype == torch.int64
    assert int(data.images.max()) == 255 and data.classes == tuple("0123456789")
    assert data.test_labels.bincount().tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert torch.equal(data.images, load_data("digits", seed=5).images)
    x = data.images.double() / 255
    assert data.mean[0] == pytest.approx(float(x.mean()))
    assert data.std[0] == pytest.approx(float(x.std(correction=0)))
    both = torch.cat([data.images, data.test_images]).flatten(1)
    assert len(both.unique(dim=0)) == 1797  # scikit-learn's digits are all different


def test_classes_by_name_or_number_in_their_order() -> None:
    data, whole = load_data("digits", classes=["7", 2]), load_data("digits")
    assert data.classes == ("7", "2")
    assert torch.equal(data.images[data.labels == 0], whole.images[whole.labels == 7])
    assert torch.equal(
        data.test_images[data.test_labels == 1], whole.test_images[whole.test_labels == 2]
    )


def test_samples_are_stratified_and_a_function_of_the_seed() -> None:
    first, again = (load_data("digits", samples=100) for _ in range(2))
    assert set(first.labels.bincount().tolist()) == {10}
    assert torch.equal(first.images, again.images) and len(first.test_images) == 359
    assert not torch.equal(first.images, load_data("digits", samples=100, seed=1).images)


@pytest.mark.parametrize("count", [1, 7, 8, 20])
def test_stratified_takes_as_many_as_asked(count: int) -> None:
    labels = np.repeat([0, 1, 2], [10, 7, 3])
    rows = stratified(labels, count, 0)
    assert len(set(rows.tolist())) == count and (np.diff(rows) > 0).all()
    share = np.bincount(labels[rows], minlength=3) - count * np.array([10, 7, 3]) / 20
    assert (abs(share) < 1).all()


def test_validation_images_are_the_same_for_every_seed() -> None:
    whole, data, other = (
        load_data("digits", validation=share, seed=seed)
        for share, seed in ((0, 0), (0.1, 0), (0.1, 7))
    )
    assert data.validation_images is not None and data.validation_labels is not None
    assert data.validation_labels.bincount().min() >= 14 and len(data.images) == 1294
    assert torch.equal(data.validation_images, other.validation_images)
    assert torch.equal(data.test_images, whole.test_images)
    seen = {x.numpy().tobytes() for x in data.images}
    assert not seen & {x.numpy().tobytes() for x in data.validation_images}
    few = load_data("digits", samples=100, validation=0.2)
    assert [len(x) for x, _ in few.parts().values()] == [100, 359, 20]
    assert len(load_data("photos", samples=14, resolution=8, validation=0.3).images) == 14


def test_channels_and_resolution() -> None:
    data = load_data("digits", channels=3, resolution=12, samples=50)
    assert data.images.shape == (50, 3, 12, 12) and len(data.mean) == 3
    assert torch.equal(data.images[:, 0], data.images[:, 2])
    grey = load_data("photos", channels=1, resolution=16, samples=14)
    colour = load_data("photos", resolution=16, samples=14)
    assert torch.equal(grey.images, colour.images.float().mean(1, keepdim=True).round().byte())


def test_photos_are_labelled_by_photograph() -> None:
    data = load_data("photos", samples=70, resolution=16)
    assert data.classes == tuple(photographs()) and data.test_images.shape == (350, 3, 16, 16)
    assert data.labels.bincount().tolist() == [10] * 7
    two = load_data("photos", classes=["chelsea", "coffee"], samples=30, resolution=16)
    assert two.labels.bincount().tolist() == [15, 15]
    three = load_data("photos", classes=[4, 5, 6], samples=10, resolution=16)
    assert sorted(three.labels.bincount().tolist()) == [3, 3, 4]


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    content = header + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize(("inside", "suffix"), [("", ".gz"), ("FashionMNIST/raw", "")])
def test_fashion_mnist_in_a_folder(tmp_path: Path, inside: str, suffix: str) -> None:
    generator = np.random.default_rng(0)
    made = {}
    for half, count in (("train", 30), ("t10k", 20)):
        made[half] = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_idx(tmp_path / inside / f"{half}-images-idx3-ubyte{suffix}", made[half])
        write_idx(tmp_path / inside / f"{half}-labels-idx1-ubyte{suffix}", labels)
    data = load_data(f"fashion-mnist:{tmp_path}")
    assert torch.equal(data.images[:, 0], torch.from_numpy(made["train"]))
    assert data.test_labels.tolist() == [i % 10 for i in range(20)] and data.classes[8] == "Bag"

    broken = tmp_path / inside / f"t10k-images-idx3-ubyte{suffix}"
    whole = broken.read_bytes()
    of_words = (b"\0\0\x0c" if suffix == "" else gzip.compress(b"\0\0\x0c\3")) + bytes(16)
    for content in (whole[:-900], of_words, gzip.compress(b"") if suffix else b""):
        broken.write_bytes(content)
        message = r"t10k-images.* cannot be read .*; fetch it again"
        with pytest.raises(KeyFiltersError, match=message):
            load_data(f"fashion-mnist:{tmp_path}")
    broken.write_bytes(whole)
    labels = np.arange(20, dtype=np.uint8) % 11  # of which fashion has ten
    write_idx(tmp_path / inside / f"t10k-labels-idx1-ubyte{suffix}", labels)
    with pytest.raises(KeyFiltersError, match="n labels below 10 are expected"):
        load_data(f"fashion-mnist:{tmp_path}")


def test_fashion_mnist_as_debian_installs_it() -> None:
    if not Path(DEBIAN).is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    data = load_data("fashion-mnist")
    assert data.images.shape == (60000, 1, 28, 28) and data.test_images.shape[0] == 10000
    assert data.labels.bincount().tolist() == [6000] * 10
    assert data.mean[0] == pytest.approx(0.2860, abs=1e-4)  # as is published
    assert data.std[0] == pytest.approx(0.3530, abs=1e-4)


def test_fashion_mnist_that_is_not_there(tmp_path: Path) -> None:
    message = r"no file train-images-idx3-ubyte.gz; type: apt-get install dataset-fashion-mnist"
    with pytest.raises(KeyFiltersError, match=message):
        load_data(f"fashion-mnist:{tmp_path}")


def pictures(folder: Path, names: dict[str, int], size: tuple[int, int] = (20, 30)) -> None:
    """Plain pictures, a class a shade."""
    for shade, (name, count) in enumerate(names.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((*size, 3), 40 * (shade + 1), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def test_image_folder_with_both_halves(tmp_path: Path) -> None:
    pictures(tmp_path / "train", {"cat": 5, "dog": 3})
    pictures(tmp_path / "val", {"cat": 2, "dog": 1})
    data = load_data(f"imagefolder:{tmp_path}", resolution=8)
    assert data.classes == ("cat", "dog") and data.images.shape == (8, 3, 8, 8)
    assert data.labels.tolist() == [0] * 5 + [1] * 3 and data.test_labels.tolist() == [0, 0, 1]
    assert (data.images[:5] == 40).all() and (data.images[5:] == 80).all()
    assert load_data(f"imagefolder:{tmp_path}").images.shape == (8, 3, 20, 30), "as they are"


def test_image_folder_without_a_test_half_is_split(tmp_path: Path) -> None:
    pictures(tmp_path, {"a": 10, "b": 5})
    data = load_data(f"imagefolder:{tmp_path}", resolution=4)
    assert data.labels.bincount().tolist() == [8, 4]
    assert data.test_labels.bincount().tolist() == [2, 1]


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_image_folders_of_test_images_have_several_names(tmp_path: Path, name: str) -> None:
    pictures(tmp_path / "train", {"a": 10, "b": 5})
    pictures(tmp_path / name, {"b": 1, "c": 2})
    data = load_data(f"imagefolder:{tmp_path}", resolution=4)
    assert data.classes == ("a", "b", "c") and data.labels.bincount().tolist() == [10, 5]
    assert data.test_labels.tolist() == [1, 2, 2]


def test_an_image_folder_with_train_alone_is_split(tmp_path: Path) -> None:
    pictures(tmp_path / "train", {"a": 10, "b": 5})
    (tmp_path / "notes").mkdir()
    data = load_data(f"imagefolder:{tmp_path}", resolution=4)
    assert data.classes == ("a", "b") and data.labels.bincount().tolist() == [8, 4]
    assert data.test_labels.bincount().tolist() == [2, 1]


def test_a_folder_of_validation_images_beside_test_images(tmp_path: Path) -> None:
    for name, count in (("train", 10), ("val", 3), ("test", 2)):
        pictures(tmp_path / name, {"a": count, "b": count})
    data = load_data(f"imagefolder:{tmp_path}", validation=0.1)
    assert [len(x) for x, _ in data.parts().values()] == [20, 4, 6]


def test_sizes_that_differ(tmp_path: Path) -> None:
    pictures(tmp_path, {"a": 10, "b": 5})
    Image.new("RGB", (300, 12)).save(tmp_path / "b" / "wide.png")
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.images.shape[1:] == (3, 20, 20), "the shorter side of the first one"


def test_train_may_be_a_class(tmp_path: Path) -> None:
    pictures(tmp_path, {"car": 5, "train": 5})
    assert load_data(f"imagefolder:{tmp_path}", resolution=4).classes == ("car", "train")


def test_no_seed_trains_on_what_another_is_tested_on(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for i in range(20):
        Image.new("RGB", (4, 4), (10 * i, 0, 0)).save(tmp_path / "a" / f"{i}.png")
    first, other = (load_data(f"imagefolder:{tmp_path}", resolution=4, seed=s) for s in (0, 1))
    tested, trained = (set(x[:, 0, 0, 0].tolist()) for x in (first.test_images, other.images))
    assert len(tested) == 4 and len(trained) == 16 and not tested & trained


def test_unreadable_images_are_named_or_stop(tmp_path: Path) -> None:
    pictures(tmp_path, {"a": 10, "b": 10})
    for name in ("a/3.png", "b/0.png", "b/7.png"):
        (tmp_path / name).write_bytes(b"no image")
    (tmp_path / "b" / "notes.txt").write_text("no image either")
    data = load_data(f"imagefolder:{tmp_path}", resolution=4)
    assert len(data.images) + len(data.test_images) == 17
    names = sorted(Path(name).name for name, _ in data.skipped)
    assert names == ["0.png", "3.png", "7.png", "notes.txt"]
    for images, labels in ((data.images, data.labels), (data.test_images, data.test_labels)):
        assert torch.equal(images[:, 0, 0, 0].long(), 40 * (labels + 1))
    assert len(data.describe()["skipped"]) == 4
    with pytest.raises(KeyFiltersError, match=r"(png|txt) cannot be read \("):
        load_data(f"imagefolder:{tmp_path}", resolution=4, unreadable="stop")


def test_pipes_and_dangling_links_are_no_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in [f"{kind}/{i}.png" for kind in "ab" for i in range(5)]:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)).save(file)
    before = load_data(f"imagefolder:{tmp_path}", stream=True).describe()
    (tmp_path / "a" / "5.png").symlink_to("nowhere.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "b" / "5.png")
    assert load_data(f"imagefolder:{tmp_path}", stream=True).describe() == before  # opens none


def test_image_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(KeyFiltersError, match="'' is no folder; type imagefolder:FOLDER"):
        load_data("imagefolder")
    with pytest.raises(KeyFiltersError, match="has no folders; one for each class"):
        load_data(f"imagefolder:{tmp_path}")
    pictures(tmp_path, {"a": 10})
    (tmp_path / "empty").mkdir()
    with pytest.raises(KeyFiltersError, match="has no image of these classes"):
        load_data(f"imagefolder:{tmp_path}", classes=["empty"])
    for path in (tmp_path / "a").iterdir():
        path.write_bytes(b"")
    for stream in (False, True):
        with pytest.raises(KeyFiltersError, match="none of 8 images can be read"):
            load_data(f"imagefolder:{tmp_path}", stream=stream)


def test_a_folder_that_cannot_be_listed_is_no_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path, {"a": 10, "b": 10})
    scandir = os.scandir

    def refuse(folder: str | Path) -> Any:
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(KeyFiltersError, match=r"cannot list .*b: Permission denied"):
        load_data(f"imagefolder:{tmp_path}")


def test_the_content_of_streamed_images_tells_them_apart_also_where_one_is_gone(
    tmp_path: Path,
) -> None:
    pictures(tmp_path / "train", {"a": 3, "b": 3})
    pictures(tmp_path / "test", {"a": 1, "b": 1})
    items = load_data(f"imagefolder:{tmp_path}", stream=True, resolution=8).items["training"]
    sums = [items.checksum(), items.checksum()]
    path = tmp_path / "train" / "a" / "1.png"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    sums.append(items.checksum())
    path.unlink()
    sums.append(items.checksum())
    assert sums[0] == sums[1] and len(set(sums)) == 3
    path.write_bytes(content)
    assert items.checksum() == sums[0]


def test_more_than_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path, {"a": 10})
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10_000))
    message = r"8 images of 20×30 take 0.0 GB, 0.0 GB are free; set samples, classes"
    with pytest.raises(KeyFiltersError, match=message):
        load_data(f"imagefolder:{tmp_path}")


def test_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("torchvision")
    from torchvision import datasets

    few = partial(datasets.FakeData, size=150, image_size=(3, 16, 16))
    monkeypatch.setattr(datasets, "FakeData", few)
    data = load_data("torchvision:FakeData", samples=20, resolution=8, classes=[1, 4])
    assert data.images.shape == (20, 3, 8, 8) and data.classes == ("1", "4")
    message = r"Dataset not found.*; fetch it with torchvision.datasets.MNIST\('.*', download=True"
    with pytest.raises(KeyFiltersError, match=message):
        load_data("torchvision:MNIST", root=tmp_path)
    with pytest.raises(KeyFiltersError, match=r"no data set 'MNISTT'; the nearest .*MNIST"):
        load_data("torchvision:MNISTT")
    message = r"EMNIST .*byclass.*; save its images as FOLDER"
    with pytest.raises(KeyFiltersError, match=message):
        load_data("torchvision:EMNIST", root=tmp_path)
    for labels in ([{"boxes": []}], ["a person"]):
        monkeypatch.setattr(datasets, "FakeData", lambda labels=labels: Labelled(labels))
        with pytest.raises(KeyFiltersError, match="no whole numbers as labels"):
            load_data("torchvision:FakeData")


class Labelled(list[tuple[None, Any]]):
    """A data set of torchvision that tells its labels image by image."""

    def __init__(self, labels: list[Any]) -> None:
        super().__init__((None, x) for x in labels)


class ClassLabel:
    names = ("no", "yes")


class Rows:
    """As much of a Hugging Face data set as is used."""

    def __init__(self, count: int, *more: str, labels: list[int | None] | None = None) -> None:
        self.features: dict[str, Any] = {"picture": type("Image", (), {})(), "y": ClassLabel()}
        self.features |= {name: ClassLabel() for name in more}
        self.labels = labels or [i % 2 for i in range(count)]

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, str):
            return self.labels if key == "y" else [1 - (x or 0) for x in self.labels]
        return {"picture": Image.new("L", (9, 9), 100 * (self.labels[key] or 0))}


def test_hugging_face_on_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"keyfilters\[hf\]"):
        load_data("hf:some/set")
    fake: Any = ModuleType("datasets")
    monkeypatch.setitem(sys.modules, "datasets", fake)
    fake.load_dataset = {
        "both": {"train": Rows(8), "test": Rows(4)},
        "one": {"train": Rows(10)},
    }.get
    data = load_data("hf:both", resolution=4)
    assert data.classes == ("no", "yes") and data.images.shape == (8, 1, 4, 4), "grey stays grey"
    assert torch.equal(data.images[:, 0, 2, 2].long(), 100 * data.labels)
    assert load_data("hf:both").images.shape == (8, 1, 9, 9), "small stays small"
    assert load_data("hf:both", channels=3).images.shape == (8, 3, 9, 9)
    assert len(load_data("hf:one", resolution=4).test_images) == 2
    secret: list[int | None] = [-1, -1, None]
    fake.load_dataset = {
        "next": {"train": Rows(8), "test": Rows(3, labels=secret), "validation": Rows(5)},
        "none": {"train": Rows(10), "test": Rows(3, labels=secret)},
        "some": {"train": Rows(9, labels=[0, 1, 0, 1, -1, -1, None, 0, 1]), "test": Rows(4)},
        "two": {"train": Rows(8, "coarse"), "test": Rows(4, "coarse")},
    }.get
    assert len(load_data("hf:next", resolution=4).test_images) == 5
    fake.load_dataset = {"all": {"train": Rows(8), "test": Rows(3), "validation": Rows(5)}}.get
    data = load_data("hf:all", validation=0.1)
    assert [len(x) for x, _ in data.parts().values()] == [8, 3, 5], "the source's own validation"
    assert "validation" not in load_data("hf:all").parts()
    fake.load_dataset = {
        "none": {"train": Rows(10), "test": Rows(3, labels=secret)},
        "some": {"train": Rows(9, labels=[0, 1, 0, 1, -1, -1, None, 0, 1]), "test": Rows(4)},
        "two": {"train": Rows(8, "coarse"), "test": Rows(4, "coarse")},
    }.get
    data = load_data("hf:none", resolution=4)
    assert data.labels.bincount().tolist() == [4, 4] and len(data.test_images) == 2
    data = load_data("hf:some", resolution=4)
    assert data.labels.tolist() == [0, 1, 0, 1, 0, 1], "below 0 is no class, not the last one"
    assert torch.equal(data.images[:, 0, 0, 0].long(), 100 * data.labels)
    message = "has the ClassLabel columns y, coarse; choose one with hf:two#y"
    with pytest.raises(KeyFiltersError, match=message):
        load_data("hf:two")
    fine, coarse = (load_data(f"hf:two#{column}", resolution=4) for column in ("y", "coarse"))
    assert torch.equal(fine.images, coarse.images) and torch.equal(fine.labels, 1 - coarse.labels)
    with pytest.raises(KeyFiltersError, match=r"no column 'coarsely' .*nearest names are: coarse"):
        load_data("hf:two#coarsely")
    texts = Rows(4)
    del texts.features["picture"]
    fake.load_dataset = {"texts": {"train": texts}}.get
    with pytest.raises(KeyFiltersError, match=r"hf:texts has y: ClassLabel; an Image"):
        load_data("hf:texts")
    fake.load_dataset = {"odd": {"all": Rows(4)}}.get
    with pytest.raises(KeyFiltersError, match="has all; train is expected"):
        load_data("hf:odd")
    fake.load_dataset = {}.__getitem__
    with pytest.raises(KeyFiltersError, match=r"hf:none cannot be loaded \(KeyError"):
        load_data("hf:none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "digit"}, "'digit'; digits, .* are known; the nearest names are: digits"),
        ({"classes": ["ten"]}, "digits has no class 'ten'; its 10 classes are: 0, 1, 2"),
        ({"classes": [10]}, "no class 10"),
        ({"classes": ["1", 1]}, "classes names one twice: 1, 1"),
        ({"samples": 2000}, "1438 training images; samples is 2000"),
        ({"samples": -1}, "samples is -1"),
        ({"channels": 2}, "channels is 2.*0, 1, 3"),
        ({"validation": 1.0}, "validation is 1.0"),
        ({"colour": 1}, "'colour' is no key of .data."),
        ({"unreadable": "stopp"}, "unreadable is 'stopp'; .*skip, stop"),
    ],
)
def test_what_the_user_can_mend(options: dict[str, Any], message: str) -> None:
    with pytest.raises(KeyFiltersError, match=message):
        load_data(**options)


@pytest.mark.parametrize("field", ["images", "labels", "test_images", "test_labels"])
def test_every_byte_tells_one_data_set_from_another(field: str) -> None:
    data = load_data("digits", samples=100)
    other = replace(data, **{field: getattr(data, field).flip(-1)})
    differ = {key for key, value in data.describe().items() if value != other.describe()[key]}
    part = {"images": "training", "labels": "training"}.get(field, "test")
    assert differ == {f"{part}_crc32"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(4, 1, 2, 2)}, r"training images are torch.float32 of shape \(4"),
        ({"labels": torch.zeros(4)}, r"training labels are torch.float32 .* int64 \(4,\) expected"),
        ({"test_labels": torch.tensor([0, 2])}, "test labels go from 0 to 2; 0 to 1 are expected"),
        ({"test_images": torch.zeros(2, 3, 2, 2).byte()}, "one shape is expected"),
    ],
)
def test_data_are_checked(change: dict[str, Any], message: str) -> None:
    good = {
        "images": torch.zeros(4, 1, 2, 2).byte(),
        "labels": torch.tensor([0, 1, 0, 1]),
        "test_images": torch.zeros(2, 1, 2, 2).byte(),
        "test_labels": torch.tensor([0, 1]),
        "classes": ("a", "b"),
    }
    Data("made", **good)
    with pytest.raises(KeyFiltersError, match=message):
        Data("made", **{**good, **change})
