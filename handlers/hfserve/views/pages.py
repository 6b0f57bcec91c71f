"""An explanation as a page for people: one file of HTML without scripts, which loads nothing."""

from __future__ import annotations

import html
from collections.abc import Sequence

from hfserve.views import shades
from hfserve.views.explained import (
    NOTHING,
    Explained,
    Record,
    by_strength,
    cut,
    facts,
    number,
    pieces,
    said,
    sendable,
    strongest,
    title,
    visible,
    whole,
)

FEW = 3  # explanations of an input that are shown in full; more become rows to open
TOP = 3  # words in a row, to tell what is in it
LISTED = 20  # words in the table of a row

STYLE = """
:root{color-scheme:light dark;--soft:color-mix(in srgb,var(--ink) 72%,var(--paper));
  --rule:color-mix(in srgb,var(--ink) 14%,var(--paper));--wash:color-mix(in srgb,var(--ink) 5%,var(--paper))}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:1rem/1.6 system-ui,"Noto Sans",sans-serif;
  overflow-wrap:anywhere;print-color-adjust:exact;-webkit-print-color-adjust:exact}
main{max-width:46rem;margin:0 auto;padding:clamp(1.5rem,6vw,4rem) clamp(1.1rem,5vw,2rem)}
h1{font-size:1.75rem;line-height:1.25;font-weight:650;letter-spacing:-.015em;margin:0 0 1.25rem}
.item{margin-top:2.5rem;padding-top:.5rem;border-top:1px solid var(--rule)}
.input{font-size:1rem;color:var(--soft);font-weight:600;margin:1rem 0 .5rem}
.input+.head{margin-top:1rem}
.kind,.field,.legend,.facts,.warn,table,.more{font-size:.875rem}
.kind,.field,.facts,.legend,.score{color:var(--soft)}
.head{display:flex;flex-wrap:wrap;gap:.2em .7em;align-items:baseline;margin:2rem 0 .75rem;
  font-size:1.25rem;font-weight:650;line-height:1.35}
.head q,.head .score,.head .kind{font-weight:400}
.head .score{margin-inline-start:auto;font-size:1rem}
.score,td:last-child{font-variant-numeric:tabular-nums}
.field{margin:1.25rem 0 .25rem}
.text{font:1.25rem/2 Charter,"Bitstream Charter","Iowan Old Style",Georgia,"Noto Serif",serif,
  "Apple Color Emoji","Segoe UI Emoji","Noto Color Emoji";margin:0 0 1rem;
  white-space:pre-wrap;unicode-bidi:plaintext;text-align:start}
[class^=p],[class^=n]{background:var(--fill);border-radius:.2em;padding-block:.12em;
  text-decoration:underline solid var(--line) .11em;text-underline-offset:.22em;text-decoration-skip-ink:none;
  -webkit-box-decoration-break:clone;box-decoration-break:clone}
[class^=n]{text-decoration-style:dotted}
.legend{margin:0 0 2rem}
.scale{display:flex;align-items:center;gap:.75em;margin-bottom:.6em;color:var(--ink)}
.scale span,.top [class]{padding-inline:.25em}
.scale div{display:flex;flex:1;max-width:22rem}
.scale div i{flex:1;height:1em;border-radius:0;margin-inline-end:-1px;padding:0}
.warn{border-inline-start:3px solid var(--ink);background:var(--wash);padding:.6rem .9rem;margin:0 0 1rem}
.facts{margin:0 0 .5rem}
summary{cursor:pointer;border-radius:.25em}
summary:focus-visible{outline:2px solid var(--ink);outline-offset:2px}
.more>summary{color:var(--soft)}
table{border-collapse:collapse;margin:.5rem 0 1rem;min-width:min(20rem,100%)}
th,td{text-align:start;padding:.3rem 1.5rem .3rem 0;border-bottom:1px solid var(--rule);font-weight:400}
th{color:var(--soft)}
th:last-child,td:last-child{text-align:end;padding-inline-end:0}
caption{text-align:start;color:var(--soft)}
.whole{margin-bottom:1.5rem}
mark{color:inherit;background:var(--wash);font-weight:650;border-radius:.2em;padding-block:.12em}
.rows{list-style:none;margin:0;padding:0}
.rows>li+li{border-top:1px solid var(--rule)}
.row{padding:.4rem 0}
.row>summary{display:grid;grid-template-columns:.6rem minmax(4rem,11rem) 3rem 1fr;gap:.25rem .8rem;align-items:baseline}
.row>summary::before{content:"▸"/"";color:var(--soft)}
.row[open]>summary::before{content:"▾"/""}
.row b{font-weight:600}
.top{color:var(--soft);font-size:.875rem;display:flex;flex-wrap:wrap;gap:.25rem 1.25em}
.top bdi{color:var(--ink)}
.row[open]{padding-bottom:1.25rem}
.row[open] .top{display:none}
.row .text{margin-top:.5rem}
@media(max-width:34rem){.row>summary{grid-template-columns:.6rem 1fr auto}.top{grid-column:2/-1}}
@media print{main{max-width:none;padding:0}.row::details-content{content-visibility:visible}.head{break-after:avoid}
  .text,tr{break-inside:avoid}}
"""
LEGEND = f"""<div class="legend"><div class="scale"><span class="n10">against</span>
<div aria-hidden="true">{"".join(f'<i class="n{step}"></i>' for step in range(shades.LEVELS, 0, -1))}<i></i>\
{"".join(f'<i class="p{step}"></i>' for step in range(1, shades.LEVELS + 1))}</div><span class="p10">for</span></div>
Blue with a solid line speaks for what is explained, orange with a dotted line against it.
The strongest word of each explanation has the full shade. Point at a word for its number, or open the table.</div>"""

ROUGH = (
    '<p class="warn"><strong>Not converged.</strong> The scores are rough: '
    "ask for more steps with <code>n_steps</code>.</p>\n"
)


def html_page(items: Sequence[Explained]) -> str:
    """Return the page that shows the explanations of a request's inputs."""
    name = _text(title(items))
    parts = [_item(item, f"Input {i} of {len(items)}" if len(items) > 1 else "") for i, item in enumerate(items, 1)]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>{name}</title>
<style>{STYLE}{shades.style(_paper, _rule)}</style>
</head>
<body>
<main>
<h1>{"Explanation" if sum(len(item.records) for item in items) == 1 else name}</h1>
{LEGEND}
{"".join(parts)}</main>
</body>
</html>
"""


def _paper(scheme: shades.Scheme) -> str:
    return f":root{{--paper:{shades.css(scheme.paper)};--ink:{shades.css(scheme.ink)}}}"


def _rule(level: str, shade: shades.Shade) -> str:
    return f".{level}{{--fill:{shades.css(shade.background)};--line:{shades.css(shade.line)}}}"


def _item(item: Explained, name: str) -> str:
    heading = f'<h2 class="input">{name}</h2>\n' if name else ""
    if not item.records:
        body = _texts(item, None) + f'<p class="warn">{NOTHING}</p>\n'
    elif len(item.records) <= FEW:
        body = "".join(_head(record, "h3" if name else "h2") + _body(item, record) for record in item.records)
    else:
        body = f'{_whole(item)}<ol class="rows">\n{"".join(_row(item, record) for record in item.records)}</ol>\n'
    told = f'<p class="warn">{cut(item)}</p>\n' if cut(item) else ""
    return f'<section class="item">\n{heading}{told}{body}</section>\n'


def _head(record: Record, tag: str) -> str:
    kind, target, more = said(record)
    quote = f"<q>{_bdi(more)}</q> " if more else ""
    return (
        f'<{tag} class="head"><span class="kind">{kind}</span> {_bdi(target)} {quote}'
        f'<span class="score">{_score(record, "score ")}</span></{tag}>\n'
    )


def _whole(item: Explained) -> str:
    """What was read and written, once before the many explanations of its parts."""
    shown = "".join(f"<mark>{_text(piece)}</mark>" if explained else _text(piece) for piece, explained in whole(item))
    return f'<p class="text whole" dir="auto" lang="">{shown}</p>\n'


def _row(item: Explained, record: Record) -> str:
    """One of many explanations, to open."""
    _, target, more = said(record)
    size = strongest(record)
    top = "".join(
        f'<span><span class="{shades.level(word["score"], size)}">{_bdi(visible(word["text"]))}</span> '
        f"{number(word['score'])}</span> "
        for word in by_strength(record["words"])[:TOP]
    )
    name = f"<b>{_bdi(target)}</b> {_bdi(more)}" if more else f"<b>{_bdi(target)}</b>"
    return (
        f'<li><details class="row"><summary><span>{name}</span> <span class="score">{_score(record)}</span> '
        f'<span class="top">{top}</span></summary>\n{_body(item, record, LISTED)}</details></li>\n'
    )


def _body(item: Explained, record: Record, listed: int | None = None) -> str:
    warning = ROUGH if record["converged"] is False else ""
    return f'{warning}{_texts(item, record)}<p class="facts">{_text(facts(record))}</p>\n{_table(item, record, listed)}'


def _texts(item: Explained, record: Record | None) -> str:
    """Each text of an input, shaded by an explanation; the language of our words is not that of the texts."""
    top = strongest(record) if record else 0.0
    shown = []
    for name, text in item.texts.items():
        words = pieces(text, name, record["words"] if record else ())
        shaded = "".join(_piece(piece, word, top) for piece, word in words)
        label = f'<p class="field">{_text(name)}</p>\n' if len(item.texts) > 1 else ""
        shown.append(f'{label}<p class="text" dir="auto" lang="">{shaded}</p>\n')
    return "".join(shown)


def _piece(text: str, word: Record | None, top: float) -> str:
    if word is None:
        return _text(text)
    score = word["score"]
    return f'<span class="{shades.level(score, top)}" title="{number(score)}">{_text(text)}</span>'


def _table(item: Explained, record: Record, listed: int | None) -> str:
    """The words with their numbers, for who cannot point at them; `listed` limits it to the strongest."""
    several = len(item.texts) > 1
    words = by_strength(record["words"])
    rows = "".join(
        f"<tr><td>{_bdi(visible(word['text']))}</td>"
        + (f"<td>{_text(word.get('field', ''))}</td>" if several else "")
        + f"<td>{number(word['score'])}</td></tr>\n"
        for word in words[:listed]
    )
    names = ("word", "text", "number") if several else ("word", "number")
    header = "".join(f'<th scope="col">{name}</th>' for name in names)
    left = f"<caption>The {listed} strongest of {len(words)} words.</caption>" if listed and listed < len(words) else ""
    return (
        '<details class="more"><summary>Words and their numbers</summary>'
        f"<table>{left}<thead><tr>{header}</tr></thead><tbody>\n{rows}</tbody></table></details>\n"
    )


def _score(record: Record, name: str = "") -> str:
    score = record["prediction"].get("score")
    return "" if score is None else f"{name}{score:.3f}"


def _bdi(text: str) -> str:
    return f'<bdi lang="">{_text(text)}</bdi>'


def _text(text: str) -> str:
    """Escape a text, its carriage returns too, which the reader of a page would drop."""
    return html.escape(sendable(text)).replace("\r", "&#13;")
