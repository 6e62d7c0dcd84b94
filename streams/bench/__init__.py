"""Benchmarks that a user can run: ratios against peers and floors in the same run, never absolute promises."""
