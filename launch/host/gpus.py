"""The NVIDIA devices that this process's ranks will see, and the memory of each, without CUDA and without torch.

nvidia-smi shows every card of the machine; CUDA shows a process what CUDA_VISIBLE_DEVICES leaves of them. How CUDA
reads that variable: "CUDA Environment Variables" in the CUDA C++ Programming Guide, and what is not written there in
torch.cuda._parse_visible_devices. Of MIG slices: "CUDA Device Enumeration" in NVIDIA's MIG User Guide.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from xml.etree import ElementTree

MIB = 2**20
ORDER, CHOSEN = "CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"
BY_BUS = "PCI_BUS_ID"  # the order of nvidia-smi; CUDA's own is FASTEST_FIRST
PATIENCE_S = 20.0


@dataclass(frozen=True)
class Device:
    """A card, or a MIG slice of one. memory_bytes: in total; None: not known (of some that share the host's memory)."""

    name: str  # GPU-... or MIG-..., as nvidia-smi writes it
    memory_bytes: int | None
    old_name: str = ""  # of a slice: MIG-GPU-<uuid>/<GPU instance>/<compute instance>, as drivers before R470


@dataclass(frozen=True)
class Card(Device):
    mig: bool = False  # it is cut into slices: only they can be used; its own name stands for the first
    slices: tuple[Device, ...] = ()


def device_order(env: Mapping[str, str]) -> dict[str, str]:
    """What a rank's environment needs for an index in CUDA_VISIBLE_DEVICES to be nvidia-smi's."""
    chosen = env.get(CHOSEN)
    return {ORDER: BY_BUS} if ORDER not in env and chosen is not None and _by_index(chosen) else {}


def visible_devices(env: Mapping[str, str] = os.environ) -> tuple[Device, ...] | None:
    """What ranks that are started here will see, by local rank; None where nvidia-smi gives no answer."""
    smi = shutil.which("nvidia-smi", path=env.get("PATH"))
    cards = all_cards(smi) if smi else None
    return None if cards is None else visible(cards, env)


def visible_count(cards: int, chosen: str | None) -> int:
    """How many of so many cards CUDA_VISIBLE_DEVICES leaves, where no more is known of them than their number."""
    if chosen is None:
        return cards
    if _by_index(chosen):
        return len(_indices(chosen, cards))
    return min(cards, len(_names(chosen)))


def visible(cards: Sequence[Card], env: Mapping[str, str]) -> tuple[Device, ...]:
    """The devices that CUDA would show a process with this environment, in its order."""
    usable = list(chain.from_iterable(map(_usable, _chosen(cards, env))))
    slices = [device for device in usable if device.name.startswith("MIG-")]
    return tuple(slices[:1] or usable)  # a process sees one slice, and then no whole card


def _chosen(cards: Sequence[Card], env: Mapping[str, str]) -> Sequence[Device]:
    """By CUDA_VISIBLE_DEVICES; all of them where it is not set."""
    chosen = env.get(CHOSEN)
    if chosen is None:
        return cards if env.get(ORDER) == BY_BUS else _least_of(cards, cards)
    if not _by_index(chosen):
        return _by_name(cards, chosen)
    indexed = [cards[i] for i in _indices(chosen, len(cards))]
    return indexed if env.get(ORDER, BY_BUS) == BY_BUS else _least_of(cards, indexed)


def _by_name(cards: Sequence[Card], chosen: str) -> list[Device]:
    """Those that a list of names chooses: an entry that fits none, or more than one, ends it; one twice empties it."""
    devices: list[Device] = []
    for name in _names(chosen):
        device = _named(cards, name)
        if device is None:
            break
        if device in devices:
            return []
        devices.append(device)
    return devices


def _least_of(cards: Sequence[Card], chosen: Sequence[Card]) -> list[Card]:
    """As many, each with the smallest memory of all cards: in an order of its own only CUDA knows which comes first."""
    least = smallest([card.memory_bytes for card in cards])
    return [Card(card.name, card.memory_bytes if card.mig else least, "", card.mig, card.slices) for card in chosen]


def smallest(amounts: Sequence[int | None]) -> int | None:
    """None: one is not known, or there is none."""
    known = [amount for amount in amounts if amount is not None]
    return min(known) if known and len(known) == len(amounts) else None


def _usable(device: Device) -> tuple[Device, ...]:
    return device.slices[:1] if isinstance(device, Card) and device.mig else (device,)


def _by_index(chosen: str) -> bool:
    return not chosen.startswith(("GPU-", "MIG-"))


def _indices(chosen: str, cards: int) -> list[int]:
    """Read as by strtoul: `1gpu` is 1. The first entry that is no card's ends the list, one twice empties it."""
    indices: list[int] = []
    for entry in chosen.split(","):
        number = re.match(r"\s*\+?(\d+)", entry)
        if not number or int(number[1]) >= cards:
            break
        if int(number[1]) in indices:
            return []
        indices.append(int(number[1]))
    return indices


def _names(chosen: str) -> list[str]:
    kind, devices = chosen[:4], []
    for entry in (entry.strip() for entry in chosen.split(",")):
        if not entry.startswith(kind):
            break
        if entry in devices:
            return []
        devices.append(entry)
    return devices


def _named(cards: Sequence[Card], name: str) -> Device | None:
    """The card or the slice whose name starts so, as long as it is one only."""
    matches: list[Device] = []
    if name.startswith("GPU-"):
        matches += [card for card in cards if card.name.startswith(name)]
    else:
        slices = chain.from_iterable(card.slices for card in cards)
        matches += [each for each in slices if each.name.startswith(name) or name == each.old_name]
    return matches[0] if len(matches) == 1 else None


@lru_cache
def all_cards(smi: str) -> tuple[Card, ...] | None:
    """Every card of the machine, in the order of their bus; None where nvidia-smi fails. Asked once a process."""
    rows = _query(smi, "uuid,memory.total,mig.mode.current") or _query(smi, "uuid,memory.total")
    if rows is None:
        return None
    mig = [row[2:] != [] and row[2] == "Enabled" for row in rows]
    slices = _slices(smi) if any(mig) else {}
    return tuple(
        Card(row[0], int(row[1]) * MIB if row[1].isdigit() else None, "", cut, slices.get(row[0], ()) if cut else ())
        for row, cut in zip(rows, mig, strict=True)
    )


def _query(smi: str, fields: str) -> list[list[str]] | None:
    """A row for each card; None: a driver that does not know a field, or does not answer."""
    answer = _ask(smi, f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    if answer is None:
        return None
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines() if line.strip()]
    whole = all(len(row) == fields.count(",") + 1 and row[0].startswith("GPU-") for row in rows)
    return rows if whole else None


def _slices(smi: str) -> dict[str, tuple[Device, ...]]:
    """MIG slices by their card's name: their own names from `-L`, their memory from `-q -x`."""
    card, slices = "", dict[str, list[Device]]()
    memory = _slice_memory(_ask(smi, "-q", "-x") or "")
    for line in (_ask(smi, "-L") or "").splitlines():
        if match := re.match(r"GPU \d+: .*\(UUID: (GPU-[^)\s]+)\)", line):
            card = match[1]
        elif match := re.match(r"\s+MIG (\S+)\s+Device\s+(\d+): \(UUID: (MIG-[^)\s]+)\)", line):
            profile, index, name = match.groups()
            total, old = memory.get((card, int(index)), (None, ""))
            gigabytes = re.search(r"\.(\d+)gb", profile)  # 3g.20gb: the profile's name, a little below what it has
            named = int(gigabytes[1]) * 10**9 if gigabytes else None
            slices.setdefault(card, []).append(Device(name, named if total is None else total, old))
    return {name: tuple(devices) for name, devices in slices.items()}


def _slice_memory(xml: str) -> dict[tuple[str, int], tuple[int | None, str]]:
    """(total memory, old name) by card and the slice's number on it."""
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return {}
    names = {}
    for gpu in root.iter("gpu"):
        uuid = gpu.findtext("uuid", "").strip()
        for each in gpu.iter("mig_device"):
            total = re.match(r"(\d+) MiB", each.findtext("fb_memory_usage/total", "").strip())
            instances = [each.findtext(f"{kind}_instance_id", "").strip() for kind in ("gpu", "compute")]
            index = each.findtext("index", "").strip()
            if index.isdigit():
                bytes_ = int(total[1]) * MIB if total else None
                names[uuid, int(index)] = (bytes_, f"MIG-{uuid}/{'/'.join(instances)}")
    return names


def _ask(smi: str, *arguments: str) -> str | None:
    try:
        done = subprocess.run([smi, *arguments], capture_output=True, text=True, timeout=PATIENCE_S, errors="replace")
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def driver_cards() -> int:
    """Cards by the files that the driver leaves."""
    numbered = [path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) or len(numbered)
