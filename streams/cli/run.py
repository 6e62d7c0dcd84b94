"""`run` starts the roles; `watch` follows the lists they publish."""

import click
import msgspec
from rich.console import Console
from rich.text import Text

from streams import clients
from streams.cli.options import connection_options, json_option, log_to_stderr
from streams.cli.printable import printable
from streams.roles import ROLES, Supervisor, run_child, stop_on_signals
from streams.settings import Settings
from streams.watching import follow_slates


def _be_child(context: click.Context, option: click.Parameter, asked: bool) -> None:
    """Be one role: told by the parent, so before the settings file is read, in which a mistake may have been made since."""
    if asked:
        log_to_stderr()
        run_child()
        context.exit()


@click.command()
@click.argument("roles", nargs=-1)
@click.option(
    "--instance",
    default="0",
    help="Name of this instance: a second ranker on the same topics needs another.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65_000),
    help="/metrics, /livez and /readyz of the first role; the next role has the next port.",
)
@click.option("--child", is_flag=True, hidden=True, is_eager=True, expose_value=False, callback=_be_child)
@connection_options
def run(settings: Settings, roles: tuple[str, ...], instance: str, metrics_port: int | None) -> None:
    """Run the roles: signals, ranker, materialiser; all, or those named. Ctrl-C ends.

    Each is a process of its own, started again if it fails.

    \b
    Example:  slatecast run
              slatecast run ranker --instance b --metrics-port 9400 --bootstrap kafka:9092 --redis redis://cache:6379/0
    """
    log_to_stderr()
    unknown = set(roles) - set(ROLES)
    if unknown:
        raise click.BadParameter(f"no role {', '.join(sorted(unknown))}; there are {', '.join(ROLES)}")
    clients.check_broker(settings)
    if not roles or "materialiser" in roles:
        clients.check_redis(settings)
    if metrics_port is not None:
        settings = msgspec.structs.replace(settings, metrics_port=metrics_port)
    stop = stop_on_signals()
    supervisor = Supervisor(settings, roles or ROLES, instance=instance)
    try:
        while not stop.wait(0.2):
            supervisor.tend()
    finally:
        supervisor.stop()


@click.command()
@click.argument("user", required=False)
@connection_options
@json_option
def watch(settings: Settings, user: str | None, as_json: bool) -> None:
    """Follow published lists, of one user or of all. Ctrl-C ends.

    \b
    Example:  slatecast watch u1
              slatecast watch --json | jq .items[0]
    """
    console = Console(markup=False, highlight=False, soft_wrap=True)  # in a file or a pipe, a line an item
    for slate, data in follow_slates(settings):
        if user is not None and slate.user != user:
            continue
        if as_json:
            click.echo(data)
            continue
        cause, made = slate.cause, f"{slate.scorer}, {slate.freshness_ms} ms after the event"
        console.print(Text(printable(slate.user), "bold"), f"after a {cause.type} ({made})")
        for place, item in enumerate(slate.items, 1):
            line = f"  {place:2} {printable(item.title):48.48} {item.score:7.2f}  "
            console.print(Text(line).append(printable(item.reason), "dim"))
