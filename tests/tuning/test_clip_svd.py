from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.base import clone

from skclip import CLIPFeatures, CLIPTextFeatures
from skclip._backbones import VisionTower, load_backbone
from skclip._backbones._matrices import block_matrices
from skclip._backbones._opened import OpenedTowerError
from skclip.adapters import LinearProbeClassifier
from skclip.datasets import make_picture_world
from skclip.tuning import _weight_specs
from skclip.tuning._tuned import Examples
from skclip.tuning._weight_specs import Factors, SingularValues, merge
from skclip.tuning.weights import CLIPSVDClassifier

torch = pytest.importorskip("torch")

MODEL = "skclip-tiny"
COMMON = {"batch_size": 16, "max_iter": 2, "learning_rate": 1e-2, "random_state": 0}
N_VISION, N_TEXT = 4 * 6 * 96, 4 * 6 * 64
WORDS = ["red", "blue", "green", "a circle", "a star", "a square", "a sketch", "a painting", "large", "dark"]


@pytest.fixture(scope="module")
def world():
    made = make_picture_world(48, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"], random_state=3)
    return made.images, np.array(made.target)


@pytest.fixture(scope="module")
def fitted(world):
    return CLIPSVDClassifier(MODEL, **COMMON).fit(*world)


@pytest.fixture(scope="module")
def module():
    return load_backbone(MODEL, precision="float32").module


@pytest.mark.parametrize("encoder", ["both", "vision", "text"])
def test_without_training_it_is_the_model(encoder, world):
    X, y = world
    clf = CLIPSVDClassifier(MODEL, encoder=encoder, max_iter=0, random_state=0).fit(X, y)
    plain = CLIPTextFeatures(MODEL).transform([f"a photo of a {name}." for name in clf.classes_])
    assert_allclose(clf.text_features_, plain, atol=1e-6)
    assert_allclose(clf.encode_image(X), CLIPFeatures(MODEL).transform(X), atol=1e-6)
    assert all(np.array_equal(before, after) for before, after in clf.singular_values_.values())


@pytest.mark.parametrize(("encoder", "n_wanted"), [("both", N_VISION + N_TEXT), ("vision", N_VISION), ("text", N_TEXT)])
def test_one_number_per_direction_and_each_is_trained(encoder, n_wanted, world, fitted):
    clf = fitted if encoder == "both" else CLIPSVDClassifier(MODEL, encoder=encoder, **COMMON).fit(*world)
    assert sum(value.size for value in clf.state_delta_.values()) == n_wanted
    assert clf.loss_curve_[-1] < clf.loss_curve_[0]
    assert set(clf.singular_values_) == set(clf.state_delta_)
    for name, (before, after) in clf.singular_values_.items():
        assert (np.diff(before) <= 0).all(), name
        assert np.abs(after - before).max() > 1e-3, name
        assert_allclose(after, clf.state_delta_[name])


def test_the_merged_weights_are_the_tuned_model_and_have_the_trained_singular_values(world, fitted, module):
    tuned = copy.deepcopy(module)
    merged = {name: torch.from_numpy(value) for name, value in fitted.merge().items()}
    tuned.load_state_dict(merged, strict=False)
    ids = load_backbone(MODEL, precision="float32").text_ids([f"a photo of a {name}." for name in fitted.classes_])
    setting = fitted._restored()
    pictures = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3, 48, 48)).astype(np.float32))
    with torch.no_grad():
        assert_allclose(fitted.text_features_, tuned.encode_text(ids, normalize=True), atol=1e-5)
        encode = fitted._image_encoder(fitted._tensors(setting), setting)
        assert_allclose(encode(pictures), tuned.encode_image(pictures), atol=1e-5)
    for matrix in block_matrices(tuned, "vision")[:6]:
        found = torch.linalg.svdvals(matrix.of(tuned).double()).detach().numpy()
        _, after = fitted.singular_values_[matrix.key]
        assert_allclose(found, np.sort(np.abs(after))[::-1], atol=1e-4)


def test_a_pickle_holds_the_singular_values_alone_and_predicts_the_same(world, fitted, module):
    content = pickle.dumps(fitted)
    rows = fitted.text_features_.nbytes
    assert len(content) < 2 * 4 * (N_VISION + N_TEXT) + rows + 10_000
    _weight_specs._decomposed.pop(module)  # as in another process
    again = pickle.loads(content)
    assert np.array_equal(again.logits(world[0][:4]), fitted.logits(world[0][:4]))
    assert all(np.array_equal(value, again.merge()[name]) for name, value in fitted.merge().items())


def test_other_weights_are_refused(world, fitted):
    changed = copy.copy(fitted)
    changed.weights_digest_ = "0" * 64
    for method in (changed.merge, changed.head_changes, lambda: changed.logits(world[0])):
        with pytest.raises(ValueError, match="have changed since fit"):
            method()


def test_a_warm_start_does_not_go_on_with_another_model(world):
    """Whose tensors have the same names and shapes."""
    clf = CLIPSVDClassifier(MODEL, encoder="text", warm_start=True, **COMMON).fit(*world)
    values, digest = clf.state_delta_, clf.weights_digest_
    other = load_backbone("skclip-tiny-rn", precision="float32").digest
    clf.set_params(model="skclip-tiny-rn")
    with pytest.raises(ValueError, match=rf"digest {digest[:12]}.*skclip-tiny-rn.*{other[:12]}"):
        clf.fit(*world)
    assert clf.state_delta_ is values
    again = CLIPSVDClassifier("skclip-tiny-rn", encoder="text", **COMMON | {"max_iter": 0}).fit(*world)
    assert {name: value.shape for name, value in again.state_delta_.items()} == {
        name: value.shape for name, value in values.items()
    }


def test_a_low_rank_is_another_model_before_training(world):
    clf = CLIPSVDClassifier(MODEL, rank_ratio=0.5, encoder="text", max_iter=0, random_state=0).fit(*world)
    plain = CLIPTextFeatures(MODEL).transform([f"a photo of a {name}." for name in clf.classes_])
    assert {len(value) for value in clf.state_delta_.values()} == {32}
    assert np.abs(clf.text_features_ - plain).max() > 1e-2


def test_values_that_must_stay_positive(world):
    clf = CLIPSVDClassifier(MODEL, encoder="text", positive=True, **COMMON | {"learning_rate": 0.3}).fit(*world)
    assert min(value.min() for value in clf.state_delta_.values()) < 0
    assert min(after.min() for _, after in clf.singular_values_.values()) >= 0


def test_chosen_blocks_and_matrices(world):
    clf = CLIPSVDClassifier(MODEL, targets=["v", "fc1"], layers=["top"], encoder="vision", **COMMON).fit(*world)
    path = "visual.transformer.resblocks.3"
    assert set(clf.state_delta_) == {f"{path}.attn.v", f"{path}.mlp.fc1"}
    for kind in ("per_head", "code"):
        changes = clf.head_changes(kind)
        assert len(changes) == 16
        assert all((head.change > 0) == (head.layer == 3) and head.output == 0 for head in changes)


@pytest.mark.parametrize("targets", [(), ["q", "proj"]])
def test_targets_are_matrices_of_the_blocks(targets, world):
    with pytest.raises(ValueError, match=r"targets=.* must hold some of 'q', 'k', 'v', 'o', 'fc1', 'fc2'"):
        CLIPSVDClassifier(MODEL, targets=targets, **COMMON).fit(*world)


def test_steps_and_schedules(world):
    recipe = CLIPSVDClassifier()._recipe(160, 10)
    assert (recipe.n_steps, recipe.schedule, recipe.learning_rate, recipe.weight_decay) == (3200, "cosine", 5e-4, 0.01)
    assert CLIPSVDClassifier()._recipe(3, 10).n_steps == 200
    params = {"encoder": "text", **COMMON, "max_iter": 3}
    plain, code = (CLIPSVDClassifier(MODEL, schedule=name, **params).fit(*world) for name in ("cosine", "svd_code"))
    assert code.loss_curve_[0] == pytest.approx(plain.loss_curve_[0], rel=0.2)
    assert code.loss_curve_ != plain.loss_curve_


def test_text_towers_of_transformers_are_tuned(bert_model, world):
    common = COMMON | {"augmentation": None, "max_iter": 3, "learning_rate": 0.02}
    clf = CLIPSVDClassifier(bert_model, **common).fit(*world)
    assert clf.loss_curve_[-1] < clf.loss_curve_[0]
    assert {name.rsplit(".", 1)[1] for name in clf.state_delta_ if "attention.self" in name} == {"q", "k", "v", "o"}


def test_a_tower_of_convolutions_is_refused(world):
    with pytest.raises(OpenedTowerError, match="text tower alone"):
        CLIPSVDClassifier("skclip-tiny-rn", **COMMON).fit(*world)
    clf = CLIPSVDClassifier("skclip-tiny-rn", encoder="text", **COMMON).fit(*world)
    with pytest.raises(OpenedTowerError, match=r"ModifiedResNet.*heads"):
        clf.head_changes()


# --- heads


def test_changes_of_heads_against_the_plain_definition(fitted, module):
    merged = fitted.merge()
    changes = fitted.head_changes()
    assert [head.change for head in changes] == sorted((head.change for head in changes), reverse=True)
    for layer, head, change, relative, value, output in changes:
        path = f"visual.transformer.resblocks.{layer}.attn"
        rows = slice(2 * 96 + 24 * head, 2 * 96 + 24 * (head + 1))
        joint = module.get_parameter(f"{path}.in_proj_weight").detach().numpy()[rows]
        columns = module.get_parameter(f"{path}.out_proj.weight").detach().numpy()[:, 24 * head : 24 * (head + 1)]
        v = np.linalg.norm(merged[f"{path}.in_proj_weight"][rows] - joint)
        o = np.linalg.norm(merged[f"{path}.out_proj.weight"][:, 24 * head : 24 * (head + 1)] - columns)
        assert_allclose([value, output, change], [v, o, v + o], rtol=1e-5)
        assert_allclose(relative, (v + o) / (np.linalg.norm(joint) + np.linalg.norm(columns)), rtol=1e-5)


def test_runs_of_singular_values_make_up_their_whole_change(fitted):
    changes = fitted.head_changes("code")
    for layer in range(4):
        own = [head for head in changes if head.layer == layer]
        for kind, found in (("v", [head.value for head in own]), ("o", [head.output for head in own])):
            before, after = fitted.singular_values_[f"visual.transformer.resblocks.{layer}.attn.{kind}"]
            assert_allclose(np.square(found).sum(), np.square(after - before).sum(), rtol=1e-4)
    last = next(head for head in changes if (head.layer, head.head) == (3, 1))
    before, after = fitted.singular_values_["visual.transformer.resblocks.3.attn.v"]
    step = (after - before)[24:48]
    assert_allclose(last.value, np.sign(step.mean()) * np.linalg.norm(step), rtol=1e-4)
    assert_allclose(last.change, abs(last.value) + abs(last.output))


def test_changes_of_heads_do_not_depend_on_the_signs_of_singular_vectors(fitted, module, monkeypatch):
    expected = fitted.head_changes()
    known = _weight_specs._decomposed[module].factors
    signs = torch.tensor([-1.0, 1.0]).repeat(48)
    turned = {
        key: Factors(f.left * signs[: len(f.values)], f.values, f.right * signs[: len(f.values), None])
        for key, f in known.items()
    }
    monkeypatch.setattr(_weight_specs._decomposed[module], "factors", turned)
    found = fitted.head_changes()
    assert [head[:2] for head in found] == [head[:2] for head in expected]
    assert_allclose([head.change for head in found], [head.change for head in expected], rtol=1e-5)


def test_only_the_image_tower_has_heads_that_are_ranked(world):
    clf = CLIPSVDClassifier(MODEL, encoder="text", **COMMON).fit(*world)
    assert {head.change for kind in ("per_head", "code") for head in clf.head_changes(kind)} == {0.0}
    with pytest.raises(ValueError, match="kind='heads' must be 'per_head' or 'code'"):
        clf.head_changes("heads")


def test_contributions_with_other_weights_sum_to_the_embedding_by_these_weights(module):
    spec = SingularValues(sides=("vision",))
    weights = merge(spec, module, {key: 1.3 * value for key, value in spec.start(module).items()})
    tower, pictures = VisionTower(module), torch.randn((3, 3, 48, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = tower.head_contributions(pictures, weights=weights)
        total = found.heads.sum(dim=(1, 2)) + found.mlps.sum(dim=1) + found.rest
        embedding = tower(pictures, weights=weights)
        assert (total - embedding).abs().max() < 1e-4 * embedding.abs().max()
        assert (embedding - tower(pictures)).abs().max() > 1e-2


def test_texts_of_heads(world, fitted):
    X, _ = world
    found = fitted.interpret(WORDS, X, n_texts=3, layers=[0, -1])
    assert [(head.layer, head.head) for head in found] == [(layer, head) for layer in (0, 3) for head in range(4)]
    for head in found:
        assert len(set(head.texts)) == 3
        assert set(head.texts) <= set(WORDS)
        assert 0 < sum(head.explained) < 1
    assert len(fitted.interpret(WORDS, X[:8], n_texts=1)) == 4


def test_what_is_interpreted_is_what_the_tuned_towers_make(world, fitted, module):
    """Contributions in the merged model, divided by the length of the whole embedding."""
    tuned = copy.deepcopy(module)
    tuned.load_state_dict({name: torch.from_numpy(value) for name, value in fitted.merge().items()}, strict=False)
    setting = fitted._restored()
    learned, layers = fitted._tensors(setting), [1, 3]
    pictures = [world[0][i] for i in range(20)]  # two batches
    with torch.no_grad():
        found = fitted._contributions(learned, setting, pictures, layers)
        text = fitted._text_features(learned, setting, [f"a photo of a {name}." for name in fitted.classes_])
        inputs = fitted._inputs(Examples(pictures, np.zeros(20), None), setting, training=False)
        (pixels,) = inputs.batches([np.arange(20)], 0)
        heads = VisionTower(tuned).head_contributions(pixels).heads[:, layers]
        expected = heads / tuned.encode_image(pixels).norm(dim=1)[:, None, None, None]
    assert_allclose(found, expected, atol=1e-5)
    assert_allclose(text, fitted.text_features_, atol=1e-5)


# --- worth


def few(y, n, seed):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.choice(np.flatnonzero(y == name), n, replace=False) for name in np.unique(y)])


@pytest.mark.slow
def test_beats_the_linear_probe_and_keeps_what_it_knew_of_other_classes():
    params = {"shapes": ["circle", "star", "square", "heart"], "colors": ["red", "blue", "green"]}
    made = make_picture_world(1000, styles=["sketch"], **params)
    X, y = made.images, np.array(made.target)
    features = CLIPFeatures(MODEL).fit_transform(X)
    new = np.char.endswith(y.astype(str), "heart")
    test = np.flatnonzero(np.arange(1000) >= 500)
    base_test, new_test = test[~new[test]], test[new[test]]
    scores = {"svd": [], "probe": [], "new": [], "zero-shot new": []}
    for seed in (0, 1):
        train = few(np.where(new, "", y)[:500], 4, seed)
        train = train[~new[train]]
        clf = CLIPSVDClassifier(MODEL, steps_per_shot=30, learning_rate=5e-3, augmentation=None, random_state=seed)
        clf.fit(X[train], y[train])
        scores["svd"].append(clf.score(X[base_test], y[base_test]))
        probe = LinearProbeClassifier("cv").fit(features[train], y[train])
        scores["probe"].append(probe.score(features[base_test], y[base_test]))
        names = np.unique(y[new]).tolist()
        scores["new"].append(clf.with_classes(names).score(X[new_test], y[new_test]))
        plain = clone(clf).set_params(steps_per_shot=1, learning_rate=1e-12).fit(X[train], y[train])
        scores["zero-shot new"].append(plain.with_classes(names).score(X[new_test], y[new_test]))
    means = {name: np.mean(values) for name, values in scores.items()}
    assert means["svd"] > means["probe"] + 0.03, scores
    assert means["new"] > means["zero-shot new"] - 0.1, scores
