"""Every command that README, the start page and CONTRIBUTING show is one that exists."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from keyfilters.cli import app

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/start.md", "docs/howto/machines.md", "docs/howto/gpu.md")
COMMAND = re.compile(r"keyfilters (?=[a-z])([^`\n#…]+)")


def commands(page: str) -> list[list[str]]:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```\n(.*?)```", text, flags=re.DOTALL)
    shown = re.findall(r"`(keyfilters [^`]+)`", text) + "\n".join(blocks).split("\n")
    found = [COMMAND.match(line.strip()) for line in shown]
    return [shlex.split(x[1]) for x in found if x]


def parameters(command) -> set[str]:
    return {option for x in command.params for option in (*x.opts, *x.secondary_opts)}


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist_with_their_options(page):
    root = typer.main.get_command(app)
    seen = commands(page)
    assert seen
    for words in seen:
        command = root.commands[words[0]]
        if hasattr(command, "commands"):
            command = command.commands[words[1]]
        options = {word for word in words if word.startswith("--")}
        assert options <= parameters(command), words


def test_the_readme_shows_every_verb():
    root = typer.main.get_command(app)
    assert {words[0] for words in commands("README.md")} == set(root.commands)


@pytest.mark.parametrize("page", ["README.md", "docs/start.md", "CONTRIBUTING.md"])
def test_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    wanted = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / page).read_text(encoding="utf-8")))
    assert wanted
    assert wanted <= targets


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
