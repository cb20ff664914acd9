"""The regression template's data: scikit-learn's diabetes table (442 patients, 10 measurements)."""

from pathlib import Path

from sklearn.datasets import load_diabetes

from modelyard.templates import copy_files
from modelyard.templates.tabular import write_table

COLUMNS = {
    "age": "age",
    "sex": "sex",
    "bmi": "body_mass_index",
    "bp": "blood_pressure",
    "s1": "total_cholesterol",
    "s2": "low_density_lipoproteins",
    "s3": "high_density_lipoproteins",
    "s4": "cholesterol_ratio",
    "s5": "log_triglycerides",
    "s6": "blood_sugar",
}
"""scikit-learn's short names to the words of its own description."""


def write(folder: Path, name: str) -> None:
    """Fill ``folder``: ``data.csv`` with the target ``progression``, ``sample.json`` and the text files."""
    copy_files("tabular-regression", folder, name)
    table = load_diabetes(scaled=False)
    sex = list(table.feature_names).index("sex")
    rows = []
    for row, answer in zip(table.data, table.target, strict=True):
        values: list[str | float] = [float(value) for value in row]
        # The set says 1 and 2 without saying which is which; words keep it from being read as an amount.
        values[sex] = f"sex_{int(row[sex])}"
        rows.append([*values, float(answer)])
    write_table(folder, [*(COLUMNS[name] for name in table.feature_names), "progression"], rows)
