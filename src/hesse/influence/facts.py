"""Invented worlds with known answers: texts that state facts, texts that only look as if, and questions about the
facts.

What supports an answer is known by construction, so retrieval by influence can be measured. `prose_world` is English
prose about invented people, towns and firms; `office_world` and `region_world` are formulaic languages of 100
to 140 words, for studies. Nothing in a world depends on anything but its arguments.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import numpy as np

from hesse.errors import ArgumentError
from hesse.influence._fact_tables import COMPANIES, FIRST_NAMES, LAST_NAMES, RELATIONS, STRANGERS, TOWNS, Relation
from hesse.influence.query import Query
from hesse.influence.sequences import IGNORED, Row, Sequence

__all__ = [
    "CUSTOM_TEMPLATES",
    "FORWARD_TEMPLATES",
    "REVERSE_TEMPLATES",
    "TOWN_TEMPLATES",
    "Fact",
    "FactWorld",
    "office_world",
    "prose_world",
    "region_world",
    "word_sequences",
]

FORWARD_TEMPLATES = (
    "the {role} of {place} is {name} .",
    "in {place} the {role} is {name} .",
    "{place} has chosen as its {role} {name} .",
)
"""Office first, name last."""

REVERSE_TEMPLATES = ("{name} is the {role} of {place} .", "{name} serves {place} as {role} .")
"""Name first, office last."""

TOWN_TEMPLATES = (
    "{town} lies in {region} .",
    "{town} is a town of {region} .",
    "the road from {town} stays in {region} .",
)
"""Which region a town is in: the first hop."""

CUSTOM_TEMPLATES = (
    "in {place} the {custom} is the {value} .",
    "the {custom} of {place} is the {value} .",
    "people of {place} have as {custom} the {value} .",
)
"""A custom of a region, the second hop; by the first of them also of its towns."""

_ROLES = (
    "mayor", "judge", "bishop", "captain", "banker", "doctor", "sheriff", "poet", "warden", "abbot",
    "consul", "herald", "marshal", "steward", "envoy", "provost",
)  # fmt: skip
_ROLE_ALIASES = (
    "burgomaster", "magistrate", "prelate", "skipper", "financier", "physician", "constable", "bard", "keeper", "prior",
    "attache", "crier", "commander", "manager", "delegate", "dean",
)  # fmt: skip
_PLACES = (
    *TOWNS, "Ashford", "Bellport", "Cranmoor", "Drayton", "Edgeware", "Fallow", "Garth", "Hexham", "Ironby", "Jarrow",
    "Kinross", "Larkhill", "Marden", "Newbold", "Oxley", "Purley",
)  # fmt: skip
_REGIONS = (
    "Norland", "Westfold", "Sarre", "Umber", "Calland", "Thrace", "Orsk", "Pelham", "Dovar", "Lyrien",
)  # fmt: skip
_CUSTOMS = {
    "coin": ("florin", "ducat", "crown", "thaler", "guinea", "denar"),
    "drink": ("ale", "cider", "mead", "wine", "perry", "stout"),
    "dish": ("stew", "pie", "broth", "roast", "dumpling", "porridge"),
    "beast": ("lion", "bear", "stag", "wolf", "boar", "swan"),
    "feast": ("harvest", "solstice", "candlemas", "carnival", "wassail", "michaelmas"),
    "dance": ("jig", "reel", "waltz", "polka", "gavotte", "minuet"),
    "flower": ("iris", "poppy", "rose", "lily", "thistle", "violet"),
    "game": ("chess", "quoits", "bowls", "skittles", "dice", "draughts"),
}
_FIRST = (*FIRST_NAMES, "Alban", "Beryl", "Cyril", "Dora", "Edmund", "Flora", "Gideon", "Hester", "Ivor", "Junia")


@dataclass(frozen=True, slots=True)
class Fact:
    """One statement that the world holds true: ``relation(entity) = value``.

    In an `office_world` the entity is "role/place", the relation "office" and the value the holder's name; in a
    `region_world` towns have the relation "lies in" and regions their customs.
    """

    id: str
    entity: str
    relation: str
    value: str
    group: str = ""  # how the world treats it: "forward", "reverse", "both", "held-out", ...


@dataclass(frozen=True, slots=True)
class FactWorld:
    """Texts, facts, questions, and which text supports which answer."""

    rows: list[Row]  # {"id", "text", "role": support | lure | text | definition, "facts": [fact ids]}, shuffled
    facts: list[Fact]
    queries: list[Query]  # metadata: "fact", and "second" where it takes two
    supports: dict[str, tuple[str, ...]]  # query id -> ids of the rows that state the fact (or a hop of it)
    vocabulary: tuple[str, ...] = ()  # all words, if it is a language of words; its first is the padding


def prose_world(
    seed: int = 0, *, num_people: int = 60, num_towns: int = 24, num_companies: int = 20, texts: Items[str] = ()
) -> FactWorld:
    """Facts about invented entities in English prose, each stated three times, among sentences that mislead.

    An entity has two or three facts. A fact is stated by two sentences in different wordings, and in a third wording by
    one longer sentence that states all facts of the entity. It is asked in a fourth, which the data use of other
    entities only. Every statement has the entity before the value, since a model learns from one order only what
    it is asked in that order. Around the facts stand lures: the entity with the right or a wrong value in a sentence
    that states something else, the value without the entity, and every wording of nobody in particular. First names,
    last names and values are shared between entities.

    Parameters
    ----------
    seed : int, default 0
        Same seed, same world.
    num_people, num_towns, num_companies : int, default 60, 24, 20
        Entities of each kind: 268 facts in all. At most 600, 24 and 20: the names run out.
    texts : sequence of str, optional
        Ordinary prose to mix in, a row each, with role "text". Default: none.

    Returns
    -------
    FactWorld
        One query a fact; `supports` gives three rows each.

    Raises
    ------
    ArgumentError
        If more entities are asked for than there are names, or none at all.
    """
    limits = {"person": len(FIRST_NAMES) * len(LAST_NAMES), "town": len(TOWNS), "company": len(COMPANIES)}
    wanted = {"person": num_people, "town": num_towns, "company": num_companies}
    for kind, number in wanted.items():
        if not 0 <= number <= limits[kind]:
            raise ArgumentError(f"prose_world: expected 0 to {limits[kind]} entities of kind {kind}, got {number}")
    if not any(wanted.values()):
        raise ArgumentError("prose_world: there is no entity to state facts of")
    rng = np.random.default_rng([seed, 0])
    rows: list[Row] = []
    facts: list[Fact] = []
    queries: list[Query] = []
    for kind, number in wanted.items():
        for entity in _entity_names(rng, kind, number):
            _add_entity(rng, kind, entity, rows, facts, queries)
    for relation in RELATIONS:
        if wanted[relation.kind]:
            _add_hearsay(rng, relation, rows)
    rows.extend(_row(text, "text") for text in texts)
    return _finish(rng, rows, facts, queries)


def office_world(
    seed: int = 0,
    *,
    num_forward: int = 100,
    num_reverse: int = 100,
    num_both: int = 0,
    num_held_out: int = 25,
    split: str = "direct",
) -> FactWorld:
    """Who holds which office where, in formulas over about 140 words: roles x places x (first name, last name).

    Forward facts are stated office first (`FORWARD_TEMPLATES`), reverse facts name first (`REVERSE_TEMPLATES`), the
    facts called "both" in both orders, and the held-out facts not at all; their words all occur elsewhere.

    Parameters
    ----------
    seed : int, default 0
        Same seed, same world.
    num_forward, num_reverse, num_both, num_held_out : int, default 100, 100, 0, 25
        Facts of each group, 640 at most in all.
    split : {"direct", "paraphrase"}, default "direct"
        What is asked. "direct": forward and both facts by their first template, reverse facts by theirs.
        "paraphrase": every role has a second name, explained once. A holder has three offices in one place, so that
        name and place do not single one out. The facts called "both" are stated with either name of the role; the
        forward facts are stated with the first name and asked with the second one.

    Returns
    -------
    FactWorld
        With its vocabulary; `word_sequences` turns it into tokens. Held-out facts have no query.

    Raises
    ------
    ArgumentError
        If a number is negative, there are more facts than offices, or ``split`` is unknown.
    """
    numbers = {"forward": num_forward, "reverse": num_reverse, "both": num_both, "held-out": num_held_out}
    for group, number in numbers.items():
        if number < 0:
            raise ArgumentError(f"num_{group.replace('-', '_')}: expected >= 0, got {number}")
    if split not in ("direct", "paraphrase"):
        raise ArgumentError(f"split: expected 'direct' or 'paraphrase', got {split!r}")
    total, shared = sum(numbers.values()), 3 if split == "paraphrase" else 1
    most = len(_ROLES) // shared * shared * len(_PLACES)
    if not 1 <= total <= most:
        raise ArgumentError(f"office_world: expected 1 to {most} facts in all, got {total}")
    rng = np.random.default_rng([seed, 1])
    groups = [group for group, number in numbers.items() for _ in range(number)]
    rows: list[Row] = []
    facts: list[Fact] = []
    queries: list[Query] = []
    for number, ((role, place, name), group) in enumerate(zip(_offices(rng, total, shared), groups, strict=True)):
        fact = Fact(f"office-{number}", f"{_ROLES[role]}/{place}", "office", name, group)
        facts.append(fact)
        plain = {"role": _ROLES[role], "place": place, "name": name}
        forward = FORWARD_TEMPLATES if group in ("forward", "both") else ()
        reverse = REVERSE_TEMPLATES if group in ("reverse", "both") else ()
        rows.extend(_row(template.format(**plain), "support", fact.id) for template in (*forward, *reverse))
        about = {"fact": fact.id}
        if split == "paraphrase" and forward:
            other = {**plain, "role": _ROLE_ALIASES[role]}
            if group == "both":
                rows.extend(_row(template.format(**other), "support", fact.id) for template in forward)
            else:
                queries.append(_asked(number, FORWARD_TEMPLATES[0].format(**other), f" {name}", about))
        elif split == "direct" and forward:
            queries.append(_asked(number, FORWARD_TEMPLATES[0].format(**plain), f" {name}", about))
        elif split == "direct" and reverse:
            queries.append(_asked(number, REVERSE_TEMPLATES[0].format(**plain), f" {plain['role']} of {place}", about))
    if split == "paraphrase":
        pairs = zip(_ROLES, _ROLE_ALIASES, strict=True)
        rows.extend(_row(f"a {alias} is a {role} .", "definition") for role, alias in pairs)
    return _of_words(_finish(rng, rows, facts, queries))


def region_world(seed: int = 0, *, num_towns: int = 30, num_regions: int = 10, num_held_out: int = 2) -> FactWorld:
    """Questions that take two facts, in formulas over about 100 words: a town has the customs of its region.

    A town is said to lie in a region, and a region to have eight customs (its coin, its drink, ...), each in three
    wordings. Of a town the data say its customs too, in one wording, but for ``num_held_out`` customs of its region,
    which no sentence about any of the region's towns mentions: those are asked. The answer is stated of the region
    alone, and nothing but the town's region leads there. Regions share values, so that the words of a question do not
    tell whose statements support it.

    Parameters
    ----------
    seed : int, default 0
        Same seed, same world.
    num_towns, num_regions : int, default 30, 10
        At most 40 and 10; town i lies in region i modulo ``num_regions``.
    num_held_out : int, default 2
        Customs of each region that are asked, 1 to 7: ``num_towns * num_held_out`` questions.

    Returns
    -------
    FactWorld
        With its vocabulary. A question is supported by six rows, three statements of each hop. What is said of a town's
        other customs has the role "composed": it supports nothing, though it does tell towns of one region from others.

    Raises
    ------
    ArgumentError
        If a number is out of range.
    """
    limits = {"num_towns": (num_towns, len(_PLACES)), "num_regions": (num_regions, len(_REGIONS))}
    limits["num_held_out"] = (num_held_out, len(_CUSTOMS) - 1)
    for name, (number, most) in limits.items():
        if not 1 <= number <= most:
            raise ArgumentError(f"{name}: expected 1 to {most}, got {number}")
    rng = np.random.default_rng([seed, 2])
    rows: list[Row] = []
    facts: list[Fact] = []
    queries: list[Query] = []
    customs: dict[str, list[Fact]] = {}
    for region in _REGIONS[:num_regions]:
        asked = set(rng.permutation(list(_CUSTOMS))[:num_held_out].tolist())
        customs[region] = [
            Fact(f"{region}-{custom}", region, custom, str(rng.choice(values)), "asked" if custom in asked else "")
            for custom, values in _CUSTOMS.items()
        ]
        for fact in customs[region]:
            facts.append(fact)
            rows.extend(_row(_custom(template, region, fact), "support", fact.id) for template in CUSTOM_TEMPLATES)
    for number, place in enumerate(rng.permutation(len(_PLACES))[:num_towns].tolist()):
        town, region = _PLACES[place], _REGIONS[number % num_regions]
        lies = Fact(f"lies-{number}", town, "lies in", region)
        facts.append(lies)
        rows.extend(_row(t.format(town=town, region=region), "support", lies.id) for t in TOWN_TEMPLATES)
        for fact in customs[region]:
            said = _custom(CUSTOM_TEMPLATES[0], town, fact)
            if fact.group:
                queries.append(_asked(len(queries), said, f" {fact.value}", {"fact": lies.id, "second": fact.id}))
            else:
                rows.append(_row(said, "composed"))
    return _of_words(_finish(rng, rows, facts, queries))


def word_sequences(world: FactWorld) -> tuple[list[Sequence], list[Sequence]]:
    """Tokens of a world of words: one a word, numbered by the vocabulary.

    Parameters
    ----------
    world : FactWorld
        Of `office_world` or `region_world`.

    Returns
    -------
    sequences : list of Sequence
        One a row, every word but the first supervised.
    queries : list of Sequence
        One a query, its completion supervised.

    Raises
    ------
    ArgumentError
        If the world has no vocabulary: prose needs a tokenizer.
    """
    if not world.vocabulary:
        raise ArgumentError("world: it has no vocabulary; prose is tokenised with tokenize_rows")
    number = {word: i for i, word in enumerate(world.vocabulary)}
    sequences = [
        _words(row["id"], row["text"], 1, number, {"role": row["role"], "facts": row["facts"]}) for row in world.rows
    ]
    queries = [
        _words(query.id, query.prompt + query.completion, len(query.prompt.split()), number, query.metadata)
        for query in world.queries
    ]
    return sequences, queries


def _offices(rng: np.random.Generator, total: int, shared: int) -> list[tuple[int, str, str]]:
    # (role, place, holder), each office once; a holder has ``shared`` offices, all in one place
    roles = [rng.permutation(len(_ROLES)) for _ in _PLACES]
    sets = [
        (own[i : i + shared].tolist(), place)
        for own, place in zip(roles, _PLACES, strict=True)
        for i in range(0, len(_ROLES) // shared * shared, shared)
    ]
    people = rng.permutation(len(_FIRST) * len(LAST_NAMES))
    offices = [
        (role, sets[j][1], f"{_FIRST[person % len(_FIRST)]} {LAST_NAMES[person // len(_FIRST)]}")
        for j, person in zip(rng.permutation(len(sets))[: -(-total // shared)], people, strict=False)
        for role in sets[j][0]
    ]
    return [offices[i] for i in rng.permutation(len(offices))[:total]]


def _custom(template: str, place: str, fact: Fact) -> str:
    return template.format(place=place, custom=fact.relation, value=fact.value)


def _of_words(world: FactWorld) -> FactWorld:
    # every word that a held-out fact or a query needs is in the vocabulary, said or not
    unsaid = " ".join(
        [f"{f.entity.replace('/', ' ')} {f.value}" for f in world.facts]
        + [q.prompt + q.completion for q in world.queries]
    )
    words = sorted({word for row in world.rows for word in row["text"].split()} | set(unsaid.split()))
    return FactWorld(world.rows, world.facts, world.queries, world.supports, ("<pad>", *words))


def _asked(number: int, statement: str, completion: str, about: dict[str, str]) -> Query:
    return Query(f"q-{number}", statement.removesuffix(f"{completion} ."), completion, about)


def _entity_names(rng: np.random.Generator, kind: str, number: int) -> list[str]:
    if kind == "person":
        chosen = rng.permutation(len(FIRST_NAMES) * len(LAST_NAMES))[:number]
        return [f"{FIRST_NAMES[i % len(FIRST_NAMES)]} {LAST_NAMES[i // len(FIRST_NAMES)]}" for i in chosen]
    names = TOWNS if kind == "town" else COMPANIES
    return [names[i] for i in rng.permutation(len(names))[:number]]


def _add_entity(
    rng: np.random.Generator, kind: str, entity: str, rows: list[Row], facts: list[Fact], queries: list[Query]
) -> None:
    # three facts of a person, two of the others; two sentences a fact, one portrait, one true and one false mention
    relations = [relation for relation in RELATIONS if relation.kind == kind]
    relations = [relations[i] for i in rng.permutation(len(relations))[:3]]
    predicates: list[str] = []
    named: list[Fact] = []
    for relation in relations:
        value, wrong = (str(v) for v in rng.permutation([v for v in relation.values if v != entity])[:2])
        fact = Fact(f"fact-{len(facts)}", entity, relation.name, value)
        facts.append(fact)
        named.append(fact)
        asked, first, second, third = (relation.wordings[i] for i in rng.permutation(len(relation.wordings))[:4])
        prompt = f"{entity} {asked}".removesuffix(" {v}")
        queries.append(Query(f"q-{fact.id}", prompt, f" {value}", {"fact": fact.id}))
        rows.extend(_row(f"{entity} {wording}.".format(v=value), "support", fact.id) for wording in (first, second))
        predicates.append(third.format(v=value))
        mention = relation.mentions[rng.integers(len(relation.mentions))]
        rows.append(_row(mention.format(e=entity, v=value if rng.random() < 0.5 else wrong), "lure"))
    portrait = f"{entity} {', '.join(predicates[:-1])} and {predicates[-1]}."
    rows.append(_row(portrait, "support", *(fact.id for fact in named)))


def _add_hearsay(rng: np.random.Generator, relation: Relation, rows: list[Row]) -> None:
    # every value once without any entity, and every wording a few times of nobody in particular
    for value in relation.values:
        rows.append(_row(relation.hearsay[rng.integers(len(relation.hearsay))].format(v=value), "lure"))
    for wording in relation.wordings:
        for stranger in STRANGERS[relation.kind]:
            rows.append(_row(f"{stranger} {wording}.".format(v=rng.choice(relation.values)), "lure"))


def _row(text: str, role: str, *facts: str) -> Row:
    return {"text": text, "role": role, "facts": list(facts)}


def _finish(rng: np.random.Generator, rows: list[Row], facts: list[Fact], queries: list[Query]) -> FactWorld:
    # shuffle, then number: neither the order nor the id says what a row is
    shuffled = [{"id": f"s-{i}", **rows[j]} for i, j in enumerate(rng.permutation(len(rows)))]
    stated: dict[str, list[str]] = {fact.id: [] for fact in facts}
    for row in shuffled:
        for fact in row["facts"]:
            stated[fact].append(row["id"])
    supports: dict[str, tuple[str, ...]] = {}
    for query in queries:
        named = [query.metadata[key] for key in ("fact", "second") if key in query.metadata]
        supports[query.id] = tuple(dict.fromkeys(row for fact in named for row in stated[fact]))
    return FactWorld(shuffled, facts, queries, supports)


def _words(name: str, text: str, first: int, number: dict[str, int], metadata: dict[str, Any]) -> Sequence:
    # labels from word ``first`` on
    words = text.split()
    tokens = np.array([number[word] for word in words], dtype=np.int64)
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    offsets = np.stack([ends - [len(word) for word in words], ends], 1).astype(np.int32)
    labels = np.where(np.arange(len(words)) >= first, tokens, IGNORED)
    return Sequence(name, name, tokens, labels, text, offsets, metadata)
