"""The server of the view, asked by a real client: what it answers, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import shutil
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType
from aiohttp.test_utils import TestClient, TestServer
from dreamer_run import train_small_dreamer

from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.view import access
from dreamfleet.deploy.view.access import Access, Bucket
from dreamfleet.deploy.view.dream_session import DreamSession
from dreamfleet.deploy.view.moment import encode_picture
from dreamfleet.deploy.view.server import IDLE, TOO_MANY, Server
from dreamfleet.deploy.view.viewed_run import ViewedRun, view_of
from dreamfleet.learner.checkpoints.files import file_name

Header = dict[str, Any]
Client = TestClient[Any, Any]
PICTURE = ("--env.kwargs", "{length: 20, picture: true, image: 16}", "--env.image_size", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with a small Dreamer's run on pictures, and stay where its environment can be imported."""
    folder = tmp_path_factory.mktemp("served")
    train_small_dreamer(folder, *PICTURE, "--train.env_steps", "200", "--records.checkpoint_every", "10")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def viewed(folder: Path) -> Iterator[ViewedRun]:
    """Return that run as it is viewed."""
    viewed = view_of(folder / "run")
    yield viewed
    viewed.close()


def visit(viewed: ViewedRun, work: Callable[[Client], Awaitable[None]], enters: bool = True, **options: Any) -> None:
    """Serve a run, do something with a client that has opened the printed address, and end."""

    async def serve() -> None:
        server = Server(viewed, Access(), **options)
        async with TestClient(TestServer(server.application())) as client:
            client.secret = server.access.token  # type: ignore[attr-defined]
            if enters:
                answer = await client.get("/", params={"token": server.access.token})
                assert answer.status == 200
            await asyncio.wait_for(work(client), 120)

    asyncio.run(serve())


async def said(client: Client, path: str, **query: Any) -> Any:
    """Return what a path answers, as JSON."""
    answer = await client.get(path, params={name: str(value) for name, value in query.items()})
    assert answer.status == 200, await answer.text()
    return await answer.json()


async def heard(socket: ClientWebSocketResponse) -> tuple[Header, list[bytes]]:
    """Return the next message's header and its pictures."""
    message = await socket.receive_bytes()
    (length,) = struct.unpack("<I", message[:4])
    header = json.loads(message[4 : 4 + length])
    images, at = [], 4 + length
    for image in header["images"]:
        images.append(message[at : at + image["bytes"]])
        at += image["bytes"]
    assert at == len(message)
    return header, images


async def ask(socket: ClientWebSocketResponse, **message: Any) -> tuple[Header, list[bytes]]:
    """Say something to a session and return its answer."""
    await socket.send_str(json.dumps(message))
    return await heard(socket)


def decoded(data: bytes) -> np.ndarray:
    """Return an encoded picture, colours in our order."""
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert found is not None
    return found[..., ::-1]


# Refusals -------------------------------------------------------------------------------------------------------------


def test_nothing_is_answered_without_the_token(viewed: ViewedRun) -> None:
    """Not a page, not a file, not a socket; a wrong token is none, and the right one is taken at the door alone."""

    async def work(client: Client) -> None:
        secret = client.secret  # type: ignore[attr-defined]
        for path in ("/", "/api/run", "/api/episodes", "/page/index.html", "/ws/dream", "/nowhere", "/?token=wrong"):
            answer = await client.get(path)
            assert answer.status == 403, path
            assert "the address that `dreamfleet view` printed" in await answer.text()
        assert (await client.get("/api/run", params={"token": secret})).status == 403
        assert (await client.post("/api/checkpoint", json={"updates": "best"})).status == 403
        wrong = await client.get("/api/run", headers={"Cookie": f"dreamfleet_view={secret}"})
        assert wrong.status == 403
        entered = await client.get("/", params={"token": secret}, allow_redirects=False)
        assert (entered.status, entered.headers["Location"]) == (303, "/")
        assert all(word in entered.headers["Set-Cookie"] for word in ("HttpOnly", "SameSite=Strict"))
        page = await client.get("/")
        assert page.status == 200
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]

    visit(viewed, work, enters=False)


def test_another_origin_is_refused(viewed: ViewedRun) -> None:
    """Also with the cookie; the page's own origin is not."""

    async def work(client: Client) -> None:
        own = f"http://{client.host}:{client.port}"
        for origin, status in ((own, 200), ("http://evil.example", 403), (f"http://{client.host}", 403), ("null", 403)):
            assert (await client.get("/api/run", headers={"Origin": origin})).status == status
        socket = await client.ws_connect("/ws/dream", headers={"Origin": own})
        await socket.close()
        refused = await client.get("/ws/dream", headers={"Origin": "http://evil.example"})
        assert refused.status == 403

    visit(viewed, work)


def test_no_path_reaches_a_file(viewed: ViewedRun) -> None:
    """Names are looked up among those that the server has listed itself."""

    async def work(client: Client) -> None:
        for path in (
            "/page/../server.py",
            "/page/%2e%2e%2fserver.py",
            "/page/..%5cserver.py",
            "/page//etc/passwd",
            "/api/pictures/..%2f..%2fconfig.yaml",
            "/api/pictures/%2fetc%2fpasswd",
            "/config.yaml",
        ):
            answer = await client.get(path)
            assert answer.status == 404, path
        answer = await client.get("/api/episodes/..%2f..%2fconfig.yaml")
        assert answer.status == 400
        assert "is no id of an episode" in (await answer.json())["error"]

    visit(viewed, work)


def test_what_is_too_large_or_malformed(viewed: ViewedRun) -> None:
    """One sentence, and the session goes on; a message beyond any size ends it."""

    async def work(client: Client) -> None:
        large = await client.post("/api/checkpoint", data=b"x" * (access.MOST_BODY_BYTES + 1))
        assert large.status == 413
        for body in (b"", b"{", b"[]", b'{"updates": -1}', b'{"updates": "../x"}', b'{"updates": true}'):
            assert (await client.post("/api/checkpoint", data=body)).status == 400
        async with client.ws_connect("/ws/dream") as socket:
            for text in ("", "nonsense", "[]", "[" * 5000, '{"do": 3}', '{"do": "dance"}', '{"do": "start"}', "{}"):
                await socket.send_str(text)
                header, _ = await heard(socket)
                assert header["kind"] == "error"
            await socket.send_bytes(b"\x00\x01")
            assert (await heard(socket))[0]["kind"] == "error"
            for message, words in (
                ({"do": "step", "action": 0}, "no dream was started"),
                ({"do": "start", "from": {"episode": "1.2.3.4", "step": 0}}, r"no episode 1.2.3.4"),
                ({"do": "start", "from": {"episode": "../x", "step": 0}}, "is no id of an episode"),
                ({"do": "start", "from": {"reset": -1}}, "whole number"),
                ({"do": "start", "from": {"reset": 1}, "futures": 5}, "1, 4, 9, 16"),
                ({"do": "start", "from": {"reset": 1}, "sample": "yes"}, "true or false"),
                ({"do": "start", "from": {"reset": 1}, "format": "bmp"}, "jpeg or png"),
                ({"do": "open", "take": [1]}, "no take"),
            ):
                header, _ = await ask(socket, **message)
                assert header["kind"] == "error", message
                assert words in header["text"]
            await socket.send_str('"' + "x" * (access.MOST_MESSAGE_BYTES + 10) + '"')
            assert (await socket.receive()).type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.ERROR)
            assert socket.close_code == 1009

    visit(viewed, work)


def test_sessions_are_few_and_idle_ones_end(viewed: ViewedRun) -> None:
    """One more than allowed is told so; after an idle one has ended there is room again."""

    async def work(client: Client) -> None:
        first = await client.ws_connect("/ws/dream")
        second = await client.ws_connect("/ws/play")
        third = await client.ws_connect("/ws/dream")
        header, _ = await heard(third)
        assert "2 sessions already" in header["text"]
        assert (await third.receive()).data == TOO_MANY
        for socket in (first, second):
            assert "nothing was asked" in (await heard(socket))[0]["text"]
            assert (await socket.receive()).data == IDLE
        async with client.ws_connect("/ws/dream") as fourth:
            assert (await ask(fourth, **{"do": "start", "from": {"reset": 1}}))[0]["kind"] == "moment"

    visit(viewed, work, idle_s=1.0, most_sessions=2)


def test_rates_are_bounded() -> None:
    """So many at once, then so many a second; what was refused counts for nothing."""
    now = [0.0]
    bucket = Bucket(per_s=10, at_once=3, clock=lambda: now[0])
    assert [bucket.take() for _ in range(3)] == [0, 0, 0]
    assert bucket.take() == pytest.approx(0.1)
    bucket.give_back()
    now[0] = 0.1
    assert bucket.take() == pytest.approx(0.0)
    assert bucket.take() > 0
    now[0] = 100.0
    assert [bucket.take() > 0 for _ in range(4)] == [False, False, False, True]


def test_too_many_requests_are_refused(viewed: ViewedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """With when to come again."""
    monkeypatch.setattr(access, "REQUESTS_AT_ONCE", 5.0)
    monkeypatch.setattr(access, "REQUESTS_PER_S", 0.1)

    async def work(client: Client) -> None:
        answers = [await client.get("/page/nothing") for _ in range(8)]
        assert [answer.status for answer in answers][-1] == 429
        assert int(answers[-1].headers["Retry-After"]) >= 1

    visit(viewed, work)


# Answers --------------------------------------------------------------------------------------------------------------


def test_the_facts_of_a_run(viewed: ViewedRun) -> None:
    """What status says, settings with what differs from the nearest presets, evaluations, pictures, spaces."""

    async def work(client: Client) -> None:
        facts = await said(client, "/api/run")
        assert (facts["name"], facts["kind"], facts["state"], facts["has_model"]) == ("run", "run", "finished", True)
        assert facts["updates"] == facts["newest_updates"] == max(facts["checkpoints"])
        assert "progress" in facts["status"]
        assert {"debug", "dreamer_v3"} <= set(facts["presets"])
        differing = {row["name"]: (row["value"], row["preset"]) for row in facts["settings"] if row["differs"]}
        assert differing["env.id"][0] == "my_world:make"
        assert "loss.horizon" not in differing
        assert len(differing) < 20
        assert facts["observations"] == [{"name": "image", "shape": [16, 16, 3], "kind": "picture"}]
        assert facts["actions"]["choices"] == [3]
        assert facts["actions"]["keys"]["ArrowLeft"] == 0
        assert facts["has_value"]
        assert facts["has_policy"]
        picture = await client.get(f"/api/pictures/{facts['pictures'][0]}")
        assert picture.status == 200
        assert picture.content_type in ("image/png", "video/webm")

    visit(viewed, work)


def test_episodes_and_their_frames(viewed: ViewedRun, folder: Path) -> None:
    """A frame is the recorded one, without loss as PNG; its reconstruction and the prediction from it are pictures."""
    episode = next(view_of_replay(folder))

    async def work(client: Client) -> None:
        until = time.monotonic() + 30
        while (listed := await said(client, "/api/episodes"))["returns_known"] < listed["count"]:
            assert time.monotonic() < until
            await asyncio.sleep(0.05)
        row = listed["episodes"][0]
        assert row["return"] == pytest.approx(float(episode["reward"].sum()))
        whole = await said(client, f"/api/episodes/{row['id']}")
        assert whole["length"] == row["length"] == len(episode["reward"])
        assert whole["actions"] == episode["action"].tolist()
        assert whole["rewards"] == pytest.approx(episode["reward"].tolist())
        assert whole["is_last"] == episode["is_last"].tolist()
        place = f"/api/episodes/{row['id']}"
        frame = await client.get(f"{place}/frame", params={"name": "image", "step": "7", "format": "png"})
        assert frame.content_type == "image/png"
        assert np.array_equal(decoded(await frame.read()), episode["image"][7])
        seen = await client.get(f"{place}/reconstruction", params={"name": "image", "step": "7", "format": "png"})
        assert decoded(await seen.read()).shape == (16, 16, 3)
        strip = await client.get(
            f"{place}/prediction", params={"name": "image", "step": "7", "count": "5", "format": "png"}
        )
        pixels = decoded(await strip.read())
        assert pixels.shape == (32, 5 * 16, 3)
        assert np.array_equal(pixels[:16, :16], episode["image"][8])
        for query in ({"step": "7"}, {"name": "image"}, {"name": "image", "step": "999"}, {"name": "x", "step": "1"}):
            assert (await client.get(f"{place}/frame", params=query)).status == 400
        assert (await client.get("/api/episodes", params={"sort": "beauty"})).status == 400

    visit(viewed, work)


def view_of_replay(folder: Path) -> Iterator[dict[str, np.ndarray]]:
    """Yield the recorded episodes of the run."""
    import dreamfleet as df

    return iter(df.Replay(folder / "run").episodes())


def test_a_dream_over_the_socket_is_the_session_s(viewed: ViewedRun) -> None:
    """Step by step, picture by picture: through branches, futures, a take and its opening."""
    start = {"episode": viewed.episodes.listed()["episodes"][1]["id"], "step": 4}
    own: DreamSession = viewed.dream(start, seed=3, image_format="png")

    async def work(client: Client) -> None:
        async with client.ws_connect("/ws/dream") as socket:
            header, images = await ask(socket, **{"do": "start", "from": start, "seed": 3, "format": "png"})
            assert images == own.moment().images
            for action in ("recorded", "recorded", 1, "policy"):
                header, images = await ask(socket, do="step", action=action)
                expected = own.step(action)
                assert images == expected.images
                assert header["reward_sum"] == pytest.approx(expected.header["reward_sum"])
            assert (await ask(socket, do="rewind", to=2))[1] == own.rewind(2).images
            header, _ = await ask(socket, do="set", futures=4, sample=False)
            own.set(samples=False, futures=4)
            header, images = await ask(socket, do="step", action=2)
            assert images == own.step(2).images
            assert (header["index"], header["last"]) == (3, 3)
            assert (await ask(socket, do="step", action=9))[0]["kind"] == "error"
            header, _ = await ask(socket, do="save")
            assert header["take"] == own.save()
            again, pictures = await ask(socket, do="open", take=header["take"], format="png")
            assert (again["index"], pictures) == (3, images)
            assert "note" not in again
            gone = await ask(socket, do="open", take=header["take"] | {"updates": 1})
            assert "which is gone" in gone[0]["note"]

    visit(viewed, work)
    own.close()


def test_the_agent_plays_over_the_socket(viewed: ViewedRun) -> None:
    """By the policy, taken over, and in another format; two visitors have episodes of their own."""

    async def work(client: Client) -> None:
        async with client.ws_connect("/ws/play") as one, client.ws_connect("/ws/play") as two:
            assert (await ask(one, do="step", action=1))[0]["text"] == "no play was started"
            assert [i["role"] for i in (await ask(one, do="start", seed=1))[0]["images"]] == ["real", "belief", "strip"]
            await ask(two, do="start", seed=2)
            for number, action in enumerate(("policy", 2, "policy"), 1):
                header, _ = await ask(one, do="step", action=action)
                assert header["index"] == number
            assert (await ask(two, do="step", action="policy"))[0]["index"] == 1
            _, images = await ask(one, do="set", format="png")
            assert images[0].startswith(b"\x89PNG")
            assert (await ask(one, do="dance"))[0]["kind"] == "error"

    visit(viewed, work)


def test_a_newer_checkpoint_is_offered_and_not_forced(folder: Path) -> None:
    """What is shown stays, until the visitor asks for another; sessions that have begun keep theirs."""
    run = shutil.copytree(folder / "run", folder / "growing")
    numbers = sorted(int(path.stem.split("-")[1]) for path in (run / "checkpoints").glob("*.json"))
    assert len(numbers) > 1
    hidden = {name: (run / "checkpoints" / name).read_bytes() for name in _files_of(numbers[-1])}
    for name in hidden:
        (run / "checkpoints" / name).unlink()
    viewed = view_of(run)

    async def work(client: Client) -> None:
        facts = await said(client, "/api/run")
        assert facts["updates"] == facts["newest_updates"] == numbers[-2]
        async with client.ws_connect("/ws/dream") as socket:
            await ask(socket, **{"do": "start", "from": {"reset": 1}})
            for name, data in hidden.items():
                (run / "checkpoints" / name).write_bytes(data)
            facts = await said(client, "/api/run")
            assert (facts["updates"], facts["newest_updates"]) == (numbers[-2], numbers[-1])
            loaded = await client.post("/api/checkpoint", json={"updates": "newest"})
            assert (await loaded.json())["updates"] == numbers[-1]
            assert (await ask(socket, do="step", action=1))[0]["kind"] == "moment"
            assert (await ask(socket, do="save"))[0]["take"]["updates"] == numbers[-2]
            await ask(socket, **{"do": "start", "from": {"reset": 1}})
            assert (await ask(socket, do="save"))[0]["take"]["updates"] == numbers[-1]
        missing = await client.post("/api/checkpoint", json={"updates": 10**9})
        assert missing.status == 400
        assert "there is no checkpoint" in (await missing.json())["error"]
        assert (await said(client, "/api/run"))["updates"] == numbers[-1]

    visit(viewed, work)


def _files_of(number: int) -> list[str]:
    return [file_name(number, ending) for ending in ("pt", "json")]


def test_a_run_that_vanishes_is_no_crash(folder: Path) -> None:
    """Each question is answered in one sentence; a dream that has begun goes on, since it needs no files."""
    run = shutil.copytree(folder / "run", folder / "vanishing")
    viewed = view_of(run)

    async def work(client: Client) -> None:
        episode = (await said(client, "/api/episodes"))["episodes"][0]["id"]
        async with client.ws_connect("/ws/dream") as socket:
            await ask(socket, **{"do": "start", "from": {"episode": episode, "step": 2}})
            shutil.rmtree(run)
            await asyncio.sleep(1.1)  # the list is refreshed once a second
            assert (await ask(socket, do="step", action="recorded"))[0]["kind"] == "moment"
            header, _ = await ask(socket, **{"do": "start", "from": {"episode": episode, "step": 2}})
            assert header["kind"] == "error"
        for path in ("/api/run", f"/api/episodes/{episode}", f"/api/episodes/{episode}/frame?name=image&step=1"):
            answer = await client.get(path)
            assert answer.status == 400, path
            assert (await answer.json())["error"]
        assert (await said(client, "/api/episodes"))["episodes"] == []
        assert (await client.post("/api/checkpoint", json={"updates": "newest"})).status == 400
        assert (await client.post("/api/tensorboard")).status == 400

    visit(viewed, work)


def test_a_dataset_has_episodes_and_no_model(folder: Path) -> None:
    """The model's parts say so in one sentence."""
    flags = ("--env.id", "my_world:make", *PICTURE, "--inline", "--steps", "150", "--out", str(folder / "data"))
    assert main(["collect", *flags]) == 0
    viewed = view_of(folder / "data")

    async def work(client: Client) -> None:
        facts = await said(client, "/api/run")
        assert (facts["kind"], facts["has_model"], facts["updates"]) == ("dataset", False, None)
        episode = (await said(client, "/api/episodes"))["episodes"][0]["id"]
        frame = await client.get(f"/api/episodes/{episode}/frame", params={"name": "image", "step": "3"})
        assert (await frame.read()).startswith(b"\xff\xd8")
        seen = await client.get(f"/api/episodes/{episode}/reconstruction", params={"name": "image", "step": "3"})
        assert seen.status == 400
        for path in ("/ws/dream", "/ws/play"):
            async with client.ws_connect(path) as socket:
                header, _ = await ask(socket, **{"do": "start", "from": {"episode": episode, "step": 3}})
                assert "no model" in header["text"]
        loaded = await client.post("/api/checkpoint", json={"updates": "newest"})
        assert "a dataset has no model" in (await loaded.json())["error"]

    visit(viewed, work)


def test_pictures_keep_their_colours() -> None:
    """Red stays red, and grey is grey."""
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    assert np.array_equal(decoded(encode_picture(red, "png")), red)
