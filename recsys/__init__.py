"""What is recommended, and why: pure functions over numpy and msgspec. No I/O, no clock, no randomness."""
