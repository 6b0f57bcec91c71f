"""What `make explain` prints: shades where there are colours, signed numbers where there are none."""

import io
import json
import subprocess
import sys

import pytest
from hfserve.views import shades
from hfserve.views.explained import Explained
from rich.console import Console

from scripts import explain
from scripts.console import ROOT, CommandError
from tests.explanations import answered, explained, generated, record, words


@pytest.fixture
def printed(monkeypatch):
    """A function that shows an item and returns what was printed, with or without colours."""

    def show(item, colours=None, width=100):
        file = io.StringIO()
        console = Console(file=file, color_system=colours, force_terminal=bool(colours), width=width, highlight=False)
        monkeypatch.setattr(explain, "console", console)
        explain.show(item)
        return file.getvalue()

    return show


def code(rgb, ground):
    return f"{ground};2;{';'.join(map(str, rgb))}"


def test_words_are_shaded_and_those_that_speak_for_are_underlined(printed):
    shown = printed(explained("good but dull", 0.8, 0.001, -0.4), "truecolor")
    strong, weak = shades.shade(1.0, explain.SCHEME), shades.shade(-0.5, explain.SCHEME)
    assert f"\x1b[4;{code(strong.ink, 38)};{code(strong.background, 48)}mgood" in shown
    assert f"\x1b[3;{code(weak.ink, 38)};{code(weak.background, 48)}mdull" in shown
    assert f"{code(explain.SCHEME.paper, 48)}m but " in shown  # next to 0: as the paper


@pytest.mark.parametrize("wanted", [{"NO_COLOR": "1"}, {}])
def test_without_colours_the_text_stands_as_sent_and_the_list_is_longer(printed, monkeypatch, wanted):
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    shown = printed(
        explained("good but dull" + " so" * 12, 0.8, 0.001, -0.4, *[0.1] * 12), "truecolor" if wanted else None
    )
    assert "good but dull so so" in shown
    assert shown.count("+0.100") == 12
    assert "38;2" not in shown
    assert "+ speaks for what is explained, − against it." in shown


def test_what_is_explained_comes_first_and_the_strongest_words_below(printed):
    lines = printed(explained("good but dull", 0.4, 0.001, -0.8)).split("\n")
    assert lines[1] == "Label  POSITIVE  0.980"
    assert [line.split()[-1] for line in lines[4:7]] == ["dull", "good", "but"]
    assert lines[4].count("█") == 2 * lines[5].count("█") == explain.WIDTH
    assert lines[7].startswith("Layer integrated gradients, 24 steps. Convergence delta 0.003.")


def test_markup_and_control_characters_are_text(printed):
    shown = printed(explained("[bold]good[/bold] \x1b[31m[/]", 0.8, 0.7, target="[red]"))
    assert "[bold]good[/bold] \ufffd[31m[/]\n" in shown
    assert "+0.800  ████████████████████████  [bold]good[/bold]" in shown
    assert "Label  [red]  0.980" in shown
    assert "\x1b" not in shown


def test_words_from_right_to_left_stand_last_in_their_lines(printed):
    shown = printed(explained("השירות מצוין", 0.1, 0.8))
    assert "השירות מצוין\n" in shown  # in the order they are read; the terminal turns them
    assert "+0.800  ████████████████████████  מצוין" in shown


def test_an_answer_has_a_block_for_each_end_with_both_texts(printed):
    shown = printed(answered())
    assert shown.count("+ speaks for") == 1
    assert shown.index("Answer  start  “Paris”  0.900") < shown.index("Answer  end  “Paris”")
    assert shown.count("question\nWhere is it?\ncontext\nIt is in Paris, they say.\n") == 2


def test_generated_tokens_have_a_line_each(printed):
    shown = printed(generated("Once [x]", [" upon", "\n"])).split("\n")
    assert shown[1] == "Once [x] upon"
    assert "upon  0.300  [x] −0.800  Once +0.600" in " ".join(shown)
    assert any(line.split()[0] == "⏎" for line in shown if line)
    assert "Layer integrated gradients. Convergence delta 0.003 at most." in shown
    shares = printed(generated("Once [x]", [" upon", "\n"], method="occlusion", converged=None))
    assert "Occlusion.\n" in shares
    one = generated("Once [x]", [" upon"])
    assert "Token  upon  0.300" in printed(one)
    assert "Once [x]\n" in printed(one)


def test_nothing_found(printed):
    assert printed(Explained({"text": "tea"}, [], lone=False)) == (
        "Nothing was found in this input, so nothing is explained.\n"
    )


def test_words_of_no_weight_and_no_words(printed):
    assert "tea time\n" in printed(explained("tea time", 0.0, 0.0))
    assert "tea\n" in printed(explained("tea"))


def test_what_is_rough_or_cut_is_told(printed):
    rough = record(words("tea", (1.0,)), converged=False, truncated={"tokens": 900, "used": 512})
    shown = printed(Explained({"text": "tea"}, [rough], lone=True))
    assert "Not converged, the numbers are rough: ask for more steps with --n-steps.\n" in shown
    assert "The model saw 512 of 900 tokens.\n" in shown
    exact = printed(explained("tea", 1.0, method="occlusion", n_steps=None, converged=None))
    assert "Not converged" not in exact
    assert "Occlusion. Output 3.9" in exact


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("NEGATIVE", "NEGATIVE"),
        ("1", 1),
        ('"1"', "1"),
        ('{"start": 0, "end": 3}', {"start": 0, "end": 3}),
        ('[2, "B-PER"]', [2, "B-PER"]),
        ("true", "true"),
        ("null", "null"),
        (" there was", " there was"),
        ("{", "{"),
    ],
)
def test_targets_as_they_are_typed(typed, meant):
    assert explain.target_of(typed) == meant


@pytest.mark.parametrize("colours", [None, "truecolor"])
def test_bars_fit_a_narrow_console(printed, colours):
    shown = printed(explained("good " + "w" * 60, 0.8, 0.1), colours, width=40)
    assert "…" not in shown
    assert "█" * (40 // 3) in shown
    assert shown.count("w") >= 120
    assert "…" not in printed(generated("Once upon " + "w" * 60, [" a" * 30, " b"]), colours, width=40)


@pytest.mark.parametrize("option", ["html", "svg"])
@pytest.mark.parametrize("name", ["", "none/tea.html"], ids=["folder", "in no folder"])
def test_a_file_that_cannot_be_written_is_refused_before_the_server_is_asked(tmp_path, option, name):
    with pytest.raises(CommandError, match="Cannot write .*: give a file in a folder that exists"):
        explain.main("tea", config=tmp_path / "none", **{option: tmp_path / name})


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path):
    with pytest.raises(CommandError, match="No such file or directory.*: give a file in a folder that exists"):
        explain.save(tmp_path / "none" / "tea.html", explain.html_page, explained("tea", 1.0))


@pytest.mark.parametrize("target", ["demo", "predict", "explain"])
def test_make_passes_a_text_on_as_it_was_typed(tmp_path, target):
    """Neither make nor the shell finds a meaning in it."""
    spy = tmp_path / "bin" / "python"
    spy.parent.mkdir()
    spy.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    spy.chmod(0o755)
    (tmp_path / "requirements.lock").write_bytes((ROOT / "requirements.lock").read_bytes())  # set up already
    text = """It's "so" `id` $HOME $(shell id) \\ -- [b]"""
    given = [f"{name}={text}" for name in ("TEXT", "QUESTION", "TARGET", "METHOD", "HTML", "SVG")]
    words = ["make", "-s", target, f"VENV={tmp_path}", f"PYTHON={sys.executable}", *given]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    sent = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    asked = [line for line in sent if line[1] in ("scripts.predict", "scripts.explain")]
    assert len(asked) == (2 if target == "demo" else 1)
    for line in asked:
        assert line[-2:] == ["--", text]
        options = [name for name in line if name.startswith("--") and name not in ("--", "--model")]
        assert [line[line.index(name) + 1] for name in options] == [text] * len(options)
