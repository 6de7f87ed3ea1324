"""State dicts under any wrapper, and files that hold several sets of weights."""

from __future__ import annotations

import argparse
import contextlib
import io
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import keyfilters as kf
from keyfilters.sources.pickles import Thing, load_inert


def state(value: float = 1.0, channels: int = 4) -> dict[str, Tensor]:
    shape = torch.arange(channels * 9.0).reshape(channels, 1, 3, 3)
    return {"stem.weight": torch.ones(4, 3, 3, 3), "block.0.dw.weight": shape + value}


class Holder:
    """An object of a training script, such as a state or an average."""

    def __init__(self, **held: Any) -> None:
        self.__dict__.update(held)


class Rows(list[Any]):
    """A list of a class of its own."""


SLOT = {"state": {0: {"exp_avg": state()["block.0.dw.weight"]}}, "param_groups": [{"lr": 0.1}]}
WRAPPED: dict[str, Any] = {
    "plain": state(),
    "ordered": OrderedDict(state()),
    "default": defaultdict(int, state()),
    "state_dict": {"state_dict": state()},
    "two levels": {"a": {"b": state()}},
    "unusual key": {"my_network_weights": state()},
    "params": {"params": state()},
    "list": [state()],
    "list of a class": {"rows": Rows([state()])},
    "tuple and epoch": (state(), 3, "text"),
    "pairs": list(state().items()),
    "deep list": {"x": [[{"y": (state(),)}]]},
    "optimiser": {"model": state(), "optimizer": SLOT},
    "optimiser of another name": {"model": state(), "steps": SLOT},
    "prefix": {f"module.{k}": v for k, v in state().items()},
    "two prefixes": {f"module._orig_mod.{k}": v for k, v in state().items()},
    "arguments": {"args": argparse.Namespace(lr=1), "net": state()},
    "object": {"trainer": Holder(weights=state(), step=3)},
    "random state": {"rng": torch.get_rng_state(), "numpy": np.ones(3), "model": state()},
    "arrays": {k: v.numpy() for k, v in state().items()},
    "parameters": {k: nn.Parameter(v) for k, v in state().items()},
    "nested": {"stem": {"weight": state()["stem.weight"]}, "block": {"0": {"dw": {}}}},
    "none": {"ema": None, "model": state(), "scheduler": {"last": torch.ones(1)}},
}
WRAPPED["nested"]["block"]["0"]["dw"]["weight"] = state()["block.0.dw.weight"]


@pytest.mark.parametrize("name", WRAPPED)
def test_the_same_weights_under_any_wrapper(tmp_path: Path, name: str) -> None:
    torch.save(WRAPPED[name], tmp_path / "net.ckpt")
    sources: list[Any] = [tmp_path / "net.ckpt"]
    if isinstance(WRAPPED[name], Mapping) and name != "object":  # known from a file only
        sources.append(WRAPPED[name])
    for source in sources:
        [layer] = kf.read(source).layers
        assert layer.name == "block.0.dw"
        np.testing.assert_array_equal(layer.weight, state()["block.0.dw.weight"][:, 0])


SETS: dict[str, tuple[dict[str, Any], str]] = {
    "average": ({"params": state(1), "params_ema": state(2)}, "params_ema"),
    "generator": ({"discriminator": state(1, 6), "generator": state(2)}, "generator"),
    "short names": ({"netD": state(1, 6), "netG": state(2)}, "netG"),
    "averaged teacher": ({"student": state(1), "teacher": state(2)}, "teacher"),
    "larger teacher": ({"teacher": state(1, 6), "student": state(2)}, "student"),
    "three": ({"model": state(1), "swa_model": state(2), "other": state(3)}, "swa_model"),
    "usual": ({"best": state(1), "state_dict": state(2)}, "state_dict"),
    "inside": ({"weights": {"d": state(1, 6), "g_ema": state(2), "g": state(3)}}, "weights.g_ema"),
    "prefixes": (
        {f"{k}.{name}": x for i, k in enumerate(("student", "teacher"), 1)
         for name, x in state(i).items()},
        "teacher",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SETS)
def test_all_sets_are_listed_and_the_choice_is_said(tmp_path: Path, case: str) -> None:
    content, best = SETS[case]
    torch.save(content, tmp_path / "net.pth")
    bank = kf.read(tmp_path / "net.pth")
    [layer] = bank.layers
    np.testing.assert_array_equal(layer.weight, state(2)["block.0.dw.weight"][:, 0])
    others = [why for _, why in bank.skipped if "another set" in why]
    assert others and all(repr(best) in why for why in others)
    assert repr(best) in layer.note
    for name, why in bank.skipped:
        if "another set" in why:
            other = kf.read(f"{tmp_path / 'net.pth'}#{name.removeprefix('net/')}")
            assert len(other.layers) == 1 and "asked for" in other.layers[0].note


def test_a_set_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    torch.save(SETS["average"][0], tmp_path / "net.pth")
    path = tmp_path / "net.pth"
    assert len(kf.read(f"{path}#params")) == 4
    with pytest.raises(kf.KeyFiltersError, match=r"no set .*params, params_ema"):
        kf.read(f"{path}#ema")
    path.rename(tmp_path / "net#1.pth")  # a name with the sign is a name
    assert len(kf.read(tmp_path / "net#1.pth")) == 4


def test_layers_of_one_model_are_no_sets() -> None:
    parts = {f"conv{i}": {"weight": torch.ones(4, 1, 3, 3) * i} for i in range(3)}
    bank = kf.read(parts)
    assert [x.name for x in bank.layers] == ["conv0", "conv1", "conv2"] and not bank.skipped


# ------------------------------------------------------------------ the inert machine


def test_plain_values_come_out_as_they_are() -> None:
    value = {"a": [1, 2.5, None, True, b"x", (1,), {2: "z"}], "big": 10**30, "s": "é" * 300}
    for protocol in range(6):
        loaded = load_inert(io.BytesIO(pickle.dumps(value, protocol)), LATIN)
        assert loaded == value


LATIN = {"_codecs.encode": lambda args: args[0].encode("latin-1")}


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'touch made'\ntR.",
        b"(S'touch made'\nios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0atouch made\x85R.",
        b"\x80\x02cbuiltins\neval\n(X\x05\x00\x00\x003 + 4tR.",
        b"\x80\x02(cos\nsystem\nX\x04\x00\x00\x00madeo.",
    ],
)
def test_functions_become_placeholders(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = load_inert(io.BytesIO(content))
    assert isinstance(made, Thing) and made.kind in ("os.system", "builtins.eval")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02}q\x00h\x05.",
        b"\x80\x02K\x01K\x02s.",
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x00x.",
        b"\x80\x04B\xff\xff\xff\x7fx.",
        b"\x80\x02t.",
        b"\x80\x02]K\x01b.r\xff\xff\xff\xff",
    ],
)
def test_damaged_pickles_raise_value_errors(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        load_inert(io.BytesIO(content))


class Keyword:
    """Made by keywords, which only newer protocols keep."""

    def __new__(cls, *, name: str) -> Keyword:
        return super().__new__(cls)

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, str]]:
        return (), {"name": "x"}


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"\x80\x02K\x01(K\x02K\x031.", 1),  # numbers that are taken off again
        (pickle.dumps({(1, "a"): 2, (): 3}), {(1, "a"): 2, (): 3}),
        (b"P42\n.", "42"),  # a persistent id in text
        (b"\x80\x02K\x01.K\x02.", 1),  # what follows the end
    ],
)
def test_rare_instructions(content: bytes, value: Any) -> None:
    assert load_inert(io.BytesIO(content)) == value


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (pickle.dumps(Keyword(name="x"), 4), f"{__name__}.Keyword"),
        (b"\x80\x02\x82\x05)R.", "extension.5"),  # a class by its number
    ],
)
def test_objects_made_in_rare_ways_are_placeholders(content: bytes, kind: str) -> None:
    made = load_inert(io.BytesIO(content))
    assert isinstance(made, Thing) and made.kind == kind and made.args == ()


BUFFER = pickle.dumps(pickle.PickleBuffer(b"abc"), 5, buffer_callback=lambda _: None)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (BUFFER, "outside"),
        (b"\x80\x02K\x01K\x02a.", "no list"),
        (b"\x80\x02K\x01K\x02K\x03s.", "no mapping"),
        (b"\x80\x02K\x01", "STOP"),
        (b"\x80\x02\xfe.", "opcode"),
    ],
)
def test_instructions_that_make_nothing(content: bytes, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        load_inert(io.BytesIO(content))


def test_large_places_in_memory_and_shared_keys_cost_nothing() -> None:
    assert load_inert(io.BytesIO(b"\x80\x02K\x01r\xff\xff\xff\x7f0j\xff\xff\xff\x7f.")) == 1
    doubled = b"".join(b"2\x86" for _ in range(60))  # pairs of pairs, each both halves of the next
    made = load_inert(io.BytesIO(b"\x80\x02}K\x01" + doubled + b"K\x02s."))
    assert list(made.values()) == [2]


def test_a_pickle_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyfilters.sources.pickles.MOST", 100)
    with pytest.raises(ValueError, match="instructions"):
        load_inert(io.BytesIO(b"\x80\x02" + b"]" * 200 + b"."))


def test_names_that_resemble_those_of_states_are_taken() -> None:
    kernel = torch.rand(8, 1, 3, 3)
    names = ["body.weight", "upscaler.dw.weight", "optimus.dw.weight", "grad_scaler.weight"]
    bank = kf.read({name: kernel + i for i, name in enumerate(names)} | {"exp_avg": kernel})
    assert [x.name for x in bank.layers] == [name.removesuffix(".weight") for name in names]
    assert [name for name, _ in bank.skipped] == ["state_dict/exp_avg"]
    inside = kf.read({"upscaler": {"a.weight": kernel}, "optimizer": {"b.weight": kernel}})
    assert [x.name for x in inside.layers] == ["a"]


@pytest.mark.parametrize("steps", [{}, {"average.n_averaged": torch.tensor(3)}])
def test_an_average_that_is_wrapped_once_more_is_no_second_network(steps: dict[str, Any]) -> None:
    model = {"model.a.weight": torch.rand(8, 1, 3, 3), "model.b.weight": torch.rand(8, 1, 3, 3)}
    copy = {name.replace("model", "average.module"): x + 1 for name, x in model.items()}
    bank = kf.read({**model, **steps, **copy})
    assert len(bank) == 16 and "model" in bank.skipped[0][0]
    np.testing.assert_array_equal(bank.layers[0].weight, copy["average.module.a.weight"][:, 0])


def test_a_wrapped_module_keeps_what_its_convolutions_tell(tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, stride=2, groups=8), nn.ConvTranspose2d(8, 8, 4)
    )
    torch.save(net, tmp_path / "plain.pth")
    torch.save(nn.DataParallel(net), tmp_path / "wrapped.pth")
    plain, wrapped = (kf.read(tmp_path / f"{name}.pth") for name in ("plain", "wrapped"))
    assert [(x.name, x.stride, x.groups) for x in wrapped.layers] == [("1", (2, 2), 8)]
    reasons = [[why for _, why in bank.skipped] for bank in (plain, wrapped)]
    assert reasons[0] == reasons[1] and len(reasons[0]) == 2


def test_convolutions_that_encode_positions_are_taken() -> None:
    kernel, line = torch.rand(8, 1, 3, 3), torch.rand(8, 1, 3)
    held = {"stem.weight": torch.ones(8, 3, 3, 3), "b.pos_embed.weight": kernel}
    others = {"pos_embed": torch.rand(4, 1, 3, 3), "blur.weight": kernel}
    bank = kf.read({**held, "b.attn.weight": kernel + 1, **others})
    assert [x.name for x in bank.layers] == ["b.pos_embed", "b.attn"]
    assert {f"state_dict/{name}" for name in others} <= {name for name, _ in bank.skipped}
    held = {"stem.weight": torch.ones(8, 3, 3), "b.pos_embed.weight": line}
    assert [x.name for x in kf.read(held).layers] == ["b.pos_embed"]
