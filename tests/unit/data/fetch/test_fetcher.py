"""The fetcher against a hostile server: what is a picture arrives bit by bit, what is none has a reason."""

import ipaddress
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image as PILImage
from torch.utils.data import DataLoader, Dataset

from beni.config.compose import compose
from beni.data.fetch.address import PrivateAddress, is_public, open_socket
from beni.data.fetch.fetcher import Fetcher
from beni.data.fetch.hub import hub_headers, hub_url
from beni.data.fetch.loop import retry_after
from beni.data.fetch.verdicts import Verdicts
from beni.data.images import BadImage, Image, decode, public_name
from beni.data.metric import LossOnly
from beni.data.sample import Message, Sample
from beni.data.source import SingleSource
from beni.errors import DataError, ResourceError
from support.hostile import BAD, GOOD, HostileServer, encoded, noise

SETTINGS = compose([])["images"]


def loopback(address):
    return address.is_loopback


@pytest.fixture(scope="module")
def server():
    with HostileServer() as running:
        yield running


@pytest.fixture
def fetcher(tmp_path, monkeypatch):
    """fetcher(**settings) -> Fetcher that may connect to this machine; closed at the end."""
    monkeypatch.setattr("beni.data.fetch.loop.BACKOFF", 0.01)
    made = []

    def make(verdicts=None, allows=loopback, **changes):
        quick = {"timeout": 0.6, "idle_timeout": 0.3, "max_mib": 2.0, "retries": 1, "cache": str(tmp_path / "cache")}
        made.append(Fetcher(SETTINGS | quick | changes, verdicts, allows))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("beni-")]


@pytest.fixture(scope="module")
def outcomes(server, tmp_path_factory):
    """name -> what became of it; all asked for at once, as a run does."""
    settings = {"timeout": 3.0, "idle_timeout": 1.5, "max_mib": 2.0, "retries": 1, "cache": None}
    settings["cache"] = str(tmp_path_factory.mktemp("cache"))
    fetcher = Fetcher(SETTINGS | settings, allows=loopback)
    names = [*GOOD, *BAD]
    fetcher.want([server.url(name) for name in names])
    found = {}
    for name in names:
        try:
            found[name] = fetcher.get(server.url(name))
        except BadImage as error:
            found[name] = error.reason
    fetcher.close()
    return found


@pytest.mark.parametrize("name", GOOD)
def test_a_picture_arrives_as_it_is(outcomes, name):
    assert outcomes[name] == GOOD[name]
    there, here = (decode(Image.from_bytes(data, name)) for data in (outcomes[name], GOOD[name]))
    assert np.array_equal(np.asarray(there), np.asarray(here))
    assert there.mode == "RGB"


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_is_refused_with_a_reason(outcomes, name):
    assert outcomes[name] in BAD[name].split("|")


def test_there_are_enough_ways_to_be_bad():
    assert len(BAD) >= 20


def test_a_picture_is_asked_for_once_and_then_comes_from_the_cache(fetcher, server):
    url = server.url("n1000.png")
    first = fetcher()
    first.want([url, url])
    assert first.get(url) == first.get(url) == encoded(noise(1000))
    again = fetcher()
    again.want([url])
    assert again.get(url) == encoded(noise(1000))
    assert server.requests["n1000.png"] == 1
    assert (first.counts.requests, again.counts.requests, again.counts.cache_hits) == (1, 0, 1)


def test_a_verdict_outlives_the_process_and_asks_for_nothing(fetcher, server, tmp_path):
    url = server.url("404.png?resumed")
    with pytest.raises(BadImage, match="http 404"):
        fetcher(Verdicts(tmp_path / "verdicts", 0)).get(url)
    asked = server.requests["404.png"]
    for rank in (0, 1):
        resumed = fetcher(Verdicts(tmp_path / "verdicts", rank))
        resumed.want([url])
        with pytest.raises(BadImage, match="http 404"):
            resumed.get(url)
    assert server.requests["404.png"] == asked


def test_a_verdict_that_the_disk_does_not_take_ends_the_run_with_a_fix(tmp_path):
    (tmp_path / "full").write_text("a file where the folder should be")
    with pytest.raises(ResourceError, match=r"rank0-\d+\.jsonl could not be written: .*\n  fix: free disk space"):
        Verdicts(tmp_path / "full", 0).give("http://a/d", "timeout")


def test_a_process_sees_the_verdicts_that_another_has_just_given(tmp_path):
    mine, theirs = Verdicts(tmp_path, 0), Verdicts(tmp_path, 1)
    assert mine.reason("http://a/b") is None
    theirs.give("http://a/b", "timeout")
    assert mine.reason("http://a/b") == "timeout"
    (tmp_path / "rank1-1.jsonl").write_text('{"url": "http://a/c", "rea')  # in the middle of a line
    assert mine.reason("http://a/c") is None
    (tmp_path / "rank1-1.jsonl").write_text('{"url": "http://a/c", "reason": "http 404"}\n')
    assert mine.reason("http://a/c") == "http 404"


def test_a_line_torn_by_a_kill_is_passed_over(tmp_path):
    (tmp_path / "rank0-1.jsonl").write_text('{"url": "http://a/b", "rea{"url": "http://a/c", "reason": "timeout"}\n')
    with (tmp_path / "rank0-1.jsonl").open("a") as file:
        file.write('{"url": "http://a/d", "reason": "timeout"}\n')
    assert Verdicts(tmp_path, 0).reason("http://a/d") == "timeout"


def test_retries_are_as_many_as_asked_for(fetcher, server):
    with pytest.raises(BadImage, match="http 500"):
        fetcher(retries=3).get(server.url("500.png?retries"))
    assert server.requests["500.png"] == 4
    with pytest.raises(BadImage, match="http 404"):
        fetcher(retries=3).get(server.url("404.gif"))
    assert server.requests["404.gif"] == 1


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "255.255.255.255"),
        *("::1", "fe80::1", "fc00::1", "224.0.0.1", "::ffff:127.0.0.1", "::ffff:10.1.2.3", "::", "fec0::1", "ff0e::1"),
        *("::127.0.0.1", "::ffff:0:10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::1", "2002:a9fe:a9fe::1"),
    ],
)
def test_private_addresses_are_refused_however_they_are_written(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:93.184.216.34", "64:ff9b::93.184.216.34"]
)
def test_public_addresses_are_allowed(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[::1%25lo]"),
        *("2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "127.1", "0", "127.0.0.1.", "127.0.0.1..", "a@127.0.0.1"),
        *("\u2460\u2461\u2466.0.0.1", "127\u30020\u30020\u30021"),  # other digits and dots, which clients make plain
    ],
)
def test_by_default_no_spelling_of_this_machine_is_connected_to(fetcher, server, host):
    asked = server.requests["n1.png"]
    with pytest.raises(BadImage, match=r"private address|not a URL"):
        fetcher(allows=None, retries=0).get(f"http://{host}:{server.port}/n1.png")
    assert server.requests["n1.png"] == asked


def test_a_private_address_is_not_connected_to_even_where_every_earlier_check_has_missed_it(
    fetcher, server, monkeypatch
):
    async def missed(self, host, port=0, family=socket.AF_INET):
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}]

    monkeypatch.setattr("beni.data.fetch.address.CheckedResolver.resolve", missed)
    asked = server.requests["n1.png"]
    with pytest.raises(BadImage, match="private address"):
        fetcher(allows=None, retries=0).get(f"http://name.example:{server.port}/n1.png")
    assert server.requests["n1.png"] == asked


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "127.1", "localhost", "fe80::1%lo"])
def test_no_socket_is_made_for_what_is_private_or_left_for_the_system_to_read(host):
    with pytest.raises(PrivateAddress):
        open_socket(is_public, (socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, 80)))


def test_private_addresses_can_be_allowed(fetcher, server):
    assert fetcher(allows=None, private_addresses=True).get(server.url("n2.png")) == encoded(noise(2))


def test_what_is_secret_in_a_url_is_told_nowhere(fetcher, server):
    url = f"http://user:pass@127.0.0.1:{server.port}/404.jpg?token=abc"
    with pytest.raises(BadImage) as raised:
        fetcher().get(url)
    for said in (str(raised.value), raised.value.name, Image.from_url(url).key, public_name(url)):
        assert "404.jpg#" in said
        assert not any(secret in said for secret in ("user", "pass", "token", "abc"))
    assert public_name("https://a.b/c.png") == "https://a.b/c.png"


def test_a_url_that_is_none_is_refused(fetcher):
    for url in ("http://", "ftp://a/b.png", "http://[::1/x.png", "javascript:alert(1)", "http://a b/c"):
        with pytest.raises(BadImage, match=r"not a URL|not http|connection"):
            fetcher(retries=0).get(url)


class Answers(BaseHTTPRequestHandler):
    """path -> (status, headers, body) as the server's table says; keeps what each request of a path authorised."""

    def do_GET(self):
        host = self.headers["Host"].partition(":")[0]
        self.server.authorised.append((host, self.path, self.headers["Authorization"]))
        status, headers, body = self.server.table[self.path]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code="-", size="-"):
        """Says nothing."""


@pytest.fixture
def answers():
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as running:
        running.table, running.authorised = {}, []
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_hub_reference_is_served_by_the_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.example")
    resolved = hub_url("hf://datasets/owner/name/images/a.png")
    assert resolved == "https://hub.example/datasets/owner/name/resolve/main/images/a.png"
    assert hub_url("hf://owner/name/a.png") == "https://hub.example/owner/name/resolve/main/a.png"
    assert hub_url("https://a.b/c.png") == "https://a.b/c.png"


@pytest.mark.parametrize(
    "hop",
    ["https://storage.example/a", "http://hub.example/a", "https://hub.example:8443/a", "https://a.hub.example/a"],
)
def test_the_token_of_the_hub_goes_nowhere_else(monkeypatch, hop):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.example")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "secret")
    assert hub_headers("hf://owner/name/a.png", "https://hub.example/b") == {"Authorization": "Bearer secret"}
    assert hub_headers("hf://owner/name/a.png", hop) == {}
    assert hub_headers("https://hub.example/a.png", "https://hub.example/a.png") == {}


def test_the_token_is_left_behind_where_the_hub_redirects_to_its_storage(fetcher, answers, monkeypatch):
    port = answers.server_address[1]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "secret")
    first = "/datasets/owner/name/resolve/main/a.png"
    answers.table[first] = (302, {"Location": f"http://localhost:{port}/stored"}, b"")
    answers.table["/stored"] = (200, {}, encoded(noise(31)))
    assert fetcher().get("hf://datasets/owner/name/a.png") == encoded(noise(31))
    assert answers.authorised == [("127.0.0.1", first, "Bearer secret"), ("localhost", "/stored", None)]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *((None, None), ("", None), ("5", 5.0), (" 7 ", 7.0), ("soon", None), ("\u00b2", None), ("9" * 5000, None)),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Mon, 01 Jan 0001 00:00:00 -0000", 0.0),
    ],
)
def test_a_server_may_say_in_two_ways_when_to_come_again_and_also_nonsense(value, seconds):
    assert retry_after(value) == seconds


def test_nonsense_about_when_to_come_again_makes_no_picture_bad(fetcher, answers):
    answers.table["/a.png"] = (503, {"Retry-After": "\u00b2"}, b"")
    with pytest.raises(BadImage, match="http 503"):
        fetcher(retries=1).get(f"http://127.0.0.1:{answers.server_address[1]}/a.png")
    assert len(answers.authorised) == 2


def test_a_format_that_runs_another_program_is_refused_at_once(fetcher, answers):
    answers.table["/a.jpg"] = (200, {}, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n%%EOF\n")
    with pytest.raises(BadImage, match="not an image"):
        fetcher(retries=3).get(f"http://127.0.0.1:{answers.server_address[1]}/a.jpg")
    assert len(answers.authorised) == 1


def test_a_host_that_hangs_does_not_hold_up_another(fetcher, server):
    made = fetcher(concurrency=4, per_host=2, timeout=30.0, idle_timeout=30.0)
    asked = server.requests["hang.jpg"]
    hanging = [made._ask(server.url(f"hang.jpg?{i}")) for i in range(8)]
    assert made.get(f"http://localhost:{server.port}/n40.png") == encoded(noise(40))
    assert not any(one.done() for one in hanging)
    assert server.requests["hang.jpg"] - asked == 2


@pytest.fixture
def dead_names(monkeypatch):
    """A name server that does not answer for .invalid: (a count of what it was asked, the names it has given up)."""
    resolve, end = socket.getaddrinfo, threading.Event()
    asked, given_up = threading.Semaphore(0), []

    def slow(host, *args, **kwargs):
        if not str(host).endswith(".invalid"):
            return resolve(host, *args, **kwargs)
        asked.release()
        end.wait(60)
        given_up.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    yield asked, given_up
    end.set()


def test_names_that_nobody_resolves_do_not_hold_up_another_name(fetcher, dead_names, server):
    asked, given_up = dead_names
    made = fetcher(timeout=30.0)
    made.want([f"http://name{i}.invalid/a.png" for i in range(40)])
    for _ in range(40):  # more at once than an event loop has threads by default
        assert asked.acquire(timeout=30)
    assert made.get(f"http://localhost:{server.port}/n41.png") == encoded(noise(41))
    assert given_up == []


def test_names_that_nobody_resolves_do_not_hold_up_the_check_of_a_picture(fetcher, dead_names, server):
    _, given_up = dead_names
    made = fetcher(concurrency=2, retries=0)
    for i in range(2):
        with pytest.raises(BadImage, match="timeout"):  # who waits has gone, the thread that asks has not
            made.get(f"http://name{i}.invalid/a.png")
    assert made.get(server.url("n42.png")) == encoded(noise(42))
    assert given_up == []


def test_a_cache_too_small_for_what_was_asked_for_makes_no_picture_bad(fetcher, server):
    made = fetcher(cache_gib=1e-6)
    numbers = range(300, 330)
    made.want([server.url(f"n{i}.png") for i in numbers])
    assert [made.get(server.url(f"n{i}.png")) == encoded(noise(i)) for i in numbers] == [True] * 30
    assert made.counts.bad == 0


def test_closing_with_requests_under_way_leaves_no_thread(fetcher, server):
    made = fetcher(timeout=30.0, idle_timeout=30.0)
    made.want([server.url("hang.jpg?close"), server.url("n5.png")])
    made.close()


def test_a_cache_that_cannot_be_written_ends_nothing_and_is_told_once(fetcher, server, tmp_path, monkeypatch):
    def full(self, url, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("beni.data.fetch.cache.ImageCache.put", full)
    made = fetcher()
    assert [made.get(server.url(f"n{i}.png")) == encoded(noise(i)) for i in (61, 62)] == [True, True]
    assert len(made.notices) == 1
    assert "No space left" in made.notices[0]


class Urls(SingleSource):
    """Sample i shows picture i of the server."""

    metric = LossOnly()
    varies = False

    def __init__(self, server_url):
        self.server_url = server_url

    def __len__(self):
        return 12

    def train(self, index, epoch):
        image = Image.from_url(f"{self.server_url}n{2000 + index}.png")
        return Sample(f"s{index}", (Message("user", (image, "?")), Message("assistant", ("it",))))

    def heldout(self):
        return [self.train(index, 0) for index in range(3)]

    def fingerprint(self):
        return "urls"


def test_a_sample_is_the_same_through_a_fetcher_but_that_its_pictures_open(fetcher, server):
    inner = Urls(server.url(""))
    with pytest.raises(DataError, match="has not been fetched"):
        decode(inner.train(0, 0).images[0])
    made = fetcher()
    sample = made.bind(inner.train(3, 0))
    assert (sample.id, sample.question, sample.answer) == ("s3", "?", "it")
    assert made.counts.requests == 0  # nothing is fetched before it is opened
    (image,) = sample.images
    assert (image.key, image.url) == (inner.train(3, 0).images[0].key, server.url("n2003.png"))
    assert np.array_equal(np.asarray(decode(image)), np.asarray(noise(2003)))
    assert made.counts.requests == 1


def test_a_sample_whose_pictures_are_at_hand_is_left_alone_by_a_fetcher(fetcher):
    sample = Sample("s", (Message("user", (Image(lambda: noise(1), "here"), "?")), Message("assistant", ("it",))))
    assert fetcher().bind(sample) is sample


def test_a_fetcher_can_be_handed_to_another_process(fetcher, server):
    made = fetcher(allows=None, private_addresses=True)
    made.get(server.url("n3.png"))
    copy = pickle.loads(pickle.dumps(made))
    assert copy.get(server.url("n4.png")) == encoded(noise(4))
    copy.close()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # the thread of the parent does not exist here
        data = made.get(server.url("n6.png"))
        os.write(write, b"1" if data == encoded(noise(6)) else b"0")
        os._exit(0)
    os.close(write)
    assert os.read(read, 1) == b"1"
    os.waitpid(child, 0)
    assert made.get(server.url("n7.png")) == encoded(noise(7))


class Listed(Dataset):
    """A list as what a loader reads from."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_fetcher_works_in_the_workers_of_a_loader(fetcher, server, start):
    made = fetcher(allows=None, private_addresses=True, timeout=20.0)
    made.get(server.url("n3.png"))  # the thread runs when the workers start
    offset = {"fork": 400, "spawn": 500}[start]
    urls = [server.url(f"n{offset + i}.png") for i in range(8)]
    loader = DataLoader(
        Listed(urls), batch_size=None, collate_fn=made.get, num_workers=2, multiprocessing_context=start
    )
    assert list(loader) == [encoded(noise(offset + i)) for i in range(8)]
    assert made.get(server.url("n7.png")) == encoded(noise(7))


def fetch_all(fetcher, urls, meet, sends):
    meet.wait(30)
    fetcher.want(urls)
    sends.send([fetcher.get(url) for url in urls])
    fetcher.close()


def test_processes_that_ask_at_once_share_a_cache(fetcher, server):
    made = fetcher(allows=None, private_addresses=True, timeout=20.0)
    urls = [server.url(f"n{i}.png") for i in range(600, 620)]
    context = multiprocessing.get_context("fork")
    meet = context.Barrier(2)
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    processes = [context.Process(target=fetch_all, args=(made, urls, meet, sends)) for _, sends in pipes]
    for process in processes:
        process.start()
    expected = [encoded(noise(i)) for i in range(600, 620)]
    assert [receives.recv() == expected for receives, _ in pipes] == [True, True]
    for process in processes:
        process.join(30)
    asked = sum(server.requests[f"n{i}.png"] for i in range(600, 620))
    assert [made.get(url) for url in urls] == expected
    assert sum(server.requests[f"n{i}.png"] for i in range(600, 620)) == asked
    assert [path for path in made.cache.root.rglob(".*") if path.name != ".lock"] == []


def test_a_process_that_ends_with_requests_under_way_ends_them_and_says_nothing(server, tmp_path):
    program = f"""
import atexit, threading
atexit.register(lambda: print([thread.name for thread in threading.enumerate() if thread.name.startswith("beni-")]))
from beni.config.compose import compose
from beni.data.fetch.fetcher import Fetcher
fetcher = Fetcher(compose([])["images"] | {{"private_addresses": True, "cache": {str(tmp_path)!r}}})
fetcher.want(["{server.url("hang.jpg?exit")}"])
fetcher.get("{server.url("n9.png")}")
"""
    arguments = [sys.executable, "-W", "error::ResourceWarning", "-c", program]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_a_picture_opened_through_a_fetcher_can_still_be_damaged(fetcher, server, tmp_path):
    url = server.url("n8.png")
    made = fetcher()
    made.get(url)
    (blob,) = (tmp_path / "cache" / "blobs").glob("*/*")
    blob.write_bytes(b"something else")
    assert made.get(url) == encoded(noise(8))
    assert server.requests["n8.png"] == 2
    assert isinstance(made.open(url), PILImage.Image)
