"""The pages and pictures of explanations as text: what is escaped, kept whole, shaded and left out."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from hfserve.views import shades
from hfserve.views.explained import Explained, characters, pieces, plain_text, upstream_shape
from hfserve.views.layout import cells, lines, merged, ordered
from hfserve.views.pages import html_page
from hfserve.views.pictures import LINES, RECORDS, svg_picture

from tests.explanations import answered, explained, generated, named, record, words

NASTY = "<script>alert(1)</script> \"a\" & 'b' </title></style> <img src=x onerror=alert(1)> &amp;"
FAMILY = "👨‍👩‍👧‍👦"
HEBREW = "המלון Hilton היה נפלא (120 שקל)."
CUT = {"tokens": 2803, "used": 512}
SHADES = [(scheme, score / 20) for scheme in (shades.LIGHT, shades.DARK) for score in range(-20, 21)]


class Page(HTMLParser):
    """The tags and the visible text of a page, and the texts that are shaded."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.shaded, self.inside = set(), [], "", [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes.append((tag, dict(attrs)))
        self.inside = tag if tag in ("style", "title") else self.inside
        if dict(attrs).get("class") == "text":
            self.shaded.append("")
            self.inside = "text"

    def handle_endtag(self, tag):
        self.inside = "" if tag in ("style", "title", "p") else self.inside

    def handle_data(self, data):
        self.text += "" if self.inside == "style" else data
        if self.inside == "text":
            self.shaded[-1] += data


def nasty():
    """An item with the nasty text wherever a client or a model can put one."""
    both = words(NASTY, [0.5, -0.5] * 9, field=NASTY)
    prediction = {"answer": NASTY, "score": 0.5, "start": 0, "end": 1}
    return Explained({NASTY: NASTY, "text": NASTY}, [record(both, NASTY, prediction, method=NASTY)], lone=False)


def drawn(item):
    """The texts of an item's picture."""
    return [element.text for element in ET.fromstring(svg_picture([item])).iter("{http://www.w3.org/2000/svg}text")]


def marked(page):
    """(title, text) of each shaded word."""
    return re.findall(r'<span class="[pn]\d+" title="([^"]*)">([^<]*)</span>', page)


def contrast(one, other):
    """WCAG 2's contrast ratio."""
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    parts = [part / 255 for part in colour]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


# --- the colours ------------------------------------------------------------------------------------------------------


def test_a_word_and_the_line_under_it_can_be_seen_on_every_shade():
    for scheme, score in SHADES:
        shade = shades.shade(score, scheme)
        assert contrast(shade.background, shade.ink) >= 4.5, score
        assert contrast(shade.background, shade.line) >= 3 or not score, score


def test_a_shade_tells_the_sign_and_the_size():
    assert shades.shade(0).background == shades.LIGHT.paper
    assert shades.shade(1).background == shades.shade(7).background == shades.LIGHT.positive[0]
    assert shades.shade(-1).background == shades.LIGHT.negative[0]
    red, _, blue = shades.shade(0.5).background
    assert blue > red
    red, _, blue = shades.shade(-0.5).background
    assert red > blue


def test_the_strongest_word_has_the_full_shade():
    assert [shades.level(score, 0.4) for score in (0.4, -0.4, 0.2, 0.01, 0.0)] == ["p10", "n10", "p5", "z", "z"]
    assert shades.level(0.0, 0.0) == "z"
    assert 'class="n10" title="−0.020">cold' in html_page([explained("cold coffee", -0.02, 0.01)])


# --- what is shown ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [NASTY, HEBREW, f"a {FAMILY} b", "one\ntwo\r\n\r three\t.", "", " ", "🇩🇪🇫🇷 e\u0301", "字" * 300],
    ids=["nasty", "hebrew", "emoji", "breaks", "empty", "blank", "marks", "chinese"],
)
def test_the_page_shows_the_text_as_sent(text):
    page = Page(html_page([explained(text, *[0.3, -0.2] * 20)]))
    assert page.shaded == [text]
    assert not page.tags & {"script", "img", "link", "iframe"}


def test_nothing_of_a_client_is_markup():
    page = Page(html_page([nasty()]))
    assert not page.tags & {"script", "img"}
    assert page.shaded == [NASTY, NASTY]
    assert page.text.count(NASTY) > 5  # in the title, the heading, the name of the text ...
    assert not any(name.startswith("on") for _, attributes in page.attributes for name in attributes)
    assert "<script>" not in svg_picture([nasty()])
    assert "".join(drawn(nasty())).count("</style>") >= 2


def test_a_page_names_its_language_its_policy_and_itself():
    page = html_page([explained("so good", 0.1, 0.9)])
    assert '<html lang="en">' in page
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'\"" in page
    assert "<title>Explanation of POSITIVE</title>" in page
    assert '<p class="text" dir="auto" lang="">' in page


def test_the_numbers_are_beside_the_words():
    page = html_page([explained("so good but late", 0.0, 0.9, 0.1, -0.41)])
    assert marked(page) == [("+0.900", "good"), ("+0.100", "but"), ("−0.410", "late")]
    assert '<tr><td><bdi lang="">late</bdi></td><td>−0.410</td></tr>' in page
    assert "Layer integrated gradients, 24 steps. Convergence delta 0.003. Output 3.9, −0.2 for the baseline." in page
    assert "Not converged" not in page


@pytest.mark.parametrize("show", [html_page, svg_picture])
def test_what_did_not_converge_says_so(show):
    assert "Not converged" in show([explained("so", 0.1, converged=False)])


@pytest.mark.parametrize("show", [html_page, svg_picture])
def test_shares_that_need_not_add_up_have_no_delta(show):
    shown = show([explained("so", 0.1, method="occlusion", converged=None, n_steps=None)])
    assert "Occlusion. Output 3.9, −0.2 for the baseline." in shown
    assert "gradients, 1 step. Convergence delta" in show([explained("so", 0.1, n_steps=1)])


@pytest.mark.parametrize("show", [html_page, svg_picture])
def test_scores_of_zero_and_no_words_are_shown(show):
    assert "so" in show([explained("so what", 0.0, 0.0)])
    assert "what" in show([explained("so what")])


@pytest.mark.parametrize("show", [html_page, svg_picture])
def test_a_text_without_explanations_is_shown_and_says_so(show):
    shown = show([Explained({"text": "Nobody"}, [], lone=False), explained("so", 0.4)])
    assert "Nobody" in shown
    assert "Nothing was found in this input" in shown


@pytest.mark.parametrize("show", [html_page, svg_picture])
@pytest.mark.parametrize("tokens", [1, 2, 30])
def test_what_was_cut_is_told_once_for_each_input(show, tokens):
    shown = show([generated("The fox", ["."] * tokens, truncated=CUT), generated("A fox", ["."])])
    assert shown.count("The model saw 512 of 2,803 tokens.") == 1
    assert "The model saw" not in show([explained("so", 0.4)])


def test_every_token_of_a_generation_has_a_row():
    page = Page(html_page([generated("The quick fox", [" dog", "\n", "<b>"] * 100)]))
    assert page.shaded == ["The quick fox"] * 300
    assert sum(attributes.get("class") == "row" for _, attributes in page.attributes) == 300
    assert "⏎" in page.text


def test_before_many_explanations_stands_what_was_read_and_written():
    page = html_page([generated("The <i> fox", [" met", " a", "\n", " <b>dog"])])
    assert '<p class="text whole" dir="auto" lang="">The &lt;i&gt; fox<mark> met a\n &lt;b&gt;dog</mark></p>' in page
    page = html_page([named("Ada met Ben & Cleo, not Dora.", "Ada", "Dora", "Ben", "Cleo")])
    marked = "<mark>Ada</mark> met <mark>Ben</mark> &amp; <mark>Cleo</mark>, not <mark>Dora</mark>."
    assert page.count(marked) == 1
    assert page.index(marked) < page.index('<ol class="rows">')
    assert "<mark>" not in html_page([generated("The fox", ["."])])


@pytest.mark.parametrize(
    ("items", "name"),
    [
        ([generated("The fox", [" met", " a", "\n", "dog"])], "Why the model wrote “\u2068met a dog\u2069”"),
        ([generated("The fox", ["字" * 99] * 4)], f"Why the model wrote “\u2068{'字' * 60}…\u2069”"),
        ([answered()], "Why the answer is “\u2068Paris\u2069”"),
        ([named("Ada met Ben", "Ada", "Ben")], "2 entities"),
        ([named("Ada met Ben", "Ada", "Ben"), explained("so", 0.1)], "3 explanations"),
        ([Explained({"text": "x"}, [], lone=False)], "No explanations"),
    ],
)
def test_the_heading_says_what_is_explained(items, name):
    page = html_page(items)
    assert f"<title>{name}</title>" in page
    assert f"<h1>{name}</h1>" in page
    assert f"<title>{name}</title>" in svg_picture(items)


def test_a_word_belongs_to_the_text_it_names():
    page = html_page([answered("Paris or", "Paris is")])
    assert [text for _, text in marked(page)[:4]] == ["Paris", "or", "Paris", "is"]
    assert Page(page).shaded == ["Paris or", "Paris is"] * 2


# --- pieces -----------------------------------------------------------------------------------------------------------


def word(start, end, **more):
    return {"text": "?", "start": start, "end": end, "score": 0.1} | more


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], ["abcdef"]),
        ([(2, 4)], ["ab", "[cd]", "ef"]),
        ([(4, 6), (0, 2)], ["[ab]", "cd", "[ef]"]),
        ([(0, 4), (2, 6)], ["[abcd]", "[ef]"]),
        ([(0, 6), (2, 4)], ["[abcdef]"]),
        ([(3, 3), (0, 0)], ["abcdef"]),
        ([(4, 99), (-3, 1)], ["[a]", "bcd", "[ef]"]),
        ([(5, 2), (88, 99)], ["abcdef"]),
    ],
)
def test_pieces_make_up_the_text(spans, expected):
    found = list(pieces("abcdef", "text", [word(*span) for span in spans]))
    assert [f"[{text}]" if word else text for text, word in found] == expected


def test_no_piece_parts_a_character():
    text = f"x{FAMILY}e\u0301🇩🇪🇫🇷"
    whole = ["x", FAMILY, "e\u0301", "🇩🇪", "🇫🇷"]
    assert list(characters(text)) == whole
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            for piece, _ in pieces(text, "text", [word(start, end)]):
                assert all(character in whole for character in characters(piece))


def test_an_endless_character_takes_no_endless_time():
    assert "".join(characters("e" + "\u0301" * 50_000 + "🇩" * 50_000)) == "e" + "\u0301" * 50_000 + "🇩" * 50_000


# --- the picture ------------------------------------------------------------------------------------------------------


def test_a_picture_is_xml_whatever_the_text():
    text = "".join(map(chr, range(160))) + "\ud800\ufffe\uffff <&>\"']]>"
    ET.fromstring(svg_picture([explained(text, *[0.1, -0.2] * 9, method=text), nasty()]))
    html_page([explained(text, 0.1)]).encode()


def test_a_picture_holds_every_word_and_its_number():
    item = explained("so good\n\nbut late", 0.0, 0.9, 0.1, -0.41)
    assert [text for text in drawn(item) if text in "so good but late".split()] == ["so", "good", "but", "late"]
    assert "<title>−0.410</title>" in svg_picture([item])


def test_a_picture_says_what_it_leaves_out():
    long = explained("word " * 4_000, 0.1)
    assert len(drawn(long)) < LINES * 20
    assert any(
        "17,600 characters are left out" not in text and "characters are left out" in text for text in drawn(long)
    )
    late = "filler " * 1_000 + "found"
    ends = Explained({"text": late}, [record([word(7_000, 7_005)])], lone=True)
    assert "found" in drawn(ends)
    assert "… 7,000 characters are left out of this picture." in drawn(ends)
    assert "… 5 explanations are left out of this picture." in drawn(generated("The fox", ["."] * (RECORDS + 5)))


def test_lines_wrap_after_white_space_and_long_words_anywhere():
    def wrapped(text):
        return ["".join(cell.text for cell in line) for line, _ in lines(cells([(text, None)]), 10)]

    assert wrapped("one two three four") == ["one two ", "three four"]
    assert wrapped("a\n\nb\r\n") == ["a\n", "\n", "b\r\n"]
    assert wrapped("x" * 25) == ["x" * 10, "x" * 10, "x" * 5]
    assert wrapped("字" * 7) == ["字" * 5, "字" * 2]
    assert wrapped("e\u0301" * 11) == ["e\u0301" * 10, "e\u0301"]
    assert wrapped("") == []


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("one two", "one two"),
        ("אחת שתיים", "שתיים אחת"),
        ("המלון Grand Hilton היה", "היה Grand Hilton המלון"),
        ("the אחת שתיים word", "the שתיים אחת word"),
        ("the אחת 12 word", "the 12 אחת word"),
        ("אחת 12 34", "34 12 אחת"),
    ],
)
def test_words_are_ordered_as_they_are_seen(text, seen):
    line, side = next(lines(cells([(text, None)]), 80))
    assert "".join(word.text for word, _ in ordered(merged(line), side)) == seen


# --- the plain forms --------------------------------------------------------------------------------------------------


def test_plain_text_lists_the_strongest_first():
    assert plain_text(explained("so spotless cold", 0.01, 0.72, -0.5)) == (
        "POSITIVE 0.980\n+0.720\tspotless\n-0.500\tcold\n+0.010\tso"
    )
    assert plain_text(explained("so", 0.1, prediction={"score": 0.0012})).startswith("POSITIVE 0.001\n")
    nothing = "Nothing was found in this input, so nothing is explained."
    assert plain_text(Explained({"text": "x"}, [], lone=False)) == nothing
    odd = [{"text": "a\n\tb\x00\u2028\ud800", "start": 0, "end": 1, "score": 0.5}]
    assert (
        plain_text(Explained({"text": "x"}, [record(odd, "\n", {"label": "x"})], lone=True))
        == " \n+0.500\ta  b\ufffd \ufffd"
    )


def test_plain_text_ends_with_what_was_cut():
    shown = plain_text(generated("The fox", [".", "!"], truncated=CUT)).split("\n")
    assert shown[-1] == "The model saw 512 of 2,803 tokens."
    assert sum("The model saw" in line for line in shown) == 1


def test_the_shape_of_torchserves_example():
    one = explained("so good", 0.1, 0.9)
    assert upstream_shape(one) == {"words": ["so", "good"], "importances": [0.1, 0.9], "delta": 0.003}
    answer = upstream_shape(answered("is it", "so"))
    assert answer == {
        "words": ["is", "it", "so"],
        "importances_answer_start": [0.1, 0.2, 0.1],
        "importances_answer_end": [0.1, 0.2, 0.1],
        "delta_start": 0.003,
        "delta_end": 0.003,
    }
    assert upstream_shape(generated("The fox", ["start", "end"])) == {
        "words": ["The", "fox"],
        "importances": [[0.6, -0.8]] * 2,
        "delta": [0.003] * 2,
    }
    assert upstream_shape(Explained({"text": "x"}, [], lone=False)) == {"words": [], "importances": [], "delta": []}
    apart = Explained({"text": "a b"}, [record(words("a", [0.1])), record(words("a b", [0.1, 0.2]))], lone=False)
    assert upstream_shape(apart)["words"] == [["a"], ["a", "b"]]


@pytest.mark.parametrize(
    "item",
    [explained("so", 0.4, truncated=CUT), answered(truncated=CUT), generated("The fox", ["."], truncated=CUT)],
    ids=["label", "answer", "tokens"],
)
def test_the_shape_of_torchserves_example_tells_what_was_cut(item):
    assert upstream_shape(item)["truncated"] == CUT
