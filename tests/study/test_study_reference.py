"""The docs of studies say what the program does: the key tables are fresh and the examples load."""

import re

import pytest
from places import ROOT

from scalade.launch.study.key_reference import ALLOWED, KEYS, meaning_of, renewed
from scalade.launch.study.study import load_study

PAGE = ROOT / "docs" / "studies.md"
KEY_PAGE = ROOT / "docs" / "reference" / "study-keys.md"
EXAMPLES = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.S)


def test_the_page_is_fresh():
    text = KEY_PAGE.read_text()
    assert renewed(text) == text, "run: python -m scalade.launch.study.key_reference docs/reference/study-keys.md"


@pytest.mark.parametrize("key", KEYS.values(), ids=lambda key: key.dotted)
def test_every_key_says_what_it_means(key):
    assert meaning_of(key) or key.dotted in ALLOWED, f"{key.owner.__name__}.{key.name} wants a comment beside it"


def test_the_examples_load(tmp_path):
    first, *others = EXAMPLES
    path = tmp_path / "example.toml"
    path.write_text(first)
    assert len(load_study(path).all_cases) == 6
    base = "recipe.global_batch = 8\nbudget.steps = 3\n"
    counts = []
    for text in others:
        size = "" if "model.size" in text else 'model.size = "tiny-800k"\n'
        path.write_text(size + base + text)
        counts.append(len(load_study(path).all_cases))
    assert counts == [5, 3, 1]
