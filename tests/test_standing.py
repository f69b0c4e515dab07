"""The campaigns of `python -m benchmarks stand`: what they send, what they conclude, and all of them in brief."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import records
from benchmarks.__main__ import main
from benchmarks.campaigns import all as campaigns
from benchmarks.campaigns import cases, checks, copies, hostile, overload
from benchmarks.campaigns.checks import Campaign, Check
from benchmarks.campaigns.overload import Flood
from benchmarks.campaigns.target import Target, likeliest
from benchmarks.load.bodies import Body
from benchmarks.load.loops import Done
from benchmarks.load.wire import Pool, Reply, Wire, again_after, get, metric, once, post, request, statuses
from benchmarks.process import ROOT, free_port
from models.console import Usage
from serving.artifact import Artifact

# --- what is sent -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def every_case() -> list[cases.Case]:
    return list(cases.cases(seed=0))


def test_the_hostile_requests_are_thousands_and_the_same_for_a_seed(every_case: list[cases.Case]) -> None:
    assert all(case == again for case, again in zip(every_case, cases.cases(seed=0), strict=True))
    assert any(case != other for case, other in zip(every_case, cases.cases(seed=1), strict=False))
    assert len(every_case) >= hostile.AT_LEAST
    names = Counter((case.family, case.name) for case in every_case)
    assert max(names.values()) == 1, "a failure is found again by its name"


def test_every_format_is_cut_at_every_tenth_byte_and_flipped(every_case: list[cases.Case]) -> None:
    for name in cases.FORMATS:
        ends = [
            int(c.name.split()[-2]) for c in every_case if c.family == "truncated" and c.name.startswith(f"{name} cut")
        ]
        assert ends == list(range(0, ends[-1] + 1, 10)) and ends[-1] > 500
        flips = [c for c in every_case if c.family == "flipped bits" and c.name.rpartition(" ")[0] == name]
        assert len({c.request for c in flips}) > 0.9 * cases.FLIPS


def test_a_bomb_is_small_on_the_wire(every_case: list[cases.Case]) -> None:
    sizes = {c.name: len(c.request) for c in every_case if c.family == "bomb"}
    assert len(sizes) > 30 and max(sizes.values()) < 500_000


@pytest.mark.parametrize(
    ("may", "allowed"),
    [(cases.BAD, [400, 404, 415, 422]), (cases.EITHER, [200, 422]), (cases.PARSER, [0, 400, 431])],
)
def test_what_may_be_answered(may: str, allowed: list[int]) -> None:
    case = cases.Case("a", "b", b"", may)
    assert all(map(case.allows, allowed))
    assert not any(case.allows(status) for status in (0, 200, 299, 301, 500, 503) if status not in allowed)


# --- the wire ---------------------------------------------------------------------------------------------------------

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(talk: Talk) -> AsyncIterator[int]:
    """The port of a server on which every connection is `talk`; every talk has ended after the block."""
    talks: list[asyncio.Task[None]] = []

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.append(task)
        with suppress(OSError, asyncio.IncompleteReadError):  # the client may hang up first
            await talk(reader, writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async with await asyncio.start_server(connection, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*talks)


def says(*pieces: bytes) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)

    return talk


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("pieces", "status", "body"),
    [
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"], 200, b"hi"),
        ([b"HTTP/1.1 404 No", b"t Found\r\ncontent-length: 4\r\n", b"\r\nab", b"cd"], 404, b"abcd"),
        ([b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n", b"to the ", b"end"], 400, b"to the end"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 413 x\r\nContent-Length: 0\r\n\r\n"], 413, b""),
        ([CHUNKED + b"2\r\nhi\r\n0\r\n\r\n"], 200, b"hi"),
        ([CHUNKED + b"2;a=b\r\nh", b"i\r\nA\r\n0123456789\r", b"\n0\r\nTrailer: a\r\n", b"\r\n"], 200, b"hi0123456789"),
        ([CHUNKED + b"5\r\ncut"], 0, b""),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncut"], 0, b""),
        ([b"HTTP/1.1 200"], 0, b""),
        ([], 0, b""),
    ],
)
async def test_an_answer_is_read_to_its_end_or_is_none(pieces: list[bytes], status: int, body: bytes) -> None:
    async with listening(says(*pieces)) as port:
        reply = await once(port, get("/"))
    assert (reply.status, reply.body, reply.lost) == (status, body, "" if status else "disconnected")


async def test_an_answer_that_is_not_http_is_told_at_once() -> None:
    for pieces in ([b"SSH-2.0-OpenSSH\r\n\r\n"], [CHUNKED + b"many\r\n"]):
        async with listening(says(*pieces)) as port:
            assert (await once(port, get("/"))).outcome == "not HTTP"


async def test_nobody_there_is_no_answer() -> None:
    assert await once(free_port(), get("/")) == Reply(lost="unreachable")


async def test_no_answer_in_time_is_none() -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(silent) as port:
        assert await once(port, get("/"), 0.05) == Reply(lost="timeout")


async def test_a_pool_keeps_its_connections_and_counts_those_in_use() -> None:
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for last in (False, False, True):
            await reader.readuntil(b"\r\n\r\n")
            end = b"Connection: close\r\n" if last else b""
            writer.write(b"HTTP/1.1 200 OK\r\n" + end + b"Content-Length: 0\r\n\r\n")

    async with listening(talk) as port:
        pool = Pool(port)
        replies = [await pool.ask(get("/")) for _ in range(4)]
        replies += await asyncio.gather(*(pool.ask(get("/")) for _ in range(2)))
        pool.close()
    assert [reply.status for reply in replies] == [200] * 6 and pool.most == 2
    assert connections == 3, "one that said close, one that was kept, and one beside it"


def test_a_reply_knows_its_headers_and_its_json() -> None:
    assert statuses([Reply(429), Reply(200), Reply(lost="timeout"), Reply(200)]) == {"200": 2, "429": 1, "timeout": 1}
    assert again_after(Reply(429)) == again_after(Reply(lost="timeout")) == 0.01 and again_after(Reply(200)) == 0
    reply = Reply(429, b"HTTP/1.1 429 x\r\nRetry-After: 3\r\ncontent-type: a", b'{"predictions": [{"class_id": 7}]}')
    assert (reply.header(b"retry-after"), reply.header(b"server")) == (b"3", None)
    assert likeliest(reply) == 7
    assert likeliest(reply._replace(body=b"[]")) == likeliest(Reply()) == -1


def test_what_is_sent_by_hand_is_http() -> None:
    head, _, body = post(b"body", "image/png", "/classify?top_k=1", ("A", "b")).partition(b"\r\n\r\n")
    assert body == b"body" and head.startswith(b"POST /classify?top_k=1 HTTP/1.1\r\nHost: ")
    assert {b"Content-Type: image/png", b"Content-Length: 4", b"A: b"} <= set(head.split(b"\r\n"))


async def test_a_connection_can_be_hung_up() -> None:
    seen = []

    async def talk(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        seen.append(await reader.read())

    async with listening(talk) as port:
        wire = await Wire.to(port)
        wire.send(b"half")
        await asyncio.sleep(0.01)
        wire.close()
        await asyncio.sleep(0.01)
    assert not wire.open and seen == [b"half"]


# --- what is concluded ------------------------------------------------------------------------------------------------


def test_a_check_holds_within_its_bound_and_never_without_a_figure() -> None:
    assert Check("a", 2, "<=", 2).holds and Check("a", 2, ">=", 2).holds and Check("a", True, "=", True).holds
    assert not Check("a", 3, "<=", 2).holds and not Check("a", 1, ">=", 2).holds and not Check("a", 0, "=", 1).holds
    assert not any(Check("a", None, sign, 0).holds for sign in checks.SIGNS)
    assert not Campaign("nothing was looked at", []).passed


def test_a_metric_is_the_sum_over_its_labels() -> None:
    text = '# TYPE a gauge\na 2.0\na_sum{m="x",s="t"} 1.5\na_sum{m="y",s="t"} 2\na_sum{m="y",s="u"} 8\n'
    assert metric(text, "a") == 2 and metric(text, "a_sum") == 11.5 and metric(text, "a_sum", 's="t"') == 3.5
    assert metric(text, "b") is None and metric(text, "a", 's="t"') is None and metric(text, "a_sum", 's="v"') is None


async def test_hostile_requests_are_held_to_what_they_may_get() -> None:
    """Against a server that answers everything 422, and 500 where the bytes say so."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = await reader.readuntil(b"\r\n\r\n")
        status = b"500" if b"/crash" in sent else b"200" if b"/fine" in sent else b"422"
        if b"/drop" not in sent:
            writer.write(b"HTTP/1.1 " + status + b" x\r\nContent-Length: 0\r\n\r\n")

    def case(path: str, may: str = cases.BAD) -> cases.Case:
        return cases.Case("f", f"{path} {may}", request(target=path), may)

    sent = [case("/bad"), case("/crash"), case("/fine"), case("/fine", cases.EITHER), case("/drop")]
    sent += [case("/drop", cases.PARSER), case("/crash", cases.PARSER)]

    async with listening(talk) as port:
        pool = Pool(port)
        asked, good = await hostile.send_cases(target(), pool, iter(sent * 10))
        pool.close()
    verdicts = {case.name: case.allows(reply.status) for case, reply in asked}
    assert verdicts == {
        "/bad 4xx": True, "/crash 4xx": False, "/fine 4xx": False, "/fine 4xx or 200": True, "/drop 4xx": False,
        "/drop 4xx or closed": True, "/crash 4xx or closed": False,
    }  # fmt: skip
    assert len(asked) == 70 and len(good) == 1


def target() -> Target:
    bodies = [Body(bytes(size), "image/jpeg") for size in (300, 100, 200)]
    return Target("tiny", "auto", "auto", bodies, True, Path())


def test_photographs_are_chosen_by_size() -> None:
    assert b"Content-Length: 200\r\n" in target().request and b"Content-Length: 100\r\n" in target().smallest


def flood() -> Flood:
    """100 a second; then a thousand a second, of which 100 are accepted and 900 refused; then 100 a second again."""
    ok, refused = Reply(200, b"", b"{}"), Reply(429, b"HTTP/1.1 429 x\r\nretry-after: 1")
    calm = [Done(i / 100, i / 100, i / 100 + 0.01, ok) for i in range(100)]
    sent = [Done(i / 1000, i / 1000, i / 1000 + 0.1, refused if i % 10 else ok) for i in range(1000)]
    rest = [Done(1 + done.due, 1 + done.sent, 1 + done.ended, ok) for done in calm]
    return Flood(calm, 1.0, sent, 0.9, 1.0, rest)


def failing(campaign: Campaign) -> list[str]:
    return [check.what for check in campaign.checks if not check.holds]


def test_an_overload_that_is_withstood_passes() -> None:
    campaign = flood().judged()
    assert failing(campaign) == [] and campaign.passed
    assert campaign.figures["statuses"] == {"200": 100, "429": 900} and campaign.figures["capacity_per_s"] == 100


def test_an_overload_fails_for_what_went_wrong() -> None:
    sent = flood().sent

    def failing_with(requests: list[Done[Reply]]) -> list[str]:
        return failing(replace(flood(), sent=requests).judged())

    for lost in (Reply(), Reply(500), Reply(504)):
        assert failing_with([replace(sent[0], answer=lost), *sent[1:]]) == ["lost"]
    mute = replace(sent[1], answer=Reply(503, b"HTTP/1.1 503 x"))
    assert failing_with([sent[0], mute, *sent[2:]]) == ["of these without Retry-After"]
    late = [replace(done, ended=done.ended + 3 * (done.answer.status == 200)) for done in sent]
    assert failing_with(late) == ["p99 of accepted requests"]
    slow = [replace(done, ended=done.ended + 3 * (done.answer.status == 429)) for done in sent]
    assert failing_with(slow) == ["p99 of refusals"]
    # A client that could not offer as much has not overloaded the service, whatever it was told to do.
    behind = [replace(done, sent=3 * done.sent, ended=3 * done.ended) for done in sent]
    assert "offered, times the capacity" in failing_with(behind)
    gone = replace(flood(), rest=[])
    assert failing(gone.judged()) == ["until 90% of the capacity is back"]
    dead = replace(flood(), before=[])
    assert "offered, times the capacity" in failing(dead.judged())


def test_the_capacity_is_back_when_it_stays() -> None:
    steady = [0.005 + i / 100 for i in range(200)]
    assert overload.back_after(steady, 100.0) == 0
    # Nothing for half a second but one burst.
    burst = [0.2] * 12 + [t for t in steady if t > 0.5]
    assert overload.back_after(burst, 100.0) == pytest.approx(0.4, abs=0.11)
    assert overload.back_after(steady, 150.0) is None and overload.back_after([], 100.0) is None


def test_files_of_a_copy_are_its_own_once_rewritten(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "model.yaml").write_text("name: a\nversion: one\n")
    (folder / "fp32.onnx").write_bytes(b"graph")
    made = copies.copied(folder, tmp_path / "store", "a", "two")
    assert (made / "model.yaml").read_text() == "name: a\nversion: two\n"
    assert (made.parent / "latest").read_text() == "two"
    copies.rewrite(made / "fp32.onnx", b"garbage")
    assert (folder / "fp32.onnx").read_bytes() == b"graph" and "one" in (folder / "model.yaml").read_text()


# --- the command ------------------------------------------------------------------------------------------------------

PAGE = "# Standing\n\n<!-- standing -->\nstale\n<!-- /standing -->\n\nafter\n"


def pretended(monkeypatch: pytest.MonkeyPatch, holds: bool) -> None:
    def run(names: list[str], *_: object) -> Iterator[Campaign]:
        for name in names:
            yield Campaign(name, [Check("lost", 0 if holds or name != "soak" else 3, "=", 0)], {"per_s": 5.0}, 1.0)

    monkeypatch.setattr(campaigns, "run", run)


def test_the_command_writes_the_file_and_the_page(
    tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretended(monkeypatch, holds=True)
    out, page = tmp_path / "r" / "tiny.json", tmp_path / "standing.md"
    page.write_text(PAGE)
    assert main(["stand", tiny.tag, "--out", str(out), "--into", str(page)]) == 0
    found = json.loads(out.read_text())
    assert [c["name"] for c in found["campaigns"]] == list(campaigns.CAMPAIGNS)
    assert found["environment"]["settings"] == "full" and found["environment"]["cpu"]
    assert "passed, 1 checks" in capsys.readouterr().out
    written = page.read_text()
    assert "stale" not in written and written.endswith("after\n") and "| soak | lost | 0 | 0 | holds |" in written
    # The same table from the file.
    page.write_text(PAGE)
    assert main(["stand", str(out), "--into", str(page)]) == 0
    assert page.read_text() == written


def test_a_failed_campaign_fails_the_command_and_can_be_run_again_alone(
    tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tiny.json"
    pretended(monkeypatch, holds=False)
    assert main(["stand", tiny.tag, "--out", str(out)]) == 1
    printed, error = capsys.readouterr()
    assert f"1 of {len(campaigns.CAMPAIGNS)} campaigns failed: soak" in error and "failed: lost: 3, not 0" in printed
    pretended(monkeypatch, holds=True)
    assert main(["stand", tiny.tag, "--only", "soak", "--out", str(out)]) == 0
    assert len(json.loads(out.read_text())["campaigns"]) == len(campaigns.CAMPAIGNS)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--only", "earthquake"], "no campaign is called 'earthquake'; there are hostile, overload"),
        (["--into", "missing.md"], "<!-- standing -->"),
    ],
)
def test_what_is_not_there_is_a_usage_error(
    tiny: Artifact, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(["stand", tiny.tag, *more]) == 2
    assert message in capsys.readouterr().err


def test_a_file_of_something_else_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text in ("[]", "{}", "no JSON"):
        path.write_text(text)
        with pytest.raises(Usage, match=r"a\.json"):
            records.read_campaigns(path)


RESULTS = sorted((ROOT / "benchmarks" / "results" / "standing").glob("*.json"))


@pytest.mark.skipif(not RESULTS, reason="no campaign has been run in full yet")
def test_the_committed_campaigns_passed() -> None:
    for path in RESULTS:
        document = records.read_campaigns(path)
        assert document["environment"]["settings"] == "full"
        assert {c["name"]: c["passed"] for c in document["campaigns"]} == dict.fromkeys(campaigns.CAMPAIGNS, True)


# What a machine, and who else uses it, decides: times, memory and how much a client can send.
BY_MACHINE = ("s", "ms", "MB")
BY_MACHINE_TOO = ("times the capacity", "of what is usual", "cores busy")


@pytest.mark.slow
def test_the_service_withstands_every_campaign_in_brief(
    tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ten times what this network does is more than a server of any kind takes in.
    monkeypatch.setattr(overload, "TIMES", 2)
    out = tmp_path / "tiny.json"
    assert main(["stand", tiny.tag, "--engine", "onnxruntime", "--brief", "--out", str(out)]) in (0, 1)
    found = {campaign["name"]: campaign for campaign in records.read_campaigns(out)["campaigns"]}
    assert list(found) == list(campaigns.CAMPAIGNS)
    for name, campaign in found.items():
        for check in campaign["checks"]:
            if check["unit"] not in BY_MACHINE and not any(words in check["what"] for words in BY_MACHINE_TOO):
                assert check["holds"], (name, check, campaign["figures"])
