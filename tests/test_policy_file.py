"""Policies as files: every mistake named once with its line, every knob explained, and two compared in words."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cli import Run, assert_one_line, run

from recsys.errors import Misuse
from recsys.knobs import differences, knobs
from recsys.policy import Cap, Minimum, Pin, Policy, Sponsored
from recsys.policy_file import check_policy, read_policy
from streams.settings import load_settings

__all__ = ["run"]  # the fixture

WRONG = """\
strenght = 0.3
voices = -1  # a comment
diversity = "best"
remember_h = inf
price_bands = [3, "x"]

[[caps]]
attribute = "brand"
most = 0
mots = 2
[[caps]]
most = 2
[[pins]]
slot = 1
item = "a"
[[pins]]
slot = 1
item = "b"
"""
SAID = [
    "pins must name each slot and each item once",
    "line 1: strenght: there is no such knob; the nearest is strength",
    "line 2: voices: Expected `int` >= 0",
    "line 3: diversity: Invalid enum value 'best'; there are none, mmr, max_sum, dpp, ssd",
    "line 4: remember_h: Expected a finite number",
    "line 5: price_bands[1]: Expected `float`, got `str`",
    "line 9: caps[0].most: Expected `int` >= 1",
    "line 10: caps[0].mots: there is no such key; the nearest is most",
    "line 11: caps[1]: it lacks attribute",
]
FULL = Policy(
    strength=0.3,
    repeats="new",
    caps=(Cap(attribute="brand", most=2, within=5), Cap(attribute="category_1", priority=9)),
    minimums=(Minimum(kind="new", least=2),),
    sponsored=(Sponsored(slots=(2, 4)),),
    pins=(Pin(0, "i7"),),
    explore_slots=(8, 9),
    price_bands=(10.0, 20.0),
)


def test_every_mistake_of_a_file_is_named_with_its_line() -> None:
    assert [str(mistake) for mistake in check_policy(WRONG)[1]] == SAID
    with pytest.raises(Misuse) as error:
        read_policy(WRONG)
    assert str(error.value) == "; ".join(SAID)


def test_a_slot_is_kept_for_one_tag() -> None:
    """Of two the last had it, the other's items stood nowhere, and no list said so."""
    with pytest.raises(Misuse, match="sponsored: a slot can be kept for one tag only"):
        read_policy("[[sponsored]]\nslots = [0, 2]\ntag = 'a'\n[[sponsored]]\nslots = [2]\ntag = 'b'")
    assert len(read_policy("[[sponsored]]\nslots = [2, 2]").sponsored) == 1


def test_a_file_that_is_none_says_where() -> None:
    assert [str(m) for m in check_policy("voices = 1\nvoices = 2\n")[1]] == [
        "line 2: not TOML: Cannot overwrite a value"
    ]
    assert str(check_policy('{"voices": 1')[1][0]).startswith("not JSON: ")
    assert [str(m) for m in check_policy("policy = 3")[1]] == ["line 1: Expected a table of keys"]
    assert str(check_policy("caps = [3]")[1][0]) == "line 1: caps[0]: Expected a table of keys"
    assert "4300 digits" in str(check_policy("voices = " + "1" * 5000)[1][0])
    assert "out of range" in str(check_policy('{"voices": ' + "1" * 5000 + "}")[1][0])
    assert str(check_policy("new_days = 1" + "0" * 400)[1][0]) == "line 1: new_days: Number out of range"
    assert str(check_policy("price_bands = [1, inf]")[1][0]) == "line 1: price_bands: Expected a finite number"
    assert "\n" not in str(check_policy('{"a\\nb": 1}')[1][0])
    assert "nested too deeply" in str(check_policy("voices = " + "[" * 100_000)[1][0])


def test_a_policy_is_read_from_toml_from_json_and_from_the_settings_file() -> None:
    assert read_policy("") == Policy()
    assert read_policy(msgspec.json.encode(FULL).decode()) == FULL
    toml = 'prefix = "shop."\n[policy]\nstrength = 0.3\n[[policy.pins]]\nslot = 0\nitem = "i7"'
    assert read_policy(toml) == Policy(strength=0.3, pins=(Pin(0, "i7"),))
    assert str(check_policy(toml + "\nitem2 = 1")[1][0]).startswith("line 7: pins[0].item2: ")


def test_in_a_settings_file_a_knob_stands_in_its_table_and_mistakes_have_lines(tmp_path: Path) -> None:
    file = tmp_path / "slatecast.toml"
    file.write_text('prefix = "shop."\n[policy]\nstrenght = 0.3\nvoices = -1\n')
    with pytest.raises(Misuse) as error:
        load_settings(file, {}, {})
    assert str(error.value) == (
        f"{file}: line 3: strenght: there is no such knob; the nearest is strength; {file}: line 4: voices: Expected `int` >= 0"
    )
    assert [str(m) for m in check_policy("strength = 1\n[policy]\nvoices = 1")[1]] == [
        "line 1: strength: it stands outside [policy]"
    ]


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(Policy.__struct_fields__) | st.text(), json, max_size=4) | json)
def test_what_has_no_mistake_is_a_policy_and_what_has_one_is_none(value: object) -> None:
    text = msgspec.json.encode(value).decode()
    table, mistakes = check_policy(text)
    if not mistakes:
        assert read_policy(text) == msgspec.convert(table, Policy)
    else:
        with pytest.raises(Misuse):
            read_policy(text)


@given(st.text())
def test_any_text_is_a_policy_or_has_mistakes(text: str) -> None:
    table, mistakes = check_policy(text)
    assert mistakes or msgspec.convert(table, Policy)


def test_every_knob_says_its_unit_and_what_it_is_for() -> None:
    found = {knob.name: knob for knob in knobs()}
    assert [name for name in found if "[]" not in name] == list(Policy.__struct_fields__)
    assert {"caps[].attribute", "minimums[].least", "sponsored[].slots", "pins[].item"} <= found.keys()
    for knob in found.values():
        assert knob.unit
        assert len(knob.reason) > 8
    assert (found["voices"].allowed, found["remember_h"].allowed, found["new_days"].allowed) == (
        "0 to 1000",
        "above 0",
        "0 or more",
    )
    assert all("[]" in name or knob.default == getattr(Policy(), name) for name, knob in found.items())


def test_two_policies_differ_in_words() -> None:
    assert differences(FULL, FULL) == []
    assert differences(Policy(), FULL) == [
        "repeats: new, was all (may a list offer what the user already bought? new = no)",
        "strength: 0.3, was 0.05 (weight of variety within a list; 0 = relevance only)",
        "caps: also at most 2 of a brand in 5 slots",
        "caps: also at most 1 of a category_1, priority 9",
        "minimums: also at least 2 of new",
        "sponsored: also only tag sponsored in slots 2, 4",
        "pins: also i7 in slot 0",
        "explore_slots: 8, 9, was none (places for cold items drawn by chance, with the propensity logged; 0 is the first)",
        "price_bands: 10, 20, was none (where one band ends and the next begins, ascending)",
    ]
    assert "caps: no longer at most 2 of a brand in 5 slots" in differences(FULL, Policy())
    swapped = msgspec.structs.replace(FULL, caps=FULL.caps[::-1])
    assert differences(FULL, swapped) == ["caps: the same rules in another order"]


@pytest.mark.parametrize("name", Policy.__struct_fields__)
def test_no_difference_goes_unsaid(name: str) -> None:
    value = getattr(FULL, name) if getattr(FULL, name) != getattr(Policy(), name) else None
    if value is None:
        old = getattr(Policy(), name)
        choices = next(knob.allowed for knob in knobs() if knob.name == name).split(", ")
        value = choices[-1] if isinstance(old, str) and choices[0] else old + 1 if not isinstance(old, str) else "x"
        value = min(value, 1) if name == "blend" else not old if isinstance(old, bool) else value
    other = msgspec.structs.replace(Policy(), **{name: value})
    lines = differences(Policy(), other)
    assert lines if other != Policy() else not lines
    assert all(line.startswith(f"{name}: ") for line in lines)


# --- the commands ------------------------------------------------------------------------------------------------------


def test_check_says_a_line_for_each_mistake_and_exits_with_2(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(WRONG)
    (tmp_path / "good.toml").write_text("strength = 0.3")
    code, out, err = run("policy", "check", "bad.toml")
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) == len(SAID) + 1
    assert lines[1] == "bad.toml:1: strenght: there is no such knob; the nearest is strength"
    assert lines[-1] == "slatecast: bad.toml: 9 mistakes; `slatecast policy show` lists the knobs"
    code, out, _ = run("policy", "check", "good.toml")
    assert (code, out) == (0, f"good.toml: fine, digest {Policy(strength=0.3).digest()}\n")
    assert_one_line(run("policy", "check", "none.toml"), 2, "no such file")
    (tmp_path / "windows.toml").write_text("strength = 0.3", "utf-8-sig")
    assert run("policy", "check", "windows.toml")[1] == out.replace("good", "windows")
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    assert_one_line(run("policy", "check", "bytes.toml"), 2, "UTF-8")
    assert_one_line(run("policy", "check", "."), 2, "directory")


def test_show_has_a_line_for_every_knob_and_marks_what_was_turned(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text("strength = 0.3")
    code, out, _ = run("policy", "show", "p.toml")
    assert code == 0
    assert len(out.splitlines()) == 2 + len(list(knobs()))
    marked = [line.split() for line in out.splitlines() if line.startswith("*")]
    assert [words[1:5] for words in marked] == [["strength", "0.3", "0.05", "share"]]
    shown = msgspec.json.decode(run("policy", "show", "--json")[1])
    assert shown["digest"] == Policy().digest()
    assert {"name", "value", "default", "unit", "allowed", "reason"} == shown["knobs"][0].keys()


def test_diff_compares_files_and_the_defaults(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("strength = 0.3")
    (tmp_path / "b.toml").write_text("[policy]\nstrength = 0.4")
    assert run("policy", "diff", "a.toml", "b.toml")[1].startswith("strength: 0.4, was 0.3 (")
    assert run("policy", "diff", "default", "a.toml")[1].startswith("strength: 0.3, was 0.05 (")
    assert msgspec.json.decode(run("policy", "diff", "a.toml", "a.toml", "--json")[1]) == []


def test_what_cannot_be_applied_reaches_no_broker(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("voices = -1")
    assert run("policy", "apply", "bad.toml")[0] == 2
    assert_one_line(run("policy", "apply"), 2, "--withdraw")
    (tmp_path / "good.toml").write_text("voices = 1")
    assert_one_line(run("policy", "apply", "good.toml", "--bootstrap", "127.0.0.1:1"), 1, "no Kafka answers")
