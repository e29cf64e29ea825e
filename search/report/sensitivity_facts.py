"""What the page of sensitivity curves says in words and tables. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from .facts import Cell
from .sensitivity_data import (
    Profile,
    Ranking,
    Standing,
    Unit,
    Variant,
    measured,
    units,
)
from .sensitivity_text import (
    choice_text,
    counted,
    figure_title,
    listed,
    part_text,
    ratio_text,
    size_text,
    small_text,
    times_less,
)
from .text import seconds_text

STANDS_OUT, LITTLE_SPREAD, MOST_NAMED, MOST_LISTED, MOST = 3.0, 2.0, 3, 6, 0.8
TRUSTED_RANK, USEFUL_RANK, TRUSTED_ERROR_PCT, ENOUGH_POLICIES = 0.9, 0.6, 10.0, 20


def headline(profile: Profile, found: Ranking) -> str:
    """Which layers are fragile and which are free, from the figures."""
    if not profile.variants:
        return "The bank holds no variant."
    if all(variant.failure is not None for variant in profile.variants):
        count = len(profile.variants)
        return "The only variant failed." if count == 1 else f"No variant was measured: all {count} failed."
    if found.ratio is None:
        return "Layers are not ranked: no variant has both a KL and a stored size smaller than its layer's float32 weights."
    start = f"Each layer alone stored at least {found.ratio:g}× smaller"
    first, last = found.standings[0], found.standings[-1]
    if len(found.standings) == 1:
        return f"{first.unit.name} alone stored at least {found.ratio:g}× smaller costs a KL of {small_text(first.kl)}."
    if first.kl <= 0:
        return f"{start} costs nothing that the KL would show."
    if last.kl > 0 and first.kl < LITTLE_SPREAD * last.kl:
        return f"{start}, no layer stands out: the KL lies between {small_text(last.kl)} and {small_text(first.kl)}."
    fragile, free = extremes(found)
    return f"{start}: {_fragile(fragile)}; {_free(profile, free, first)}."


def extremes(found: Ranking) -> tuple[list[Standing], list[Standing]]:
    """The most fragile, first to last, and the most free, last to first: at most three each, at least one.

    More than one is named where it is ``STANDS_OUT`` times above or below the median.
    """
    order = found.standings
    middle = median(standing.kl for standing in order)
    named = min(MOST_NAMED, len(order) // 2)
    fragile = [s for s in order[:named] if s.kl >= STANDS_OUT * middle] or [order[0]]
    free = [s for s in reversed(order[-named:]) if s.kl <= middle / STANDS_OUT] or [order[-1]]
    return fragile, free


def _fragile(standings: list[Standing]) -> str:
    named = [f"{s.unit.name} ({'KL ' if not i else ''}{small_text(s.kl)})" for i, s in enumerate(standings)]
    return f"the most fragile {'is' if len(named) == 1 else 'are'} {listed(named)}"


def _free(profile: Profile, standings: list[Standing], worst: Standing) -> str:
    names, kls = listed([s.unit.name for s in standings]), max(s.kl for s in standings)
    less = times_less(kls, worst.kl)
    at_most = "KL " if len(standings) == 1 else "KL at most "
    total = sum(int(layer["weights"]) for layer in profile.layers)
    share = sum(s.unit.weights for s in standings) / total if total else 0.0
    verb = "holds" if len(standings) == 1 else "together hold"
    beside = f"{at_most}{small_text(kls)}{', ' + less if less else ''}"
    verb_is = "is" if len(standings) == 1 else "are"
    return f"the most free {verb_is} {names} ({beside}), which {verb} {part_text(share)} of all weights"


def remarks(profile: Profile, found: Ranking) -> list[str]:
    """What the headline leaves out: units that cannot be stored so small, and units whose every variant failed."""
    out = []
    dead = [u.name for u in units(profile) if all(profile.variants[i].failure is not None for i in u.variants)]
    if dead and len(dead) < len(units(profile)):
        who = "it" if len(dead) == 1 else "they"
        out.append(f"Every variant of {_few(dead)} failed; {who} can only stay dense, the reasons stand below.")
    beyond = [unit.name for unit in found.beyond]
    if beyond and found.ratio is not None:
        verb = "is" if len(beyond) == 1 else "are"
        out.append(f"{_few(beyond)} cannot be stored {found.ratio:g}× smaller and {verb} not ranked.")
    return out


def _few(names: list[str]) -> str:
    more = len(names) - MOST_LISTED
    return listed(names) if more <= 1 else f"{', '.join(names[:MOST_LISTED])} and {more} more"


def tiles(profile: Profile, found: Ranking) -> list[tuple[str, Cell]]:
    """The figures to lead with: the most fragile and the most free unit, where most bytes and most time lie, what was tried."""
    out = []
    if len(found.standings) > 1:
        for title, standing in (("most fragile", found.standings[0]), ("most free", found.standings[-1])):
            variant = profile.variants[standing.variant]
            out.append((title, Cell(standing.unit.name, f"KL {small_text(standing.kl)} with {choice_text(variant)}")))
    largest = max(units(profile), key=lambda unit: unit.weights, default=None)
    total = sum(int(layer["weights"]) for layer in profile.layers)
    if largest is not None and largest.dense_bytes:
        note = f"{size_text(largest.dense_bytes)} in float32, {part_text(largest.weights / total)} of all weights"
        out.append(("most bytes", Cell(largest.name, note)))
    fastest = _fastest(profile)
    if fastest is not None:
        slow, variant = fastest
        note = f"from {ratio_text(slow)} to {ratio_text(variant.latency_ratio)} of dense by {choice_text(variant)}"
        out.append(("most time to win", Cell(variant.unit, note)))
    return out


def _fastest(profile: Profile) -> tuple[float, Variant] | None:
    """Of the unit whose choice moves the latency most: the slowest variant's latency, and the fastest variant."""
    most: tuple[float, Variant] | None = None
    widest = 0.0
    for unit in units(profile):
        known = [
            (ratio, i) for i in unit.variants if (ratio := measured(profile.variants[i].latency_ratio)) is not None
        ]
        if known and max(known)[0] - min(known)[0] > widest:
            widest = max(known)[0] - min(known)[0]
            most = max(known)[0], profile.variants[min(known)[1]]
    return most


def counts(profile: Profile) -> str:
    """What was tried, in a sentence."""
    variants = profile.variants
    failed = sum(v.failure is not None for v in variants)
    dominated = sum(v.dominated and v.failure is None for v in variants)
    found = len(units(profile))
    return (
        f"{counted(len(variants), 'variant')} of {counted(found, 'unit')}: {failed} failed, {dominated} dominated by another"
        f" of the same unit, {len(variants) - failed - dominated} left to choose from; {seconds_text(profile.seconds)} in all."
    )


def trust(profile: Profile) -> str:
    """Whether sums over the bank can stand for whole policies, by the thresholds of this module."""
    given: Mapping[str, float] = profile.additivity or {}
    rank = measured(given.get("kl_spearman"))
    errors = {
        figure_title(name.removesuffix("_median_error_pct")): value
        for name, given_value in given.items()
        if name.endswith("_median_error_pct") and (value := measured(given_value)) is not None
    }
    if rank is None and not errors:
        return "Not checked: no whole policy was held against the sum of its parts, so take sums over layers as a guide only."
    parts = [] if rank is None else [_trust_rank(rank)]
    if errors:
        good = [f"{name} to {value:.2g} %" for name, value in errors.items() if abs(value) <= TRUSTED_ERROR_PCT]
        bad = [f"{name} ({value:.2g} % off)" for name, value in errors.items() if abs(value) > TRUSTED_ERROR_PCT]
        parts += [f"sums give {listed(good)} at the median, near enough to search by"] if good else []
        parts += [f"sums of {listed(bad)} need a correction before they are searched by"] if bad else []
    text = "; ".join(parts)
    policies = measured(given.get("policies"))
    rough = policies is not None and policies < ENOUGH_POLICIES
    ending = f" Only {_policies(policies)}, so this is a rough check." if rough and policies is not None else ""
    return text[0].upper() + text[1:] + "." + ending


def _policies(count: float) -> str:
    return f"{count:g} {'policy was' if count == 1 else 'policies were'} measured"


def _trust_rank(rank: float) -> str:
    known = f"(rank correlation {rank:.2f})"
    if rank >= TRUSTED_RANK:
        return f"sums of KL order whole policies nearly as measurement does {known} and can be trusted for that"
    if rank >= USEFUL_RANK:
        return f"sums of KL order whole policies roughly {known}: good for candidates, not for a choice"
    return f"sums of KL do not order whole policies {known} and cannot be trusted: layers act on one another"


def cost_lead(profile: Profile) -> str:
    """Where size and time lie, in words."""
    total = sum(int(layer["weights"]) for layer in profile.layers)
    heavy: list[Unit] = []
    for unit in sorted((unit for unit in units(profile) if unit.weights), key=lambda unit: -unit.weights):
        if len(heavy) < MOST_NAMED and sum(one.weights for one in heavy) < MOST * total:
            heavy.append(unit)
    words = []
    if heavy:
        named = listed([f"{unit.name} ({part_text(unit.weights / total)} of all weights)" for unit in heavy])
        words.append(f"Most bytes in float32 lie in {named}.")
    fastest = _fastest(profile)
    if fastest is not None:
        slow, variant = fastest
        words.append(
            f"The choice for {variant.unit} moves latency most: from {ratio_text(slow)} to"
            f" {ratio_text(variant.latency_ratio)} of dense ({choice_text(variant)})."
        )
    elif all(measured(variant.latency_ratio) is None for variant in profile.variants):
        words.append("Latency was not measured.")
    else:
        words.append("No unit's choice changes the latency.")
    return " ".join(words)
