"""Real records, what is done to them, and made-up ones whose structure is all that tells them apart."""

import json
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks._claims import PeerMissing, Scale
from benchmarks.peers import require_peer

__all__ = ["cars", "countries", "disturbed", "real_records", "swapped", "transaction", "transposable", "transposed"]

Drop = Literal["share", "chance"]

COUNTRIES = (
    "world-countries@5.1.0"  # of npm, under the Open Database License: fetched once, not kept in this repository
)
FIRST = ["Ana", "Bo", "Cleo", "Dara", "Eli", "Fay", "Gus", "Hana", "Ivo", "Jun", "Kai", "Lea"]
LAST = ["Cruz", "Lind", "Okoye", "Patel", "Rossi", "Sato", "Tran", "Weber", "Young", "Zhou"]
CITIES = ["Accra", "Bergen", "Cusco", "Dakar", "Essen", "Fes", "Graz", "Hanoi", "Izmir", "Jaipur"]
GOODS = ["lamp", "chair", "desk", "vase", "clock", "shelf", "mirror", "rug"]


def cars(count: int | None = None) -> list[dict[str, Any]]:
    """Flat records, nine fields each, 406 in all: those of the package vega_datasets, first to last."""
    raw = require_peer("vega_datasets").data.cars.raw()
    return json.loads(raw)[:count]


def countries(count: int | None = None, *, fetch: bool) -> list[dict[str, Any]]:
    """Nested records of 2.2 kB, 250 in all; with ``fetch`` npm may be asked for them once."""
    folder = Path(os.environ.get("HESSE_CACHE") or Path.home() / ".cache" / "hesse") / "benchmarks"
    kept = folder / f"{COUNTRIES}.json"
    if not kept.exists():
        if not fetch:
            raise PeerMissing(f"{COUNTRIES} is not in {folder}; a run at full scale fetches it")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as made:
            command = ["npm", "pack", "--silent", COUNTRIES]
            try:
                subprocess.run(command, cwd=made, check=True, capture_output=True, timeout=120)
            except (OSError, subprocess.SubprocessError) as error:
                raise PeerMissing(f"npm could not fetch {COUNTRIES}: {error}") from error
            with tarfile.open(next(Path(made).glob("*.tgz"))) as archive:
                member = archive.extractfile("package/countries.json")
                if member is None:
                    raise PeerMissing(f"{COUNTRIES} holds no countries.json")
                part = kept.with_suffix(".part")
                part.write_bytes(member.read())
                part.replace(kept)
    return json.loads(kept.read_text("utf-8"))[:count]


def real_records(name: Literal["cars", "countries"], scale: Scale) -> list[dict[str, Any]]:
    """The first 200 of either, or 20 at smoke scale, where nothing is fetched."""
    count = scale(smoke=20, full=200)
    return cars(count) if name == "cars" else countries(count, fetch=scale.name == "full")


def disturbed(value: Any, rng: np.random.Generator, drop: Drop) -> Any:
    """Every number times 1 + 0.05 N(0, 1), two neighbours swapped in every text, keys shuffled, an eighth of them gone.

    ``share``: every object loses an eighth of its keys, rounded. ``chance``: every key goes with probability 1/8, but
    never the last one.
    """
    if isinstance(value, dict):
        pairs = list(value.items())
        items = [pairs[i] for i in rng.permutation(len(pairs))]
        if drop == "share":
            items = items[round(len(items) / 8) :]
        else:
            items = [item for item in items if rng.random() >= 1 / 8] or items[:1]
        return {key: disturbed(below, rng, drop) for key, below in items}
    if isinstance(value, list):
        return [disturbed(below, rng, drop) for below in value]
    if isinstance(value, str) and len(value) > 1:
        i = int(rng.integers(len(value) - 1))
        return value[:i] + value[i + 1] + value[i] + value[i + 2 :]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value * (1 + 0.05 * float(rng.standard_normal()))
    return value


def _person(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "name": f"{rng.choice(FIRST)} {rng.choice(LAST)}",
        "city": str(rng.choice(CITIES)),
        "age": int(rng.integers(18, 80)),
        "account": f"{rng.integers(10**6):06d}",
    }


def transaction(rng: np.random.Generator) -> dict[str, Any]:
    """A sale between two people."""
    items = [
        {"sku": str(rng.choice(GOODS)), "price": round(float(rng.uniform(5, 500)), 2), "count": int(rng.integers(1, 5))}
        for _ in range(int(rng.integers(1, 4)))
    ]
    return {"buyer": _person(rng), "seller": _person(rng), "items": items}


def swapped(sale: dict[str, Any]) -> dict[str, Any]:
    """The same sale the other way round."""
    return sale | {"buyer": sale["seller"], "seller": sale["buyer"]}


def transposable(rng: np.random.Generator) -> dict[str, Any]:
    """Contacts whose outer and inner keys are the same words."""
    kinds = ("home", "work", "old")
    return {outer: {inner: _person(rng)["account"] for inner in kinds if inner != outer} for outer in kinds}


def transposed(contacts: dict[str, Any]) -> dict[str, Any]:
    """Outer and inner keys exchanged."""
    kinds = list(contacts)
    return {outer: {inner: contacts[inner][outer] for inner in kinds if inner != outer} for outer in kinds}
