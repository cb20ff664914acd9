"""The sources' table: where data can come from."""

from modelyard.data.sources.base import Source
from modelyard.spec.plugins import Plugin, load
from modelyard.spec.project import Project

BUILT_IN = {
    "images": Plugin(
        "modelyard.data.sources.images:Images", "a folder of image files, one folder per class"
    ),
    "csv": Plugin("modelyard.data.sources.csv:Csv", "a CSV table with a header"),
    "arrays": Plugin(
        "modelyard.data.sources.arrays:Arrays", '"module:function" that returns NumPy arrays'
    ),
}


def open_source(project: Project) -> Source:
    """The source that ``[data]`` names; nothing is read yet. Raises UsageError for an unknown name."""
    name = "arrays" if ":" in project.data.source else project.data.source
    source: Source = load("sources", name, BUILT_IN)(project.root, project.data)
    return source
