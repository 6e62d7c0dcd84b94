"""The knobs of a policy for people: each with unit, limits and reason, and what two policies differ in, in words.

Everything is read off the types in `recsys/policy.py`, so help cannot say what the code does not. Called by
`recsys/policy_file.py` and the command line.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from recsys.policy import Cap, Minimum, Pin, Policy, Sponsored

Rule = Cap | Minimum | Sponsored | Pin


class Knob(msgspec.Struct, frozen=True):
    """One knob. allowed: its limits or choices in words; default: None where a rule must name it."""

    name: str
    default: Any
    unit: str
    allowed: str
    reason: str


def knobs(of: type[msgspec.Struct] = Policy, prefix: str = "") -> Iterator[Knob]:
    """Every knob in the order of the type; those of a rule follow their list, as `caps[].most`.

    >>> [(knob.name, knob.default, knob.unit, knob.allowed) for knob in knobs() if knob.name == "strength"]
    [('strength', 0.05, 'share', '0 to 1')]
    """
    hints = get_type_hints(of, include_extras=True)
    for field in msgspec.structs.fields(of):
        kind, meta = get_args(hints[field.name])[0], get_args(hints[field.name])[1:]
        default = None if field.default is msgspec.NODEFAULT else field.default
        unit = next(m.extra["unit"] for m in reversed(meta) if m.extra)
        reason = next(m.description for m in reversed(meta) if m.description)
        yield Knob(prefix + field.name, default, unit, allowed(hints[field.name]), reason)
        if (rule := rule_of(kind)) is not None:
            yield from knobs(rule, f"{prefix}{field.name}[].")


def rule_of(kind: Any) -> type[msgspec.Struct] | None:
    """The rule of which a knob has a list, if it is such a knob.

    >>> rule_of(tuple[Cap, ...]).__name__, rule_of(float)
    ('Cap', None)
    """
    inner = get_args(kind)[0] if get_origin(kind) is tuple else None
    return inner if isinstance(inner, type) and issubclass(inner, msgspec.Struct) else None


def differences(a: Policy, b: Policy) -> list[str]:
    """What b does otherwise than a, a line each.

    >>> differences(Policy(), Policy(strength=0.3, caps=(Cap(attribute="brand", within=5),)))
    ['strength: 0.3, was 0.05 (weight of variety within a list; 0 = relevance only)', 'caps: also at most 1 of a brand in 5 slots']
    """
    lines = []
    for knob in knobs():
        if "[]" in knob.name or (old := getattr(a, knob.name)) == (new := getattr(b, knob.name)):
            continue
        if knob.unit == "rules":
            before, after = Counter(map(words, old)), Counter(map(words, new))
            changes = [f"no longer {rule}" for rule in (before - after).elements()]
            changes += [f"also {rule}" for rule in (after - before).elements()]
            lines += [f"{knob.name}: {change}" for change in changes or ["the same rules in another order"]]
        else:
            lines.append(f"{knob.name}: {shown(new)}, was {shown(old)} ({knob.reason})")
    return lines


def words(rule: Rule) -> str:
    """A rule as one says it.

    >>> words(Minimum(kind="tag", value="green", least=2)), words(Pin(0, "i7"))
    ('at least 2 of tag green', 'i7 in slot 0')
    """
    if isinstance(rule, Pin):
        return f"{rule.item} in slot {rule.slot}"
    if isinstance(rule, Cap):
        said = f"at most {rule.most} of a {rule.attribute}" + (f" in {rule.within} slots" if rule.within else "")
    elif isinstance(rule, Minimum):
        said = f"at least {rule.least} of {rule.kind} {rule.value}".rstrip()
    else:
        said = f"only tag {rule.tag} in slots {', '.join(map(str, rule.slots))}"
    usual = type(rule).__struct_defaults__[0] if isinstance(rule, Sponsored) else 1
    return said if rule.priority == usual else f"{said}, priority {rule.priority}"


def shown(value: Any) -> str:
    """A value in a word or two.

    >>> shown(0.5), shown(()), shown((10.0, 20.0)), shown(""), shown((Pin(0, "i7"),))
    ('0.5', 'none', '10, 20', 'empty', 'i7 in slot 0')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return "; ".join(words(v) for v in value) if value and isinstance(value[0], msgspec.Struct) else (
            ", ".join(map(shown, value)) or "none"
        )  # fmt: skip
    return f"{value:g}" if isinstance(value, float) else str(value) or "empty"


def allowed(hint: Any) -> str:
    """Limits or choices of an annotated type, as the decoder knows them.

    >>> from typing import Annotated
    >>> allowed(Annotated[int, msgspec.Meta(ge=1, le=9)]), allowed(Annotated[float, msgspec.Meta(gt=0)]), allowed(str)
    ('1 to 9', 'above 0', '')
    """
    meta: tuple[msgspec.Meta, ...] = ()
    while hasattr(hint, "__metadata__"):
        hint, meta = hint.__origin__, (*hint.__metadata__, *meta)
    if get_origin(hint) is Literal:
        return ", ".join(get_args(hint))
    low = next((f"{m.ge:g}" for m in meta if m.ge is not None), None)
    above = next((f"{m.gt:g}" for m in meta if m.gt is not None), None)
    high = next((f"{m.le:g}" for m in meta if m.le is not None), None)
    if low is not None and high is not None:
        return f"{low} to {high}"
    return f"{low} or more" if low is not None else f"above {above}" if above is not None else ""
