from __future__ import annotations

import pytest

from skclip._backbones._open_clip import import_open_clip
from skclip.templates import fill_templates, get_templates, list_templates


def test_sets_are_those_of_open_clip():
    open_clip = import_open_clip()
    for name, constant in {
        "openai": open_clip.OPENAI_IMAGENET_TEMPLATES,
        "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES,
    }.items():
        assert [t.replace("{}", "kite") for t in get_templates(name)] == [t("kite") for t in constant]
    assert len(get_templates("openai")) == 80
    assert len(get_templates("simple")) == 7
    assert get_templates("none") == ("{}",)
    assert list_templates() == ["none", "openai", "simple"]


def test_sentences_and_lists():
    assert get_templates("a photo of a {}.") == ("a photo of a {}.",)
    assert get_templates(["a {}", "one {}"]) == get_templates(("a {}", "one {}")) == ("a {}", "one {}")


def test_unknown_set_suggests_a_near_one():
    with pytest.raises(ValueError, match=r"'openia'.*none, openai, simple.*Did you mean 'openai'"):
        get_templates("openia")


def test_template_without_a_slot():
    with pytest.raises(ValueError, match=r"nor a sentence with '\{\}'"):
        get_templates("a photo of a cat")
    with pytest.raises(ValueError, match=r"templates\[1\] is 'a cat'"):
        get_templates(["a {}", "a cat"])


@pytest.mark.parametrize("templates", [3, {"a": ["b"]}, None])
def test_what_is_no_template(templates):
    with pytest.raises(TypeError, match="templates must be"):
        get_templates(templates)


def test_entries_that_are_no_template():
    with pytest.raises(TypeError, match=r"templates\[1\] is 3"):
        get_templates(["a {}", 3])
    with pytest.raises(ValueError, match="empty list"):
        get_templates([])


def test_fill_in_the_order_of_the_names():
    assert fill_templates(["tree_frog", "ant"], ["a {}.", "one {}"]) == [
        ["a tree frog.", "one tree frog"],
        ["a ant.", "one ant"],
    ]
    assert fill_templates({7: "bee", 1: "ant"}, "none") == [["bee"], ["ant"]]
    assert len(fill_templates(["ant"])[0]) == 80


def test_other_braces_are_left_alone():
    assert fill_templates(["ant"], "{0} {} {x}") == [["{0} ant {x}"]]
    assert fill_templates(["{x}"], "a {}") == [["a {x}"]]


def test_descriptions_by_label_or_by_name():
    descriptions = {1: ["six legs", "a small {}"], 7: "it stings", 9: ["not asked for"]}
    assert fill_templates({7: "bee", 1: "black_ant"}, descriptions) == [
        ["it stings"],
        ["six legs", "a small black ant"],
    ]
    assert fill_templates(["bee"], {"bee": ["it stings"]}) == [["it stings"]]


def test_descriptions_that_do_not_fit():
    with pytest.raises(ValueError, match=r"no sentences for \['bee'\] \(1 of 2 classes\).*\['ant', 'wasp'\]"):
        fill_templates(["ant", "bee"], {"ant": ["x"], "wasp": ["y"]})
    with pytest.raises(ValueError, match=r"templates\['ant'\] is empty"):
        fill_templates(["ant"], {"ant": []})
    with pytest.raises(ValueError, match=r"templates\['ant'\] holds 3"):
        fill_templates(["ant"], {"ant": ["x", 3]})
    with pytest.raises(ValueError, match="empty dict"):
        fill_templates(["ant"], {})
