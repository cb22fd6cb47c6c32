"""The home of home.yaml: which rooms, floors and devices there are, and what they can do."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

SWITCHED = ("light", "switch", "fan", "media_player", "climate")
PUSHED = ("scene", "script", "button")
STATES = (
    "sensor",
    "light",
    "switch",
    "fan",
    "cover",
    "lock",
    "valve",
    "climate",
    "media_player",
    "binary_sensor",
    "person",
)
# Which kinds of device a function's `name` may mean.
DOMAINS: Mapping[str, tuple[str, ...]] = {
    "HassTurnOn": (*SWITCHED, "cover", "valve", "lock", *PUSHED),
    "HassTurnOff": (*SWITCHED, "cover", "valve", "lock"),
    "HassGetState": STATES,
    "HassLightSet": ("light",),
    "HassFanSetSpeed": ("fan",),
    "HassSetPosition": ("cover", "valve"),
    "HassClimateGetTemperature": ("climate",),
    "HassClimateSetTemperature": ("climate",),
    "HassClimateSetFanMode": ("climate",),
    "HassGetWeather": ("weather",),
    "HassLawnMowerDock": ("lawn_mower",),
    "HassLawnMowerStartMowing": ("lawn_mower",),
    "HassListAddItem": ("todo",),
    "HassListCompleteItem": ("todo",),
    "HassListRemoveItem": ("todo",),
    "HassMediaNext": ("media_player",),
    "HassMediaPrevious": ("media_player",),
    "HassMediaPause": ("media_player",),
    "HassMediaUnpause": ("media_player",),
    "HassMediaPlayerMute": ("media_player",),
    "HassMediaPlayerUnmute": ("media_player",),
    "HassMediaSearchAndPlay": ("media_player",),
    "HassSetVolume": ("media_player",),
    "HassSetVolumeRelative": ("media_player",),
    "HassVacuumStart": ("vacuum",),
    "HassVacuumReturnToBase": ("vacuum",),
    "HassVacuumCleanArea": ("vacuum",),
}
# Functions whose `area` or `floor` must hold such a device, where the call names none.
GROUPS: Mapping[str, str] = {
    "HassLightSet": "light",
    "HassFanSetSpeed": "fan",
    "HassSetPosition": "cover",
    "HassClimateGetTemperature": "climate",
    "HassClimateSetTemperature": "climate",
    "HassClimateSetFanMode": "climate",
    **{name: "media_player" for name, kinds in DOMAINS.items() if kinds == ("media_player",)},
}


class Home:
    """Entities, areas and floors by name, with all the words that people use for them."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        self.entities: dict[str, dict[str, Any]] = {entity["name"]: entity for entity in plan["entities"]}
        self.areas: dict[str, dict[str, Any]] = {area["name"]: area for area in plan["areas"]}
        self.floors: dict[str, dict[str, Any]] = {floor["name"]: floor for floor in plan["floors"]}
        self.fillers: dict[str, list[str]] = plan.get("fillers", {})
        self.media: dict[str, list[str]] = plan.get("media", {})

    @staticmethod
    @cache
    def read(folder: Path) -> Home:
        return Home(yaml.safe_load((folder / "home.yaml").read_text(encoding="utf-8")))

    def names(self, domains: tuple[str, ...]) -> list[str]:
        return [name for name, entity in self.entities.items() if entity["domain"] in domains]

    def words(self, name: str) -> list[str]:
        """All that people call an entity, area or floor."""
        for kind in (self.entities, self.areas, self.floors):
            if name in kind:
                return [name, *kind[name].get("also", [])]
        return [name]

    def floor_of(self, area: str | None) -> str | None:
        return self.areas[area].get("floor") if area in self.areas else None

    def those(
        self, domain: str | None = None, area: str | None = None, floor: str | None = None, kind: str | None = None
    ) -> list[str]:
        """Names of the devices of a domain and device class in an area or on a floor; None asks for any."""
        return [
            name
            for name, entity in self.entities.items()
            if (domain is None or entity["domain"] == domain)
            and (kind is None or entity.get("device_class") == kind)
            and (area is None or entity.get("area") == area)
            and (floor is None or self.floor_of(entity.get("area")) == floor)
        ]

    def device_classes(self) -> list[str]:
        return sorted({entity["device_class"] for entity in self.entities.values() if "device_class" in entity})
