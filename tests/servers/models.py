"""A server of embedding models: it speaks as OpenAI, Cohere and Ollama do, and fails as a test tells it to.

The formats are those of https://platform.openai.com/docs/api-reference/embeddings/create,
https://docs.cohere.com/reference/embed and https://github.com/ollama/ollama/blob/main/docs/api.md#generate-embeddings.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections import deque
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from tests.servers.listening import Listener, Stream, abort

__all__ = ["Answer", "ModelServer", "Request", "vector_of"]


def vector_of(text: str, dimensions: int = 4) -> list[float]:
    """Return the vector this server's model has for a text; float32 holds its numbers exactly."""
    return [byte / 128 - 1 for byte in blake2b(text.encode(), digest_size=dimensions).digest()]


class Request(NamedTuple):
    """What a client asked."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def texts(self) -> list[str]:
        """The texts to embed."""
        texts: list[str] = self.body["texts" if self.path == "/v2/embed" else "input"]
        return texts


@dataclass(frozen=True)
class Answer:
    """What the server does with a request.

    Args:
        status: the status it answers with.
        body: bytes it answers with, or a document as JSON; None is the right answer, or an error in the API's own form.
        backwards: the vectors come in the reverse order, where each says which text it is of.
        cut: the connection is broken off in the middle of the answer.
        hangs: no answer comes until the client gives up.
    """

    status: int = 200
    body: Any = None
    backwards: bool = False
    cut: bool = False
    hangs: bool = False


class ModelServer(Listener):
    """Answers each request by the next of `script`, and by `rest` when that is used up."""

    def __init__(self) -> None:
        super().__init__()
        self.url = f"http://127.0.0.1:{self.port}"
        self.script: deque[Answer] = deque()
        self.rest = Answer()
        self.requests: list[Request] = []
        self.dimensions = 4
        self.connections = self.under_way = self.most_under_way = self.given_up = 0
        self.asked = asyncio.Event()

    async def serve(self, client: Stream) -> None:
        """Answer the requests of one connection until the client closes it."""
        self.connections += 1
        try:
            while await self._answer(client):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # clients close connections, also in the middle of a request
        finally:
            self.connections -= 1

    async def until_closed(self) -> None:
        """Wait until no client is connected."""
        while self.connections:
            await asyncio.sleep(0.001)

    async def _answer(self, client: Stream) -> bool:
        reader, writer = client
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        request = Request(head[0].split()[1], headers, body)
        self.requests.append(request)
        self.asked.set()
        answer = self.script.popleft() if self.script else self.rest
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if answer.hangs:
                await reader.read(1)
                self.given_up += 1
                return False
            await asyncio.sleep(0)  # let others in, so that what is sent at once is seen at once
        finally:
            self.under_way -= 1
        payload = (
            answer.body if isinstance(answer.body, bytes) else json.dumps(self._document(request, answer)).encode()
        )
        lines = [f"HTTP/1.1 {answer.status} -", "content-type: application/json", f"content-length: {len(payload)}"]
        if answer.status >= 400:
            lines.append("retry-after-ms: 1")  # not the clients' own pauses of seconds
        writer.write("\r\n".join([*lines, "\r\n"]).encode() + (payload[:-10] if answer.cut else payload))
        await writer.drain()
        if answer.cut:
            abort(writer)
        return not answer.cut

    def _document(self, request: Request, answer: Answer) -> Any:
        if answer.body is not None:
            return answer.body
        if answer.status >= 400:
            error = f"the server says {answer.status}"
            return {"/v2/embed": {"message": error}, "/api/embed": {"error": error}}.get(
                request.path, {"error": {"message": error, "type": "server_error", "code": None}}
            )
        vectors = [vector_of(text, self.dimensions) for text in request.texts]
        if request.path == "/v2/embed":
            return {"id": "1", "embeddings": {"float": vectors}, "texts": request.texts}
        if request.path == "/api/embed":
            return {"model": request.body["model"], "embeddings": vectors, "total_duration": 1, "prompt_eval_count": 1}
        entries = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
        if request.body.get("encoding_format") == "base64":
            for entry, vector in zip(entries, vectors, strict=True):
                entry["embedding"] = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        data = entries[::-1] if answer.backwards else entries
        return {"object": "list", "data": data, "model": request.body["model"], "usage": usage}
