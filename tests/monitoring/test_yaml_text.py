"""The YAML writer: whatever it writes is read back as what it was."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.monitoring.yaml_text import to_yaml

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["", "yes", "Off", "null", "5s", "1e3", "a: b", "#", "- x", "'", '"', "~"])
    | st.text(st.characters(exclude_categories=["Cs", "Cc"]))
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abcyn-: ", min_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=40)
@given(st.dictionaries(st.text("abcyn-: ", min_size=1), values, min_size=1))
def test_it_is_read_back_as_it_was(value: dict[str, Any]) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML, the oracle, is not installed")
    assert yaml.safe_load(to_yaml(value, "a comment\nof two lines")) == value


def test_it_is_written_for_people() -> None:
    value = {"jobs": [{"name": "yard", "targets": ["127.0.0.1:80"], "on": True, "of": {}}]}
    assert to_yaml(value, "Written by a program.").splitlines() == [
        "# Written by a program.",
        "jobs:",
        "  - name: yard",
        "    targets:",
        '      - "127.0.0.1:80"',
        '    "on": true',
        "    of: {}",
    ]
