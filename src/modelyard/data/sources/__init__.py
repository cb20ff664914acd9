"""The sources' table: where data can come from."""

from modelyard.spec.plugins import Plugin

BUILT_IN = {
    "images": Plugin(
        "modelyard.data.sources.images:Images", "a folder of image files, one folder per class"
    ),
    "csv": Plugin("modelyard.data.sources.csv:Csv", "a CSV table with a header"),
    "arrays": Plugin(
        "modelyard.data.sources.arrays:Arrays", '"module:function" that returns NumPy arrays'
    ),
}
