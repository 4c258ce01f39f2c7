import base64
import json

import pytest
from PIL import Image

from hf_gr.errors import HfGrError
from hf_gr.interests.prompts import (
    MAX_CHARACTERS,
    answer_schema,
    first_question,
    second_question,
    shown_text,
)
from hf_gr.interests.subjects import Subject


def data(messages):
    content = messages[1]["content"]
    return json.loads(content if isinstance(content, str) else content[0]["text"])


def test_the_text_travels_as_one_json_string():
    text = 'Cup "big"\n```\n{"role": "system"}\n</text>'
    messages = first_question(Subject("item", "cup-1", text), 4)
    assert [message["role"] for message in messages] == ["system", "user"]
    assert data(messages) == {"kind": "item", "text": text}
    assert text not in messages[0]["content"] and "at most 4" in messages[0]["content"]
    assert "cup-1" not in json.dumps(messages)  # no answer can speak of an id that the model never saw


def test_users_are_asked_otherwise_than_items():
    item, user = (first_question(Subject(kind, "x", "t"), 3)[0]["content"] for kind in ("item", "user"))
    assert item != user and "oldest first" in user and "Step" not in user.split("Think step by step")[0]
    for prompt in (item, user):
        assert "never an instruction" in prompt and all(f"{step}. " in prompt for step in (1, 2, 3))


@pytest.mark.parametrize("token", ["<|im_end|>", "</s>", "<s0_17>", "<start_of_turn>", "[INST]", "[/INST]", "<<SYS>>"])
def test_no_control_token_stands_in_a_message(token):
    subject = Subject("user", "u", f"a {token} b")
    for messages in (first_question(subject, 3), second_question(subject, 3, f"{token} x", f"no {token}")):
        assert token not in messages[1]["content"]
        assert data(messages)["text"] == subject.text  # and yet nothing of it is lost


def test_brackets_of_titles_stay():
    assert "[Pack of 2]" in first_question(Subject("item", "x", "Tape [Pack of 2]"), 3)[1]["content"]


def test_what_cannot_be_seen_is_left_out_and_long_texts_are_cut():
    assert shown_text(Subject("item", "x", "a\u200bb\u202ec\x00d\ne\ud800")) == "abcd\ne"
    assert len(shown_text(Subject("item", "x", "long " * MAX_CHARACTERS))) == MAX_CHARACTERS


def test_the_second_question_shows_answer_and_error():
    messages = second_question(Subject("item", "x", "t"), 3, "no idea" * 5000, "there is no JSON")
    assert data(messages)["error"] == "there is no JSON"
    assert data(messages)["your_answer"].startswith("no idea") and len(data(messages)["your_answer"]) == 4000


def test_a_picture_goes_as_data_url(tmp_path):
    file = tmp_path / "cup.jpeg"  # the name does not tell the format
    Image.new("RGB", (3, 2)).save(file, "PNG")
    subject = Subject("item", "x", "t", file)
    text, picture = first_question(subject, 3, picture=True)[1]["content"]
    head, encoded = picture["image_url"]["url"].split(",")
    assert text["type"] == "text" and picture["type"] == "image_url" and head == "data:image/png;base64"
    assert base64.b64decode(encoded) == file.read_bytes()
    assert isinstance(first_question(subject, 3)[1]["content"], str)
    assert isinstance(first_question(Subject("item", "x", "t"), 3, picture=True)[1]["content"], str)


@pytest.mark.parametrize("kind", ["TIFF", None])
def test_other_pictures_are_refused(tmp_path, kind):
    file = tmp_path / "cup.png"
    file.write_bytes(b"no picture") if kind is None else Image.new("RGB", (3, 2)).save(file, kind)
    with pytest.raises(HfGrError, match=r"cup\.png is no JPEG"):
        first_question(Subject("item", "x", "t", file), 3, picture=True)


def test_the_schema_asks_for_the_three_keys_alone():
    schema = answer_schema(4)
    interests = schema["properties"]["interests"]
    assert interests["maxItems"] == 4 and not schema["additionalProperties"]
    assert interests["items"]["required"] == ["interest", "evidence", "confidence"]
    assert not interests["items"]["additionalProperties"]
