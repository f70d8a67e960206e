"""Learning: losses, Lightning modules, algorithms and callbacks."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2ifb.learning.reward_module import RewardModule
    from t2ifb.learning.tuning_module import ReFLModule

__all__ = ["ReFLModule", "RewardModule"]


def __getattr__(name: str) -> Any:  # lazy, because importing Lightning takes seconds
    if name == "RewardModule":
        from t2ifb.learning.reward_module import RewardModule

        return RewardModule
    if name == "ReFLModule":
        from t2ifb.learning.tuning_module import ReFLModule

        return ReFLModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
