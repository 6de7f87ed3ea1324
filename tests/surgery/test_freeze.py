from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import keyfilters as kf
from keyfilters.errors import KeyFiltersError, NoFiltersError
from keyfilters.surgery.freeze import Frozen, freeze_filters_, unfreeze_filters_


class Block(nn.Module):
    """Depthwise and pointwise convolution, each with its batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.act = nn.ReLU()
        self.norm = nn.BatchNorm2d(6)
        self.pointwise = nn.Conv2d(6, 6, 1)
        self.norm2 = nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm2(self.pointwise(self.norm(self.act(self.depthwise(x)))))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
    return nn.Sequential(stem, Block(), Block(), nn.Flatten(), nn.Linear(6 * 36, 2))


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 3


def step(net: nn.Module, trainable_only: bool = False) -> None:
    """One step of SGD with momentum and weight decay, twice."""
    parameters = [p for p in net.parameters() if p.requires_grad or not trainable_only]
    optimiser = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(IMAGES), torch.tensor([0, 1, 0, 1])).backward()
        optimiser.step()


def state(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in net.state_dict().items()}


def moved(net: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, x in net.state_dict().items() if not torch.equal(x, before[name])}


@pytest.mark.parametrize("trainable_only", [False, True])
def test_a_training_step_moves_all_but_the_frozen_filters(
    net: nn.Module, trainable_only: bool
) -> None:
    frozen = freeze_filters_(net)
    before = state(net)
    step(net, trainable_only)
    frozen.check()
    assert set(before) - moved(net, before) == {"1.depthwise.weight", "2.depthwise.weight"}


def test_without_freezing_the_check_names_every_layer(net: nn.Module) -> None:
    frozen = freeze_filters_(net)
    unfreeze_filters_(net)
    step(net)
    with pytest.raises(KeyFiltersError, match=r"1\.depthwise\.weight, 2\.depthwise\.weight"):
        frozen.check()


def test_an_optimiser_with_an_old_gradient_and_momentum_moves_nothing(net: nn.Module) -> None:
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    net(IMAGES).sum().backward()
    optimiser.step()
    net(IMAGES).sum().backward()
    frozen = freeze_filters_(net)
    optimiser.step()
    frozen.check()


def test_one_bit_is_seen(net: nn.Module) -> None:
    frozen = freeze_filters_(net)
    weight = net[1].depthwise.weight
    with torch.no_grad():
        kept = weight.clone()
        weight[0, 0, 0, 0] = 0.0
        zero = freeze_filters_(net)
        weight[0, 0, 0, 0] = -0.0
        with pytest.raises(KeyFiltersError, match=r"moved: 1\.depthwise\.weight$"):
            zero.check()
        weight.copy_(kept)
    frozen.check()


def test_check_survives_layout_copies_and_reloading(net: nn.Module, tmp_path: Path) -> None:
    frozen = freeze_filters_(net, batchnorm="frozen", bias=True)
    net.to(memory_format=torch.channels_last)
    frozen.check()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other = copy.deepcopy(net)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(KeyFiltersError, match=r"depthwise\.bias, 1\.norm\.weight, 2\.depthwise"):
        frozen.check(other)
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    frozen.check(other)
    with pytest.raises(KeyFiltersError, match=r"1\.depthwise\.weight \(gone\)"):
        frozen.check(nn.Sequential(nn.Identity()))
    net.half()
    with pytest.raises(KeyFiltersError, match="moved"):
        frozen.check()


# -- batch normalisation

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("policy", ["train", "eval", "frozen"])
def test_policies_of_the_batch_normalisation_that_follows(net: nn.Module, policy: str) -> None:
    frozen = freeze_filters_(net, layers=["1.*"], batchnorm=policy)
    before = state(net)
    net.eval()
    net.train()  # as every training loop does
    step(net)
    frozen.check()
    still = {f"1.norm.{x}" for x in STATISTICS if policy != "train"}
    still |= {f"1.norm.{x}" for x in ("weight", "bias") if policy == "frozen"}
    assert set(before) - moved(net, before) == {"1.depthwise.weight", *still}


def test_kept_statistics_are_used_in_training(net: nn.Module) -> None:
    freeze_filters_(net, batchnorm="eval")
    net.train()
    x = torch.randn(4, 6, 5, 5)
    norm = net[1].norm
    expected = nn.functional.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )
    torch.testing.assert_close(norm(x), expected)


def through_pickle(net: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(net))


def through_torch_save(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle, through_torch_save])
def test_the_policy_goes_with_copies(
    net: nn.Module, duplicate: Callable[[nn.Module], nn.Module]
) -> None:
    frozen = freeze_filters_(net, batchnorm="eval")
    twin = duplicate(net).train()
    step(twin)
    frozen.check(twin)
    # Releasing the copy leaves the original as it is.
    unfreeze_filters_(twin)
    step(twin)
    with pytest.raises(KeyFiltersError, match=r"1\.norm\.running_mean"):
        frozen.check(twin)
    step(net)
    frozen.check()


@pytest.mark.parametrize("policy", ["eval", "frozen"])
@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel, copy.deepcopy])
def test_the_policy_goes_with_what_replaces_the_normalisation(
    policy: str, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.BatchNorm2d(3))
    frozen = freeze_filters_(net, batchnorm=policy)
    converted = wrap(nn.SyncBatchNorm.convert_sync_batchnorm(net)).train()
    inner = converted.module if isinstance(converted, nn.DataParallel) else converted
    assert type(inner[1]) is nn.SyncBatchNorm
    converted(IMAGES).sum().backward()  # in training mode it would refuse to run on the CPU
    assert not inner[1].training and (inner[1].weight.grad is None) == (policy == "frozen")
    frozen.check(converted)
    assert unfreeze_filters_(inner) == ["0", "1"]
    assert inner[1].training and inner[1].weight.requires_grad
    assert not inner._forward_pre_hooks and not inner[1]._forward_pre_hooks


def test_recalibrated_statistics_are_reported(net: nn.Module) -> None:
    frozen = freeze_filters_(net, batchnorm="eval")
    net[2].norm.running_var.mul_(2)
    with pytest.raises(KeyFiltersError, match=r"moved: 2\.norm\.running_var$"):
        frozen.check()


def test_freezing_again_replaces_the_policy(net: nn.Module) -> None:
    freeze_filters_(net, batchnorm="frozen", bias=True)
    frozen = freeze_filters_(net, batchnorm="train")
    before = state(net)
    step(net)
    frozen.check()
    assert set(before) - moved(net, before) == {"1.depthwise.weight", "2.depthwise.weight"}
    assert not net[1].norm._forward_pre_hooks


@pytest.mark.parametrize("training", [False, True])
def test_unfreezing_restores_what_was(net: nn.Module, training: bool) -> None:
    net.train(training)
    net[1].depthwise.weight.requires_grad_(False)
    net[2].norm.bias.requires_grad_(False)
    trainable = {name: p.requires_grad for name, p in net.named_parameters()}
    modes = {name: module.training for name, module in net.named_modules()}
    for policy in ("eval", "frozen"):
        freeze_filters_(net, batchnorm=policy, bias=True)
    released = unfreeze_filters_(net)
    assert released == ["1.depthwise", "1.norm", "2.depthwise", "2.norm"]
    assert {name: p.requires_grad for name, p in net.named_parameters()} == trainable
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert not any(m._forward_pre_hooks for m in net.modules())
    assert unfreeze_filters_(net) == []


def test_which_normalisation_follows() -> None:
    def dw(channels: int) -> nn.Conv2d:
        return nn.Conv2d(channels, channels, 3, groups=channels, bias=False)

    inner = nn.Sequential(dw(4), nn.Sequential(nn.BatchNorm2d(4)), nn.BatchNorm2d(4))
    net = nn.Sequential(
        nn.BatchNorm2d(4),
        dw(4),
        nn.BatchNorm2d(8),  # of another number of features: passed over
        nn.BatchNorm2d(4),
        dw(4),  # a pointwise convolution comes first: none
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4),
        inner,
        dw(4),  # last
        dw(4),
        nn.SyncBatchNorm(4),
    )
    table = freeze_filters_(net, batchnorm="eval").table
    assert table["batchnorm"].tolist() == ["3", "", "7.2", "", "10"]
    assert table["policy"].tolist() == ["eval", "", "eval", "", "eval"]
    assert (table["bias"] == "none").all()


def test_timm_blocks_find_their_normalisation() -> None:
    net = timm.create_model("test_efficientnet", pretrained=False)
    frozen = freeze_filters_(net, batchnorm="frozen")
    assert frozen.table["batchnorm"].tolist() == ["blocks.3.0.bn2", "blocks.4.0.bn2"]
    before = state(net)
    net.train()
    net(torch.randn(2, 3, 64, 64)).sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1).step()
    frozen.check()
    still = set(before) - moved(net, before)
    assert "blocks.3.0.bn2.running_mean" in still and "blocks.3.0.bn1.running_mean" not in still


# -- the table, and what is refused


def test_table(net: nn.Module) -> None:
    frozen = freeze_filters_(net, layers="2.*", batchnorm="eval", bias=True)
    assert isinstance(frozen, Frozen)
    left, row = (frozen.table.iloc[i] for i in range(2))
    assert left["layer"] == "1.depthwise" and "not among" in left["left"]
    assert row.drop("sha256").to_dict() == {
        "layer": "2.depthwise",
        "size": "3×3",
        "filters": 6,
        "depth": 1.0,
        "bias": "frozen",
        "batchnorm": "2.norm",
        "policy": "eval",
        "left": "",
    }
    assert frozen.digests["2.depthwise.weight"].startswith(row["sha256"])
    assert len(row["sha256"]) == 12
    assert net[1].depthwise.weight.requires_grad


def test_a_bare_convolution() -> None:
    conv = nn.Conv2d(4, 4, 3, groups=4)
    frozen = freeze_filters_(conv, batchnorm="eval")
    frozen.check()
    with torch.no_grad():
        conv.weight += 1
    with pytest.raises(KeyFiltersError, match="weight"):
        frozen.check()


def test_what_cannot_be_frozen_is_refused(net: nn.Module) -> None:
    with pytest.raises(KeyFiltersError, match="train, eval, frozen"):
        freeze_filters_(net, batchnorm="off")
    with pytest.raises(KeyFiltersError, match="Module"):
        freeze_filters_(net.state_dict())  # type: ignore[arg-type]
    with pytest.raises(KeyFiltersError, match=r"nearest names are: .*1\.depthwise"):
        freeze_filters_(net, layers=["1.depthwis"])
    with pytest.raises(NoFiltersError):
        freeze_filters_(nn.Linear(2, 2))
    net[1].norm = nn.BatchNorm2d(6, track_running_stats=False)
    with pytest.raises(KeyFiltersError, match=r"1\.norm has no statistics"):
        freeze_filters_(net, batchnorm="eval")
    size = net[2].depthwise.kernel_size[0]
    kf.parametrize_filters_(net, kf.KeySet.random(2, size=size), layers=["2.depthwise"])
    with pytest.raises(KeyFiltersError, match=r"2\.depthwise .* parametrised.*bake"):
        freeze_filters_(net)
    assert all(parameter.requires_grad for parameter in net.parameters())
    freeze_filters_(net, layers=["1.*"]).check()


def test_what_was_removed_since_needs_no_release() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older way, still common
        conv = torch.nn.utils.weight_norm(nn.Conv2d(6, 6, 3, groups=6))
    net = nn.Sequential(conv, nn.BatchNorm2d(6))
    freeze_filters_(net, batchnorm="frozen")
    torch.nn.utils.remove_weight_norm(net[0])
    unfreeze_filters_(net)
    assert all(x.requires_grad for x in net.parameters())
