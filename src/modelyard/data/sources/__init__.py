"""The sources' table: where data can come from."""

from modelyard.data.sources.base import Source
from modelyard.spec.plugins import Plugin, load
from modelyard.spec.project import Project

BUILT_IN = {
    "images": Plugin(
        "modelyard.data.sources.images:Images", "a folder of image files, one folder per class"
    ),
    "csv": Plugin("modelyard.data.sources.csv:Csv", "a CSV table with a header"),
    "parquet": Plugin(
        "modelyard.data.sources.parquet:Parquet", "a Parquet file or a folder of shards", "arrow"
    ),
    "arrow": Plugin(
        "modelyard.data.sources.arrow:Arrow",
        "an Arrow IPC (Feather 2) file or stream, or a folder of shards",
        "arrow",
    ),
    "jsonl": Plugin(
        "modelyard.data.sources.jsonl:JsonLines", "JSON Lines, one file or a folder of shards"
    ),
    "npz": Plugin(
        "modelyard.data.sources.npz:Npz",
        "NumPy arrays: .npz files, a folder of shards, or a folder of .npy files",
    ),
    "text": Plugin(
        "modelyard.data.sources.text:Text", "a folder of text files, one folder per class"
    ),
    "arrays": Plugin(
        "modelyard.data.sources.arrays:Arrays", '"module:function" that returns NumPy arrays'
    ),
}


def open_source(project: Project) -> Source:
    """The source that ``[data]`` names; nothing is read yet. Raises UsageError for an unknown name."""
    name = "arrays" if ":" in project.data.source else project.data.source
    source: Source = load("sources", name, BUILT_IN)(project.root, project.data)
    source.scratch = project.store_folder / "cache" / "data"
    return source
