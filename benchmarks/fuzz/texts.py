"""Texts that a user types, made from right ones by mutation and by hypothesis from their parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

__all__ = ["TEXTS", "mutated", "reader", "strategy"]

WORDS = [
    "?", "&", "=", ":", "/", "..", "\0", "\n", "#", ",", "-1", "0", "1e999", "nan", "9" * 40, "%s",
    "{}", "[", "]", "(", "'", '"', "\\", "\u202e", "\ud800", "ｆ", "٣", "²", "x" * 5000, "~",
    "$HOME", "*", "|", "true", "a.b.c", "__class__", "__import__('os')", "{{7*7}}", "<b>", "inf",
    "/dev/zero", "/etc/passwd", ".npz", ".txt", "keys", "learn", "random:", "lines:", "kmeans:",
    "[" * 300, "1" * 5000, "@", "file://", "..\\", "%00", "\x1b[2J",
]  # fmt: skip
TEXTS: dict[str, list[str]] = {
    "options": ["center-surround?gammas=0.33,0.5&std=keep", "digits?samples=100", "idealized"],
    "treatment": [
        "keys?keys=consensus&learn=bias,sigma", "transfer?from=x&control=impulse&freeze=1",
        "initialize:center-surround?std=keep&freeze=1", "idealized?assign_from=a", "frozen",
        "keys?keys=random:8&assignment=random", "learned",
    ],
    "treatment of a model": [
        "keys?keys=consensus&learn=bias,sigma", "initialize:center-surround?std=keep&freeze=1",
        "keys?keys=random:8&assignment=random", "initialize:covariance", "frozen", "idealized",
        "initialize:keys?keys=random:4", "initialize:trunc-normal?std=0.1",
    ],
    "keys": ["lindeberg2026-B", "published:lindeberg2026-A", "random:8", "consensus", "a.txt",
             "lines:4", "kmeans:4", "keys.npz"],
    "size": ["7", "1x7", "3×3", " 5 , 5 "],
    "change": ["optimiser.lr=0.1", "seed=3", 'model.options={a=1}', "data.name=digits",
               "filters.keys='consensus'", "augmentation.crop=[0.1,1]"],
    "recipe": [
        '[model]\nname = "test_convnext"\noptions = { patch_size = 1 }\n[data]\nsamples = 128\n'
        "[schedule]\nepochs = 2\n[ema]\ndecay = 0.9\n[filters]\nkeys = \"consensus\"\n",
        'seed = 1\n[augmentation]\nauto_augment = "rand-m9"\ncrop = 0.5\n[optimiser]\nlr = 1e-3\n',
    ],
    "data": ["digits?samples=100&classes=3,8", "imagefolder:x", "fashion-mnist:x", "hf:x#label",
             "torchvision:CIFAR10", "photos", "hf:parquet/x"],
    "source": ["timm:no_such?pretrained=false", "hf-hub:a/b", "package:timm/x", "net.pth", "*.pt",
               "torchvision:resnet?pretrained=true", "keras:a", "file://x", "a.onnx#s", "ftp://x/y",
               "https://a/b.pth", "hf-hub:a/b@main"],
    "filters of a text file": ["Filter 1:\n0 1\n2 3\n\nFilter 2:\n4 5\n6 7\n", "1 2 3\n4 5 6\n"],
}  # fmt: skip


def mutated(text: str, rng: np.random.Generator) -> str:
    """Change a text at a few places."""
    for _ in range(rng.integers(1, 4)):
        at, end = sorted(int(x) for x in rng.integers(0, len(text) + 1, 2))
        way = rng.integers(5)
        word = WORDS[rng.integers(len(WORDS))]
        if way == 0:
            text = text[:at] + word + text[at:]
        elif way == 1:
            text = text[:at] + word + text[at + 1 :]
        elif way == 2:
            text = text[:at] + text[at + 1 :]
        elif way == 3:
            text = text[:end] + text[at:end] + text[end:]
        else:
            text = text[:at] + chr(int(rng.integers(1, 0x3000))) + text[at:]
    return text


def strategy(kind: str) -> st.SearchStrategy[str]:
    """Return a strategy of texts: pieces of right ones, numbers and any characters, in any order.

    >>> isinstance(strategy("size"), st.SearchStrategy)
    True
    """
    pieces = sorted({x for text in TEXTS[kind] for x in _pieces(text)})
    numbers = st.integers(-(10**20), 10**20).map(str) | st.floats().map(str)
    part = st.sampled_from(pieces) | st.sampled_from(WORDS) | numbers | st.text(max_size=8)
    return st.one_of(st.lists(part, max_size=10).map("".join), st.text(max_size=40))


def _pieces(text: str) -> list[str]:
    found, word = [], ""
    for x in text:
        if x.isalnum() or x in "-_.":
            word += x
        else:
            found += [word, x]
            word = ""
    return [x for x in (*found, word) if x]


def reader(kind: str) -> Callable[[str], Any]:
    """Return what reads texts of a kind; files that it needs are made in the current folder."""
    from keyfilters.filter_files import read_filters
    from keyfilters.keyset import KeySet
    from keyfilters.query_strings import parse
    from keyfilters.sizes import parse_size
    from keyfilters.sources import read_one
    from keyfilters.treatment import FilterRecipe, Treatment

    def in_file(name: str, read: Callable[[Path], Any]) -> Callable[[str], Any]:
        def run(text: str) -> Any:
            Path(name).write_bytes(text.encode("utf-8", "surrogatepass"))
            return read(Path(name))

        return run

    def change(text: str) -> Any:
        Path("recipe.toml").write_text(TEXTS["recipe"][0], encoding="utf-8")
        return FilterRecipe.load(Path("recipe.toml"), text)

    def treatment(text: str) -> Any:
        found = Treatment.parse(text)
        assert Treatment.parse(str(found)) == found or not str(found)
        return found.factors()

    readers: dict[str, Callable[[str], Any]] = {
        "options": parse,
        "treatment": treatment,
        "treatment of a model": lambda text: Treatment.parse(text).apply_(_network()),
        "keys": lambda text: KeySet.named(text, 5),
        "size": parse_size,
        "change": change,
        "recipe": in_file("recipe.toml", FilterRecipe.load),
        "data": _data,
        "source": read_one,
        "filters of a text file": in_file("keys.txt", read_filters),
    }
    return readers[kind]


def _network() -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 5, groups=8), nn.BatchNorm2d(8))


def _data(text: str) -> Any:
    from keyfilters.query_strings import parse
    from keyfilters.training import load_data

    name, options = parse(text)
    return load_data(**{**options, "name": name})
