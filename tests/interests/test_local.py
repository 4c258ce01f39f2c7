import pytest
import torch
from tiny import tiny_lm, tiny_tokenizer

from hf_gr.errors import HfGrError
from hf_gr.interests.answer_cache import AnswerCache
from hf_gr.interests.interviews import Interview, Manner, hear_kept
from hf_gr.interests.miners import local
from hf_gr.interests.miners.local import LocalModel, LocalSettings, interview_all
from hf_gr.interests.subjects import Subject


TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """Folder of a tiny chat model that talks nonsense."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    tiny_lm(vocab_size=len(tokenizer), max_position_embeddings=4096).save_pretrained(folder)
    return str(folder)


def interviews(settings, count=5):
    manner = Manner(settings.kept_as, 2, False, settings.options)
    return [Interview(Subject("item", str(place), f"Cup {place}"), manner) for place in range(count)]


def test_it_answers_in_batches_what_it_answers_one_by_one(chat_model):
    model = LocalModel(LocalSettings(chat_model, max_answer_tokens=6))
    questions = [[{"role": "user", "content": "a cup" * n}] for n in (1, 5, 2)]
    together, alone = model.answer(questions), [model.answer([question])[0] for question in questions]
    assert together == alone
    assert all(1 <= found.tokens_out <= 6 for found in together)
    assert together[1].tokens_in > together[0].tokens_in


def test_every_subject_is_asked_and_kept(chat_model, tmp_path, monkeypatch):
    settings = LocalSettings(chat_model, batch_size=2, max_answer_tokens=4)
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        talks = interviews(settings)
        assert interview_all("m", settings, talks, cache) == 10  # nonsense, so that each is asked once more
        assert all(talk.finished and "neither of use" in talk.failure for talk in talks)
        again = interviews(settings)
        assert hear_kept(again, cache) == 10
        monkeypatch.setattr(local, "LocalModel", None)  # not even loaded
        assert interview_all("m", settings, again, cache) == 0
        assert [talk.answers for talk in again] == [talk.answers for talk in talks]


def test_batches_are_the_same_after_a_kill(chat_model, tmp_path, monkeypatch):
    settings = LocalSettings(chat_model, batch_size=2, max_answer_tokens=3)
    sizes, answer = [], LocalModel.answer

    def killed(self, questions):
        if len(sizes) == 3:
            raise KeyboardInterrupt
        sizes.append(len(questions))
        return answer(self, questions)

    with AnswerCache(tmp_path / "a.sqlite") as cache:
        monkeypatch.setattr(LocalModel, "answer", killed)
        with pytest.raises(KeyboardInterrupt):
            interview_all("m", settings, interviews(settings), cache)
        assert len(cache) == 6  # both questions of the first batch, one of the second
        monkeypatch.undo()
        talks = interviews(settings)
        hear_kept(talks, cache)
        assert interview_all("m", settings, talks, cache) == 4 and all(talk.finished for talk in talks)


def test_a_folder_goes_by_its_content(chat_model):
    assert LocalSettings(chat_model).kept_as.startswith(f"{chat_model}#")
    assert LocalSettings("HuggingFaceTB/some-model").kept_as == "HuggingFaceTB/some-model"


def test_models_that_do_not_serve(tmp_path):
    with pytest.raises(HfGrError, match="cannot load the model") as error:
        LocalModel(LocalSettings(str(tmp_path / "nowhere")))
    assert "\n" not in str(error.value)
    tiny_tokenizer().save_pretrained(tmp_path)
    tiny_lm().save_pretrained(tmp_path)
    with pytest.raises(HfGrError, match="has no chat template"):
        LocalModel(LocalSettings(str(tmp_path)))
    with pytest.raises(HfGrError, match="batch_size is 0"):
        LocalSettings("m", batch_size=0)
