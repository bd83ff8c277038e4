"""A machine: its peaks, memory, links and costs, read from a profile (TOML) in which each number has its source.

A profile is one of those that ship (`machines/*.toml`) or a file, for instance the one that `scalade calibrate` wrote.
A number is a table of two: `bf16 = { value = 989.4e12, source = "datasheet" }`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...results.wording import did_you_mean

FOLDER = Path(__file__).parent / "machines"


@dataclass(frozen=True)
class Products:
    """How far matrix products stay from the peak.

    time = waves x units x 2 tile K / (peak x efficiency) x (1 + half_k / K) ...; matmul.py has the whole.
    """

    efficiency: float  # of the peak, of large products
    units: int = 1  # that work on a tile each (SMs); 1: no tiles
    half_k: float = 150.0  # inner dimension at which half the time is spent on beginning and end
    half_m: float = 0.0  # the same of rows; where there are no tiles
    half_n: float = 0.0  # of columns
    floor_s: float = 4e-6  # the shortest product
    relative: Mapping[str, float] = field(default_factory=dict)  # efficiency of a precision over that of bf16
    contention: float = 1.0  # time with all devices of the node at work over time alone (cores share a CPU's memory)


@dataclass(frozen=True)
class Link:
    """A level of the network: what ranks use whose group stays within `ranks` neighbours."""

    name: str  # node, cluster, site
    ranks: float  # of one island of this level; inf: all that there are
    bandwidth: float  # bytes/s, bus bandwidth of one rank that talks alone
    latency_s: float  # of a collective
    shared_by: float = 1  # ranks of the level below that share a port of this bandwidth
    congestion: float = 0.0  # exponent: bandwidth falls as (islands of the level below) ** -congestion
    ring: float = 1.0  # time of a gather or scatter over that of as many bus bytes of an all-reduce, on few islands
    ring_nodes: float = float("inf")  # islands on which it is twice that


@dataclass(frozen=True)
class Machine:
    """All that the model knows of a machine. FLOP/s, bytes, bytes/s, seconds, watts."""

    name: str
    description: str
    device: str  # cuda, rocm or cpu
    peaks: dict[str, float]  # precision -> dense FLOP/s
    memory_bytes: float
    memory_bandwidth: float
    products: Products
    attention_forward: float  # share of the peak
    attention_backward: float
    elementwise: float  # share of the memory's bandwidth
    launch_s: float  # host time of a kernel in eager mode; of an operation, where the device is the host (host.py)
    links: tuple[Link, ...]  # innermost first
    node_ranks: int  # devices of a node
    elementwise_contention: float = 1.0  # as that of products
    optimizer: float = 1.0  # share of the memory's bandwidth that an update reaches
    reserved_bytes: float = 0.0  # context, collective library: not the allocator's
    fragmentation: float = 0.0  # share of the allocated that the allocator cannot use
    idle_w: float = 0.0
    busy_w: float = 0.0
    dollars_per_device_hour: float = 0.0  # 0: unknown
    reference_mfu: float = 0.0  # causal, of one training run that is typical of this machine; 0: unknown
    names: tuple[str, ...] = ()  # parts of device names that this profile is for
    sources: dict[str, str] = field(default_factory=dict)  # dotted key -> where the number is from
    calibration: dict[str, Any] = field(default_factory=dict)  # stack -> Calibration.to_table, of measured rows

    @property
    def on_host(self) -> bool:
        """Whether the device is the host itself: operations are dispatched and computed one after the other."""
        return self.device == "cpu"

    def peak(self, precision: str) -> float:
        """Raises ValueError where the device has no such precision."""
        if precision not in self.peaks:
            known = ", ".join(self.peaks)
            raise ValueError(f"machine {self.name}: no peak for {precision}: known are {known}")
        return self.peaks[precision]


def shipped() -> list[str]:
    """Names of the profiles that ship."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def load_machine(name: str | Path) -> Machine:
    """The profile of that name, or in that file.

    Raises
    ------
    ValueError: there is none, or it lacks a number; the line says which
    """
    path = FOLDER / f"{name}.toml" if str(name) in shipped() else Path(name)
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"no machine {str(name)!r}: {did_you_mean(str(name), shipped())}; or give a file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: not a machine profile: {error}") from None
    return Profile(path, table).machine()


class Profile:
    """A profile as read: hands out its numbers by dotted key, and keeps the source of each."""

    def __init__(self, path: Path, table: dict[str, Any]) -> None:
        self.path, self.table, self.sources = path, table, dict[str, str]()

    def machine(self) -> Machine:
        links = [self._link(i, each) for i, each in enumerate(self.table.get("links", []))]
        if not links:
            raise ValueError(f"{self.path}: has no [[links]]: a link inside a node is needed at least")
        peaks = {precision: self.number(f"peaks.{precision}") for precision in self.table.get("peaks", {})}
        if not peaks:
            raise ValueError(f"{self.path}: has no [peaks]: a peak for fp32 or bf16 is needed at least")
        return Machine(
            name=str(self.table.get("name", self.path.stem)),
            description=str(self.table.get("description", "")),
            device=str(self.table.get("device", "cuda")),
            peaks=peaks,
            memory_bytes=self.number("memory.bytes"),
            memory_bandwidth=self.number("memory.bandwidth"),
            products=Products(
                efficiency=self.number("products.efficiency"),
                units=int(self.number("products.units", 1)),
                half_k=self.number("products.half_k", 150.0),
                half_m=self.number("products.half_m", 0.0),
                half_n=self.number("products.half_n", 0.0),
                floor_s=self.number("products.floor_s", 4e-6),
                relative={each: self.number(f"products.relative.{each}") for each in self._relative()},
                contention=self.number("products.contention", 1.0),
            ),
            attention_forward=self.number("attention.forward"),
            attention_backward=self.number("attention.backward"),
            elementwise=self.number("elementwise.share"),
            launch_s=self.number("host.launch_s"),
            links=tuple(links),
            node_ranks=int(self.number("node.ranks")),
            elementwise_contention=self.number("elementwise.contention", 1.0),
            optimizer=self.number("optimizer.share", 1.0),
            reserved_bytes=self.number("memory.reserved", 0.0),
            fragmentation=self.number("memory.fragmentation", 0.0),
            idle_w=self.number("power.idle_w", 0.0),
            busy_w=self.number("power.busy_w", 0.0),
            dollars_per_device_hour=self.number("price.dollars_per_device_hour", 0.0),
            reference_mfu=self.number("reference.mfu", 0.0),
            names=tuple(self.table.get("names", ())),
            sources=self.sources,
            calibration=dict(self.table.get("calibration", {})),
        )

    def number(self, key: str, default: float | None = None) -> float:
        """The number of a dotted key. default: what a profile that lacks it gets; None: it must be there."""
        value: Any = self.table
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            if default is None:
                raise ValueError(f'{self.path}: lacks {key} = {{ value = NUMBER, source = "..." }}')
            return default
        return self._checked(key, value)

    def _relative(self) -> list[str]:
        """Precisions whose products have an efficiency of their own."""
        products = self.table.get("products")
        relative = products.get("relative") if isinstance(products, dict) else None
        return list(relative) if isinstance(relative, dict) else []

    def _link(self, i: int, table: dict[str, Any]) -> Link:
        name = str(table.get("name", f"links.{i}"))
        numbers = {}
        for key in ("ranks", "bandwidth", "latency_s", "shared_by", "congestion", "ring", "ring_nodes"):
            if key in table:
                numbers[key] = self._checked(f"links.{name}.{key}", table[key])
        for key in ("bandwidth", "latency_s"):
            if key not in numbers:
                raise ValueError(f'{self.path}: link {name} lacks {key} = {{ value = NUMBER, source = "..." }}')
        return Link(name, numbers.pop("ranks", float("inf")), **numbers)

    def _checked(self, key: str, value: Any) -> float:
        if not isinstance(value, dict) or not {"value", "source"} <= set(value):
            raise ValueError(f'{self.path}: {key} = {value!r}: must be {{ value = NUMBER, source = "..." }}')
        if not isinstance(value["value"], int | float) or not value["value"] >= 0:
            raise ValueError(f"{self.path}: {key} = {value['value']!r}: must be a number of 0 or more")
        self.sources[key] = str(value["source"])
        return float(value["value"])
