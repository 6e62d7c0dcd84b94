"""Throws every fault at real workers on a real Kafka, and says what was lost: `make chaos`.

    python -m chaos [--json] [--quick] [--only MODULE …]

A table on stderr while it goes; with --json one object on stdout at its end. Exit code 1 if a row failed; the folder
with the logs of its processes is then kept.
"""

import argparse
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command line does, before numpy is imported

import msgspec
from chaos.arena import ROOT, Row

from streams.embedded import Embedded
from streams.jars import fetch_kafka

MODULES = ("kills", "zombies", "broker", "storm", "view", "order", "poison", "pills", "resources")
CONTROL = "control"  # its duplicates are wanted


class Report(msgspec.Struct, frozen=True):
    """All rows, and what they add up to without the control."""

    rows: list[Row]
    kills: int
    lost: int
    duplicated: int
    profiles_differ: int
    control_duplicates: int


def main() -> int:
    """Run what is asked for; the exit code."""
    parser = argparse.ArgumentParser(prog="chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one object on stdout at the end")
    parser.add_argument("--quick", action="store_true", help="small rows, as inside the suite")
    parser.add_argument(
        "--only", nargs="+", choices=MODULES, default=MODULES, metavar="MODULE", help=", ".join(MODULES)
    )
    options = parser.parse_args()
    home = Path(os.environ.get("SLATECAST_HOME", ROOT / "var"))
    fetch_kafka(home)
    folder = Path(tempfile.mkdtemp(prefix="slatecast-chaos-"))
    rows = []
    with Embedded(home) as services:
        for row in run(services, folder, options.only, quick=options.quick):
            rows.append(row)
            sys.stderr.write(row.shown() + "\n")
    report = summarise(rows)
    passed = all(row.passed for row in rows)
    if passed:
        shutil.rmtree(folder)
    else:
        sys.stderr.write(f"failed; the logs are in {folder}\n")
    if options.json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    return 0 if passed else 1


def run(services: Embedded, folder: Path, modules: tuple[str, ...], *, quick: bool) -> Iterator[Row]:
    """The rows of some modules, each as soon as it is there. What raises becomes a failed row."""
    for name in modules:
        where = folder / name
        where.mkdir()
        sys.stderr.write(f"{name} …\n")
        try:
            rows = importlib.import_module(f"chaos.{name}").rows
            yield from rows(services, where, quick)
        except Exception as error:  # the other modules are to be tried
            yield Row(name, 0, 0, 0, 0, passed=False, said={"error": f"{type(error).__name__}: {error}"})
        if services.processes["kafka"].poll() is not None:
            services.start_broker()
        if services.processes["valkey"].poll() is not None:
            services.start_valkey()


def summarise(rows: list[Row]) -> Report:
    """Totals. The control must show duplicates, so it counts by itself."""
    real = [row for row in rows if row.name != CONTROL]
    return Report(
        rows,
        kills=sum(row.happened for row in rows if row.name == "kills"),
        lost=sum(row.lost for row in real),
        duplicated=sum(row.duplicated for row in real),
        profiles_differ=sum(row.profiles_differ for row in real),
        control_duplicates=sum(row.duplicated for row in rows if row.name == CONTROL),
    )


if __name__ == "__main__":
    sys.exit(main())
