"""What computes."""

import torch


def device_of(wish: str) -> torch.device:
    """The device that is meant.

    Args:
        wish: What PyTorch calls it, or `auto`: the GPU if there is one.

    Raises:
        ValueError: There is none of that name.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wish == "auto" else wish)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={wish} is not on this machine; give auto, cpu or cuda [{error}]") from error
    return device
