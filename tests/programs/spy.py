"""Another user beside a run: `spy.py USER RESULTS PORT,... PID...`, standard library only. See test_strangers.py.

He reads what anybody may read, and speaks to every port on which these processes listen: torch's protocol, made-up
messages, answers with guessed secrets, silence. What he found is one JSON object on standard output.
"""

import encodings.idna  # noqa: F401  # later it could not be read
import hashlib
import hmac
import json
import os
import re
import socket
import struct
import sys
import time
from contextlib import suppress

MAGIC = b"scalade1"


def read(name):
    with suppress(OSError), open(name, "rb") as file:
        return file.read(2**20)
    return None


def guesses(words):
    for word in {b"", b"0", *words}:
        yield word
        yield hashlib.sha256(word).digest()


def answers(s, words):
    """To the server's challenge."""
    for guess in guesses(words):
        c = os.urandom(32)
        said = b"".join(struct.pack(">I", len(part)) + part for part in (b"client", s, c)) + b"\1"
        yield c + hmac.digest(guess, said, "sha256")
    yield bytes(64)


def speak(port, words):
    """Connections of which it was ours that listens."""
    spoken, kept = 0, []
    forged = [b"".join(struct.pack(">I", len(p)) + p for p in (b"set", b"world/verdict", b'{"wrong": "forged"}'))]
    tries = [b"\x00" * 64, b"GET / HTTP/1.0\r\n\r\n", b"\xff" * 4096, *forged, None]
    with suppress(OSError):
        for said in tries:
            peer = socket.create_connection(("127.0.0.1", port), timeout=1.0)
            kept.append(peer)
            with suppress(OSError):
                if said is not None:
                    peer.sendall(said)
        for number in range(12):
            peer = socket.create_connection(("127.0.0.1", port), timeout=1.0)
            kept.append(peer)
            hello = peer.recv(40)
            if not hello.startswith(MAGIC):
                break
            answer = list(answers(hello[8:], words))[number::12]
            peer.sendall(answer[0] if answer else os.urandom(64))
            verdict = peer.recv(33)
            assert verdict[:1] != b"+", "let in"
            begun = time.monotonic()
            assert peer.recv(1) == b"" and time.monotonic() - begun < 1.0, "kept"
            spoken += 1
    for peer in kept:
        peer.close()
    return spoken


def main(user, results, ports, *pids):
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
    words, scratch, environments = set(), [], []
    for pid in pids:
        for name in ("cmdline", "environ", "maps"):
            content = read(f"/proc/{pid}/{name}")
            if content and name == "environ":
                environments.append(pid)
            words |= set(re.findall(rb"[0-9a-zA-Z._-]{8,}", content or b""))
    for folder, _, names in os.walk(results):
        for name in names:
            file = os.path.join(folder, name)
            content = read(file)
            if content is not None and ("scratch" in file or ".meeting" in file):
                scratch.append(file)
            words |= set(re.findall(rb"[0-9a-zA-Z._-]{8,}", content or b""))
    spoken, tried = 0, []
    for port in map(int, ports.split(",")):
        if count := speak(port, list(words)[:200]):
            spoken, tried = spoken + count, [*tried, port]
    print(
        json.dumps(
            {
                "ports": tried,
                "spoken": spoken,
                "scratch": scratch,
                "environments": environments,
                "words": sorted(word.decode() for word in words),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
