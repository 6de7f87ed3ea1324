"""Mutation testing with mutmut: what of a room can be changed without a test that fails?

    pip install mutmut; python benchmarks/mutation.py [ROOM…] [--count 100]

A seeded sample of the mutants of each room is run against the tests of that room only, in a copy of
the checkout. Survivors stand in results/hardening/mutation.json with their changed lines, and with
the reason why they change no number, where a person has found one (equivalent_mutants.toml).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

from common import RESULTS, environment
from hardening import write_page

ROOT = Path(__file__).parents[1]
PATH = RESULTS / "hardening" / "mutation.json"
# Modules, and the tests that are to notice a change of them.
ROOMS: dict[str, tuple[list[str], list[str]]] = {
    "scalespace": (["scalespace/*"], ["tests/scalespace"]),
    "receptive_fields": (
        ["receptive_fields/*"],
        [
            "tests/receptive_fields",
            "tests/surgery/test_parametrize.py",
            "tests/surgery/test_transfer.py",
        ],
    ),
    "key sets": (
        ["keyset.py", "assignment.py", "key_files.py", "key_names.py"],
        ["tests/test_keyset.py", "tests/test_key_names.py"],
    ),
    "depthwise": (["depthwise/*"], ["tests/depthwise"]),
    "surgery": (
        [f"surgery/{name}.py" for name in ("replace", "targets", "files", "stored_weights")],
        ["tests/surgery"],
    ),
}
REMARKS = [
    "A seeded sample of mutants a room, with the tests of that room only; torch.compile tests are "
    "left out, since it cannot look into functions that mutmut wraps.",
    "Survivors in receptive_fields.families are no evidence: families are built at import, before "
    "mutmut switches a mutant on. Four of them were written into the file by hand: all fail tests.",
    "'no tests': mutants of functions that no test of the room's own folder calls. 'equivalent': "
    "survivors that change no number and no layer, with the reason beside each; they count as not "
    "noticed.",
]
# Every test computes for itself: what an earlier one has put into a cache, or the unchanged tests
# after which mutmut forks, would hide that a mutant computes something else.
FORGET = """

def pytest_runtest_setup() -> None:
    import functools, sys

    for name, module in list(sys.modules.items()):
        for kept in vars(module).values() if name.startswith("keyfilters") else ():
            if isinstance(kept, functools._lru_cache_wrapper):
                kept.cache_clear()
"""
STATES = {0: "survived", 1: "killed", 3: "killed", 33: "no tests", 34: "skipped"}  # of mutmut
# torch.compile cannot look into functions that mutmut has wrapped.
# mutmut does not find tests whose names pytest has escaped, such as [x\u2212y].
OPTIONS = ["-q", "-x", "-p", "no:cacheprovider", "-m", "not long and not slow",
           "-k", "not compile", "--hypothesis-seed=0", "-o",
           "disable_test_id_escaping_and_forfeit_all_rights_to_community_support=true"]  # fmt: skip


def copy_of_checkout(folder: Path, modules: list[str], tests: list[str]) -> None:
    """Copy what the tests need, and write mutmut's configuration beside it."""
    for name in ("src", "tests", "recipes", "pyproject.toml", "README.md"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, folder / name)
    with (folder / "tests" / "conftest.py").open("a", encoding="utf-8") as file:
        file.write(FORGET)
    parts = {
        "source_paths": ["src"],
        "only_mutate": [f"src/keyfilters/{name}" for name in modules],
        "also_copy": ["recipes", "README.md"],
        "pytest_add_cli_args": OPTIONS,
        "pytest_add_cli_args_test_selection": tests,
        "track_dependencies": ["false"],
        "timeout_constant": ["30"],
    }
    lines = [f"{key} = " + "\n    ".join(values) for key, values in parts.items()]
    (folder / "setup.cfg").write_text("\n".join(["[mutmut]", *lines, ""]), encoding="utf-8")


def mutmut(folder: Path, *arguments: str) -> str:
    """Run mutmut in a copy, and return what it prints."""
    own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("mutmut")), *arguments],
        cwd=folder, env=own | threads, text=True, capture_output=True, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def verdicts(folder: Path) -> dict[str, int | None]:
    """Exit codes of the mutants, None for those that were not run."""
    files = (folder / "mutants").rglob("*.meta")
    return {k: v for f in files for k, v in json.loads(f.read_text())["exit_code_by_key"].items()}


def changed(folder: Path, mutant: str) -> str:
    """Return the lines that a mutant takes away and adds."""
    text = mutmut(folder, "show", mutant)
    lines = [x for x in text.splitlines() if re.match(r"[-+](?![-+]{2})", x)]
    return " → ".join(x[1:].strip() for x in lines)[:300]


def reasons() -> dict[str, str]:
    """Why mutants are equivalent, by their changed lines."""
    listed = tomllib.loads(Path(__file__).with_name("equivalent_mutants.toml").read_text("utf-8"))
    return {x["change"]: x["reason"] for x in listed["mutant"]}


def measure(room: str, count: int, seed: int) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Run a sample of the mutants of a room; a row of counts, and the survivors."""
    modules, tests = ROOMS[room]
    with tempfile.TemporaryDirectory(prefix="keyfilters-mutants-") as name:
        folder = Path(name)
        copy_of_checkout(folder, modules, tests)
        log = mutmut(folder, "run", "--max-children", "1", "none of them")  # makes the mutants
        mutants = sorted(verdicts(folder))
        if not mutants:
            raise SystemExit(log)
        chosen = sorted(random.Random(seed).sample(mutants, min(count, len(mutants))))
        log = mutmut(folder, "run", "--max-children", "1", *chosen)
        found = verdicts(folder)
        if any(found[x] is None for x in chosen):
            raise SystemExit(log[-4000:])
        states = {x: STATES.get(found[x] or 0, "timeout or crash") for x in chosen}
        alive = [x for x in chosen if states[x] in ("survived", "no tests")]
        changes = [changed(folder, x) for x in alive]
    known = reasons()
    survivors = [
        {"mutant": x, "change": change, "state": states[x], "equivalent": known.get(change, "")}
        for x, change in zip(alive, changes, strict=True)
    ]
    of = [*states.values()]
    row = {"room": room, "tests": " ".join(tests), "date": time.strftime("%Y-%m-%d"), "seed": seed}
    row |= {"mutants": len(mutants), "tried": len(chosen)}
    row |= {
        state: of.count(state) for state in dict.fromkeys([*STATES.values(), "timeout or crash"])
    }
    row["equivalent"] = sum(bool(x["equivalent"]) for x in survivors)
    return row | {"noticed": round(1 - len(alive) / len(chosen), 3)}, survivors


def main() -> None:
    """Measure rooms and write them into the file, in place of their earlier rows."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("rooms", nargs="*", default=[*ROOMS])
    options.add_argument("--count", type=int, default=100)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    held = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    for room in given.rooms:
        row, survivors = measure(room, given.count, given.seed)
        print(row, flush=True)
        rows = [*(x for x in held.get("rows", []) if x["room"] != room), row]
        alive = [x for x in held.get("survivors", []) if x["room"] != room]
        alive += [{"room": room, **x} for x in survivors]
        held = {"part": "Mutation testing", **environment(), "rows": rows, "survivors": alive,
                "faults": held.get("faults", []), "remarks": REMARKS}  # fmt: skip
        PATH.parent.mkdir(exist_ok=True)
        PATH.write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write_page()


if __name__ == "__main__":
    main()
