"""Texts: tokens, a vocabulary from the training split, and the same numbers in training and service."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import modelyard
from modelyard.data.dataset import open_split, prepare
from modelyard.data.preprocess import describe, encode
from modelyard.data.profile import Profile
from modelyard.data.text import WordCount, split_words
from modelyard.inquiry import predict_here
from modelyard.spec.errors import DataError
from modelyard.spec.signature import TextInput
from modelyard.store import open_store

WORDS = TextInput(length=5, tokens="words", words=("good", ".", "film"))
BYTES = TextInput(length=5, tokens="bytes")


def test_words_and_bytes() -> None:
    assert split_words("It's GOOD, naïve 3.5!") == [
        "it",
        "'",
        "s",
        "good",
        ",",
        "naïve",
        "3",
        ".",
        "5",
        "!",
    ]
    assert encode(WORDS, ["A good film."]).tolist() == [[1, 2, 4, 3, 0]]
    assert encode(BYTES, ["aé", {"text": "abcdefg"}, b"z"]).tolist() == [
        [98, 196, 170, 0, 0],
        [98, 99, 100, 101, 102],
        [123, 0, 0, 0, 0],
    ]
    assert encode(WORDS, [""]).dtype == np.int64
    assert (WORDS.vocabulary, BYTES.vocabulary) == (5, 257)
    assert "5 words" in describe(WORDS)["summary"]


@given(st.lists(st.text(), min_size=1, max_size=5), st.sampled_from([WORDS, BYTES]))
def test_any_text_gives_numbers_of_the_vocabulary(texts: list[str], spec: TextInput) -> None:
    numbers = encode(spec, texts)
    assert numbers.shape == (len(texts), 5)
    assert numbers.min() >= 0 and numbers.max() < spec.vocabulary
    np.testing.assert_array_equal(numbers[:1], encode(spec, texts[:1]))


@pytest.mark.parametrize("item", [3, None, ["a"], {"text": 3}, {"words": "a"}, b"\xff\xfe"])
def test_what_is_no_text(item: Any) -> None:
    with pytest.raises(DataError) as caught:
        encode(WORDS, [item])
    assert caught.value.mend
    with pytest.raises(DataError, match="item 1: "):
        encode(WORDS, ["a", item])


def test_the_most_frequent_words() -> None:
    count = WordCount()
    count.add(["b a b", "c a"])
    assert count.most(2) == ("a", "b")


GOOD, BAD = ("fine", "lovely", "great", "warm"), ("poor", "dull", "awful", "cold")
COMMON = ("the", "film", "was", "story", "actor", "music", "a", "and", "ending")


def reviews(count: int = 240) -> list[dict[str, str]]:
    random = np.random.default_rng(0)
    rows = []
    for number in range(count):
        judged = GOOD if number % 2 else BAD
        words = [*random.choice(COMMON, 8), *random.choice(judged, 2)]
        random.shuffle(words)
        rows.append({"review": " ".join(words), "label": ("bad", "good")[number % 2]})
    return rows


def test_a_column_of_texts(tmp_path: Path, project, store) -> None:
    rows = [*reviews(), {"review": None, "label": "good"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    asked = {"source": "jsonl", "path": "a.jsonl", "text": "review", "length": 12, "vocabulary": 10}
    with pytest.raises(
        DataError, match="1 of 241 samples cannot be read: line 241: it has no text"
    ):
        prepare(project(**asked), store)
    dataset = prepare(project(**asked, max_unreadable=0.01), store)
    assert isinstance(dataset.input, TextInput) and dataset.input.vocabulary == 10
    split = open_split(dataset, "train")
    inputs, _ = split.batch(np.arange(len(split)))
    assert inputs.dtype == np.int64 and inputs.shape[1:] == (12,) and inputs.max() == 9
    profile = Profile.from_json((Path(dataset.folder) / "profile.json").read_bytes())
    assert [feature.name for feature in profile.features] == ["tokens", "words"]
    assert profile.features[0].mean == 10


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"text": "revew"}, "data.text names 'revew', .* did you mean 'review'"),
        ({"text": "label"}, "data.text names 'label'"),
        ({"text": "stars"}, "column 'stars' holds a int and no text"),
    ],
)
def test_a_text_column_that_is_none(
    data: dict[str, str], words: str, tmp_path: Path, project, store
) -> None:
    rows = [{**row, "stars": i} for i, row in enumerate(reviews(20))]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(DataError, match=words):
        prepare(project(source="jsonl", path="a.jsonl", **data), store)


def test_a_folder_without_texts(tmp_path: Path, project, store) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("x")
    with pytest.raises(DataError, match="no text files in folders") as caught:
        prepare(project(source="text", path="data"), store)
    assert "data.text" in caught.value.mend


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["words", "bytes"])
def test_from_texts_to_answers(tokens: str, tmp_path: Path) -> None:
    """A folder of texts is trained on, exported with parity, registered, opened and asked."""
    for number, row in enumerate(reviews()):
        (tmp_path / "reviews" / row["label"]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "reviews" / row["label"] / f"{number}.txt").write_text(row["review"])
    (tmp_path / "yard.toml").write_text(
        '[project]\nname = "reviews"\n[data]\nsource = "text"\npath = "reviews"\n'
        f'tokens = "{tokens}"\nlength = 80\n[model]\nbuild = "text-small"\n'
        "[train]\nepochs = 15\noptimizer = { lr = 0.01 }\n"
    )
    run = modelyard.train(tmp_path)
    if tokens == "words":
        assert run.metrics["test/accuracy"] > 0.9
    bundle = modelyard.export(tmp_path)
    assert bundle.signature.inputs[0].dtype == "int64"
    assert bundle.signature.inputs[0].below == bundle.input.vocabulary
    modelyard.add(tmp_path)
    answers = predict_here(
        open_store(tmp_path / ".yard"),
        "reviews",
        ["the film was great and lovely", {"text": "awful dull story"}],
    )
    if tokens == "words":
        assert [answer["label"] for answer in answers] == ["good", "bad"]
