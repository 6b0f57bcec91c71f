"""The pages and pictures of explanations as a browser shows them."""

from itertools import pairwise

import pytest
from hfserve.views.explained import Explained
from hfserve.views.pages import html_page
from hfserve.views.pictures import svg_picture

from tests.explanations import answered, explained, generated

NASTY = "<script>alert(1)</script> \"a\" & 'b' </title></style> <img src=x onerror=alert(1)> &amp; &#65;"
TEXTS = {
    "markup": NASTY,
    "hebrew": "המלון Hilton היה נפלא ממש (120 שקל).\nOne more line,\r\nועוד אחת.",
    "arabic": "كان الفندق Hilton رائعًا جدًا، لكن الإفطار تأخر 3 مرات.",
    "emoji": "Loved it 👨‍👩‍👧‍👦 👍🏽 🇩🇪 e\u0301 \t so  much\n\n!",
    "chinese": "房间一尘不染，员工非常友好。" * 20,
    "long": "w" * 500,
}
SCORES = [0.5, -0.2, 0.05, 0.9, -0.7] * 20
PHONE = 360
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
BOXES = "all => all.map(each => { const box = each.getBoundingClientRect(); return [box.left, box.right] })"
# of each shaded word in a picture the left and the right end: of its rectangle, of its text
ENDS = """words => words.map(word => ["rect", "text"].map(name => {
    const box = word.querySelector(name).getBBox();
    return [box.x, box.x + box.width];
}))"""


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("width", [900, PHONE])
def test_a_page_shows_the_text_as_sent_and_runs_nothing(visit, text, width):
    page = visit(html_page([explained(text, *SCORES, target=NASTY)]), width=width)
    assert page.locator(".text").evaluate("element => element.textContent") == text
    assert page.locator("script, img, link").count() == 0
    assert page.evaluate(OVERFLOW) <= 0


def test_lines_are_kept(visit):
    page = visit(html_page([explained("one\n\ntwo", 0.1, 0.2)]))
    assert page.locator(".text").inner_text() == "one\n\ntwo"
    assert (
        page.locator("[title='+0.200']").bounding_box()["y"] > page.locator("[title='+0.100']").bounding_box()["y"] + 60
    )


def test_a_sign_has_its_colour_and_its_line(visit):
    page = visit(html_page([explained("so good but late", 0.0, 0.9, 0.1, -0.9)]))
    look = "word => { const s = getComputedStyle(word); return [s.backgroundColor, s.textDecorationStyle] }"
    good, but, late = (page.locator(f"[title='{score}']").evaluate(look) for score in ("+0.900", "+0.100", "−0.900"))
    assert good == ["rgb(86, 180, 233)", "solid"]
    assert late == ["rgb(240, 160, 50)", "dotted"]
    assert but[0] not in (good[0], late[0])
    page.emulate_media(color_scheme="dark")
    assert page.locator("[title='+0.900']").evaluate(look)[0] == "rgb(0, 96, 158)"
    page.emulate_media(media="print")
    assert page.locator("[title='+0.900']").evaluate(look) == good


@pytest.mark.parametrize("text", [TEXTS["hebrew"].split("\n")[0], TEXTS["arabic"]])
def test_words_from_right_to_left_stand_so(visit, text):
    page = visit(html_page([explained(text, *SCORES)]))
    places = page.locator(".text [title]").evaluate_all(BOXES)
    assert len(places) == len(text.split())
    assert all(left >= right - 1 for (left, _), (_, right) in pairwise(places))
    edge = page.locator(".text").bounding_box()
    assert places[0][1] == pytest.approx(edge["x"] + edge["width"], abs=1)


def test_a_long_generation_is_a_list_of_rows(visit):
    page = visit(html_page([generated("The quick fox " * 20, [" dog", "\n", NASTY] * 100)]), width=PHONE)
    assert page.locator(".row").count() == 300
    assert page.locator(".whole mark").evaluate("mark => mark.textContent") == f" dog\n{NASTY}" * 100
    assert page.locator(".whole").is_visible()
    assert not page.locator(".row .text").first.is_visible()
    page.locator(".row summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator(".row .text").first.is_visible()
    assert page.evaluate(OVERFLOW) <= 0


def test_an_answer_and_a_batch_fit_on_a_phone(visit):
    items = [answered(converged=False), Explained({"text": "Nobody"}, [], lone=False), explained(NASTY * 3, *SCORES)]
    page = visit(html_page(items), width=PHONE)
    for summary in page.locator("summary").all():
        summary.click()
    assert page.locator("table").count() == 3
    assert page.evaluate(OVERFLOW) <= 0


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_the_shades_of_a_picture_fit_their_words(visit, text):
    page = visit(svg_picture([explained(text, *SCORES, target=NASTY)]), ".svg")
    assert page.locator("script, img, foreignObject").count() == 0
    found = page.locator("g[class]:has(text)").evaluate_all(ENDS)
    assert len(found) >= min(len(text.split()), 3)
    for rectangle, word in found:
        assert word == pytest.approx(rectangle, abs=2)


def test_a_picture_has_its_words_from_right_to_left(visit):
    text = TEXTS["arabic"]
    page = visit(svg_picture([explained(text, *SCORES)]), ".svg")
    places = [
        page.locator("g[class] text", has_text=word).first.evaluate("text => text.getBBox().x") for word in text.split()
    ]
    assert places == sorted(places, reverse=True)
