"""Tests and benchmarks; `t2ifb` comes before torch, so that it can set how OpenMP's threads wait."""

import t2ifb  # noqa: F401
