"""A table whose rows name a picture and hold a text, as files: what several tests prepare or serve."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MOODS = (("warm", "red", "sun"), ("cold", "blue", "rain"))


def goods(count: int = 60, seed: int = 0) -> tuple[list[dict[str, Any]], np.ndarray[Any, Any]]:
    """Rows, and pixels (count, 12, 12, 3): the label is what picture, text and price say together."""
    random = np.random.default_rng(seed)
    light, mood, dear = random.integers(0, 2, (3, count))
    pixels = random.integers(0, 90, (count, 12, 12, 3)).astype(np.uint8)
    pixels[light == 1, 3:9, 3:9] += 150
    rows = [
        {
            "photo": f"photos/{n}.png",
            "title": f"a {' '.join(random.choice(MOODS[mood[n]], 3))} thing, no. {n}",
            "price": round(float(random.normal(10 + 8 * dear[n], 1)), 2),
            "size": str(random.choice(["s", "m"])),
            "label": f"{light[n]}{mood[n]}{dear[n]}",
        }
        for n in range(count)
    ]
    return rows, pixels


def write_goods(folder: Path, count: int = 60, *, kind: str = "csv") -> list[dict[str, Any]]:
    """``folder/rows.<kind>`` and the pictures beside it; returns the rows."""
    rows, pixels = goods(count)
    (folder / "photos").mkdir(parents=True)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / "photos" / f"{number}.png")
    write_rows(folder / f"rows.{kind}", rows)
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
