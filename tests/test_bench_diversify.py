"""`slatecast bench diversify` at a tiny size, through the command line."""

import json
import subprocess
import sys

import pytest

PROGRAM = "import sys; from streams.cli.main import main; sys.argv = ['slatecast', *sys.argv[1:]]; main()"


def test_the_bench_compares_sixteen_shapes_and_their_lists() -> None:
    command = [sys.executable, "-c", PROGRAM, "bench", "diversify", "--lists", "2", "--rounds", "1", "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found.keys() >= {"geomean_ratio", "min_ratio", "equal_lists_share", "p99_ms_200_20"}
    assert len(found["shapes"]) == 16
    assert found["equal_lists_share"] == 1.0
    assert found["min_ratio"] == min(row["ratio"] for row in found["shapes"])
    assert found["min_ratio"] <= found["geomean_ratio"]
    for row in found["shapes"]:
        assert row["ratio"] == pytest.approx(row["pyversity_us"] / row["us"])
