"""`slatecast`: the list of commands, and how a failure becomes one line and an exit code.

Commands live beside this file, one file a subject, and are imported when called: `slatecast --help` must not
wait for torch. Exit codes: 0 ok, 1 failed, 2 misuse, 130 stopped by Ctrl-C.
"""

import errno
import importlib
import os
import signal
import sys
from typing import NoReturn

# Before numpy is imported. Our products are small (3,500 × 384 by 384): two BLAS threads need 2.3 ms for one, waiting
# for each other, one thread .12 ms (measured on 2 cores).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import click

from recsys.errors import SlatecastError

# command -> "module:function"; the order is the order of the help page, the way a newcomer meets them.
COMMANDS: dict[str, str] = {
    "demo": "streams.cli.demo:demo",
    "up": "streams.cli.services:up",
    "kafka": "streams.cli.services:kafka",
    "topics": "streams.cli.services:topics",
    "load": "streams.cli.load:load",
    "validate": "streams.cli.load:validate",
    "tune-text": "streams.cli.tune_text:tune_text",
    "export": "streams.cli.export:export",
    "compress": "streams.cli.compress:compress",
    "train": "streams.cli.train:train",
    "tune-training": "streams.cli.tune_training:tune_training",
    "runs": "streams.cli.runs:runs",
    "releases": "streams.cli.releases:releases",
    "evaluate": "streams.cli.learn:evaluate",
    "policy": "streams.cli.policy:policy",
    "tune": "streams.cli.tune:tune",
    "run": "streams.cli.run:run",
    "watch": "streams.cli.run:watch",
    "rejects": "streams.cli.rejects:rejects",
    "doctor": "streams.cli.services:doctor",
    "bench": "streams.cli.bench:bench",
}


# What a folder can do to us: full, over a limit, closed to us, or a file where a folder should be.
NO_PLACE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command."""
        if cmd_name not in COMMANDS:
            return None
        module, function = COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(module), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help page: every command with its first sentence."""
        rows = [(name, self.get_command(ctx, name)) for name in COMMANDS]
        with formatter.section("Commands"):
            formatter.write_dl([(n, c.get_short_help_str(90)) for n, c in rows if c is not None])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="slatecast")
def cli() -> None:
    """Slatecast: a streaming recommender that keeps a shop's lists from becoming all the same."""


def main() -> NoReturn:
    """Run a command; an expected failure is one line on stderr and an exit code, never a traceback."""
    signal.signal(signal.SIGTERM, _stop)  # as Ctrl-C: services and folders are cleared away
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)
    except SlatecastError as error:
        click.echo(f"slatecast: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in NO_PLACE:
            raise
        click.echo(
            f"slatecast: {error.strerror}: {error.filename or 'the data folder'}. "
            "Make room or point SLATECAST_HOME at another folder.",
            err=True,
        )
        sys.exit(1)
    sys.exit(0)


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
