"""The page's script in a real browser, where one is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import keyfilters as kf

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --virtual-time-budget=8000"
)


def test_script_draws_patterns_strip_and_layers(planted_atlas: kf.Atlas, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium or google-chrome on this machine")
    path = kf.write_report(planted_atlas, tmp_path / "report.html")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [browser, *FLAGS.split(), profile, "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    html = done.stdout
    cards = html.count('class="card"')
    [size] = planted_atlas.sizes_.values()
    assert size.matched is not None
    patterns = (size.patterns.table["share"] >= 0.005).sum()
    kinds = 2 * len(size.matched.shares)  # best and worst
    keys = sum(len(use.keys) for use in size.keys.values())
    assert cards == patterns + kinds + keys
    assert html.count('class="layer"') == len(planted_atlas.bank_.layers)
    assert 'aria-label="decoded filters along the one-dimensional code"' in html
    assert html.count("<canvas") >= 3 * patterns + kinds  # prototype, form and members
