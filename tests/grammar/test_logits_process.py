import logging
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from listing import listings, requests
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer
from transformers import GenerationConfig, LogitsProcessorList, WatermarkingConfig

from hf_gr.errors import HfGrError
from hf_gr.grammar import SidGrammar, SidLogitsProcessor, generation_config, logits_process
from hf_gr.vocabulary import add_vocabulary


EOS = 1
SIZES = (3, 4, 2)
LIVE = {row for row in range(40) if row % 3}
CATALOG = tiny_catalog(sizes=SIZES).removed([f"i{row:03d}" for row in range(0, 40, 3)])  # collisions, few SIDs free
TOKENIZER, MODEL = tiny_tokenizer(), tiny_lm()
FLAT = add_vocabulary(TOKENIZER, MODEL, CATALOG, max_history=10)
VOCABULARIES = {"flat": FLAT, "stepwise": replace(FLAT, form="stepwise")}
GRAMMARS = {form: vocabulary.grammar(CATALOG) for form, vocabulary in VOCABULARIES.items()}
FORMS = list(GRAMMARS)
SIDS = sorted({tuple(CATALOG.codes[item].tolist()) for item in LIVE})
PROMPTS = [[FLAT.start_id, *FLAT.item_tokens(CATALOG)[list(rows)].ravel().tolist()] for rows in ((5, 1), (), (7,))]


def left_padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[TOKENIZER.pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def generate(grammar: SidGrammar, prompts: list[list[int]], *, model=MODEL, options=None, **config):
    """Answers [rows, tokens] and, with beams, their scores."""
    inputs = left_padded(prompts)
    width = inputs["input_ids"].shape[1]
    processor = SidLogitsProcessor(grammar, prompt_length=width, **(options or {}))
    torch.manual_seed(0)
    output = model.generate(
        **inputs,
        generation_config=generation_config(grammar, return_dict_in_generate=True, output_scores=True, **config),
        logits_processor=LogitsProcessorList([processor]),
    )
    return output.sequences[:, width:], output.get("sequences_scores")


def answer_of(form: str, sid: tuple[int, ...]) -> list[int]:
    thoughts = FLAT.think_ids if form == "stepwise" else None
    found = []
    for level, code in enumerate(sid):
        found += ([thoughts[level]] if thoughts else []) + [FLAT.code_ids[level][code]]
    return found


@torch.no_grad()
def every_sid(form: str, prompt: list[int]) -> dict[tuple[int, ...], float]:
    """{SID: log-probability under the whole vocabulary; thinking tokens count 0}, one plain forward pass each."""
    found = {}
    for sid in SIDS:
        answer = answer_of(form, sid)
        logits = MODEL(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        columns = list(GRAMMARS[form].code_columns)
        found[sid] = float(sum(logits[column, answer[column]] for column in columns))
    return found


@settings(max_examples=80, deadline=None)
@given(listings(), st.data())
def test_what_may_follow_equals_the_listing(listing, data):
    """Every partial answer as a beam of every request; prompts are any ids, SIDs among them."""
    grammar, asked = listing.grammar(), data.draw(requests(listing))
    length = data.draw(st.integers(0, grammar.answer_length - 1))
    step = length // grammar.stride
    prefixes = listing.prefixes(step)
    answer = listing.written(prefixes * len(asked))
    think = listing.thinking and length % 2 == 0
    if listing.thinking and not think:
        answer = torch.cat([answer, torch.full((len(answer), 1), listing.think_ids[step])], 1)
    vocabulary = listing.vocabulary_size
    torch.manual_seed(0)
    prompt = torch.randint(0, vocabulary, (len(answer), data.draw(st.integers(0, 4))))
    scores = torch.randn(len(answer), vocabulary)
    renormalize = data.draw(st.booleans())
    processor = SidLogitsProcessor(
        grammar,
        prompt_length=prompt.shape[1],
        item_filter=asked.filter(grammar),
        raise_on_dead=False,
        renormalize=renormalize,
    )
    kept = scores.clone()
    found = processor(torch.cat([prompt, answer], 1), scores)
    assert torch.equal(scores, kept), "scores are not written to"
    for row in range(len(answer)):
        request, beam = divmod(row, len(prefixes))
        allowed = torch.isfinite(found[row]).nonzero()[:, 0]
        if think:
            assert allowed.tolist() == [listing.think_ids[step]] and found[row, allowed] == 0
            continue
        codes = listing.following(prefixes[beam], asked.live(listing)[request])
        assert set(allowed.tolist()) == {listing.token_ids[step][code] for code in codes}
        wanted = scores[row]
        if renormalize:  # among what the catalog has, whatever the filter
            every = listing.following(prefixes[beam], listing.live)
            wanted = wanted - wanted[[listing.token_ids[step][code] for code in every]].logsumexp(0)
        wanted = wanted[allowed]
        assert torch.allclose(found[row, allowed], wanted, atol=1e-6, rtol=0)
    assert not found.isnan().any()


@settings(max_examples=30, deadline=None)
@given(listings(), st.data())
def test_beams_may_be_reordered(listing, data):
    """Whatever was asked before, rows are answered by what stands in them."""
    grammar, length = listing.grammar(), data.draw(st.integers(0, listing.levels - 1))
    answer = listing.written([listing.codes[item][:length] for item in sorted(listing.live)])
    order = torch.tensor(data.draw(st.permutations(range(len(answer)))))
    scores = torch.randn(len(answer), listing.vocabulary_size)
    processor = SidLogitsProcessor(grammar, prompt_length=0)
    once, other = processor(answer, scores), processor(answer[order], scores[order])
    assert torch.equal(once[order], other) and torch.equal(processor(answer, scores), once)


@pytest.mark.parametrize("form", FORMS)
def test_after_an_answer_comes_the_end(form):
    grammar, scores = GRAMMARS[form], torch.randn(2, len(TOKENIZER))
    answers = torch.tensor([answer_of(form, SIDS[0]), answer_of(form, SIDS[1])])
    for ids in (answers, torch.cat([answers, torch.full((2, 2), EOS)], 1)):
        found = SidLogitsProcessor(grammar, prompt_length=0, eos_token_id=EOS)(ids, scores)
        assert (found[:, EOS] == 0).all() and torch.isfinite(found).sum() == 2
    with pytest.raises(HfGrError, match=f"complete after {grammar.answer_length} tokens: set max_new_tokens to that"):
        SidLogitsProcessor(grammar, prompt_length=0)(answers, scores)


@pytest.mark.parametrize("form", FORMS)
def test_a_prompt_may_end_in_sids(form):
    """Ids cannot tell prompt from answer; the prompt's length does."""
    grammar, answer = GRAMMARS[form], answer_of(form, SIDS[0])
    ids, scores = torch.tensor([[FLAT.start_id, *answer]]), torch.zeros(1, len(TOKENIZER))
    first = SidLogitsProcessor(grammar, prompt_length=ids.shape[1])(ids, scores)
    begin = {answer_of(form, sid)[0] for sid in SIDS}
    assert set(torch.isfinite(first[0]).nonzero()[:, 0].tolist()) == begin
    last = SidLogitsProcessor(grammar, prompt_length=1, eos_token_id=EOS)(ids, scores)
    assert torch.isfinite(last[0]).nonzero()[:, 0].tolist() == [EOS]
    with pytest.raises(HfGrError, match=rf"input_ids has {ids.shape[1]} columns, but the prompts were said"):
        SidLogitsProcessor(grammar, prompt_length=50)(ids, scores)


def test_dead_ends_raise_unless_asked_not_to():
    grammar, scores = GRAMMARS["flat"], torch.zeros(2, len(TOKENIZER))
    nothing = grammar.filter([None, np.arange(40)])
    ids = torch.full((2, 1), FLAT.start_id)
    with pytest.raises(HfGrError, match=r"row 1: no live item continues the answer \[\]; the filter leaves nothing"):
        SidLogitsProcessor(grammar, 1, item_filter=nothing)(ids, scores)
    for renormalize in (False, True):
        processor = SidLogitsProcessor(grammar, 1, item_filter=nothing, raise_on_dead=False, renormalize=renormalize)
        found = processor(ids, scores)
        assert torch.isfinite(found[0]).any() and torch.isneginf(found[1]).all()
    for foreign in (5, EOS, FLAT.code_ids[1][0], FLAT.think_ids[0], FLAT.start_id):
        with pytest.raises(HfGrError, match=rf"row 0: no live item continues the answer \[{foreign}\]"):
            SidLogitsProcessor(grammar, 1)(torch.tensor([[7, foreign]]), torch.zeros(1, len(TOKENIZER)))
    wrong = torch.tensor([[FLAT.think_ids[1], FLAT.code_ids[0][0], FLAT.think_ids[1]]])
    with pytest.raises(HfGrError, match="row 0: no live item continues"):
        SidLogitsProcessor(GRAMMARS["stepwise"], 0)(wrong, torch.zeros(1, len(TOKENIZER)))


def test_grammar_and_filter_follow_the_ids_to_their_device_once(monkeypatch):
    monkeypatch.setattr(logits_process, "check_scores", lambda scores: None)  # there are none on this device
    grammar = GRAMMARS["flat"]
    processor = SidLogitsProcessor(
        grammar, prompt_length=1, item_filter=grammar.filter([np.array([1])]), raise_on_dead=False
    )
    ids, scores = torch.zeros(1, 1, dtype=torch.int64, device="meta"), torch.zeros(1, len(TOKENIZER), device="meta")
    assert processor(ids, scores).device.type == "meta"
    moved = processor.grammar
    assert moved.device.type == processor.item_filter.live.device.type == "meta"
    processor(ids, scores)
    assert processor.grammar is moved and grammar.device.type == "cpu"


@pytest.mark.parametrize("form", FORMS)
def test_greedy_is_the_best_token_of_each_step(form):
    found, _ = generate(GRAMMARS[form], PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        answer: list[int] = []
        for column in range(GRAMMARS[form].answer_length):
            begun = {tuple(answer_of(form, sid)[: column + 1]) for sid in SIDS}
            allowed = [tokens[-1] for tokens in begun if list(tokens[:-1]) == answer]
            with torch.no_grad():
                logits = MODEL(torch.tensor([prompt + answer])).logits[0, -1]
            answer.append(max(allowed, key=lambda token: float(logits[token])))
        assert found[row].tolist() == answer, "padding on the left changes nothing"


@pytest.mark.parametrize("form", FORMS)
def test_wide_beams_rank_every_sid(form):
    """Sequence scores are sums of log-probabilities, and forced tokens add nothing to them."""
    grammar, count = GRAMMARS[form], len(SIDS)
    answers, scores = generate(grammar, PROMPTS, num_beams=count, num_return_sequences=count)
    found = [tuple(sid) for sid in grammar.codes(answers).tolist()]
    for row, prompt in enumerate(PROMPTS):
        expected = every_sid(form, prompt)
        mine = slice(row * count, (row + 1) * count)
        assert found[mine] == sorted(SIDS, key=lambda sid: -expected[sid])
        assert torch.allclose(scores[mine], torch.tensor(sorted(expected.values(), reverse=True)), atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_hot_samples_are_live_items_of_their_request(form):
    grammar = GRAMMARS[form]
    deny = [None, np.array(sorted(LIVE)[:20]), None]
    allow = [None, None, np.array([4, 10, 11])]
    only = [CATALOG.live & (np.arange(40) % 2 == 0), None, None]
    item_filter = grammar.filter(deny, allow, [None if x is None else grammar.mask(x) for x in only])
    live = [{i for i in LIVE if i % 2 == 0}, LIVE - set(sorted(LIVE)[:20]), {4, 10, 11}]
    answers, _ = generate(
        grammar,
        PROMPTS,
        options={"item_filter": item_filter},
        do_sample=True,
        temperature=50.0,
        num_return_sequences=150,
    )
    found = [tuple(sid) for sid in grammar.codes(answers).tolist()]
    for row, items in enumerate(live):
        expected = {tuple(CATALOG.codes[item].tolist()) for item in items}
        assert set(found[row * 150 : (row + 1) * 150]) == expected, "150 nearly uniform draws see every SID"


@pytest.mark.parametrize("form", FORMS)
def test_each_request_has_its_filter_whatever_the_number_of_beams(form):
    grammar = GRAMMARS[form]
    item_filter = grammar.filter(allow=[np.array([1, 4]), np.array([2]), np.array([5, 7, 8])])
    for beams in (1, 2, 4):
        answers, scores = generate(
            grammar,
            PROMPTS,
            options={"item_filter": item_filter, "raise_on_dead": False, "eos_token_id": EOS},
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=grammar.answer_length + 1,
            eos_token_id=EOS,
        )
        for row, items in enumerate(((1, 4), (2,), (5, 7, 8))):
            expected = {tuple(CATALOG.codes[item].tolist()) for item in items}
            mine = slice(row * beams, (row + 1) * beams)
            real = [True] if scores is None else (scores[mine] > -1e8).tolist()
            found = [tuple(s) for s, ok in zip(grammar.codes(answers[mine]).tolist(), real, strict=True) if ok]
            assert set(found) <= expected and len(found) == len(set(found)) == min(beams, len(expected))
            assert (answers[mine][torch.tensor(real), grammar.answer_length] == EOS).all()


TOKEN = FLAT.code_ids[0][CATALOG.codes[1, 0]]
HOSTILE = {
    "instruct": {
        "do_sample": True,
        "temperature": 0.1,
        "top_k": 1,
        "top_p": 0.1,
        "min_p": 0.9,
        "repetition_penalty": 5.0,
        "no_repeat_ngram_size": 2,
        "max_length": 3,
        "length_penalty": 3.0,
        "early_stopping": True,
    },
    "temperature": {"temperature": 0.01},
    "top_k": {"top_k": 1},
    "top_p": {"top_p": 0.01},
    "min_p": {"min_p": 0.99},
    "top_h": {"top_h": 0.01},
    "typical_p": {"typical_p": 0.01},
    "epsilon_cutoff": {"epsilon_cutoff": 0.9},
    "eta_cutoff": {"eta_cutoff": 0.9},
    "repetition_penalty": {"repetition_penalty": 9.0},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 9.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "sequence_bias": {"sequence_bias": [[[TOKEN], -99.0]]},
    "bad_words_ids": {"bad_words_ids": [[TOKEN]]},
    "suppress_tokens": {"suppress_tokens": [TOKEN]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [TOKEN]},
    "forced_bos_token_id": {"forced_bos_token_id": 5},
    "forced_eos_token_id": {"forced_eos_token_id": EOS},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (0, 2.0)},
    "guidance_scale": {"guidance_scale": 3.0},
    "remove_invalid_values": {"remove_invalid_values": True},
    "renormalize_logits": {"renormalize_logits": True},
    "watermarking_config": {"watermarking_config": WatermarkingConfig(bias=9.0)},
    "lengths": {"max_length": 2, "min_length": 90, "min_new_tokens": 90, "max_new_tokens": 1, "max_time": 1e-9},
    "stop_strings": {"stop_strings": ["a"]},
    "beams": {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 9.0, "early_stopping": True},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 9.0},
    "penalty_alpha": {"penalty_alpha": 0.6, "top_k": 4},
    "dola_layers": {"dola_layers": "low"},
    "prompt_lookup": {"prompt_lookup_num_tokens": 3},
    "cache": {"use_cache": False},
    "special": {"eos_token_id": [EOS, 2], "bos_token_id": 5},
}
MODES = {
    "greedy": {},
    "sample": {"do_sample": True, "temperature": 3.0, "num_return_sequences": 4},
    "beam": {"num_beams": 4, "num_return_sequences": 4},
}


@pytest.fixture(scope="module")
def undisturbed() -> dict:
    return {mode: generate(GRAMMARS["flat"], PROMPTS, **config) for mode, config in MODES.items()}


class Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())


@pytest.mark.parametrize("inherited", HOSTILE)
def test_nothing_is_inherited_from_the_model(inherited, undisturbed, monkeypatch):
    """Whatever the model brings: the same answers and scores, and not a word about it."""
    monkeypatch.setattr(MODEL, "generation_config", GenerationConfig(pad_token_id=0, **HOSTILE[inherited]))
    listener, logger = Listener(), logging.getLogger("transformers")
    logger.addHandler(listener)
    logging.Logger.warning_once.cache_clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for mode, config in MODES.items():
                answers, scores = generate(GRAMMARS["flat"], PROMPTS, **config)
                assert torch.equal(answers, undisturbed[mode][0]), mode
                assert scores is None or torch.equal(scores, undisturbed[mode][1]), mode
    finally:
        logger.removeHandler(listener)
    assert listener.heard == []


@pytest.mark.parametrize(
    "inherited", [None, "instruct", "bad_words_ids", "sequence_bias", "top_h", "repetition_penalty"]
)
def test_ordinary_settings_do_inherit(inherited, undisturbed, monkeypatch):
    """What the test above would see if these settings did reach the scores."""
    settings = {} if inherited is None else HOSTILE[inherited]
    monkeypatch.setattr(MODEL, "generation_config", GenerationConfig(pad_token_id=0, **settings))
    inputs = left_padded(PROMPTS)
    width = inputs["input_ids"].shape[1]
    processor = SidLogitsProcessor(GRAMMARS["flat"], prompt_length=width)
    torch.manual_seed(0)
    found = MODEL.generate(
        **inputs, logits_processor=LogitsProcessorList([processor]), max_new_tokens=3, **MODES["sample"]
    )
    assert torch.equal(found[:, width:], undisturbed["sample"][0]) == (inherited is None)


def test_every_setting_that_changes_scores_is_tried():
    """A new release may bring new ones; those named here change no score or belong to other kinds of model."""
    harmless = """
        cache_config cache_implementation max_cache_len use_mtp compile_config disable_compile prefill_chunk_size
        continuous_batching_config low_memory token_healing pad_token_id decoder_start_token_id is_assistant
        num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold max_matching_ngram_size
        assistant_early_exit assistant_lookbehind target_lookbehind assistant_ensemble_weight speculation_type
        output_attentions output_hidden_states output_scores output_logits return_dict_in_generate
        constraints force_words_ids transformers_version prompt_lookup_num_tokens
    """.split()  # noqa: SIM905
    tried = {name for settings in HOSTILE.values() for name in settings}
    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert known - tried - set(harmless) == set()


def test_settings_of_the_call_win():
    config = generation_config(
        GRAMMARS["stepwise"], do_sample=True, temperature=2.0, max_new_tokens=9, eos_token_id=EOS
    )
    assert (config.do_sample, config.temperature, config.max_new_tokens, config.eos_token_id) == (True, 2.0, 9, EOS)
    assert generation_config(GRAMMARS["stepwise"]).max_new_tokens == 6
    assert generation_config(GRAMMARS["flat"], num_beams=3).length_penalty == 0.0
    assert generation_config(GRAMMARS["flat"], num_beams=3, length_penalty=1.0).length_penalty == 1.0
