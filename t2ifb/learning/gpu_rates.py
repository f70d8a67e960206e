"""Compute rates of GPUs: seconds for a number of operations by precision."""

import re
from dataclasses import dataclass

from t2ifb.diffusion.ledger import Operations

TERA = 1e12
ACHIEVED_HALF, ACHIEVED_SINGLE = 0.4, 0.7
"""Assumed shares of the published rates for convolutions and matrix products of this size.

Estimates: nothing was measured on a GPU. Tensor cores wait for memory and kernel launches more often than the slower
float32 units.
"""


@dataclass(frozen=True)
class Rates:
    """Published peak rates of a GPU, in operations per second.

    Attributes:
        half: Rate of dense float16 products with float32 accumulation on tensor cores.
        single: Rate in true float32, not TF32.
    """

    half: float
    single: float

    def seconds(self, operations: Operations) -> tuple[float, float]:
        """Seconds for the operations in half precision, and for those in float32."""
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
"""Rates by a part of the driver's device name, from the vendors' data sheets (H100: SXM)."""
EXAMPLES = ("T4", "A100", "H100")


def known(name: str) -> str | None:
    """The key of `GPUS` that is a word of a GPU's name, such as T4 in `Tesla T4`."""
    return next((key for key in GPUS if re.search(rf"\b{key}\b", name)), None)
