"""A client of httpx, for tests/judges/clients.py.

client.py URL AUTHORITY REQUESTS AT_ONCE   prints `ok N`, and a line for each request that failed
"""
import asyncio
import itertools
import ssl
import sys

import httpx

BODY = b"0123456789abcdef" * 64
url, authority, requests, at_once = sys.argv[1:]
numbers = itertools.count(1)
failed = 0


async def once(client, number):
    global failed
    try:
        answer = await (client.post(url, content=BODY) if number % 2 == 0 else client.get(url))
        if answer.http_version != "HTTP/2" or answer.status_code != 200 or answer.content != BODY:
            raise ValueError(f"{answer.http_version} {answer.status_code}, {len(answer.content)} bytes")
    except Exception as error:
        failed += 1
        print(repr(error))


async def asker(client):
    while (number := next(numbers)) <= int(requests):
        await once(client, number)


async def main():
    trust = ssl.create_default_context(cafile=authority)
    async with httpx.AsyncClient(http1=False, http2=True, verify=trust, timeout=30) as client:
        # The first alone, so that the others find its connection.
        await once(client, next(numbers))
        await asyncio.gather(*(asker(client) for _ in range(int(at_once))))
    print("ok", int(requests) - failed)


asyncio.run(main())
