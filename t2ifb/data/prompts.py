"""Lists of prompts to fine-tune on or to generate from."""

from pathlib import Path

from t2ifb.data.faults import Fault, OnFault, settle
from t2ifb.data.files import read_json_list
from t2ifb.data.rankings import PreferenceDataset


class PromptFile:
    """Prompts in a file: text with one per line, or JSON such as ImageReward's `refl_data.json`."""

    def __init__(self, path: str | Path, on_fault: OnFault = "error") -> None:
        """Name the file; nothing is read yet.

        Args:
            path: `.json` holds a list of texts or of `{"text": ...}`; anything else is text, one prompt a line,
                blank lines left out.
            on_fault: What to do with entries that are no prompt or empty: `error` or `skip`.
        """
        self.path = Path(path).expanduser()
        self.on_fault = on_fault

    def prompts(self) -> list[str]:
        """All prompts in the file's order, repetitions included.

        Raises:
            ValueError: The file is missing, has no prompt, or has faults and `on_fault` is `error`.
        """
        prompts = self._from_json() if self.path.suffix == ".json" else self._from_text()
        if not prompts:
            raise ValueError(f"{self.path} has no prompts")
        return prompts

    def _from_text(self) -> list[str]:
        if not self.path.is_file():
            raise ValueError(f"{self.path} does not exist; expected a text file with one prompt per line")
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path} is not UTF-8 text: {error}") from error
        return [line.strip() for line in lines if line.strip()]

    def _from_json(self) -> list[str]:
        prompts: list[str] = []
        faults: list[Fault] = []
        entries = read_json_list(self.path)
        for number, entry in enumerate(entries):
            text = entry.get("text") if isinstance(entry, dict) else entry
            if isinstance(text, str) and text.strip():
                prompts.append(text)
            else:
                what = "empty prompt" if isinstance(text, str) else 'expected a text or {"text": ...}'
                faults.append(Fault(f"{self.path}, entry {number}", what))
        settle(faults, self.on_fault, str(self.path), len(faults), len(entries), noun="entries")
        return prompts


class RankingPrompts:
    """The prompts of a preference data set's split, one per ranking."""

    def __init__(self, dataset: PreferenceDataset, split: str) -> None:
        """Name the data set and the split; nothing is read yet."""
        self.dataset = dataset
        self.split = split

    def prompts(self) -> list[str]:
        """The prompts in the order of the rankings; the same prompt under two ids comes twice."""
        return [ranking.prompt for ranking in self.dataset.rankings(self.split)]
