"""What an editor and a type checker know: results and keywords behind `mm.fit`."""

import inspect
import typing

import pytest

import mixmoe as mm
from mixmoe.families import families

OWN = ("formula", "data", "experts")
RETURNED = {"MEMoEResults": "MEMoE", "VCMoEResults": "VCMoE", "NMEResults": "NME", "NMoEResults": "NMoE"}
OVERLOADS = typing.get_overloads(mm.fit)


def keywords(function, left_out=OWN):
    kept = (p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD)
    return {p.name for p in kept} - {"self", *left_out}


def test_every_family_of_the_package_has_an_overload():
    assert {RETURNED[inspect.signature(one).return_annotation] for one in OVERLOADS} == set(families())


@pytest.mark.parametrize("overload", OVERLOADS, ids=lambda one: inspect.signature(one).return_annotation)
def test_keywords_are_those_of_constructor_fit_and_covariance(overload):
    family = families()[RETURNED[inspect.signature(overload).return_annotation]]
    known = keywords(family.__init__) | keywords(family.fit) | set(family.spec.covariance_options)
    assert keywords(overload) == known


def script(call, tail=""):
    return f'import mixmoe as mm\n\ndata = mm.datasets.load("sleepstudy")\nfit = mm.fit("y ~ x", data{call}\n{tail}'


def test_the_keyword_that_asks_for_a_family_decides():
    """What a type checker goes by: the first overloads need one keyword each, the last none."""
    needed = [
        [
            p.name
            for p in inspect.signature(one).parameters.values()
            if p.kind is p.KEYWORD_ONLY and p.default is p.empty
        ]
        for one in OVERLOADS
    ]
    assert needed == [["body"], ["hidden"], ["network"], ["bandwidth"], []]


@pytest.mark.parametrize(
    ("call", "own"),
    [
        (", experts=3)", {"proportions", "cov_re", "predict", "summary", "test_experts"}),
        (', bandwidth="cv")', {"bands", "functions", "test_varying", "predict", "summary"}),
        (", hidden=(10,))", {"adapt", "decode", "random_effects", "predict", "summary"}),
    ],
)
def test_an_editor_completes_the_results(call, own):
    jedi = pytest.importorskip("jedi")
    proposed = {one.name for one in jedi.Script(script(call, "fit.")).complete()}
    assert own <= proposed


@pytest.mark.parametrize(
    ("call", "expected"),
    [(", cov_", {"cov_re=", "cov_type="}), (', "cv", band', {"bandwidth="}), (", hid", {"hidden="})],
)
def test_an_editor_completes_the_keywords(call, expected):
    jedi = pytest.importorskip("jedi")
    code = script(call).rstrip("\n")
    proposed = {one.name_with_symbols for one in jedi.Script(code).complete()}
    assert expected <= proposed
