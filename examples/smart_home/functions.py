"""The functions of the smart home as tools, and how the recogniser's slots become their arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .home import DOMAINS, Home

COLOURS = ["white", "black", "red", "orange", "yellow", "green", "blue", "purple", "brown", "pink", "turquoise"]
FAN_MODES = ["auto", "on", "off", "low", "medium", "high", "top", "middle", "focus", "diffuse"]
MEDIA = ["artist", "album", "track", "playlist", "podcast", "movie", "tv_show"]
STATE_WORDS = ["on", "off", "open", "closed", "opening", "closing", "locked", "unlocked", "detected", "clear"]
HERE = " Without area, floor or name: the room in which it is asked."
TIMER = " Says which timer by its start time, name or room; nothing where there is one timer."

_TIME = ("hours", "minutes", "seconds")
_WHICH_TIMER = ("start_hours", "start_minutes", "start_seconds", "name", "area")
# Function: (description, arguments that it may have, arguments that it must have)
FUNCTIONS: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "HassTurnOn": (
        "Turns on a device, or all lights or fans of a room or floor. Also: opens covers and valves, LOCKS locks, "
        "presses buttons, starts scenes and scripts." + HERE,
        ("name", "area", "floor", "group", "device_class"),
        (),
    ),
    "HassTurnOff": (
        "Turns off a device, or all lights or fans of a room, a floor or the whole home. Also: closes covers and "
        "valves, UNLOCKS locks. Lights without area, floor or name: all lights of the home; fans and covers: the room "
        "in which it is asked.",
        ("name", "area", "floor", "group", "device_class"),
        (),
    ),
    "HassGetState": (
        "Answers a question about the state of devices or where a person is: one by name, or all of a kind, of a "
        "room or floor.",
        ("name", "area", "floor", "domain", "device_class", "state"),
        (),
    ),
    "HassLightSet": (
        "Sets brightness (percent; maximum is 100, minimum is 1), colour, or colour temperature (kelvin; candle light "
        "1900, warm white 2700, cool white 4000, daylight 6500) of a light or of a room's or floor's lights." + HERE,
        ("name", "area", "floor", "brightness", "color", "kelvin"),
        (),
    ),
    "HassFanSetSpeed": (
        "Sets the speed of a fan, or of a room's or floor's fans." + HERE,
        ("name", "area", "floor", "percentage"),
        ("percentage",),
    ),
    "HassSetPosition": (
        "Moves covers or a valve to a position: 0 is closed, 100 is open." + HERE,
        ("name", "area", "device_class", "position"),
        ("position",),
    ),
    "HassClimateGetTemperature": ("Tells the temperature of a room or thermostat." + HERE, ("name", "area"), ()),
    "HassClimateSetTemperature": (
        "Sets the temperature of a room, floor or thermostat." + HERE,
        ("name", "area", "floor", "degrees"),
        ("temperature",),
    ),
    "HassClimateSetFanMode": (
        "Sets the fan mode of heating or cooling." + HERE,
        ("name", "area", "floor", "fan_mode"),
        ("fan_mode",),
    ),
    "HassGetWeather": ("Tells the weather, here or at a named place.", ("name",), ()),
    "HassGetCurrentDate": ("Tells today's date.", (), ()),
    "HassGetCurrentTime": ("Tells the time.", (), ()),
    "HassBroadcast": ("Speaks a message in all rooms.", ("message",), ("message",)),
    "HassListAddItem": ("Adds an item to a named list (not the shopping list).", ("name", "item"), ("name", "item")),
    "HassListCompleteItem": ("Checks off an item on a named list.", ("name", "item"), ("name", "item")),
    "HassListRemoveItem": ("Removes an item from a named list.", ("name", "item"), ("name", "item")),
    "HassShoppingListAddItem": ("Adds an item to the shopping list, which is also `my list`.", ("item",), ("item",)),
    "HassShoppingListCompleteItem": ("Checks off or removes an item on the shopping list.", ("item",), ("item",)),
    "HassLawnMowerStartMowing": ("Starts mowing the lawn.", ("name",), ()),
    "HassLawnMowerDock": ("Stops mowing and sends the mower to its dock.", ("name",), ()),
    "HassVacuumStart": ("Starts the vacuum, by its name or to clean a whole floor.", ("name", "floor"), ()),
    "HassVacuumCleanArea": ("Vacuums one room." + HERE, ("name", "area"), ()),
    "HassVacuumReturnToBase": ("Sends the vacuum back to its base.", ("name",), ("name",)),
    "HassMediaNext": ("Skips to the next track." + HERE, ("name", "area"), ()),
    "HassMediaPrevious": ("Goes back to the previous track, or replays it." + HERE, ("name", "area"), ()),
    "HassMediaPause": ("Pauses or stops what is playing." + HERE, ("name", "area"), ()),
    "HassMediaUnpause": ("Resumes what was paused." + HERE, ("name", "area"), ()),
    "HassMediaPlayerMute": ("Mutes a media player." + HERE, ("name",), ()),
    "HassMediaPlayerUnmute": ("Unmutes a media player." + HERE, ("name",), ()),
    "HassMediaSearchAndPlay": (
        "Searches music, shows or podcasts and plays them." + HERE,
        ("name", "area", "search_query", "media_class"),
        ("search_query",),
    ),
    "HassSetVolume": ("Sets the volume to a percentage." + HERE, ("name", "area", "volume_level"), ("volume_level",)),
    "HassSetVolumeRelative": (
        "Turns the volume up or down, by some percent where a number is said." + HERE,
        ("name", "area", "floor", "direction", "step"),
        ("direction",),
    ),
    "HassStartTimer": (
        "Starts a timer; with conversation_command, a command that runs when the time is over.",
        (*_TIME, "timer_name", "conversation_command"),
        (),
    ),
    "HassCancelTimer": ("Cancels a timer." + TIMER, _WHICH_TIMER, ()),
    "HassCancelAllTimers": ("Cancels all timers, of the home or of one room.", ("area",), ()),
    "HassPauseTimer": ("Pauses a timer." + TIMER, _WHICH_TIMER, ()),
    "HassUnpauseTimer": ("Resumes a paused timer." + TIMER, _WHICH_TIMER, ()),
    "HassIncreaseTimer": ("Adds time to a running timer." + TIMER, (*_TIME, *_WHICH_TIMER), ()),
    "HassDecreaseTimer": ("Takes time off a running timer." + TIMER, (*_TIME, *_WHICH_TIMER), ()),
    "HassTimerStatus": ("Tells how much time is left on a timer." + TIMER, _WHICH_TIMER, ()),
}


def tools(home: Home) -> list[dict[str, Any]]:
    """All functions in OpenAI's format, with the home's own names as enums."""
    return [_tool(name, home) for name in FUNCTIONS]


def arguments_of(function: str, slots: Mapping[str, Any]) -> dict[str, Any]:
    """A function's arguments from the recogniser's slots.

    Slots that say nothing beyond the function itself are left out: `domain` of functions that have one domain, and
    of covers, which their device_class tells. Some slots get plainer names: colour temperature is `kelvin`, a relative
    volume is `direction` and `step`. The room in which it is asked is left out.
    """
    found = {key: value for key, value in slots.items() if value != "here" or key != "area"}
    if function == "HassLightSet" and "temperature" in found:
        found["kelvin"] = found.pop("temperature")
    if function == "HassSetVolumeRelative":
        step = found.pop("volume_step")
        found["direction"] = step if isinstance(step, str) else ("up" if step >= 0 else "down")
        if not isinstance(step, str):
            found["step"] = abs(step)
    if found.get("domain") == "cover" or "domain" not in _properties_of(function):
        found.pop("domain", None)
    order = list(_properties_of(function))
    return {key: _plain(found[key]) for key in sorted(found, key=lambda key: order.index(key))}


def _properties_of(function: str) -> list[str]:
    real = {"group": "domain", "degrees": "temperature", "timer_name": "name"}
    return [real.get(name, name) for name in FUNCTIONS[function][1]]


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _tool(name: str, home: Home) -> dict[str, Any]:
    description, arguments, required = FUNCTIONS[name]
    real = {"group": "domain", "degrees": "temperature", "timer_name": "name"}
    properties = {real.get(argument, argument): _property(argument, name, home) for argument in arguments}
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        schema["required"] = list(required)
    schema["additionalProperties"] = False
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def _property(argument: str, function: str, home: Home) -> dict[str, Any]:
    if (argument == "name" and function not in DOMAINS) or argument == "timer_name":
        return {"type": "string", "description": "the timer's name"}
    enums: dict[str, list[str]] = {
        "name": home.names(DOMAINS.get(function, ())),
        "area": list(home.areas),
        "floor": list(home.floors),
        "group": ["light", "fan"],
        "domain": ["light", "fan", "switch", "lock", "person"],
        "device_class": home.device_classes(),
        "color": COLOURS,
        "fan_mode": FAN_MODES,
        "media_class": MEDIA,
        "direction": ["up", "down"],
    }
    if argument in enums:
        return {"type": "string", "enum": enums[argument]}
    if argument == "state":
        return {"type": "string", "description": f"asked state: {', '.join(STATE_WORDS)}, or a place of a person"}
    if argument in ("message", "item", "search_query", "conversation_command"):
        return {"type": "string"}
    ranges: dict[str, tuple[str, float, float]] = {
        "kelvin": ("integer", 1000, 10000),
        "degrees": ("number", 5, 35),
        "brightness": ("integer", 0, 100),
        "percentage": ("integer", 0, 100),
        "position": ("integer", 0, 100),
        "volume_level": ("integer", 0, 100),
        "step": ("integer", 0, 100),
    }
    kind, low, high = ranges.get(argument, ("integer", 1, 100))
    return {"type": kind, "minimum": low, "maximum": high}
