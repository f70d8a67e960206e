"""Classes and imports are found in the text of a package's files, which are not run."""

import sys
from pathlib import Path

from t2ifb.utils.discovery import classes_with, typed_imports

FORWARD = {"forward": ("images", "prompts")}


def found(folder: Path, text: str, **methods: tuple[str, ...]) -> set[str]:
    """The classes in a file with this text."""
    (folder / "mine.py").write_text(text)
    return set(classes_with("pack", folder, methods or FORWARD))


def test_a_new_scorer_needs_no_entry_in_a_list(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Mine:\n    def forward(self, images, prompts): ...\n"
        "class _Hidden:\n    def forward(self, images, prompts): ...\n"
        "class Head:\n    def forward(self, image_embeddings, prompt_embeddings): ...\n"
        "class Scorer(Protocol):\n    def forward(self, images, prompts): ...\n"
    )
    assert classes_with("pack", tmp_path, {"forward": ("images", "prompts")}) == {"Mine": "pack.mine"}


def test_classes_of_several_files_are_found_with_the_module_of_each(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text(f"class In{name}:\n    def forward(self, images, prompts): ...\n")
    (tmp_path / "notes.txt").write_text("class Text:\n    def forward(self, images, prompts): ...\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.py").write_text("class Below:\n    def forward(self, images, prompts): ...\n")
    assert classes_with("pack.part", tmp_path, FORWARD) == {"Ina": "pack.part.a", "Inb": "pack.part.b"}
    assert classes_with("pack", tmp_path / "sub", FORWARD) == {"Below": "pack.c"}


def test_a_file_is_read_and_not_run(tmp_path: Path) -> None:
    text = "raise SystemExit('was run')\nclass Mine:\n    def forward(self, images, prompts): ...\n"
    before = set(sys.modules)
    assert found(tmp_path, text) == {"Mine"}
    assert not {"mine", "pack", "pack.mine"} & (set(sys.modules) - before)


def test_a_method_may_have_more_parameters_but_its_first_are_in_order(tmp_path: Path) -> None:
    text = (
        "class More:\n    def forward(self, images, prompts, scale=1.0): ...\n"
        "class Swapped:\n    def forward(self, prompts, images): ...\n"
        "class Fewer:\n    def forward(self, images): ...\n"
        "class Without:\n    def score(self, images, prompts): ...\n"
        "class Inherits(More):\n    pass\n"
        "def forward(images, prompts): ...\n"
        "class OfClass:\n    @classmethod\n    def forward(cls, images, prompts): ...\n"
    )
    assert found(tmp_path, text) == {"More", "OfClass"}


def test_all_methods_are_needed(tmp_path: Path) -> None:
    text = (
        "class Both:\n    def collect(self, policy, batch): ...\n    def loss(self, policy, part): ...\n"
        "class Half:\n    def loss(self, policy, part): ...\n"
    )
    assert found(tmp_path, text, collect=("policy", "batch"), loss=("policy", "part")) == {"Both"}


def test_a_method_without_needed_parameters_has_to_be_there_too(tmp_path: Path) -> None:
    text = "class With:\n    def load(self): ...\nclass Without:\n    load = None\n"
    assert found(tmp_path, text, load=()) == {"With"}


def test_what_is_imported_for_type_checkers_is_found_under_its_name_here(tmp_path: Path) -> None:
    (tmp_path / "names.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "from pack.outside import Outside\n"
        "if TYPE_CHECKING:\n"
        "    import pack.whole\n"
        "    from pack.one import First as First, Second\n"
        "    from pack.two import Third as Renamed\n"
        "    from pack.three import *\n"
        "    listed = 1\n"
        "if not TYPE_CHECKING:\n"
        "    from pack.late import Late\n"
        "if DEBUG:\n"
        "    from pack.debug import Debug\n"
    )
    assert typed_imports(tmp_path / "names.py") == {"First": "pack.one", "Second": "pack.one", "Renamed": "pack.two"}


def test_a_file_without_imports_for_type_checkers_has_none(tmp_path: Path) -> None:
    (tmp_path / "names.py").write_text("from pack.outside import Outside\n")
    assert typed_imports(tmp_path / "names.py") == {}
