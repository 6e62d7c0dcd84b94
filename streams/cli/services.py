"""`up`, `kafka`, `topics`, `doctor`: what has to run before anything else does."""

import os
import signal
import sys
import threading
from pathlib import Path

import click
import msgspec
from rich.table import Table

from streams import clients, embedded, growth, jars
from streams import topics as topic_plans
from streams.cli.options import (
    connection_options,
    home_options,
    json_option,
    print_json,
    progress,
    settings_options,
    stderr,
    steps,
)
from streams.doctor import examine
from streams.settings import Running, Settings, running_file


@click.command()
@settings_options("prefix", "home")
def up(settings: Settings) -> None:
    """Run Kafka and Valkey for development until Ctrl-C.

    Real Apache Kafka (one node) and Valkey on free loopback ports, data kept in HOME/up. Other commands find them by
    themselves.

    \b
    Example:  slatecast up
    """
    home = Path(settings.home)
    fetch_jars(home)
    with stderr.status("starting Kafka and Valkey"):
        services = embedded.Embedded(home, home / "up")
    with services:
        local = msgspec.structs.replace(settings, bootstrap=services.bootstrap, redis=services.redis_url)
        topic_plans.apply(clients.check_broker(local), local)
        running = running_file(settings.home)
        running.write_bytes(msgspec.json.encode(Running(os.getpid(), services.bootstrap, services.redis_url)))
        click.echo(f"Kafka {jars.kafka_version()}  {services.bootstrap}\nValkey        {services.redis_url}")
        click.echo("Topics are ready. In another terminal: slatecast load, run, watch. Ctrl-C ends.")
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        try:
            while not stop.wait(0.5):
                services.check()
        finally:
            running.unlink(missing_ok=True)


@click.group()
def kafka() -> None:
    """Kafka's own program files."""


@kafka.command()
@home_options
def fetch(settings: Settings) -> None:
    """Fetch Kafka's jars once and check them against deploy/kafka/jars.lock.

    \b
    Example:  slatecast kafka fetch
    """
    fetch_jars(Path(settings.home))


def fetch_jars(home: Path) -> None:
    """With a progress bar, if there is anything to fetch."""
    if jars.verify_jars(home):
        with progress(f"Apache Kafka {jars.kafka_version()}, 44 MB") as bar:
            jars.fetch_kafka(home, lambda done, of, name: bar(done, of))


@click.group()
def topics() -> None:
    """Create and describe the Kafka topics."""


@topics.command()
@connection_options
@click.option("--execute", is_flag=True, help="Do it. Without this, only say what would be done.")
@json_option
def apply(settings: Settings, execute: bool, as_json: bool) -> None:
    """Create the topics, or bring their settings in line. Never deletes, never re-partitions.

    \b
    Example:  slatecast topics apply --bootstrap kafka:9092            (says what it would do)
              slatecast topics apply --bootstrap kafka:9092 --execute
    """
    admin = clients.check_broker(settings)
    changes = topic_plans.apply(admin, settings) if execute else topic_plans.diff(admin, topic_plans.plan(settings))
    if as_json:
        print_json(changes)
        return
    table = Table("topic", "what", "detail", box=None)
    for change in changes:
        table.add_row(change.topic, change.action, change.detail)
    stderr.print(table if changes else "The topics are as planned.")
    if changes and not execute:
        refused = any(change.action == "refuse" for change in changes)
        stderr.print(f"Nothing was changed; {topic_plans.OTHER_NUMBER if refused else '--execute does it'}.")


@topics.command()
@connection_options
@click.option("--partitions", required=True, type=click.IntRange(1, 10_000), help="Partitions of the new topics.")
@click.option("--to", required=True, help="Prefix of the new topics.")
@click.option("--execute", is_flag=True, help="Do it. Without this, only say what would be done.")
@json_option
def grow(settings: Settings, partitions: int, to: str, execute: bool, as_json: bool) -> None:
    """More partitions: new topics under another prefix, profiles and lists carried over.

    The first --execute creates them; the next one copies, once the old ranker and aggregator have stopped; each says
    what comes next. docs/operations.md has the whole order.

    \b
    Example:  slatecast topics grow --partitions 12 --to shop2.            (says what it would do)
              slatecast topics grow --partitions 12 --to shop2. --execute
    """
    new = growth.next_generation(settings, to, partitions)
    if execute:
        with steps() as show:
            stand = growth.run(settings, new, lambda topic, done, of: show(f"{new.prefix}{topic}", done, of))
    else:
        stand = growth.look(settings, new)
    if as_json:
        print_json(stand)
        return
    table = Table("topic", "what", "detail", box=None)
    for change in stand.create:
        table.add_row(change.topic, change.action, change.detail)
    at_most = "" if execute else "at most "
    for what, counts, about in (("copy", stand.copy, ""), ("hand over", stand.hand_over, at_most)):
        for topic, count in counts.items():
            table.add_row(new.prefix + topic, what, f"{about}{count:,} records" if count else "nothing")
    stderr.print(table)
    stderr.print(growth.next_step(settings, new, stand, execute))


@click.command()
@connection_options
@json_option
def doctor(settings: Settings, as_json: bool) -> None:
    """Say what would stop Slatecast from running, and the remedy.

    \b
    Example:  slatecast doctor
    """
    findings = examine(settings)
    if as_json:
        print_json(findings)
    else:
        table = Table("", "what", "found", "remedy", box=None)
        for finding in findings:
            mark = {"ok": "[green]ok", "warn": "[yellow]!", "stop": "[red]x"}[finding.verdict]
            table.add_row(mark, finding.what, finding.found, finding.remedy)
        stderr.print(table)
    if any(finding.verdict == "stop" for finding in findings):
        sys.exit(1)  # click's own Exit would end as 0: main.py runs it without standalone mode
