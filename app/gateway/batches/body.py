"""Incremental parsing of a batch's body, NDJSON or a JSON array, while it arrives."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import ijson

from app.gateway.door.complexity import parts_of, too_many_parts
from app.gateway.json_bodies import Members, NamedTwice, parsed_json
from cynosure.contract import MAX_BATCH_LINES
from cynosure.errors import BodyTooLarge, CynosureError, MalformedBody

MAX_NESTING = 32  # a request has five levels at most


class Nesting:
    """Counts how deep a JSON array is nested and how many parts each of its elements has, while it arrives.

    ijson's C parser has no limit of its own: 200,000 brackets overflow the stack and kill the process.
    """

    _MARKS = re.compile(rb'\\.|[",\[\]{}]', re.DOTALL)

    def __init__(self, max_parts: int) -> None:
        self._max_parts = max_parts
        self._depth, self._in_text, self._is_escaped = 0, False, False
        self._element, self._parts = 1, 0

    def feed(self, chunk: bytes) -> None:
        """Check the next piece.

        Raises:
            MalformedBody: it is nested too deeply.
            BodyTooLarge: an element has too many parts.
        """
        if self._is_escaped and chunk:
            chunk, self._is_escaped = chunk[1:], False
        end = 0
        for match in self._MARKS.finditer(chunk):
            mark, end = match.group(), match.end()
            if mark == b'"':
                self._in_text = not self._in_text
            elif not self._in_text and len(mark) == 1:
                self._count(mark)
        self._is_escaped = chunk.endswith(b"\\") and end < len(chunk)

    def _count(self, mark: bytes) -> None:
        if mark == b"," and self._depth == 1:
            self._element, self._parts = self._element + 1, 0
            return
        if mark != b",":
            self._depth += 1 if mark in b"[{" else -1
        if self._depth > MAX_NESTING:
            raise MalformedBody(f"The body is nested more than {MAX_NESTING} levels deep.")
        self._parts += mark in b",[{"
        if self._parts > self._max_parts:
            raise at_line(too_many_parts("this", self._max_parts), self._element)


def at_line(error: CynosureError, line: int) -> CynosureError:
    """Add the line at fault, counted from 1, to the error."""
    error.line = line
    error.detail = f"line {line}: {error.detail}"
    return error


async def objects_of(
    chunks: AsyncIterator[bytes], *, max_line_bytes: int, max_parts: int
) -> AsyncIterator[dict[str, Any]]:
    """Yield every object of the body; each has at most `max_parts` commas, braces and brackets.

    Raises:
        MalformedBody: the body is neither format; names the line, which in an array is the element's number.
        BodyTooLarge: a line, its parts, or the number of lines is over the limit.
    """
    head, rest = await _first_of(chunks)
    is_array = head.lstrip()[:1] == b"["
    values = _array(head, rest, max_parts) if is_array else _lines(head, rest, max_line_bytes, max_parts)
    count = 0
    async for value in values:
        count += 1
        if count > MAX_BATCH_LINES:
            raise BodyTooLarge(f"A batch has at most {MAX_BATCH_LINES:,} requests.")
        if not isinstance(value, dict):
            raise at_line(MalformedBody("this is not a JSON object."), count)
        yield value


async def _first_of(chunks: AsyncIterator[bytes]) -> tuple[bytes, AsyncIterator[bytes]]:
    """Split the body after the chunk with its first visible byte."""
    head = b""
    async for chunk in chunks:
        head += chunk
        if head.strip():
            break
    return head, chunks


async def _array(head: bytes, rest: AsyncIterator[bytes], max_parts: int) -> AsyncIterator[Any]:
    values: Any = ijson.sendable_list()
    parser = ijson.items_coro(values, "item", use_float=True, map_type=Members)
    count, nesting = 0, Nesting(max_parts)
    try:
        nesting.feed(head)
        parser.send(head)
        async for chunk in _with_last(rest):
            for value in values:
                count += 1
                yield value
            del values[:]
            nesting.feed(chunk)
            parser.send(chunk)
        parser.close()
    except NamedTwice as error:
        raise at_line(MalformedBody(f"this {error}."), count + len(values) + 1) from None
    except ijson.JSONError as error:
        reason = str(error).partition("\n")[0]
        raise at_line(MalformedBody(f"the body is not a JSON array: {reason}."), count + len(values) + 1) from error
    for value in values:
        yield value


async def _with_last(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        if chunk:  # an empty one ends ijson's parser
            yield chunk


async def _lines(head: bytes, rest: AsyncIterator[bytes], max_line_bytes: int, max_parts: int) -> AsyncIterator[Any]:
    buffer, number = bytearray(head), 0
    more = True
    while more:
        end = buffer.find(b"\n")
        while end < 0 and more:
            searched = len(buffer)
            if searched > max_line_bytes:
                raise at_line(BodyTooLarge(f"this is larger than {max_line_bytes} bytes."), number + 1)
            chunk = await anext(rest, None)
            more = chunk is not None
            buffer += chunk or b""
            end = buffer.find(b"\n", searched)
        line = bytes(buffer if end < 0 else buffer[:end])
        del buffer[: len(buffer) if end < 0 else end + 1]
        more = more or bool(buffer)
        if line.strip():
            number += 1
            if parts_of(line) > max_parts:
                raise at_line(too_many_parts("this", max_parts), number)
            try:
                value = parsed_json(line, "this", is_line=True)
            except MalformedBody as error:
                raise at_line(error, number) from error
            yield value
