"""The pictures of a comparison: the numbers of the report where they belong, units on every axis, nothing on top of anything."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Text

from rlhf.compare import figures
from rlhf.compare.report import by_order
from rlhf.output import plots
from tests.compare.helpers import synthetic_report

NAMES = ("frontier", "overoptimization", "win_rates", "behaviours", "costs")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """`shown(report)`: draw it and return the figures as they were saved, by name."""
    folder = tmp_path_factory.mktemp("figures")

    def show(report):
        before = plt.get_fignums()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plt, "close", lambda figure: None)
            drawn = figures.draw(folder, report)
        assert sorted(file.name for file in folder.glob("*.png")) == sorted(f"{name}.png" for name in drawn)
        return dict(zip(drawn, map(plt.figure, sorted(set(plt.get_fignums()) - set(before))), strict=True))

    yield show
    plt.close("all")


@pytest.fixture(scope="module")
def drawn(shown):
    """The pictures of the unchanged report."""
    return shown(synthetic_report())


def texts(figure) -> list[Text]:
    """All that can be read, without the ticks beyond the limits of an axis, which are not drawn."""
    found = [*figure.texts, figure._supxlabel, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        found += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [
                tick.label1
                for tick in axis.get_major_ticks()
                if low <= tick.get_loc() <= high and tick.label1.get_visible()
            ]
    return [text for text in dict.fromkeys(found) if text is not None and text.get_text().strip()]


def series(axes) -> dict[str, ErrorbarContainer]:
    return {c.get_label(): c for c in axes.containers if isinstance(c, ErrorbarContainer)}


def spans(bars: ErrorbarContainer) -> np.ndarray:
    """`[points, 2]` ends of the intervals drawn."""
    segments = np.array(bars.lines[2][0].get_segments())
    return segments[:, :, 0 if bars.has_xerr else 1]


def test_every_picture_names_its_units_and_no_text_overlaps_or_is_small(drawn):
    assert tuple(drawn) == NAMES
    for name, figure in drawn.items():
        labels = [figure.get_supxlabel(), *(text() for a in figure.axes for text in (a.get_xlabel, a.get_ylabel))]
        units = ("nats a reply", "points", "share of prompts", "seconds", "minutes", "millions")
        assert all(any(unit in label for unit in units) for label in labels if label), labels
        assert all(a.get_xlabel() for a in figure.axes) or figure.get_supxlabel()
        box, found = figure.bbox, [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
        assert min(text.get_fontsize() for text in texts(figure)) >= 9
        assert len(found) > 10
        for text, where in found:
            assert where.x0 >= 0 and where.x1 <= box.x1 + 1 and where.y0 >= 0 and where.y1 <= box.y1 + 1, (name, text)
        for (one, a), (other, b) in combinations(found, 2):
            assert not a.overlaps(b) or a.padded(-3).width <= 0 or not a.padded(-3).overlaps(b.padded(-3)), (
                name,
                one,
                other,
            )
        if name != "costs":  # its bars carry their numbers and their arms
            assert figure.legends and figure.legends[0].get_texts()


def test_the_frontier_shows_the_mean_of_the_seeds_with_its_interval(drawn):
    report = synthetic_report()
    (axes,) = drawn["frontier"].axes
    found = series(axes)
    settings = [f"DPO, beta {b}" for b in ("0.1", "0.3", "1")] + [f"PPO, kl_coef {k}" for k in ("0.02", "0.1", "0.3")]
    assert list(found) == [*settings, "best-of-n", "SFT"]
    rows = [r for r in report["frontier"] if r["arm"] == "ppo" and r["setting"] == 0.1 and r["step"] == 100]
    assert len(rows) == 3
    x, y = found["PPO, kl_coef 0.1"].lines[0].get_xydata()[1]
    mean = {key: np.mean([row[key] for row in rows]) for key in ("kl", "gold", "gold_low", "gold_high")}
    assert (x, y) == pytest.approx((mean["kl"] ** 0.5, mean["gold"]))
    assert spans(found["PPO, kl_coef 0.1"])[1] == pytest.approx([mean["gold_low"], mean["gold_high"]])
    assert found["best-of-n"].lines[0].get_xydata()[0] == pytest.approx([0, 1.7])  # best of one is SFT
    seeds = [line for line in axes.lines if line.get_alpha() is not None]
    assert [len(line.get_xdata()) for line in seeds] == [36, 36]
    (ring,) = [line for line in axes.lines if line.get_label() == "chosen checkpoint"]
    assert len(ring.get_xdata()) == 2
    fills = [to_rgb(found[label].lines[0].get_markerfacecolor()) for label in settings[:3]]
    assert fills[0] == (1, 1, 1) and fills[2] == pytest.approx(to_rgb(figures._style("dpo")[2]))


def test_a_print_in_black_and_white_keeps_the_policies_apart():
    lines, markers, colours = zip(*plots.STYLES, strict=True)
    assert len(set(lines)) == len(set(markers)) == len(plots.STYLES)
    lightness = sorted(np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) for colour in colours)
    assert min(np.diff(lightness)) > 0.12
    policies = ("dpo", "ppo", "best-of-16", "sft", "somebody")  # the last is of none of the names that have a place
    assert len({figures._style(policy) for policy in policies}) == len(policies)
    assert by_order(["somebody", *policies[:4]]) == list(policies)


def test_gains_count_from_sft_of_the_same_seed_and_the_peak_is_where_the_report_says(drawn):
    report = synthetic_report()
    grid = np.array(drawn["overoptimization"].axes).reshape(2, 2)
    start = {row["seed"]: row for row in report["frontier"] if row["arm"] == "sft"}
    rows = [r for r in report["frontier"] if r["arm"] == "ppo" and r["setting"] == 0.02 and r["step"] == 200]
    for axes, key in zip(grid[:, 1], ("proxy", "gold"), strict=True):
        last = series(axes)["PPO, kl_coef 0.02"].lines[0].get_xydata()[-1]
        assert last[1] == pytest.approx(np.mean([row[key] - start[row["seed"]][key] for row in rows]))
        assert np.ptp(spans(series(axes)["PPO, kl_coef 0.02"])[-1]) == pytest.approx(0.24 if key == "gold" else 0)
    law = report["overoptimization"]["ppo"]["law"]
    for axes in grid[:, 1]:
        (peak,) = [line for line in axes.lines if line.get_label() == "its peak"]
        assert peak.get_xdata()[0] == pytest.approx(law["peak_kl"] ** 0.5)
    (fitted,) = [line for line in grid[1, 1].lines if line.get_label() == "law fitted to the gold"]
    d = law["furthest_kl"] ** 0.5
    assert fitted.get_xydata()[-1] == pytest.approx([d, d * (law["alpha"] - law["beta"] * np.log(d))])
    assert not [line for line in grid[1, 0].lines if line.get_label() == "its peak"], "DPO's lies beyond its data"


def test_win_rates_and_behaviours_show_each_interval(drawn):
    (axes,) = drawn["win_rates"].axes
    assert [tick.get_text() for tick in axes.get_yticklabels()][:2] == ["PPO over DPO", "DPO over SFT"]
    assert spans(series(axes)["raw"])[0] == pytest.approx([0.55, 0.66])
    assert spans(series(axes)["length-controlled"])[0] == pytest.approx([0.53, 0.64])
    assert [line.get_xdata()[0] for line in axes.lines if line.get_label() == "no difference"] == [0.5]
    (axes,) = drawn["behaviours"].axes
    assert list(series(axes)) == ["DPO", "PPO", "best-of-16", "SFT"]
    assert spans(series(axes)["PPO"])[1] == pytest.approx([2.55, 2.85])


def test_costs_carry_their_numbers(drawn):
    numbers = [[t.get_text() for t in axes.texts] for axes in drawn["costs"].axes]
    assert numbers == [["150", "620", "40"], ["22", "94", "4"], ["0", "1.85", "0.61"], ["0.4", "2.1", "0"]]


def test_what_the_report_lacks_is_not_drawn_and_an_old_picture_goes(tmp_path):
    for name in NAMES:
        (tmp_path / f"{name}.png").write_text("of an earlier report")
    empty = synthetic_report() | {"frontier": [], "win_rates": [], "behaviours": {}, "costs": []}
    assert figures.draw(tmp_path, empty) == {} and list(tmp_path.iterdir()) == []


def test_a_thin_report_is_still_drawn(shown):
    """One seed, one setting, no SFT, no law, no interval, a sampled KL below 0 and a checkpoint without a gold score."""
    report = synthetic_report()
    rows = [r for r in report["frontier"] if r["arm"] == "dpo" and r["seed"] == 1 and r["setting"] == 0.3]
    rows[0]["kl"], rows[1]["gold"], rows[2]["gold_low"] = -0.01, None, None
    report |= {"frontier": rows, "overoptimization": {}}
    report["win_rates"] = [report["win_rates"][0] | {"length_controlled": None, "low": None, "high": None}]
    drawn = shown(report)
    assert tuple(drawn) == ("frontier", "win_rates", "behaviours", "costs")
    points = series(drawn["frontier"].axes[0])["DPO, beta 0.3"].lines[0].get_xydata()
    assert len(points) == 3 and points[0][0] == 0
    assert list(series(drawn["win_rates"].axes[0])) == ["raw"]
