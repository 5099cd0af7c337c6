"""How long publishing takes, beside hashing and copying the same bytes as often as it must."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import timm
import torch

from .train_speed import ROOT, describe

PIECE_BYTES = 1 << 20
# Publishes a folder, in a process that talks to the stand-in Hub; prints seconds of staging and of pushing.
PUBLISH = """
import sys, time
from hub.pushing import push_folder
from hub.staging import stage
source, folder, repo_id = sys.argv[1:]
start = time.perf_counter()
stage(source, folder, license='mit', repo_id=repo_id, say=lambda line: None)
staged = time.perf_counter()
push_folder(folder, repo_id, say=lambda line: None)
print(staged - start, time.perf_counter() - staged)
"""


def hub(model: str = 'vgg16_wa2048', repeats: int = 5, limit: float = 1.3) -> int:
    """Time staging a network and pushing it to a stand-in Hub on this machine.

    It is compared with the least that must be done: one pass over the weights that copies and hashes them (staging),
    one that hashes them (the Hub's protocol asks for it before it takes them), and one that sends them.

    Args:
        model: Name of a network, with random weights.
        repeats: How often each is done, in turn.
        limit: Largest allowed ratio.

    Returns:
        Exit code: 1 if the median of the ratios is above the limit.
    """
    staging, pushing, least = [], [], []
    network = timm.create_model(model)
    with tempfile.TemporaryDirectory() as folder, stand_in(Path(folder)) as environment:
        source = Path(folder) / 'network'
        for turn in range(repeats):
            torch.nn.init.constant_(next(network.parameters()), turn)  # the Hub takes nothing that it has already
            timm.models.save_for_hf(network, str(source), safe_serialization=True)
            command = [sys.executable, '-c', PUBLISH, str(source), f'{folder}/staged-{turn}', f'me/network-{turn}']
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
            staged_s, pushed_s = map(float, done.stdout.split())
            staging.append(staged_s)
            pushing.append(pushed_s)
            torch.nn.init.constant_(next(network.parameters()), -1 - turn)
            timm.models.save_for_hf(network, str(source), safe_serialization=True)
            least.append(least_work(source / 'model.safetensors', Path(folder) / 'copy', environment['HF_ENDPOINT']))
        size = (source / 'model.safetensors').stat().st_size
    ratios = [(ours + theirs) / floor for ours, theirs, floor in zip(staging, pushing, least, strict=True)]
    print(f'{model}, {size / 1e6:.0f} MB: staging {describe(staging, 2)} s, pushing {describe(pushing, 2)} s')
    print(f'copying and hashing, hashing, sending: {describe(least, 2)} s')
    print(f'ratio {describe(ratios, 2)}, at most {limit:g} wanted')
    return int(statistics.median(ratios) > limit)


@contextlib.contextmanager
def stand_in(folder: Path) -> Iterator[dict[str, str]]:
    """Run the stand-in Hub in a process of its own; gives what makes huggingface_hub talk to it."""
    command = [sys.executable, '-m', 'tests.hub_server', '--port', '0', '--home', str(folder / 'home')]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        told: dict[str, str] = {}
        while 'HF_HUB_OFFLINE' not in told:  # the last one
            name, _, value = server.stdout.readline().removeprefix('export ').strip().partition('=')
            told[name] = value
        reader = threading.Thread(target=server.stdout.read, daemon=True)  # it tells every request
        reader.start()
        try:
            yield {**os.environ, **told, 'PYTHONPATH': str(ROOT)}
        finally:
            server.terminate()


def least_work(weights: Path, copy: Path, url: str) -> float:
    """Do what must be done, and nothing else; returns the seconds it took."""
    start = time.perf_counter()
    with open(weights, 'rb') as source, open(copy, 'wb') as target:
        oid = pass_over(source, target.write)
        target.flush()
        os.fsync(target.fileno())
    with open(copy, 'rb') as source:
        pass_over(source)
    with open(copy, 'rb') as source:
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        connection.request('PUT', f'/objects/{oid}', source, {'Content-Length': str(copy.stat().st_size)})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f'the stand-in Hub answered {answer.status}: {answer.read()[:200]!r}')
        connection.close()
    return time.perf_counter() - start


def pass_over(source: BinaryIO, write: Callable[[bytes], object] = lambda piece: None) -> str:
    """Read a file piece by piece; returns its SHA-256."""
    digest = hashlib.sha256()
    while piece := source.read(PIECE_BYTES):
        digest.update(piece)
        write(piece)
    return digest.hexdigest()
