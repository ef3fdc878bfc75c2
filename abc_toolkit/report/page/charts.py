"""The charts of a report, as specifications of Vega-Lite.

Vega-Lite draws and answers clicks by itself, so that a page needs no code of its own for it. Colors are names of the
page's style, which has others in the dark: `var(--first)` and so on. Large arrays stand flat in the data, and
transforms unfold what is chosen alone.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]
Rows = list[dict[str, Any]]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
PALETTE = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
_COLORS = [f"var(--{name})" for name in PALETTE]
_DARKEST = 0.55  # opacity of a shade behind a text
_FADED = 0.08  # opacity of what was not chosen in a legend
_CONFIG: Spec = {
    "background": None,
    "font": "system-ui, sans-serif",
    "axis": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "tickColor": "var(--line)",
        "domainColor": "var(--line)",
        "gridColor": "var(--line)",
        "titleFontWeight": "normal",
        "labelFontSize": 11.5,
        "titleFontSize": 12.5,
        "titlePadding": 8,
    },
    "legend": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "titleFontWeight": "normal",
        "symbolBaseFillColor": "currentColor",
        "symbolBaseStrokeColor": "currentColor",
        "orient": "top",
        "direction": "horizontal",
        "columns": {"expr": "width < 420 ? 2 : 4"},
        "labelLimit": 220,
        "symbolOpacity": 1,
        "labelFontSize": 12,
        "titleFontSize": 12.5,
    },
    "view": {"stroke": "var(--line)"},
}


@dataclass(frozen=True)
class Tokens:
    """What the queries or the keys of a map are called.

    Attributes:
        names: A name for each, all different.
        segments: The segment of each.
    """

    names: Sequence[str]
    segments: Sequence[str]


@dataclass(frozen=True)
class HeadMap:
    """The attention map of one head, and the window's lines in it.

    Attributes:
        site: The site and layer in words.
        head: The head.
        weights: Attention in percent, whole numbers, query by query.
        lines: For each cell the line that opens it, counted from 1; 0 where it is closed.
    """

    site: str
    head: int
    weights: Sequence[int]
    lines: Sequence[int]


@dataclass(frozen=True)
class OpenCells:
    """The open cells of one head of a window at one size.

    Attributes:
        size: The size in words.
        head: Site, layer and head in words.
        queries: The query of each cell.
        keys: Its key.
        lines: The line that opens it, counted from 1.
    """

    size: str
    head: str
    queries: Sequence[int]
    keys: Sequence[int]
    lines: Sequence[int]


@dataclass(frozen=True)
class Attended:
    """Where one head of a model looked in a sample problem.

    Attributes:
        problem: Name of the problem.
        layer: The layer.
        head: The head.
        weights: Attention in percent, whole numbers, query by query: to the source's tokens, then to those written.
    """

    problem: str
    layer: int
    head: int
    weights: Sequence[int]


@dataclass(frozen=True)
class Strip:
    """The tokens of a sample problem.

    Attributes:
        problem: Name of the problem.
        source: The source's tokens.
        written: The tokens of the answer as the model wrote them.
        right: The tokens that are right there.
    """

    problem: str
    source: Sequence[str]
    written: Sequence[str]
    right: Sequence[str]


def metric_by_length(
    rows: Sequence[Mapping[str, Any]], title: str, color: str, dash: str, trained: int | None, percent: bool, log: bool
) -> Spec:
    """A metric against the length, with intervals; what is clicked in a legend stands out.

    Args:
        rows: Rows with `length`, `value`, `low`, `high`, `samples`, `suite` and the two fields that tell lines apart.
        title: What the metric is called.
        color: The field that colors tell; `run` or `model`.
        dash: The field that dashes tell; `suite`, or `model`, with which the suite is chosen from a list.
        trained: The longest training length; `None` where it is not the same for all.
        percent: Whether values are shares.
        log: Whether values span several powers of ten.
    """
    values = [_finite(row) for row in rows]
    lengths = sorted({row["length"] for row in values})
    wide = bool(lengths) and lengths[-1] > 8 * lengths[0]
    suites = list(dict.fromkeys(row["suite"] for row in values))
    params: Rows = [_legend(f"{field}_chosen", field) for field in dict.fromkeys((color, dash))]
    chosen: Spec = {"and": [{"param": param["name"]} for param in params]}
    opacity: Spec = {"condition": {"test": chosen, "value": 1}, "value": _FADED}
    spec = _chart(f"{title} against length")
    if dash != "suite":
        spec["params"] = [_list("suite_shown", "suite", suites)]
        spec["transform"] = [{"filter": "datum.suite === suite_shown"}]
    x: Spec = {
        "field": "length",
        "type": "quantitative",
        "scale": {"nice": False, "padding": 12} | ({"type": "log"} if wide else {"zero": False}),
        "axis": {"title": "length", "values": lengths, "grid": False, "labelOverlap": True},
    }
    y: Spec = {"field": "value", "type": "quantitative", "title": title}
    if percent:
        y |= {"axis": {"format": "~%", "title": title}, "scale": {"domain": [0, 1]}}
    elif log:
        y |= {"scale": {"type": "log"}}
    told = ".1%" if percent else ".4g"
    tooltip = [{"field": field, "type": "nominal"} for field in dict.fromkeys(("run", "model", "suite", color, dash))]
    tooltip = [item for item in tooltip if values and item["field"] in values[0]]
    tooltip += [{"field": "length", "type": "quantitative"}]
    tooltip += [
        {"field": field, "type": "quantitative", "format": told, "title": name}
        for field, name in (("value", title), ("low", "95 % from"), ("high", "to"))
    ]
    tooltip += [{"field": "samples", "type": "quantitative", "title": "problems"}]
    names = list(dict.fromkeys(row[color] for row in values))
    dashes = list(dict.fromkeys(row[dash] for row in values))
    shared: Spec = {
        "x": x,
        "color": {
            "field": color,
            "type": "nominal",
            "scale": {"domain": names, "range": [_COLORS[i % len(_COLORS)] for i in range(len(names))]},
        },
        "opacity": opacity,
    }
    dashed: Spec = {
        "strokeDash": {
            "field": dash,
            "type": "nominal",
            "scale": {"domain": dashes, "range": [DASHES[i % len(DASHES)] for i in range(len(dashes))]},
        }
    }
    shaped: Spec = {"shape": {"field": dash, "type": "nominal", "scale": {"domain": dashes}}}
    layers: Rows = []
    if trained is not None:
        told_trained = {"value": f"the longest trained length, {trained}"}
        at = {"field": "length", "type": "quantitative", "scale": x["scale"]}
        rule: Spec = {"type": "rule", "strokeDash": [3, 3], "strokeWidth": 1.5, "color": "var(--quiet)"}
        data: Spec = {"values": [{"length": trained}]}
        layers.append({"data": data, "transform": [], "mark": rule, "encoding": {"x": at, "tooltip": told_trained}})
    ends: Spec = {"y": {"field": "low", "type": "quantitative", "title": title}, "y2": {"field": "high"}}
    layers.append({"mark": {"type": "rule", "strokeWidth": 1}, "encoding": shared | ends})
    layers.append({"mark": {"type": "line", "strokeWidth": 2}, "encoding": shared | {"y": y} | dashed})
    point: Spec = {"type": "point", "filled": True, "size": 70}
    layers.append({"params": params, "mark": point, "encoding": shared | {"y": y, "tooltip": tooltip} | shaped})
    return spec | {"height": 280, "data": {"values": values}, "layer": layers}


def metric_by_output(curves: Sequence[Mapping[str, Any]], title: str, percent: bool) -> Spec:
    """A metric output by output, such as at each point of a prompt; the suite is chosen from a list.

    Args:
        curves: Curves with `suite`, `model`, `values`, `low` and `high`.
        title: What the metric is called.
        percent: Whether values are shares.
    """
    suites = list(dict.fromkeys(curve["suite"] for curve in curves))
    models = list(dict.fromkeys(curve["model"] for curve in curves))
    values = [
        _finite({"suite": curve["suite"], "model": curve["model"], "output": i, "value": v, "low": low, "high": high})
        for curve in curves
        for i, (v, low, high) in enumerate(zip(curve["values"], curve["low"], curve["high"], strict=True), 1)
    ]
    told = ".1%" if percent else ".4g"
    y: Spec = {"field": "value", "type": "quantitative", "title": title, "scale": {"zero": not percent}}
    if percent:
        y["axis"] = {"format": "~%"}
    color: Spec = {
        "field": "model",
        "type": "nominal",
        "scale": {"domain": models, "range": [_COLORS[i % len(_COLORS)] for i in range(len(models))]},
    }
    x: Spec = {"field": "output", "type": "quantitative", "title": "point of the prompt", "axis": {"tickMinStep": 1}}
    opacity: Spec = {"condition": {"param": "model_chosen"}, "value": _FADED}
    tooltip: Rows = [
        {"field": "model", "type": "nominal"},
        {"field": "output", "type": "quantitative", "title": "point"},
        {"field": "value", "type": "quantitative", "title": title, "format": told},
        {"field": "low", "type": "quantitative", "title": "95 % from", "format": told},
        {"field": "high", "type": "quantitative", "title": "to", "format": told},
    ]
    return _chart(f"{title} point by point") | {
        "height": 260,
        "data": {"values": values},
        "params": [_list("suite_shown", "suite", suites)],
        "transform": [{"filter": "datum.suite === suite_shown"}],
        "layer": [
            {
                "params": [_legend("model_chosen", "model")],
                "mark": {"type": "line", "point": {"size": 30}},
                "encoding": {"x": x, "y": y, "color": color, "opacity": opacity, "tooltip": tooltip},
            }
        ],
    }


def attention_maps(
    maps: Sequence[HeadMap], queries: Mapping[str, Tokens], keys: Mapping[str, Tokens], lines: Sequence[str]
) -> Spec:
    """Attention maps, one at a time: site and layer, and the head, are chosen; the window's lines are outlined.

    Args:
        maps: The maps.
        queries: The queries of each site and layer.
        keys: The keys.
        lines: The window's lines in words.
    """
    sites = list(dict.fromkeys(one.site for one in maps))
    heads = sorted({one.head for one in maps})
    first = next((one for one in maps if any(one.lines)), maps[0])
    values = [{"site": m.site, "head": m.head, "w": list(m.weights), "r": list(m.lines)} for m in maps]
    named = [{"site": site, "queries": list(queries[site].names), "keys": list(keys[site].names)} for site in sites]
    spec = _chart("An attention map, with the window's lines outlined")
    spec["params"] = [
        _list("site_shown", "attention", sites, first.site),
        _list("head_shown", "head", heads, first.head, buttons=True),
        {"name": "lines_told", "value": ["", *lines]},
    ]
    spec["transform"] = [
        {"filter": "datum.site === site_shown && datum.head === head_shown"},
        {"flatten": ["w", "r"]},
        {"window": [{"op": "row_number", "as": "i"}]},
        _lookup("site", named, ("queries", "keys")),
        {"calculate": "floor((datum.i - 1) / length(datum.keys))", "as": "q"},
        {"calculate": "(datum.i - 1) % length(datum.keys)", "as": "k"},
        {"calculate": "datum.queries[datum.q]", "as": "query"},
        {"calculate": "datum.keys[datum.k]", "as": "key"},
        {"calculate": "datum.w / 100", "as": "weight"},
        {"calculate": "lines_told[datum.r]", "as": "line"},
    ]
    tooltip: Rows = [
        {"field": "query", "type": "nominal"},
        {"field": "key", "type": "nominal"},
        {"field": "weight", "type": "quantitative", "title": "attention", "format": ".0%"},
        {"field": "line", "type": "nominal", "title": "line of the window"},
    ]
    heat: Spec = {
        "field": "weight",
        "type": "quantitative",
        "scale": {"domain": [0, 1], "range": [0, 1]},
        "legend": None,
    }
    cells = _cell_axes("the token that is predicted", "the token looked at")
    return spec | {
        "height": _height(queries.values()),
        "data": {"values": values},
        "encoding": cells,
        "layer": [
            {
                "mark": {"type": "rect", "color": "var(--heat)"},
                "encoding": {"fillOpacity": heat, "tooltip": tooltip},
            },
            {
                "transform": [{"filter": "datum.r > 0"}],
                "mark": {"type": "rect", "fillOpacity": 0, "stroke": "var(--second)", "strokeWidth": 1.6},
                "encoding": {"tooltip": tooltip},
            },
        ],
    }


def window(
    cells: Sequence[OpenCells],
    queries: Mapping[tuple[str, str], Tokens],
    keys: Mapping[tuple[str, str], Tokens],
    lines: Sequence[str],
) -> Spec:
    """The open cells of a window, one head at one size at a time; a color tells the segment of the key.

    Args:
        cells: The cells.
        queries: The queries that are shown, of each size and head.
        keys: The keys.
        lines: The window's lines in words.
    """
    sizes = list(dict.fromkeys(one.size for one in cells))
    heads = list(dict.fromkeys(one.head for one in cells))
    segments = list(dict.fromkeys(name for own in keys.values() for name in own.segments))
    values = [
        {"at": f"{own.size}/{own.head}", "q": list(own.queries), "k": list(own.keys), "r": list(own.lines)}
        for own in cells
        if own.queries
    ]
    named = [
        {
            "at": f"{size}/{head}",
            "queries": list(queries[size, head].names),
            "keys": list(keys[size, head].names),
            "segments": list(keys[size, head].segments),
        }
        for size in sizes
        for head in heads
        if (size, head) in queries
    ]
    shown: Spec = {"filter": "datum.at === size_shown + '/' + head_shown"}
    unfolded: Rows = [
        shown,
        {"flatten": ["q", "k", "r"]},
        _lookup("at", named, ("queries", "keys", "segments")),
        {"calculate": "datum.queries[datum.q]", "as": "query"},
        {"calculate": "datum.keys[datum.k]", "as": "key"},
        {"calculate": "datum.segments[datum.k]", "as": "segment"},
        {"calculate": "lines_told[datum.r]", "as": "line"},
    ]
    spec = _chart("The open keys of a head of the window")
    spec["params"] = [
        _list("head_shown", "head", heads),
        _list("size_shown", "size", sizes),
        {"name": "lines_told", "value": ["", *lines]},
    ]
    axes = _cell_axes("the token that is predicted", "the token that may be looked at")
    color: Spec = {
        "field": "segment",
        "type": "nominal",
        "title": "segment of the key",
        "scale": {"domain": segments, "range": [_COLORS[i % len(_COLORS)] for i in range(len(segments))]},
    }
    tooltip: Rows = [{"field": name, "type": "nominal"} for name in ("query", "key", "line")]
    # Tokens without an open cell have their place too.
    return spec | {
        "height": _height(queries.values()),
        "layer": [
            *(
                {
                    "data": {"values": named},
                    "transform": [
                        shown,
                        {"flatten": [field], "as": [name]},
                        {"window": [{"op": "row_number", "as": "i"}]},
                        {"calculate": "datum.i - 1", "as": number},
                    ],
                    "mark": {"type": "point", "opacity": 0, "tooltip": None},
                    "encoding": {channel: axes[channel]},
                }
                for channel, field, name, number in (("y", "queries", "query", "q"), ("x", "keys", "key", "k"))
            ),
            {
                "data": {"values": values},
                "transform": unfolded,
                "mark": {"type": "rect"},
                "encoding": axes | {"color": color, "tooltip": tooltip},
            },
        ],
    }


def attended_tokens(attended: Sequence[Attended], strips: Sequence[Strip]) -> Spec:
    """The tokens of a sample problem, shaded by the attention under which a chosen token of the answer was written.

    The token is chosen by a click or by a slider.

    Args:
        attended: Where heads looked.
        strips: The tokens of the problems.
    """
    problems = [strip.problem for strip in strips]
    layers, heads = sorted({one.layer for one in attended}), sorted({one.head for one in attended})
    values = [{"problem": a.problem, "layer": a.layer, "head": a.head, "w": list(a.weights)} for a in attended]
    sizes: Rows = [{"problem": s.problem, "s": len(s.source), "n": len(s.source) + len(s.written)} for s in strips]
    tokens: Rows = []
    for strip in strips:
        given, written = {"problem": strip.problem, "row": "problem"}, {"problem": strip.problem, "row": "answer"}
        tokens += [given | {"x": i, "text": token, "state": "given"} for i, token in enumerate(strip.source)]
        tokens.append(written | {"x": 0, "text": "▸", "state": "start"})
        tokens += [
            written | {"x": i + 1, "text": token, "q": i, "state": "right" if token == right else f"wrong, not {right}"}
            for i, (token, right) in enumerate(zip(strip.written, strip.right, strict=True))
        ]
    spec = _chart("Where the model looked when it wrote the chosen token")
    spec["params"] = [
        _list("problem_shown", "problem", problems),
        _list("layer_shown", "layer", layers, buttons=True),
        _list("head_shown", "head", heads, buttons=True),
    ]
    longest = max(len(strip.written) for strip in strips)
    digit: Spec = {
        "name": "token",
        "select": {"type": "point", "fields": ["q"], "on": "click", "toggle": False, "clear": False},
        "value": [{"q": 0}],
        "bind": {"q": {"input": "range", "min": 0, "max": longest - 1, "step": 1, "name": "token of the answer"}},
    }
    widest = max(max(len(strip.source), len(strip.written) + 1) for strip in strips)
    small = 14 if widest <= 24 else 10
    x: Spec = {"field": "x", "type": "ordinal", "axis": None, "scale": {"paddingInner": 0.06}}
    y: Spec = {
        "field": "row",
        "type": "ordinal",
        "sort": ["problem", "answer"],
        "axis": {"title": None, "domain": False, "ticks": False},
        "scale": {"paddingInner": 0.25},
    }
    this: Spec = {"filter": "datum.problem === problem_shown"}
    shade: Spec = {
        "data": {"values": values},
        "transform": [
            {"filter": "datum.problem === problem_shown && datum.layer === layer_shown && datum.head === head_shown"},
            {"flatten": ["w"]},
            {"window": [{"op": "row_number", "as": "i"}]},
            _lookup("problem", sizes, ("s", "n")),
            {"calculate": "floor((datum.i - 1) / datum.n)", "as": "q"},
            {"calculate": "(datum.i - 1) % datum.n", "as": "k"},
            {"filter": {"param": "token"}},
            {"calculate": "datum.k < datum.s ? 'problem' : 'answer'", "as": "row"},
            {"calculate": "datum.k < datum.s ? datum.k : datum.k - datum.s", "as": "x"},
            {"calculate": "datum.w / 100", "as": "weight"},
        ],
        "mark": {"type": "rect", "color": "var(--heat)", "cornerRadius": 2},
        "encoding": {
            "x": x,
            "y": y,
            "fillOpacity": {
                "field": "weight",
                "type": "quantitative",
                "scale": {"domain": [0, 1], "range": [0, _DARKEST]},
                "legend": None,
            },
            "tooltip": {"field": "weight", "type": "quantitative", "title": "attention", "format": ".0%"},
        },
    }
    text: Spec = {
        "data": {"values": tokens},
        "transform": [this],
        "mark": {"type": "text", "fontSize": small, "font": "ui-monospace, monospace"},
        "encoding": {
            "x": x,
            "y": y,
            "text": {"field": "text", "type": "nominal"},
            "color": {
                "condition": {"test": "slice(datum.state, 0, 5) === 'wrong'", "value": "var(--wrong)"},
                "value": "currentColor",
            },
        },
    }
    outline: Spec = {
        "data": {"values": tokens},
        "transform": [this, {"filter": "isValid(datum.q)"}],
        "params": [digit],
        "mark": {"type": "rect", "fill": "transparent", "cursor": "pointer", "cornerRadius": 2},
        "encoding": {
            "x": x,
            "y": y,
            "stroke": {"condition": {"param": "token", "value": "var(--second)"}, "value": "var(--line)"},
            "strokeWidth": {"condition": {"param": "token", "value": 2.5}, "value": 0.6},
            "tooltip": [{"field": name, "type": "nominal"} for name in ("text", "state")],
        },
    }
    return spec | {"height": 96, "layer": [shade, text, outline]}


def _chart(description: str) -> Spec:
    """What all charts begin with: they are as wide as the page gives them room."""
    return {
        "$schema": SCHEMA,
        "description": description,
        "width": "container",
        # Names of other tokens need other margins.
        "autosize": {"type": "fit-x", "contains": "padding", "resize": True},
        "config": _CONFIG,
    }


def _legend(name: str, field: str) -> Spec:
    """A choice by clicks in the legend of a field."""
    return {"name": name, "select": {"type": "point", "fields": [field]}, "bind": "legend"}


def _list(name: str, label: str, options: Sequence[Any], first: Any = None, buttons: bool = False) -> Spec:
    """A choice from a list."""
    kind = "radio" if buttons and len(options) <= 12 else "select"
    spec: Spec = {"name": name, "value": options[0] if first is None else first}
    return spec | ({"bind": {"input": kind, "options": list(options), "name": label}} if len(options) > 1 else {})


def _lookup(key: str, values: Rows, fields: Sequence[str]) -> Spec:
    return {"lookup": key, "from": {"data": {"values": values}, "key": key, "fields": list(fields)}}


def _cell_axes(queries: str, keys: str) -> Spec:
    """The axes of a map, along which tokens are named in their order."""
    axis: Spec = {"labelOverlap": True, "domain": False, "ticks": False, "labelFontSize": 10.5, "labelLimit": 120}
    return {
        "x": {
            "field": "key",
            "type": "ordinal",
            "sort": {"field": "k", "op": "min"},
            "axis": axis | {"title": keys, "labelAngle": -60},
        },
        "y": {
            "field": "query",
            "type": "ordinal",
            "sort": {"field": "q", "op": "min"},
            "axis": axis | {"title": queries},
        },
    }


def _height(queries: Iterable[Tokens]) -> Spec:
    """Height of a map, by the height of a cell."""
    return {"step": 20 if max(len(own.names) for own in queries) <= 24 else 14}


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with nothing in place of numbers that JSON has not."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
