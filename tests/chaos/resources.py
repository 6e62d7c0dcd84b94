"""A disk that is full, and a broker that takes little: serving goes on in bounded memory, and nothing is lost."""

import contextlib
import errno
import resource
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from chaos.arena import Arena, Row, arena, attempt, make_events, rss_mib, wait_for

from recsys.events import Event
from streams.embedded import Embedded

SEED = 23
SLOW_KB_PER_S = 50
RSS_MIB = 400  # beyond what a ranker has at its start, its model included
KB = 1000
FILE_LIMIT = 4096  # bytes: RocksDB can neither go on nor begin, the log of a process still fits
DISK = "2m"


def rows(services: Embedded, folder: Path, quick: bool) -> list[Row]:
    """A limit, a disk and a disk that the state lives on (where disks may be made), all full; the slow output."""
    count, backlog, slow_s, kb_per_s = (300, 1500, 4.0, 10) if quick else (6000, 50_000, 60.0, SLOW_KB_PER_S)
    found = [attempt("disk full", lambda: run_limit(services, folder, count))]
    if not quick and _may_mount(folder):
        found.append(attempt("disk full, a real one", lambda: run_disk(services, folder, count, "memory")))
        found.append(attempt("disk full, under state", lambda: run_disk(services, folder, count, "disk")))
    return [*found, attempt("slow output", lambda: run_slow(services, folder, backlog, slow_s, kb_per_s))]


# --- disk full ---------------------------------------------------------------------------------------------------------


def run_limit(services: Embedded, folder: Path, count: int) -> Row:
    """No file may grow any more, as on a disk that is full: while a ranker works, at its next start, and no more."""
    with arena(services, folder, "limit") as ring:
        events = make_events(count, count // 20, SEED)
        quarter = count // 4
        process = ring.start("ranker")
        _work(ring, events[:quarter])
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))
        _work(ring, events[quarter : 2 * quarter])
        while_working = ring.log("ranker").read_text().count("no longer kept on disk")
        ring.kill("ranker")

        process = ring.start("ranker", "0")
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))
        _work(ring, events[2 * quarter : 3 * quarter])
        log = ring.log("ranker").read_text()
        at_start = log.count("not kept on disk") + log.count("no longer kept on disk") - while_working
        alive = process.poll() is None
        ring.kill("ranker")

        process = ring.start("ranker")
        _work(ring, events[3 * quarter :])
        return ring.row(
            "disk full",
            while_working + at_start,
            events,
            passed=while_working > 0 and at_start > 0 and alive and process.poll() is None,
            while_working=while_working,
            at_start=at_start,
        )


def run_disk(services: Embedded, folder: Path, count: int, state: str) -> Row:
    """A small disk of its own for the state, filled up. state: where it lives (settings.py).

    In memory it goes on without the disk. On disk it cannot: the ranker says so and ends, again and again, until there
    is room.
    """
    name = f"disk-{state}"
    with arena(services, folder, name, state=state) as ring, _small_disk(ring.folder / "state") as disk:
        events = make_events(count, count // 2, SEED)
        third = count // 3
        ring.start("ranker")
        _work(ring, events[:third])
        ballast = disk / "ballast"
        filled = _fill(ballast)
        ring.send(events[third : 2 * third])
        codes, until_s = list[int](), time.monotonic() + 20
        while time.monotonic() < until_s and ring.behind():
            codes += ring.revive()
        stuck = ring.behind()
        ring.kill("ranker")
        ring.start("ranker")
        if state == "memory":
            wait_for(lambda: not ring.behind(), 60, "all is processed without the disk")
        ballast.unlink()
        ring.send(events[2 * third :])
        while ring.behind():
            codes += ring.revive()
            time.sleep(0.05)
        log = ring.log("ranker").read_text()
        kept_out = log.count("not kept on disk") + log.count("no longer kept") + log.count("cannot be kept")
        return ring.row(
            "disk full, a real one" if state == "memory" else "disk full, under state",
            kept_out + len(codes),
            events,
            passed=filled and kept_out + len(codes) > 0 and (state == "disk" or not (codes or stuck)),
            ends=len(codes),
            left_out=kept_out,
        )


def _work(ring: Arena, events: list[Event]) -> None:
    """Send these and wait until they are processed."""
    ring.send(events)
    wait_for(lambda: not ring.behind(), 120, "all is processed")


def _may_mount(folder: Path) -> bool:
    """Whether we may make file systems: root may, if its container lets it."""
    try:
        with _small_disk(folder / "probe"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own."""
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)], check=True, capture_output=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill(file: Path) -> bool:
    """Write until the disk takes no more; whether that came."""
    with file.open("wb", buffering=0) as ballast:
        try:
            while ballast.write(bytes(4096)):
                pass
        except OSError as error:
            return error.errno == errno.ENOSPC
    return False


# --- slow output -------------------------------------------------------------------------------------------------------


def run_slow(services: Embedded, folder: Path, backlog: int, slow_s: float, limit_kb_per_s: int) -> Row:
    """A backlog to work off while the broker takes only so much a second of this client: a quota of Kafka's own."""
    client_id = "slow-ring"
    with arena(services, folder, "slow", kafka={"client.id": client_id}) as ring:
        events = make_events(backlog, backlog // 10, SEED)
        ring.send(events)
        _set_quota(services, client_id, limit_kb_per_s * KB)
        try:
            process = ring.start("ranker")
            wait_for(lambda: "changelog records" in ring.log("ranker").read_text(), 60, "a ranker that owns partitions")
            before_mib, bytes_before, started_s = rss_mib(process.pid), _written(ring), time.monotonic()
            behind = [ring.behind()]
            while time.monotonic() - started_s < slow_s and process.poll() is None:
                time.sleep(1)
                behind.append(ring.behind())
            took_s = time.monotonic() - started_s
            kb_per_s = (_written(ring) - bytes_before) / KB / took_s
        finally:
            _set_quota(services, client_id, None)
        wait_for(lambda: not ring.behind() or process.poll() is not None, 600, "all is processed")
        log = ring.log("ranker").read_text()
        lost = log.count("lost partitions")
        aborted = log.count("transaction aborted")
        growth_mib = rss_mib(process.pid, peak=True) - before_mib
        return ring.row(
            "slow output",
            1,
            events,
            passed=kb_per_s < 3 * limit_kb_per_s  # some of it at once: a quota is an average of 11 s
            and behind[0] > behind[-1] > 0
            and process.poll() is None
            and growth_mib <= RSS_MIB
            and not lost,
            backlog=backlog,
            kb_per_s=round(kb_per_s),
            events_per_s_slow=round((behind[0] - behind[-1]) / took_s, 1),
            rss_at_start_mib=round(before_mib),
            rss_growth_mib=round(growth_mib),
            aborted=aborted,
            evicted=lost,
        )


def _set_quota(services: Embedded, client_id: str, bytes_per_s: float | None) -> None:
    """How much a client may produce; None: as much as it likes. AlterClientQuotas, which no client of ours knows."""

    def text(value: str) -> bytes:
        return struct.pack(">h", len(value)) + value.encode()

    count = struct.pack(">i", 1)
    entity = count + text("client-id") + text(client_id)
    change = count + text("producer_byte_rate") + struct.pack(">d?", bytes_per_s or 0.0, bytes_per_s is None)
    request = struct.pack(">hhi", 49, 0, 1) + text("chaos") + count + entity + change + b"\0"
    host, _, port = services.bootstrap.partition(":")
    with socket.create_connection((host, int(port)), 10) as broker, broker.makefile("rwb") as stream:
        stream.write(struct.pack(">i", len(request)) + request)
        stream.flush()
        (size,) = struct.unpack(">i", stream.read(4))
        _, _, entries, error = struct.unpack(">iiih", stream.read(size)[:14])
    assert (entries, error) == (1, 0), f"the quota was refused: error {error}"


def _written(ring: Arena) -> int:
    """Bytes of everything that a ranker writes, as they lie on the broker's disk."""
    files = (ring.services.folder / "kafka").glob(f"{ring.settings.prefix}*-*/*.log")
    return sum(file.stat().st_size for file in files if f"{ring.settings.prefix}events-" not in file.parent.name)
