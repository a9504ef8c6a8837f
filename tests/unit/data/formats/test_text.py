import hashlib

import pytest

from beni.data.formats.text import Text
from beni.errors import DataError

TEXT = "".join(f"{i:04d} " for i in range(100))


@pytest.fixture
def source(tmp_path):
    """source(text, piece=50, heldout=0.2, seed=0) -> Text."""

    def make(text=TEXT, piece=50, heldout=0.2, seed=0):
        path = tmp_path / "text.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return Text(seed, path=str(path), url=None, sha256=None, piece=piece, heldout=heldout)

    return make


def content(sample):
    (message,) = sample.messages
    return message.content[0]


def test_pieces_together_are_the_text_and_the_end_is_held_out(source):
    made = source()
    trained = [content(made.train(i, 0)) for i in range(len(made))]
    held = [content(sample) for sample in made.heldout()]
    assert "".join(trained + held) == TEXT
    assert (len(trained), len(held)) == (8, 2)
    assert {len(piece) for piece in trained + held} == {50}


def test_neither_pieces_nor_split_depend_on_seed_or_epoch(source):
    one, two = source(seed=0), source(seed=5)
    assert [content(one.train(i, 0)) for i in range(8)] == [content(two.train(i, 3)) for i in range(8)]
    assert [content(s) for s in one.heldout()] == [content(s) for s in two.heldout()]
    assert one.fingerprint() == two.fingerprint()
    assert one.fingerprint() != source(TEXT + "!").fingerprint()


def test_at_least_one_piece_is_held_out(source):
    assert len(source(heldout=0.0001).heldout()) == 1


def test_every_piece_is_supervised_and_has_an_id_of_its_own(source):
    made = source()
    samples = [*(made.train(i, 0) for i in range(len(made))), *made.heldout()]
    assert all(message.supervised for sample in samples for message in sample.messages)
    assert len({sample.id for sample in samples}) == len(samples)


def test_a_plain_template_supervises_all_of_a_piece(source, renderer_of):
    made = source("a piece of plain text. " * 20, piece=40)
    renderer = renderer_of("bos", "plain")
    encoded = renderer.encode(made.train(1, 0))
    assert renderer.tokenizer.decode(encoded.labels[1:]) == content(made.train(1, 0)).strip() + "</s>"
    assert encoded.ids[0] == renderer.tokens.bos


@pytest.mark.parametrize("text", ["", "short", "x" * 50])
def test_a_text_of_fewer_than_two_pieces_is_an_error_with_its_size(text, source):
    with pytest.raises(DataError, match=rf"has {len(text)} characters, too few for pieces of data\.piece=50"):
        source(text)


def test_a_file_that_is_not_utf8_is_an_error_with_its_name(source):
    with pytest.raises(DataError, match=r"text\.txt is not UTF-8 text"):
        source("é".encode("latin-1") * 200)


def test_a_path_that_is_null_or_missing_is_an_error_with_the_fix(tmp_path):
    with pytest.raises(DataError, match=r"set data\.path"):
        Text(0, path=None, url=None, sha256=None, piece=5, heldout=0.1)
    with pytest.raises(DataError, match=r"data\.path=.*gone does not exist"):
        Text(0, path=str(tmp_path / "gone"), url=None, sha256=None, piece=5, heldout=0.1)


def test_a_copy_must_be_the_text_that_was_pinned_and_a_url_may_not_do_nothing(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    keys = {"path": str(tmp_path / "text.txt"), "piece": 50, "heldout": 0.2}
    digest = hashlib.sha256(TEXT.encode()).hexdigest()
    assert len(Text(0, url="http://a.b/c", sha256=digest, **keys)) > 0
    with pytest.raises(DataError, match=rf"has the sha256 {digest}, expected data\.sha256=00\n  fix: choose data=text"):
        Text(0, url="http://a.b/c", sha256="00", **keys)
    with pytest.raises(DataError, match=r"data\.url=http://a\.b/c does nothing beside data\.path"):
        Text(0, url="http://a.b/c", sha256=None, **keys)


def test_a_byte_order_mark_is_no_part_of_the_text(source):
    assert content(source(b"\xef\xbb\xbf" + TEXT.encode()).train(0, 0)) == TEXT[:50]


def test_a_text_is_fetched_once_and_only_the_one_that_was_pinned(tmp_path, monkeypatch):
    monkeypatch.setenv("BENI_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(TEXT)
    url, digest = (tmp_path / "text.txt").as_uri(), hashlib.sha256(TEXT.encode()).hexdigest()
    with pytest.raises(DataError, match=rf"has the sha256 {digest}, expected data\.sha256=00"):
        Text(0, path=None, url=url, sha256="00", piece=50, heldout=0.2)
    first = Text(0, path=None, url=url, sha256=digest, piece=50, heldout=0.2)
    (tmp_path / "text.txt").unlink()
    assert Text(0, path=None, url=url, sha256=digest, piece=50, heldout=0.2).fingerprint() == first.fingerprint()
    with pytest.raises(DataError, match=r"cannot be fetched: .*\n  fix: curl -O file:"):
        Text(0, path=None, url=url, sha256="00", piece=50, heldout=0.2)
