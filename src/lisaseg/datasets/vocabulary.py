"""Names and definitions of things that can be pointed at in a photo: a large list from WordNet, and a hand-written table for the pool's categories.

WordNet (3.0 or 3.1) is read from its plain-text `dict` folder; nothing of it is kept in this package. The hand-written table is package data.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lisaseg.errors import DataError

WORDNET_ENV = "LISASEG_WORDNET"
WORDNET_HOMES = ("/usr/share/wordnet", "/usr/share/wordnet/dict", "/usr/local/WordNet-3.0/dict")
# Number of the lexicographer file -> its name, for the files that hold visible things.
LEXNAMES = {
    5: "noun.animal",
    6: "noun.artifact",
    8: "noun.body",
    13: "noun.food",
    17: "noun.object",
    18: "noun.person",
    20: "noun.plant",
    27: "noun.substance",
}
NEXT_STEP = f"Install it (`apt-get install wordnet-base`) or point {WORDNET_ENV} at any WordNet `dict` folder."

_NAME = re.compile(r"[a-z][a-z'-]*( [a-z][a-z'-]*){0,2}")
_TAXONOMY = re.compile(
    r"\b(genus|genera|family of|order of|taxonomic|phylum|chemical|compound|acid|molecul\w+|alloy|formula|isotope)\b", re.IGNORECASE
)
# Domains whose nouns are rarely things in a photo; WordNet puts them in brackets at the head of a definition.
_DOMAIN = re.compile(
    r"\((computer science|computing|physics|mathematics|geometry|law|linguistics|genetics|anatomy|medicine|pharmacology|bio\w+|chemistry|biology|"
    r"microbiology|neuroscience|psychology|physiology|embryology|pathology|philosophy|trademark|electronics|astronomy|geology|telecommunication)\)"
)
_NOT_A_THING = re.compile(r"(the|an?) (act|action|process|state|quality|property|condition|amount|quantity|way|method|system|group|relation|time)\b")
_RUDE = re.compile(r"\b(slur|offensive|obscene|vulgar|disparaging|derogatory|slang)\b", re.IGNORECASE)
_TOKEN = re.compile(r"[a-z][a-z'-]*")


@dataclass(frozen=True)
class CategoryText:
    """Words for one category of the pool.

    Attributes:
        name: natural name, lower case except for acronyms ("computer mouse", "TV").
        synonyms: other names for the same thing.
        glosses: three dictionary-like definitions, none of which holds the name.
        plural: plural of `name`; the name itself for mass nouns and pairs ("grass", "jeans").
    """

    name: str
    synonyms: tuple[str, ...]
    glosses: tuple[str, ...]
    plural: str


@dataclass(frozen=True)
class Noun:
    """One visible thing.

    Attributes:
        name: lower case, spaces between words.
        synonyms: other names of the same sense.
        gloss: short definition without the name.
        hypernyms: names of more general things, nearest first ("seat", "furniture", ...).
        lexname: WordNet's lexicographer file ("noun.artifact"), or "category" for entries of the hand-written table.
        count: how often WordNet's corpus uses this sense (0 = never seen, not necessarily rare).
    """

    name: str
    synonyms: tuple[str, ...]
    gloss: str
    hypernyms: tuple[str, ...]
    lexname: str
    count: int


@dataclass(frozen=True)
class _Synset:
    lexfile: int
    words: tuple[tuple[str, int], ...]  # (word as written, lex_id)
    hypernyms: tuple[int, ...]
    is_instance: bool
    gloss: str


def _package_json(name: str) -> Any:
    return json.loads(resources.files("lisaseg.datasets").joinpath(name).read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def category_texts() -> Mapping[str, CategoryText]:
    """Category name as in the pool's files ("wall-tile", "bus (vehicle)") -> its texts. Read-only; 237 entries.

    Several categories may share one natural name ("bus" and "bus (vehicle)").
    """
    raw = _package_json("category_texts.json")
    texts = {}
    for category, entry in raw.items():
        full = raw[entry["same_as"]] if "same_as" in entry else entry
        texts[category] = CategoryText(full["name"], tuple(full["synonyms"]), tuple(full["glosses"]), full["plural"])
    return MappingProxyType(texts)


@lru_cache(maxsize=1)
def _word_lists() -> dict[str, frozenset[str]]:
    return {key: frozenset(words) for key, words in _package_json("word_lists.json").items()}


def find_wordnet(wordnet_dir: str | Path | None = None) -> Path:
    """Return the WordNet `dict` folder: the argument, else $LISASEG_WORDNET, else the usual places.

    Raises:
        DataError: the folder lacks data.noun or index.noun, or none was found.
    """
    given = wordnet_dir or os.environ.get(WORDNET_ENV)
    folders = [Path(given)] if given else [Path(home) for home in WORDNET_HOMES]
    for folder in folders:
        for candidate in (folder, folder / "dict"):
            if all((candidate / name).is_file() for name in ("data.noun", "index.noun")):
                return candidate
    if given:
        raise DataError(f"{given}: no WordNet here (data.noun and index.noun are missing).", next_step=NEXT_STEP)
    raise DataError("WordNet was not found on this machine.", next_step=NEXT_STEP)


def load_vocabulary(wordnet_dir: str | Path | None = None, limit: int = 6000) -> list[Noun]:
    """Names of visible things with definitions, the categories of the pool first, then WordNet's nouns from frequent to rare.

    One sense a name: the first concrete one, except that names and synonyms of `category_texts()` always mean the category.

    Args:
        wordnet_dir: folder with data.noun and index.noun (cntlist.rev is used if it is there); None = $LISASEG_WORDNET or the usual places.
        limit: at most this many nouns.

    Raises:
        DataError: WordNet is missing or a line of it cannot be read.
    """
    folder = find_wordnet(wordnet_dir)
    synsets = dict(_read_data(folder / "data.noun"))
    counts, totals = _read_counts(folder / "cntlist.rev")
    mentions = _gloss_mentions(synsets)
    taken = {word.lower() for category, text in category_texts().items() for word in (category, text.name, text.plural, *text.synonyms)}
    ranked: list[tuple[float, Noun]] = []
    for lemma, offsets in _read_index(folder / "index.noun"):
        noun = None if lemma in taken else _noun(lemma, offsets, synsets, counts, totals)
        if noun is not None:
            # Corpus counts are 0 for most concrete nouns; being used to define others tells "wheel" from "whippletree". Then polysemy.
            score = 2.0 * math.log1p(noun.count) + math.log1p(mentions[noun.name]) + 0.05 * len(offsets)
            ranked.append((score, noun))
    ranked.sort(key=lambda pair: (-pair[0], len(pair[1].name), pair[1].name))
    nouns = _category_nouns() + [noun for _, noun in ranked]
    return nouns[:limit]


def _category_nouns() -> list[Noun]:
    unique = {text.name: text for text in category_texts().values()}
    return [Noun(text.name, text.synonyms, text.glosses[0], (), "category", 0) for text in unique.values()]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.startswith(" ") and line.strip():  # the licence at the head is indented
                yield number, line.rstrip("\n")


def _unreadable(path: Path, number: int, what: str, error: Exception) -> DataError:
    return DataError(f"{path}, line {number}: not a WordNet {what} entry ({error}).", next_step="Use an unchanged WordNet 3.x folder.")


def _read_data(path: Path) -> Iterator[tuple[int, _Synset]]:
    for number, line in _lines(path):
        try:
            head, _, gloss = line.partition("|")
            part = head.split()
            n_words = int(part[3], 16)
            words = tuple((part[4 + 2 * k], int(part[5 + 2 * k], 16)) for k in range(n_words))
            at = 4 + 2 * n_words
            pointers = [(part[at + 1 + 4 * k], int(part[at + 2 + 4 * k])) for k in range(int(part[at]))]
            ups = tuple(offset for symbol, offset in pointers if symbol in ("@", "@i"))
            yield int(part[0]), _Synset(int(part[1]), words, ups, any(symbol == "@i" for symbol, _ in pointers), gloss.strip())
        except (ValueError, IndexError) as error:
            raise _unreadable(path, number, "noun", error) from error


def _read_index(path: Path) -> Iterator[tuple[str, list[int]]]:
    for number, line in _lines(path):
        try:
            part = line.split()
            n_senses = int(part[2])
            offsets = [int(x) for x in part[-n_senses:]]
        except (ValueError, IndexError) as error:
            raise _unreadable(path, number, "index", error) from error
        yield part[0].replace("_", " "), offsets


def _read_counts(path: Path) -> tuple[dict[tuple[str, int, int], int], Counter[str]]:
    """(lemma, lexfile, lex_id) -> count of a noun sense, and lemma -> count over all parts of speech; empty if the folder has no counts."""
    senses: dict[tuple[str, int, int], int] = {}
    totals: Counter[str] = Counter()
    for number, line in _lines(path) if path.is_file() else ():
        try:
            key, _, rest = line.partition(" ")
            lemma, _, sense = key.replace("_", " ").partition("%")
            part_of_speech, lexfile, lex_id, *_ = sense.split(":")
            count = int(rest.split()[-1])
            totals[lemma] += count
            if part_of_speech == "1":
                senses[lemma, int(lexfile), int(lex_id)] = count
        except (ValueError, IndexError) as error:
            raise _unreadable(path, number, "count", error) from error
    return senses, totals


def _gloss_mentions(synsets: dict[int, _Synset]) -> Counter[str]:
    mentions: Counter[str] = Counter()
    for synset in synsets.values():
        tokens = _TOKEN.findall(synset.gloss.lower())
        mentions.update(tokens)
        mentions.update(f"{a} {b}" for a, b in pairwise(tokens))
    return mentions


def _noun(
    lemma: str, offsets: list[int], synsets: dict[int, _Synset], counts: dict[tuple[str, int, int], int], totals: Mapping[str, int]
) -> Noun | None:
    """The first concrete sense of `lemma`, or None if there is none or it is not what people mean by the word."""
    lists = _word_lists()
    if len(lemma) < 3 or not _NAME.fullmatch(lemma) or lemma in lists["not_visible"] or lemma in lists["rude"]:
        return None
    wanted = "noun.plant" if lemma in lists["prefer_plant"] else "noun.animal" if lemma in lists["prefer_animal"] else ""
    for rank, offset in enumerate(offsets):
        synset = synsets.get(offset)
        if synset is None or not _is_visible(lemma, synset) or (wanted and LEXNAMES[synset.lexfile] != wanted):
            continue
        used, total = _count(lemma, synset, counts), totals.get(lemma, 0)
        # "state" and "need" have a concrete sense too, but nobody means it.
        if not wanted and total >= 5 and used < (0.25 if rank else 0.12) * total:
            return None
        gloss, hypernyms = clean_gloss(synset.gloss, lemma), _hypernyms(synset, synsets)
        if not gloss or lists["not_visible_hypernyms"].intersection(hypernyms):
            return None
        synonyms = tuple(word.replace("_", " ") for word, _ in synset.words if word.replace("_", " ") != lemma and word.islower())
        return Noun(lemma, synonyms, gloss, hypernyms, LEXNAMES[synset.lexfile], used)
    return None


def _count(lemma: str, synset: _Synset, counts: dict[tuple[str, int, int], int]) -> int:
    return next((counts.get((lemma, synset.lexfile, lex_id), 0) for word, lex_id in synset.words if word.replace("_", " ").lower() == lemma), 0)


def _is_visible(lemma: str, synset: _Synset) -> bool:
    lexname = LEXNAMES.get(synset.lexfile)
    if lexname is None or synset.is_instance or _RUDE.search(synset.gloss):
        return False
    if not any(word.replace("_", " ") == lemma for word, _ in synset.words):  # written with a capital: a proper name
        return False
    allowed = _word_lists().get(lexname)  # people, body parts and substances: only the listed ones
    return allowed is None or lemma in allowed


def clean_gloss(gloss: str, name: str) -> str:
    """First definition of a WordNet gloss without examples and brackets, or "" if it is of no use for `name` (holds it, too short, taxonomy)."""
    text = gloss.split('; "')[0].split(": e.g.")[0]
    text = re.sub(r"\([^()]*\)", " ", text)
    first = text.split(";")[0]
    text = first if len(first.split()) >= 4 else text
    text = re.sub(r"\s+([,.;:])", r"\1", re.sub(r"\s+", " ", text)).strip(" ;,.:")
    if (
        len(text.split()) < 3
        or '"' in text
        or "(" in text
        or ")" in text
        or _TAXONOMY.search(text)
        or _NOT_A_THING.match(text)
        or _DOMAIN.match(gloss)
    ):
        return ""
    # The plain test first: compiling a pattern for each of 30,000 names takes most of the time.
    leaks = name in text.lower() and re.search(rf"\b{re.escape(name)}(s|es)?\b", text, re.IGNORECASE)
    return "" if leaks else text


def _hypernyms(synset: _Synset, synsets: dict[int, _Synset]) -> tuple[str, ...]:
    names: list[str] = []
    while synset.hypernyms and len(names) < 20:
        up = synsets.get(synset.hypernyms[0])
        if up is None:
            break
        names.append(up.words[0][0].replace("_", " "))
        synset = up
    return tuple(names)
