import pyarrow as pa

from hf_gr.dataset import InteractionDataset, write_dataset
from hf_gr.interests.subjects import item_subjects, user_subjects


ITEMS = pa.table(
    {"item_id": ["a", "b", "c", "d"], "title": ["Ale", "Bun", "Cup", "Dip"], "brand": ["X", None, "Y", ""]}
)


def dataset(folder, reviews=True):
    events = [("u", item, time, f"{item} at {time}") for time, item in enumerate("abcda")]
    events += [("v", item, 10 + time, None) for time, item in enumerate("bca")]
    columns = dict(zip(("user_id", "item_id", "timestamp", "review"), zip(*events, strict=True), strict=True))
    if not reviews:
        del columns["review"]
    table = pa.table({name: list(values) for name, values in columns.items()})
    write_dataset(folder, table, ITEMS, source="made up")
    return InteractionDataset.load(folder)


def test_items_have_their_fields_and_training_reviews_alone(tmp_path):
    data = dataset(tmp_path / "data")
    train = data.split().train  # u: a b c, v: b
    found = item_subjects(data, train)
    assert [(subject.kind, subject.id) for subject in found] == [("item", name) for name in "abcd"]
    assert found[0].text == "title: Ale\nbrand: X\nreview: a at 0"  # not "a at 4", which is a test event
    assert found[3].text == "title: Dip"  # its only event is held out
    assert item_subjects(data, train, fields=["brand", "title"], reviews=0)[0].text == "brand: X\ntitle: Ale"


def test_the_latest_reviews_are_kept(tmp_path):
    events = [(f"u{n}", item, 10 * n + place, f"said by {n}") for n in range(4) for place, item in enumerate("abc")]
    columns = dict(zip(("user_id", "item_id", "timestamp", "review"), zip(*events, strict=True), strict=True))
    table = pa.table({name: list(values) for name, values in columns.items()})
    write_dataset(tmp_path / "data", table, ITEMS, source="made up")
    data = InteractionDataset.load(tmp_path / "data")
    assert item_subjects(data, data.split().train, reviews=2)[0].text.endswith("review: said by 3\nreview: said by 2")


def test_users_without_their_last_training_event(tmp_path):
    data = dataset(tmp_path / "data")
    (only,) = user_subjects(data, data.split().train)  # v has one training event, so nothing is left before it
    assert (only.kind, only.id) == ("user", "u")
    assert only.text == "Ale | review: a at 0\nBun | review: b at 1"
    assert user_subjects(data, data.split().train, max_items=1)[0].text == "Bun | review: b at 1"
    plain = dataset(tmp_path / "plain", reviews=False)
    assert user_subjects(plain, plain.split().train)[0].text == "Ale\nBun"
