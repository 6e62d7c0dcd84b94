"""`slatecast policy`: what the knobs are, whether a file is a policy, what two differ in, and giving one to the rankers."""

from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec
from rich.console import Console
from rich.table import Table

from recsys.errors import Misuse
from recsys.knobs import differences, knobs, shown
from recsys.policy import Policy
from recsys.policy_file import Mistake, check_policy
from streams import clients, policies
from streams.cli.options import connection_options, json_option, print_json, stderr
from streams.cli.printable import printable
from streams.settings import Settings

FILE = click.Path(path_type=Path)
DEFAULT = "default"


@click.group()
def policy() -> None:
    """The knobs of lists: show, check, compare, give to running rankers."""


@policy.command()
@click.argument("file", required=False, type=FILE)
@json_option
def show(file: Path | None, as_json: bool) -> None:
    """Show every knob: its value in FILE, default, unit, limits, and what it is for.

    FILE is TOML, the knobs at its top or in a table [policy]. A * marks what differs from the default.

    \b
    Example:  slatecast policy show
              slatecast policy show policy.toml
    """
    read = _read(file) if file is not None else Policy()
    rows = [(knob, None if "[]" in knob.name else getattr(read, knob.name)) for knob in knobs()]
    if as_json:
        print_json(
            {
                "digest": read.digest(),
                "knobs": [{**msgspec.to_builtins(knob), "value": msgspec.to_builtins(value)} for knob, value in rows],
            }
        )
        return
    table = Table("", "knob", "value", "default", "unit", "allowed", "what for", box=None, pad_edge=False)
    for knob, value in rows:
        of_rule = "[]" in knob.name
        default = "" if knob.default is None else shown(knob.default)
        now = "" if of_rule else printable(shown(value))
        mark = "" if of_rule or value == knob.default else "*"
        table.add_row(mark, knob.name, now, default, knob.unit, knob.allowed, knob.reason)
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 200  # for a pipe, a line a knob
    console.print(table)
    console.print(f"digest {read.digest()}")


@policy.command()
@click.argument("file", type=FILE)
def check(file: Path) -> None:
    """Say all that is wrong with a policy file, a line each. Exit code 2 if anything is.

    \b
    Example:  slatecast policy check policy.toml
    """
    click.echo(f"{file}: fine, digest {_read(file).digest()}")


@policy.command()
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@json_option
def diff(a: Path, b: Path, as_json: bool) -> None:
    """Say what policy B does otherwise than policy A. The word `default` stands for the defaults.

    \b
    Example:  slatecast policy diff default policy.toml
    """
    lines = differences(*(Policy() if str(file) == DEFAULT else _read(file) for file in (a, b)))
    if as_json:
        print_json(lines)
        return
    for line in lines:
        click.echo(printable(line))
    if not lines:
        stderr.print("They do the same.")


@policy.command()
@click.argument("file", required=False, type=FILE)
@click.option("--withdraw", is_flag=True, help="Instead of a file: rankers go back to the policy of their settings.")
@connection_options
def apply(settings: Settings, file: Path | None, withdraw: bool) -> None:
    """Give a policy to all rankers: each takes it up between two batches, and after a restart.

    Only what FILE says is published; the rest are defaults.

    \b
    Example:  slatecast policy apply policy.toml
              slatecast policy apply --withdraw
    """
    if withdraw == (file is not None):
        raise Misuse("name a policy file, or --withdraw, not both")
    # Read once, as it may be a pipe; and published without what else stands in it: a settings file may hold secrets.
    table = _table(file) if file is not None else None
    clients.check_broker(settings)
    before = policies.published(settings) or settings.policy
    policies.publish(settings, msgspec.json.encode(table) if table is not None else None)
    after = msgspec.convert(table, Policy) if table is not None else settings.policy
    for line in differences(before, after):
        stderr.print(printable(line), markup=False, highlight=False)
    stderr.print(f"published; lists by it have versions.policy {after.digest()}", highlight=False)


def _read(file: Path) -> Policy:
    """A file's policy; or a line for each mistake, and exit code 2."""
    return msgspec.convert(_table(file), Policy)


def _table(file: Path) -> dict[str, Any]:
    """The same as plain values: what the file says of the policy."""
    table, mistakes = check_policy(_text(file))
    if mistakes:
        _refuse(file, mistakes)
    return table


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")  # as Windows' editors write it, too
    except FileNotFoundError:
        raise Misuse(f"{file}: no such file") from None
    except UnicodeDecodeError:
        raise Misuse(f"{file}: not TOML: it is no UTF-8 text") from None
    except OSError as error:
        raise Misuse(f"{file}: {error.strerror}") from None


def _refuse(file: Path, mistakes: list[Mistake]) -> NoReturn:
    for mistake in mistakes:
        place = f"{file}:{mistake.line}" if mistake.line else str(file)
        click.echo(printable(f"{place}: {mistake.said}"), err=True)
    many = f"{len(mistakes)} mistakes" if len(mistakes) > 1 else "1 mistake"
    raise Misuse(f"{file}: {many}; `slatecast policy show` lists the knobs")
