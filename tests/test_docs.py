"""What the documents tell a reader to type, watch or look at is there."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from chaos.__main__ import MODULES
from prometheus_client import Counter, Gauge, Histogram

from streams import telemetry
from streams.cli.main import cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text()
ROOTED = click.Context(cli)
METRICS = {
    next(iter(each.describe())).name + ("_total" if isinstance(each, Counter) else ""): each
    for each in vars(telemetry).values()
    if isinstance(each, Counter | Gauge | Histogram)
}


def typed(text: str) -> Iterator[str]:
    """Everything in backquotes or on a line of its own that begins with `slatecast `, without its comment."""
    found = re.findall(r"`(slatecast [^`]+)`", text) + re.findall(r"^(slatecast .+)$", text, re.MULTILINE)
    for line in found:
        yield re.split(r"\s+#|  +#", line.replace("\n", " "))[0]


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words name (of `list|show` each), and the words after it."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words:
        found = [command.get_command(ROOTED, name) for name in words[0].rstrip(",").split("|")]
        assert all(found), f"there is no command {words[0]}"
        command, words = found[-1] or cli, words[1:]
    return command, words


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_command_that_is_told_exists_and_so_do_its_options(document: Path) -> None:
    for line in typed(document.read_text()):
        command, rest = command_of(line.split()[1:])
        known = {"--help", *(option for parameter in command.params for option in parameter.opts)}
        options = {option for word in rest for option in re.findall(r"^\[?(--[a-z0-9-]+)", word)}
        assert options <= known, line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_metric_that_is_told_exists_and_has_these_labels(document: Path) -> None:
    for name, labels in re.findall(r"\b(slatecast_[a-z_]+)(?:\{([^}]*)\})?", document.read_text()):
        assert name in METRICS
        assert set(re.findall(r"[a-z_]+(?==|,|$)", re.sub(r'"[^"]*"', "", labels))) <= set(METRICS[name]._labelnames)


def test_what_a_guarantee_is_shown_by_is_there() -> None:
    files = re.findall(r"\b((?:tests|streams|docs)/\w+\.(?:py|md))", GUARANTEES)
    assert [file for file in files if not (ROOT / file).is_file()] == []
    kinds = re.findall(r"chaos `([a-z]+)`", GUARANTEES)
    assert set(kinds) == set(MODULES), "each is what `make chaos ARGS='--only …'` takes"
