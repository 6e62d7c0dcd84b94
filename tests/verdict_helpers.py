"""The poison corpus as both of its tests read it, and what a reject must keep of the record that was put aside."""

import hashlib

from corpus_helpers import read_corpus

from streams.records import Output, Record

NOW_MS = 1_764_000_000_000
CORPUS = read_corpus(NOW_MS)
BY_NAME = {kind.name: kind for kind in CORPUS}
EVENTS = [kind for kind in CORPUS if kind.topic == "events"]
QUERIES = [kind for kind in EVENTS if kind.group == "text" and kind.verdict == "used"]


def assert_kept(output: Output, record: Record) -> None:
    """The reject has the bytes of the record; of what is larger than any topic takes, the beginning and the digest."""
    ours = dict(output.headers)
    message = ours["__connect.errors.exception.message"].decode()
    assert message.isprintable(), "no line of a log is forged by it"
    assert len(message) < 400
    assert ours["__connect.errors.offset"] == str(record.offset).encode()
    if "slatecast.error.cut" not in ours:
        assert (output.key, output.value) == (record.key, record.value)
        kept = [header for header in record.headers if not header[0].startswith("__connect.errors.")]
        assert [*output.headers][: len(kept)] == kept
        return
    assert output.value == (record.value or b"")[:1024]
    digest = hashlib.sha256(record.value or b"").hexdigest()
    assert ours["slatecast.error.cut"].decode() == f"{len(record.value or b'')} bytes, sha256 {digest}"
    assert sum(len(value) for _, value in output.headers) < 4096
