"""`make verify`: an archive that was changed anywhere is refused, with the reason."""

import random
import shutil
import subprocess
import sys
import zipfile

import pytest

from scripts.console import ROOT, CommandError
from scripts.verify import unpack, verify
from tests.serving import archive


@pytest.fixture(scope="module")
def original(tmp_path_factory, model_dir):
    return archive(tmp_path_factory.mktemp("store"), "tiny", model_dir)


@pytest.fixture
def copy(original, tmp_path):
    return shutil.copy(original, tmp_path / "tiny.mar")


def rewritten(original, into, change):
    """The archive written again by an honest zip tool, with its entries changed: name -> content."""
    with zipfile.ZipFile(original) as old, zipfile.ZipFile(into, "w") as new:
        for name, content in change({name: old.read(name) for name in old.namelist()}).items():
            new.writestr(name, content)
    return into


def test_an_archive_as_it_was_built_is_accepted(original):
    claims, pipeline, difference = verify(original)
    assert difference < 1e-5
    assert pipeline.describe()["mode"] == "sequence_classification"
    assert claims["revision"]


def test_a_byte_flipped_anywhere_is_refused(copy, original):
    """In weights and code, in the zip's own headers and directory, in what is claimed: 60 places, and both ends."""
    content = original.read_bytes()
    rng = random.Random(0)
    places = [0, len(content) - 1, *rng.sample(range(len(content)), 30), *range(len(content) - 3000, len(content), 100)]
    for place in places:
        copy.write_bytes(content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :])
        with pytest.raises(CommandError):
            verify(copy)
    copy.write_bytes(content)
    verify(copy)


def test_every_bit_of_the_zip_s_directory_counts(copy, original):
    content = original.read_bytes()
    first = content.index(b"PK\x01\x02")
    for bit in range(8 * 46):  # the header of the first entry of the directory
        place = first + bit // 8
        copy.write_bytes(content[:place] + bytes([content[place] ^ (1 << bit % 8)]) + content[place + 1 :])
        with pytest.raises(CommandError):
            verify(copy)


def test_an_added_pickle_is_refused(original, tmp_path):
    made = rewritten(original, tmp_path / "m.mar", lambda files: {**files, "pytorch_model.bin": b"\x80\x04."})
    with pytest.raises(CommandError, match=r"holds pytorch_model.bin, which was not built into it"):
        verify(made)


@pytest.mark.parametrize("name", ["../evil.py", "/tmp/evil.py", "hfserve/../../evil.py", "a\\b.py", "C:evil.py"])
def test_an_entry_that_points_outside_is_refused(original, tmp_path, name):
    made = rewritten(original, tmp_path / "m.mar", lambda files: {**files, name: b"import os"})
    with pytest.raises(CommandError, match="points outside of the archive"):
        unpack(made, tmp_path / "deep" / "unpacked")
    assert not [path for path in tmp_path.rglob("*evil*") if path.is_file()]
    with pytest.raises(CommandError, match="points outside of the archive"):
        verify(made)


def test_a_link_is_refused(original, tmp_path):
    made = tmp_path / "m.mar"
    shutil.copy(original, made)
    entry = zipfile.ZipInfo("link")
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(made, "a") as mar:
        mar.writestr(entry, "/etc/passwd")
    with pytest.raises(CommandError, match=r"'link' is a link"):
        verify(made)


def test_other_packing_and_doubled_entries_are_refused(original, tmp_path):
    made = rewritten(original, tmp_path / "m.mar", lambda files: files)
    with pytest.raises(CommandError, match="its bytes are not as they were built"):
        verify(made)
    doubled = shutil.copy(original, tmp_path / "d.mar")
    with zipfile.ZipFile(doubled, "a") as mar, pytest.warns(UserWarning, match="Duplicate name"):
        mar.writestr("config.json", mar.read("config.json"))
    with pytest.raises(CommandError, match="two entries of one name"):
        verify(doubled)


def test_what_is_no_archive_is_told(tmp_path):
    (tmp_path / "no.mar").write_text("hello")
    for name in ("no.mar", "missing.mar"):
        with pytest.raises(CommandError, match="no archive that can be read"):
            verify(tmp_path / name)


def test_the_command(original, copy):
    done = subprocess.run(
        [sys.executable, "-m", "scripts.verify", str(original)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "is as it was built" in done.stdout
    assert "engine eager, fp32, cpu" in done.stdout.replace("\n", " ")
    copy.write_bytes(original.read_bytes()[:-1] + b"x")
    done = subprocess.run([sys.executable, "-m", "scripts.verify", str(copy)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
