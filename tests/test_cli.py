"""The command line as a person meets it: help for every command, and one line for whatever goes wrong."""

import gzip
import io
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import click
import pytest
from stream_helpers import send

from recsys.slates import Cause, Slate, SlateItem, Versions, encode_slate
from streams import jars
from streams.cli.main import cli, main
from streams.cli.printable import printable
from streams.settings import Settings

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[1]
NO_BROKER = ("--bootstrap", "127.0.0.1:1", "--redis", "redis://127.0.0.1:1/0")
CLICK = '{"type":"click","user":"u1","item":"i1","ts_ms":1700000000000}\n'


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """A command line in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["slatecast", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


def slatecast(folder: Path, command: str, *arguments: str, before: str = "") -> "subprocess.Popen[str]":
    """A process of its own, in a folder of its own."""
    line = f"{before}exec {shlex.quote(sys.executable)} -P -m streams.cli.main {command} {shlex.join(arguments)}"
    environ = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(["bash", "-c", line], cwd=folder, env=environ, text=True, **pipes)


def assert_one_line(said: tuple[int, str, str], code: int, about: str = "") -> None:
    """One clear line at the end of stderr, and the exit code; progress may stand before it."""
    found, out, err = said
    lines = err.splitlines()
    assert (found, out) == (code, ""), err
    assert "Traceback" not in err
    assert [line for line in lines if line.startswith("slatecast: ")] == lines[-1:], err
    assert about in lines[-1]
    assert len(lines[-1]) < 400


# --- help --------------------------------------------------------------------------------------------------------------


def commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that can be typed, with its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield (*path, name), command


COMMANDS = dict(commands(cli))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_that_can_be_typed(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    assert command.help
    before, found, examples = command.help.partition("Example:")
    assert found, "an example to copy"
    assert before.strip().split("\n")[0].endswith(".")
    for line in examples.strip().splitlines():
        typed = shlex.split(re.split(r" \(| \||>", line)[0])
        assert typed[: len(words) + 1] == ["slatecast", *words]
        command.make_context(" ".join(words), typed[len(words) + 1 :]).close()


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_says_what_it_is_for(words: tuple[str, ...]) -> None:
    for parameter in COMMANDS[words].params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, f"{parameter.name} has no help"


@pytest.mark.parametrize("name", cli.list_commands(click.Context(cli)))
def test_every_command_is_in_the_readme(name: str) -> None:
    assert re.search(rf"slatecast {name}\b", (ROOT / "README.md").read_text())


@pytest.mark.parametrize("words", ["", "watch", "validate", "export", "train"])
def test_help_does_not_wait_for_torch(words: str) -> None:
    program = (
        "import sys; from streams.cli.main import main; sys.argv = ['slatecast', *sys.argv[1:]]\n"
        "try: main()\n"
        "finally: print(*{'torch', 'transformers', 'scipy', 'pandas', 'faust', 'numba'} & sys.modules.keys(), file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, *words.split(), "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Usage: slatecast" in done.stdout
    assert done.stderr.strip() == ""


def test_a_word_that_is_no_command_is_misuse(run: Run) -> None:
    code, out, err = run("recommend")
    assert (code, out) == (2, "")
    assert "No such command 'recommend'" in err
    code, _, err = run("run", "cook")
    assert code == 2
    assert "no role cook; there are signals, ranker, materialiser" in err


# --- what goes wrong ---------------------------------------------------------------------------------------------------

WRONG_FILES = {
    "missing": None,
    "empty": b"",
    "binary": b"\0\1\2\3\xff" * 99,
    "wrong column": b"a,b\n1,2\n",
}


@pytest.mark.parametrize("wrong", WRONG_FILES)
@pytest.mark.parametrize("command", ["load events", "load items", "validate", "validate --kind items"])
def test_a_wrong_file_is_misuse(run: Run, tmp_path: Path, command: str, wrong: str) -> None:
    content = WRONG_FILES[wrong]
    if content is not None:
        (tmp_path / "some.csv").write_bytes(content)
    where = NO_BROKER if command.startswith("load") else ()
    assert_one_line(run(*command.split(), "some.csv", *where), 2, "some.csv")


@pytest.mark.parametrize("which", ["folder", "items", "events"])
@pytest.mark.parametrize("wrong", WRONG_FILES)
@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_a_wrong_folder_is_misuse(run: Run, tmp_path: Path, command: str, wrong: str, which: str) -> None:
    content = WRONG_FILES[wrong]
    if which == "folder":
        if content is not None:
            (tmp_path / "shop").write_bytes(content)
        assert_one_line(run(command, "shop"), 2, "shop is no folder")
        return
    if wrong == "wrong column":
        content = gzip.compress(b'{"customer":"u1","sku":"i1"}\n')
    good = {"items": '{"item":"i1","title":"Mug"}\n', "events": CLICK}
    (tmp_path / "shop").mkdir()
    for name, text in good.items():
        data = content if name == which else gzip.compress(text.encode())
        if data is not None:
            (tmp_path / "shop" / f"{name}.jsonl.gz").write_bytes(data)
    assert_one_line(run(command, "shop"), 2, f"{which}.jsonl.gz")


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_a_folder_in_the_shops_own_names_is_not_answered_with_an_option_that_is_not_there(
    run: Run, tmp_path: Path, command: str
) -> None:
    for name, text in ("items", '{"item":"i1","title":"Mug"}\n'), ("events", CLICK.replace("user", "customer")):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert_one_line(run(command, "."), 2, "reads a folder has no --map: rename the field there")


def test_a_folder_whose_name_is_empty_is_not_taken_for_the_topics(run: Run) -> None:
    assert_one_line(run("train", "", *NO_BROKER), 2, "items.jsonl.gz: no such file")


@pytest.mark.parametrize("wrong", ["missing", "binary", "wrong column"])
@pytest.mark.parametrize("command", ["demo", "watch", "load events f", "evaluate f", "run", "rejects list", "doctor"])
def test_a_wrong_settings_file_is_misuse(run: Run, tmp_path: Path, command: str, wrong: str) -> None:
    content = {"missing": None, "binary": b"\0\1\xff", "wrong column": b"broker = 'here'\n"}[wrong]
    if content is not None:
        (tmp_path / "some.toml").write_bytes(content)
    assert_one_line(run(*command.split(), "--config", "some.toml"), 2, "some.toml: ")


def test_a_broker_that_is_down_is_said_within_seconds(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text(CLICK)
    (tmp_path / "i.jsonl").write_text('{"item":"i1","title":"Mug"}\n')
    commands = ("demo", "watch", "load events e.jsonl", "load items i.jsonl", "run", "rejects list")
    with ExitStack() as opened:  # all at once: each waits for five seconds
        for process in [opened.enter_context(slatecast(tmp_path, command, *NO_BROKER)) for command in commands]:
            out, err = process.communicate(timeout=60)
            assert_one_line((process.returncode, out, err), 1, "no Kafka answers at 127.0.0.1:1")
    assert not (tmp_path / "var").exists(), "nothing was begun"


def test_no_broker_named_says_how_to_name_one(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SLATECAST_BOOTSTRAP", raising=False)
    (tmp_path / "e.jsonl").write_text(CLICK)
    for command in (["watch"], ["load", "events", "e.jsonl"], ["run"], ["rejects", "list"]):
        assert_one_line(run(*command, "--home", tmp_path), 2, "--bootstrap host:port, or run `slatecast up`")


def test_a_redis_that_is_down_is_said_before_the_demo_trains(run: Run, services: Settings) -> None:
    said = run("demo", "--bootstrap", services.bootstrap, "--redis", NO_BROKER[-1])
    assert_one_line(said, 1, "no Redis answers at redis://127.0.0.1:1/0")


def test_a_demo_whose_roles_end_again_and_again_says_so(
    run: Run, services: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLATECAST_FAILPOINTS", "after_poll=kill@1")
    (tmp_path / "home" / "demo" / "releases").mkdir(parents=True)  # a release, be it none: nothing is trained
    (tmp_path / "home" / "demo" / "releases" / "champion.json").write_text('{"release":"0123456789abcdef"}')
    where = ["--bootstrap", services.bootstrap, "--redis", services.redis, "--home", tmp_path / "home"]
    assert_one_line(run("demo", "--households", "10", "--json", *where), 1, "has ended 3 times")


@pytest.mark.parametrize("command", ["demo", "evaluate shop", "train shop"])
def test_a_home_that_cannot_be_one_is_said(run: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "shop").mkdir()
    clicks = "".join(CLICK.replace("click", "purchase").replace("u1", f"u{n}") for n in range(9))
    (tmp_path / "shop" / "events.jsonl.gz").write_bytes(gzip.compress(clicks.encode()))
    (tmp_path / "shop" / "items.jsonl.gz").write_bytes(gzip.compress(b'{"item":"i1","title":"Mug"}\n'))
    assert_one_line(run(*command.split(), "--home", tmp_path / "file" / "home"), 1, "SLATECAST_HOME")


def test_jars_are_fetched_to_where_the_settings_file_has_its_home(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes: list[Path] = []
    monkeypatch.delenv("SLATECAST_HOME", raising=False)
    monkeypatch.setattr(jars, "fetch_kafka", lambda home, progress: homes.append(home))
    (tmp_path / "slatecast.toml").write_text('home = "data"')
    assert run("kafka", "fetch")[0] == 0
    assert homes == [Path("data")]


def test_a_home_that_cannot_be_one_keeps_no_rejects(run: Run, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "e.jsonl").write_text(CLICK + "bad\n")
    where = ["--bootstrap", settings.bootstrap, "--prefix", settings.prefix, "--home", tmp_path / "file"]
    code, out, err = run("load", "events", "e.jsonl", *where)
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("slatecast: ")


def test_a_limit_on_file_sizes_is_said(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text("bad line\n" * 3000)
    where = ["--bootstrap", settings.bootstrap, "--prefix", settings.prefix, "--home", "."]
    with slatecast(tmp_path, "load events e.jsonl", *where, before="ulimit -f 1; ") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("slatecast: File too large")


def test_a_full_disk_under_the_output_is_said(
    run: Run, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "e.jsonl").write_text(CLICK)
    where = ["--bootstrap", settings.bootstrap, "--prefix", settings.prefix]
    for command in (["validate", "e.jsonl"], ["watch", *where], ["watch", "--json", *where]):
        full = Path("/dev/full").open("w")  # noqa: SIM115 - what it still holds cannot be written at the end either
        with publishing(settings), suppress(OSError), full:
            monkeypatch.setattr(sys, "stdout", full)
            assert_one_line(run(*command), 1, "No space left on device")


def test_what_is_said_into_a_log_keeps_its_line() -> None:
    program = "from streams.cli.options import stderr; stderr.print('word ' * 30)"
    environ = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stderr.count("\n") == 1


# --- watch -------------------------------------------------------------------------------------------------------------


class publishing:  # noqa: N801 - read as a word: with publishing(…)
    """Slates, again and again, for the length of a block: a watcher sees those that come after it began."""

    def __init__(self, settings: Settings, **changes: str) -> None:
        cause = Cause("events", 0, 7, "click", 1_700_000_000_000)
        item = SlateItem("i1", changes.get("title", "Red mug"), 0.5, "trending", changes.get("reason", "many like it"))
        user = changes.get("user", "u1")
        versions = Versions("none", "policy", 1, 1)
        slate = Slate(
            id="s1",
            user=user,
            items=(item,),
            cause=cause,
            versions=versions,
            scorer="rank_fusion",
            made_ts_ms=0,
            freshness_ms=3,
        )
        self._pairs = [(b"gone", None), (user.encode(), encode_slate(slate))]
        self._settings, self._stop = settings, threading.Event()
        self._thread = threading.Thread(target=self._publish, daemon=True)

    def _publish(self) -> None:
        while not self._stop.wait(0.1):
            send(self._settings, "slates", self._pairs)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


class UntilLine(io.StringIO):
    """A stdout whose reader leaves after a text was written, as `| head` does."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def write(self, text: str) -> int:
        super().write(text)
        if self._text in self.getvalue():
            raise KeyboardInterrupt
        return len(text)


def watch(
    run: Run, monkeypatch: pytest.MonkeyPatch, settings: Settings, until: str, *arguments: str
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "stdout", out := UntilLine(until))
    code, _, err = run("watch", *arguments, "--bootstrap", settings.bootstrap, "--prefix", settings.prefix)
    assert err.strip() == "stopped"
    return code, out.getvalue()


def test_watch_shows_lists_and_ctrl_c_ends_it(run: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with publishing(settings):  # a tombstone, which is no list, among them
        code, out = watch(run, monkeypatch, settings, "many like it\n", "u1")
    assert code == 130
    first, second = out.splitlines()[:2]
    assert first == "u1 after a click (rank_fusion, 3 ms after the event)"
    assert second.split() == ["1", "Red", "mug", "0.50", "many", "like", "it"]


def test_watch_keeps_an_item_on_one_line_however_long_its_words_are(
    run: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    with publishing(settings, reason="often goes with " + "a thing of many words " * 9):
        _, out = watch(run, monkeypatch, settings, "many words")
    assert [line for line in out.splitlines() if "Red mug" in line and line.count("many words") == 9]


def test_watch_shows_words_and_does_not_obey_them(
    run: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with publishing(settings, title="[/red]\x1b[2J", user="[/x]\n"):
        code, out = watch(run, monkeypatch, settings, "many like it\n")
    assert code == 130
    assert out.splitlines()[0].startswith("[/x]\ufffd after a click")
    assert "[/red]\ufffd[2J" in out


def test_what_is_printable_is_left_alone() -> None:
    assert printable("Käse & brot [1,5 kg] 漢字 😀") == "Käse & brot [1,5 kg] 漢字 😀"
    assert printable("a\x1b[31mb\r\n\u202e\x00") == "a\ufffd[31mb\ufffd\ufffd\ufffd\ufffd"
