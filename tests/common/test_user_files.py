"""Files that people write: each fault is one sentence, which says what the file is."""

import json
import os
import re

import pytest

from pemt_jax.common.errors import PemtError, UsageError, shortened
from pemt_jax.common.storage import check_writable, current, path
from pemt_jax.common.user_input.files import parse_json, read_json, read_object, read_text

JSON_FAULTS = {
    "latin-1": ('{"a": "é"}'.encode("latin-1"), "no UTF-8 text (byte 0xe9 in line 1)"),
    "latin-1, third line": ("\n\né".encode("latin-1"), "no UTF-8 text (byte 0xe9 in line 3)"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "no UTF-8 text (it looks like UTF-16)"),
    "empty": (b"", "no JSON (expecting value in column 1)"),
    "cut": (b'{"a":\n', "no JSON (expecting value in line 2, column 1)"),
    "deep list": (b"[" * 100_000, "no JSON (it is nested too deep)"),
    "deep object": (b'{"a":' * 100_000, "no JSON (it is nested too deep)"),
    "long number": (b"1" + b"0" * 5000, "no JSON (it has a number of thousands of digits)"),
    "half a pair": (b'{"a": "\\ud800"}', "no JSON (it has half of a surrogate pair, \\ud...)"),
    "list": (b"[1]", "holds a list"),
    "null": (b"null", "holds null"),
}


@pytest.mark.parametrize("content, found", JSON_FAULTS.values(), ids=JSON_FAULTS)
def test_what_is_no_json_object_is_one_sentence(tmp_path, content, found):
    file = tmp_path / "card.json"
    file.write_bytes(content)
    with pytest.raises(PemtError) as caught:
        read_object(file, "a card")
    sentence = str(caught.value)
    assert sentence.startswith(f"{file} ") and found in sentence and ", expected a card" in sentence
    assert sentence.endswith(".") and "\n" not in sentence


def test_a_byte_order_mark_and_a_whole_pair_are_accepted(tmp_path):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}')
    assert read_json(tmp_path / "x.json", "an object") == {"a": "\N{GRINNING FACE}"}
    assert parse_json('"\\\\ud8"') == "\\ud8"  # an escaped backslash begins no pair


def test_what_is_no_file_of_text_is_named_for_what_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("a" * 100)
    (tmp_path / "link.txt").symlink_to("nowhere")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, found in {
        "folder": "folder is a folder, expected notes",
        "pipe": "it is a pipe or device",
        "note.txt": "There is no file .*note.txt, expected notes .nearest: 'notes.txt'",
        "link.txt": "link.txt is a link to nothing, expected notes",
        "loop.txt": "loop.txt cannot be read .Too many levels of symbolic links",
    }.items():
        with pytest.raises(PemtError, match=found):
            read_text(tmp_path / name, "notes")
    with pytest.raises(PemtError, match="has 100 bytes, expected notes of at most 99 bytes"):
        read_text(tmp_path / "notes.txt", "notes", largest=99)


@pytest.mark.parametrize("text", ["", " ", "a\0b", "\udc80"])
def test_what_cannot_be_a_path_is_refused(text):
    with pytest.raises(UsageError, match=re.escape(repr(text))):
        path(text)


def test_a_link_to_nothing_is_no_folder_to_write_to(tmp_path):
    (tmp_path / "run").symlink_to("nowhere")
    with pytest.raises(UsageError, match="run is a link to nothing, expected a folder"):
        check_writable("MODEL_DIR", tmp_path / "run")


def test_the_working_folder_and_the_root_are_folders_like_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert current(path(".")) == path(".") and current(path("/")) == path("/")


def test_values_are_shown_up_to_a_hundred_characters():
    assert shortened("x" * 10**5) == f"'{'x' * 99}..."
    assert shortened([3, 4]) == "[3, 4]"
    assert shortened(json.loads("1" + "0" * 4000) * 10**400).startswith("a number of thousands")
