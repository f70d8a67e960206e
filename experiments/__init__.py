"""Studies. `t2ifb` is imported before torch so that it can set the wait policy of OpenMP threads."""

import t2ifb  # noqa: F401
