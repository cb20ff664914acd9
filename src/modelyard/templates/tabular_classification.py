"""The table template's data: scikit-learn's breast-cancer table (569 tumours, 30 measurements)."""

from pathlib import Path

from sklearn.datasets import load_breast_cancer

from modelyard.templates import copy_files
from modelyard.templates.tabular import write_table


def write(folder: Path, name: str) -> None:
    """Fill ``folder``: ``data.csv`` with the target ``diagnosis``, ``sample.json`` and the text files."""
    copy_files("tabular-classification", folder, name)
    table = load_breast_cancer()
    columns = [str(column).replace(" ", "_") for column in table.feature_names]
    rows: list[list[str | float]] = [
        [*map(float, row), str(table.target_names[answer])]
        for row, answer in zip(table.data, table.target, strict=True)
    ]
    write_table(folder, [*columns, "diagnosis"], rows)
