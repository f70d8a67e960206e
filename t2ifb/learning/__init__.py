"""Learning from feedback: losses, the Lightning modules, and the runs that train them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2ifb.learning.reward_module import RewardModule

__all__ = ["RewardModule"]


def __getattr__(name: str) -> Any:  # Lightning is imported when it is needed
    if name == "RewardModule":
        from t2ifb.learning.reward_module import RewardModule

        return RewardModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
