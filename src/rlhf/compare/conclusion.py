"""What a comparison's numbers support and what they do not, as one paragraph."""

from collections import Counter

from rlhf.compare.report import Report, Row, title, trained
from rlhf.evaluation.statistics import told_apart

EXTRAPOLATED = 0.1  # overlap in length below which a rate at equal length is a guess


def conclusion(report: Report) -> str:
    """One paragraph; each claim holds for these numbers only, and says so."""
    arms = trained(report)
    pair = next((row for row in report["win_rates"] if {row["first"], row["second"]} == {"dpo", "ppo"}), None)
    parts = _who_wins(pair, len(report["win_rates"]))
    if pair is not None:
        parts += _equal_kl(report, _winner(pair))
    parts += _baselines(report["win_rates"], arms)
    parts += [_over(arm, report["overoptimization"].get(arm) or {}) for arm in arms]
    return " ".join([*parts, *_costs(report), *_alerts(report["alerts"], report["failed"]), *_scope(report)])


def _winner(pair: Row) -> str | None:
    if pair["rate"] is None or not told_apart(pair["low"], pair["high"], pair["p_corrected"]):
        return None
    return pair["first"] if pair["rate"] > 0.5 else pair["second"]


def _who_wins(pair: Row | None, comparisons: int) -> list[str]:
    if pair is None or pair["rate"] is None:
        return ["PPO and DPO were not judged against each other, so nothing here says which is better."]
    winner = _winner(pair)
    first = winner or pair["first"]
    second = pair["second"] if first == pair["first"] else pair["first"]
    rate, low, high = _for(first, pair, pair)
    numbers = f"95% interval {low:.1%} to {high:.1%}, p = {pair['p_corrected']:.2g} corrected for {comparisons} pairs"
    if winner:
        claim = [f"{title(first)} is preferred to {title(second)}: its win rate is {rate:.1%} ({numbers})."]
    else:
        enough = pair["prompts_to_settle"]
        advice = f"About {enough:,} prompts would settle it." if enough else "More prompts alone would not settle it."
        apart = f"These data do not tell {title(first)} and {title(second)} apart"
        claim = [f"{apart}: the win rate of {title(first)} is {rate:.1%} ({numbers}).", advice]
    return claim + _equal_length(first, winner, pair)


def _for(policy: str, pair: Row, side: Row) -> tuple[float, float, float]:
    """Rate and interval from the side of `policy`."""
    rate, low, high = side["rate"], side["low"], side["high"]
    return (rate, low, high) if policy == pair["first"] else (1 - rate, 1 - high, 1 - low)


def _equal_length(policy: str, winner: str | None, pair: Row) -> list[str]:
    equal = pair.get("length_controlled")
    if not equal or equal["rate"] is None:
        return ["Whether length explains it was not measured."]
    rate, low, high = _for(policy, pair, equal)
    numbers = f"{rate:.1%}, {low:.1%} to {high:.1%}"
    at = "At equal length of the replies"
    if winner and low > 0.5:
        text = f"{at} its margin survives ({numbers})."
    elif winner and high < 0.5:
        text = f"{at} the preference is reversed ({numbers}): its margin is length."
    elif winner:
        text = f"{at} its margin is not established ({numbers}, which includes one half)."
    elif low > 0.5 or high < 0.5:
        text = f"{at} {title(policy)} would win {numbers}: length hides a difference."
    else:
        text = f"Equal length of the replies does not change that ({numbers})."
    if equal["overlap"] is not None and equal["overlap"] < EXTRAPOLATED:
        text += f" Hardly any replies overlap in length (overlap {equal['overlap']:.2f}), so this rate is extrapolated."
    return [text]


def _equal_kl(report: Report, winner: str | None) -> list[str]:
    rows = [row for row in report["equal_kl"] if row["low"] is not None and row["high"] is not None]
    if not rows:
        note = report.get("equal_kl_note") or "no KL was reached by both arms"
        return [f"They could not be compared at equal KL: {note.rstrip('.')}."]
    above = {"ppo": sum(row["low"] > 0 for row in rows), "dpo": sum(row["high"] < 0 for row in rows)}
    kls = [row["kl"] for row in rows]
    where = f"At equal KL from SFT ({len(rows)} points from {min(kls):.2g} to {max(kls):.2g} nats a reply)"
    if not any(above.values()):
        text = f"{where} the 95% interval of the difference in true preference includes 0 everywhere"
        return [text + ("; the margin may come from how far each arm moved." if winner else ".")]
    counts = " and ".join(f"{title(arm)} at {count or 'none'}" for arm, count in above.items())
    text = f"{where} the 95% interval of the difference in true preference favours {counts}."
    if winner:
        survives = above[winner] and not min(above.values())
        text += f" The margin {'survives' if survives else 'does not survive'} there."
    return [text]


def _baselines(pairs: list[Row], arms: list[str]) -> list[str]:
    """Each arm against what needs no training beyond SFT."""
    claims = []
    for pair in pairs:
        if (pair["first"] in arms) == (pair["second"] in arms) or pair["rate"] is None:
            continue
        winner = _winner(pair) or pair["first"]
        loser = pair["second"] if winner == pair["first"] else pair["first"]
        verb = "is preferred to" if _winner(pair) else "is not told apart from"
        claims.append(f"{title(winner)} {verb} {title(loser)} ({_for(winner, pair, pair)[0]:.1%})")
    return [f"Against the baselines: {', '.join(claims)}."] if claims else []


def _over(arm: str, over: Row) -> str:
    law, fall, signs = over.get("law"), over.get("fall"), []
    fell = bool(fall and fall["low"] is not None and fall["low"] > 0)
    if fall and fell:
        lost = f"from KL {fall['kl']:.2g} to its last checkpoint it lost {fall['mean']:.2f} points of true preference "
        signs.append(lost + f"(95% interval {fall['low']:.2f} to {fall['high']:.2f})")
    if law and law["turns"]:
        reach = f"while the data reach {law['furthest_kl']:.2g}"
        signs.append(f"the fitted law turns down at KL {law['peak_kl']:.2g} {reach}")
    if signs:
        return f"{title(arm)} {'was' if fell else 'may have been'} over-optimized: {' and '.join(signs)}."
    if not fall and not law:
        why = over.get("law_note") or "it has too few checkpoints"
        return f"Whether {title(arm)} was over-optimized cannot be told: {why.rstrip('.')}."
    return f"{title(arm)} shows no over-optimization as far as it was trained."


def _costs(report: Report) -> list[str]:
    seconds = {row["arm"]: row["seconds_a_trial"] for row in report["costs"]}
    claims = []
    if seconds.get("ppo") and seconds.get("dpo"):
        slow, fast = sorted(("ppo", "dpo"), key=lambda arm: -seconds[arm])
        times = f"{seconds[slow] / seconds[fast]:.1f} times as long as one of {title(fast)} "
        claims.append(f"A trial of {title(slow)} took {times}({seconds[slow]:,.0f} s against {seconds[fast]:,.0f} s).")
    if report.get("dpo_with_ppo_time"):
        claims.append(f"With PPO's time: {report['dpo_with_ppo_time'].rstrip('.')}.")
    return claims


def _alerts(alerts: list[Row], failed: list[dict[str, str]]) -> list[str]:
    text = "The monitor of reward hacking raised no alert."
    if alerts:
        counts = Counter(str(alert["level"]).replace("warn", "warning") for alert in alerts)
        levels = " and ".join(_count(counts[level], level) for level in sorted(counts))
        rules, trials = sorted({a["rule"] for a in alerts}), len({a["trial"] for a in alerts})
        text = f"The monitor of reward hacking raised {levels} in {_count(trials, 'trial')} ({', '.join(rules)})."
    return [text] + ([f"{_count(len(failed), 'trial')} failed and could not count."] if failed else [])


def _scope(report: Report) -> list[str]:
    setup = report["setup"]
    seeds, few = len(setup["seeds"]), "With fewer than 3 seeds the intervals are narrower than they should be."
    data = f"{_count(setup['prompts'], 'prompt')} and {_count(seeds, 'seed')} of {report['recipe']}"
    judged = f"judged by {setup['judge']} at temperature {setup['temperature']:g}"
    rates = Counter(row["arm"] for row in report.get("tuning", []))
    tuned = [f"Each arm's learning rate is the best of {_listed(rates)}, by other prompts than these."] if rates else []
    scope = f"All this rests on {data}, {judged}; it says nothing about other models, data, judges or settings."
    return [*tuned, few, scope] if seeds < 3 else [*tuned, scope]


def _listed(rates: Counter[str]) -> str:
    """`3`, or where some could not be trained `3 (DPO) and 2 (PPO)`."""
    if len(set(rates.values())) == 1:
        return str(next(iter(rates.values())))
    return " and ".join(f"{count} ({title(arm)})" for arm, count in sorted(rates.items()))


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")
