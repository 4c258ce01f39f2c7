import itertools

import numpy as np
import pytest
import torch

from hf_gr.quantizers import R3VAE, R3VAEConfig
from hf_gr.quantizers.r3_vae import preference_discrimination, semantic_cohesion


SIZES = [6, 5]
SMALL = {"dim": 8, "codebook_sizes": SIZES, "hidden_sizes": [16], "latent_dim": 4, "batch_size": 32, "epochs": 6}

QUICK = {"codebook_sizes": [16, 16], "latent_dim": 8, "batch_size": 150, "epochs": 40, "learning_rate": 1e-2}


def blobs(seed: int = 0, count: int = 120) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = 3 * random.normal(size=(12, 8))
    return (centres[random.integers(12, size=count)] + random.normal(size=(count, 8))).astype(np.float32)


def fitted(seed: int = 0, **settings) -> R3VAE:
    return R3VAE(R3VAEConfig(**SMALL | settings)).fit(blobs(), seed=seed, progress=False)


RATINGS = [
    {},
    {"estimator": "soft", "temperature": 0.2},
    {"rating": "top1"},
]


def reference_walk(model: R3VAE, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [N, L], α [N], answers [N, L, w], item by item in NumPy float64."""
    z = model.latents(torch.from_numpy(vectors)).detach().double().numpy()
    r = model.reference.detach().double().numpy()
    codes, sides, answers = [], [], []
    for item in z:
        alpha = item @ r / (r @ r)
        e = item - alpha * r
        sides.append(alpha)
        for codebook in model.codebooks:
            c = codebook.detach().double().numpy()
            cosines = c @ e / np.linalg.norm(c, axis=1) / np.linalg.norm(e)
            best = int(cosines.argmax())
            weights = np.exp(cosines / model.config.temperature)
            if model.config.rating == "top1":
                answer = cosines[best] * c[best]
            elif model.config.estimator == "soft":
                answer = weights / weights.sum() @ c
            else:
                answer = c[best]
            codes.append(best)
            answers.append(answer)
            e = e - answer
    shape = (len(z), len(SIZES))
    return np.reshape(codes, shape), np.array(sides), np.reshape(answers, (*shape, -1))


@pytest.mark.parametrize("settings", RATINGS, ids=str)
def test_walk_side_and_decoding_against_numpy(settings):
    model, vectors = fitted(**settings), blobs()
    codes, alphas, answers = reference_walk(model, vectors)
    found = model.encode(vectors)
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_allclose(model.side(vectors, found)[:, 0], alphas, rtol=1e-4, atol=1e-6)

    # what decode adds for a code is the mean answer of the fitted items that have it
    for level, size in enumerate(SIZES):
        means = model.code_vectors(level)
        assert means.shape == (size, 4)
        for code in np.unique(codes[:, level]):
            expected = answers[codes[:, level] == code, level].mean(0)
            np.testing.assert_allclose(means[code], expected, rtol=1e-3, atol=1e-5)
    for prefix in (1, 2):
        said = sum(model.code_vectors(level)[codes[:, level]] for level in range(prefix))
        for side, along in ((model.side(vectors, found), alphas), (None, np.full(len(vectors), alphas.mean()))):
            latent = torch.from_numpy(said + along[:, None] * model.reference.detach().numpy()).float()
            expected = (model.mean + model.scale * model.decoder(latent)).detach().numpy()
            np.testing.assert_allclose(model.decode(codes[:, :prefix], side), expected, rtol=1e-3, atol=1e-4)


def test_by_default_a_code_says_its_vector():
    model = fitted()
    for level, codebook in enumerate(model.codebooks):
        np.testing.assert_allclose(model.code_vectors(level), codebook.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", RATINGS, ids=str)
def test_least_distance_is_the_code_chosen(settings):
    model, vectors = fitted(**settings), blobs()
    codes = model.encode(vectors)
    for level, size in enumerate(SIZES):
        distances = model.distances(vectors, codes, level)
        assert distances.shape == (len(vectors), size)
        assert distances.min() >= -1e-5 and distances.max() <= 2 + 1e-5
        np.testing.assert_array_equal(distances.argmin(1), codes[:, level])
    allowed = [np.ones(size, bool) for size in SIZES]
    np.testing.assert_array_equal(model.encode(vectors, allowed=allowed), codes)


@pytest.mark.parametrize("rating", ["softmax", "top1"])
def test_distances_follow_the_codes_given(rating):
    model, vectors = fitted(rating=rating), blobs()
    other = (model.encode(vectors) + 1) % np.array(SIZES)
    with torch.no_grad():
        residual = model._split(model.latents(torch.from_numpy(vectors)))[1].numpy()
    chosen = model.codebooks[0].detach().numpy()[other[:, 0]]
    if rating == "top1":
        lengths = np.linalg.norm(chosen, axis=1) * np.linalg.norm(residual, axis=1)
        chosen = chosen * ((chosen * residual).sum(1) / lengths)[:, None]
    rest, codebook = residual - chosen, model.codebooks[1].detach().numpy()
    cosines = rest @ codebook.T / np.linalg.norm(rest, axis=1)[:, None] / np.linalg.norm(codebook, axis=1)
    np.testing.assert_allclose(model.distances(vectors, other, 1), 1 - cosines, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", RATINGS, ids=str)
@pytest.mark.parametrize("hidden", [0.0, 1.0])
def test_losses_against_numpy(settings, hidden):
    model, vectors = fitted(sc_weight=0.3, pd_weight=0.2, side_dropout=hidden, **settings), blobs(1, 40)
    codes, alphas, answers = reference_walk(model, vectors)
    r = model.reference.detach().double().numpy()
    z = model.latents(torch.from_numpy(vectors)).detach().double().numpy()
    seen = np.full_like(alphas, alphas.mean()) if hidden else alphas
    latent = torch.from_numpy(answers.sum(1) + seen[:, None] * r).float()
    decoded = (model.mean + model.scale * model.decoder(latent)).detach().numpy()
    error = np.square(vectors - decoded).mean() / float(model.scale) ** 2
    cohesion = discrimination = 0.0
    residual = z - alphas[:, None] * r
    for level, codebook in enumerate(model.codebooks):
        groups = [residual[codes[:, level] == code] for code in range(len(codebook))]
        cohesion += np.mean([cosine for group in groups for cosine in pairwise(group)])
        discrimination += np.mean(pairwise(codebook.detach().double().numpy()))
        residual = residual - answers[:, level]
    parts = {name: part.item() for name, part in model._losses(torch.from_numpy(vectors)).items()}
    expected = {"reconstruction": error, "cohesion": -0.3 * cohesion, "discrimination": 0.2 * discrimination}
    assert parts == pytest.approx(expected, rel=1e-3, abs=1e-5)


def pairwise(rows: np.ndarray) -> list[float]:
    pairs = itertools.combinations(rows, 2)
    return [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairs]


def numeric_gradient(value, at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    gradient = np.zeros_like(at)
    for place in np.ndindex(*at.shape):
        up, down = at.copy(), at.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = (value(up) - value(down)) / (2 * step)
    return gradient


def test_regularisers_and_their_gradients_against_all_pairs():
    random = np.random.default_rng(0)
    rows, codes = random.normal(size=(9, 3)), np.array([0, 0, 0, 2, 2, 3, 5, 5, 5])

    def cohesion(points: np.ndarray) -> float:
        return float(np.mean([cosine for code in range(6) for cosine in pairwise(points[codes == code])]))

    def discrimination(points: np.ndarray) -> float:
        return float(np.mean(pairwise(points)))

    vectors = torch.from_numpy(rows).requires_grad_()
    for found, expected in (
        (semantic_cohesion(vectors, torch.from_numpy(codes), 6), cohesion),
        (preference_discrimination(vectors), discrimination),
    ):
        assert found.item() == pytest.approx(expected(rows), abs=1e-12)
        (gradient,) = torch.autograd.grad(found, vectors)
        np.testing.assert_allclose(gradient, numeric_gradient(expected, rows), atol=1e-8)


def test_cohesion_without_pairs_is_zero():
    vectors = torch.randn(4, 3, requires_grad=True)
    found = semantic_cohesion(vectors, torch.arange(4), 4)
    found.backward()
    assert found.item() == pytest.approx(0, abs=1e-5)
    assert vectors.grad.isfinite().all()


@pytest.mark.parametrize("settings", RATINGS, ids=str)
def test_the_gradient_of_the_ratings(settings):
    """ê's gradient, in the residual and in the codes, against differences; straight-through has the mixture's in e."""
    model = fitted(**settings)
    random = np.random.default_rng(0)
    wanted = torch.from_numpy(random.normal(size=(3, 4))).float()
    residual = torch.from_numpy(random.normal(size=(3, 4))).float().requires_grad_()
    model.zero_grad()
    (model._answer(residual, 0)[1] * wanted).sum().backward()
    codes = model.codebooks[0].detach().double().numpy()

    def answers(e: np.ndarray, c: np.ndarray) -> np.ndarray:
        cosines = e @ c.T / np.linalg.norm(e, axis=1)[:, None] / np.linalg.norm(c, axis=1)
        if settings.get("rating") == "top1":
            best = cosines.argmax(1)
            return cosines[np.arange(3), best][:, None] * c[best]
        weights = np.exp(cosines / model.config.temperature)
        return weights / weights.sum(1, keepdims=True) @ c

    at, target = residual.detach().double().numpy(), wanted.double().numpy()
    expected = numeric_gradient(lambda e: (answers(e, codes) * target).sum(), at)
    np.testing.assert_allclose(residual.grad, expected, rtol=1e-3, atol=1e-4)
    if settings:
        expected = numeric_gradient(lambda c: (answers(at, c) * target).sum(), codes)
        np.testing.assert_allclose(model.codebooks[0].grad, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", RATINGS, ids=str)
def test_reload_and_seed(tmp_path, settings):
    model, vectors = fitted(**settings), blobs()
    codes = model.encode(vectors)
    model.save_pretrained(tmp_path)
    loaded = R3VAE.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded.encode(vectors), codes)
    np.testing.assert_array_equal(loaded.decode(codes), model.decode(codes))
    again = fitted(**settings)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert (fitted(seed=1, **settings).encode(vectors) != codes).any()


class Killed(Exception):
    pass


@pytest.mark.parametrize("epochs_done", [1, 2, 4])
def test_a_killed_fit_goes_on_as_if_it_was_not(tmp_path, monkeypatch, epochs_done):
    settings = {"warm_up": 0.3, "sc_weight": 0.01, "pd_weight": 0.01}  # codebooks start after two of six epochs
    whole = fitted(**settings)
    checkpoint = tmp_path / "fit.pt"

    class Mortal(R3VAE):
        def _epoch(self, *args):
            if len(self.fit_log) == epochs_done:
                raise Killed
            return super()._epoch(*args)

    with pytest.raises(Killed):
        Mortal(R3VAEConfig(**SMALL | settings)).fit(blobs(), progress=False, checkpoint=checkpoint)
    resumed, epochs = R3VAE(R3VAEConfig(**SMALL | settings)), []
    run = resumed._epoch
    monkeypatch.setattr(resumed, "_epoch", lambda *args: epochs.append(1) or run(*args))
    resumed.fit(blobs(), progress=False, checkpoint=checkpoint)
    assert len(epochs) == 6 - epochs_done
    assert resumed.fit_log == whole.fit_log
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_codes_that_no_item_chose_are_revived():
    model = fitted()
    residuals = [torch.randn(20, 4) for _ in SIZES]
    before = [codebook.detach().clone() for codebook in model.codebooks]
    for revive, progress, moved in ((False, 0.5, False), (True, 0.9, False), (True, 0.5, True)):
        model.config.revive, model._residuals = revive, residuals
        model._used = [torch.ones(size, dtype=torch.bool) for size in SIZES]
        model._used[1][2] = False
        model._after_epoch(progress)
        assert not model._used[0].any()
        now = [codebook.detach() for codebook in model.codebooks]
        assert torch.equal(now[0], before[0])
        assert torch.equal(now[1][[0, 1, 3, 4]], before[1][[0, 1, 3, 4]])
        assert bool((now[1][2] == residuals[1]).all(1).any()) == moved


def test_without_dropout_the_side_hides_what_the_codes_ought_to_say():
    vectors, errors = blobs(count=600), []
    for dropout in (0.0, 0.5):
        model = R3VAE(R3VAEConfig(**SMALL | QUICK, side_dropout=dropout)).fit(vectors, progress=False)
        errors.append(np.square(vectors - model.decode(model.encode(vectors))).mean())
    assert errors[1] < errors[0]


@pytest.mark.parametrize("settings", [{}, {"rating": "top1"}, {"sc_weight": 0.01, "pd_weight": 0.01}], ids=str)
def test_no_collapse_and_codes_that_tell(settings):
    vectors = blobs(count=600)
    for seed in range(2):
        model = R3VAE(R3VAEConfig(**SMALL | QUICK | settings))
        codes = model.fit(vectors, seed=seed, progress=False).encode(vectors)
        assert min(len(np.unique(column)) for column in codes.T) >= 14
        variance = np.square(vectors - vectors.mean(0)).mean()
        coarse = np.square(vectors - model.decode(codes[:, :1])).mean() / variance
        fine = np.square(vectors - model.decode(codes)).mean() / variance
        assert fine < min(coarse, 0.25)
