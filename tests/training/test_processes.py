"""Processes of a group compute shares of the rows and all get the whole."""

from pathlib import Path

import torch
from torch import Tensor

from t2ifb.training.processes import in_shares, of_all, of_first
from tests.training.two_processes import in_two_processes, on_linux


def squares(seen: list[int], count: int) -> dict[str, Tensor]:
    """The squares of the rows' numbers; notes the numbers that this process computed."""

    def compute(share: slice) -> dict[str, Tensor]:
        own = torch.arange(count)[share]
        seen.extend(own.tolist())
        return {"square": own**2, "pair": torch.stack([own, -own], 1)}

    return in_shares(count, compute)


def test_one_process_computes_all_rows() -> None:
    seen: list[int] = []
    assert squares(seen, 5)["square"].tolist() == [0, 1, 4, 9, 16]
    assert seen == [0, 1, 2, 3, 4] and of_all("a") == ["a"] and of_first(lambda: 3) == 3


@on_linux
def test_two_processes_compute_a_share_each(tmp_path: Path) -> None:
    def work() -> list[object]:
        many: list[int] = []
        single: list[int] = []
        columns, one = squares(many, 5), squares(single, 1)
        return [many, single, columns, one, of_all(len(many)), of_first(lambda: len(many))]

    first, second = in_two_processes(tmp_path, work)
    assert (first[0], second[0]) == ([0, 2, 4], [1, 3])
    assert (first[1], second[1]) == ([0], [])
    for _, _, columns, one, lengths, length in (first, second):
        assert columns["square"].tolist() == [0, 1, 4, 9, 16]
        assert columns["pair"].tolist() == [[n, -n] for n in range(5)]
        assert one["square"].tolist() == [0] and lengths == [3, 2] and length == 3
