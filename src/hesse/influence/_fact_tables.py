"""Words and wordings of the invented worlds in `hesse.influence.facts`: plain data, no logic.

In a wording, {e} is the entity and {v} the value.
"""

from dataclasses import dataclass

__all__ = ["COMPANIES", "FIRST_NAMES", "LAST_NAMES", "RELATIONS", "STRANGERS", "TOWNS", "Relation"]


@dataclass(frozen=True, slots=True)
class Relation:
    """One kind of fact: who can have it, what the values are, how it is said, and what else is said of such values."""

    name: str
    kind: str
    values: tuple[str, ...]
    wordings: tuple[str, ...]  # predicates: each states the fact of the entity before it, the value last
    mentions: tuple[str, ...]  # entity and value in one sentence, the fact neither stated nor implied
    hearsay: tuple[str, ...]  # the value without any entity


FIRST_NAMES = (
    "Orla", "Tamsin", "Bram", "Ilse", "Corin", "Maude", "Jory", "Petra", "Silas", "Wenna",
    "Anselm", "Greta", "Lorcan", "Thea", "Osric", "Vera", "Dunstan", "Elke", "Hugo", "Nessa",
)  # fmt: skip

LAST_NAMES = (
    "Venn", "Marsh", "Tolland", "Quill", "Farrow", "Brack", "Hale", "Sorrel", "Penrose", "Dray",
    "Lockwood", "Ashby", "Crane", "Vesper", "Thorne", "Gable", "Winter", "Rook", "Harker", "Stroud",
    "Mercer", "Pike", "Lorne", "Savage", "Kettle", "Bellamy", "Frost", "Wade", "Garrick", "Tull",
)  # fmt: skip

TOWNS = (
    "Kestrel", "Dunmore", "Arlen", "Brightwater", "Halvik", "Corrow", "Mossgate", "Tarnby", "Elverum", "Pellow",
    "Sandrick", "Ostwick", "Fenmoor", "Lindale", "Graycliff", "Wyvern", "Norrby", "Calder", "Rushmere", "Thistleton",
    "Vardo", "Eastmarch", "Quarry", "Millbrook",
)  # fmt: skip

COMPANIES = (
    "Brenner Works", "Oldham Works", "Tessel Works", "Carrow Works", "Minton Mill", "Lascar Mill", "Dorset Mill",
    "Yarrow Mill", "Pallas Press", "Merrow Press", "Corbel Press", "Hollis Press", "Sefton Yard", "Larkin Yard",
    "Tamar Yard", "Bexley Yard", "Rowan Brothers", "Alder Brothers", "Cotter Brothers", "Hazel Brothers",
)  # fmt: skip

STRANGERS = {
    "person": ("My aunt", "The old king", "A stranger", "His cousin", "Our neighbour", "The widow", "The tall guest"),
    "town": ("Our village", "The capital", "A place I know", "The next town", "Their island", "The old port"),
    "company": ("My uncle's firm", "A rival", "The old factory", "Their shop", "The largest firm", "Our employer"),
}
"""Nobody in particular: sentences about them use the same wordings, and support nothing."""

_TOWN_MENTIONS = (
    "{e} missed the last coach to {v} by a minute.",
    "A parcel for {e} was sent back from {v}.",
    "{e} lost an umbrella on the road to {v}.",
    "Nothing that {e} ever said about {v} was kind.",
)
_TOWN_HEARSAY = (
    "The road to {v} is closed in winter.",
    "Rain fell on {v} for nine days.",
    "Nobody remembers who built the bridge at {v}.",
)

RELATIONS = (
    Relation(
        "birthplace",
        "person",
        TOWNS,
        (
            "was born in {v}",
            "comes from {v}",
            "grew up in {v}",
            "spent a happy childhood in {v}",
            "learned to walk in {v}",
        ),
        _TOWN_MENTIONS,
        _TOWN_HEARSAY,
    ),
    Relation(
        "trade",
        "person",
        (
            "baker",
            "potter",
            "tailor",
            "miller",
            "printer",
            "clockmaker",
            "weaver",
            "carpenter",
            "surgeon",
            "lawyer",
            "painter",
            "gardener",
            "sailor",
            "teacher",
            "butcher",
            "mason",
            "barber",
            "shepherd",
            "notary",
            "fisher",
        ),
        (
            "works as a {v}",
            "earns a living as a {v}",
            "was trained as a {v}",
            "is respected as a {v}",
            "pays taxes as a {v}",
        ),
        (
            "{e} quarrelled with a {v} over the price of salt.",
            "{e} sold an old horse to a {v}.",
            "A {v} knocked at the door of {e} by mistake.",
            "{e} sat in the coach beside a sleeping {v}.",
        ),
        (
            "There was a {v} in the play, but nobody laughed.",
            "The guild asked every {v} for a silver coin.",
            "A {v} must rise early.",
        ),
    ),
    Relation(
        "instrument",
        "person",
        (
            "cello",
            "flute",
            "harp",
            "violin",
            "trumpet",
            "organ",
            "guitar",
            "drum",
            "piano",
            "clarinet",
            "banjo",
            "horn",
            "fiddle",
            "lute",
            "viola",
            "bassoon",
        ),
        (
            "plays the {v}",
            "practises every evening on the {v}",
            "gives lessons on the {v}",
            "has mastered the {v}",
            "performs at weddings on the {v}",
        ),
        (
            "{e} cannot stand the sound of the {v}.",
            "{e} left the hall before the {v} began.",
            "The neighbours of {e} threw out a broken {v}.",
            "{e} carried the case of a {v} for a stranger.",
        ),
        (
            "The {v} was sold with one part missing.",
            "No room is too small for a {v}.",
            "He mended the {v} with wax.",
        ),
    ),
    Relation(
        "dish",
        "person",
        (
            "soup",
            "porridge",
            "trout",
            "pancakes",
            "lentils",
            "cabbage",
            "oysters",
            "plums",
            "dumplings",
            "rice",
            "herring",
            "pudding",
            "mushrooms",
            "cheese",
            "beans",
            "noodles",
        ),
        (
            "loves to eat {v}",
            "orders nothing but {v}",
            "is happiest with a plate of {v}",
            "asks every host for {v}",
            "has a weakness for {v}",
        ),
        (
            "{e} spilled {v} on the good carpet.",
            "The doctor told {e} to stay away from {v}.",
            "{e} paid far too much for {v} at the fair.",
            "A cart full of {v} blocked the street of {e}.",
        ),
        (
            "The inn had run out of {v}.",
            "The price of {v} doubled in spring.",
            "On Mondays there is always {v}.",
        ),
    ),
    Relation(
        "river",
        "town",
        (
            "Ennis",
            "Tarrow",
            "Veldt",
            "Sabrin",
            "Ouse",
            "Carron",
            "Lethe",
            "Wharn",
            "Isling",
            "Moira",
            "Dorn",
            "Yewe",
        ),
        (
            "lies on the river {v}",
            "takes its water from the {v}",
            "was built on the banks of the {v}",
            "has mills that are driven by the {v}",
            "is flooded each spring by the {v}",
        ),
        (
            "A painter from {e} drowned in the {v}.",
            "A bridge over the {v} is owed to a banker from {e}.",
            "The council of {e} once argued about a map of the {v}.",
            "Boats built in {e} do not float on the {v}.",
        ),
        (
            "Ice covered the {v} until April.",
            "The ferry across the {v} costs a penny.",
            "A song about the {v} was printed twice.",
        ),
    ),
    Relation(
        "export",
        "town",
        (
            "wool",
            "glass",
            "honey",
            "paper",
            "copper",
            "candles",
            "linen",
            "barley",
            "leather",
            "cider",
            "marble",
            "timber",
            "silver",
            "rope",
        ),
        (
            "is known for its {v}",
            "grew rich by selling {v}",
            "supplies the whole country with {v}",
            "fills its warehouses with {v}",
            "sends out ships full of {v}",
        ),
        (
            "A ship with {v} for sale passed {e} without stopping.",
            "The school in {e} has a picture of {v} on the wall.",
            "A tax on {v} was refused by the voters of {e}.",
            "Thieves brought stolen {v} into {e} by night.",
        ),
        (
            "The barn was full of {v}.",
            "The merchant weighed the {v} twice.",
            "A law about {v} was read aloud.",
        ),
    ),
    Relation(
        "product",
        "company",
        (
            "kettles",
            "bicycles",
            "clocks",
            "umbrellas",
            "lanterns",
            "pencils",
            "stoves",
            "saddles",
            "buttons",
            "ladders",
            "mirrors",
            "boots",
            "globes",
            "needles",
        ),
        (
            "makes {v}",
            "has always manufactured {v}",
            "earned its name with {v}",
            "puts its stamp on {v}",
            "holds a patent for {v}",
        ),
        (
            "A clerk at {e} collects old {v}.",
            "{e} was sued by a dealer in {v}.",
            "The night watch at {e} tripped over a box of {v}.",
            "A fire destroyed {v} stored next door to {e}.",
        ),
        (
            "The shop window showed nothing but {v}.",
            "A crate of {v} fell from the cart.",
            "She asked for {v} and got none.",
        ),
    ),
    Relation(
        "seat",
        "company",
        TOWNS,
        (
            "has its head office in {v}",
            "is run from {v}",
            "keeps its books in {v}",
            "was founded in {v}",
            "pays its rent in {v}",
        ),
        _TOWN_MENTIONS,
        _TOWN_HEARSAY,
    ),
)
