"""Keys for a server of the inner loop that other hosts reach: who has none is not heard (CURVE, of ZeroMQ).

    python -m arclab.methods.seal.knowledge.keys FOLDER       # makes them; then serve.keys=FOLDER on both sides

server.key_secret stays with the server, client.key_secret with who asks; the server hears those whose public key lies in
clients/. Copy server.key, client.key and client.key_secret to the other host, over a way that is safe.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

from arclab.config.compose import ConfigError, run_main

_CLIENTS = "clients"
_REMEDY = "make keys with python -m arclab.methods.seal.knowledge.keys FOLDER, and name that folder"


def make_keys(folder: Path) -> None:
    """ConfigError: the folder has keys already."""
    if any(folder.glob("*.key*")):
        raise ConfigError(f"{folder} has keys already, and new ones would lock their owners out; name another folder.")
    (folder / _CLIENTS).mkdir(parents=True, exist_ok=True)
    for name in ("server", "client"):
        _, secret = zmq.auth.create_certificates(folder, name)
        Path(secret).chmod(0o600)
    shutil.copy(folder / "client.key", folder / _CLIENTS / "client.key")


def lock_socket(socket: zmq.Socket[bytes], folder: Path) -> ThreadAuthenticator:
    """Before it is bound: it hears those who have a key. The result must be stopped in the end. ConfigError: no keys."""
    public, secret = _key(folder / "server.key_secret")
    if not (folder / _CLIENTS).is_dir():
        raise ConfigError(f"serve.keys={folder} has no folder {_CLIENTS}, so nobody could be heard; {_REMEDY}.")
    doorman = ThreadAuthenticator(zmq.Context.instance())
    doorman.start()
    doorman.configure_curve(domain="*", location=str(folder / _CLIENTS))
    socket.curve_publickey, socket.curve_secretkey, socket.curve_server = public, secret, True
    return doorman


def unlock_socket(socket: zmq.Socket[bytes], folder: Path) -> None:
    """Before it is connected. ConfigError: no keys."""
    socket.curve_serverkey = _key(folder / "server.key", is_secret=False)[0]
    socket.curve_publickey, socket.curve_secretkey = _key(folder / "client.key_secret")


def _key(path: Path, *, is_secret: bool = True) -> tuple[bytes, bytes]:
    if not path.is_file():
        raise ConfigError(f"serve.keys={path.parent} has no {path.name}; {_REMEDY}.")
    try:
        public, secret = zmq.auth.load_certificate(path)
    except ValueError as error:
        raise ConfigError(f"{path} holds no key; {_REMEDY}.") from error
    if is_secret and secret is None:
        raise ConfigError(f"{path} holds no secret key; {_REMEDY}.")
    return public, secret or b""


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m arclab.methods.seal.knowledge.keys", description="Make keys of a server.")
    parser.add_argument("folder", type=Path, help="where they are written")
    make_keys(parser.parse_args(argv).folder)


if __name__ == "__main__":
    run_main(main)
