"""How fast GPUs compute: seconds of a number of operations by precision."""

import re
from dataclasses import dataclass

from t2ifb.diffusion.ledger import Operations

TERA = 1e12
ACHIEVED_HALF, ACHIEVED_SINGLE = 0.4, 0.7
"""Shares of the published rates that convolutions and matrix products of this size are taken to achieve.

Estimates: nothing was measured on a GPU. Tensor cores wait for memory and for the launch of small kernels more often
than the slower float32 units do.
"""


@dataclass(frozen=True)
class Rates:
    """Published peak rates of a GPU, in operations a second.

    Attributes:
        half: Of dense products in float16, summed up in float32, by its tensor cores.
        single: In float32 proper: not in TF32.
    """

    half: float
    single: float

    def seconds(self, operations: Operations) -> tuple[float, float]:
        """Seconds of the operations in half precision, and of those in float32."""
        return (
            operations.half / (ACHIEVED_HALF * self.half),
            operations.single / (ACHIEVED_SINGLE * self.single),
        )


GPUS = {
    "T4": Rates(65 * TERA, 8.1 * TERA),
    "V100": Rates(125 * TERA, 15.7 * TERA),
    "L4": Rates(121 * TERA, 30.3 * TERA),
    "A10": Rates(125 * TERA, 31.2 * TERA),
    "RTX 3090": Rates(71 * TERA, 35.6 * TERA),
    "RTX 4090": Rates(165 * TERA, 82.6 * TERA),
    "A100": Rates(312 * TERA, 19.5 * TERA),
    "L40S": Rates(362 * TERA, 91.6 * TERA),
    "H100": Rates(989 * TERA, 66.9 * TERA),
    "H200": Rates(989 * TERA, 66.9 * TERA),
}
"""By a part of the name that the driver gives; from the makers' data sheets, of an H100 in its SXM form."""
EXAMPLES = ("T4", "A100", "H100")


def known(name: str) -> str | None:
    """The key of `GPUS` that a GPU's name holds as a word, such as T4 in `Tesla T4`."""
    return next((key for key in GPUS if re.search(rf"\b{key}\b", name)), None)
