"""WordNet is parsed from a hand-made folder in the real format; the hand-written table obeys its own rules."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisaseg.datasets import vocabulary
from lisaseg.datasets.vocabulary import CategoryText, Noun, category_texts, clean_gloss, load_vocabulary
from lisaseg.errors import DataError

DATA = """\
  1 This software and database is being provided to you, the LICENSEE, by
00000001 03 n 01 entity 0 001 ~ 00000002 n 0000 | that which is perceived to have its own existence
00000002 06 n 01 instrument 0 002 @ 00000001 n 0000 ~ 00000003 n 0000 | a device that requires skill for proper use
00000003 06 n 02 anvil 0 smith's_block 0 001 @ 00000002 n 0000 | a heavy block of iron (or steel) on which hot metals are shaped; "he hit it"
00000004 05 n 01 gannet 0 001 @ 00000001 n 0000 | large heavily built seabird with a long stout bill noted for its plunging dives for fish
00000005 09 n 01 state 0 001 @ 00000001 n 0000 | the way something is with respect to its main attributes
00000006 06 n 01 state 0 001 @ 00000001 n 0000 | the territory occupied by one of the constituent districts of a nation
00000007 17 n 01 Everest 0 001 @i 00000001 n 0000 | a mountain peak in the central Himalayas on the border of Tibet and Nepal
00000008 18 n 01 surgeon 0 001 @ 00000001 n 0000 | a physician who cuts people open to mend them
00000009 18 n 01 atheist 0 001 @ 00000001 n 0000 | someone who denies the existence of god
00000010 05 n 01 mouse 0 001 @ 00000001 n 0000 | any of numerous small rodents with pointed snouts and small ears
00000011 20 n 01 drypis 0 001 @ 00000001 n 0000 | a genus of prickly plants of the family Caryophyllaceae
00000012 06 n 01 anvil_cloud 0 001 @ 00000001 n 0000 | an anvil cloud that names itself in its own text
00000013 06 n 01 trowel 0 001 @ 00000002 n 0000 | a small hand tool with a flat blade used by gardeners with an anvil
"""
INDEX = """\
  1 This software and database is being provided to you, the LICENSEE, by
anvil n 1 2 @ ~ 1 1 00000003
anvil_cloud n 1 1 @ 1 0 00000012
atheist n 1 1 @ 1 0 00000009
drypis n 1 1 @ 1 0 00000011
everest n 1 1 @i 1 0 00000007
gannet n 1 1 @ 1 0 00000004
mouse n 1 1 @ 1 1 00000010
smith's_block n 1 1 @ 1 0 00000003
state n 2 1 @ 2 2 00000005 00000006
surgeon n 1 1 @ 1 0 00000008
trowel n 1 1 @ 1 0 00000013
"""
COUNTS = """\
gannet%1:05:00:: 1 9
mouse%1:05:00:: 1 8
state%1:09:00:: 1 200
state%1:06:00:: 2 5
run%2:38:00:: 1 106
"""


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    for name, text in (("data.noun", DATA), ("index.noun", INDEX), ("cntlist.rev", COUNTS)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def from_wordnet(folder: Path) -> dict[str, Noun]:
    return {noun.name: noun for noun in load_vocabulary(folder) if noun.lexname != "category"}


def test_only_visible_nouns_with_useful_definitions_remain(wordnet: Path) -> None:
    assert set(from_wordnet(wordnet)) == {"gannet", "anvil", "trowel", "surgeon", "smith's block"}


def test_an_entry_has_all_its_parts(wordnet: Path) -> None:
    expected = Noun("anvil", ("smith's block",), "a heavy block of iron on which hot metals are shaped", ("instrument", "entity"), "noun.artifact", 0)
    assert from_wordnet(wordnet)["anvil"] == expected


def test_frequent_nouns_come_first_and_then_those_that_define_others(wordnet: Path) -> None:
    names = list(from_wordnet(wordnet))
    assert names[0] == "gannet"
    assert names.index("anvil") < names.index("trowel")  # both were never counted; "anvil" is used in other definitions


def test_categories_come_first_and_own_their_names(wordnet: Path) -> None:
    nouns = load_vocabulary(wordnet)
    first = {noun.name: noun for noun in nouns if noun.lexname == "category"}
    assert nouns[: len(first)] == list(first.values())
    assert "rodent" not in first["computer mouse"].gloss
    assert len({noun.name for noun in nouns}) == len(nouns)
    owned = {word for noun in first.values() for word in (noun.name, *noun.synonyms)}
    assert not owned & set(from_wordnet(wordnet))


@pytest.mark.parametrize("limit", [0, 1, 50, 10_000])
def test_limit_cuts_the_ranked_list(wordnet: Path, limit: int) -> None:
    assert load_vocabulary(wordnet, limit) == load_vocabulary(wordnet)[:limit]


def test_counts_may_be_missing(wordnet: Path) -> None:
    (wordnet / "cntlist.rev").unlink()
    assert {noun.count for noun in from_wordnet(wordnet).values()} == {0}


def test_folder_may_be_given_by_environment(wordnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(vocabulary.WORDNET_ENV, str(wordnet))
    assert load_vocabulary() == load_vocabulary(wordnet)


def test_missing_wordnet_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(vocabulary.WORDNET_ENV, raising=False)
    monkeypatch.setattr(vocabulary, "WORDNET_HOMES", ())
    for folder in (None, tmp_path):
        with pytest.raises(DataError, match=r"apt-get install wordnet-base.*LISASEG_WORDNET"):
            load_vocabulary(folder)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("data.noun", "00000003 06 n zz anvil 0 | x"),
        ("data.noun", "rubbish"),
        ("index.noun", "anvil n"),
        ("index.noun", "anvil n 1 2 @ ~ 1 1 x"),
        ("cntlist.rev", "nothing"),
    ],
)
def test_a_broken_line_is_named(wordnet: Path, file: str, line: str) -> None:
    path = wordnet / file
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    number = len(path.read_text(encoding="utf-8").splitlines())
    with pytest.raises(DataError, match=rf"{re.escape(file)}, line {number}:"):
        load_vocabulary(wordnet)


@given(gloss=st.text(alphabet='ab (),;:"x', max_size=80), name=st.sampled_from(["a", "b", "ab", "xa"]))
def test_a_cleaned_definition_is_usable_or_empty(gloss: str, name: str) -> None:
    text = clean_gloss(gloss, name)
    if text:
        assert len(text.split()) >= 3
        assert not set('()"') & set(text)
        assert not re.search(rf"\b{name}\b", text)
        assert text == " ".join(text.split())


@pytest.mark.parametrize(
    ("gloss", "text"),
    [
        ('a seat for one person, with a support for the back; "he put his coat over the back"', "a seat for one person, with a support for the back"),
        ("(nautical) a pole rising from the deck; it holds sails", "a pole rising from the deck"),
        ("two words", ""),
        ("any tree of the genus Acer", ""),
        ("(computer science) a part of a screen that shows text", ""),
        ("the act of going away from here", ""),
    ],
)
def test_definitions_lose_examples_and_brackets(gloss: str, text: str) -> None:
    assert clean_gloss(gloss, "thingummy") == text


# The hand-written table


def unique_texts() -> list[CategoryText]:
    return list({text.name: text for text in category_texts().values()}.values())


def test_the_table_covers_the_pool() -> None:
    assert len(category_texts()) == 237
    for category, name in {"mouse": "computer mouse", "remote": "remote control", "tie": "necktie", "tv": "TV", "wall-tile": "tiled wall"}.items():
        assert category_texts()[category].name == name
    assert category_texts()["bus (vehicle)"] == category_texts()["bus"]


def test_one_name_means_one_thing() -> None:
    by_name: dict[str, CategoryText] = {}
    for text in category_texts().values():
        assert by_name.setdefault(text.name, text) == text


@pytest.mark.parametrize("text", unique_texts(), ids=lambda text: text.name)
def test_texts_of_a_category(text: CategoryText) -> None:
    assert 2 <= len(set(text.synonyms)) == len(text.synonyms) <= 5
    assert text.name not in text.synonyms
    assert text.plural and not re.search(r"[()_]", text.name)
    assert len(set(text.glosses)) == 3
    for gloss in text.glosses:
        assert 5 <= len(gloss.split()) <= 25, gloss
        assert gloss == gloss.strip(" .?!;"), gloss
        assert "?" not in gloss and not re.match(r"(what|which|who|where)\b", gloss, re.IGNORECASE), "a definition, not a question"
        for name in (text.name, text.plural):
            assert not re.search(rf"\b{re.escape(name)}(s|es)?\b", gloss, re.IGNORECASE), gloss


def test_scopes_name_categories_of_the_table() -> None:
    scopes = json.loads((Path(vocabulary.__file__).parent / "scopes.json").read_text(encoding="utf-8"))
    known = set(category_texts())
    for names in [*scopes["scopes"].values(), *scopes["related"]]:
        assert not set(names) - known
    assert set(scopes["aliases"].values()) <= set(scopes["scopes"])
    assert {key: len(names) for key, names in scopes["scopes"].items()} == {
        "instances80": 80, "panoptic133": 53, "semantic58": 54, "semantic11": 11, "person_only": 1
    }  # fmt: skip
