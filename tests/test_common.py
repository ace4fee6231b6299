"""Every public estimator is checked: by scikit-learn, or, for a stated reason, by checks of our own."""

from __future__ import annotations

import inspect

import pytest
from sklearn.neighbors import KernelDensity
from sklearn.utils import estimator_checks as sklearn_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip.features import CLIPFeatures, CLIPLayerStatistics, CLIPTextFeatures, DenseCLIPFeatures
from skclip.tuning import CLIPLoRAClassifier, TimmClassifier
from skclip.tuning._tuned import PromptClassifier, TowerClassifier
from skclip.utils import SkclipBase, all_estimators
from skclip.utils.estimator_checks import NearestMeanClassifier, parametrize_with_raw_checks
from skclip.zero_shot import CLIPClassifier

# class name -> why scikit-learn's checks on random matrices say nothing about it
RAW_X = {
    "CLIPFeatures": "takes pictures",
    "CLIPLayerStatistics": "takes pictures",
    "CLIPTextFeatures": "takes sentences",
    "CLIPClassifier": "takes pictures",
    "TimmClassifier": "takes pictures",
    "CLIPLoRAClassifier": "takes pictures; stands for all that trains its model on them",
    "DenseCLIPFeatures": "takes pictures",
}
# these take features of one width, that of their text; scikit-learn's checks run in tests/ood on subclasses whose text
# is as wide as what they are given
CLASS_TEXT = dict.fromkeys(
    ("GLMCMDetector", "MCMDetector", "NegLabelDetector", "VarianceDetector"),
    "knows its classes from the parameters and takes features of one width",
)
# the suite of tuning is tests/tuning/test_conformance.py
TUNING = {
    **dict.fromkeys(
        (name for name, cls in all_estimators() if issubclass(cls, PromptClassifier)),
        "takes features of one width, that of its model, and learns words around the names of the classes",
    ),
    **dict.fromkeys(
        (name for name, cls in all_estimators() if issubclass(cls, TowerClassifier)), "trains its model on pictures"
    ),
    "TunedCLIPFeatures": "takes pictures, and a classifier that trains its model",
}
OWN_CHECKS = {
    **TUNING,
    **RAW_X,
    **CLASS_TEXT,
    "ConceptAssociationProbe": "knows its objects from the parameters and predicts for (picture, queried object) pairs",
    "RelativeMahalanobisDetector": "is 0 everywhere without labels, which scikit-learn gives no detector; its own "
    "tests run the checks with labels",
    "RobustnessLine": "takes one accuracy per model, between 0 and 1",
    "TextSpan": "learns from rows and the features of texts, of the same width",
    "ZeroShotClassifier": "knows its classes from the parameters and takes features of one width",
}

# class name -> {check: reason}; only what the contract of the estimators allows
EXPECTED_FAILURES: dict[str, dict[str, str]] = {}

# class name -> parameters of the instance to check: detectors are given no labels by scikit-learn, and few rows
CHECKED_AS: dict[str, dict[str, object]] = {
    **{
        name: {"classifier": NearestMeanClassifier()}
        for name in (
            "EnergyDetector",
            "EntropyDetector",
            "GENDetector",
            "GradNormDetector",
            "KLMatchingDetector",
            "MSPDetector",
            "MaxLogitDetector",
            "ReActDetector",
            "SHEDetector",
            "ViMDetector",
        )
    },
    # enough epochs for what is asked of them
    "CLAPClassifier": {"max_iter": 60},
    "CLIPAdapterClassifier": {"max_iter": 60},
    "KNNDetector": {"n_neighbors": 2},
    "NNGuideDetector": {"classifier": NearestMeanClassifier(), "n_neighbors": 2},
    "OutlierView": {"estimator": KernelDensity()},
    "OpenSetClassifier": {"tpr": 1.0},  # scikit-learn wants labels of y alone
    "OODEnsemble": {"calibration": "in_sample"},  # the checks count refusals among the pictures of fit
}

ALL_ESTIMATORS = [cls(**CHECKED_AS.get(name, {})) for name, cls in all_estimators() if name not in OWN_CHECKS]


def expected_failures(estimator):
    return EXPECTED_FAILURES.get(type(estimator).__name__, {})


@pytest.mark.filterwarnings("ignore:.* have energies that are not positive")  # random rows seldom have
@parametrize_with_checks(ALL_ESTIMATORS, expected_failed_checks=expected_failures, xfail_strict=True)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


RAW_INSTANCES = [
    CLIPFeatures("skclip-tiny"),
    CLIPTextFeatures("skclip-tiny"),
    CLIPClassifier("skclip-tiny"),
    TimmClassifier("test_resnet", image_size=32, max_iter=2, batch_size=4, random_state=0),
    DenseCLIPFeatures("skclip-tiny", layout="flat"),
    CLIPLoRAClassifier("skclip-tiny", max_iter=1, batch_size=4, random_state=0),
    CLIPLayerStatistics("skclip-tiny"),
]


@parametrize_with_raw_checks(RAW_INSTANCES)
def test_raw_contract(estimator, check):
    check(estimator)


def test_the_lists_name_classes_that_exist():
    names = set(dict(all_estimators()))
    assert set(OWN_CHECKS) <= names
    assert {type(estimator).__name__ for estimator in RAW_INSTANCES} == set(RAW_X)
    assert set(EXPECTED_FAILURES) | set(CHECKED_AS) <= names - set(OWN_CHECKS)


def test_every_estimator_with_a_public_name_is_exported():
    def below(cls):
        for child in cls.__subclasses__():
            yield child
            yield from below(child)

    public = {cls for _, cls in all_estimators()}
    defined = {
        cls
        for cls in below(SkclipBase)
        if cls.__module__.startswith("skclip.") and not cls.__name__.startswith("_") and not inspect.isabstract(cls)
    }
    assert defined == public


@pytest.mark.parametrize(("name", "cls"), all_estimators())
def test_constraints_are_of_parameters(name, cls):
    assert set(cls._parameter_constraints) <= set(cls._get_param_names())


# what scikit-learn can check of a class without giving it data
DATA_FREE = [
    sklearn_checks.check_estimator_cloneable,
    sklearn_checks.check_estimator_tags_renamed,
    sklearn_checks.check_valid_tag_types,
    sklearn_checks.check_estimator_repr,
    sklearn_checks.check_no_attributes_set_in_init,
    sklearn_checks.check_do_not_raise_errors_in_init_or_set_params,
    sklearn_checks.check_mixin_order,
    sklearn_checks.check_parameters_default_constructible,
    sklearn_checks.check_get_params_invariance,
    sklearn_checks.check_set_params,
]


@pytest.mark.parametrize("check", DATA_FREE, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", OWN_CHECKS)
def test_data_free_contract(name, check):
    estimator = dict(all_estimators())[name]()
    check(name, estimator)
