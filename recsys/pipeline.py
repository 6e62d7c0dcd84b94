"""The stages of a list, in order. Start reading here.

gather → filter → cut → features → score (all users of the batch in one call) → intent and exposure → shortlist →
explore → arrange → explain. The scorer comes in as an argument; so does the clock, if someone wants the stages' times.
"""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from recsys.candidates import Source, gather
from recsys.context import Request, Shop, see
from recsys.diversify.reasons import gains
from recsys.explain import explain
from recsys.explore import explore
from recsys.exposure import price_exposure
from recsys.features import compute_features
from recsys.filters import filter_candidates
from recsys.fusion import cut, reciprocal_rank, shortlist
from recsys.intent import follow_visit
from recsys.policy import Policy
from recsys.scoring import HEADS, Ask, Score, trail_of
from recsys.slates import Relaxed, SlateItem
from recsys.variety import admit, arrange


class Draft(msgspec.Struct, frozen=True):
    """A list before it is published."""

    items: tuple[SlateItem, ...]
    scorer: str
    degraded_reason: str | None
    dropped: dict[str, int]
    relaxed: tuple[Relaxed, ...] = ()


def recommend(
    requests: Sequence[Request],
    shop: Shop,
    sources: Sequence[Source],
    score: Score,
    policy: Policy,
    tick: Callable[[str], None] = lambda stage: None,
) -> list[Draft]:
    """Lists for a micro-batch of requests, in their order. About 1 ms a list for 200 candidates."""
    contexts = [see(request, shop) for request in requests]
    tick("context")
    gathered = [gather(context, sources, policy.per_source) for context in contexts]
    tick("gather")
    kept = [filter_candidates(context, found, policy) for context, found in zip(contexts, gathered, strict=True)]
    few = [cut(k.candidates, policy) for k in kept]
    tick("filter")
    asks = [
        Ask(found.rows, compute_features(context, found), trail_of(context))
        for context, found in zip(contexts, few, strict=True)
    ]
    tick("features")
    scored = score(asks, shop.catalogue.vectors)
    tick("score")
    ends = np.cumsum([len(ask.rows) for ask in asks])
    column, click = HEADS.index(policy.repeats), HEADS.index("click")
    drafts = []
    for context, found, k, end in zip(contexts, few, kept, ends, strict=True):
        if scored.logits is None:
            relevance = 100.0 * reciprocal_rank(found.ranks)  # to the scale of logits, for the penalty's sake
        else:
            logits = scored.logits[end - len(found.rows) : end]
            relevance = logits[:, column].astype(np.float64)
            if policy.clicks:  # a release may have no head for them: then nothing is added
                relevance = relevance + policy.clicks * logits[:, click:].sum(axis=1, dtype=np.float64)
        visit = follow_visit(context, found.rows)
        if visit is not None:
            relevance = relevance + policy.intent * visit.pull
        shown = shop.signals.shown_share(found.rows, context.request.now_s)
        penalty = price_exposure(relevance, shown, policy.exposure_penalty)
        worth = relevance - penalty
        size = max(policy.shortlist, policy.slate_size)  # a long list needs a shortlist as long
        own, drawn = explore(context, found.rows, relevance, policy)
        short = admit(context, found.rows, worth, shortlist(worth, found.ranks, size, policy.voices), own)
        choice = arrange(context, found.rows[short], relevance[short], penalty[short], own)
        chosen = short[choice.positions]
        said = gains(choice.parts, shop.catalogue.vectors[found.rows[chosen]]) if policy.show_gains else []
        items = []
        for place, at in enumerate(chosen.tolist()):
            item = shop.catalogue.items[found.rows[at]]
            source, reason = explain(context, found, at, visit)
            gain = said[place] if said else None
            value = round(float(relevance[at]), 4)
            items.append(SlateItem(item.item, item.title, value, source, reason, gain, drawn.get((place, at))))
        drafts.append(Draft(tuple(items), scored.scorer, scored.degraded_reason, k.dropped, choice.relaxed))
    tick("diversify")
    return drafts
