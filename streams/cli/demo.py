"""`slatecast demo`: the whole thing on one machine, live on the terminal."""

import tempfile
import time
from pathlib import Path

import click
import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from recsys.catalogue import Item
from recsys.slates import Slate
from streams import clients, embedded, topics
from streams.cli.options import connection_options, json_option, print_json, stderr, steps
from streams.cli.services import fetch_jars
from streams.settings import Settings

SECONDS = ("first_slate_s", "click_to_slate_s")


@click.command()
@click.option("--fast", is_flag=True, help="Fewer households, less than a minute once it is trained.")
@click.option("--households", type=click.IntRange(10, 2400), help="How many households are played.")
@click.option("--live-seconds", type=click.IntRange(5, 3600), help="Squeeze the two live weeks into so many seconds.")
@click.option("--seed", default=7, show_default=True, help="Of the choice of households and the simulated clicks.")
@connection_options
@json_option
def demo(
    settings: Settings, fast: bool, households: int | None, live_seconds: int | None, seed: int, as_json: bool
) -> None:
    """Play real baskets through real Kafka and show the lists they make.

    Starts Apache Kafka and Valkey (or uses --bootstrap and --redis), trains once, plays two weeks of grocery purchases
    with simulated clicks around them, and measures what came out. Needs no network once it is set up.

    \b
    Example:  slatecast demo
              slatecast demo --fast --json
    """
    # Here, not above: training imports torch, and `slatecast --help` must not wait for it.
    from streams import demo as play_of
    from streams.demo_report import summarise
    from streams.roles import Supervisor

    chosen = play_of.FAST if fast else play_of.DemoSettings()
    chosen = msgspec.structs.replace(
        chosen, seed=seed, households=households or chosen.households, live_s=live_seconds or chosen.live_s
    )
    home = Path(settings.home)
    if settings.bootstrap:  # before minutes of training
        clients.check_broker(settings)
        clients.check_redis(settings).close()
    else:
        fetch_jars(home)
    with stderr.status("reading Complete Journey (84.51°, may be simulated)"):
        history = play_of.history_of(chosen)
    own_home = home / "demo"  # a release of one's own shop is left alone
    _train_once(own_home, history)
    play = play_of.stage(history, chosen, time.time_ns() // 1_000_000)
    view = View(play.items, live=not as_json and stderr.is_terminal)
    with tempfile.TemporaryDirectory(prefix="slatecast-demo-") as scratch:
        with stderr.status("starting Kafka and Valkey"):
            services = embedded.Embedded(home) if not settings.bootstrap else None
        try:
            ours = _settings(settings, services, own_home, play_of.policy_of(chosen))
            up_s = time.monotonic()
            topics.apply(clients.check_broker(ours), ours)
            supervisor = Supervisor(ours, ("signals", "ranker", "materialiser"), Path(scratch) / "roles.log")

            def show(act: str, sent: play_of.Sent) -> None:
                supervisor.tend()
                supervisor.check()
                view.show(act, sent)

            try:
                sender = play_of.Sender(ours)
                with view:
                    sent = play_of.perform(ours, chosen, play, sender, up_s, show)
                with stderr.status("checking every event and every list"):
                    summary = summarise(ours, play, sent, sender.events)
            except BaseException:
                _keep_log(Path(scratch) / "roles.log", own_home)
                if services is not None:
                    services.check()  # if one has ended, that is the cause, whatever came of it here
                raise
            finally:
                supervisor.stop()
        finally:
            if services is not None:
                services.stop()
    view.story(sent.shopper)
    if as_json:
        print_json({key: round(value, 4) for key, value in summary.items()})
    else:
        _print_summary(summary)


def _train_once(home: Path, history: "play_of.History") -> None:  # type: ignore[name-defined]  # noqa: F821
    from streams import demo as play_of

    if not play_of.needs_training(home):
        return
    from models.train_settings import TrainSettings
    from models.training import train

    stderr.print("No release yet: training one (once, about five minutes on two cores).")
    with steps() as step:
        part, now_ms = play_of.training_part(history), time.time_ns() // 1_000_000
        train(part, home, "completejourney", now_ms, TrainSettings(), None, step)


def _settings(settings: Settings, services: "embedded.Embedded | None", home: Path, policy: object) -> Settings:
    """Topics of its own on whatever broker it is, so that a demo never touches a shop's."""
    changes: dict[str, object] = {"home": str(home), "policy": policy, "prefix": f"demo-{int(time.time())}."}
    if services is not None:
        changes |= {"bootstrap": services.bootstrap, "redis": services.redis_url}
    return msgspec.structs.replace(settings, **changes)


def _keep_log(log: Path, home: Path) -> None:
    """What the roles said, for whoever looks for the cause."""
    if log.exists():
        home.mkdir(parents=True, exist_ok=True)
        (home / "roles.log").write_bytes(log.read_bytes())
        stderr.print(f"The roles' log is in {home / 'roles.log'}.")


class View:
    """The live terminal: rates, freshness, one shopper's list. On a pipe: a line an act."""

    def __init__(self, items: list[Item], live: bool) -> None:
        self._titles = {item.item: item.title for item in items}
        self._live = Live(console=stderr, refresh_per_second=8, transient=True) if live else None
        self._act = ""

    def __enter__(self) -> "View":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, act: str, sent: "play_of.Sent") -> None:  # type: ignore[name-defined]  # noqa: F821
        """What there is now."""
        if self._live is None:
            if act != self._act:
                stderr.print(f"{act} …")
            self._act = act
            return
        numbers = Table.grid(padding=(0, 3))
        fresh = sorted(slate.freshness_ms for slate in sent.slates[-500:])
        numbers.add_row("events", f"{sent.events:,}", f"{sent.live_events / max(sent.live_s, 1):,.0f}/s live")
        numbers.add_row("slates", f"{len(sent.slates):,}", f"{len(sent.slates) / max(sent.live_s, 1):,.0f}/s")
        numbers.add_row("freshness", f"{fresh[len(fresh) // 2] if fresh else 0} ms", "median, event to list")
        parts = [Panel(numbers, title=f"[bold]{act}", width=76)]
        if sent.slates:
            parts.append(Panel(self._list(sent.slates[-1]), title=f"newest list, for {sent.slates[-1].user}", width=76))
        self._live.update(Group(*parts))

    def story(self, shopper: "play_of.Shopper | None") -> None:  # type: ignore[name-defined]  # noqa: F821
        """One shopper: the list before, the click, the list after, and why."""
        if shopper is None or shopper.before is None or shopper.after is None:
            return
        before = {item.item for item in shopper.before.items}
        stderr.print(f'\n[bold]One shopper[/] looked at "{self._titles[shopper.looked]}" and got')
        stderr.print(self._list(shopper.before), no_wrap=True, overflow="ellipsis")
        stderr.print(
            f'A click on "[bold]{self._titles[shopper.clicked]}[/]" (simulated); '
            f"{shopper.click_to_slate_s * 1000:.0f} ms later"
        )
        stderr.print(self._list(shopper.after, new_since=before), no_wrap=True, overflow="ellipsis")

    def _list(self, slate: Slate, new_since: set[str] | None = None) -> Text:
        text = Text(no_wrap=True, overflow="ellipsis")
        for place, item in enumerate(slate.items, 1):
            fresh = new_since is not None and item.item not in new_since
            text.append(f"{place:3}  ").append(f"{item.title:30.30}  ", "bold green" if fresh else "")
            text.append(f"{item.reason:.44}\n", "dim")
        return text


def _print_summary(summary: dict[str, float | int]) -> None:
    console = Console()
    table = Table("", "ours", "own frequency", "popularity", title="next visit's basket, list before it", box=None)
    for name, label in (("ndcg_at_10", "NDCG@10"), ("hit_rate_at_10", "hit rate @10")):
        row = [f"{summary.get(name + end, 0):.3f}" for end in ("", "_own_frequency", "_popularity")]
        table.add_row(label, *row)
    console.print(table)
    rest = {k: v for k, v in summary.items() if not k.startswith(("ndcg", "hit_rate"))}
    for name, value in rest.items():
        console.print(f"  {name:24} {value:,.3f}" if isinstance(value, float) else f"  {name:24} {value:,}")
    console.print("Next: `slatecast up` and `slatecast load` for a shop of your own; docs/ for the how and why.")
