"""A role whose clock is an hour fast, and every other second an hour slow: it jumps back and forth. Else as child.py."""

import time

HOUR_NS = 3600 * 10**9
true_ns = time.time_ns


def skewed_ns() -> int:
    """The wall clock of this process. What may not jump is measured by the monotonic one."""
    ahead = HOUR_NS if time.monotonic_ns() // 10**9 % 2 else -HOUR_NS
    return true_ns() + ahead


# Only here: pytest imports every module in search of doctests, and its own clock would jump with it (it did).
if __name__ == "__main__":
    time.time_ns = skewed_ns
    time.time = lambda: skewed_ns() / 10**9

    from tests.chaos.child import main

    main()
