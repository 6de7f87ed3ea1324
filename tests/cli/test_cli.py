from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.cli import main
from keyfilters.cli.common import one_command


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = 0
    argv, sys.argv = sys.argv, ["keyfilters", *arguments]
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = argv
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 96, 1), nn.Conv2d(96, 96, 5, groups=96))
    with torch.no_grad():
        net[1].weight[0, 0, 0, 0] = torch.nan  # type: ignore[index]
        net[1].weight[1] = 0  # type: ignore[index]
    torch.save(net.state_dict(), tmp_path / "net.pth")
    return tmp_path / "net.pth"


def test_atlas_writes_its_files(
    capsys: pytest.CaptureFixture[str], model_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "out"
    few = np.random.default_rng(0).normal(size=(9, 3, 3)).astype(np.float32)
    small = tmp_path / "small.safetensors"
    kf.FilterBank([Layer("small", "conv", few, None, None, 0.0)]).save(small)
    given = (str(model_file), str(small), "--out", str(out), "--seeds", "1")
    code, text, _ = run(capsys, "atlas", *given)
    assert code == 0 and "3×3: no patterns looked for, 9 usable filters" in text
    assert sorted(p.name for p in out.iterdir()) == [
        "atlas.safetensors",
        "bank.safetensors",
        "filters.parquet",
        "report.html",
        "summary.json",
    ]
    assert f"The page: {out.resolve() / 'report.html'}" in text
    summary = json.loads((out / "summary.json").read_text())
    assert summary["config"]["seeds"] == 1
    assert summary["unusable"] == {"non-finite": 1, "dead": 1}
    assert "left out: 1 non-finite filters" in text


@pytest.mark.slow
def test_atlas_of_sources_read_at_once(
    capsys: pytest.CaptureFixture[str], model_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copy(model_file, tmp_path / "other.pth")
    sources = [str(model_file), str(tmp_path / "other.pth")]
    options = ["--out", str(out), "--seeds", "1", "--executor", "local"]
    code, _, error = run(capsys, "atlas", *sources, "broken.pth", *options)
    assert code == 2 and error.count("\n") == 1 and not (out / "report.html").exists()
    assert "1 of 3 sources cannot be read: broken.pth: there is no file broken.pth" in error
    code, _, _ = run(capsys, "atlas", *sources, *options)
    assert code == 0 and (out / "report.html").exists()
    found, direct = kf.FilterBank.load(out / "bank.safetensors"), kf.read(*sources)
    assert found.models == direct.models and found.skipped == direct.skipped
    for size in direct.sizes:
        np.testing.assert_array_equal(found.stack(size)[0], direct.stack(size)[0])
    assert len(pd.read_csv(out / "reading" / "table.csv")) == 2


def test_read_lists_layers_and_writes_a_bank(
    capsys: pytest.CaptureFixture[str], model_file: Path, tmp_path: Path
) -> None:
    before = set(tmp_path.iterdir())
    code, listed, _ = run(capsys, "read", str(model_file))
    assert code == 0 and set(tmp_path.iterdir()) == before
    code, text, _ = run(capsys, "read", str(model_file), "--out", str(tmp_path / "out"))
    assert code == 0 and "96 filters in 1 layer " in text and text.startswith(listed)
    assert "skipped: 1 × pointwise (1×1) convolution" in text
    assert "could also be a convolution of a one-channel image" in text
    assert "unusable filter: 1 × non-finite" in text
    bank = kf.FilterBank.load(tmp_path / "out" / "bank.safetensors")
    np.testing.assert_array_equal(bank.stack(5)[0], kf.read(model_file).stack(5)[0])
    assert pd.read_csv(tmp_path / "out" / "layers.csv")["filters"].tolist() == [96]
    assert len(pd.read_csv(tmp_path / "out" / "skipped.csv")) == 1


def test_sources_lists_what_is_here(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text, _ = run(capsys, "sources", "--out", str(tmp_path))
    assert code == 0 and "safetensors" in text and "package:" in text
    found = json.loads((tmp_path / "sources.json").read_text())
    assert {"formats", "packages", "hub"} == set(found)
    monkeypatch.setattr("keyfilters.sources.packages.installed_model_files", dict)
    code, text, _ = run(capsys, "sources")
    assert code == 0 and "none; for a first one" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.pth"], "there is no file nothing.pth"),
        (["timm:convnext_tiy?pretrained=false"], "nearest names are: convnext_tiny"),
        (["timm:test_vit?pretrained=false"], "no depthwise filters"),
        (["package:no-such-distribution"], "no installed distribution"),
        (["MODEL", "--threshold", "3"], "threshold must lie between 0 and 1"),
        (["MODEL", "--device", "cuda:99"], "cannot compute on 'cuda:99'"),
        (["MODEL", "--out", "MODEL"], "is a file; give a folder"),
        (["MODEL", "--executor", "rai"], "no executor 'rai'; local or ray is expected"),
        (["MODEL", "--address", "auto"], "type also: --executor ray"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str],
    model_file: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    out = tmp_path / "out"
    arguments = [str(model_file) if a == "MODEL" else a for a in arguments]
    if "--out" not in arguments:
        arguments += ["--out", str(out)]
    code, _, error = run(capsys, "atlas", *arguments)
    assert code == 2
    assert error.startswith("keyfilters: ") and message in error
    assert error.count("\n") == 1 and "Traceback" not in error
    assert not out.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".onnx", ".tflite"])
def test_corrupt_files_of_every_format(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, suffix: str
) -> None:
    broken = tmp_path / f"broken{suffix}"
    broken.write_bytes(np.random.default_rng(0).bytes(500))
    for verb in ("atlas", "read"):
        code, _, error = run(capsys, verb, str(broken), "--out", str(tmp_path / "out"))
        assert code == 2 and "is not a readable" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_failure_while_writing_leaves_nothing_behind(
    capsys: pytest.CaptureFixture[str],
    model_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("keyfilters.report.page.render_report", full)
    out = tmp_path / "out"
    code, _, error = run(capsys, "atlas", str(model_file), "--out", str(out), "--seeds", "1")
    assert code == 2 and "cannot write" in error and "No space left" in error
    assert not out.exists()


@pytest.mark.parametrize("name", [None, "folder/x.pth", 7])
def test_what_the_system_refuses_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str | int | None
) -> None:
    def refuse() -> dict[str, list[Path]]:
        raise OSError(errno.EIO, "Input/output error", name)

    monkeypatch.setattr("keyfilters.sources.packages.installed_model_files", refuse)
    code, _, error = run(capsys, "sources")
    assert code == 2 and error.startswith("keyfilters: Input/output error")
    assert error.count("\n") == 1 and ("folder/x.pth" in error) is (name == "folder/x.pth")


def test_what_is_lost_in_a_finaliser_goes_where_it_went_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Fragile:
        def __del__(self) -> None:
            raise ValueError("lost")

    lost: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: lost.append(str(told.exc_value)))
    with one_command():
        one = Fragile()
        del one
    assert lost == ["lost"]


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"keyfilters {kf.__version__}\n", "")
    done = subprocess.run(
        [sys.executable, "-m", "keyfilters", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["keyfilters", kf.__version__]


def test_help_imports_no_torch() -> None:
    # What makes it quick; how quick it is, `make bench` says.
    probe = "import sys, keyfilters.cli; print('torch' in sys.modules or 'timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    command = [sys.executable, "-m", "keyfilters", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {"atlas", "check", "compare", "sources"} <= set(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["read", "FILE", "--device", "gpu"], "cannot compute on 'gpu'"),
        (["check", "FILE", "--device", "nonsense"], "cannot compute on 'nonsense'"),
        (["sources", "--device", "nonsense"], "cannot compute on 'nonsense'"),
        (["fit", "FILE", "--device", "nonsense"], "cannot compute on 'nonsense'"),
        (["atlas", "FILE", "--like", "zoo-5x5", "--seeds", "9", "--feed-forward"],
         "leave out --seeds, --feed-forward"),
        (["discover", "FILE", "--cpus-per-run", "3"], "keyfilters: --cpus-per-run 3 is for"),
        (["discover", "FILE", "--criterion", "outptus"], "there are: variance, outputs,"),
        (["init", "test_convnext", "--scheme", "idealized"], "type also: --bank SOURCE"),
        (["experiment", "page", "none.json"], "none.json: No such file"),
        (["replace", "FILE", "--keys", "idealised"], "idealized"),
    ],
)  # fmt: skip
def test_what_was_typed_is_what_is_told(
    capsys: pytest.CaptureFixture[str], model_file: Path, arguments: list[str], words: str
) -> None:
    arguments = [str(model_file) if x == "FILE" else x for x in arguments]
    code, out, err = run(capsys, *arguments)
    assert code == 2 and not out and err.count("\n") == 1
    assert words in err and "gpus-per-run" not in err


def test_filters_that_an_atlas_has_no_patterns_of_are_counted(
    capsys: pytest.CaptureFixture[str], model_file: Path, tmp_path: Path
) -> None:
    torch.save(
        {**torch.load(model_file), "small.weight": torch.rand(7, 1, 3, 3)}, tmp_path / "both.pth"
    )
    out = str(tmp_path / "named")
    code, told, _ = run(capsys, "atlas", str(tmp_path / "both.pth"), "--like", "zoo-5x5",
                        "--out", out)  # fmt: skip
    assert code == 0 and "7 filters of other kernel sizes" in told


@pytest.mark.parametrize("arguments", [["--help"], ["check", "--strict", "FILE"]])
def test_a_reader_that_has_gone_is_no_finding(model_file: Path, arguments: list[str]) -> None:
    arguments = [str(model_file) if x == "FILE" else x for x in arguments]
    command = [sys.executable, "-m", "keyfilters", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait() == 141


def test_no_word_of_a_help_is_taken_for_markup() -> None:
    """Rich leaves out what stands in square brackets."""
    import typer

    from keyfilters.cli import app

    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    for command in group.commands.values():
        texts = [command.help or "", *(getattr(x, "help", None) or "" for x in command.params)]
        assert not [text for text in texts if "[" in text], command.name


def test_tables_in_a_pipe_are_not_folded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    name = "stages.2.blocks.17.depthwise_convolution_of_a_long_name." * 3 + "weight"
    torch.save({"stem.weight": torch.ones(4, 3, 3, 3), name: torch.rand(8, 1, 3, 3)},
               tmp_path / "net.pth")  # fmt: skip
    code, out, _ = run(capsys, "read", str(tmp_path / "net.pth"))
    assert code == 0 and name.removesuffix(".weight") in out
