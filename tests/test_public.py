from __future__ import annotations

import subprocess
import sys

import keyfilters as kf

# What other programs call; a name may join these, none may leave.
CONTRACT = (
    "Atlas FilterBank KeyFiltersError KeySet Layer Monitor bake_filters_ check compare "
    "discover_keys fit_idealized freeze_filters_ init initialize_filters_ learn_keys load_atlas "
    "match null_bank parametrize_filters_ plot read replace_filters_ scalespace transfer_filters_ "
    "universality write_report"
)


def test_the_public_names_are_there_and_few() -> None:
    assert kf.__all__ == sorted(kf.__all__) == dir(kf)
    assert set(CONTRACT.split()) <= set(kf.__all__) and len(kf.__all__) <= 30
    for name in kf.__all__:
        assert getattr(kf, name).__doc__, name
    for name in ("consensus", "published", "from_file", "assign"):
        assert callable(getattr(kf.KeySet, name))


def test_import_waits_for_no_large_library() -> None:
    """Not even the module of the atlas imports scikit-learn, which takes longer than naming."""
    told = "import sys, keyfilters; print(*sys.modules); keyfilters.Atlas; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    first, second = (set(line.split()) for line in done.stdout.splitlines())
    assert not first & {"torch", "sklearn", "pandas", "timm", "numpy"}
    assert "torch" in second and "sklearn" not in second
